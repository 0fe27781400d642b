r"""The relaxation over bin contents, by column generation (Gilmore and Gomory 1961, 1963).

.. math:: \min \sum_p c_p x_p \quad \text{s.t.} \quad \sum_p a_{tp} x_p \ge d_t, \quad
          \sum_{p \in k} x_p \le n_k, \quad x \ge 0

Prices of the items make the next content; none worth more than its bin costs is left at the optimum. Items that find no
place are bought at a price above any packing's cost, so that a relaxation always exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from solvers.errors import SolveFailed
from solvers.highs import quiet_highs
from solvers.packing.bounds import WORTH_UNIT, priced_bound
from solvers.packing.fit import Pattern
from solvers.packing.items import Floats, Ints, Kinds
from solvers.packing.pricing import make_pricer

MOST_ROUNDS = 2000
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relaxed:
    """A relaxation solved: value, prices (T,), what each limited type is worth (K,), and columns used with amounts."""

    value: float
    prices: Floats
    type_prices: Floats
    used: tuple[tuple[int, float], ...]
    is_complete: bool


class Master:
    """The relaxation in one HiGHS that lives on; columns are only ever added, demand and counts change in place."""

    def __init__(self, kinds: Kinds, *, full_searches: int) -> None:
        self.kinds = kinds
        self.full_searches = full_searches
        self.lower = 0
        self.pricer = make_pricer(kinds)
        self.patterns: list[Pattern] = []
        self.counts = np.empty((0, len(kinds.demand)), dtype=np.int64)
        self._known: set[tuple[int, bytes]] = set()
        self._highs = quiet_highs(solver="simplex", presolve="off")
        self._never = float(kinds.cost.max() * (kinds.demand.sum() + 1))
        for _ in range(len(kinds.demand)):
            self._highs.addRow(0.0, highspy.kHighsInf, 0, np.empty(0, np.int32), np.empty(0))
        for _ in range(len(kinds.count)):
            self._highs.addRow(-highspy.kHighsInf, 0.0, 0, np.empty(0, np.int32), np.empty(0))
        for kind in range(len(kinds.demand)):
            self._highs.addCol(self._never, 0.0, highspy.kHighsInf, 1, np.array([kind], np.int32), np.array([1.0]))

    def add(self, patterns: Iterable[Pattern]) -> int:
        """Add those that are new; returns how many."""
        rows, added = len(self.kinds.demand), []
        for bin_type, counts in patterns:
            key = (bin_type, counts.tobytes())
            if key in self._known or not counts.any():
                continue
            self._known.add(key)
            at = np.flatnonzero(counts)
            index = np.r_[at, rows + bin_type].astype(np.int32)
            values = np.r_[counts[at], 1].astype(float)
            self._highs.addCol(float(self.kinds.cost[bin_type]), 0.0, highspy.kHighsInf, len(index), index, values)
            self.patterns.append((bin_type, counts))
            added.append(counts)
        if added:
            self.counts = np.vstack([self.counts, added])
        return len(added)

    def relax(self, demand: Ints, room: Ints, *, enough: float | None = None) -> Relaxed:
        """Solve over all contents for what is left to place in the bins that are left.

        With ``enough``, contents are searched for in full only while the value is above it; without, until the bound
        on whole numbers, ``lower``, meets the value.
        """
        self._set(demand, room)
        relaxed = self._solve()
        for _ in range(MOST_ROUNDS):
            added = self.add(self._quick(relaxed, demand, room))
            if not added and (enough is None or relaxed.value > enough) and self.full_searches > 0:
                added = self.add(self._full(relaxed, demand, room, is_root=enough is None))
                if enough is None and relaxed.is_complete and self.lower >= math.ceil(relaxed.value - 1e-6):
                    return relaxed
            if not added:
                return relaxed
            relaxed = self._solve()
        return relaxed

    def _quick(self, relaxed: Relaxed, demand: Ints, room: Ints) -> list[Pattern]:
        contents = [(k, a) for k in _left(room) for a in self.pricer.quick(k, relaxed.prices, demand)]
        return self._worthwhile(relaxed, contents)

    def _full(self, relaxed: Relaxed, demand: Ints, room: Ints, *, is_root: bool) -> list[Pattern]:
        """The best contents at these prices; for the whole demand they give a bound on the cost of any packing."""
        self.full_searches -= 1
        prices = np.clip(relaxed.prices, 0.0, self._never)
        worth = np.floor(prices * WORTH_UNIT).astype(np.int64)
        contents: list[Pattern] = []
        most = np.zeros(len(room), dtype=np.int64)
        for k in _left(room):
            found, most[k] = self.pricer.best(k, worth, demand)
            contents += [(k, a) for a in found]
        if is_root:
            self.lower = max(self.lower, priced_bound(worth, self.kinds, most))
        return self._worthwhile(relaxed, contents)

    def list_all(self, relaxed: Relaxed, demand: Ints, room: Ints, slack: float) -> list[Pattern]:
        """Contents that may be part of whole bins costing at most ``slack`` above the relaxation, where listable.

        A content whose worth falls short of its bin's cost by more than that can be in none (reduced-cost fixing).
        """
        least = [float(self.kinds.cost[k] - relaxed.type_prices[k]) - slack - 1e-6 for k in range(len(room))]
        return [(k, a) for k in _left(room) for a in self.pricer.all_from(k, relaxed.prices, demand, least[k])]

    def _worthwhile(self, relaxed: Relaxed, contents: list[Pattern]) -> list[Pattern]:
        """Those that are worth more than their bin costs."""
        gain = [a @ relaxed.prices + relaxed.type_prices[k] - self.kinds.cost[k] for k, a in contents]
        return [pattern for pattern, more in zip(contents, gain, strict=True) if more > TOLERANCE]

    def _set(self, demand: Ints, room: Ints) -> None:
        rows = np.arange(len(demand) + len(room), dtype=np.int32)
        lower = np.r_[demand, np.full(len(room), -highspy.kHighsInf)].astype(float)
        upper = np.r_[np.full(len(demand), highspy.kHighsInf), room].astype(float)
        self._highs.changeRowsBounds(len(rows), rows, lower, upper)
        if len(self.patterns):
            columns = np.arange(len(demand), len(demand) + len(self.patterns), dtype=np.int32)
            proper = (self.counts <= demand).all(axis=1)
            upper = np.where(proper, highspy.kHighsInf, 0.0)
            self._highs.changeColsBounds(len(columns), columns, np.zeros(len(columns)), upper)

    def _solve(self) -> Relaxed:
        self._highs.run()
        if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise SolveFailed(f"relaxation over bin contents: {self._highs.getModelStatus()}")
        solution, kinds = self._highs.getSolution(), len(self.kinds.demand)
        amounts, duals = np.array(solution.col_value), np.array(solution.row_dual)
        used = np.flatnonzero(amounts[kinds:] > TOLERANCE)
        return Relaxed(
            value=float(self._highs.getInfo().objective_function_value),
            prices=duals[:kinds],
            type_prices=duals[kinds:],
            used=tuple((int(p), float(amounts[kinds + p])) for p in used),
            is_complete=bool(amounts[:kinds].max(initial=0.0) < 1e-7),
        )


def _left(room: Ints) -> list[int]:
    """Types of which bins are left."""
    return [int(k) for k in np.flatnonzero(room)]


def solve_contents(
    kinds: Kinds, patterns: Sequence[Pattern], demand: Ints, room: Ints, *, most_cost: int, node_limit: int
) -> list[Pattern] | None:
    """Whole numbers of the contents given that cover the demand for at most so much; None when none was found.

    Source: HiGHS with a node limit; what it returns is counted again by the caller.
    """
    proper = [(k, a) for k, a in patterns if (a <= demand).all()]
    if not proper:
        return None
    highs = quiet_highs(mip_max_nodes=node_limit, objective_bound=float(most_cost) + 0.5, mip_rel_gap=0.0)
    for least in demand:
        highs.addRow(float(least), highspy.kHighsInf, 0, np.empty(0, np.int32), np.empty(0))
    for most in room:
        highs.addRow(-highspy.kHighsInf, float(most), 0, np.empty(0, np.int32), np.empty(0))
    for k, counts in proper:
        at = np.flatnonzero(counts)
        index, values = np.r_[at, len(demand) + k].astype(np.int32), np.r_[counts[at], 1].astype(float)
        highs.addCol(float(kinds.cost[k]), 0.0, float(room[k]), len(index), index, values)
        highs.changeColIntegrality(highs.getNumCol() - 1, highspy.HighsVarType.kInteger)
    costs = np.arange(len(proper), dtype=np.int32)
    highs.addRow(
        -highspy.kHighsInf, float(most_cost), len(costs), costs, np.array([float(kinds.cost[k]) for k, _ in proper])
    )
    highs.run()
    if highs.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    amounts = np.round(np.array(highs.getSolution().col_value)).astype(int)
    return [proper[p] for p in np.flatnonzero(amounts) for _ in range(int(amounts[p]))]
