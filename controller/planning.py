"""From a folder of manifests to a plan: what ``plan``, ``explain`` and ``replay`` share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from controller.arguments import positive_seconds
from controller.correction_status import corrections_of
from controller.corrections import with_corrections
from controller.inventory import Records
from controller.manifests import load_folder
from controller.observe import Observation, build_problem
from controller.readings import Readings
from controller.specs import PLAN_FEASIBLE, specs_of_manifests
from controller.trace_demand import trace_demand
from controller.traces import load_trace
from solvers.correction import with_notes
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A folder, what it asks, and the decision."""

    observation: Observation
    problem: Problem
    plan: Plan


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what to plan for."""
    parser.add_argument(
        "-f",
        "--folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder or file with GpuClass, PowerDomain, EngineProfile, FleetPolicy, ServedModel and v1/Node manifests",
    )
    parser.add_argument(
        "--demand",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME=REQUESTS_PER_S",
        help="plan for this load instead of the declared one (repeatable)",
    )
    parser.add_argument(
        "--power-caps",
        action="store_true",
        help="let pools run below their highest power cap, as profiles allow (the operator cannot enforce it yet)",
    )
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        metavar="SECONDS",
        help="take the best plan found after so long (default: timeLimitSeconds of the FleetPolicy's solver, else 20)",
    )


def add_trace_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the option that plans for a trace; ``replay`` has its own, which replays one."""
    parser.add_argument(
        "--trace",
        dest="traces",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME=FILE",
        help="plan for the sizes of a trace, cut into a few buckets, and the rate of its busy minutes (repeatable)",
    )


def decided(problem: Problem, *, workers: int = 1) -> Plan:
    """Plan as the operator does, within the policy's time limit; early plans of large fleets go to standard error."""
    began_s = time.monotonic()

    def tell(plan: Plan) -> None:
        short = " and leaves some demand unserved" if plan.is_short else ""
        passed = f"{time.monotonic() - began_s:.1f} of at most {problem.policy.time_limit_s:g} s"
        cost = f"{plan.report.objective_usd_per_hour:,.2f} USD/h{short}"
        print(f"{passed}: a first checked plan comes to {cost}; looking for a better one", file=sys.stderr)

    return make_plan(problem, workers=workers, is_isolated=True, on_plan=tell, clock=time.monotonic)


def plan_folder(args: argparse.Namespace, decide: Callable[[Problem], Plan] = decided) -> Planned:
    """Read the folder, report what is left out on standard error, and decide.

    Raises
    ------
    InvalidInput, InvalidManifests
        When a manifest or an option is wrong; all that is wrong is listed.
    SolveFailed
        When no verified plan was found.
    """
    observation = observe_folder(args.folder)
    for fault in observation.faults:
        print(f"{'infeasible' if fault.condition == PLAN_FEASIBLE else 'error'}: {fault}", file=sys.stderr)
    problem = with_options(with_traces(observation.problem, args.traces), args)
    return Planned(observation=observation, problem=problem, plan=with_notes(decide(problem), problem))


def observe_folder(folder: Path) -> Observation:
    """Build the problem that a folder states, with nothing running yet."""
    if not folder.exists():
        raise InvalidInput(str(folder), "", "no such file or folder", "name a folder of manifests with -f")
    manifests = load_folder(folder)
    records, silence = Records(nodes=manifests.nodes), Readings(taken_at_s=0.0)
    known = corrections_of(manifests.bodies)
    for name, _, message, _ in known.notices:
        print(f"note: EngineProfile/{name}: {message}", file=sys.stderr)
    specs = with_corrections(specs_of_manifests(manifests), known)
    return build_problem(specs, records, silence, now_s=0.0, is_advice=True)


def with_options(problem: Problem, args: argparse.Namespace) -> Problem:
    """Take in what the options of ``add_folder_arguments`` ask."""
    policy = replace(
        problem.policy,
        power_caps=problem.policy.power_caps or args.power_caps,
        time_limit_s=args.time_limit or problem.policy.time_limit_s,
    )
    return with_demands(replace(problem, policy=policy), args.demand)


def with_demands(problem: Problem, overrides: list[str]) -> Problem:
    """Replace loads by those of ``--demand NAMESPACE/NAME=REQUESTS_PER_S``."""
    demands = dict(problem.demands)
    for override in overrides:
        service, rate = parse_assignment("--demand", override)
        if service not in demands:
            known = ", ".join(sorted(demands)) or "none"
            raise InvalidInput("--demand", "", f"names no planned service: {service!r}", f"planned are {known}")
        demands[service] = replace(demands[service], requests_per_s=rate, source="Declared (--demand)")
    return replace(problem, demands=demands)


def with_traces(problem: Problem, overrides: list[str]) -> Problem:
    """Replace demands by those of ``--trace NAMESPACE/NAME=FILE``."""
    demands = dict(problem.demands)
    for override in overrides:
        service, _, file = override.partition("=")
        if service not in demands or not file:
            known = ", ".join(sorted(demands)) or "none"
            raise InvalidInput("--trace", "", f"cannot read {override!r}", f"write NAME=FILE; planned are {known}")
        demands[service] = trace_demand(problem, service, load_trace(file), Path(file).name)
    return replace(problem, demands=demands)


def parse_assignment(option: str, text: str) -> tuple[str, float]:
    """Read ``NAME=NUMBER`` of an option.

    >>> parse_assignment("--demand", "prod/chat=12.5")
    ('prod/chat', 12.5)
    """
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not name or not 0.0 <= value < float("inf"):
        raise InvalidInput(option, "", f"cannot read {text!r}", "write NAMESPACE/NAME=NUMBER, the number 0 or more")
    return name, value
