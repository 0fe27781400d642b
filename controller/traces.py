"""Request traces: loaders for public formats, a seeded synthetic one, and scaling.

Azure LLM inference (``TIMESTAMP,ContextTokens,GeneratedTokens``), Mooncake (JSON lines, milliseconds) and plain
``arrival_s,prompt_tokens,output_tokens`` files are told apart by their first line. A trace is a tuple sorted by
arrival, the first at 0 s.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from solvers.errors import InvalidInput

AZURE_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
PLAIN_HEADER = ("arrival_s", "prompt_tokens", "output_tokens")
MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length")

_STAMP = re.compile(r"(?P<second>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?P<fraction>\.\d+)?(?:Z|\+00:00)?")

P99_NORMAL = 2.3263478740408408  # the standard normal's 99th percentile
LOAD_STEP_S = 10.0
LOAD_MEMORY_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request: when it arrives and how large it is."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


Trace = tuple[TraceRequest, ...]
Row = tuple[int, int, int]
"""Arrival in steps of 100 ns (whole, so that seven decimals stay exact), prompt tokens, output tokens."""
T = TypeVar("T")

STEPS_PER_S = 10_000_000


def load_trace(path: str | Path) -> Trace:
    """Read a trace file.

    Raises
    ------
    InvalidInput
        When the file is missing, empty or of no known format, or at the first malformed line, with file, line number
        and field.
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            first = stream.readline().strip()
            stream.seek(0)
            rows = list(_reader(first, file)(stream, file.name))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), "", f"cannot be read: {error}", "give the path of a trace file") from error
    if not rows:
        raise InvalidInput(file.name, "", "holds no requests", "give a file with at least one request")
    return _sorted_trace(rows)


def _reader(first: str, file: Path) -> Callable[[Iterable[str], str], Iterator[Row]]:
    header = tuple(name.strip() for name in first.removeprefix("\ufeff").split(","))
    if header == AZURE_HEADER:
        return lambda lines, name: _csv_rows(lines, name, AZURE_HEADER, _stamp)
    if header == PLAIN_HEADER:
        return lambda lines, name: _csv_rows(lines, name, PLAIN_HEADER, _seconds)
    if first.startswith("{"):
        return _mooncake_rows
    raise InvalidInput(
        f"{file.name}:1",
        "",
        f"starts with {first[:60]!r}, which is no known format",
        f"use the header {','.join(AZURE_HEADER)} or {','.join(PLAIN_HEADER)}, or Mooncake's JSON lines",
    )


def _sorted_trace(rows: Iterable[Row]) -> Trace:
    ordered = sorted(rows)
    start = ordered[0][0]
    return tuple(
        TraceRequest(arrival_s=(at - start) / STEPS_PER_S, prompt_tokens=prompt, output_tokens=output)
        for at, prompt, output in ordered
    )


# ---------------------------------------------------------------- formats


def _csv_rows(
    lines: Iterable[str], name: str, header: tuple[str, str, str], read_time: Callable[[str], int]
) -> Iterator[Row]:
    reader = csv.reader(lines)
    next(reader)
    for cells in reader:
        if not cells:
            continue
        where = f"{name}:{reader.line_num}"
        if len(cells) != len(header):
            remedy = f"write {','.join(header)}"
            raise InvalidInput(where, "", f"has {len(cells)} fields instead of {len(header)}", remedy)
        yield (
            _field(where, header[0], cells[0], read_time),
            _field(where, header[1], cells[1], _positive),
            _field(where, header[2], cells[2], _tokens),
        )


def _mooncake_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            document = json.loads(line)
        except ValueError as error:
            raise InvalidInput(where, "", f"is no JSON: {error}", "write one JSON object a line") from error
        if not isinstance(document, dict):
            raise InvalidInput(where, "", "is no JSON object", "write one JSON object a line")
        time, prompt, output = (_member(where, document, field) for field in MOONCAKE_FIELDS)
        yield (
            _field(where, "timestamp", time, _milliseconds),
            _field(where, "input_length", prompt, _positive),
            _field(where, "output_length", output, _tokens),
        )


def _member(where: str, document: dict[str, object], field: str) -> str:
    if field not in document:
        raise InvalidInput(where, field, "is missing", f"give {', '.join(MOONCAKE_FIELDS)}")
    return str(document[field])


def _field(where: str, field: str, text: str, read: Callable[[str], T]) -> T:
    try:
        return read(text.strip())
    except ValueError as error:
        raise InvalidInput(where, field, f"{text.strip()!r} {error}", "correct or remove the line") from None


def _stamp(text: str) -> int:
    """Steps since the epoch; the public traces have seven decimals, one more than ``datetime`` keeps."""
    found = _STAMP.fullmatch(text)
    if found is None:
        raise ValueError("is no time like 2023-11-16 18:15:46.6805900")
    try:
        whole = datetime.fromisoformat(found["second"]).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError("is no date and time of any calendar") from None
    return int(whole.timestamp()) * STEPS_PER_S + int((found["fraction"] or ".")[1:8].ljust(7, "0"))


