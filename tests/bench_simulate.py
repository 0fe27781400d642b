"""How fast the simulation replays traces: ``python -m tests.bench_simulate [--growth N ...] [-o json]``.

Reads Azure's conversations and Mooncake's synthetic trace, once and three times in a row, from ``traces/`` under
``$PENSTOCK_DATA`` or ``../shared/data``; without them synthetic traces of the same sizes stand in. Each run has a
process of its own, so that its peak of memory is its own, and one core. Times are of handing the arrays in and serving
them to the end, after the compiled kernel was read or made; *x plain* sets the compiled kernel beside the plain one on
the same rows by CPU time, *x steps* the plain one beside the brute force of the tests on a short stretch, where both
must end at the same ticks.

- *traces*: plain and compiled, with the prefix caches' hits where a trace brings blocks;
- *growth*: synthetic requests, sizes as Azure's, up to ``--growth`` and as many replicas as it says;
- *backlog*: what a request costs under an overload with a gateway that gives up or never does, beside the trace alone;
- *kernel*: what it takes to compile it, and then to read what was compiled, each in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from controller.tables import render_table
from controller.traces import BLOCK_TOKENS, load_trace
from solvers.engine import EngineProfile, Role
from solvers.simulate import Fleet, Outcome, Routing, SimRequest, Workload, serve
from solvers.simulate.kernel.compiled import is_available
from solvers.simulate.tables import TICKS_PER_S, to_ticks
from tests.sim_brute import BruteFleet, make_profile

Counts = tuple[int, int, int]
"""Prefill, decode and mixed replicas."""

FILES = {"azure conv": "AzureLLMInferenceTrace_conv.csv", "mooncake": "mooncake_synthetic.jsonl"}
STEPS_REQUESTS = 150
OVERLOAD = 12.0  # times the arrivals, by squeezing the trace
REPEATS = 3  # the best of them counts: others only lost time to the machine
MEGABYTE = 1024.0  # ru_maxrss counts kilobytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run."""

    case: str
    fleet: str
    form: str
    requests: int
    tokens: int
    cpu_s: float
    wall_s: float
    requests_per_s: float
    tokens_per_s: float
    events_per_request: float
    cached_ratio: float
    peak_megabytes: float
    digest: str


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


# ---------------------------------------------------------------- what is served


def from_file(name: str, times: int = 1) -> Workload:
    """A trace as arrays, a few times in a row."""
    folder = Path(os.environ.get("PENSTOCK_DATA") or Path(__file__).parents[2] / "shared" / "data") / "traces"
    if not (folder / FILES[name]).exists():
        return synthetic(19_366 if name == "azure conv" else 3_993 * times, 5.5)
    trace = load_trace(folder / FILES[name])
    span = trace[-1].arrival_s + 1.0
    ids = [np.array(request.block_ids, np.int64) for request in trace] * times
    has_blocks = any(map(len, ids))
    return Workload(
        services=("s",),
        arrival_s=np.concatenate([np.array([r.arrival_s for r in trace]) + i * span for i in range(times)]),
        service=np.zeros(len(trace) * times, np.int64),
        prompt_tokens=np.array([r.prompt_tokens for r in trace] * times, np.int64),
        output_tokens=np.array([r.output_tokens for r in trace] * times, np.int64),
        block_tokens=BLOCK_TOKENS if has_blocks else 0,
        block_starts=np.cumsum([0, *map(len, ids)]) if has_blocks else np.zeros(0, np.int64),
        block_ids=np.concatenate(ids) if has_blocks else np.zeros(0, np.int64),
    )


def synthetic(count: int, requests_per_s: float) -> Workload:
    """Poisson arrivals of lognormal sizes."""
    rng = np.random.default_rng(0)
    return Workload(
        services=("s",),
        arrival_s=np.cumsum(rng.exponential(1 / requests_per_s, count)),
        service=np.zeros(count, np.int64),
        prompt_tokens=np.clip(rng.lognormal(np.log(900), 0.9, count), 8, 16_000).astype(np.int64),
        output_tokens=np.clip(rng.lognormal(np.log(150), 0.8, count), 1, 4_000).astype(np.int64),
    )


def fleet_of(
    counts: Counts,
    *,
    compiled: bool = False,
    routing: Routing = Routing.LEAST_WORK,
    queue_limit: int | None = None,
    patience_s: float | None = None,
) -> Fleet:
    """Replicas of one service."""
    fleet = Fleet(
        compiled=compiled, routing={"s": routing}, record_runs=True, replica_queue_limit=queue_limit,
        gateway_patience_s=patience_s,
    )  # fmt: skip
    for role, count in zip((Role.PREFILL, Role.DECODE, Role.MIXED), counts, strict=True):
        for i in range(count):
            fleet.add_replica(f"{role}-{i}", "s", role, engine())
    return fleet


