"""Which cuts of a service's sizes are worth a decision: every range of prompts by itself, priced like everything else.

A cut is a path over the places where a service may be cut, and a range is a step of it. Each range is solved alone and
exactly at prices of what services share (``menus.py``); the cheapest path at the prices is the cut that is tried, and
the sum over all services, with what the room fetches taken off, bounds every plan with any cut (Lagrange's bound).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product
from math import ceil, inf, log

import numpy as np
import scipy.sparse as sp

from solvers.certificate import Certificate
from solvers.engine import Role
from solvers.planner.menus.compose import CLOSED, MOST_PRICINGS, SMOOTHING, Composer, shared_rows
from solvers.planner.menus.menus import FINE_GRID, GRID, Menu
from solvers.planner.model.relax import Arrays, solve_linear, state
from solvers.planner.pools.cells import Floats, build_cells
from solvers.planner.pools.crew import Crew
from solvers.planner.pools.options import Options, PoolOption, find_options
from solvers.planner.pools.penalties import dearest_usd_per_request
from solvers.planner.pools.sizer import Sizer
from solvers.planner.splits.splitting import Cuts, Place, as_part, dropped, part_name
from solvers.planner.wide.cuts import WideRanges
from solvers.problem import Problem
from solvers.sizes import SizeRange, ranges_between
from solvers.sizing import CapacityOf
from solvers.workload import Demand, ServedModel, SizeBucket

MOST_STARTS = 3  # places where one service may be cut: ten ranges; beyond, sizing them takes longer than the decision
MOST_RANGES = 48  # of all services together
MOST_LISTED = 4096  # cuts of the whole fleet that are told apart one by one
PRICED_POOLS = 1500  # more are weighed by their rent alone


def starts_of(mix: Sequence[SizeBucket], most: int, known: Iterable[int] = ()) -> tuple[int, ...]:
    """Where prompts may be cut: between neighbouring sizes, at most so many places, ascending.

    A place that is known (runs, or is planned) is taken again, then those between sizes that are furthest apart: there
    at the number of tokens that is roundest in binary, which stays when the sizes drift a little.
    """
    prompts = sorted({bucket.prompt_tokens for bucket in mix if bucket.weight_ratio > 0.0})
    held = sorted(known)
    gaps = sorted(pairwise(prompts), key=lambda gap: (not _inside(gap, held), -log(gap[1] / gap[0]), gap))[:most]
    return tuple(sorted(next(iter(_inside(gap, held)), _round_start(*gap)) for gap in gaps))


def _inside(gap: tuple[int, int], starts: Iterable[int]) -> list[int]:
    return [start for start in starts if gap[0] < start <= gap[1]]


def _round_start(low: int, high: int) -> int:
    """A number of tokens above ``low`` and not above ``high``."""
    bits = next(k for k in range(high.bit_length(), -1, -1) if (high >> k) << k > low)
    return (high >> bits) << bits


def cuts_at(starts: Sequence[int]) -> list[tuple[SizeRange, ...]]:
    """Every cut at some of the places; the empty one, which leaves the service whole, comes first."""
    some = [chosen for count in range(len(starts) + 1) for chosen in combinations(starts, count)]
    return [ranges_between(chosen) if chosen else () for chosen in some]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Book:
    """The cuts on offer and what they are worth.

    Attributes
    ----------
    starts : mapping of service to tuple of int
        Prompt tokens at which each service may be cut; services that may not are left out.
    serving_usd_per_request : mapping of str to float
        Of services on offer and of all their ranges by part name, see ``Problem``: for any cut the parts weigh together
        what the whole does.
    alone_usd_per_hour : mapping of str to float
        Least value of each service and range by name, alone, at the prices.
    bound_usd_per_hour : float or None
        No plan with any of the cuts on offer is worth less; None where ranges are too many to price.
    ranges : WideRanges, optional
        Of a fleet too large for menus, whose ranges are weighed by their rent until there is a plan with prices.
    """

    starts: Mapping[str, tuple[int, ...]]
    serving_usd_per_request: Mapping[str, float]
    alone_usd_per_hour: Mapping[str, float]
    bound_usd_per_hour: float | None
    ranges: WideRanges | None = None

    def at(self, known: Certificate) -> Book:
        """The same at the prices of a plan, where a fleet is too large to price ranges before there is one."""
        return self if self.ranges is None else replace(self, alone_usd_per_hour=self.ranges.values(known))

    @property
    def offered(self) -> int:
        """How many cuts of the whole fleet there are."""
        return int(np.prod([2.0 ** len(starts) for starts in self.starts.values()]))

    def every(self) -> list[Cuts]:
        """Every cut of the whole fleet; the first leaves all services whole."""
        choices = [cuts_at(starts) for starts in self.starts.values()]
        return [
            {service: ranges for service, ranges in zip(self.starts, chosen, strict=True) if ranges}
            for chosen in product(*choices)
        ]

    def ranked(self) -> list[tuple[float, Cuts]]:
        """Every cut of the whole fleet with a bound on its plans, USD per hour, lowest first.

        Empty where there are too many of them, or ranges are not priced.
        """
        if self.bound_usd_per_hour is None or self.offered > MOST_LISTED:
            return []
        least = sum(self.value_usd_per_hour(service, self.best().get(service, ())) for service in self.starts)
        found = []
        for cuts in self.every():
            value = sum(self.value_usd_per_hour(service, cuts.get(service, ())) for service in self.starts)
            found.append((self.bound_usd_per_hour + max(0.0, value - least), cuts))
        return sorted(found, key=lambda row: row[0])

    def offers(self, cuts: Cuts) -> bool:
        """True when every service is cut at places on offer, or whole."""
        return all({r.least for r in ranges} <= {0, *self.starts.get(name, ())} for name, ranges in cuts.items())

    def value_usd_per_hour(self, service: str, ranges: Sequence[SizeRange]) -> float:
        """What the service is worth alone with the cut, at the prices."""
        names = [part_name(service, sizes) for sizes in ranges] or [service]
        return sum(self.alone_usd_per_hour[name] for name in names)

    def best(self) -> Cuts:
        """The cheapest cut of each service at the prices; whole where no cut saves anything."""
        found = {}
        for service, starts in self.starts.items():
            ranges = min(cuts_at(starts), key=lambda ranges: (self.value_usd_per_hour(service, ranges), len(ranges)))
            if ranges and self.saving_usd_per_hour(service, ranges) > 1e-9:
                found[service] = ranges
        return found

    def saving_usd_per_hour(self, service: str, ranges: Sequence[SizeRange]) -> float:
        """What the cut saves against the whole service, alone, at the prices."""
        return self.value_usd_per_hour(service, ()) - self.value_usd_per_hour(service, ranges)


def open_book(
    problem: Problem, capacity_of: CapacityOf, known: Cuts, services: Sequence[str], crew: Crew | None = None
) -> Book:
    """Price every range of the services that may be cut.

    Parameters
    ----------
    known : Cuts
        What runs or is planned: its places are taken again where they lie between the same sizes.
    services : sequence of str
        Which to weigh, whether they declare that they split or not.
    crew : Crew, optional
        Who sizes the pools of large fleets.
    """
    if not problem.services:
        return Book(starts={}, serving_usd_per_request={}, alone_usd_per_hour={}, bound_usd_per_hour=0.0)
    starts = _starts(problem, known, services)
    ranged = ranged_problem(problem, starts)
    sizer = Sizer(problem=ranged, capacity_of=capacity_of)
    wanted = frozenset(pool for (pool, _), count in ranged.running.items() if count)
    is_wide = (crew or Crew()).finds_wide(ranged)
    options = find_options(ranged, sizer, wanted=wanted, is_wide=is_wide, crew=crew)
    weights = _weights(ranged, options, starts)
    ranged = replace(ranged, serving_usd_per_request=weights)
    priced = None
    if len(options.pools) <= PRICED_POOLS and not is_wide:
        priced = _priced(ranged, options, replace(sizer, problem=ranged), starts)
    ranges = WideRanges(problem=ranged, options=options, sizer=replace(sizer, problem=ranged), crew=crew or Crew())
    alone, bound = priced or (_rents(ranged, options), None)
    if bound is not None:
        bound += _stops_usd_per_hour(problem, starts)
    return Book(
        starts=starts,
        serving_usd_per_request=weights,
        alone_usd_per_hour=alone,
        bound_usd_per_hour=bound,
        ranges=ranges if is_wide else None,
    )


def _starts(problem: Problem, known: Cuts, services: Sequence[str]) -> dict[str, tuple[int, ...]]:
    wanted = {service.name: service for service in problem.services if service.name in services}
    most = MOST_STARTS
    while most > 1 and len(wanted) * (most + 1) * (most + 2) // 2 > MOST_RANGES:
        most -= 1
    found = {}
    for name, service in sorted(wanted.items()):
        held = [sizes.least for sizes in known.get(name, ())]
        starts = starts_of(problem.demands[name].mix, min(most, service.max_replicas - 1), held)
        if starts and problem.demands[name].requests_per_s > 0.0 and not service.pins and _has_room(service, starts):
            found[name] = starts
    return found


def _has_room(service: ServedModel, starts: Sequence[int]) -> bool:
    """Every part must be able to stand at as many locations as the service asks for."""
    return service.min_locations <= 1 or service.max_replicas >= service.min_locations * (len(starts) + 1) * 2


def _ranges(starts: Sequence[int]) -> list[tuple[int, int, SizeRange]]:
    """Every range between two places, with their indices; one of them is the whole."""
    edges, count = [0, *starts], len(starts) + 1
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count + 1)]
    return [(i, j, SizeRange(edges[i], edges[j] - 1 if j < count else None)) for i, j in pairs]


def _smaller_ranges(starts: Sequence[int]) -> list[SizeRange]:
    return [sizes for _, _, sizes in _ranges(starts) if sizes != SizeRange(0)]


def _step_name(service: str, sizes: SizeRange) -> str:
    """Name of a range; the one that holds everything is the service itself."""
    return service if sizes == SizeRange(0) else part_name(service, sizes)


def ranged_problem(problem: Problem, starts: Mapping[str, Sequence[int]]) -> Problem:
    """State every range as a service of its own, beside the whole ones: what each would ask for.

    Ranges have no floor, and the ceiling of the whole: they ask for less than the parts of any cut.
    """
    services, demands = list(problem.services), dict(problem.demands)
    for service in problem.services:
        for sizes in _smaller_ranges(starts.get(service.name, ())):
            name = part_name(service.name, sizes)
            services.append(replace(service, name=name, min_replicas=0, splits_by_size=False))
            demands[name] = _demand_within(problem.demands[service.name], sizes)
    names = {service.name for service in services}
    running = {(as_part(pool), place): count for (pool, place), count in sorted(problem.running.items())}
    return replace(
        problem,
        services=tuple(services),
        demands=demands,
        running={key: n for key, n in running.items() if ":" not in key[0].service or key[0].service in names},
    )


def _demand_within(demand: Demand, sizes: SizeRange) -> Demand:
    mix = [bucket for bucket in demand.mix if bucket.weight_ratio > 0.0 and sizes.holds(bucket.prompt_tokens)]
    weight, total = sum(b.weight_ratio for b in mix), sum(b.weight_ratio for b in demand.mix)
    return Demand(
        service=part_name(demand.service, sizes),
        requests_per_s=demand.requests_per_s * weight / total,
        mix=tuple(replace(bucket, weight_ratio=bucket.weight_ratio / weight) for bucket in mix),
        source=demand.source,
    )


def _stops_usd_per_hour(problem: Problem, starts: Mapping[str, Sequence[int]]) -> float:
    """Price of stopping what runs for ranges that no cut on offer has."""
    offered = {name: tuple(sizes for _, _, sizes in _ranges(places)) for name, places in starts.items()}
    return stops_usd_per_hour(problem, {place: n for place, n in dropped(problem, offered).items() if place[0].sizes})


def stops_usd_per_hour(problem: Problem, counts: Mapping[Place, int]) -> float:
    """Price of stopping so many replicas; those of services that are not planned cost nothing."""
    planned = {service.name for service in problem.services}
    return sum(
        problem.policy.stop_cost_hours
        * count
        * pool.config.gpus
        * problem.gpu_classes[pool.gpu_class].price_usd_per_hour
        for (pool, _), count in counts.items()
        if pool.service in planned and pool.gpu_class in problem.gpu_classes
    )


def _weights(problem: Problem, options: Options, starts: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Price of serving one request/s, by range: the whole's, shared out by what the finest parts cost at most."""
    found: dict[str, float] = {}
    energy = problem.policy.energy_usd_per_kilowatt_hour
    for service, places in starts.items():
        whole, rate = dearest_usd_per_request(options.of(service), energy), problem.demands[service].requests_per_s
        atoms = [part_name(service, sizes) for i, j, sizes in _ranges(places) if j == i + 1]
        rates = [problem.demands[name].requests_per_s for name in atoms]
        costs = [
            (dearest_usd_per_request(options.of(name), energy) or whole) * r
            for name, r in zip(atoms, rates, strict=True)
        ]
        total = sum(costs)
        if total <= 0.0:
            continue
        scale = whole * rate / total if whole else 1.0
        for i, j, sizes in _ranges(places):
            found[_step_name(service, sizes)] = scale * sum(costs[i:j]) / sum(rates[i:j])
    return found


