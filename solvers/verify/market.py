"""Places and prices of a fleet as the check of a bound sees them: worked out from the problem, priced as shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.certificate import (
    CEILING,
    GPUS,
    LINK_IN,
    LINK_OUT,
    POWER,
    POWER_WHOLE,
    QUOTA_GPUS,
    QUOTA_POWER,
    RESOURCES,
    RESOURCES_WHOLE,
    Certificate,
    PricedRow,
)
from solvers.engine import Role
from solvers.fleet import ANYWHERE, Node, PoolKey
from solvers.power import base_watts, ceiling_watts, nodes_by_domain, worst_watts
from solvers.problem import Problem
from solvers.verify.goods import Asks, Good, asks_of, goods_by_bay, goods_usd_per_hour, pods_on, room_of_goods
from solvers.verify.rules import OWNED, terms_by_bay

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WHOLE = 1e-7  # quotients this close to a whole number are that number
WATTS = 1e-3
BEYOND = 10**9  # replicas, of which nothing allows more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Places of one GPU class that neither prices nor services can tell apart.

    ``groups`` are (GPUs of a group, price), ``whole`` (watts of a replica, price), ``goods`` what else nodes have;
    ``link`` is what joins the places to others, empty for none.
    """

    locations: tuple[str, ...]
    groups: tuple[tuple[int, float], ...]
    kilowatt_usd_per_hour: float
    whole: tuple[tuple[float, float], ...]
    terms: tuple[float, float]
    goods: tuple[Good, ...]
    link: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Market:
    """Places and prices of the fleet. ``kind_of`` numbers the kinds of a class by (class, location)."""

    problem: Problem
    rows: tuple[PricedRow, ...]
    bays: Mapping[tuple[str, str], Sequence[Node]]
    kinds: Mapping[str, tuple[_Kind, ...]]
    kind_of: Mapping[tuple[str, str], int]
    anywhere: Mapping[str, tuple[float, tuple[tuple[float, float], ...]]]
    node_gpus: Mapping[str, int]
    limited: frozenset[str]
    running: Mapping[PoolKey, Mapping[str, int]]
    asks: Mapping[tuple[str, Role], Asks]
    spare: Mapping[tuple[str, str], float]
    _slots: dict[tuple[str, str, int, Asks], int] = field(default_factory=dict)
    _by_kind: dict[tuple[str, int, float, Asks], Ints] = field(default_factory=dict)
    _asked: dict[tuple[str, int, float, bool, Asks], Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, shown: Certificate) -> Market:
        rows = tuple(row for row in shown.rows if _is_sound(row))
        bays: dict[tuple[str, str], list[Node]] = {}
        reach: dict[str, set[str]] = {}
        for node in sorted(problem.nodes, key=lambda n: n.name):
            bays.setdefault((node.gpu_class, node.location), []).append(node)
            reach.setdefault(node.gpu_class, set()).update(node.domains)
        of_domain = _prices_by_domain(rows)
        kinds = _kinds(problem, rows, bays)
        return cls(
            problem=problem,
            rows=rows,
            bays=bays,
            kinds=kinds,
            kind_of={(c, place): k for c, of in kinds.items() for k, kind in enumerate(of) for place in kind.locations},
            anywhere={gpu_class: _of_domains(domains, of_domain) for gpu_class, domains in reach.items()},
            node_gpus={c: max(n.gpus_total for n in problem.nodes if n.gpu_class == c) for c in reach},
            limited=_limited(problem),
            running=_running(problem),
            asks=asks_of(problem),
            spare=_spare_watts(problem),
        )

    def slots(self, gpu_class: str, location: str, gpus: int) -> int:
        """Replicas of so many GPUs that a place holds when nothing else is there."""
        full, nodes = self.node_gpus.get(gpu_class, 0), self.bays.get((gpu_class, location), ())
        if gpus <= full:
            return sum(max(0, node.gpus_usable) // gpus for node in nodes)
        return sum(whole // math.ceil(gpus / full) for whole in self._islands(gpu_class, nodes, full)) if full else 0

    def _islands(self, gpu_class: str, nodes: Sequence[Node], full: int) -> list[int]:
        """Whole free nodes by island; a link that reaches around all of a place makes one of those that name none."""
        reach = self.problem.gpu_classes[gpu_class].link_island_gpus
        is_one = full < reach and sum(node.gpus_total for node in nodes) <= reach
        found: dict[str, int] = {}
        for node in nodes:
            if node.gpus_usable == full and (node.island or is_one):
                found[node.island] = found.get(node.island, 0) + 1
        return list(found.values())

    def slots_of(self, pool: PoolKey, watts: float, location: str) -> int:
        """Replicas of the pool that a place holds when nothing else is there, in whole groups, watts and the like."""
        asks = self.asks.get((pool.service, pool.role), ())
        key = pool.gpu_class, location, pool.config.gpus, asks
        if key not in self._slots:
            gpus, there = pool.config.gpus, self.slots(pool.gpu_class, location, pool.config.gpus)
            if asks and gpus <= self.node_gpus[pool.gpu_class]:
                nodes = (n for n in self.bays.get((pool.gpu_class, location), ()) if n.gpus_usable >= gpus)
                there = sum(min(n.gpus_usable // gpus, pods_on(n, asks)) for n in nodes)
            self._slots[key] = there
        return min(self._slots[key], _times(self.spare.get((pool.gpu_class, location), math.inf), watts))

    def slots_of_kinds(self, pool: PoolKey, watts: float) -> Ints:
        """Replicas of the pool that each kind of place holds when nothing else is there; (K,)."""
        key = pool.gpu_class, pool.config.gpus, watts, self.asks.get((pool.service, pool.role), ())
        if key not in self._by_kind:
            kinds = self.kinds[pool.gpu_class]
            sums = [sum(self.slots_of(pool, watts, at) for at in kind.locations) for kind in kinds]
            self._by_kind[key] = np.array(sums, dtype=np.int64)
        return self._by_kind[key]

    def most(self, pool: PoolKey, watts: float, *, is_anywhere: bool) -> int:
        """Replicas of the pool that the watts of the feeds of all its places, and quotas, allow."""
        most = _times(self.spare.get((pool.gpu_class, ANYWHERE if is_anywhere else ""), math.inf), watts)
        for quota in self.problem.policy.quotas:
            if quota.namespace == pool.namespace and quota.gpu_class in ("", pool.gpu_class):
                worst = worst_watts(self.problem.gpu_classes[pool.gpu_class], pool.config.gpus)
                most = min(most, BEYOND if quota.max_gpus is None else quota.max_gpus // pool.config.gpus)
                most = min(most, BEYOND if quota.max_watts is None else _times(quota.max_watts, worst))
        return most

    def asked_usd_per_hour(self, pool: PoolKey, watts: float, *, is_anywhere: bool) -> Floats:
        """What one replica pays at each kind of place for what services share, and beside list prices; (K,)."""
        key = pool.gpu_class, pool.config.gpus, watts, is_anywhere, self.asks.get((pool.service, pool.role), ())
        if key not in self._asked:
            paid = [self._paid(kind, pool, watts, is_anywhere=is_anywhere) for kind in self.kinds[pool.gpu_class]]
            self._asked[key] = np.array(paid, dtype=float)
        return self._asked[key]

    def _paid(self, place: _Kind, pool: PoolKey, watts: float, *, is_anywhere: bool) -> float:
        full, gpus = self.node_gpus[pool.gpu_class], pool.config.gpus
        price = gpus * self.problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        kilowatt, whole = place.kilowatt_usd_per_hour, place.whole
        reclaims, ratio = place.terms
        if is_anywhere:  # the scheduler chooses: every domain of the class is charged
            kilowatt, whole = self.anywhere[pool.gpu_class]
            reclaims, ratio = OWNED
        groups = sum(_groups(gpus, size, full) * y for size, y in place.groups if size <= gpus)
        replicas = sum(math.floor(watts / each + WHOLE) * y for each, y in whole if each <= watts)
        terms = price * (ratio - 1.0 + self.problem.policy.start_cost_hours * reclaims)
        asks = self.asks.get((pool.service, pool.role), ())
        goods = math.ceil(gpus / full) * goods_usd_per_hour(place.goods, asks)
        return groups + kilowatt * watts / 1000.0 + replicas + goods + terms

    def fetched_usd_per_hour(self) -> float:
        """What all of the room would fetch at the prices."""
        rooms = _rooms_watts(self.problem)
        return math.fsum(row.usd_per_hour * self._room(row, rooms) for row in self.rows)

    def _room(self, row: PricedRow, rooms: Mapping[str, float]) -> float:
        if row.limit == GPUS:
            return float(sum(self.slots(row.gpu_class, place, int(row.size)) for place in row.places))
        if row.limit in (POWER, POWER_WHOLE) and not all(math.isfinite(rooms.get(place, 0.0)) for place in row.places):
            return math.inf
        if row.limit == POWER:
            return math.fsum(rooms.get(place, 0.0) for place in row.places) / 1000.0
        if row.limit == CEILING:
            most = [float(s.max_replicas) for s in self.problem.services if s.name == row.places[0]]
            return min(most, default=math.inf)
        if row.limit in (LINK_OUT, LINK_IN):
            return float(len(row.places))
        if row.limit in (RESOURCES, RESOURCES_WHOLE):
            return room_of_goods(row, self.problem, self.bays, self.node_gpus)
        if row.limit == POWER_WHOLE:
            return float(sum(math.floor(rooms.get(place, 0.0) / row.size + WHOLE) for place in row.places))
        quotas = [q for q in self.problem.policy.quotas if (q.namespace, q.gpu_class) == (row.places[0], row.gpu_class)]
        held = [q.max_gpus if row.limit == QUOTA_GPUS else q.max_watts for q in quotas]
        said = [float(each) for each in held if each is not None]
        return min(said, default=math.inf) / (1.0 if row.limit == QUOTA_GPUS else 1000.0)

    def quota_usd_per_hour(self, pool: PoolKey) -> float:
        """What one replica of the pool pays for what its namespace and its service may hold."""
        paid, kind = 0.0, self.problem.gpu_classes[pool.gpu_class]
        for row in self.rows:
            if row.limit in (QUOTA_GPUS, QUOTA_POWER) and row.places[0] == pool.namespace:
                watts = worst_watts(kind, pool.config.gpus) / 1000.0
                use = pool.config.gpus if row.limit == QUOTA_GPUS else watts
                paid += row.usd_per_hour * use if row.gpu_class in ("", pool.gpu_class) else 0.0
            elif (row.limit, row.role) == (CEILING, pool.role) and row.places[0] == pool.service:
                paid += row.usd_per_hour
        return paid


def _rooms_watts(problem: Problem) -> dict[str, float]:
    """Watts above idle draw that each domain leaves to replicas; infinite where full nodes draw no more."""
    rooms: dict[str, float] = {}
    for name, nodes in nodes_by_domain(problem.nodes).items():
        usable = problem.domains[name].usable_watts if name in problem.domains else math.inf
        is_limit = ceiling_watts(nodes, problem.gpu_classes) > usable + WATTS
        rooms[name] = max(0.0, usable - base_watts(nodes, problem.gpu_classes)) if is_limit else math.inf
    return rooms


def _spare_watts(problem: Problem) -> dict[tuple[str, str], float]:
    """Watts of the tightest feed by (class, location); ``ANYWHERE`` is any of the class, "" what feeds all places."""
    rooms, feeds = _rooms_watts(problem), dict[str, dict[str, set[str]]]()
    for node in problem.nodes:
        feeds.setdefault(node.gpu_class, {}).setdefault(node.location, set()).update(node.domains)
    spare: dict[tuple[str, str], float] = {}
    for gpu_class, places in feeds.items():
        shared, every = set.intersection(*places.values()), set.union(*places.values())
        for at, domains in ({ANYWHERE: every, "": shared} | places).items():
            spare[gpu_class, at] = min((rooms[name] for name in domains), default=math.inf)
    return spare


def _times(room: float, each: float) -> int:
    """How often a replica fits into room that it alone takes."""
    return math.floor(room / each + WHOLE) if each > 0.0 and room < each * BEYOND else BEYOND


def _groups(gpus: int, size: int, full: int) -> int:
    """Groups of ``size`` GPUs that could stand where one replica does, on nodes of ``full`` GPUs."""
    if gpus <= full:
        return gpus // size
    nodes = math.ceil(gpus / full)
    return nodes * (full // size) if size <= full else nodes // math.ceil(size / full)


def _is_sound(row: PricedRow) -> bool:
    """True for a price that can be charged; others are left out, which weakens the bound and keeps it true."""
    needs_size = row.limit in (GPUS, POWER_WHOLE, RESOURCES, RESOURCES_WHOLE)
    return 0.0 < row.usd_per_hour < math.inf and bool(row.places) and (row.size > 0.0 or not needs_size)


def _kinds(
    problem: Problem, rows: Sequence[PricedRow], bays: Mapping[tuple[str, str], Sequence[Node]]
) -> dict[str, tuple[_Kind, ...]]:
    """Sort the places of every class by what tells them apart."""
    of_bay, of_domain, had = _prices_by_bay(rows), _prices_by_domain(rows), terms_by_bay(problem)
    goods_of, link_of = goods_by_bay(rows), {at: link.name for link in problem.policy.kv_links for at in link.locations}
    marks = [(s.name, frozenset(s.locations)) for s in problem.services if s.locations]
    alike: dict[tuple[Any, ...], list[str]] = {}
    for (gpu_class, location), nodes in bays.items():
        kilowatt, whole = _of_domains({d for n in nodes for d in n.domains}, of_domain)
        mark = tuple(name for name, places in marks if location in places)
        groups, terms = tuple(of_bay.get((gpu_class, location), ())), had.get((location, gpu_class), OWNED)
        goods, link = goods_of.get((gpu_class, location), ()), link_of.get(location, "")
        alike.setdefault((gpu_class, groups, kilowatt, whole, terms, goods, link, mark), []).append(location)
    kinds: dict[str, list[_Kind]] = {}
    for (gpu_class, groups, kilowatt, whole, terms, goods, link, _), locations in alike.items():
        kind = _Kind(
            locations=tuple(locations),
            groups=groups,
            kilowatt_usd_per_hour=kilowatt,
            whole=whole,
            terms=terms,
            goods=goods,
            link=link,
        )
        kinds.setdefault(gpu_class, []).append(kind)
    return {gpu_class: tuple(found) for gpu_class, found in kinds.items()}


def _prices_by_bay(rows: Iterable[PricedRow]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(GPUs of a group, price) by (class, location)."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        for place in row.places if row.limit == GPUS else ():
            found.setdefault((row.gpu_class, place), []).append((int(row.size), row.usd_per_hour))
    return found


def _prices_by_domain(rows: Iterable[PricedRow]) -> dict[str, list[tuple[float, float]]]:
    """(watts of a replica, price) by domain; watts 0 for a kW."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for place in row.places if row.limit in (POWER, POWER_WHOLE) else ():
            size = row.size if row.limit == POWER_WHOLE else 0.0
            found.setdefault(place, []).append((size, row.usd_per_hour))
    return found


def _of_domains(
    domains: Iterable[str], prices: Mapping[str, Sequence[tuple[float, float]]]
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Price of a kW, and of whole replicas by their watts, over all domains that are charged."""
    kilowatt, whole = 0.0, dict[float, float]()
    for domain in sorted(domains):
        for watts, price in prices.get(domain, ()):
            if watts > 0.0:
                whole[watts] = whole.get(watts, 0.0) + price
            else:
                kilowatt += price
    return kilowatt, tuple(sorted(whole.items()))


def _running(problem: Problem) -> dict[PoolKey, dict[str, int]]:
    """What runs by pool, whatever its cap, and location."""
    found: dict[PoolKey, dict[str, int]] = {}
    for (pool, location), count in sorted(problem.running.items()):
        if count > 0:
            at = found.setdefault(pool.uncapped, {})
            at[location] = at.get(location, 0) + count
    return found


def _limited(problem: Problem) -> frozenset[str]:
    """GPU classes whose watts some domain limits: only there is a lower cap of use."""
    scarce = {
        name
        for name, nodes in nodes_by_domain(problem.nodes).items()
        if name in problem.domains
        and ceiling_watts(nodes, problem.gpu_classes) > problem.domains[name].usable_watts + WATTS
    }
    return frozenset(node.gpu_class for node in problem.nodes if not scarce.isdisjoint(node.domains))
