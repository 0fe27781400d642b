"""How well profiles foretell measured servers: the experiments of ``tests.bench_profiles`` and of the data tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from controller import silicon
from controller.silicon_steps import kv_tokens, open_server, step_curves
from solvers.calibration import DECODE_ONLY, Level, fit_levels, groups
from solvers.calibration_served import served_correction
from solvers.engine.closed_loop import Case, CaseBook, Correction, StepCurves
from solvers.engine.curves import Floats
from tests.silicon_rows import MeasuredRow, ServerKey, candidates, memory_fraction

ROUNDS = 4  # of each client, in fitting and in use; the real benchmark sends ten, whose first is a tenth of the mean
ENGINE_PULL, LEAF_PULL = 20.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Predictions of one experiment.

    Attributes
    ----------
    fitted : str
        What was fitted, on which rows.
    rows : (N,) int
        Which rows of the study were predicted; several draws may predict one more than once.
    predicted_s : (N, 2) float s
        Mean time to first token, mean time per output token.
    """

    name: str
    fitted: str
    rows: np.ndarray[Any, np.dtype[np.int64]]
    predicted_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Measured rows and the benchmark of each, ready to run; ``theirs_s`` is aiconfigurator's answer, nan for none."""

    rows: Sequence[MeasuredRow]
    book: CaseBook
    measured_s: Floats
    theirs_s: Floats

    def keys(self, of: Callable[[MeasuredRow], Hashable]) -> list[Hashable]:
        """One key a row."""
        return [of(row) for row in self.rows]


def say(text: str) -> None:
    """Show progress beside the results."""
    print(text, file=sys.stderr, flush=True)


def make_study(rows: Sequence[MeasuredRow], *, jobs: int = 1) -> Study:
    """Tabulate every server of the rows; half a second each."""
    servers = sorted({row.key for row in rows})
    say(f"{len(rows)} rows of {len(servers)} servers: reading their tables")
    work = (delayed(_tabulate)(key, [row for row in rows if row.key == key]) for key in servers)
    found = Parallel(n_jobs=jobs, return_as="generator")(work)
    curves: dict[ServerKey, StepCurves] = {}
    rooms: dict[ServerKey, float] = {}
    theirs: dict[ServerKey, list[tuple[float, float]]] = {}
    for number, (key, (own, room, answers)) in enumerate(zip(servers, found, strict=True), start=1):
        curves[key], rooms[key], theirs[key] = own, room, answers
        if number % 10 == 0 or number == len(servers):
            say(f"  {number} of {len(servers)} servers")
    roomy = [replace(row, server=replace(row.server, kv_tokens=rooms[row.key])) for row in rows]
    cases = [Case(curves=curves[row.key], server=row.server, load=row.load) for row in roomy]
    answers_of = {key: iter(answers) for key, answers in theirs.items()}
    return Study(
        rows=roomy,
        book=CaseBook(cases, rounds=ROUNDS),
        measured_s=np.array([(row.ttft_s, row.tpot_s) for row in rows]),
        theirs_s=np.array([next(answers_of[row.key]) for row in rows]),
    )


def _tabulate(key: ServerKey, rows: Sequence[MeasuredRow]) -> tuple[StepCurves, float, list[tuple[float, float]]]:
    tables = open_server(candidates(key), key.system, key.engine)
    room = kv_tokens(tables, key.system, *memory_fraction(key))
    return step_curves(tables), room * key.data_parallel, list(_aiconfigurator(key, rows))


def _aiconfigurator(key: ServerKey, rows: Sequence[MeasuredRow]) -> Iterator[tuple[float, float]]:
    """What ``run_agg`` of the package says for each row, from the engine's own tables."""
    missing = (float("nan"), float("nan"))
    opened = _open_theirs(key)
    for row in rows:
        yield missing if opened is None else _run_agg(*opened, row)


def _open_theirs(key: ServerKey) -> tuple[Any, Any, Any] | None:
    module = silicon.open_module
    for way in candidates(key):
        try:
            config = module("sdk.config_builders").build_model_config(pp_size=1, **way.options)
            model = module("sdk.models").get_model(way.model, config, key.engine)
            tables = module("sdk.perf_database").get_database(key.system, key.engine, "current")
            backend = module("sdk.backends.factory").get_backend(key.engine)
            _ask(backend, model, tables, 1, 1024, 128)
        except silicon.MISSES:
            continue
        return backend, model, tables
    return None