def _rents(problem: Problem, options: Options) -> dict[str, float]:
    """Rent of the cheapest whole replicas that carry each service or range alone; shortage at its price."""
    return {service.name: _rent(problem, options.of(service.name), service.name) for service in problem.services}


def _rent(problem: Problem, pools: Sequence[PoolOption], name: str) -> float:
    rate = problem.demands[name].requests_per_s
    least = dict.fromkeys(Role, inf)
    for option in pools:
        step = option.steps[-1]
        if step.capacity_requests_per_s > 0.0:
            price = option.step_usd_per_hour(step, problem.policy.energy_usd_per_kilowatt_hour)
            rent = ceil(rate / step.capacity_requests_per_s - 1e-9) * price
            least[option.pool.role] = min(least[option.pool.role], rent)
    cheapest = min(least[Role.MIXED], least[Role.PREFILL] + least[Role.DECODE])
    return cheapest if cheapest < inf else 1e3 * problem.serving_usd_per_request.get(name, 1.0) * rate


@dataclass(slots=True, kw_only=True)
class _Paths:
    """The relaxed choice among ways of ranges: one way for each service, or one for each step of a path."""

    composer: Composer
    menus: Mapping[str, Menu]
    starts: Mapping[str, Sequence[int]]

    def rows(self) -> tuple[sp.csr_array, Floats]:
        """Flow into and out of every place of every service, and what it must be."""
        entries: list[tuple[int, int, float]] = []
        row_of, right = self._rows_of_ranges()
        for column, way in enumerate(self.composer.ways):
            entries += [(row, column, sign) for row, sign in row_of[way.service]]
        rows, columns, signs = zip(*entries, strict=True)
        shape = (len(right), len(self.composer.ways))
        return sp.csr_array((signs, (rows, columns)), shape=shape), np.array(right)

    def _rows_of_ranges(self) -> tuple[dict[int, list[tuple[int, float]]], list[float]]:
        row_of: dict[int, list[tuple[int, float]]] = {}
        right: list[float] = []
        for name, menu in self.menus.items():
            if ":" in name:
                continue
            first = len(right)
            if name not in self.starts:
                row_of[menu.service] = [(first, 1.0)]
                right.append(1.0)
                continue
            right += [1.0] + [0.0] * len(self.starts[name])
            for i, j, sizes in _ranges(self.starts[name]):
                into = [(first + j, -1.0)] if j <= len(self.starts[name]) else []
                row_of[self.menus[_step_name(name, sizes)].service] = [(first + i, 1.0), *into]
        return row_of, right

    def choice(self) -> Arrays:
        flows, right = self.rows()
        composer = self.composer
        used = composer.shared @ sp.csc_array(np.array([way.replicas for way in composer.ways]).T)
        stops = {menu.service: menu.stop_usd_per_hour for menu in self.menus.values()}
        costs = [w.cost_usd_per_hour + w.penalty_usd_per_hour - stops[w.service] for w in composer.ways]
        count = len(costs)
        return Arrays(
            cost=np.array(costs),
            matrix=sp.csc_array(sp.vstack([flows, used])),
            row_lower=np.concatenate([right, np.full(len(composer.room), -inf)]),
            row_upper=np.concatenate([right, composer.room]),
            lower=np.zeros(count),
            upper=np.full(count, inf),
            whole=np.zeros(count, dtype=bool),
            columns={},
            rows=(),
        )

    def alone(self, prices: Floats, grid: int = GRID) -> dict[str, float]:
        """Least value of every service and range at the prices, what runs for it and stops not counted."""
        asked = self.composer.asked(prices)
        return {name: menu.least_value(asked, grid) - menu.stop_usd_per_hour for name, menu in self.menus.items()}

    def bound(self, alone: Mapping[str, float], prices: Floats) -> float:
        """Lagrange's bound over all plans with any cut."""
        total = sum(menu.stop_usd_per_hour for menu in self.menus.values()) - float(prices @ self.composer.room)
        for name in (name for name in self.menus if ":" not in name):
            total += self._shortest(name, alone) if name in self.starts else alone[name]
        return total

    def _shortest(self, service: str, alone: Mapping[str, float]) -> float:
        reached = [0.0] + [inf] * (len(self.starts[service]) + 1)
        for i, j, sizes in sorted(_ranges(self.starts[service])):
            reached[j] = min(reached[j], reached[i] + alone[_step_name(service, sizes)])
        return reached[-1]


