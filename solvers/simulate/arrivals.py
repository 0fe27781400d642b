"""What a simulated fleet is asked to serve, as arrays: requests with their arrivals, or clients that wait for answers.

A trace of a million requests is a few arrays here, not a million objects. Loaders make a ``Workload``; ``Clients`` are
the closed-loop form of the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidInput

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def _no_ints() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """N requests of S services.

    Attributes
    ----------
    services : tuple of str
        Names of the services.
    arrival_s : (N,) float s
        Virtual second of each arrival, in any order; at equal times the lower row comes first. For rows of ``Clients``
        it is not read.
    service : (N,) int
        Index into ``services`` of each request.
    prompt_tokens, output_tokens : (N,) int
        Sizes, 1 or more each.
    block_tokens : int
        Tokens of one block of the prefix cache; 0 when the requests bring no blocks.
    block_starts : (N + 1,) int
        Request i has the blocks ``block_ids[block_starts[i]:block_starts[i + 1]]``; empty without blocks.
    block_ids : (M,) int
        Content of the blocks of each prompt from its start on, as hashes or numbers; two prompts share a prefix as far
        as their ids agree from the first block on. The block that holds the last token of a prompt is never shared,
        because something must be computed to yield a first token: an id too many does no harm.
    names : tuple of str
        Names of the requests for results and rejections; empty: their row numbers.
    """

    services: tuple[str, ...]
    arrival_s: Floats
    service: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    block_tokens: int = 0
    block_starts: Ints = field(default_factory=_no_ints)
    block_ids: Ints = field(default_factory=_no_ints)
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Requests."""
        return len(self.arrival_s)

    @property
    def tokens(self) -> int:
        """Prompt and output tokens together."""
        return int(self.prompt_tokens.sum() + self.output_tokens.sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clients:
    """N clients of one service that take the rows of a workload in turn, each as soon as its last one was answered.

    Attributes
    ----------
    count : int
        Clients: requests in flight at any time, while there are rows left.
    workload : Workload
        What they ask, in order of its rows; all of one service. Its arrivals are not read.
    start_s : float
        When the clients begin.
    think_s : float
        What a client waits between the end of a request and the next one.
    """

    count: int
    workload: Workload
    start_s: float = 0.0
    think_s: float = 0.0


def check_workload(workload: Workload) -> None:
    """Hold a workload against what the simulation assumes.

    Raises
    ------
    InvalidInput
        Naming the first field whose length or values are wrong.
    """
    rows, starts = len(workload), workload.block_starts
    for name in ("service", "prompt_tokens", "output_tokens"):
        _require(len(getattr(workload, name)) == rows, name, f"has {len(getattr(workload, name))} rows for {rows}")
    _require(len(workload.names) in (0, rows), "names", f"has {len(workload.names)} names for {rows} requests")
    _require(bool(np.isfinite(workload.arrival_s).all()), "arrival_s", "holds numbers that are no time")
    for name in ("prompt_tokens", "output_tokens"):
        low = int(getattr(workload, name).min(initial=1))
        _require(low >= 1, name, f"holds {low}, must be 1 or more")
    low, high = int(workload.service.min(initial=0)), int(workload.service.max(initial=0))
    in_range = low >= 0 and (high < len(workload.services) or rows == 0)
    _require(in_range, "service", f"holds {low} to {high} for {len(workload.services)} services")
    if len(starts):
        _require(workload.block_tokens > 0, "block_tokens", f"is {workload.block_tokens}, must be above 0")
        whole = len(starts) == rows + 1 and starts[0] == 0 and starts[-1] == len(workload.block_ids)
        _require(bool(whole and (np.diff(starts) >= 0).all()), "block_starts", "do not cut block_ids by request")


def _require(holds: bool, field_name: str, problem: str) -> None:
    if not holds:
        raise InvalidInput("workload", field_name, problem, "give one entry for each request, within its range")
