"""The sets of the optimisation as arrays: pools, their size steps, and cells (a pool in a group of bays)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.derived import Derives, derived
from solvers.engine import Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.pairing import Pairing
from solvers.planner.bays.grouping import Grouping, group_bays
from solvers.planner.bays.links import Links
from solvers.planner.bays.reclaim import OWNED, Reclaims, loss_usd_per_hour, rent_usd_per_hour
from solvers.planner.pools.options import Options, PoolOption, Step
from solvers.planner.pools.penalties import find_penalties
from solvers.problem import Policy, Problem
from solvers.workload import Pin, ServedModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PROMPT_ROLES = (Role.PREFILL, Role.MIXED)
TOKEN_ROLES = (Role.DECODE, Role.MIXED)
CHAINS: tuple[tuple[str, tuple[Role, ...]], ...] = (("prompts", PROMPT_ROLES), ("tokens", TOKEN_ROLES))
"""Every request passes both chains; a mixed pool carries the same requests in both."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells(Derives):
    """Everything the limits read. Axes: S services, P pools, T steps, C cells, H held rows (what runs).

    Attributes
    ----------
    cell_pool, cell_group : (C,) int
        A cell of a pool placed ``Class`` is one share of the pool's count; its watts are charged class-wide.
    step_pool : (T,) int
    pool_base : (P,) int
        First of the pools that are this one at another power cap; itself when there is no other.
    held_pool, held_group, held_now : (H,) int
        Running replicas by pool (the first of its caps) and group, group -1 for pools placed ``Class``.
    demand_per_s, penalty_usd_per_hour, floor_usd_per_hour, fair_ratio : (S,) float
        ``penalty`` is of the whole demand unserved, ``floor`` of one replica below the floor; ``fair_ratio`` is the
        part of its demand that the service may be short of before it costs more.
    """

    problem: Problem
    grouping: Grouping
    pairing: Pairing
    links: Links
    services: tuple[ServedModel, ...]
    pools: tuple[PoolOption, ...]
    steps: tuple[Step, ...]
    pool_service: Ints
    pool_base: Ints
    step_pool: Ints
    cell_pool: Ints
    cell_group: Ints
    held_pool: Ints
    held_group: Ints
    held_now: Ints
    demand_per_s: Floats
    penalty_usd_per_hour: Floats
    floor_usd_per_hour: Floats
    fair_ratio: Floats

    @property
    def pins(self) -> tuple[tuple[int, Pin], ...]:
        """(service, pin) of every pin."""
        return tuple((s, pin) for s, service in enumerate(self.services) for pin in service.pins)

    @property
    def parted(self) -> tuple[tuple[int, int, int], ...]:
        """(service, chain, class of locations) wherever a service counts its locations."""
        return tuple(
            (s, chain, site)
            for s, service in enumerate(self.services)
            if service.min_locations > 1
            for chain in range(len(CHAINS))
            for site in range(len(self.grouping.sites))
        )

    def by_place(self, service: str) -> bool:
        """True when it matters where prefill and decode of a service are: traffic may not cross, or over links."""
        return service in self.pairing.local or service in self.links.order

    @property
    def crossings(self) -> tuple[tuple[int, str, int], ...]:
        """(service, KV group, class of links) wherever keys and values of a service may cross links."""
        index = {service.name: s for s, service in enumerate(self.services)}
        return tuple(
            (index[name], group, k)
            for name in sorted(self.links.order)
            if self.demand_per_s[index[name]] > 0.0
            for group in self.pairing.all_groups(name)
            for k in range(len(self.grouping.links))
        )

    def site_cells(self, service: int, roles: tuple[Role, ...], site: int) -> list[int]:
        """Cells of a service's roles in a class of locations."""
        return [
            c
            for c, (p, g) in enumerate(zip(self.cell_pool, self.cell_group, strict=True))
            if self.pool_service[p] == service
            and self.pools[p].pool.role in roles
            and self.grouping.group_site[g] == site
        ]

    @property
    def policy(self) -> Policy:
        return self.problem.policy

    def cell_label(self, cell: int) -> str:
        option = self.pools[self.cell_pool[cell]]
        where = ANYWHERE + "@" if option.is_anywhere else "@"
        return f"{option.pool}{where}{self.grouping.groups[self.cell_group[cell]].label}"

    def start_usd_per_hour(self, pools: Ints) -> Floats:
        """Price of starting one replica of each pool."""
        return self.policy.start_cost_hours * self._price_usd_per_hour(pools)

    def stop_usd_per_hour(self, pools: Ints) -> Floats:
        """Price of stopping one replica of each pool."""
        return self.policy.stop_cost_hours * self._price_usd_per_hour(pools)

    def _price_usd_per_hour(self, pools: Ints) -> Floats:
        prices: Floats = derived(self, _prices)[pools]
        return prices

    def terms_usd_per_hour(self) -> Floats:
        """What one replica of each cell costs beside its pool's price: cheaper nodes, and their expected loss; (C,)."""
        found = np.zeros(len(self.cell_pool))
        unusual = [g for g, group in enumerate(self.grouping.groups) if group.bays[0].terms != OWNED]
        for c in np.flatnonzero(np.isin(self.cell_group, unusual)).tolist():
            option = self.pools[int(self.cell_pool[c])]
            terms = self.grouping.groups[int(self.cell_group[c])].bays[0].terms
            if not option.is_anywhere:
                found[c] = rent_usd_per_hour(self.problem, option.pool, terms)
                found[c] += loss_usd_per_hour(self.problem, option.pool, terms)
        return found

    def room_replicas(self) -> Ints:
        """Replicas that each cell has room for, no more than its pool has use for; (C,)."""
        return derived(self, _room_replicas)

    def pool_cells(self) -> tuple[Ints, Ints]:
        return self.cell_pool, np.arange(len(self.cell_pool))


