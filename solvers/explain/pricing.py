"""What is scarce, what more or less of it is worth, and how far that price holds; and what other ways would cost all.

Worth is counted over the least amount that helps at all, for replicas are whole: watts of the smallest replica in a
domain, one more group of GPUs on a node. Room is then varied, linear problem by linear problem, until the mean worth of
a unit leaves a tenth around what was said. Curves like these are convex: more is worth less and less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from solvers.explain import Case, Explanation
from solvers.explain.losses import losses
from solvers.explain.market import Market
from solvers.explain.parts import explained_whole
from solvers.explain.predict import Predictor
from solvers.explain.shadow import ShadowPrice
from solvers.explain.ways import with_fleet_cost
from solvers.plan import Plan
from solvers.planner.assemble import PRICE_FLOOR, UNITS, unit_of
from solvers.planner.model.limits import WHOLE
from solvers.planner.model.limits_resources import row_units
from solvers.planner.pools.cells import Floats
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity

MOST_PRICES = 6  # told of one service; each takes some twenty small linear problems
DOUBLINGS = 7
HALVINGS = 3  # of the last doubling: what is said to hold does so to an eighth of it
TOLERANCE = 0.1
KILO = 1000.0

Shift = Callable[[float], Floats]
"""What so many units more (or less, below 0) add to the room of the shared rows; (R,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scarce:
    """Something that binds: ``step`` units are the least that helps, ``most`` what could be taken away."""

    limit: str
    subject: str
    unit: str
    step: float
    most: float
    shift: Shift


def explain_priced(
    plan: Plan,
    problem: Problem,
    service: str,
    *,
    with_losses: bool = False,
    capacity_of: CapacityOf = replica_capacity,
) -> Explanation:
    """Explain the plan of one service, with prices and the cost of its alternatives to the whole fleet.

    Parameters
    ----------
    with_losses : bool
        Predict the losses that would touch it too; each takes about as long as all of the rest.

    Raises
    ------
    InvalidInput
        The plan holds no such service.
    SolveFailed
        The relaxation gave no prices.
    """
    predictor = Predictor.of(problem, plan, capacity_of)
    return explained_whole(plan, service, lambda name: _priced_one(predictor, name, with_losses, capacity_of))


def _priced_one(predictor: Predictor, service: str, with_losses: bool, capacity_of: CapacityOf) -> Explanation:
    case = Case.of(predictor.opened.plan, predictor.opened.problem, service, capacity_of)
    told = case.explained()
    rejected = []
    for way, ranked in zip(told.rejected, case.rejected, strict=True):
        cost = predictor.with_only(service, {option.pool for option, _ in ranked.way})
        bounds = cost.low_usd_per_hour, cost.expected_usd_per_hour, cost.high_usd_per_hour
        rejected.append(with_fleet_cost(way, *bounds))
    return replace(
        told,
        rejected=tuple(rejected),
        prices=shadow_prices(predictor.market, service),
        losses=losses(predictor, service) if with_losses else (),
    )


def shadow_prices(market: Market, service: str | None = None) -> tuple[ShadowPrice, ...]:
    """Price what binds, the dearest first; of one service, only what its pools would take.

    Returns
    -------
    tuple of ShadowPrice
        At most ``MOST_PRICES``; worth nothing both ways is left out.
    """
    value, prices = market.priced(market.room)
    scarce = _scarce_things(market, prices * _used_by(market, service))
    found = [_priced(market, value, thing) for thing in scarce[:MOST_PRICES]]
    told = [price for price in found if max(price.more_usd_per_hour, price.less_usd_per_hour) > PRICE_FLOOR]
    return tuple(sorted(told, key=lambda p: (-p.more_usd_per_hour, -p.less_usd_per_hour, p.limit, p.subject)))


def _used_by(market: Market, service: str | None) -> Floats:
    """1 for rows that a replica of the service would take from (of any, without one); (R,)."""
    rows = market.arrays.matrix.tocsr()[list(market.rows)][:, market.arrays.columns["replicas"]]
    owners = [market.cells.services[s].name for s in market.cells.pool_service[market.cells.cell_pool]]
    mine = np.array([service in (None, owner) for owner in owners], dtype=float)
    used: Floats = (abs(rows) @ mine > 0.0).astype(float)
    return used


def _scarce_things(market: Market, prices: Floats) -> list[Scarce]:
    """What has a price, the dearest first."""
    every = (*_feeds(market), *_groups(market), *_resources(market), *_others(market))
    things = [(float(prices @ thing.shift(thing.step)), thing) for thing in every]
    priced = [(price, thing) for price, thing in things if price > PRICE_FLOOR]
    return [thing for _, thing in sorted(priced, key=lambda pair: (-pair[0], pair[1].limit, pair[1].subject))]


def _rows(market: Market) -> dict[tuple[str, str], int]:
    return {name: index for index, name in enumerate(market.names)}


def _feeds(market: Market) -> Iterator[Scarce]:
    """One kW in one member of every group of domains; whole replicas in it are counted by its own room."""
    rows = _rows(market)
    for domain in market.cells.grouping.domain_groups:
        whole = []  # (row, watts of the replicas that it counts)
        for (limit, subject), row in rows.items():
            label, _, watts = subject.removesuffix(" W").rpartition(" by ")
            if limit == "power_whole" and label == domain.label:
                whole.append((row, float(watts)))
        plain, room = rows.get(("power", domain.label)), domain.room_watts

        def shift(
            kilowatts: float,
            plain: int | None = plain,
            whole: list[tuple[int, float]] = whole,
            room: float = room,
        ) -> Floats:
            added = np.zeros(len(rows))
            if plain is not None:
                added[plain] = kilowatts
            for row, watts in whole:
                after = math.floor(max(0.0, room + KILO * kilowatts) / watts + WHOLE)
                added[row] = after - math.floor(room / watts + WHOLE)
            return added

        step = min((watts for _, watts in whole), default=KILO) / KILO
        yield Scarce(limit="power", subject=domain.label, unit=UNITS["power"], step=step, most=room / KILO, shift=shift)


def _groups(market: Market) -> Iterator[Scarce]:
    """One more free group of the largest size placed on a bay; it holds smaller ones too."""
    rows = _rows(market)
    for group in market.cells.grouping.groups:
        sizes = {}
        for (limit, subject), row in rows.items():
            label, _, size = subject.rpartition(" x")
            if limit == "gpus" and label == group.label:
                sizes[int(size)] = row
        if not sizes:
            continue
        largest = max(sizes)

        def shift(count: float, sizes: dict[int, int] = sizes, largest: int = largest) -> Floats:
            added = np.zeros(len(rows))
            for size, row in sizes.items():
                added[row] = count * (largest // size)
            return added

        unit = f"group of {largest} GPUs" if largest > 1 else "GPU"
        most = float(group.slots(largest))
        yield Scarce(limit="gpus", subject=group.label, unit=unit, step=1.0, most=most, shift=shift)


def _resources(market: Market) -> Iterator[Scarce]:
    """CPU, memory and the like of a group of bays: its sum, and its room for requests of every size."""
    found: dict[str, list[tuple[int, float]]] = {}
    for index, (limit, subject) in enumerate(market.names):
        if limit == "resources":
            thing, units = row_units(market.cells, subject)
            found.setdefault(thing, []).append((index, units))
    for thing, rows in found.items():

        def shift(units: float, rows: list[tuple[int, float]] = rows) -> Floats:
            added = np.zeros(len(market.names))
            for index, each in rows:
                added[index] = units / each
            return added

        step, most = min(each for _, each in rows), max(float(market.room[index]) * each for index, each in rows)
        unit = unit_of("resources", thing)
        yield Scarce(limit="resources", subject=thing, unit=unit, step=step, most=most, shift=shift)


def _others(market: Market) -> Iterator[Scarce]:
    """Any other limit that services share, unit by unit."""
    for index, (limit, subject) in enumerate(market.names):
        if limit in ("power", "power_whole", "gpus", "resources"):
            continue

        def shift(units: float, index: int = index) -> Floats:
            added = np.zeros(len(market.names))
            added[index] = units
            return added

        most = float(market.room[index])
        yield Scarce(limit=limit, subject=subject, unit=UNITS.get(limit, "unit"), step=1.0, most=most, shift=shift)


def _priced(market: Market, value: float, thing: Scarce) -> ShadowPrice:
    def gain(units: float) -> float:
        """What so many units change, USD per hour, positive both for more and for less."""
        return abs(value - market.priced(np.maximum(0.0, market.room + thing.shift(units)))[0])

    more, more_for = _held(gain, thing.step, math.inf)
    less, less_for = _held(lambda units: gain(-units), thing.step, thing.most)
    return ShadowPrice(
        limit=thing.limit,
        subject=thing.subject,
        unit=thing.unit,
        more_usd_per_hour=more,
        more_holds_for=more_for,
        less_usd_per_hour=less,
        less_holds_for=less_for,
    )


def _held(gain: Callable[[float], float], step: float, most: float) -> tuple[float, float]:
    """Worth of a unit over the first step, and how many units keep to it within the tolerance.

    >>> _held(lambda units: 2.0 * min(units, 12.0), 1.0, 100.0)
    (2.0, 13.0)
    """
    step = min(step, most)
    price = gain(step) / step if step > 0.0 else 0.0
    if price <= PRICE_FLOOR:
        return 0.0, 0.0

    def holds(units: float) -> bool:
        return abs(gain(units) / units - price) <= TOLERANCE * price

    low = high = step
    for _ in range(DOUBLINGS):
        high = min(2.0 * low, most)
        if high <= low or not holds(high):
            break
        low = high
    for _ in range(HALVINGS if high > low else 0):
        middle = (low + high) / 2.0
        low, high = (middle, high) if holds(middle) else (low, middle)
    return price, low
