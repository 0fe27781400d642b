"""Where splitting prefill from decode wins: ``python -m tests.bench_claims``.

Goodput per GPU of three ways to serve a trace with eight replicas, for two models, over three SLO strictness levels
and three GPU mixes:

- *colocated*: every replica does both, whole prompts beside the decode batch (up to 8,192 tokens a step), what
  DistServe and Splitwise take for their baseline;
- *chunked*: the same with prompts in chunks of 512 tokens (Sarathi-Serve, Agrawal et al., OSDI 2024);
- *disaggregated*: prefill and decode replicas of their own, the best of the splits tried; with two kinds of GPU the
  faster ones prefill (Splitwise, Patel et al., ISCA 2024; DistServe, Zhong et al., OSDI 2024).

Goodput is DistServe's: the highest rate at which 90 % of the requests keep both TTFT and mean TPOT limits, found by
squeezing the trace's arrivals. Limits are multiples of the unloaded times on an H100: prefill of the 90th percentile
prompt, and a decode step of one sequence. Profiles are those of the demo, from silicon tables: Llama-3.1-8B on one GPU
a replica, and Llama-3.1-70B in fp8 on two (tensor parallel).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from controller.planning import observe_folder
from controller.tables import Cell, render_table
from controller.traces import Trace, load_trace
from controller.traces_made import synthetic_trace
from controller.traces_spec import workload_of
from solvers.engine import EngineProfile, Role
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.simulate import Fleet, Workload, is_worth_compiling

ROOT = Path(__file__).resolve().parents[1]
KEPT_RATIO = 0.9
REPLICAS = 8
HALVINGS = 7
STRICTNESS: Mapping[str, float] = {"strict": 2.5, "medium": 5.0, "loose": 10.0}
Mixes = Mapping[str, tuple[str, ...]]
"""GPU class of each replica, the faster ones first."""
SPLITS = (2, 3, 4, 5, 6, 7)
WHOLE_TOKENS, CHUNK_TOKENS = 8192, 512
Replicas = Sequence[tuple[Role, EngineProfile]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: its name in profiles, the configuration of its replicas, and the fleets tried."""

    name: str
    config: str
    mixes: Mixes


