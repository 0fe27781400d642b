"""What ranges of sizes are worth in fleets too large for menus: each alone, at the prices of a plan at hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.certificate import Certificate
from solvers.planner.menus.compose import shared_rows
from solvers.planner.model.relax import state
from solvers.planner.pools.cells import build_cells
from solvers.planner.pools.crew import Crew
from solvers.planner.pools.options import Options
from solvers.planner.pools.sizer import Sizer
from solvers.planner.proof.certify import known_duals
from solvers.planner.wide.wide import Wide
from solvers.problem import Problem

LOOKS = 3  # sizes that a value rests on are exact when it is looked at next; more change nothing that decides


@dataclass(frozen=True, slots=True, kw_only=True)
class WideRanges:
    """Services and all ranges of their sizes as services of one problem, see ``cuts.ranged_problem``."""

    problem: Problem
    options: Options
    sizer: Sizer
    crew: Crew

    def values(self, known: Certificate) -> dict[str, float]:
        """Least value of each at the prices of what services share, USD per hour; what runs for it is not counted."""
        cells = build_cells(self.problem, self.options)
        arrays, policy = state(cells), self.problem.policy
        wide = Wide.of(cells, arrays, self.sizer, self.crew, gap=policy.relative_gap, seconds=policy.time_limit_s)
        wide.begin(np.maximum(0.0, -known_duals(cells, arrays, known)[shared_rows(arrays)]))
        for _ in range(LOOKS):
            wide.first()
        stops = [stocks.stop_all_usd_per_hour for stocks in wide.stocks]
        return {s.name: float(v) for s, v in zip(cells.services, wide.values - np.array(stops), strict=True)}