def _seconds(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("is no number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError("is no time at or after 0")
    return round(value * STEPS_PER_S)


def _milliseconds(text: str) -> int:
    return _seconds(text) // 1000


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is no whole number") from None


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise ValueError("is no prompt: it needs at least one token")
    return value


def _tokens(text: str) -> int:
    """Output tokens; a request that was cut short still took its first token."""
    value = _whole(text)
    if value < 0:
        raise ValueError("is negative")
    return max(1, value)


# ---------------------------------------------------------------- making traces


def synthetic_trace(
    seed: int,
    duration_s: float,
    *,
    requests_per_s: float = 5.5,
    prompt_p50_tokens: float = 1020.0,
    prompt_p99_tokens: float = 4142.0,
    output_p50_tokens: float = 129.0,
    output_p99_tokens: float = 601.0,
    load_variation_ratio: float = 0.22,
) -> Trace:
    """Make a trace of the shape of an hour of public conversations.

    Poisson arrivals whose rate wanders (a logarithmic random walk pulled back to its mean within five minutes) and
    independent lognormal sizes through the given percentiles.

    Parameters
    ----------
    seed : int
        Equal seeds make equal traces.
    duration_s : float, s
    requests_per_s : float
        Mean rate.
    load_variation_ratio : float
        Standard deviation of the rate relative to its mean; 0 makes a plain Poisson process. The default makes the
        counts per minute as uneven as in the Azure conversation trace (variance 16 times the mean there).

    Raises
    ------
    InvalidInput
        When duration or rate is not positive.
    """
    if duration_s <= 0 or requests_per_s <= 0:
        asked = f"{duration_s} s at {requests_per_s} requests/s"
        raise InvalidInput("synthetic trace", "", f"asks for {asked}", "give a positive duration and rate")
    rng = np.random.default_rng(seed)
    steps = math.ceil(duration_s / LOAD_STEP_S)
    counts = rng.poisson(requests_per_s * LOAD_STEP_S * _wandering(rng, steps, load_variation_ratio))
    starts = np.repeat(np.arange(steps) * LOAD_STEP_S, counts)
    arrivals = np.sort(starts + rng.uniform(0.0, LOAD_STEP_S, len(starts)))
    arrivals = arrivals[arrivals < duration_s]
    prompts = _lognormal(rng, len(arrivals), prompt_p50_tokens, prompt_p99_tokens)
    outputs = _lognormal(rng, len(arrivals), output_p50_tokens, output_p99_tokens)
    return tuple(
        TraceRequest(arrival_s=round(at, 7), prompt_tokens=prompt, output_tokens=output)
        for at, prompt, output in zip(arrivals.tolist(), prompts, outputs, strict=True)
    )


def _wandering(
    rng: np.random.Generator, steps: int, variation_ratio: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Load of each step relative to the mean, (steps,), mean 1."""
    sigma = math.sqrt(math.log(1 + variation_ratio**2))
    keep = math.exp(-LOAD_STEP_S / LOAD_MEMORY_S)
    level, levels = rng.normal(0.0, sigma), []
    for push in rng.normal(0.0, sigma * math.sqrt(1 - keep**2), steps):
        levels.append(level)
        level = keep * level + push
    return np.exp(np.array(levels) - sigma**2 / 2)


def _lognormal(rng: np.random.Generator, count: int, p50: float, p99: float) -> list[int]:
    sigma = math.log(p99 / p50) / P99_NORMAL
    sizes = rng.lognormal(math.log(p50), sigma, count)
    return [int(size) for size in np.maximum(1, np.rint(sizes))]


def scale_trace(trace: Trace, factor: float, seed: int) -> Trace:
    """Multiply the load of a trace, keeping its span and its sizes.

    Whole copies are laid over the first one, each shifted round by a random time so that bursts do not add up; the
    fraction is a copy of which each request stays with that probability. ``factor`` 1 returns the trace.

    Raises
    ------
    InvalidInput
        When the factor is not positive.
    """
    if not factor > 0:
        raise InvalidInput("trace", "", f"cannot be scaled by {factor}", "give a positive factor")
    if factor == 1 or not trace:
        return trace
    rng = np.random.default_rng(seed)
    span = trace[-1].arrival_s + trace[-1].arrival_s / max(1, len(trace) - 1)
    scaled: list[TraceRequest] = []
    for copy in range(math.ceil(factor)):
        shift = float(rng.uniform(0.0, span)) if copy else 0.0
        stays = rng.random(len(trace)) < factor - copy
        scaled += [
            replace(request, arrival_s=(request.arrival_s + shift) % span if span else 0.0)
            for request, keep in zip(trace, stays.tolist(), strict=True)
            if keep
        ]
    return tuple(sorted(scaled, key=lambda request: request.arrival_s))