def _priced(
    problem: Problem, options: Options, sizer: Sizer, starts: Mapping[str, Sequence[int]]
) -> tuple[dict[str, float], float] | None:
    """Price what services share by column generation over ways of ranges; None when a pool is too large for menus."""
    cells = build_cells(problem, options)
    arrays = state(cells)
    gap, seconds = problem.policy.relative_gap, problem.policy.time_limit_s
    composer = Composer.of(cells, arrays, sizer, gap=gap, seconds=seconds)
    if composer is None:
        return None
    menus = {service.name: menu for service, menu in zip(cells.services, composer.menus, strict=True)}
    paths = _Paths(composer=composer, menus=menus, starts=starts)
    prices = np.zeros(len(shared_rows(arrays)))
    best, best_prices = -inf, prices
    constant = sum(menu.stop_usd_per_hour for menu in composer.menus)
    for _ in range(MOST_PRICINGS):
        value = paths.bound(paths.alone(prices), prices)
        if value > best:
            best, best_prices = value, prices
        asked = composer.asked(prices)
        found = [composer.add(menu.cheapest(asked)) for menu in composer.menus]
        relaxed = solve_linear(paths.choice(), time_limit_s=seconds)
        if relaxed.duals is None or relaxed.value + constant - best <= CLOSED * gap * abs(relaxed.value):
            break
        newest = np.maximum(0.0, -relaxed.duals[-len(prices) :]) if len(prices) else prices
        if not any(found) and np.allclose(prices, newest, rtol=1e-6, atol=1e-9):
            break
        prices = newest if not any(found) else SMOOTHING * best_prices + (1.0 - SMOOTHING) * newest
    alone = paths.alone(best_prices, FINE_GRID)
    return alone, paths.bound(alone, best_prices)