def _prices(cells: Cells) -> Floats:
    return np.array([option.price_usd_per_hour for option in cells.pools], dtype=float)


def _room_replicas(cells: Cells) -> Ints:
    slots = cells.grouping.counted()
    pairs = zip(cells.cell_pool.tolist(), cells.cell_group.tolist(), strict=True)
    return _ints(min(cells.pools[p].most, slots(g, cells.pools[p].gpus)) for p, g in pairs)


def build_cells(
    problem: Problem,
    options: Options,
    *,
    split_running: bool = True,
    one_by_one: bool = False,
    only: Collection[PoolKey] | None = None,
    fair_ratio: Mapping[str, float] | None = None,
) -> Cells:
    """Cross pools with the groups of bays that can hold them.

    Parameters
    ----------
    split_running, one_by_one : bool
        See ``grouping.group_bays``.
    only : collection of PoolKey, optional
        Leave every other pool out.
    fair_ratio : mapping of service to float, optional
        See ``penalties.Penalties``.
    """
    pools = tuple(o for o in options.pools if only is None or o.pool in only)
    grouping = group_bays(problem, _sizes(pools), split_running=split_running, one_by_one=one_by_one)
    services = tuple(sorted(problem.services, key=lambda s: s.name))
    pairs = _pairs(problem, pools, grouping)
    order = {service.name: index for index, service in enumerate(services)}
    steps = [(p, step) for p, option in enumerate(pools) for step in option.steps]
    first = first_levels(pools)
    held = _held(problem, pools, grouping)
    penalties = find_penalties(problem, options, fair_ratio)
    return Cells(
        problem=problem,
        grouping=grouping,
        pairing=(pairing := Pairing.of(problem)),
        links=Links.of(problem, pairing),
        services=services,
        pools=pools,
        steps=tuple(step for _, step in steps),
        pool_service=_ints(order[o.pool.service] for o in pools),
        pool_base=_ints(first[o.pool.uncapped] for o in pools),
        step_pool=_ints(p for p, _ in steps),
        cell_pool=_ints(p for p, _ in pairs),
        cell_group=_ints(g for _, g in pairs),
        held_pool=_ints(p for p, _, _ in held),
        held_group=_ints(g for _, g, _ in held),
        held_now=_ints(now for _, _, now in held),
        demand_per_s=_floats(problem.demands[s.name].requests_per_s for s in services),
        penalty_usd_per_hour=_floats(penalties.unserved_usd_per_hour[s.name] for s in services),
        floor_usd_per_hour=_floats(penalties.floor_usd_per_hour[s.name] for s in services),
        fair_ratio=_floats(penalties.fair_ratio.get(s.name, 1.0) for s in services),
    )


def _sizes(pools: Sequence[PoolOption]) -> dict[str, set[int]]:
    """GPUs that replicas of each class may hold."""
    found: dict[str, set[int]] = {}
    for option in pools:
        found.setdefault(option.pool.gpu_class, set()).add(option.gpus)
    return found


def _pairs(problem: Problem, pools: Sequence[PoolOption], grouping: Grouping) -> list[tuple[int, int]]:
    """Every pool with the groups of bays that can hold it and that its service may use."""
    services, reclaims = {service.name: service for service in problem.services}, Reclaims.of(problem)
    slots, of_class = grouping.counted(), dict[str, list[int]]()
    for g, group in enumerate(grouping.groups):
        of_class.setdefault(group.gpu_class, []).append(g)
    at = [group.bays[0].location for group in grouping.groups]
    return [
        (p, g)
        for p, option in enumerate(pools)
        for g in of_class.get(option.pool.gpu_class, ())
        if slots(g, option.gpus) > 0
        and services[option.pool.service].allows_location(at[g])
        and not reclaims.refuses(option.pool.service, at[g], option.pool.gpu_class)
    ]


def _ints(values: Iterable[int]) -> Ints:
    return np.array(list(values), dtype=np.int64)


def _floats(values: Iterable[float]) -> Floats:
    return np.array(list(values), dtype=float)


def first_levels(pools: Sequence[PoolOption]) -> dict[PoolKey, int]:
    """Index of the first level of every pool, by the pool without its cap."""
    return {pools[p].pool.uncapped: p for p in range(len(pools) - 1, -1, -1)}


def _held(problem: Problem, pools: tuple[PoolOption, ...], grouping: Grouping) -> list[tuple[int, int, int]]:
    """Running replicas by (pool, group); what runs where no cell is has to stop and appears nowhere."""
    index = first_levels(pools)
    group_of = {bay.key: g for g, group in enumerate(grouping.groups) for bay in group.bays}
    held: dict[tuple[int, int], int] = {}
    for (pool, location), count in sorted(problem.running.items()):
        p = index.get(pool)
        if p is None or count <= 0:
            continue
        if pools[p].is_anywhere and location == ANYWHERE:
            held[p, -1] = held.get((p, -1), 0) + count
        elif not pools[p].is_anywhere and (g := group_of.get((location, pool.gpu_class))) is not None:
            held[p, g] = held.get((p, g), 0) + count
    return [(p, g, now) for (p, g), now in sorted(held.items())]
