"""Bend an engine profile to a user's measured benchmarks: few rows, five bounded numbers, errors before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.calibration import UNSEEN, fit
from solvers.engine import EngineProfile, ProfileSource, check_profile
from solvers.engine.closed_loop import Case, CaseBook, Correction, Load, Server, curves_of_profile
from solvers.engine.curves import Floats
from solvers.errors import InvalidInput

ROUNDS = 4  # of each client in the replay; equal in fitting and in use
PULL = 0.3  # what leaving the parent costs: about a third of one row
MOST_LEFT_OUT = 24  # rows up to which each is also predicted from the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One closed-loop benchmark: mean time to first token and mean time per output token; None where not measured."""

    load: Load
    ttft_s: float | None
    tpot_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Misses:
    """Absolute relative errors of one prediction over the rows, as medians and largest; nan where nothing is known."""

    tpot_median: float
    tpot_worst: float
    ttft_median: float
    ttft_worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A profile bent to measurements.

    Attributes
    ----------
    before_s, after_s : (N, 2) float s
        TTFT and TPOT that the old and the new profile give for each measured row.
    left_out_s : (N, 2) float s, optional
        The same from a fit without that row: what to expect of rows that were not measured.
    """

    profile: EngineProfile
    correction: Correction
    before_s: Floats
    after_s: Floats
    left_out_s: Floats | None
    measured_s: Floats

    def misses(self, predicted_s: Floats) -> Misses:
        """Errors of a prediction against what was measured."""
        off = np.abs(predicted_s / self.measured_s - 1.0)
        medians, worst = ([float(pick(column)) for column in _known(off)] for pick in (_median, _largest))
        return Misses(tpot_median=medians[1], tpot_worst=worst[1], ttft_median=medians[0], ttft_worst=worst[0])


def calibrate(
    base: EngineProfile,
    rows: Sequence[Measurement],
    server: Server,
    *,
    parent: Correction = UNSEEN,
    opening_ratio: float = 0.1,
    name: str = "",
) -> Calibrated:
    """Fit five bounded numbers to measured benchmarks and write them into a profile.

    Parameters
    ----------
    base : EngineProfile
        Where to start: tables or a roofline.
    server : Server
        How the measured server batches; its KV room is the profile's.
    parent : Correction
        Where the fit starts and what it stays near: what is known of the engine.
    opening_ratio : float
        One over the requests of each client in the benchmark.
    name : str
        Of the measurements, for the profile's ``source_detail``.

    Raises
    ------
    InvalidInput
        When there is no row, or a row lies beyond the profile's tables.
    """
    _check_rows(base, rows)
    settings = replace(server, kv_tokens=float(base.kv_capacity_tokens), ranks=1)
    measured = np.array([[_or_nan(row.ttft_s), _or_nan(row.tpot_s)] for row in rows])
    book = _book(base, rows, settings, opening_ratio)
    every = list(range(len(rows)))
    found = fit(book, measured, every, parent.as_array(), pull=PULL)
    correction = Correction(**dict(zip(Correction.__slots__, found.tolist(), strict=True)))
    profile = corrected(base, correction, server.budget_tokens)
    result = Calibrated(
        profile=profile,
        correction=correction,
        before_s=book.run(Correction().as_array())[:, :2],
        after_s=_book(profile, rows, settings, opening_ratio).run(Correction().as_array())[:, :2],
        left_out_s=_left_out(book, measured, every, parent.as_array()) if 2 <= len(rows) <= MOST_LEFT_OUT else None,
        measured_s=measured,
    )
    return replace(result, profile=replace(profile, source_detail=_detail(base, result, len(rows), name)))


def corrected(base: EngineProfile, correction: Correction, budget_tokens: int) -> EngineProfile:
    """Write a correction into a profile's tables; a prompt pays the front end once and the overhead in every step."""
    steps = [math.ceil(tokens / budget_tokens) for tokens in base.prefill_tokens]
    prefill = tuple(
        round(correction.prefill_ratio * time + correction.front_end_s + count * correction.prefill_overhead_s, 6)
        for time, count in zip(base.prefill_s, steps, strict=True)
    )
    decode = tuple(
        tuple(round(correction.decode_ratio * time + correction.decode_overhead_s, 6) for time in row)
        for row in base.decode_step_s
    )
    profile = replace(base, source=ProfileSource.MEASURED, prefill_s=prefill, decode_step_s=decode)
    check_profile(profile)
    return profile


def _book(profile: EngineProfile, rows: Sequence[Measurement], server: Server, opening_ratio: float) -> CaseBook:
    curves = curves_of_profile(profile)
    cases = [Case(curves=curves, server=server, load=row.load) for row in rows]
    return CaseBook(cases, rounds=ROUNDS, opening_ratio=opening_ratio)


def _left_out(book: CaseBook, measured: Floats, every: Sequence[int], parent: Floats) -> Floats:
    predicted = np.zeros_like(measured)
    for row in every:
        others = [other for other in every if other != row]
        found = fit(book, measured, others, parent, pull=PULL)
        predicted[row] = book.run(found, [row])[0, :2]
    return predicted


def _check_rows(base: EngineProfile, rows: Sequence[Measurement]) -> None:
    subject = f"calibration of {base.key.model} on {base.key.gpu_class}/{base.key.config.label}"
    if not rows:
        raise InvalidInput(subject, "", "there is no measured row", "give at least four, over loads and lengths")
    for number, row in enumerate(rows, start=1):
        load, longest = row.load, row.load.prompt_tokens + row.load.output_tokens
        limits = (
            ("prompt tokens", load.prompt_tokens, base.prefill_tokens[-1]),
            ("tokens of a request", longest, min(base.decode_contexts[-1], base.kv_capacity_tokens)),
        )
        for what, value, limit in limits:
            if value > limit:
                problem = f"row {number} has {value} {what}, the profile ends at {limit}"
                raise InvalidInput(subject, "", problem, "leave the row out, or start from a wider profile")


def _detail(base: EngineProfile, found: Calibrated, rows: int, name: str) -> str:
    old, new, change = found.misses(found.before_s), found.misses(found.after_s), found.correction
    words = (
        f"{rows} benchmarks of {name or 'a server'}: decode x{change.decode_ratio:.2f}"
        f" + {1e3 * change.decode_overhead_s:.2f} ms, prefill x{change.prefill_ratio:.2f}"
        f" + {1e3 * change.prefill_overhead_s:.1f} ms a step + {1e3 * change.front_end_s:.1f} ms a request;"
        f" median error of TPOT {old.tpot_median:.1%} to {new.tpot_median:.1%},"
        f" of TTFT {old.ttft_median:.1%} to {new.ttft_median:.1%}; from {base.source} profile: {base.source_detail}"
    )
    return words[:500]


def _known(off: Floats) -> list[Floats]:
    return [column[np.isfinite(column)] for column in off.T]


def _median(values: Floats) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _largest(values: Floats) -> float:
    return float(values.max()) if values.size else float("nan")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
