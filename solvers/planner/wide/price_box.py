"""The next prices in a large fleet: the best that the ways known so far allow within a box around the best so far.

While ways are few, the duals of their relaxed choice swing between nothing and the penalties. Kept within a box
(Marsten, Hogan and Blankenship 1975) the choice says more: what lacks room is bought at the box's upper prices, what is
left is sold at its lower ones, and either the bound rises there or the pricing finds ways that nobody knew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from solvers.planner.model.relax import Arrays, solve_linear
from solvers.planner.pools.cells import Floats

TRADED = 1e-6  # of a row's room; less is rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoxStep:
    """``value`` of the choice with room bought and sold; ``is_free`` when none was: the box kept nothing out."""

    value: float
    prices: Floats
    is_free: bool


def box_step(choice: Arrays, room: Floats, low: Floats, high: Floats, *, time_limit_s: float) -> BoxStep:
    """Find the prices between ``low`` and ``high`` at which the known ways bound the objective best.

    Parameters
    ----------
    choice : Arrays
        The relaxed choice; its last rows are those of the ``room``, (R,).
    low, high : (R,) float
        USD per hour and unit, at least 0.
    """
    count = len(choice.cost)
    solved = solve_linear(_traded(choice, len(room), low, high), time_limit_s=time_limit_s)
    duals = np.zeros(len(choice.row_upper)) if solved.duals is None else solved.duals
    prices: Floats = np.clip(-duals[len(duals) - len(room) :], low, high)
    traded = solved.x[count : count + len(room)] + solved.x[count + len(room) :]
    is_free = bool(np.all(traded * (low + high) <= TRADED * np.maximum(1.0, np.abs(room)) * (low + high)))
    return BoxStep(value=solved.value, prices=prices, is_free=is_free)


def _traded(choice: Arrays, rows: int, low: Floats, high: Floats) -> Arrays:
    """Let room be bought at ``high`` and sold at ``low``."""
    above = sp.csc_array((len(choice.row_upper) - rows, rows))
    unit = sp.csc_array(sp.vstack([above, sp.eye_array(rows)]))
    return replace(
        choice,
        cost=np.concatenate([choice.cost, high, -low]),
        matrix=sp.csc_array(sp.hstack([choice.matrix, -unit, unit])),
        lower=np.concatenate([choice.lower, np.zeros(2 * rows)]),
        upper=np.concatenate([choice.upper, np.full(2 * rows, np.inf)]),
        whole=np.concatenate([choice.whole, np.zeros(2 * rows, dtype=bool)]),
    )
