"""Policies side by side on a real trace: ``python -m tests.bench_policies``.

The demo's three services and forty GPUs. Both chats get Azure's conversations, the mixture of experts its code
completions, at a share of the planned loads. The first minutes of the traces are what the plan is made from (the rate
of their busy minutes, sizes cut as ``penstock plan --trace`` cuts them); the minutes after them are served by every
policy from that same plan, on the same nodes, with the same cold starts, and a gateway that gives a request up after
30 s. Costs are those of the GPUs held and the energy drawn; ratios are against the plan that never moves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from controller.planning import observe_folder
from controller.replay_command import POLICY_PATIENCE_S
from controller.replay_output import peak_ratio
from controller.tables import Cell, render_table
from controller.trace_demand import trace_demand
from controller.traces import Trace, load_trace
from controller.traces_made import scale_trace, synthetic_trace
from controller.traces_spec import workload_of
from solvers.evaluate import Load, Settings, evaluate
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.policies import POLICIES, make_policy
from solvers.problem import Problem

ROOT = Path(__file__).resolve().parents[1]
MINUTE_S = 60.0
AZURE = {"conv": "AzureLLMInferenceTrace_conv.csv", "code": "AzureLLMInferenceTrace_code.csv"}
SERVED_BY: Mapping[str, str] = {"demo/chat-8b": "conv", "demo/chat-70b": "conv", "demo/moe": "code"}
Traces = Mapping[str, Trace]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy and seed."""

    policy: str
    seed: int
    requests: int
    usd_per_hour: float
    megajoules: float
    in_slo_ratio: float
    unserved: int
    usd_per_thousand_kept: float
    peak_ratio: float
    starts: int
    cpu_s: float


def traces_of(folder: Path, minutes: float) -> Traces:
    """Trace of each service: the public ones where they are, else a made one of the same shape for each."""
    files = {kind: folder / "traces" / name for kind, name in AZURE.items()}
    if all(file.exists() for file in files.values()):
        return {service: load_trace(files[kind]) for service, kind in SERVED_BY.items()}
    print("no Azure traces are there; synthetic conversations stand in", file=sys.stderr)
    return {service: synthetic_trace(i, MINUTE_S * minutes) for i, service in enumerate(SERVED_BY)}


def part(trace: Trace, start_s: float, end_s: float) -> Trace:
    """What arrives from ``start_s`` on and before ``end_s``, counted from there."""
    inside = (r for r in trace if start_s <= r.arrival_s < end_s)
    return tuple(replace(r, arrival_s=r.arrival_s - start_s) for r in inside)


def stated(problem: Problem, past: Traces) -> Problem:
    """The problem with the demand that the past minutes showed."""
    demands = {name: trace_demand(problem, name, trace, "of the past") for name, trace in past.items()}
    return replace(problem, demands=dict(problem.demands) | demands)


def scaled(problem: Problem, traces: Traces, share: float, seed: int) -> dict[str, Trace]:
    """Each trace at a share of its service's planned load, all over its length."""
    found = {}
    for index, (name, trace) in enumerate(sorted(traces.items())):
        own_per_s = len(trace) / trace[-1].arrival_s
        found[name] = scale_trace(trace, share * problem.demands[name].requests_per_s / own_per_s, seed + index)
    return found


def measure(problem: Problem, plan: Plan, load: Load, name: str, seed: int) -> Row:
    """Serve the load under one policy."""
    began = time.process_time()
    settings = Settings(patience_s=POLICY_PATIENCE_S)
    summary = evaluate(problem, plan, load, make_policy(name, problem, plan), settings)
    kept = summary.in_slo_ratio * load.requests
    return Row(
        policy=name,
        seed=seed,
        requests=load.requests,
        usd_per_hour=summary.cost_usd_per_hour,
        megajoules=summary.energy_joules / 1e6,
        in_slo_ratio=summary.in_slo_ratio,
        unserved=summary.unserved,
        usd_per_thousand_kept=1000.0 * summary.cost_usd / kept if kept else float("inf"),
        peak_ratio=peak_ratio(summary),
        starts=summary.starts,
        cpu_s=time.process_time() - began,
    )


def rows_of(options: argparse.Namespace, seed: int) -> list[Row]:
    """All policies on the load of one seed."""
    problem = observe_folder(options.folder).problem
    past_s, end_s = MINUTE_S * options.past, MINUTE_S * (options.past + options.minutes)
    traces = scaled(problem, traces_of(options.data, options.past + options.minutes), options.load, seed)
    problem = stated(problem, {name: part(trace, 0.0, past_s) for name, trace in traces.items()})
    load = Load(workload=workload_of({name: part(trace, past_s, end_s) for name, trace in traces.items()}))
    plan = make_plan(problem)
    print(f"seed {seed}: {load.requests:,} requests, plan {plan.report.cost_usd_per_hour:.2f} USD/h", file=sys.stderr)
    rows = []
    for name in options.policies:
        rows.append(measure(problem, plan, load, name, seed))
        print(f"seed {seed}: {name}, {rows[-1].cpu_s:.0f} s of processor time", file=sys.stderr)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Means over the seeds."""
    headers = (
        "POLICY", "USD/H", "× FIXED", "MJ", "IN SLO %", "UNSERVED", "USD PER 1000 KEPT", "PEAK OF USABLE W %", "STARTS",
    )  # fmt: skip
    names = list(dict.fromkeys(row.policy for row in rows))
    base = [row.usd_per_hour for row in rows if row.policy == names[0]]
    return render_table(headers, (_cells([r for r in rows if r.policy == name], fmean(base)) for name in names))


def _cells(rows: Sequence[Row], base_usd_per_hour: float) -> tuple[Cell, ...]:
    cost = fmean(row.usd_per_hour for row in rows)
    return (
        rows[0].policy,
        cost,
        cost / base_usd_per_hour,
        fmean(row.megajoules for row in rows),
        100.0 * fmean(row.in_slo_ratio for row in rows),
        fmean(row.unserved for row in rows),
        fmean(row.usd_per_thousand_kept for row in rows),
        100.0 * max(row.peak_ratio for row in rows),
        fmean(row.starts for row in rows),
    )


def _policy_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in POLICIES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(POLICIES)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "deploy" / "samples" / "demo", help="of resources")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with traces/")
    parser.add_argument("--policies", type=_policy_names, default=list(POLICIES), help="comma-separated (all)")
    parser.add_argument("--past", type=float, default=10.0, metavar="MINUTES", help="that the plan is made from (10)")
    parser.add_argument("--minutes", type=float, default=40.0, help="that are served (40)")
    parser.add_argument("--load", type=float, default=0.5, help="share of the planned loads (0.5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of how traces are laid over one another")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    rows = [row for seed in options.seeds for row in rows_of(options, seed)]
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.output == "json" else table(rows))


if __name__ == "__main__":
    main()
