"""A whole trace served, as arrays: a million requests are a few columns, and percentiles are exact.

``serve`` runs a workload to its end and keeps one row for each request and the log of runs, from which every token gap
can be counted without looking at single tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.simulate.arrivals import Clients, Floats, Ints, Workload
from solvers.simulate.books import METERED
from solvers.simulate.fleet import Fleet
from solvers.simulate.gaps import exact_quantiles, late_ratio
from solvers.simulate.kernel.compiled import is_available
from solvers.simulate.kernel.records import FINISHED, NEVER, REJECTED, TIMED_OUT
from solvers.simulate.results import PERCENTILES
from solvers.simulate.served import SERVED
from solvers.simulate.tables import TICKS_PER_S, to_ticks
from solvers.workload import Slo, SloMetric

WORTH_COMPILING = 20_000  # requests from which compiled code, read from its cache, is sooner done than the plain one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """Requests that finished, in order of their end; each column is (N,), seconds in float, counts in int.

    Attributes
    ----------
    row : int
        The request's place in what was handed in, clients' rows included, in order of submission.
    service, prefill_replica, replica : int
        Index into ``Outcome.services`` and ``Outcome.replicas``.
    queue_s, prefill_s, kv_transfer_s, first_step_s : float
        Parts of ``ttft_s``, as in ``FinishedRequest``.
    """

    row: Ints
    service: Ints
    prefill_replica: Ints
    replica: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    arrival_s: Floats
    queue_s: Floats
    prefill_s: Floats
    kv_transfer_s: Floats
    first_step_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    end_s: Floats
    late_gaps: Ints
    preemptions: Ints
    reroutes: Ints

    @property
    def end_to_end_s(self) -> Floats:
        """Arrival to the last token."""
        return self.end_s - self.arrival_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What came of a workload.

    Attributes
    ----------
    rejected, timed_out : (S,) int
        Requests by service that were not served.
    unfinished : int
        Requests without an outcome by the end.
    runs : structured (R,)
        Log of runs (``gaps.RUN``).
    joules, busy_s : (K,) float
        By replica, those gone included.
    replica_service : (K,) int
        Service of each replica.
    events : int
        Events that the simulation went through.
    """

    services: tuple[str, ...]
    replicas: tuple[str, ...]
    served: Served
    rejected: Ints
    timed_out: Ints
    unfinished: int
    runs: NDArray[np.void]
    makespan_s: float
    joules: Floats
    busy_s: Floats
    replica_service: Ints
    events: int

    def of_service(self, service: str) -> NDArray[np.bool_]:
        """(N,) True for requests of a service."""
        return np.asarray(self.served.service == self.services.index(service))

    def quantiles_s(self, column: str, service: str, ratios: Sequence[float] = PERCENTILES) -> dict[float, float]:
        """Percentiles of a column of ``Served``: the smallest value that at least each ratio does not exceed."""
        values = getattr(self.served, column)[self.of_service(service)]
        if not len(values):
            return dict.fromkeys(ratios, float("nan"))
        found = np.quantile(values, ratios, method="inverted_cdf")
        return {ratio: float(value) for ratio, value in zip(ratios, found, strict=True)}

    def itl_quantiles_s(self, service: str, ratios: Sequence[float] = PERCENTILES) -> dict[float, float]:
        """Exact percentiles of all token gaps of a service."""
        found = exact_quantiles(self.runs_of(service), ratios)
        return {ratio: found[ratio] / TICKS_PER_S if ratio in found else float("nan") for ratio in ratios}

    def runs_of(self, service: str, start_s: float = 0.0, end_s: float = float("inf")) -> NDArray[np.void]:
        """Logged runs of a service that began in a stretch of time."""
        begin, end = to_ticks(start_s), NEVER if end_s == float("inf") else to_ticks(end_s)
        mine = self.replica_service[self.runs["replica"]] == self.services.index(service)
        chosen: NDArray[np.void] = self.runs[mine & (self.runs["start"] >= begin) & (self.runs["start"] < end)]
        return chosen

    def within_ratio(self, service: str, slo: Slo) -> float:
        """Share of a service's requests (TTFT; those not served are misses) or token gaps (ITL) within a limit."""
        if slo.metric is SloMetric.ITL:
            return 1.0 - late_ratio(self.runs_of(service), to_ticks(slo.limit_s))
        s = self.services.index(service)
        times = self.served.ttft_s[self.of_service(service)]
        asked = len(times) + int(self.rejected[s] + self.timed_out[s])
        return int((times <= slo.limit_s).sum()) / asked if asked else 1.0

    def goodput_requests_per_s(self, service: str, slos: Sequence[Slo]) -> float:
        """Requests a second that met all their SLOs; late gaps were counted against the fleet's limit."""
        served, good = self.served, self.of_service(service)
        for slo in slos:
            if slo.metric is SloMetric.TTFT:
                good = good & (served.ttft_s <= slo.limit_s)
            else:
                allowed = (1.0 - slo.percentile_ratio) * (served.output_tokens - 1) + 1e-9
                good = good & (served.late_gaps <= allowed)
        return int(good.sum()) / self.makespan_s if self.makespan_s > 0 else 0.0


