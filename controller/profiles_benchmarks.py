"""Read measured benchmarks of a user: CSV rows of any harness, or the JSON that ``vllm bench serve`` saves."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solvers.calibration_profile import Measurement
from solvers.engine.closed_loop import Load
from solvers.errors import InvalidInput

COLUMNS: Mapping[str, tuple[tuple[str, float], ...]] = {
    # Our name: the names that harnesses use, each with the factor to our unit.
    "clients": (("clients", 1), ("concurrency", 1), ("max_concurrency", 1)),
    "prompt_tokens": (("prompt_tokens", 1), ("isl", 1), ("input_len", 1), ("random_input_len", 1)),
    "output_tokens": (("output_tokens", 1), ("osl", 1), ("output_len", 1), ("random_output_len", 1)),
    "ttft_s": (("ttft_s", 1), ("ttft_ms", 1e-3), ("mean_ttft_ms", 1e-3), ("silicon_ttft_ms", 1e-3)),
    "tpot_s": (("tpot_s", 1), ("tpot_ms", 1e-3), ("mean_tpot_ms", 1e-3), ("silicon_tpot_ms", 1e-3)),
}
NEEDED = ("clients", "prompt_tokens", "output_tokens")
DEFAULT_ROUNDS = 10  # requests of each client where the file does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmarks:
    """Measured rows and how many requests each client sent (the median over the rows)."""

    rows: tuple[Measurement, ...]
    rounds: float


def read_benchmarks(paths: Sequence[Path], least_ratio: float) -> Benchmarks:
    """Read every file.

    Parameters
    ----------
    least_ratio : float
        Lengths were drawn evenly from this share of the nominal ones to 1; 1 for fixed lengths.

    Raises
    ------
    InvalidInput
        Naming file, line and field of the first row that cannot be read.
    """
    found = [row for path in paths for row in (_json_rows if path.suffix == ".json" else _csv_rows)(path, least_ratio)]
    rounds = [rounds for _, rounds in found if rounds is not None]
    return Benchmarks(
        rows=tuple(row for row, _ in found), rounds=statistics.median(rounds) if rounds else DEFAULT_ROUNDS
    )


def _csv_rows(path: Path, least_ratio: float) -> Iterator[tuple[Measurement, float | None]]:
    reader = csv.DictReader(_text(path).splitlines())
    names = _names(str(path), [name.strip() for name in reader.fieldnames or ()])
    for number, fields in enumerate(reader, start=2):
        values = {
            ours: _number(f"{path}:{number}", theirs, (fields[theirs] or "").strip(), ours in NEEDED, factor)
            for ours, (theirs, factor) in names.items()
        }
        yield _measurement(f"{path}:{number}", values, least_ratio), None


def _names(subject: str, header: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Our columns → the file's, with factors."""
    found = {
        ours: next(((name, factor) for name, factor in known if name in header), None)
        for ours, known in COLUMNS.items()
    }
    for ours in NEEDED:
        if found[ours] is None:
            known = ", ".join(name for name, _ in COLUMNS[ours])
            raise InvalidInput(subject, ours, "has no column", f"name one of its columns {known}")
    if found["ttft_s"] is None and found["tpot_s"] is None:
        raise InvalidInput(subject, "ttft_ms", "has neither ttft_ms nor tpot_ms", "give at least one of the two")
    return {ours: named for ours, named in found.items() if named is not None}


def _number(line: str, field: str, text: str, is_needed: bool, factor: float) -> float | None:
    if not text and not is_needed:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise InvalidInput(line, field, f"is {text!r}, not a number above 0", "correct or remove the line")
    return value * factor


def _measurement(subject: str, values: Mapping[str, float | None], least_ratio: float) -> Measurement:
    if values.get("ttft_s") is None and values.get("tpot_s") is None:
        raise InvalidInput(subject, "ttft_ms", "has no measured time", "remove the line")
    sizes = [round(values[name] or 0.0) for name in NEEDED]
    load = Load(clients=sizes[0], prompt_tokens=sizes[1], output_tokens=max(2, sizes[2]), least_ratio=least_ratio)
    return Measurement(load=load, ttft_s=values.get("ttft_s"), tpot_s=values.get("tpot_s"))


def _json_rows(path: Path, least_ratio: float) -> Iterator[tuple[Measurement, float | None]]:
    """Results of ``vllm bench serve --save-result``: one object, or a list of them."""
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise InvalidInput(str(path), "", f"is no JSON: {error}", "name a file of --save-result") from error
    for number, result in enumerate(content if isinstance(content, list) else [content], start=1):
        yield _vllm_result(f"{path} (result {number})", result, least_ratio)


def _vllm_result(subject: str, result: Any, least_ratio: float) -> tuple[Measurement, float | None]:
    if not isinstance(result, dict):
        raise InvalidInput(subject, "", "is no JSON object", "name a file of vllm bench serve --save-result")
    rate, clients = result.get("request_rate", "inf"), result.get("max_concurrency")
    if str(rate) != "inf" or not clients:
        problem = f"was run at request rate {rate} and concurrency {clients}"
        raise InvalidInput(subject, "max_concurrency", problem, "measure with --max-concurrency and no --request-rate")

    def amount(field: str) -> float:
        value = _number(subject, field, str(result.get(field, "")), True, 1.0)
        assert value is not None  # it is needed
        return value

    completed = amount("completed")
    nominal = 2.0 / (1.0 + least_ratio)  # the mean of lengths drawn evenly from least_ratio to 1 is that much smaller
    values: dict[str, float | None] = {
        "clients": float(clients),
        "prompt_tokens": nominal * amount("total_input_tokens") / completed,
        "output_tokens": nominal * amount("total_output_tokens") / completed,
        "ttft_s": 1e-3 * amount("mean_ttft_ms"),
        "tpot_s": 1e-3 * amount("mean_tpot_ms"),
    }
    return _measurement(subject, values, least_ratio), max(1.0, completed / float(clients))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), "", f"cannot be read: {error}", "name a CSV or JSON file in UTF-8") from error
