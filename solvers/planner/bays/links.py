"""Keys and values over the links between locations: which requests cross, what that loads and costs, who gives way.

A link joins some locations to all others. A router keeps prefill and decode on one side of it as far as capacity goes:
mixed replicas and pairs that need no link serve first, in proportion to what they carry; what is asked beyond crosses,
from where prefill is left over to where decode is, in proportion again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.pairing import ANYWHERE_INSIDE, Carried, Domain, Pairing
from solvers.problem import KvLink, Problem

SECONDS_PER_HOUR = 3600.0
TERABYTE = 1e12
At = TypeVar("At")  # a location, or a class of them

Traffic = Mapping[tuple[str, Role], float]
"""Bytes per second by link and by who is on its side: prefill sends through it, decode receives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLoad:
    """What goes through one link each way, bytes per second, and what that costs."""

    link: KvLink
    outgoing_bytes_per_s: float
    incoming_bytes_per_s: float

    @property
    def usd_per_hour(self) -> float:
        return usd_per_hour(self.link, self.outgoing_bytes_per_s + self.incoming_bytes_per_s)


def usd_per_hour(link: KvLink, bytes_per_s: float) -> float:
    """What so much traffic through a link costs."""
    return bytes_per_s * SECONDS_PER_HOUR / TERABYTE * link.usd_per_terabyte


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Ways of a service's requests: mixed replicas, and prefill and decode by KV group and side of a link.

    ``bytes_by_group`` is what a request hands over.
    """

    mixed_per_s: float
    sides: Mapping[tuple[Role, Domain], float]
    bytes_by_group: Mapping[str, float]

    @classmethod
    def of(
        cls,
        carried: Mapping[tuple[PoolKey, At], float],
        domain: Callable[[PoolKey, At], Domain],
        bytes_by_group: Mapping[str, float],
    ) -> Route:
        """Add up what replicas carry by role and ``domain``, mixed ones apart; requests per second."""
        mixed, sides = 0.0, dict[tuple[Role, Domain], float]()
        for (pool, at), rate in carried.items():
            if pool.role is Role.MIXED:
                mixed += rate
            else:
                key = pool.role, domain(pool, at)
                sides[key] = sides.get(key, 0.0) + rate
        return cls(mixed_per_s=mixed, sides=sides, bytes_by_group=bytes_by_group)

    @property
    def near_per_s(self) -> float:
        """What is served without any link."""
        return self.mixed_per_s + sum(self._local(domain) for domain in self._domains())

    def flows(self, served_per_s: float) -> dict[tuple[Role, Domain], float]:
        """What each side does of what is served; sums to it over prefill and mixed, and over decode and mixed."""
        near, crossed = self._divided(served_per_s)
        flows = {(Role.MIXED, Domain()): near * self.mixed_per_s}
        for role, domain in self.sides:
            flows[role, domain] = near * self._local(domain) + crossed.get((role, domain), 0.0)
        return flows

    def pairs(self, served_per_s: float) -> dict[tuple[Domain, Domain], float]:
        """Requests per second from the prefill of one side to the decode of another, or of the same."""
        near, crossed = self._divided(served_per_s)
        pairs = {(domain, domain): near * self._local(domain) for domain in self._domains()}
        leaving = {domain: rate for (role, domain), rate in crossed.items() if role is Role.PREFILL and rate > 0.0}
        coming = {domain: rate for (role, domain), rate in crossed.items() if role is Role.DECODE and rate > 0.0}
        for giver, given in leaving.items():
            takers = {domain: rate for domain, rate in coming.items() if domain.group == giver.group}
            for taker, taken in takers.items():
                pairs[giver, taker] = given * taken / sum(takers.values())
        return pairs

    def traffic(self, served_per_s: float) -> dict[tuple[str, Role], float]:
        """Bytes per second that leave and enter each side of a link."""
        found: dict[tuple[str, Role], float] = {}
        for (role, domain), rate in self._divided(served_per_s)[1].items():
            if domain.site != ANYWHERE_INSIDE and rate > 0.0:
                sent = rate * self.bytes_by_group.get(domain.group, 0.0)
                found[domain.site, role] = found.get((domain.site, role), 0.0) + sent
        return found

    def usd_per_request(self, served_per_s: float, links: Mapping[str, KvLink]) -> float:
        """What crossing costs, USD per hour for a request per second; nothing where none crosses."""
        beyond = served_per_s - self.near_per_s
        usd = sum(usd_per_hour(links[site], sent) for (site, _), sent in self.traffic(served_per_s).items())
        return usd / beyond if beyond > 0.0 else 0.0

    def _domains(self) -> list[Domain]:
        return sorted({domain for _, domain in self.sides})

    def _local(self, domain: Domain) -> float:
        return min(self.sides.get((role, domain), 0.0) for role in (Role.PREFILL, Role.DECODE))

    def _spare(self, group: str) -> dict[tuple[Role, Domain], float]:
        """What pairs on one side of a link leave over of a group."""
        mine = ((key, rate) for key, rate in self.sides.items() if key[1].group == group)
        return {key: rate - self._local(key[1]) for key, rate in mine}

    def _divided(self, served_per_s: float) -> tuple[float, dict[tuple[Role, Domain], float]]:
        """Used part of what needs no link, and what crosses by role and side."""
        near = self.near_per_s
        beyond = max(0.0, served_per_s - near)
        used = min(1.0, served_per_s / near) if near > 0.0 else 0.0
        spare = {group: self._spare(group) for group in {domain.group for domain in self._domains()}}
        left = {group: {r: sum(v for (x, _), v in of.items() if x is r) for r in Role} for group, of in spare.items()}
        able = {group: min(of[Role.PREFILL], of[Role.DECODE]) for group, of in left.items()}
        total = sum(able[group] for group in sorted(able))
        crossed: dict[tuple[Role, Domain], float] = {}
        for group in sorted(able):
            share = beyond * able[group] / total if total > 0.0 else 0.0
            for key, rate in spare[group].items():
                crossed[key] = share * rate / left[group][key[0]] if left[group][key[0]] > 0.0 else 0.0
        return used, crossed


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The links of a problem and the services whose keys and values may cross them.

    Attributes
    ----------
    sides : mapping of location to str
        The link that a location hangs on, where it hangs on one.
    order : tuple of str
        Services with pairs that may cross, higher tiers first.
    bytes_of : mapping of (service, KV group) to float
        What one request hands over.
    """

    links: Mapping[str, KvLink]
    sides: Mapping[str, str]
    order: tuple[str, ...]
    bytes_of: Mapping[tuple[str, str], float]
    pairing: Pairing

    @classmethod
    def of(cls, problem: Problem, pairing: Pairing) -> Links:
        links = {link.name: link for link in sorted(problem.policy.kv_links, key=lambda link: link.name)}
        able = (s for s in problem.services if links and s.has_pairs and s.kv_may_cross)
        crossing = sorted(able, key=lambda s: (s.tier_rank, s.name))
        return cls(
            links=links,
            sides={at: link.name for link in links.values() for at in link.locations},
            order=tuple(service.name for service in crossing),
            bytes_of={
                (service.name, group): size
                for service in crossing
                for group, size in _bytes_by_group(problem, pairing, service.name, service.model).items()
            },
            pairing=pairing,
        )

    def side(self, location: str) -> str:
        """The link that the location hangs on; empty for none."""
        return self.sides.get(location, ANYWHERE_INSIDE)

    def domain(self, pool: PoolKey, location: str) -> Domain:
        return Domain(group=self.pairing.group(pool), site=self.side(location))

    def route(self, service: str, carried: Carried) -> Route:
        """Add up what a service's replicas carry on each side of the links."""
        sizes = {group: size for (name, group), size in self.bytes_of.items() if name == service}
        return Route.of(carried, self.domain, sizes)

    def shares(self, route: Route, carried: Carried, served_per_s: float) -> dict[PoolKey, float]:
        """Part of what is served that goes to each pool."""
        total = served_per_s if served_per_s > 0.0 else route.near_per_s
        flows, shares = route.flows(total), dict.fromkeys((pool for pool, _ in carried), 0.0)
        for (pool, at), rate in carried.items():
            is_mixed = pool.role is Role.MIXED
            key = pool.role, Domain() if is_mixed else self.domain(pool, at)
            side = route.mixed_per_s if is_mixed else route.sides[key]
            if side > 0.0 and total > 0.0:
                shares[pool] += rate / side * flows[key] / total
        return shares

    def allowed(self, routes: Mapping[str, Route], wanted_per_s: Mapping[str, float]) -> dict[str, float]:
        """What each service may serve so that every link holds; higher tiers cross first."""
        left = {(name, role): link.bytes_per_s for name, link in self.links.items() for role in Role}
        allowed = dict(wanted_per_s)
        for name in (name for name in self.order if name in routes):
            traffic = routes[name].traffic(allowed[name])
            kept = min((max(0.0, left[key]) / sent for key, sent in traffic.items()), default=1.0)
            if kept < 1.0:
                near = min(allowed[name], routes[name].near_per_s)
                allowed[name] = near + kept * (allowed[name] - near)
            for key, sent in traffic.items():
                left[key] -= min(1.0, kept) * sent
        return allowed

    def loads(self, traffics: Iterable[Traffic]) -> tuple[LinkLoad, ...]:
        """Add up what goes through every link."""
        total: dict[tuple[str, Role], float] = {}
        for key, sent in chain.from_iterable(traffic.items() for traffic in traffics):
            total[key] = total.get(key, 0.0) + sent
        return tuple(
            LinkLoad(
                link=link,
                outgoing_bytes_per_s=total.get((name, Role.PREFILL), 0.0),
                incoming_bytes_per_s=total.get((name, Role.DECODE), 0.0),
            )
            for name, link in self.links.items()
        )


def _bytes_by_group(problem: Problem, pairing: Pairing, service: str, model: str) -> dict[str, float]:
    """Keys and values of a mean prompt, by group; the most of any profile of it."""
    mix = problem.demands[service].mix
    weight = sum(bucket.weight_ratio for bucket in mix)
    tokens = sum(bucket.weight_ratio * bucket.prompt_tokens for bucket in mix) / weight if weight > 0.0 else 0.0
    rows = [
        (pairing.groups[service, key.gpu_class, key.config], tokens * profile.kv_bytes_per_token)
        for key, profile in problem.profiles.items()
        if key.model == model
    ]
    return dict(sorted(rows))  # the last of a group is its largest
