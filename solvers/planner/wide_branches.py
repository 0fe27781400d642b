"""Bounds by branches: a service leaves at least, or at most, so much undone.

Where a service is short and its replicas are few and large, the relaxed choice serves what no whole replicas could.
Then the plans in question are told apart by what such a service leaves undone, between what two sizes do. Each branch
has prices of its own (branch and price, Barnhart et al. 1998), and no plan costs less than the least bound of any.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.planner.certify import BranchPrices
from solvers.planner.compose import Enough
from solvers.planner.stocks import ANY_PENALTY
from solvers.planner.tally import Worth
from solvers.planner.wide import Wide

MOST_BRANCHINGS, WORK_BRANCHINGS = 12, 160  # times that plans are told apart, and those times services
MOST_PRICINGS, TRUST = 12, 2.0  # of a branch, and of its first box: the best prices may be quite others there
MARGIN_PARTS = 4  # of the demand, between what a way leaves undone and where its branch begins: loads are rounded up
AHEAD = 0.25  # of what the least branch leaves open, how far ahead of it others are priced
LEAST_SPREAD = 0.1  # of what is open, what the penalties of a service's ways have to differ by
LEAST_RAISED, PATIENCE = 0.1, 3  # of what was open, what so many branchings together have to bring


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Where a service's ways are told apart, and how far their penalties lie from their mean, USD per hour."""

    service: int
    usd_per_hour: float
    spread_usd_per_hour: float


def branched(root: Wide, objective_usd_per_hour: float, is_enough: Enough) -> list[Wide]:
    """Tell plans apart until the least bound of any branch is enough, or that brings nothing more.

    Returns
    -------
    list of Wide
        Of which one or another holds every plan that ``root`` does, each with its own prices and bound.
    """
    leaves, made = [(root.best, 0, root)], 0
    bounds = list[float]()
    for _ in range(max(1, min(MOST_BRANCHINGS, WORK_BRANCHINGS // len(root.stocks)))):
        bound, _, least = leaves[0]
        cut = _cut(least)
        open_usd = objective_usd_per_hour - bound
        if is_enough(bound) or cut is None or cut.spread_usd_per_hour < LEAST_SPREAD * open_usd:
            break
        if len(bounds) >= PATIENCE and bound - bounds[-PATIENCE] < LEAST_RAISED * (
            objective_usd_per_hour - bounds[-PATIENCE]
        ):
            break
        heapq.heappop(leaves)
        low, high = least.penalties.get(cut.service, ANY_PENALTY)
        for penalties in ((low, cut.usd_per_hour), (cut.usd_per_hour, high)):
            made += 1
            ahead = _ahead(leaves, objective_usd_per_hour)
            part = _within(least, cut.service, penalties, lambda b, most=ahead: is_enough(b) or b >= most)  # type: ignore[misc]
            heapq.heappush(leaves, (part.best, made, part))
        bounds.append(bound)
    return [leaf for *_, leaf in leaves]


def _ahead(leaves: Sequence[tuple[float, int, Wide]], objective_usd_per_hour: float) -> float:
    """A bound so far above the least of other branches that this one is looked at no closer for now."""
    if not leaves:
        return np.inf
    return leaves[0][0] + AHEAD * (objective_usd_per_hour - leaves[0][0])


def bound_of_branches(wide: Wide, worth: Worth) -> float:
    """The bound of the plans that leave no tier but the last more short than this one does, in whichever branch."""
    by_branch = [branch.bound_beside(worth) for branch in wide.branches]
    return max(wide.bound_beside(worth), min(by_branch, default=-np.inf))


def branch_prices(wide: Wide, worth: Worth) -> list[BranchPrices]:
    """What the bound of each branch rests on, beside a plan."""
    rows = len(wide.room)
    return [
        BranchPrices(
            penalties=branch.penalties,
            prices=branch.prices[:rows],
            held_ratios=branch.prices[rows:],
            usd_per_hour=min(branch.bound_beside(worth), worth.objective_usd_per_hour),
        )
        for branch in wide.branches
    ]


def _within(wide: Wide, service: int, penalties: tuple[float, float], is_enough: Enough) -> Wide:
    """Bound the plans that leave so much of a service undone, at least and at most, beginning with the same prices."""
    part = replace(
        wide,
        penalties=wide.penalties | {service: penalties},
        kept=[*wide.kept],
        wanted=[*wide.wanted],
        unusable=np.zeros(len(wide.room)),
        trust=TRUST,
        is_fine=True,
        best=-np.inf,
        branches=[],
        search=replace(wide.search, is_on=False),
    )
    part.priced(wide.prices)
    if not is_enough(part.best):
        part.raised(MOST_PRICINGS, is_enough)
    return part


def _cut(wide: Wide) -> _Cut | None:
    """Find the service whose relaxed choice leaves most differently much undone, and a cut between its ways."""
    shares, table, inside = wide.relaxed().x, wide.table, ~wide.table.outside(wide.penalties)
    found: _Cut | None = None
    for s, stocks in enumerate(wide.stocks):
        mine = np.flatnonzero((table.service == s) & inside)
        part, penalty = shares[mine], table.costs[1][mine]
        mean = float(part @ penalty)
        spread = float(part @ np.abs(penalty - mean))
        below, above = penalty[penalty < mean], penalty[penalty >= mean]
        if spread <= (found.spread_usd_per_hour if found else 0.0) or not len(below) or not len(above):
            continue
        ends = float(below.max()), float(above.min())
        margin = MARGIN_PARTS * 2.0 * stocks.unserved_usd_per_hour / stocks.parts
        cut = max(ends[1] - margin, sum(ends) / 2.0)
        found = _Cut(service=s, usd_per_hour=cut, spread_usd_per_hour=spread)
    return found
