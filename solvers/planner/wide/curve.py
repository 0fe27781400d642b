"""What a pool of a large fleet carries and costs by its size, as far as that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from solvers.planner.pools.cells import Floats


@dataclass(slots=True, kw_only=True, eq=False)
class Curve:
    """What a pool carries and costs at each size told apart, exact where it was asked for, else hopeful."""

    rate_per_s: dict[int, float] = field(default_factory=dict)  # of the whole pool
    run_usd_per_hour: dict[int, float] = field(default_factory=dict)

    def sizes(self, most: int) -> tuple[Floats, Floats]:
        """Load and running cost of 0…most; between known sizes the next larger's rate and the next smaller's draw."""
        known = np.array(sorted(self.rate_per_s))
        rate = np.array([self.rate_per_s[n] / n for n in known.tolist()])
        run = np.array([self.run_usd_per_hour[n] / n for n in known.tolist()])
        counts = np.arange(most + 1)
        above = np.minimum(np.searchsorted(known, counts), len(known) - 1)
        below = np.maximum(np.searchsorted(known, counts, side="right") - 1, 0)
        return counts * rate[above], counts * np.minimum(run[below], run[above])
