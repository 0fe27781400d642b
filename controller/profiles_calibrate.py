"""``penstock profile calibrate``: bend a profile to benchmarks that a user ran, and say how far off it was and is."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from typing import Any

import yaml

from controller.profiles import ProfileRequest, batched_tokens, make_profile
from controller.profiles_benchmarks import read_benchmarks
from controller.render import render_engine_profile
from controller.tables import MISSING, Cell, render_table
from solvers.calibration import UNSEEN
from solvers.calibration_profile import Calibrated, Measurement, calibrate
from solvers.calibration_served import served_correction
from solvers.engine import ProfileSource
from solvers.engine.closed_loop import Server
from solvers.engine.curves import Floats
from solvers.errors import InvalidInput

COLUMNS = ("CLIENTS", "PROMPT", "OUTPUT", "TTFT", "BEFORE", "AFTER", "TPOT", "BEFORE", "AFTER")


def run(request: ProfileRequest, args: argparse.Namespace) -> str:
    """Calibrate one profile and print it in the asked format."""
    if not args.measured:
        raise InvalidInput("profile calibrate", "from", "no measurements were given", "name them with --from FILE")
    if not 0.0 < args.least_ratio <= 1.0:
        raise InvalidInput(
            "profile calibrate", "least-ratio", f"is {args.least_ratio}", "give a share above 0, up to 1"
        )
    measured = read_benchmarks(args.measured, args.least_ratio)
    server = Server(
        budget_tokens=args.batched_tokens or batched_tokens(request.config.engine),
        seats=args.max_sequences,
        prefill_alone=request.config.engine == "sglang",
        whole_prompts=request.config.engine == "trtllm",
    )
    base, name = make_profile(request), ", ".join(path.name for path in args.measured)
    parent = served_correction(request.config.engine) if base.source is ProfileSource.SILICON else UNSEEN
    opening = 1.0 / max(1.0, measured.rounds)
    found = calibrate(base, measured.rows, server, parent=parent, opening_ratio=opening, name=name)
    return {"yaml": _to_yaml, "json": _to_json, "table": _to_table}[args.output](found, measured.rows)


def _to_yaml(found: Calibrated, _rows: tuple[Measurement, ...]) -> str:
    head = "".join(f"# {line}\n" for line in _summary(found))
    return head + yaml.safe_dump(
        render_engine_profile(found.profile), default_flow_style=None, sort_keys=False, width=118
    )


def _to_json(found: Calibrated, rows: tuple[Measurement, ...]) -> str:
    data: dict[str, Any] = {
        "engineProfile": render_engine_profile(found.profile),
        "correction": asdict(found.correction),
        "errors": {name: _plain(asdict(found.misses(times))) for name, times in _predictions(found)},
        "rows": [
            asdict(row) | {name: {"ttft_s": times[i, 0], "tpot_s": times[i, 1]} for name, times in _predictions(found)}
            for i, row in enumerate(rows)
        ],
    }
    return json.dumps(data, indent=1) + "\n"


def _plain(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers as JSON knows them."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _to_table(found: Calibrated, rows: tuple[Measurement, ...]) -> str:
    """Times in milliseconds."""
    lines = [
        (row.load.clients, row.load.prompt_tokens, row.load.output_tokens, *_times(found, i, 0), *_times(found, i, 1))
        for i, row in enumerate(rows)
    ]
    return "\n".join([render_table(COLUMNS, lines), "", *_summary(found)]) + "\n"


def _times(found: Calibrated, row: int, column: int) -> tuple[Cell, ...]:
    times = (found.measured_s, found.before_s, found.after_s)
    return tuple(round(1e3 * each[row, column], 1) if math.isfinite(each[row, column]) else MISSING for each in times)


def _predictions(found: Calibrated) -> list[tuple[str, Floats]]:
    named = [("before", found.before_s), ("after", found.after_s)]
    return named if found.left_out_s is None else [*named, ("leftOut", found.left_out_s)]


def _summary(found: Calibrated) -> list[str]:
    words = {"before": "as it was", "after": "calibrated", "leftOut": "each row predicted from the others"}
    lines = [found.profile.source_detail]
    for name, times in _predictions(found):
        off = found.misses(times)
        lines.append(
            f"{words[name]}: TPOT off by {off.tpot_median:.1%} (median), {off.tpot_worst:.1%} (worst);"
            f" TTFT by {off.ttft_median:.1%}, {off.ttft_worst:.1%}"
        )
    return lines
