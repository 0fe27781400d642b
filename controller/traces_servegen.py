"""ServeGen client files: a folder of ``*-trace.csv``, one client in each, as a trace.

A row is a window of one client: start second, requests per second, coefficient of variation, family of the gaps
between requests, and its two fitted parameters; no header. The rate says how many requests the window holds, family
and shape how they come in bursts; the fitted scale is not used, because it disagrees with the rate in the published
files. Each client draws its own bursts, from a seed of its own, so that leaving one out changes no other.

Source: Xiang et al., "ServeGen: Workload Characterization and Generation of Large Language Model Serving in
Production" (2025); the files are alibaba/ServeGen's.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from controller.traces import finite, parse_field
from controller.traces_made import Floats, renewal_window_s
from solvers.errors import InvalidInput

PATTERN = "*-trace.csv"
FIELDS = ("start_s", "requests_per_s", "cv", "family", "shape", "scale")
FAMILIES = ("Gamma", "Weibull")
LAST_WINDOW_S = 600.0
"""Length of a window without a next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientWindow:
    """One client from ``start_s`` to ``end_s``."""

    start_s: float
    end_s: float
    requests_per_s: float
    family: str
    shape: float


def client_files(folder: Path) -> list[Path]:
    """List the client files of a folder by name.

    Raises
    ------
    InvalidInput
        When it holds none.
    """
    files = sorted(folder.glob(PATTERN)) if folder.is_dir() else []
    if not files:
        raise InvalidInput(str(folder), "", f"holds no client files ({PATTERN})", "name a folder of ServeGen clients")
    return files


def load_client(file: Path) -> list[ClientWindow]:
    """Read the windows of one client that hold requests.

    Raises
    ------
    InvalidInput
        At the first malformed line, with file, line number and field.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(_rows(stream.readlines(), file.name))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(str(file), "", f"cannot be read: {error}", "give a folder of ServeGen clients") from error
    starts = [row[0] for row in rows]
    ends = [*starts[1:], starts[-1] + LAST_WINDOW_S] if starts else []
    return [
        ClientWindow(start_s=start, end_s=end, requests_per_s=rate, family=family, shape=shape)
        for (start, rate, family, shape), end in zip(rows, ends, strict=True)
        if rate > 0.0
    ]


def _rows(lines: Sequence[str], name: str) -> Iterator[tuple[float, float, str, float]]:
    last_s = -1.0
    for number, cells in enumerate(csv.reader(lines), start=1):
        if not cells:
            continue
        where = f"{name}:{number}"
        if len(cells) != len(FIELDS):
            problem = f"has {len(cells)} fields instead of {len(FIELDS)}"
            raise InvalidInput(where, "", problem, f"write {','.join(FIELDS)}")
        start_s = parse_field(where, "start_s", cells[0], finite)
        if start_s <= last_s:
            raise InvalidInput(where, "start_s", f"{start_s:g} does not come after {last_s:g}", "sort the windows")
        last_s = start_s
        rate = parse_field(where, "requests_per_s", cells[1], finite)
        yield start_s, rate, *(_process(where, cells) if rate > 0.0 else ("", 0.0))


def _process(where: str, cells: Sequence[str]) -> tuple[str, float]:
    """Family and shape of a window that holds requests."""
    family = cells[3].strip()
    if family not in FAMILIES:
        raise InvalidInput(where, "family", f"{family!r} is no known family", f"use {' or '.join(FAMILIES)}")
    shape = parse_field(where, "shape", cells[4], finite)
    if shape <= 0.0:
        raise InvalidInput(where, "shape", f"{shape:g} is not above 0", "correct or remove the line")
    return family, shape


def servegen_arrivals_s(folder: Path, *, start_s: float, duration_s: float, seed: int) -> Floats:
    """Draw the arrivals of all clients between ``start_s`` and ``start_s + duration_s`` of the recording, from 0 s on.

    Raises
    ------
    InvalidInput
        For a folder without clients, a malformed line, or a span in which no client asks anything.
    """
    found = [
        _of_client(load_client(file), start_s, start_s + duration_s, np.random.default_rng([seed, number]))
        for number, file in enumerate(client_files(folder))
    ]
    arrivals = np.sort(np.concatenate(found)) - start_s
    if not len(arrivals):
        problem = f"no client asks anything between {start_s:g} and {start_s + duration_s:g} s"
        raise InvalidInput(str(folder), "", problem, "choose another start= or a longer duration=")
    return arrivals


def _of_client(windows: Sequence[ClientWindow], start_s: float, end_s: float, rng: np.random.Generator) -> Floats:
    inside = [w for w in windows if w.start_s < end_s and w.end_s > start_s]
    drawn = [w.start_s + _of_window(w, rng) for w in inside]
    times = np.concatenate(drawn) if drawn else np.zeros(0)
    return times[(times >= start_s) & (times < end_s)]


def _of_window(window: ClientWindow, rng: np.random.Generator) -> Floats:
    """Arrivals from the start of the window; a fraction of a request comes with that probability."""
    length_s = window.end_s - window.start_s
    expected = window.requests_per_s * length_s
    count = int(expected + 1e-6) + int(rng.random() < (expected + 1e-6) % 1.0 - 1e-6)
    return renewal_window_s(rng, window.family, window.shape, count, length_s)


def busiest_start_s(folder: Path, duration_s: float) -> float:
    """Find the window boundary from which the clients ask most within ``duration_s``; the first among equals."""
    windows = [window for file in client_files(folder) for window in load_client(file)]
    if not windows:
        raise InvalidInput(str(folder), "", "no client ever asks anything", "give a folder of ServeGen clients")
    edges = sorted({w.start_s for w in windows} | {w.end_s for w in windows})
    rates = np.zeros(len(edges))
    place = {edge: i for i, edge in enumerate(edges)}
    for window in windows:
        rates[place[window.start_s]] += window.requests_per_s
        rates[place[window.end_s]] -= window.requests_per_s
    lengths = np.array([b - a for a, b in pairwise(edges)])
    asked = np.concatenate(([0.0], np.cumsum(np.cumsum(rates)[:-1] * lengths)))
    upto = np.interp(np.array(edges) + duration_s, edges, asked)
    return edges[int(np.argmax(upto - asked))]