def told(counts: Counts) -> str:
    """Counts of a fleet in words."""
    return " + ".join(f"{n} {role}" for n, role in zip(counts, ("prefill", "decode", "mixed"), strict=True) if n)


# ---------------------------------------------------------------- one run


def run_case(
    case: str, workload: Callable[[], Workload], counts: Counts, routing: Routing, compiled: bool, repeats: int
) -> Row:
    """Serve a workload in this process and say what it took."""
    asked = workload()
    fleet_of((1, 1, 0), compiled=compiled).advance(1.0)  # the kernel is there now
    cpu_s = wall_s = float("inf")
    for _ in range(repeats):
        fleet = fleet_of(counts, compiled=compiled, routing=routing)
        cpu, wall = time.process_time(), time.perf_counter()
        outcome = serve(fleet, asked)
        cpu_s, wall_s = min(cpu_s, time.process_time() - cpu), min(wall_s, time.perf_counter() - wall)
    return Row(
        case=case, fleet=f"{told(counts)}, {routing}", form="compiled" if compiled else "plain", requests=len(asked),
        tokens=asked.tokens, cpu_s=cpu_s, wall_s=wall_s, requests_per_s=len(asked) / cpu_s,
        tokens_per_s=asked.tokens / cpu_s, events_per_request=outcome.events / len(asked),
        cached_ratio=float(outcome.served.cached_tokens.sum() / outcome.served.prompt_tokens.sum()),
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE, digest=digest(outcome),
    )  # fmt: skip


def digest(outcome: Outcome) -> str:
    """Tells two outcomes apart."""
    told_apart = hashlib.sha256()
    for column in (outcome.served.row, outcome.served.end_s, outcome.served.ttft_s, outcome.joules):
        told_apart.update(column.tobytes())
    told_apart.update(repr(outcome.itl_quantiles_s("s")).encode())
    return told_apart.hexdigest()


def apart(*arguments: object) -> Row:
    """Run a case in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        row = pool.submit(run_case, *arguments).result()  # type: ignore[arg-type]
    print(f"  {row.case}, {row.fleet}, {row.form}: {row.cpu_s:.3f} s CPU", file=sys.stderr)
    return row


def trace_rows(forms: tuple[bool, ...]) -> Iterator[Row]:
    """Measured traces, each plain and compiled."""
    cases: list[tuple[str, Callable[[], Workload], Counts, Routing]] = [
        ("azure conv", partial(from_file, "azure conv"), (2, 4, 0), Routing.LEAST_WORK),
        ("mooncake", partial(from_file, "mooncake"), (8, 4, 0), Routing.PREFIX_AWARE),
        ("mooncake x 3", partial(from_file, "mooncake", 3), (8, 4, 0), Routing.PREFIX_AWARE),
        ("mooncake x 3", partial(from_file, "mooncake", 3), (0, 0, 12), Routing.LEAST_WORK),
    ]
    for case, workload, counts, routing in cases:
        for compiled in forms:
            yield apart(case, workload, counts, routing, compiled, REPEATS)


def growth_rows(sizes: list[int], forms: tuple[bool, ...], plain_limit: int) -> Iterator[Row]:
    """Synthetic requests over more and more replicas, at the same load of each."""
    for size in sizes:
        for counts, rate in (((30, 70, 0), 190.0), ((300, 700, 0), 1900.0), ((0, 0, 1000), 1900.0)):
            for compiled in forms:
                if compiled or size <= plain_limit:
                    workload = partial(synthetic, size, rate)
                    yield apart(f"{size:,}", workload, counts, Routing.LEAST_WORK, compiled, 1)


# ---------------------------------------------------------------- beside other ways


def against_steps() -> float:
    """How many times faster than step by step, on requests that both serve to the same tick."""
    whole, counts = from_file("azure conv"), (2, 4, 0)
    names = ("arrival_s", "service", "prompt_tokens", "output_tokens")
    asked = replace(whole, **{name: getattr(whole, name)[:STEPS_REQUESTS] for name in names})
    fast_s = float("inf")
    for _ in range(REPEATS):
        fleet = fleet_of(counts)
        began_s = time.process_time()
        outcome = serve(fleet, asked)
        fast_s = min(fast_s, time.process_time() - began_s)
    brute = BruteFleet()
    for role, count in zip((Role.PREFILL, Role.DECODE, Role.MIXED), counts, strict=True):
        for i in range(count):
            brute.add(f"{role}-{i}", "s", role, engine(), 0)
    for i in range(len(asked)):
        at, prompt, output = float(asked.arrival_s[i]), int(asked.prompt_tokens[i]), int(asked.output_tokens[i])
        brute.submit(SimRequest(name=str(i), service="s", arrival_s=at, prompt_tokens=prompt, output_tokens=output))
    began_s = time.process_time()
    brute.advance(to_ticks(1e5))
    slow_s = time.process_time() - began_s
    ends = dict(zip(outcome.served.row.tolist(), outcome.served.end_s.tolist(), strict=True))
    if ends != {sequence.index: sequence.times[-1] / TICKS_PER_S for sequence in brute.sequences}:
        raise SystemExit("the simulation and the brute force disagree: run tests/test_simulate.py")
    return slow_s / fast_s


def backlogs() -> list[tuple[str, int, int, float]]:
    """(case, requests, timed out, cost of a request beside the trace alone) with a queue at the gateway."""
    plain = from_file("azure conv")
    squeezed = replace(plain, arrival_s=plain.arrival_s / OVERLOAD)
    cases = {
        "the trace": (plain, None, None),
        f"x {OVERLOAD:g}, never gives up": (squeezed, 5, None),
        f"x {OVERLOAD:g}, gives up after 30 s": (squeezed, 5, 30.0),
    }
    rows, alone_s = [], 0.0
    for name, (workload, limit, patience_s) in cases.items():
        began_s = time.process_time()
        outcome = serve(fleet_of((2, 4, 0), queue_limit=limit, patience_s=patience_s), workload)
        took_s = time.process_time() - began_s
        alone_s = alone_s or took_s
        rows.append((name, len(workload), int(outcome.timed_out.sum()), took_s / alone_s))
    return rows


def kernel_s() -> list[tuple[str, float, float]]:
    """(what, CPU seconds, seconds) of a process that compiles the kernel, and of the next, which reads it."""
    rows = []
    with TemporaryDirectory() as folder:
        for what in ("compiled", "read from disk"):
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=_keep_in, initargs=(folder,)) as pool:
                rows.append((what, *pool.submit(first_call_s).result()))
            print(f"  kernel {what}: {rows[-1][1]:.1f} s CPU", file=sys.stderr)
    return rows


def _keep_in(folder: str) -> None:
    os.environ["NUMBA_CACHE_DIR"] = folder


def first_call_s() -> tuple[float, float]:
    """CPU seconds and seconds until the compiled kernel has made its first step in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    fleet_of((1, 1, 0), compiled=True).advance(1.0)
    return time.process_time() - cpu, time.perf_counter() - wall


