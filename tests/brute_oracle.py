"""Every count and cap of every pool of a tiny fleet under all rules at once: room and worth, from the rules' words.

Shares no code with the planner; only what failing a service weighs is taken from it. Counts are (pool, location) →
replicas with the cap in ``PoolKey.cap_watts``, as the planner writes them while it weighs caps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from solvers.engine import EngineProfile, ProfileKey, Role
from solvers.engine.curves import capped
from solvers.fleet import ANYWHERE, Node, PoolKey
from solvers.planner.pools.penalties import Penalties
from solvers.problem import Problem
from solvers.sizing import Capacity
from solvers.workload import PlacementMode, ServedModel

CHAINS = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))
WATTS = 1e-6

Spot = tuple[PoolKey, str]
Placed = Mapping[Spot, int]
Group = tuple[str, str, str]
"""What a service or profile names, engine and fabric."""

Packs = tuple[int, tuple[int, ...], str]
"""GPUs, other resources and location of one replica."""


@dataclass(frozen=True)
class Route:
    """What a service carries without links, and what more could cross them: bytes of one request by (link, way)."""

    near_per_s: float
    beyond_bytes: Mapping[tuple[str, Role], float]


@dataclass(frozen=True)
class Stand:
    """What the replicas of one service come to, whatever the others do."""

    paid_usd_per_hour: float
    able_per_s: float
    missing: int
    route: Route | None


@dataclass(frozen=True)
class Value:
    """The objective, what each tier lacks of it, and by service what is unserved (requests/s) and missing."""

    usd_per_hour: float
    lacking: Mapping[int, float]
    undone: Mapping[str, tuple[float, int]]


@dataclass
class Oracle:
    """One plain problem (no service split) and its words on every count."""

    problem: Problem
    capacity_of: Callable[..., object]
    penalties: Penalties
    _packed: dict[tuple[str, tuple[Packs, ...]], bool] = field(default_factory=dict)
    _stands: dict[tuple[str, tuple[tuple[Spot, int], ...]], Stand] = field(default_factory=dict)
    _rates: dict[tuple[PoolKey, int], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.services = {service.name: service for service in self.problem.services}
        self.names = sorted({name for node in self.problem.nodes for name in node.resources})
        self.free = [node for node in self.problem.nodes if node.gpus_usable > 0]

    # ------------------------------------------------------------ pools and what they carry

    def profile(self, pool: PoolKey) -> EngineProfile:
        model = self.services[pool.service].model
        return self.problem.profiles[ProfileKey(model=model, gpu_class=pool.gpu_class, config=pool.config)]

    def rate(self, pool: PoolKey, count: int) -> tuple[float, float]:
        """Requests per second of one replica of so many, and the watts of a GPU."""
        if (pool, count) not in self._rates:
            service, profile = self.services[pool.service], self.profile(pool)
            at_cap = capped(profile, pool.cap_watts) if pool.cap_watts else profile
            mix = self.problem.demands[pool.service].mix
            said = self.capacity_of(at_cap, pool.role, mix, service.slos, pool_replicas=count)
            sized = said if isinstance(said, Capacity) else None
            self._rates[pool, count] = (
                (sized.requests_per_s, sized.gpu_watts) if sized else (0.0, profile.idle_watts_per_gpu)
            )
        return self._rates[pool, count]

    def limits_watts(self, gpu_class: str) -> bool:
        """Whether watts can run short for the class at all; where not, caps are no choice."""
        fed = {name for node in self.problem.nodes if node.gpu_class == gpu_class for name in node.domains}
        return any(self.full_watts(name) > self.problem.domains[name].usable_watts + 1e-3 for name in fed)

    def pools(self) -> Iterator[tuple[PoolKey, tuple[str, ...]]]:
        """Every pool that carries something, with the places that it may be at."""
        for service in self.problem.services:
            for key in sorted(self.problem.profiles):
                if key.model != service.model or not service.allows(key.gpu_class, key.config):
                    continue
                there = {n.location for n in self.free if n.gpu_class == key.gpu_class}
                at = tuple(sorted(where for where in there if self.may_be_at(service, key.gpu_class, where)))
                if service.placement is PlacementMode.CLASS and there:
                    at = (ANYWHERE,)
                for role in service.roles if at else ():
                    pool = PoolKey(service=service.name, role=role, gpu_class=key.gpu_class, config=key.config)
                    if self.rate(pool, 1)[0] > 0.0:
                        yield pool, at

    def may_be_at(self, service: ServedModel, gpu_class: str, where: str) -> bool:
        refused = service.max_spot_ratio == 0.0 and self.terms(gpu_class, where)[0] > 0.0
        return not refused and (not service.locations or where in service.locations)

    def terms(self, gpu_class: str, where: str) -> tuple[float, float]:
        """Reclaims an hour and price ratio: the worst of the nodes there with GPUs to give."""
        mine = [n for n in self.free if (n.gpu_class, n.location) == (gpu_class, where)]
        if not mine:
            return 0.0, 1.0
        return max(n.reclaims_per_hour for n in mine), max(n.price_ratio for n in mine)

    def levels(self, pool: PoolKey) -> list[PoolKey]:
        kind, found = self.problem.gpu_classes[pool.gpu_class], [pool]
        if self.problem.policy.power_caps and self.limits_watts(pool.gpu_class):
            known = [w for w in self.profile(pool).cap_watts_per_gpu if kind.min_cap_watts <= w < kind.max_cap_watts]
            found += [replace(pool, cap_watts=watts) for watts in known]
        return [level for level in found if self.rate(level, 1)[0] > 0.0]

    # ------------------------------------------------------------ what there is room for

    def fits(self, counts: Placed) -> bool:
        """Whether allowed places, ceilings, quotas, watts and nodes hold all of it."""
        return (
            all(self.is_allowed(pool, where) for pool, where in counts)
            and self.keeps_ceilings(counts)
            and self.keeps_quotas(counts)
            and all(self.keeps_watts(counts, name) for name in self.problem.domains)
            and all(self.keeps_nodes(counts, name) for name in self.problem.gpu_classes)
        )

    def is_allowed(self, pool: PoolKey, where: str) -> bool:
        service = self.services[pool.service]
        if (where == ANYWHERE) != (service.placement is PlacementMode.CLASS) or pool.role not in service.roles:
            return False
        return service.allows(pool.gpu_class, pool.config) and (
            where == ANYWHERE or self.may_be_at(service, pool.gpu_class, where)
        )

    def keeps_ceilings(self, counts: Placed) -> bool:
        held: dict[tuple[str, Role], int] = {}
        for (pool, _), n in counts.items():
            held[pool.service, pool.role] = held.get((pool.service, pool.role), 0) + n
        return all(n <= self.services[name].max_replicas for (name, _), n in held.items())

    def keeps_quotas(self, counts: Placed) -> bool:
        for quota in self.problem.policy.quotas:
            gpus = watts = 0.0
            for (pool, _), n in counts.items():
                if pool.service.split("/")[0] == quota.namespace and quota.gpu_class in ("", pool.gpu_class):
                    kind = self.problem.gpu_classes[pool.gpu_class]
                    gpus += n * pool.config.gpus
                    watts += n * pool.config.gpus * (kind.max_cap_watts + kind.host_share_watts)
            if quota.max_gpus is not None and gpus > quota.max_gpus:
                return False
            if quota.max_watts is not None and watts > quota.max_watts + WATTS:
                return False
        return True

    def rise_watts(self, gpu_class: str, cap_watts: float = 0.0) -> float:
        kind = self.problem.gpu_classes[gpu_class]
        return (cap_watts or kind.max_cap_watts) + kind.host_share_watts - kind.idle_watts

    def idle_watts(self, name: str) -> float:
        inside = [n for n in self.problem.nodes if name in n.domains]
        return sum(self.problem.gpu_classes[n.gpu_class].idle_watts * n.gpus_total for n in inside)

    def full_watts(self, name: str) -> float:
        inside = [n for n in self.problem.nodes if name in n.domains]
        return self.idle_watts(name) + sum(n.gpus_usable * self.rise_watts(n.gpu_class) for n in inside)

    def keeps_watts(self, counts: Placed, name: str) -> bool:
        """Replicas charge every domain that feeds any node that they could land on, up to what full nodes draw."""
        fed = {(n.gpu_class, at) for n in self.problem.nodes if name in n.domains for at in (n.location, ANYWHERE)}
        mine = [(pool, n) for (pool, at), n in counts.items() if (pool.gpu_class, at) in fed]
        added = sum(n * p.config.gpus * self.rise_watts(p.gpu_class, p.cap_watts) for p, n in mine)
        drawn = min(self.idle_watts(name) + added, self.full_watts(name))
        return added == 0.0 or drawn <= self.problem.domains[name].usable_watts + WATTS

    def keeps_nodes(self, counts: Placed, gpu_class: str) -> bool:
        items: list[Packs] = []
        for (pool, where), n in sorted(counts.items()):
            if pool.gpu_class == gpu_class:
                asked = self.services[pool.service].requests.get(pool.role, {})
                items += [(pool.config.gpus, tuple(asked.get(name, 0) for name in self.names), where)] * n
        key = gpu_class, tuple(sorted(items, reverse=True))
        if key not in self._packed:
            mine = [node for node in self.free if node.gpu_class == gpu_class]
            left = tuple((node.gpus_usable, self.amounts(node), node.location) for node in mine)
            is_room = sum(item[0] for item in items) <= sum(node[0] for node in left)
            self._packed[key] = is_room and packs(left, key[1])
        return self._packed[key]

    def amounts(self, node: Node) -> tuple[int, ...]:
        return tuple(node.resources.get(name, 10**9) for name in self.names)

    # ------------------------------------------------------------ what it is worth

    def stand(self, service: ServedModel, places: Sequence[tuple[Spot, int]]) -> Stand:
        key = service.name, tuple(places)
        if key not in self._stands:
            self._stands[key] = self._stand(service, dict(places))
        return self._stands[key]

    def _stand(self, service: ServedModel, places: Placed) -> Stand:
        sizes: dict[PoolKey, int] = {}
        for (pool, _), n in places.items():
            sizes[pool] = sizes.get(pool, 0) + n
        rates = {(pool, at): n * self.rate(pool, sizes[pool])[0] for (pool, at), n in places.items()}
        paid = sum(self.rent(pool, at, n, self.rate(pool, sizes[pool])[1]) for (pool, at), n in places.items())
        kept = {(replace(pool, cap_watts=0.0), at): n for (pool, at), n in places.items()}
        running = {key: n for key, n in self.problem.running.items() if key[0].service == service.name and n > 0}
        paid += sum(self.churn(key[0], kept.get(key, 0) - running.get(key, 0)) for key in {**kept, **running})
        able, route = self.paired(service, rates)
        able = min(able, self.survives(service, rates))
        return Stand(paid_usd_per_hour=paid, able_per_s=able, missing=self.lacks(service, kept), route=route)

    def rent(self, pool: PoolKey, where: str, n: int, watts: float) -> float:
        policy, kind = self.problem.policy, self.problem.gpu_classes[pool.gpu_class]
        reclaims, ratio = (0.0, 1.0) if where == ANYWHERE else self.terms(pool.gpu_class, where)
        energy = policy.energy_usd_per_kilowatt_hour * (watts + kind.host_share_watts) / 1000.0
        return n * pool.config.gpus * (kind.price_usd_per_hour * (ratio + policy.start_cost_hours * reclaims) + energy)

    def churn(self, pool: PoolKey, change: int) -> float:
        if pool.gpu_class not in self.problem.gpu_classes:
            return 0.0
        hours = self.problem.policy.start_cost_hours * (1.0 if change > 0 else -0.5)
        return hours * change * pool.config.gpus * self.problem.gpu_classes[pool.gpu_class].price_usd_per_hour

    def group(self, pool: PoolKey) -> Group:
        named = self.profile(pool).kv_compatibility_group or self.services[pool.service].kv_compatibility_group
        return named, pool.config.engine, self.problem.gpu_classes[pool.gpu_class].kv_fabric

    def side(self, where: str) -> str:
        return next((link.name for link in self.problem.policy.kv_links if where in link.locations), "")

    def paired(self, service: ServedModel, rates: Mapping[Spot, float]) -> tuple[float, Route | None]:
        """What mixed replicas and pairs carry: inside a group, at a location, on a side, across links."""
        mixed = sum(rate for (pool, _), rate in rates.items() if pool.role is Role.MIXED)
        of = {(pool.role, self.group(pool), at): 0.0 for pool, at in rates}
        for (pool, at), rate in rates.items():
            of[pool.role, self.group(pool), at] += rate
        groups, every = sorted({group for _, group, _ in of}), sorted({at for _, _, at in of})

        def carries(role: Role, group: Group, places: Collection[str]) -> float:
            return sum(of.get((role, group, at), 0.0) for at in places)

        def pairs(group: Group, places: Collection[str]) -> float:
            return min(carries(Role.PREFILL, group, places), carries(Role.DECODE, group, places))

        if not service.kv_may_cross:
            return mixed + sum(pairs(group, [at]) for group in groups for at in every), None
        able = {group: pairs(group, every) for group in groups}
        if not self.problem.policy.kv_links or not service.has_pairs:
            return mixed + sum(able.values()), None
        sides = {side: [at for at in every if self.side(at) == side] for side in sorted(map(self.side, every))}
        near = {(group, side): pairs(group, sides[side]) for group in groups for side in sides}
        beyond = {group: able[group] - sum(near[group, side] for side in sides) for group in groups}
        total, sent = sum(beyond.values()), dict[tuple[str, Role], float]()
        for group, role in ((group, role) for group in groups for role in (Role.PREFILL, Role.DECODE)):
            spare = {side: carries(role, group, sides[side]) - near[group, side] for side in sides}
            for side in (side for side in sides if side and total > 0.0 and beyond[group] > 0.0):
                part = beyond[group] / total * spare[side] / sum(spare.values())
                sent[side, role] = sent.get((side, role), 0.0) + part * self.prompt_bytes(service, group)
        return mixed + sum(able.values()), Route(near_per_s=mixed + sum(near.values()), beyond_bytes=sent)

    def prompt_bytes(self, service: ServedModel, group: Group) -> float:
        mix = self.problem.demands[service.name].mix
        weight = sum(bucket.weight_ratio for bucket in mix)
        tokens = sum(bucket.weight_ratio * bucket.prompt_tokens for bucket in mix) / weight
        known = [(key, p) for key, p in self.problem.profiles.items() if key.model == service.model]
        keys = [
            (PoolKey(service=service.name, role=Role.PREFILL, gpu_class=key.gpu_class, config=key.config), p)
            for key, p in known
        ]
        return tokens * max(p.kv_bytes_per_token for pool, p in keys if self.group(pool) == group)

    def survives(self, service: ServedModel, rates: Mapping[Spot, float]) -> float:
        """What may be served so that every loss that counts leaves enough in both chains."""
        most, every = math.inf, sorted({at for _, at in rates}) or [""]
        for roles in CHAINS:
            mine = [(pool, at, rate) for (pool, at), rate in rates.items() if pool.role in roles]
            if (keep := 1.0 - service.max_share_per_location_ratio) > 0.0:
                most = min(most, *(sum(rate for _, at, rate in mine if at != lost) / keep for lost in every))
            if 0.0 < service.max_spot_ratio < 1.0:
                left = sum(rate for pool, at, rate in mine if self.terms(pool.gpu_class, at)[0] == 0.0)
                most = min(most, left / (1.0 - service.max_spot_ratio))
        return most

    def lacks(self, service: ServedModel, places: Placed) -> int:
        """Replicas below floors and pins, and locations below those asked for."""
        lacking = 0
        for roles in CHAINS:
            mine = [(at, n) for (pool, at), n in places.items() if pool.role in roles]
            lacking += max(0, service.min_replicas - sum(n for _, n in mine))
            if service.min_locations > 1:
                lacking += max(0, service.min_locations - len({at for at, _ in mine}))
        for pin in service.pins:
            there = [(p, n) for (p, at), n in places.items() if at == pin.location]
            held = sum(n for p, n in there if pin.role in (None, p.role) and pin.gpu_class in ("", p.gpu_class))
            lacking += max(0, pin.replicas - held)
        return lacking

    def value(self, counts: Placed) -> Value:
        """What the counts come to."""
        by_service: dict[str, list[tuple[Spot, int]]] = {name: [] for name in self.services}
        for key, n in sorted(counts.items()):
            by_service[key[0].service].append((key, n))
        stands = {name: self.stand(self.services[name], places) for name, places in by_service.items()}
        links = {link.name: link for link in self.problem.policy.kv_links}
        left = {(name, role): link.bytes_per_s for name, link in links.items() for role in Role}
        total, lacking = 0.0, dict.fromkeys({s.tier_rank for s in self.services.values()}, 0.0)
        undone: dict[str, tuple[float, int]] = {}
        for name in sorted(self.services, key=lambda name: (self.services[name].tier_rank, name)):
            stand, service = stands[name], self.services[name]
            demand = self.problem.demands[name].requests_per_s
            served = min(demand, stand.able_per_s)
            if stand.route is not None and (beyond := served - stand.route.near_per_s) > 0.0:
                sent = {key: each * beyond for key, each in stand.route.beyond_bytes.items() if each > 0.0}
                kept = min([1.0, *(max(0.0, left[key]) / load for key, load in sent.items())])
                served = stand.route.near_per_s + kept * beyond
                for way, load in sent.items():
                    left[way] -= kept * load
                    total += kept * load * 3600.0 / 1e12 * links[way[0]].usd_per_terabyte
            lack = self.penalties.of_unserved(name, max(0.0, 1.0 - served / demand)) if demand > 0.0 else 0.0
            undone[name] = max(0.0, demand - served), stand.missing
            lack += self.penalties.floor_usd_per_hour[name] * stand.missing
            lacking[service.tier_rank] += lack
            total += stand.paid_usd_per_hour + lack
        return Value(usd_per_hour=total, lacking=lacking, undone=undone)

    # ------------------------------------------------------------ all of them

    def every(self, most: int) -> list[dict[Spot, int]] | None:
        """All counts that fit; None when there are more than so many."""
        found: list[dict[Spot, int]] = [{}]
        for base, places in groupby(sorted(self.pools(), key=lambda pool: pool[0]), key=lambda row: row[0]):
            at = next(places)[1]
            grown: list[dict[Spot, int]] = []
            for counts in found:
                grown.append(counts)
                for level in self.levels(base):
                    grown += self._more(counts, level, at)
                    if len(grown) > most:
                        return None
            found = grown
        return found

    def _more(self, counts: dict[Spot, int], level: PoolKey, at: Sequence[str]) -> list[dict[Spot, int]]:
        """The counts with one replica or more of the pool at that level: what does not fit, more of it does not."""
        found, last = list[dict[Spot, int]](), [counts]
        for where in at:
            more: list[dict[Spot, int]] = []
            for held in [*last, *found]:
                n = 1
                while self.fits(wider := {**held, (level, where): n}):
                    more.append(wider)
                    n += 1
            found += more
        return found


def packs(free: tuple[tuple[int, tuple[int, ...], str], ...], items: Sequence[Packs]) -> bool:
    """Try every node for every replica."""
    if not items:
        return True
    gpus, amounts, where = items[0]
    for i, (left, has, at) in enumerate(free):
        if left < gpus or where not in (at, ANYWHERE) or free[i] in free[:i]:
            continue
        if all(have >= ask for have, ask in zip(has, amounts, strict=True)):
            rest = left - gpus, tuple(have - ask for have, ask in zip(has, amounts, strict=True)), at
            if packs((*free[:i], rest, *free[i + 1 :]), items[1:]):
                return True
    return False
