"""Request traces: what a trace is, and loaders for public formats.

Azure LLM inference (``TIMESTAMP,ContextTokens,GeneratedTokens``), Mooncake (JSON lines, milliseconds, blocks of shared
prefixes) and plain ``arrival_s,prompt_tokens,output_tokens`` files are told apart by their first line. A trace is a
tuple sorted by arrival, the first at 0 s. ``traces_servegen.py`` reads folders of clients, ``traces_made.py`` makes
traces, ``traces_spec.py`` reads what the command line says.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from solvers.errors import InvalidInput

AZURE_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
PLAIN_HEADER = ("arrival_s", "prompt_tokens", "output_tokens")
MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length")

_STAMP = re.compile(r"(?P<second>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?P<fraction>\.\d+)?(?:Z|\+00:00)?")

BLOCK_TOKENS = 512  # of one hash in Mooncake's files
MOST_TOKENS = 100_000_000  # of a prompt, or of an answer; beyond, a number is a mistake
MOST_BLOCK_ID = 2**63 - 1
MOST_SPAN_S = 1e9  # thirty years: no trace, but a wrong time among others


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request: when it arrives and how large it is.

    ``block_ids`` name the blocks of ``BLOCK_TOKENS`` that the prompt begins with; prompts with the same first ids
    share that prefix. Empty where the trace does not say.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()


Trace = tuple[TraceRequest, ...]
Row = tuple[int, int, int, tuple[int, ...]]
"""Arrival in steps of 100 ns (whole, so that seven decimals stay exact), prompt tokens, output tokens, block ids."""
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
    trace = _sorted_trace(rows)
    if trace[-1].arrival_s > MOST_SPAN_S:
        problem = f"holds requests {trace[-1].arrival_s:.3g} s apart"
        raise InvalidInput(file.name, "", problem, "correct the times, or give a part of it")
    return trace


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
        TraceRequest(arrival_s=(at - start) / STEPS_PER_S, prompt_tokens=prompt, output_tokens=output, block_ids=blocks)
        for at, prompt, output, blocks in ordered
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
            parse_field(where, header[0], cells[0], read_time),
            parse_field(where, header[1], cells[1], _positive),
            parse_field(where, header[2], cells[2], _tokens),
            (),
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
            parse_field(where, "timestamp", time, _milliseconds),
            tokens := parse_field(where, "input_length", prompt, _positive),
            parse_field(where, "output_length", output, _tokens),
            _blocks(where, document.get("hash_ids", []), tokens),
        )


def _blocks(where: str, ids: object, prompt_tokens: int) -> tuple[int, ...]:
    """Block ids of a prompt; the last block may be filled in part."""
    if not isinstance(ids, list) or any(type(each) is not int for each in ids):
        raise InvalidInput(where, "hash_ids", "is no list of whole numbers", "correct or remove the line")
    if len(ids) > -(-prompt_tokens // BLOCK_TOKENS):
        problem = f"names {len(ids)} blocks of {BLOCK_TOKENS} tokens for a prompt of {prompt_tokens}"
        raise InvalidInput(where, "hash_ids", problem, "give at most one id for each begun block")
    if any(abs(each) > MOST_BLOCK_ID for each in ids):
        raise InvalidInput(where, "hash_ids", "is beyond 64 bits", "number the blocks anew")
    return tuple(ids)


def _member(where: str, document: dict[str, object], field: str) -> str:
    if field not in document:
        raise InvalidInput(where, field, "is missing", f"give {', '.join(MOONCAKE_FIELDS)}")
    return str(document[field])


def parse_field(where: str, field: str, text: str, read: Callable[[str], T]) -> T:
    """Read one field of one line; what ``read`` finds wrong becomes an error that names file, line and field."""
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


def finite(text: str, otherwise: str = "is no number of 0 or more") -> float:
    """Read a number that is finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("is no number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(otherwise)
    return value


def _seconds(text: str) -> int:
    return round(finite(text, "is no time at or after 0") * STEPS_PER_S)


def _milliseconds(text: str) -> int:
    return _seconds(text) // 1000


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is no whole number") from None


def _count(text: str) -> int:
    value = _whole(text)
    if value > MOST_TOKENS:
        raise ValueError(f"is more than the {MOST_TOKENS:,} tokens that a request may have")
    return value


def _positive(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise ValueError("is no prompt: it needs at least one token")
    return value


def _tokens(text: str) -> int:
    """Output tokens; a request that was cut short still took its first token."""
    value = _count(text)
    if value < 0:
        raise ValueError("is negative")
    return max(1, value)