def pair(first: str, second: str, gpus: int) -> Mixes:
    """All replicas on one class, all on the other, half on each."""
    whole, half = (REPLICAS, REPLICAS // 2)
    short = {name: name.partition("-")[0] for name in (first, second)}
    return {
        f"{gpus * whole} {short[first]}": (first,) * whole,
        f"{gpus * whole} {short[second]}": (second,) * whole,
        f"{gpus * half} {short[first]} + {gpus * half} {short[second]}": (first,) * half + (second,) * half,
    }


MODELS: Mapping[str, Model] = {
    "8B": Model(name="meta-llama/Llama-3.1-8B", config="tp1", mixes=pair("h100-sxm", "a100-sxm", 1)),
    "70B": Model(name="meta-llama/Llama-3.1-70B", config="tp2-fp8", mixes=pair("b200-sxm", "h100-sxm", 2)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request must keep."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model, trace, mix and strictness: goodput per GPU (requests per second) of each way."""

    model: str
    trace: str
    gpus: str
    strictness: str
    ttft_limit_s: float
    tpot_limit_s: float
    colocated: float
    chunked: float
    disaggregated: float
    split: str

    @property
    def winner(self) -> str:
        """Way with most goodput; a tie within 2 % names none."""
        ways = {name: getattr(self, name) for name in ("colocated", "chunked", "disaggregated")}
        best = max(ways, key=lambda name: ways[name])
        others = max(value for name, value in ways.items() if name != best)
        return best if ways[best] > 1.02 * others else "even"


def profiles(model: Model) -> dict[str, EngineProfile]:
    """Profiles of the demo, by class."""
    known = observe_folder(ROOT / "deploy" / "samples" / "demo").problem.profiles
    return {k.gpu_class: p for k, p in known.items() if (k.model, k.config.label) == (model.name, model.config)}


def limits(trace: Trace, engine: EngineProfile, scale: float) -> Limits:
    """Multiples of what an idle replica takes."""
    prompt = float(np.percentile([r.prompt_tokens for r in trace], 90))
    context = float(np.median([r.prompt_tokens for r in trace]))
    prompt = min(prompt, engine.prefill_tokens[-1])
    return Limits(ttft_s=scale * prefill_s(engine, prompt), tpot_s=scale * decode_step_s(engine, 1.0, context))


def mixed(gpus: Sequence[str], engines: Mapping[str, EngineProfile], chunk_tokens: int) -> Replicas:
    """Every GPU does both."""
    return [(Role.MIXED, replace(engines[name], prefill_chunk_tokens=chunk_tokens)) for name in gpus]


def split(gpus: Sequence[str], engines: Mapping[str, EngineProfile], prefills: int) -> Replicas:
    """The first GPUs prefill, the others decode; ``gpus`` name the faster ones first."""
    return [(Role.PREFILL if i < prefills else Role.DECODE, engines[name]) for i, name in enumerate(gpus)]


def kept_ratio(replicas: Replicas, workload: Workload, kept: Limits, *, compiled: bool) -> float:
    """Share of the requests that keep both limits."""
    fleet = Fleet(compiled=compiled)
    for i, (role, engine) in enumerate(replicas):
        fleet.add_replica(f"r{i}", "s", role, engine)
    fleet.submit_workload(workload)
    fleet.advance(float("inf"))
    inside = sum(r.ttft_s <= kept.ttft_s and r.tpot_s <= kept.tpot_s for r in fleet.take_finished())
    return inside / len(workload)


def goodput_per_gpu(replicas: Replicas, trace: Trace, kept: Limits, *, compiled: bool) -> float:
    """Highest rate over the GPUs at which enough requests keep their limits; 0 when not even a trickle does."""
    workload = workload_of({"s": trace})
    own_per_s = len(trace) / trace[-1].arrival_s
    gpus = sum(engine.key.config.gpus for _, engine in replicas)
    low, high = 0.05 * own_per_s, 400.0 * gpus
    at = {low: 0.0}

    def holds(rate: float) -> bool:
        squeezed = replace(workload, arrival_s=workload.arrival_s * (own_per_s / rate))
        at[rate] = kept_ratio(replicas, squeezed, kept, compiled=compiled)
        return at[rate] >= KEPT_RATIO

    if not holds(low):
        return 0.0
    rate = own_per_s
    while rate < high and holds(rate):
        low, rate = rate, 2.0 * rate
    high = rate
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low / gpus


def rows_of(size: str, name: str, trace: Trace) -> Iterator[Row]:
    """Every mix and strictness for one model and trace."""
    model = MODELS[size]
    engines = profiles(model)
    compiled = is_worth_compiling(100 * len(trace))
    for (gpus, names), (level, scale) in ((m, s) for m in model.mixes.items() for s in STRICTNESS.items()):
        print(f"{size}, {name}: {gpus}, {level}", file=sys.stderr)
        kept = limits(trace, engines["h100-sxm"], scale)
        ways = {
            str(count): goodput_per_gpu(split(names, engines, count), trace, kept, compiled=compiled)
            for count in SPLITS
        }
        best = max(ways, key=lambda count: ways[count])
        yield Row(
            model=size,
            trace=name,
            gpus=gpus,
            strictness=level,
            ttft_limit_s=kept.ttft_s,
            tpot_limit_s=kept.tpot_s,
            colocated=goodput_per_gpu(mixed(names, engines, WHOLE_TOKENS), trace, kept, compiled=compiled),
            chunked=goodput_per_gpu(mixed(names, engines, CHUNK_TOKENS), trace, kept, compiled=compiled),
            disaggregated=ways[best],
            split=f"{best}:{REPLICAS - int(best)}" if ways[best] > 0 else "none",
        )


def table(rows: Sequence[Row]) -> str:
    headers = (
        "MODEL", "TRACE", "GPUS", "SLO", "TTFT MS", "TPOT MS", "COLOCATED", "CHUNKED", "DISAGGREGATED", "P:D", "WINS",
    )  # fmt: skip
    return render_table(headers, (_cells(row) for row in rows))


def _cells(row: Row) -> tuple[Cell, ...]:
    where = (row.model, row.trace, row.gpus, row.strictness, 1000 * row.ttft_limit_s, 1000 * row.tpot_limit_s)
    return *where, row.colocated, row.chunked, row.disaggregated, row.split, row.winner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path, help="trace files (default: the Azure ones in the data folder)")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with traces/")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--requests", type=int, default=2000, help="from the start of each trace")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    files = options.traces or sorted((options.data / "traces").glob("AzureLLMInferenceTrace_*.csv"))
    traces = {file.stem.removeprefix("AzureLLMInferenceTrace_"): load_trace(file) for file in files}
    if not traces:
        print("no Azure traces are there; a synthetic hour stands in", file=sys.stderr)
        traces = {"synthetic": synthetic_trace(1, 3600.0)}
    rows = [
        row
        for size in options.models
        for name, trace in traces.items()
        for row in rows_of(size, name, trace[: options.requests])
    ]
    if options.output == "json":
        print(json.dumps([asdict(row) | {"wins": row.winner} for row in rows], indent=2))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
