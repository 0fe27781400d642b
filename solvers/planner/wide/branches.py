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

from solvers.planner.menus.compose import Enough
from solvers.planner.pools.tally import Worth
from solvers.planner.proof.certify import BranchPrices
from solvers.planner.wide.stocks import ANY_PENALTY
from solvers.planner.wide.wide import Wide

MOST_BRANCHINGS, WORK_BRANCHINGS = 12, 160  # times that plans are told apart, and those times services
MOST_PRICINGS, TRUST = 12, 2.0  # of a branch, and of its first box: the best prices may be quite others there
LEAST_AT_ONCE, WORK_AT_ONCE = 4, 120  # pricings between two looks at what they bring, and those times services
CLOSED = 0.05  # of the gap asked: pricing stops when the relaxed choice and its bound agree this well
LITTLE = 0.05  # of what is open, what these have to bring
MARGIN_PARTS = 4  # of the demand, between what a way leaves undone and where its branch begins: loads are rounded up
AHEAD = 0.25  # of what the least branch leaves open, how far ahead of it others are priced
LEAST_SPREAD = 0.1  # of what is open, what the penalties of a service's ways have to differ by
LEAST_RAISED, PATIENCE = 0.1, 3  # of what was open, what so many branchings together have to bring
WORK_PATIENCE = 60  # those times services: fewer have to bring as much each where services are many


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Where a service's ways are told apart, and how far their penalties lie from their mean, USD per hour."""

    service: int
    usd_per_hour: float
    spread_usd_per_hour: float


def branched(root: Wide, objective_usd_per_hour: float, is_enough: Enough) -> list[Wide]:
    """Tell plans apart, beyond the branches known, until the least bound of any is enough or no more comes of it.

    Returns
    -------
    list of Wide
        Of which one or another holds every plan that ``root`` does, each with its own prices and bound.
    """
    leaves = [(leaf.best, made, leaf) for made, leaf in enumerate(root.branches or [root])]
    heapq.heapify(leaves)
    made = len(leaves)
    bounds = list[float]()
    patience = max(1, min(PATIENCE, WORK_PATIENCE // len(root.stocks)))
    for _ in range(max(1, min(MOST_BRANCHINGS, WORK_BRANCHINGS // len(root.stocks)))):
        bound, _, least = leaves[0]
        cut = _cut(least)
        open_usd = objective_usd_per_hour - bound
        if is_enough(bound) or cut is None or cut.spread_usd_per_hour < LEAST_SPREAD * open_usd:
            break
        if len(bounds) >= patience:
            least_usd = LEAST_RAISED * patience / PATIENCE * (objective_usd_per_hour - bounds[-patience])
            if bound - bounds[-patience] < least_usd:
                break
        heapq.heappop(leaves)
        low, high = least.penalties.get(cut.service, ANY_PENALTY)
        for penalties in ((low, cut.usd_per_hour), (cut.usd_per_hour, high)):
            made += 1
            part = _within(least, cut.service, penalties)
            _price(part, objective_usd_per_hour, _ahead(leaves, objective_usd_per_hour), is_enough)
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


def _within(wide: Wide, service: int, penalties: tuple[float, float]) -> Wide:
    """The plans that leave so much of a service undone, at least and at most, bounded at the same prices."""
    part = replace(
        wide,
        penalties=wide.penalties | {service: penalties},
        kept=[*wide.kept],
        wanted=[*wide.wanted],
        unusable=np.zeros(len(wide.room)),
        trust=TRUST,
        closed=CLOSED,
        is_fine=True,
        best=-np.inf,
        branches=[],
        search=replace(wide.search, is_on=False),
    )
    part.priced(wide.prices)
    return part


def _price(part: Wide, objective_usd_per_hour: float, ahead_usd_per_hour: float, is_enough: Enough) -> None:
    """Raise the bound of a branch, while that brings something and it is not far ahead of others."""

    def is_done(bound: float) -> bool:
        return is_enough(bound) or bound >= ahead_usd_per_hour

    at_once = max(LEAST_AT_ONCE, WORK_AT_ONCE // len(part.stocks))
    for _ in range(max(1, MOST_PRICINGS // at_once)):
        before = part.best
        if is_done(before):
            break
        part.raised(min(at_once, MOST_PRICINGS), is_done)
        if part.best - before < LITTLE * (objective_usd_per_hour - before):
            break


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