# ---------------------------------------------------------------- telling


def ratios(rows: list[Row]) -> dict[int, float]:
    """CPU time of the plain run over that of the compiled one after it, by the place of the latter.

    Raises
    ------
    SystemExit
        When both do not agree to the byte.
    """
    found = {}
    plain = {(row.case, row.fleet): row for row in rows if row.form == "plain"}
    for i, row in enumerate(rows):
        other = plain.get((row.case, row.fleet))
        if row.form == "plain" or other is None:
            continue
        if row.digest != other.digest:
            raise SystemExit(
                f"{row.case}, {row.fleet}: plain and compiled disagree; run tests/test_simulate_compiled.py"
            )
        found[i] = other.cpu_s / row.cpu_s
    return found


def table(rows: list[Row]) -> str:
    """Rows for people."""
    faster = ratios(rows)
    headers = (
        "REQUESTS OF", "FLEET", "FORM", "REQUESTS", "CPU S", "WALL S", "REQUESTS/S", "MTOKENS/S", "EVENTS EACH",
        "CACHED %", "PEAK MB", "X PLAIN",
    )  # fmt: skip
    return render_table(
        headers,
        [
            (
                row.case, row.fleet, row.form, row.requests, round(row.cpu_s, 3), round(row.wall_s, 3),
                round(row.requests_per_s), round(row.tokens_per_s / 1e6, 1), round(row.events_per_request, 2),
                round(100 * row.cached_ratio, 1), round(row.peak_megabytes), round(faster.get(i, 1.0), 1),
            )
            for i, row in enumerate(rows)
        ],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", type=int, nargs="*", default=[100_000, 1_000_000], metavar="N", help="requests")
    parser.add_argument("--plain-limit", type=int, default=100_000, metavar="N", help="largest growth to run plain")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args()
    forms = (False, True) if is_available() else (False,)
    rows = [*trace_rows(forms), *growth_rows(args.growth, forms, args.plain_limit)]
    steps, backlog, kernel = against_steps(), backlogs(), kernel_s() if is_available() else []
    if args.output == "json":
        ratios(rows)
        told = {"rows": [asdict(row) for row in rows], "xSteps": steps, "backlog": backlog, "kernel": kernel}
        print(json.dumps(told, indent=2))
        return
    print(table(rows))
    print(f"\n{steps:.0f} times faster than step by step on {STEPS_REQUESTS} requests, plain\n")
    print(render_table(("GATEWAY", "REQUESTS", "TIMED OUT", "COST OF A REQUEST"), backlog))
    print("\n" + render_table(("KERNEL", "CPU S", "WALL S"), kernel))


if __name__ == "__main__":
    main()
