"""How well profiles agree with measurements: ``python -m tests.bench_profiles``.

The default compares our simulation of a benchmark, on the kernel tables of ``aiconfigurator-core``, with every row of
``silicon_train.csv``, beside that package's own estimate on the same rows. Errors are median and 90th percentile of
|predicted / measured - 1| in percent. Nothing is fitted per row; each table says what was fitted and on which rows.
The measured files are read from ``$PENSTOCK_DATA`` or ``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from controller.profiles_imports import import_tables, left_out_errors
from controller.tables import MISSING, Cell, render_table
from solvers.engine.curves import Floats
from tests.silicon_rows import MeasuredRow, read_rows
from tests.silicon_study import (
    Errors,
    Found,
    Study,
    by_engine,
    by_leaf,
    errors,
    few_rows,
    left_out,
    make_study,
    quick_rows,
    repeats,
    say,
    shipped,
    theirs,
    unfitted,
)

DATA = Path(os.environ.get("PENSTOCK_DATA") or Path(__file__).parents[2] / "shared" / "data")
SLICES: dict[str, Callable[[MeasuredRow], str]] = {
    "system": lambda row: row.key.system,
    "engine": lambda row: row.key.engine,
    "model": lambda row: row.key.family,
    "system, engine and model": lambda row: f"{row.key.system} {row.key.engine} {row.key.family}",
}
HEADERS = ("ROWS", "TPOT", "P90", "TTFT", "P90")


def experiments(study: Study, args: argparse.Namespace) -> Iterator[Found]:
    """Everything that is compared."""
    yield theirs(study)
    yield unfitted(study)
    yield shipped(study)
    yield left_out(study, "model left out", lambda row: row.key.family, by_engine(study))
    yield left_out(study, "system left out", lambda row: row.key.system, by_engine(study))
    for count in args.few:
        yield few_rows(study, count, args.draws, args.seed)
    yield left_out(study, "shape left out", lambda row: row.shape, by_leaf(study))
    yield repeats(study)


def is_clean(row: MeasuredRow) -> bool:
    """Whether the model is not DeepSeek, a fifth of whose rows hide a setting (repeats differ by half)."""
    return row.key.family != "DeepSeek"


def overall(study: Study, found: Sequence[Found]) -> str:
    """One row for each experiment: all rows, and those without DeepSeek."""
    rows: list[tuple[Cell, ...]] = [
        (each.name, *cells(errors(study, each)), *cells(errors(study, each, is_clean)))
        for each in (*found, *on_rows_of(found[0], found[1:]))
    ]
    return render_table(("EXPERIMENT", *HEADERS, *(f"{h} -DS" for h in HEADERS)), rows)


def on_rows_of(first: Found, others: Sequence[Found]) -> list[Found]:
    """Experiments that predict every row once, on the rows of another alone."""
    keep = set(first.rows.tolist())
    return [
        replace(each, name=f"{each.name} *", rows=each.rows[chosen], predicted_s=each.predicted_s[chosen])
        for each in others
        if len(set(each.rows.tolist())) == len(each.rows) > len(keep)
        for chosen in [np.array([row in keep for row in each.rows])]
    ]


def cells(found: Errors | None) -> tuple[Cell, ...]:
    """Errors in percent."""
    if found is None:
        return (MISSING,) * 5
    shares = (found.tpot_median, found.tpot_p90, found.ttft_median, found.ttft_p90)
    return (found.rows, *(round(100.0 * share, 1) for share in shares))


def sliced(study: Study, found: Sequence[Found], of: Callable[[MeasuredRow], str]) -> str:
    """One row for each part of the data, TPOT and TTFT of each experiment as median/p90."""
    names = sorted({of(row) for row in study.rows})
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        parts = [errors(study, each, lambda row, name=name: of(row) == name) for each in found]  # type: ignore[misc]
        rows.append((name, parts[1].rows if parts[1] else 0, *(_pair(part) for part in parts)))
    return render_table(("PART", "ROWS", *(each.name.upper() for each in found)), rows)


def _pair(found: Errors | None) -> str:
    if found is None:
        return MISSING
    tpot, ttft = (found.tpot_median, found.tpot_p90), (found.ttft_median, found.ttft_p90)
    return f"{100 * tpot[0]:.1f}/{100 * tpot[1]:.0f}, {100 * ttft[0]:.1f}/{100 * ttft[1]:.0f}"


def to_table(study: Study, found: Sequence[Found]) -> str:
    """Everything for people."""
    lines = [
        "Errors in percent, median and p90; -DS: without DeepSeek; *: on the rows of aiconfigurator.",
        "",
        overall(study, found),
        "",
    ]
    lines += [f"{each.name}: fitted {each.fitted}" for each in found]
    chosen = [each for each in found if not each.name.startswith(("repeats", "system left", "4 rows"))]
    for name, of in SLICES.items():
        lines += ["", f"By {name}; TPOT median/p90, TTFT median/p90", "", sliced(study, chosen, of)]
    return "\n".join(lines)


def to_json(study: Study, found: Sequence[Found]) -> str:
    """Everything for programs."""

    def part(each: Found, keep: Callable[[MeasuredRow], bool]) -> dict[str, float] | None:
        held = errors(study, each, keep)
        return asdict(held) if held else None

    data = [
        {
            "experiment": each.name,
            "fitted": each.fitted,
            "all": part(each, lambda _row: True),
            "withoutDeepSeek": part(each, is_clean),
            "by": {
                name: {
                    value: part(each, lambda row, of=of, value=value: of(row) == value)  # type: ignore[misc]
                    for value in sorted({of(row) for row in study.rows})
                }
                for name, of in SLICES.items()
            },
        }
        for each in found
    ]
    return json.dumps(data, indent=1)


IMPORTED = ("splitwise_perf_model.csv", "helix")
IMPORT_HEADERS = ("PROFILE", "POINTS", "PREFILL", "P90", "DECODE", "P90", "BETWEEN PREFILL", "MAX", "DECODE", "MAX")


def imports(folder: Path, output: str) -> str:
    """Errors of imported profiles at their own points, and between them when every second knot is left out."""
    rows: list[tuple[Cell, ...]] = []
    for name in IMPORTED:
        for found in import_tables(folder / name):
            key = found.profile.key
            own = [np.abs(found.errors(of_prefill=which)) for which in (True, False)]
            between = [np.abs(each) for each in left_out_errors(found.profile)]
            shares = [
                *(f(each) for each in own for f in (np.median, _p90)),
                *(f(b) for b in between for f in (np.median, np.max)),
            ]
            label = f"{key.model} {key.gpu_class} {key.config.label} {key.config.engine}"
            rows.append((label, len(found.points), *(round(100 * float(share), 1) for share in shares)))
    if output == "json":
        return json.dumps([dict(zip(IMPORT_KEYS, row, strict=True)) for row in rows], indent=1)
    return "Errors in percent; power of H100 is modelled, where the file holds 0\n" + render_table(IMPORT_HEADERS, rows)


IMPORT_KEYS = (
    *("profile", "points", "prefillMedian", "prefillP90", "decodeMedian", "decodeP90"),
    *("betweenPrefillMedian", "betweenPrefillMax", "betweenDecodeMedian", "betweenDecodeMax"),
)


def _p90(values: Floats) -> float:
    return float(np.quantile(values, 0.9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=DATA, help="folder of the measured files")
    add("--imports", action="store_true", help="how well imported tables (Splitwise, Helix) come back, instead")
    add("--quick", action="store_true", help="a subset: one size of each server, up to 64 clients")
    add("--few", type=int, nargs="*", default=[4, 6], metavar="N", help="rows of each leaf that a user measured (4 6)")
    add("--draws", type=int, default=3, help="random choices of those rows (3)")
    add("--seed", type=int, default=0, help="of the choices (0)")
    add("--jobs", type=int, default=1, help="processes that read tables (1)")
    add("-o", "--output", choices=("table", "json"), default="table", help="output format (table)")
    args = parser.parse_args()
    began_s, cpu_s = time.perf_counter(), time.process_time()
    if args.imports:
        print(imports(args.data / "perf", args.output))
        return
    rows = read_rows(args.data / "perf" / "silicon_train.csv")
    study = make_study(quick_rows(rows) if args.quick else rows, jobs=args.jobs)
    found = list(experiments(study, args))
    print((to_json if args.output == "json" else to_table)(study, found))
    say(f"took {time.perf_counter() - began_s:.0f} s, {time.process_time() - cpu_s:.0f} s of processor time")


if __name__ == "__main__":
    main()
