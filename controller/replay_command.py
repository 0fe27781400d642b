"""``penstock replay``: serve a load with a plan's replicas in simulation, judge every SLO, and compare policies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from controller.output import add_output_argument, print_output
from controller.plan_bodies import parse_fleet_plan
from controller.planning import add_folder_arguments, decided, observe_folder, parse_assignment, with_options
from controller.replay_incidents import load_incidents
from controller.replay_output import compared_data, compared_sections, run_data, run_sections
from controller.replay_runs import Job, run_jobs
from controller.traces_spec import TraceSpec, parse_trace_spec
from solvers.errors import InvalidInput
from solvers.evaluate import Settings
from solvers.evaluate.incidents import Failures
from solvers.plan import Plan
from solvers.policies import POLICIES
from solvers.problem import Problem

EXIT_MISSED = 2
LISTS = ("List", "FleetPlanList")
SYNTHETIC = "synthetic"
POLICY_PATIENCE_S = 30.0
"""What a gateway lets a request wait when policies are compared: a backlog that nobody waits for says nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_folder_arguments(parser)
    parser.add_argument(
        "--trace", action="append", default=[], metavar="[NAMESPACE/NAME=]TRACE",
        help="Azure CSV, Mooncake JSONL, plain CSV, a folder of ServeGen clients, or a made load: poisson:rate=5, "
        "gamma:rate=5,cv=3, closed:clients=32, servegen:path=DIR,start=S,duration=S; with prompt=TOKENS or P50/P99, "
        "output=…, duration=SECONDS; what is left out is as planned. Several are replayed one after the other; with "
        "a service's name it is that service's part of each (default: ten synthetic minutes of the seed)",
    )  # fmt: skip
    parser.add_argument("--plan", type=Path, action="append", default=[], metavar="FILE",
                        help="FleetPlan to replay (repeatable; default: plan the folder now)")  # fmt: skip
    parser.add_argument("--policy", default="fixed", metavar="NAME[,NAME…]",
                        help=f"who changes the fleet meanwhile: {', '.join(POLICIES)} (default fixed)")  # fmt: skip
    parser.add_argument(
        "--factor", action="append", default=[], metavar="NAMESPACE/NAME=FACTOR",
        help="multiply the trace for a service (repeatable; default: up to the load that is planned for; a trace "
        "without duration and a made load stay as they are)",
    )  # fmt: skip
    parser.add_argument("--until", type=float, default=float("inf"), metavar="SECONDS", help="stop there")
    parser.add_argument("--window", type=float, default=60.0, metavar="SECONDS", help="of what is shown over time")
    parser.add_argument("--patience", type=float, metavar="SECONDS",
                        help="the gateway gives a request up after so long (default: never; 30 when policies "
                        "change the fleet)")  # fmt: skip
    parser.add_argument("--events", type=Path, metavar="FILE",
                        help="failures, drains, cold starts and caps to inject: CSV or a YAML list of at_s, what "
                        "(fail, drain, start, cap), pool, location, node, replica, value (replicas or all; watts of a "
                        "GPU, none lifts), repair_s")  # fmt: skip
    parser.add_argument("--mtbf-hours", type=float, metavar="HOURS",
                        help="break GPUs at random, each after so many hours on average, by the seed")  # fmt: skip
    parser.add_argument("--repair-s", type=float, default=1800.0, metavar="SECONDS",
                        help="how long such a GPU is out of use (default 1800)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of made loads and of scaling (default 1)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="replay with N seeds from --seed on")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes for several runs (default 1)")
    parser.add_argument("--cluster", metavar="dask[=ADDRESS]", help="run on a Dask (or ray[=ADDRESS]) cluster instead")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with plots too")
    add_output_argument(parser)
    parser.epilog = "Exit code: 0 every SLO was met in every run; 2 some was missed; 1 bad input."


def run(args: argparse.Namespace) -> int:
    """Replay and print; exit code 2 when an SLO was missed, or a service or some of its requests were not served."""
    settings, policies = _settings(args), _policies(args.policy)
    observation = observe_folder(args.folder)
    for fault in observation.faults:
        print(f"warning: {fault}", file=sys.stderr)
    problem = with_options(observation.problem, args)
    if args.events is not None:
        settings = replace(settings, incidents=load_incidents(args.events, problem))
    jobs = [*_jobs(args, problem, policies, settings)]
    runs = list(zip(jobs, run_jobs(jobs, args.jobs, args.cluster), strict=True))
    if args.report is not None:
        from controller.replay_report import write_report

        write_report(args.report, runs)
    if len(runs) == 1:
        summary = runs[0][1]
        print_output(args.output, run_data(summary), lambda: "\n\n".join(run_sections(summary)))
    else:
        print_output(args.output, compared_data(runs), lambda: "\n\n".join(compared_sections(runs)))
    is_whole = not any(fault.subject.startswith("ServedModel/") for fault in observation.faults)
    return 0 if is_whole and all(summary.is_met for _, summary in runs) else EXIT_MISSED


