"""Which prefill replicas may hand keys and values to which decode replicas, and what pairs of them carry.

A pairing domain is a group of pools that read each other's keys and values, at one location where a service's traffic
may not leave it. A request is served by a mixed replica, or prefilled and decoded inside one domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from solvers.engine import EngineConfig, Role
from solvers.fleet import PoolKey
from solvers.hashing import HashedOnce
from solvers.problem import Problem
from solvers.workload import PlacementMode, ServedModel

ANYWHERE_INSIDE = ""
"""Site of a domain whose traffic may cross from location to location."""

Carried = Mapping[tuple[PoolKey, str], float]
"""Requests per second by (pool, location)."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Domain(HashedOnce):
    """Pools of one KV group of a service, at one site."""

    group: str = ""
    site: str = ANYWHERE_INSIDE

    __hash__ = HashedOnce.__hash__


UNPARTED = Domain()
"""The domain of all pools of a service that need not be told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What a service's replicas carry: mixed ones by themselves, prefill and decode by domain; requests per second."""

    mixed_per_s: float
    prefill_per_s: Mapping[Domain, float]
    decode_per_s: Mapping[Domain, float]
    is_parted: bool

    @classmethod
    def of(cls, carried: Mapping[tuple[Role, Domain], float], *, is_parted: bool) -> Pairs:
        """Sort by role what is carried in each domain."""
        mixed_per_s, prefill, decode = 0.0, dict[Domain, float](), dict[Domain, float]()
        for (role, domain), rate in carried.items():
            if role is Role.MIXED:
                mixed_per_s += rate
            else:
                (prefill if role is Role.PREFILL else decode)[domain] = rate
        return cls(mixed_per_s=mixed_per_s, prefill_per_s=prefill, decode_per_s=decode, is_parted=is_parted)

    def paired_per_s(self, domain: Domain) -> float:
        """What pairs inside the domain carry."""
        return min(self.prefill_per_s.get(domain, 0.0), self.decode_per_s.get(domain, 0.0))

    @property
    def able_per_s(self) -> float:
        """Requests per second that pass both chains: mixed pools, and pairs of prefill and decode."""
        return self.mixed_per_s + sum(self.paired_per_s(domain) for domain in self.prefill_per_s)

    def wants(self, role: Role, domain: Domain, asked_per_s: float) -> tuple[float, ...]:
        """Say how much more of a role in a domain would be of use, once for each chain that it helps.

        Where several domains exist, completing pairs counts twice: what is begun is finished first.
        """
        missing = max(0.0, asked_per_s - self.able_per_s)
        prefill, decode = (self._of(r, domain) for r in (Role.PREFILL, Role.DECODE))
        if not self.is_parted:
            of_role = {Role.PREFILL: (prefill,), Role.DECODE: (decode,), Role.MIXED: (prefill, decode)}[role]
            return tuple(max(0.0, asked_per_s - able - self.mixed_per_s) for able in of_role)
        if role is Role.MIXED:
            return missing, missing
        mine, other = (prefill, decode) if role is Role.PREFILL else (decode, prefill)
        return max(0.0, min(mine, other) + missing - mine), min(missing, max(0.0, other - mine))

    def _of(self, role: Role, domain: Domain) -> float:
        return (self.prefill_per_s if role is Role.PREFILL else self.decode_per_s).get(domain, 0.0)

    def share_ratio(self, role: Role, domain: Domain) -> float:
        """Part of what the service serves that each request per second of the role carries in the domain."""
        able = self.able_per_s
        if able <= 0.0:
            return 0.0
        if role is Role.MIXED:
            return 1.0 / able
        of_role = self._of(role, domain)
        return self.paired_per_s(domain) / of_role / able if of_role > 0.0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """KV groups of a problem's pools.

    Attributes
    ----------
    groups : mapping of (service, GPU class, configuration) to str
    parted : frozenset of str
        Services for which it matters how prefill and decode divide over domains.
    local : frozenset of str
        Services that pair at one location only.
    """

    groups: Mapping[tuple[str, str, EngineConfig], str]
    parted: frozenset[str]
    local: frozenset[str]
    _known: dict[tuple[PoolKey, str], Domain] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem) -> Pairing:
        """Read the groups off services, profiles and GPU classes."""
        groups: dict[tuple[str, str, EngineConfig], str] = {}
        parted: set[str] = set()
        local = frozenset(service.name for service in problem.services if service.pairs_locally)
        profiles = sorted(problem.profiles.items())
        for service in problem.services:
            mine = [(key, profile) for key, profile in profiles if key.model == service.model]
            for key, profile in mine:
                kind = problem.gpu_classes.get(key.gpu_class)
                named = profile.kv_compatibility_group or service.kv_compatibility_group
                words = (named, key.config.engine, kind.kv_fabric if kind else "")
                groups[service.name, key.gpu_class, key.config] = " ".join(word for word in words if word)
            used = {
                groups[service.name, key.gpu_class, key.config]
                for key, _ in mine
                if key.gpu_class in problem.gpu_classes and service.allows(key.gpu_class, key.config)
            }
            if service.has_pairs and (len(used) > 1 or service.name in local):
                parted.add(service.name)
        return cls(groups=groups, parted=frozenset(parted), local=local)

    def group(self, pool: PoolKey) -> str:
        """KV group of a pool; empty where nothing is known of it."""
        return self.groups.get((pool.service, pool.gpu_class, pool.config), "")

    def all_groups(self, service: str) -> list[str]:
        """Groups of all pools that a service could have, sorted."""
        return sorted({group for (name, _, _), group in self.groups.items() if name == service})

    def domain(self, pool: PoolKey, location: str) -> Domain:
        """The domain of a pool's replicas at a location; one for all where the service is not parted."""
        if pool.service not in self.parted:
            return UNPARTED
        key = pool, location
        if key not in self._known:
            site = location if pool.service in self.local else ANYWHERE_INSIDE
            self._known[key] = Domain(group=self.group(pool), site=site)
        return self._known[key]

    def groups_of(self, service: ServedModel, pools: Iterable[PoolKey]) -> tuple[str, ...]:
        """Groups among the pools of a parted service, sorted; one without a name for any other."""
        if service.name not in self.parted:
            return ("",)
        mine = {self.group(pool) for pool in pools if pool.role is not Role.MIXED}
        return tuple(sorted(mine)) or ("",)

    def pairs(self, service: str, carried: Carried) -> Pairs:
        """Add up what a service's replicas carry, by domain."""
        summed: dict[tuple[Role, Domain], float] = {}
        for (pool, location), rate in carried.items():
            key = pool.role, self.domain(pool, location)
            summed[key] = summed.get(key, 0.0) + rate
        return Pairs.of(summed, is_parted=service in self.parted)


def more_beside(problem: Problem, service: ServedModel, pool: PoolKey) -> int:
    """Replicas of a pool beyond those that its load needs, so that prefill and decode can be wherever the other is."""
    if pool.role is Role.MIXED or service.placement is PlacementMode.CLASS:
        return 0
    if service.pairs_locally:
        return len({n.location for n in problem.nodes if n.gpu_class == pool.gpu_class and n.gpus_usable > 0}) - 1
    return len(problem.policy.kv_links) if service.has_pairs else 0
