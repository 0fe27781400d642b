"""The demo: the real operator on a simulated cluster with a real control plane, serving a replayed trace.

It prints a live table, lets three incidents happen (a surge, a cut of one rack's budget, a lost node) and ends with a
summary. The exit code is 0 when no power budget was exceeded and nothing crashed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import urllib3

from controller.traces import load_trace
from tests.simcluster.api import ApiError, UnreachableError
from tests.simcluster.demo_report import Run, has_failed, live_header, live_line, summary
from tests.simcluster.demo_script import FULL, SHORT, Script
from tests.simcluster.demo_watch import Watcher
from tests.simcluster.demo_world import ROOT, World, start_world
from tests.simcluster.poll import DeadlineError
from tests.simcluster.process import ProcessError

AZURE_TRACE = Path("traces") / "AzureLLMInferenceTrace_conv.csv"
FIRST_PLACEMENT_S = 300.0
SAMPLE_EVERY_S = 0.5
CRASHES = (ProcessError, DeadlineError, ApiError, UnreachableError, urllib3.exceptions.HTTPError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options."""
    parser.add_argument("--short", action="store_true", help="the 90-second form")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="requests to replay (default: the Azure conversation trace where "
        "$PENSTOCK_DATA or ../shared/data holds it, else a synthetic one of the same shape)"
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 when a budget was exceeded or something crashed."""
    script = SHORT if args.short else FULL
    trace = args.trace or default_trace()
    if trace is not None:
        load_trace(trace)  # a malformed trace is told before anything starts
    say(f"trace: {trace.name if trace else 'synthetic, seeded'}; {script.time_scale:g} virtual seconds a second")
    with start_world(script.time_scale) as world:
        say(f"cluster up: {', '.join(world.cluster.components)}")
        result = play(world, script, trace)
        strays = [each for each in world.listeners() if not each.is_loopback]
        pids = world.pids()
    print("\n" + summary(result), flush=True)
    left = sorted(name for name, pid in pids.items() if Path(f"/proc/{pid}").exists())
    say(f"listening beyond loopback: {strays or 'nothing'}; processes left of {len(pids)}: {left or 'none'}")
    return 1 if has_failed(result) or strays or left else 0


def default_trace() -> Path | None:
    """Find the Azure trace where the data folder is."""
    folder = Path(os.environ.get("PENSTOCK_DATA") or ROOT.parent / "shared" / "data")
    return folder / AZURE_TRACE if (folder / AZURE_TRACE).is_file() else None


def play(world: World, script: Script, trace: Path | None) -> Run:
    """Start twin and operator, place the fleet, let the script happen, and gather what came of it."""
    services = [each.service for each in script.traffic]
    world.start_twin(script.traffic, trace)
    watcher = Watcher(world)
    try:
        world.start_operator(script.decision_s, script.tick_s)
        world.wait_served(FIRST_PLACEMENT_S)
        say(f"first placement Ready: {len(world.serving_pods())} pods; requests begin\n")
        print(live_header(services), flush=True)
        world.open_gateway()
        for line in _act_out(world, script, watcher, services):
            print(line, flush=True)
        state, plans = world.twin_state(), len(world.list_kind("fleetplans"))
    except CRASHES as error:
        return Run(script=script, samples=watcher.samples, crashed=f"{error}\n{_circumstances(world)}")
    return Run(script=script, samples=watcher.samples, final_services=state["services"], plans=plans)


def _circumstances(world: World) -> str:
    """Tell what may explain a crash, as far as what still runs can say."""
    try:
        conditions = world.conditions()
    except CRASHES as error:
        conditions = f"the API server does not tell any conditions: {error}"
    return f"{world.log_tail('operator')}\n{conditions}"


def _act_out(world: World, script: Script, watcher: Watcher, services: list[str]) -> Iterator[str]:
    pending = sorted(script.incidents, key=lambda incident: incident.start_s)
    next_line_s = 0.0
    while True:
        world.check()
        sample = watcher.look()
        if sample.at_s >= script.duration_s:
            return
        while pending and sample.at_s >= pending[0].start_s:
            incident = pending.pop(0)
            incident.act(world)
            yield f"        -- {incident.name}: {incident.happens}"
        if sample.at_s >= next_line_s:
            next_line_s = sample.at_s + script.refresh_s * script.time_scale
            yield live_line(sample, services)
        time.sleep(SAMPLE_EVERY_S)


def say(text: str) -> None:
    """Tell what is going on, with the time since the start."""
    print(f"[{time.monotonic() - _BEGAN_S:5.1f} s] {text}", flush=True)


_BEGAN_S = time.monotonic()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
