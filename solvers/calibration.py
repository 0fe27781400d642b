"""Fit few bounded numbers of a server's model to measured benchmarks.

What is fitted is a ``Correction``; what is compared are the logarithms of mean time to first token and mean time per
output token. The loss of one row is bounded, so that rows which hide a setting cannot pull the others along.
A fit starts from a parent's correction and pays for leaving it: a handful of rows bends what they can and keeps the
rest. Groups are fitted in levels, each from its parent: all rows, then an engine's, then what one user measured.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from solvers.engine.closed_loop import CaseBook, Correction
from solvers.engine.curves import Floats

LOWEST = Correction(decode_ratio=0.4, prefill_ratio=0.5)
HIGHEST = Correction(
    decode_ratio=1.8, decode_overhead_s=0.004, prefill_ratio=3.5, prefill_overhead_s=0.04, front_end_s=0.025
)
UNSEEN = Correction(decode_overhead_s=0.0008, prefill_ratio=1.2, prefill_overhead_s=0.004, front_end_s=0.001)
"""Where a first fit starts: small costs that every server pays and no kernel table holds."""

SCALE = 0.15  # log error at which a row has reached half of its bounded loss
TTFT_WEIGHT, TPOT_WEIGHT = 0.5, 1.0  # a queue amplifies every error in the time to first token
STEP = 0.04  # of a parameter's range, for slopes: the loop is not smooth below that
FEWEST_ROWS = 4  # of a group that gets its own fit

RATIOS = np.array([True, False, True, False, False])
FLOOR = np.where(RATIOS, LOWEST.as_array(), 1.0)
CEILING = HIGHEST.as_array()

DECODE_ONLY = (True, True, False, False, False)
EVERYTHING = (True, True, True, True, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of groups: rows with the same key share a correction; ``free`` says which of its five numbers move.

    ``pull`` is how dear it is to leave the parent: the loss of so many bounded rows for the whole range.
    """

    keys: Sequence[Hashable]
    free: tuple[bool, bool, bool, bool, bool] = EVERYTHING
    pull: float = 1.0


def to_unit(correction: Floats) -> Floats:
    """Correction as numbers between 0 and 1: ratios by their logarithm, overheads by their root."""
    logs = np.log(np.where(RATIOS, correction, 1.0) / FLOOR)  # an overhead may be 0
    return np.asarray(np.where(RATIOS, logs / np.log(CEILING / FLOOR), np.sqrt(correction / CEILING)))


def from_unit(unit: Floats) -> Floats:
    """Undo ``to_unit``, kept within the bounds."""
    unit = np.clip(unit, 0.0, 1.0)
    return np.asarray(np.where(RATIOS, FLOOR * (CEILING / FLOOR) ** unit, CEILING * unit**2))


def fit(
    book: CaseBook,
    measured: Floats,
    rows: Sequence[int],
    parent: Floats,
    *,
    free: Sequence[bool] = EVERYTHING,
    pull: float = 1.0,
) -> Floats:
    """Fit one correction to some rows of a book.

    Parameters
    ----------
    measured : (rows of the book, 2) float s
        Mean time to first token, mean time per output token; nan where it was not measured.
    rows : sequence of int
        Which of them to look at.
    parent : (5,) float
        Correction to start from and to stay near.

    Returns
    -------
    (5,) float
    """
    chosen, wanted = np.asarray(rows, np.int64), np.log(measured[np.asarray(rows, np.int64)])
    moving, start = np.asarray(free, bool), to_unit(parent)
    known = np.isfinite(wanted)

    def residuals(moved: Floats) -> Floats:
        unit = start.copy()
        unit[moving] = moved
        error = np.log(book.run(from_unit(unit), rows)[:, :2]) - wanted
        scaled = np.where(known, error, 0.0) / SCALE
        return np.concatenate([scaled.ravel(), np.sqrt(pull) * (moved - start[moving])])

    def loss(squares: Floats) -> Floats:
        return _bounded(squares, len(chosen))

    inside = np.clip(start[moving], 0.01, 0.99)
    found = least_squares(
        residuals, inside, bounds=(0.0, 1.0), loss=loss, diff_step=STEP, x_scale=1.0, xtol=2e-3, ftol=1e-3, max_nfev=15
    )
    unit = start.copy()
    unit[moving] = found.x
    return from_unit(unit)


def _bounded(squares: Floats, rows: int) -> Floats:
    """Loss z/(1+z) of the rows, weighted, with its slopes; the last residuals, the price of leaving home, are plain."""
    weight = np.ones_like(squares)
    weight[: 2 * rows : 2], weight[1 : 2 * rows : 2] = TTFT_WEIGHT, TPOT_WEIGHT
    shape = np.zeros_like(squares)
    shape[: 2 * rows] = 1.0
    over = 1.0 + shape * squares
    return np.array([weight * squares / over, weight / over ** (2.0 * shape), -2.0 * weight * shape / over**3])


def fit_levels(book: CaseBook, measured: Floats, training: Sequence[int], levels: Sequence[Level]) -> Floats:
    """Fit level after level on the training rows; every row of the book gets its group's correction.

    A group without enough training rows keeps its parent's.

    Returns
    -------
    (rows of the book, 5) float
    """
    corrections = np.tile(UNSEEN.as_array(), (len(book), 1))
    trained = np.zeros(len(book), bool)
    trained[np.asarray(training, np.int64)] = True
    for level in levels:
        for members in groups(level.keys).values():
            rows = [row for row in members if trained[row]]
            if len(rows) >= FEWEST_ROWS:
                corrections[members] = fit(
                    book, measured, rows, corrections[members[0]], free=level.free, pull=level.pull
                )
    return corrections


def groups(keys: Sequence[Hashable]) -> Mapping[Hashable, list[int]]:
    """Rows by their key, in the order of first appearance."""
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return found
