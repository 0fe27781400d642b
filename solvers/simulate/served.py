"""Requests that are over, from rows in ticks to what callers see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.simulate.results import FinishedRequest, Rejected
from solvers.simulate.tables import TICKS_PER_S

Ints = NDArray[np.int64]
SERVED = (
    "serial", "service", "prompt", "output", "arrival", "cached", "prefill_replica", "replica", "routed",
    "prefill_start", "prefill_end", "transferred", "first_token", "end", "late_gaps", "preemptions", "reroutes",
    "status",
)  # fmt: skip


def finished_requests(
    rows: Ints, names: Sequence[str], services: Sequence[str], replicas: Sequence[str]
) -> list[FinishedRequest]:
    """One object for each row of ``SERVED``."""
    return [
        _finished(dict(zip(SERVED, row, strict=True)), name, services, replicas)
        for row, name in zip(rows.tolist(), names, strict=True)
    ]


def _finished(row: dict[str, int], name: str, services: Sequence[str], replicas: Sequence[str]) -> FinishedRequest:
    handed_on = row["transferred"] if row["transferred"] >= 0 else row["prefill_end"]
    gaps = row["output"] - 1
    return FinishedRequest(
        name=name,
        service=services[row["service"]],
        prefill_replica=replicas[row["prefill_replica"]],
        replica=replicas[row["replica"]],
        arrival_s=row["arrival"] / TICKS_PER_S,
        prompt_tokens=row["prompt"],
        output_tokens=row["output"],
        cached_tokens=row["cached"],
        queue_s=(row["prefill_start"] - row["arrival"]) / TICKS_PER_S,
        prefill_s=(row["prefill_end"] - row["prefill_start"]) / TICKS_PER_S,
        kv_transfer_s=(handed_on - row["prefill_end"]) / TICKS_PER_S,
        first_step_s=(row["first_token"] - handed_on) / TICKS_PER_S,
        ttft_s=(row["first_token"] - row["arrival"]) / TICKS_PER_S,
        tpot_s=(row["end"] - row["first_token"]) / (gaps * TICKS_PER_S) if gaps else 0.0,
        end_s=row["end"] / TICKS_PER_S,
        late_gaps=row["late_gaps"],
        preemptions=row["preemptions"],
        reroutes=row["reroutes"],
    )


def refused_requests(
    rows: Ints, names: Sequence[str], services: Sequence[str], reasons: Sequence[str]
) -> list[Rejected]:
    """One object for each row of ``SERVED`` of a request that was not served."""
    arrival, service, end = (SERVED.index(field) for field in ("arrival", "service", "end"))
    return [
        Rejected(
            name=name,
            service=services[row[service]],
            arrival_s=row[arrival] / TICKS_PER_S,
            at_s=row[end] / TICKS_PER_S,
            reason=reason,
        )
        for row, name, reason in zip(rows.tolist(), names, reasons, strict=True)
    ]
