"""How fast the simulation replays traces: ``python -m tests.bench_simulate [TRACE ...]``.

Without a file it makes a synthetic hour. What counts are the ratios, each of two runs in this process:

- *x step by step*: how much faster than the brute force that the tests hold it against (one event a decode step), on
  the first ``BASELINE_REQUESTS`` of the trace, where both must end at the same tick;
- *cost of a request*: under an overload with a gateway that gives up or never does, and on twice the trace, relative
  to the same trace without any of it. About 1 means that a backlog costs nothing but itself.

Requests per second and virtual seconds per second are this machine's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from controller.tables import render_table
from controller.traces import Trace, load_trace
from controller.traces_made import synthetic_trace
from solvers.engine import EngineProfile, Role
from solvers.simulate import Fleet, Result, SimRequest, replay
from solvers.simulate.tables import TICKS_PER_S, to_ticks
from tests.sim_brute import BruteFleet, make_profile

FLEETS: dict[str, dict[Role, int]] = {
    "2 prefill + 4 decode": {Role.PREFILL: 2, Role.DECODE: 4},
    "6 mixed": {Role.MIXED: 6},
    "30 prefill + 70 decode": {Role.PREFILL: 30, Role.DECODE: 70},
}
BASELINE_REQUESTS = 150
REPEATS = 3  # the best of them counts: others only lost time to the machine
OVERLOAD = 12.0  # times the arrivals, by squeezing the trace
T = TypeVar("T")


def engine() -> EngineProfile:
    """Roughly a 70-billion-parameter model on eight GPUs; the table covers long prompts and contexts."""
    batches, contexts = (1, 8, 32, 128, 256), (256, 1024, 4096, 16384, 65536)
    return make_profile(
        prefill_tokens=(128, 512, 2048, 8192, 32768, 131072),
        prefill_s=(0.012, 0.04, 0.14, 0.6, 3.0, 20.0),
        decode_batches=batches,
        decode_contexts=contexts,
        decode_step_s=tuple(tuple(0.012 + b * (1e-4 + 6e-8 * c) for c in contexts) for b in batches),
        decode_watts_per_gpu=(200.0, 250.0, 300.0, 350.0, 400.0),
        kv_capacity_tokens=600_000,
        prefill_chunk_tokens=2048,
    )


def requests_of(trace: Trace) -> list[SimRequest]:
    """The trace as requests of one service."""
    sizes = ((r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace)
    return [
        SimRequest(name=str(i), service="s", arrival_s=at, prompt_tokens=prompt, output_tokens=output)
        for i, (at, prompt, output) in enumerate(sizes)
    ]


def replicas(counts: dict[Role, int]) -> Iterator[tuple[str, Role]]:
    """Names and roles of a fleet's replicas."""
    return ((f"{role}-{i}", role) for role, count in counts.items() for i in range(count))


def served(counts: dict[Role, int], requests: list[SimRequest], **gateway: float) -> Result:
    """Replay on a new fleet."""
    fleet = Fleet(itl_limits_s={"s": 0.05}, **gateway)  # type: ignore[arg-type]  # one of them is an int
    for name, role in replicas(counts):
        fleet.add_replica(name, "s", role, engine())
    return replay(fleet, requests)


def stepped(counts: dict[Role, int], requests: list[SimRequest]) -> BruteFleet:
    """The same step by step."""
    fleet = BruteFleet()
    for name, role in replicas(counts):
        fleet.add(name, "s", role, engine(), 0)
    for request in requests:
        fleet.submit(request)
    fleet.advance(to_ticks(1e5))
    return fleet


def timed(run: Callable[[], T], repeats: int = REPEATS) -> tuple[float, T]:
    """Least wall time of a few runs in seconds, and what the last one gave."""
    best_s = float("inf")
    for _ in range(repeats):
        began_s = time.perf_counter()
        result = run()
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s, result


def against_steps(counts: dict[Role, int], requests: list[SimRequest]) -> float:
    """How many times faster than step by step, on requests that both serve to the same tick."""
    fast_s, result = timed(lambda: served(counts, requests))
    slow_s, brute = timed(lambda: stepped(counts, requests), repeats=1)
    ends = {sequence.asked.name: sequence.times[-1] / TICKS_PER_S for sequence in brute.sequences}
    if {done.name: done.end_s for done in result.finished} != ends:
        raise SystemExit("the simulation and the brute force disagree: run tests/test_simulate.py")
    return slow_s / fast_s


def speeds(trace: Trace) -> str:
    """One row for each fleet."""
    rows, requests = [], requests_of(trace)
    for name, counts in FLEETS.items():
        took_s, result = timed(lambda counts=counts: served(counts, requests))  # type: ignore[misc]
        ratio = against_steps(counts, requests[:BASELINE_REQUESTS])
        ttft_s, per_s = result.services["s"].ttft_s[0.99], round(len(requests) / took_s)
        rows.append((name, len(requests), took_s, per_s, round(result.makespan_s / took_s), ttft_s, round(ratio)))
    headers = ("FLEET", "REQUESTS", "WALL S", "REQUESTS/S", "X REAL TIME", "TTFT P99 S", "X STEP BY STEP")
    return render_table(headers, rows)


def backlogs(trace: Trace) -> str:
    """What a request costs with a queue at the gateway, relative to the plain replay of the trace."""
    counts = FLEETS["2 prefill + 4 decode"]
    squeezed = requests_of(tuple(replace(r, arrival_s=r.arrival_s / OVERLOAD) for r in trace))
    plain, later_s = requests_of(trace), trace[-1].arrival_s + 1.0
    twice = requests_of((*trace, *(replace(r, arrival_s=r.arrival_s + later_s) for r in trace)))
    cases: dict[str, Callable[[], Result]] = {
        "the trace": lambda: served(counts, plain),
        "twice the trace": lambda: served(counts, twice),
        f"x{OVERLOAD:g}, never gives up": lambda: served(counts, squeezed, replica_queue_limit=5),
        f"x{OVERLOAD:g}, gives up after 30 s": lambda: served(
            counts, squeezed, replica_queue_limit=5, gateway_patience_s=30.0
        ),
    }
    rows, plain_s = [], 0.0
    for name, run in cases.items():
        took_s, result = timed(run)
        submitted = result.services["s"].submitted
        plain_s = plain_s or took_s / submitted
        ttft_s = result.services["s"].ttft_s[0.99]
        rows.append((name, submitted, len(result.timed_out), ttft_s, took_s / submitted / plain_s))
    return render_table(("GATEWAY", "REQUESTS", "TIMED OUT", "TTFT P99 S", "COST OF A REQUEST"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", help="trace files")
    files = parser.parse_args().traces
    traces = {file: load_trace(file) for file in files} or {"synthetic hour": synthetic_trace(1, 3600.0)}
    for file, trace in traces.items():
        print(f"{file}\n{speeds(trace)}\n\n{backlogs(trace)}\n")


if __name__ == "__main__":
    main()
