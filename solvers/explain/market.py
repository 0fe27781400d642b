"""A problem with prices on what its services share: bounds from below, plans from above, and no integer search.

Small fleets are priced by whole ways of running each service (``planner.menus.compose``), larger ones by the linear
relaxation. Both give a value that no plan undercuts and prices at which the shared limits would be kept by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.errors import SolveFailed
from solvers.planner.menus.compose import Composer, shared_rows
from solvers.planner.model.relax import Arrays, Solution, solve_linear, solve_whole, state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.places import place
from solvers.planner.pools.caps import one_level
from solvers.planner.pools.cells import Cells, Floats, build_cells
from solvers.planner.pools.options import Options, find_options
from solvers.planner.pools.tally import Worth, best_of
from solvers.planner.proof.bound import dual_bound

SPLIT_CELLS = 1500  # beyond so many cells bays are not told apart by what runs there
MOST_NODES = 200  # of the search for one way for each service
GAP_SHARE = 0.3  # of the gap that the policy allows, which prices may leave open
FINE_GPUS = 10_000  # of a fleet; sizing every pool at many sizes is most of the time of a larger one
PRICINGS = 2  # rounds that add ways when room changes a little


@dataclass(slots=True, kw_only=True, eq=False)
class Market:
    """``room`` (R,) is that of the shared rows; ``bound_usd_per_hour`` lies below every plan's objective."""

    desk: Desk
    cells: Cells
    arrays: Arrays
    relaxed: Solution
    composer: Composer | None
    rows: Sequence[int]
    bound_usd_per_hour: float

    @classmethod
    def of(cls, desk: Desk) -> Market:
        """Price a problem.

        Raises
        ------
        SolveFailed
            The relaxation gave no prices.
        """
        desk, fair_ratio = _at_every_size(desk), desk.penalties.fair_ratio
        cells = build_cells(desk.problem, desk.options, fair_ratio=fair_ratio)
        if len(cells.cell_pool) > SPLIT_CELLS:
            cells = build_cells(desk.problem, desk.options, split_running=False, fair_ratio=fair_ratio)
        arrays, policy = state(cells), desk.problem.policy
        relaxed = solve_linear(arrays, time_limit_s=policy.time_limit_s)
        if relaxed.duals is None:
            raise SolveFailed("the relaxation gave no prices")
        gap = GAP_SHARE * policy.relative_gap
        composer = Composer.of(cells, arrays, desk.sizer, gap=gap, seconds=policy.time_limit_s)
        whole = composer.bound(relaxed.duals, arrays, lambda bound: False) if composer else -np.inf
        return cls(
            desk=desk,
            cells=cells,
            arrays=arrays,
            relaxed=relaxed,
            composer=composer,
            rows=shared_rows(arrays),
            bound_usd_per_hour=max(0.0, dual_bound(arrays, relaxed.duals), whole),
        )

    @property
    def room(self) -> Floats:
        """Room of the shared rows as it is; (R,)."""
        room: Floats = self.arrays.row_upper[list(self.rows)]
        return room

    @property
    def names(self) -> list[tuple[str, str]]:
        """(limit, subject) of the shared rows."""
        return [self.arrays.rows[row] for row in self.rows]

    def priced(self, room: Floats) -> tuple[float, Floats]:
        """What the relaxed choice is worth with other room, USD per hour, and the prices of the rows there; (R,)."""
        if self.composer is not None:
            return self.composer.relaxed(room, PRICINGS)
        most = self.arrays.row_upper.copy()
        most[list(self.rows)] = room
        solved = solve_linear(replace(self.arrays, row_upper=most), time_limit_s=self.desk.problem.policy.time_limit_s)
        if solved.duals is None:
            raise SolveFailed("the relaxation gave no prices")
        return solved.value, np.maximum(0.0, -solved.duals[list(self.rows)])

    def best(self, starts: Sequence[Worth]) -> Worth:
        """The best plan at hand: the starts, or a rounding of what the prices lead to."""
        return best_of([*starts, *self._rounded()])

    def _rounded(self) -> Iterator[Worth]:
        replicas = self._whole_ways()
        if replicas is None:
            replicas = np.floor(self.relaxed.x[self.arrays.columns["replicas"]] + 1e-6)
        yield self.desk.repaired(one_level(place(self.cells, replicas).counts))

    def _whole_ways(self) -> Floats | None:
        """Choose one of the known ways for each service; (C,), None without ways."""
        if self.composer is None:
            return None
        choice = self.composer.choice()
        chosen = solve_whole(
            replace(choice, whole=np.ones(len(choice.cost), dtype=bool)),
            relative_gap=GAP_SHARE * self.desk.problem.policy.relative_gap,
            time_limit_s=self.desk.problem.policy.time_limit_s,
            node_limit=MOST_NODES,
            run=self.desk.crew.whole,
        )
        sums: Floats = sum(
            (round(float(x)) * way.replicas for x, way in zip(chosen.x, self.composer.ways, strict=True)),
            np.zeros(len(self.cells.cell_pool)),
        )
        return sums


def _at_every_size(desk: Desk) -> Desk:
    """Tell the sizes of pools apart, as long as there are not too many: a bound from the largest alone is weak."""
    if sum(node.gpus_usable for node in desk.problem.nodes) > FINE_GPUS:
        return desk
    known = {option.pool for option in desk.options.pools}
    fine = find_options(desk.problem, desk.sizer, wanted=desk.wanted)
    pools = tuple(option for option in fine.pools if option.pool in known)
    return replace(desk, options=Options(pools=pools, unfit=desk.options.unfit))