def _settings(args: argparse.Namespace) -> Settings:
    patience_s = args.patience
    if patience_s is None and args.policy != "fixed":
        patience_s = POLICY_PATIENCE_S
    for option, value in (("--until", args.until), ("--patience", patience_s or 0.0), ("--window", args.window)):
        if not value >= 0 or (option == "--window" and value == 0):
            remedy = "give a time above 0" if option == "--window" else "give 0 or more seconds"
            raise InvalidInput(option, "", f"is {value}", remedy)
    for option, count, least in (("--seed", args.seed, 0), ("--seeds", args.seeds, 1), ("--jobs", args.jobs, 1)):
        if count < least:
            raise InvalidInput(option, "", f"is {count}", f"give {least} or more")
    failures = _failures(args)
    return Settings(window_s=args.window, until_s=args.until, patience_s=patience_s, failures=failures)


def _failures(args: argparse.Namespace) -> Failures | None:
    for option, number in (("--mtbf-hours", args.mtbf_hours), ("--repair-s", args.repair_s)):
        if number is not None and not 0 < number < float("inf"):
            raise InvalidInput(option, "", f"is {number}", "give a number above 0")
    if args.mtbf_hours is None:
        return None
    return Failures(gpu_mtbf_hours=args.mtbf_hours, repair_s=args.repair_s, seed=args.seed)


def _policies(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        if name not in POLICIES:
            raise InvalidInput("--policy", "", f"{name!r} is unknown", f"use some of {', '.join(POLICIES)}")
    return list(dict.fromkeys(names))


def _jobs(args: argparse.Namespace, problem: Problem, policies: list[str], settings: Settings) -> Iterator[Job]:
    """All combinations of plans, traces, policies and seeds, in that order."""
    factors = _factors(problem, args.factor)
    plans = [(path.name, load_plan(path)) for path in args.plan] or [("planned", decided(problem))]
    traces = [*_traces(problem, args.trace)]
    seeds = range(args.seed, args.seed + args.seeds)
    for (plan_name, plan), (trace, specs), policy, seed in product(plans, traces, policies, seeds):
        yield Job(
            problem=problem,
            plan=plan,
            plan_name=plan_name,
            specs={name: spec for name, spec in specs.items() if _is_asked(problem, name, spec, factors)},
            trace=trace,
            factors={name: factor for name, factor in factors.items() if name in specs},
            policy=policy,
            seed=seed,
            settings=settings,
        )


def _is_asked(problem: Problem, service: str, spec: TraceSpec, factors: Mapping[str, float]) -> bool:
    """False for a service of which nothing is asked: no planned load, no load of its own, or a factor of 0."""
    if service in factors:
        return factors[service] > 0
    return problem.demands[service].requests_per_s > 0 or (not spec.scales_to_demand and spec.kind != "file")


def _traces(problem: Problem, texts: list[str]) -> Iterator[tuple[str, dict[str, TraceSpec]]]:
    """(name, spec by service) of every load to replay."""
    own: dict[str, TraceSpec] = {}
    shared: list[str] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        if equals and name in problem.demands:
            own[name] = parse_trace_spec(rest)
        else:
            shared.append(text)
    for text in shared or [SYNTHETIC]:
        everyone = TraceSpec(kind=SYNTHETIC) if text == SYNTHETIC else parse_trace_spec(text)
        specs = dict.fromkeys(sorted(problem.demands), everyone) | own
        yield Path(text).name if everyone.path and everyone.kind == "file" else text, specs


def load_plan(path: Path) -> Plan:
    """Read a FleetPlan as ``penstock plan -o yaml`` or ``kubectl get fplan -o yaml`` writes it.

    Raises
    ------
    InvalidInput
        When the file cannot be read, holds anything else, or is not one whole plan.
    """
    remedy = "give a FleetPlan in YAML or JSON"
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(str(path), "", f"cannot be read: {said}", remedy) from error
    bodies = [body for document in documents for body in _listed(document)]
    for number, body in enumerate(bodies, start=1):
        kind = body.get("kind") if isinstance(body, dict) else None
        if kind != "FleetPlan":
            raise InvalidInput(f"{path}:{number}", "kind", f"is {kind!r}", remedy)
        if not isinstance(body.get("metadata") or {}, dict):
            raise InvalidInput(f"{path}:{number}", "metadata", "is no mapping", "write metadata: {name: NAME}")
    if not bodies:
        raise InvalidInput(str(path), "", "holds no object", remedy)
    return parse_fleet_plan(bodies)


def _listed(document: Any) -> list[Any]:
    """Objects of a document: the items of a list, or itself; an empty document has none."""
    if isinstance(document, dict) and document.get("kind") in LISTS:
        items = document.get("items")
        return items if isinstance(items, list) else []
    return [] if document is None else [document]


def _factors(problem: Problem, overrides: list[str]) -> dict[str, float]:
    factors = {}
    for override in overrides:
        service, factor = parse_assignment("--factor", override)
        if service not in problem.demands:
            known = ", ".join(sorted(problem.demands)) or "none"
            raise InvalidInput("--factor", "", f"names no planned service: {service!r}", f"planned are {known}")
        factors[service] = factor
    return factors
