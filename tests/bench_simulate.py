"""How fast the simulation replays traces: ``python -m tests.bench_simulate [TRACE ...]``.

Without a file it makes a synthetic hour. Prints requests per wall second and virtual seconds per wall second.
"""

from __future__ import annotations

import argparse
import time

from controller.traces import Trace, load_trace, synthetic_trace
from solvers.engine import EngineProfile, Role
from solvers.simulate import Fleet, SimRequest, replay
from tests.sim_brute import make_profile

FLEETS: dict[str, dict[Role, int]] = {
    "2 prefill + 4 decode": {Role.PREFILL: 2, Role.DECODE: 4},
    "6 mixed": {Role.MIXED: 6},
    "30 prefill + 70 decode": {Role.PREFILL: 30, Role.DECODE: 70},
}


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


def measure(name: str, trace: Trace, counts: dict[Role, int]) -> str:
    """Replay once and describe it in a line."""
    fleet = Fleet(itl_limits_s={"s": 0.05})
    for role, count in counts.items():
        for i in range(count):
            fleet.add_replica(f"{role}-{i}", "s", role, engine())
    sizes = ((r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace)
    requests = [
        SimRequest(name=str(i), service="s", arrival_s=at, prompt_tokens=prompt, output_tokens=output)
        for i, (at, prompt, output) in enumerate(sizes)
    ]
    began_s = time.perf_counter()
    result = replay(fleet, requests)
    took_s = time.perf_counter() - began_s
    per_s, speed = len(requests) / took_s, result.makespan_s / took_s
    ttft = result.services["s"].ttft_s[0.99]
    return f"{name:24} {len(requests):9,} {took_s:8.2f} {per_s:12,.0f} {speed:10,.0f} {ttft:11.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traces", nargs="*", help="trace files")
    files = parser.parse_args().traces
    traces = {file: load_trace(file) for file in files} or {"synthetic hour": synthetic_trace(1, 3600.0)}
    for file, trace in traces.items():
        print(file)
        print(f"{'fleet':24} {'requests':>9} {'wall s':>8} {'requests/s':>12} {'x faster':>10} {'TTFT p99 s':>11}")
        for name, counts in FLEETS.items():
            print(measure(name, trace, counts))


if __name__ == "__main__":
    main()