def is_worth_compiling(requests: int) -> bool:
    """True when the compiled kernel is there and pays for so many requests."""
    return requests >= WORTH_COMPILING and is_available()


def serve(
    fleet: Fleet, workload: Workload | None = None, *, clients: Sequence[Clients] = (), until_s: float = float("inf")
) -> Outcome:
    """Serve a workload, clients or both on a fleet that records its runs (``Fleet(record_runs=True)``).

    Raises
    ------
    InvalidInput
        When the workload does not fit together, or arrives before the fleet's present.
    """
    for group in clients:
        fleet.add_clients(group)
    if workload is not None:
        fleet.submit_workload(workload)
    fleet.advance(until_s)
    fleet.settle()
    services = fleet.services_by_index()
    refused = {status: _counts(fleet.take_rows(status), len(services)) for status in (REJECTED, TIMED_OUT)}
    served = _columns(fleet.take_rows(FINISHED))
    asked = sum(fleet.counts(name)["submitted"] for name in services)
    meters = fleet.meters()
    return Outcome(
        services=services,
        replicas=fleet.all_replica_ids(),
        served=served,
        rejected=refused[REJECTED],
        timed_out=refused[TIMED_OUT],
        unfinished=asked - len(served.row) - int(sum(counts.sum() for counts in refused.values())),
        runs=fleet.take_runs(),
        makespan_s=fleet.now_s,
        joules=meters[:, METERED.index("energy")] / 1e9,
        busy_s=meters[:, METERED.index("busy")] / TICKS_PER_S,
        replica_service=meters[:, METERED.index("service")],
        events=fleet.events,
    )


def _counts(rows: Ints, services: int) -> Ints:
    return np.bincount(rows[:, SERVED.index("service")], minlength=services).astype(np.int64)


def _columns(rows: Ints) -> Served:
    of: Mapping[str, Ints] = {name: rows[:, i] for i, name in enumerate(SERVED)}
    handed_on = np.where(of["transferred"] >= 0, of["transferred"], of["prefill_end"])
    gaps = of["output"] - 1
    return Served(
        row=of["serial"],
        service=of["service"],
        prefill_replica=of["prefill_replica"],
        replica=of["replica"],
        prompt_tokens=of["prompt"],
        output_tokens=of["output"],
        cached_tokens=of["cached"],
        arrival_s=of["arrival"] / TICKS_PER_S,
        queue_s=(of["prefill_start"] - of["arrival"]) / TICKS_PER_S,
        prefill_s=(of["prefill_end"] - of["prefill_start"]) / TICKS_PER_S,
        kv_transfer_s=(handed_on - of["prefill_end"]) / TICKS_PER_S,
        first_step_s=(of["first_token"] - handed_on) / TICKS_PER_S,
        ttft_s=(of["first_token"] - of["arrival"]) / TICKS_PER_S,
        tpot_s=(of["end"] - of["first_token"]) / (np.maximum(1, gaps) * TICKS_PER_S),
        end_s=of["end"] / TICKS_PER_S,
        late_gaps=of["late_gaps"],
        preemptions=of["preemptions"],
        reroutes=of["reroutes"],
    )
