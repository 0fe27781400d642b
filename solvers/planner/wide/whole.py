"""One way of each service of a large fleet, in whole: among the best at the prices, or near a plan at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from solvers.deadline import CHOICE_UNTIL
from solvers.errors import SolveFailed
from solvers.planner.model.relax import UNUSED, Arrays, Solution, solve_whole
from solvers.planner.placing.places import cell_counts
from solvers.planner.pools.cells import Floats
from solvers.planner.pools.crew import Aside
from solvers.planner.pools.tally import Worth
from solvers.planner.wide.moves import moved
from solvers.planner.wide.rows import best_ways, blends, split_ways, taken_in_turn, ways_near
from solvers.planner.wide.wide import SPLIT, Wide

MOST_NODES, CHOICE_WORK = 400, 200_000  # nodes, and nodes times ways, of the whole choice
SHORT_NODES = 4  # times fewer nodes where the plan is fitted afterwards
CHOICE_GAP = 0.15  # of the gap asked, what the choice of ways may leave open
ROUGH_GAP = 0.5  # of the gap asked, what the choice of very many may leave open where short: places cost more
ROUGH_SEARCHES: Sequence[tuple[Mapping[str, bool | str], int]] = ((UNUSED, 40), ({**UNUSED, "presolve": "off"}, 20))
"""What is spared in each search of a rough choice, and its nodes."""
MOST_NEAR, LEAST_NEAR = 2000, 12  # ways near a plan's: of all services, and of each


def choose(wide: Wide, worth: Worth, lost: Floats | None = None) -> Floats:
    """Take one way for each service so that together they fit, for less than a plan at hand; (C,) replicas.

    Parameters
    ----------
    lost : (C,) float, optional
        Replicas of the last choice that found no place: so much of the room is not to be used again.
    """
    if lost is not None:
        wide.unusable = wide.unusable + wide.shared @ lost
    wide.at_hand(worth)
    for _ in range(2):
        _blend(wide, wide.relaxed())
    return _chosen_near(wide, worth) if wide.is_held else _chosen_first(wide)


def choose_soon(wide: Wide) -> list[Floats]:
    """Take one way of each service without a search, (C,) replicas each time; some find no place, of the last fewest.

    No way is remembered: among ways that are made to fit a dive finds worse ones.
    """
    part = replace(wide, table=wide.table.apart())
    for _ in range(2):
        _blend(part, part.relaxed())
    relaxed = part.relaxed()
    prices = np.maximum(part.choice_prices(relaxed), part.floor)
    choices = moved(part.choice(is_whole=True), part.table.service, relaxed.x, prices)
    return [part.table.replicas(ways) for ways in choices]


def improve(wide: Wide, worth: Worth) -> Floats:
    """Choose again with ways near those of a plan, and near to it in price; (C,) replicas."""
    most, counts = max(LEAST_NEAR, MOST_NEAR // len(wide.stocks)), cell_counts(wide.cells, worth.counts)
    asked, weights = wide.asked(wide.prices), wide.weights(wide.prices)
    for way in wide.maker.of_counts(counts):
        wide.table.take(ways_near(wide.maker, way, asked, weights, most))
    return _chosen_near(wide, worth)


def _blend(wide: Wide, relaxed: Solution) -> None:
    """Turn each split choice into whole ways that use about as much of each place."""
    asked = wide.asked(wide.choice_prices(relaxed))
    for service, split in split_ways(wide.table.ways, relaxed.x, SPLIT):
        wide.table.take(blends(wide.maker, service, split, asked))


def _chosen_first(wide: Wide) -> Floats:
    """Take one way of each service, (C,) replicas: of the best, or of all where those would leave more undone."""
    relaxed = wide.relaxed()
    undone, values = wide.table.costs[1], wide.priced_ways(wide.choice_prices(relaxed))
    for kept in (best_ways(wide.table.ways, values), [*range(len(wide.table.ways))]):
        choice = wide.choice(kept, is_whole=True)
        ways = _whole(wide, kept, choice, taken_in_turn(choice, wide.table.tiers, relaxed.x[kept]))
        if wide.is_short or undone[ways].sum() <= relaxed.x @ undone + wide.gap * abs(relaxed.value):
            break
    return wide.table.replicas(ways)


def _chosen_near(wide: Wide, worth: Worth) -> Floats:
    """Take one way of each service, (C,) replicas, among those that a better plan than the one at hand may have."""
    held = wide.at_hand(worth)
    is_held = np.zeros(len(wide.table.ways), dtype=bool)
    is_held[[wide.table.index(way) for way in held]] = True
    spare = sum(way.cost_usd_per_hour + way.penalty_usd_per_hour for way in held) - wide.best
    among = np.flatnonzero((wide.over_usd_per_hour() <= spare) | is_held)
    start, choice = is_held[among].astype(float), wide.choice(among.tolist(), is_whole=True)
    return wide.table.replicas(_whole(wide, among.tolist(), choice, start))


def _whole(wide: Wide, among: Sequence[int], choice: Arrays, start: Floats) -> list[int]:
    """The ways that are taken."""
    if wide.is_short and wide.has_very_many:
        chosen = _rough(wide, choice, start)
    else:
        chosen = solve_whole(
            choice,
            relative_gap=CHOICE_GAP * wide.gap,
            time_limit_s=wide.seconds,
            node_limit=max(1, min(MOST_NODES // (SHORT_NODES if wide.is_short else 1), CHOICE_WORK // len(among))),
            start=start,
            run=wide.crew.whole,
        )
    return [index for index, share in zip(among, chosen.x, strict=True) if share > 0.5]


def _rough(wide: Wide, choice: Arrays, start: Floats) -> Solution:
    """The best of two searches that go about it differently, side by side where there are cores to spare.

    The plan at hand is a poor start, and either may miss for long what the other finds at once.

    Raises
    ------
    SolveFailed
        Of the first, where neither finds anything.
    """

    def searched(spared: Mapping[str, bool | str], nodes: int) -> Solution:
        return solve_whole(
            choice,
            relative_gap=ROUGH_GAP * wide.gap,
            time_limit_s=wide.crew.deadline.seconds_for(wide.seconds, CHOICE_UNTIL),
            node_limit=nodes,
            start=start,
            run=wide.crew.whole,
            spared=spared,
        )

    searches = [Aside(do=partial(searched, spared, nodes)) for spared, nodes in ROUGH_SEARCHES]
    with wide.crew.while_solving():
        for search in searches[1:] if wide.crew.workers > 1 else ():
            search.begin()
        return min(_answers(searches), key=lambda found: found.value)


def _answers(searches: Sequence[Aside[Solution]]) -> list[Solution]:
    """What searches found, those that failed left out unless all did."""
    found, faults = [], []
    for search in searches:
        try:
            found.append(search.answer())
        except SolveFailed as fault:
            faults.append(fault)
    if not found:
        raise faults[0]
    return found