def _run_agg(backend: Any, model: Any, tables: Any, row: MeasuredRow) -> tuple[float, float]:
    batch = max(1, row.load.clients // row.key.data_parallel)
    try:
        return _ask(backend, model, tables, batch, *row.shape)
    except silicon.MISSES:
        return float("nan"), float("nan")


def _ask(backend: Any, model: Any, tables: Any, batch: int, prompt: int, output: int) -> tuple[float, float]:
    config = silicon.open_module("sdk").RuntimeConfig(batch_size=batch, isl=prompt, osl=output)
    found = backend.run_agg(model, tables, config, ctx_tokens=prompt).get_result_dict()
    return found["ttft"] / 1e3, found["tpot"] / 1e3


# ---------------------------------------------------------------- experiments


def by_engine(study: Study) -> list[Level]:
    """One correction for all rows, and on top of it what a decode step costs more or less in each engine."""
    return [
        Level(keys=[0] * len(study.rows), pull=0.5),
        Level(keys=study.keys(lambda row: row.key.engine), free=DECODE_ONLY, pull=ENGINE_PULL),
    ]


def by_leaf(study: Study) -> list[Level]:
    """The same, and all five numbers again for each engine, system, precision and model."""
    return [*by_engine(study), Level(keys=study.keys(lambda row: row.key.leaf), pull=LEAF_PULL)]


def theirs(study: Study) -> Found:
    """The package's own estimate."""
    covered = np.flatnonzero(np.isfinite(study.theirs_s).all(axis=1))
    fitted = "nothing by us; run_agg of the package, from the engine's own tables"
    return Found(name="aiconfigurator", fitted=fitted, rows=covered, predicted_s=study.theirs_s[covered])


def unfitted(study: Study) -> Found:
    """Our simulation on the tables as they are."""
    every = np.arange(len(study.rows))
    predicted = study.book.run(Correction().as_array())[:, :2]
    return Found(name="nothing fitted", fitted="nothing", rows=every, predicted_s=predicted)


def shipped(study: Study) -> Found:
    """The corrections of ``solvers.calibration_served``, as users get them: these rows are what they were fitted to."""
    every = np.arange(len(study.rows))
    corrections = np.array([served_correction(row.key.engine).as_array() for row in study.rows])
    predicted = study.book.run(corrections)[:, :2]
    return Found(
        name="as served",
        fitted="the constants in solvers.calibration_served, on these rows",
        rows=every,
        predicted_s=predicted,
    )


def left_out(study: Study, name: str, of: Callable[[MeasuredRow], Hashable], levels: Sequence[Level]) -> Found:
    """Predict each group by what was fitted on all the others."""
    every, corrections = np.arange(len(study.rows)), np.zeros((len(study.rows), 5))
    for group, members in groups(study.keys(of)).items():
        training = np.setdiff1d(every, members)
        corrections[members] = fit_levels(study.book, study.measured_s, training.tolist(), levels)[members]
        say(f"  {name}: {group}, fitted on the other {len(training)} rows")
    predicted = study.book.run(corrections)[:, :2]
    fitted = "5 numbers on all other rows, 2 of them again for each engine"
    if len(levels) > 2:
        fitted += ", all 5 for each (engine, system, precision, model)"
    return Found(name=name, fitted=fitted, rows=every, predicted_s=predicted)


def few_rows(study: Study, count: int, draws: int, seed: int) -> Found:
    """Fit on so many rows of each leaf, drawn at random, and predict the rest."""
    levels, leaves = by_leaf(study), groups(study.keys(lambda row: row.key.leaf))
    rows, predicted = [], []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        training = np.concatenate([rng.permutation(members)[:count] for members in leaves.values()])
        rest = np.setdiff1d(np.arange(len(study.rows)), training)
        corrections = fit_levels(study.book, study.measured_s, sorted(training.tolist()), levels)
        rows.append(rest)
        predicted.append(study.book.run(corrections[rest], rest.tolist())[:, :2])
        say(f"  {count} rows of each leaf: draw {draw + 1} of {draws}")
    fitted = f"5 numbers on {count} rows of each of {len(leaves)} leaves, 2 again by engine, 5 by leaf; {draws} draws"
    return Found(
        name=f"{count} rows a leaf", fitted=fitted, rows=np.concatenate(rows), predicted_s=np.concatenate(predicted)
    )


def repeats(study: Study) -> Found:
    """Each row predicted by the first repeat of the same configuration: what no model can beat."""
    rows, predicted = [], []
    for members in groups(study.keys(lambda row: (row.key, row.load))).values():
        for later in members[1:]:
            rows.append(later)
            predicted.append(study.measured_s[members[0]])
    shaped = np.array(predicted).reshape(-1, 2)
    return Found(name="repeats (floor)", fitted="nothing", rows=np.array(rows, np.int64), predicted_s=shaped)


# ---------------------------------------------------------------- errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Absolute relative errors: median and 90th percentile."""

    rows: int
    tpot_median: float
    tpot_p90: float
    ttft_median: float
    ttft_p90: float


def errors(study: Study, found: Found, keep: Callable[[MeasuredRow], bool] = lambda _row: True) -> Errors | None:
    """Errors of an experiment on some of its rows; None when there is none."""
    chosen = np.array([keep(study.rows[row]) for row in found.rows], bool)
    if not chosen.any():
        return None
    off = np.abs(found.predicted_s[chosen] / study.measured_s[found.rows[chosen]] - 1.0)
    (ttft, tpot), (ttft_p90, tpot_p90) = np.median(off, axis=0), np.quantile(off, 0.9, axis=0)
    return Errors(
        rows=int(chosen.sum()),
        tpot_median=float(tpot),
        tpot_p90=float(tpot_p90),
        ttft_median=float(ttft),
        ttft_p90=float(ttft_p90),
    )


def quick_rows(rows: Sequence[MeasuredRow]) -> list[MeasuredRow]:
    """A subset that covers every leaf: one size of server, up to 64 clients."""
    sizes = {leaf: sorted({row.key for row in rows if row.key.leaf == leaf}) for leaf in {row.key.leaf for row in rows}}
    middle = {leaf: keys[len(keys) // 2] for leaf, keys in sizes.items()}
    return [row for row in rows if row.key == middle[row.key.leaf] and row.load.clients <= 64]
