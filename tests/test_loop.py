"""One turn after the other on a cluster in memory, with the real planner, rollout and statuses."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from controller.cache import Cache
from controller.cycle import Cycle, plan_to_act_on, protective
from controller.decide import Decider
from controller.metrics import Metrics
from controller.readings import Histogram, LoadSample, Readings, ServiceReading
from controller.settings import Settings
from controller.telemetry import ServiceTarget
from controller.turn import Report, Turn
from solvers.engine import EngineConfig, Role
from solvers.errors import SolveFailed
from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.rollout import Scale
from tests.fake_cluster import FakeCluster
from tests.simcluster.poll import wait_until
from tests.world_bodies import NAMESPACE, Json

SERVICE = f"{NAMESPACE}/chat"


class FakeElector:
    is_leader = True
    holder = "one"


class FakeWatch:
    restarts = renewals = 0
    is_running = False

    def start(self) -> None:
        self.is_running = True

    def renew(self) -> None:
        self.renewals += 1


class FakeTelemetry:
    has_read = True

    def __init__(self) -> None:
        self.latest = Readings(taken_at_s=0.0)

    def look_for(self, targets: Iterable[ServiceTarget], period_s: float, *, asks_engines: bool = False) -> None:
        self.targets, self.asks_engines = tuple(targets), asks_engines


class PlannerHere:
    """Solves in this process; fails when told to."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.solves = 0

    def solve(self, problem: Problem, previous: Plan | None = None, deadline_s: float = 60.0) -> Plan:
        self.solves += 1
        if self.fault is not None:
            raise self.fault
        return make_plan(problem, previous=previous)


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A cycle with everything around it in hand."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster, self.clock = cluster, Clock()
        self.watch, self.telemetry, self.worker = FakeWatch(), FakeTelemetry(), PlannerHere()
        self.elector, self.published, self.metrics = FakeElector(), list[Turn](), Metrics()
        self.restart()

    def restart(self) -> None:
        """Begin anew with an empty memory, as another process would."""
        self.cache = Cache(clock=self.clock)
        self.cluster.listener, self.cluster.may_write = self.cache, lambda: self.elector.is_leader
        self.decider = Decider(self.worker, deadline_s=60.0, clock=self.clock)
        self.cycle = Cycle(
            Settings(identity="one", decision_s=60.0, tick_s=5.0),
            client=self.cluster,
            cache=self.cache,
            watch=self.watch,  # type: ignore[arg-type]
            elector=self.elector,  # type: ignore[arg-type]
            telemetry=self.telemetry,  # type: ignore[arg-type]
            decider=self.decider,
            metrics=self.metrics,
            publish=self.published.append,
            clock=self.clock,
        )

    def turn(self, pause_s: float = 5.0) -> Report:
        """Take one turn, after waiting for a solve in flight."""
        wait_until(lambda: not self.decider.is_solving or self.decider.has_answer, "the solve")
        self.clock.now_s += pause_s
        return self.cycle.turn()

    def settle(self) -> Report:
        """Turn until nothing is done any more."""
        for _ in range(30):
            report = self.turn()
            if report.decision and report.decision.number and not report.actions and not self.decider.is_solving:
                return report
        raise AssertionError(f"never settled: {report}")

    def replicas(self) -> dict[str, int]:
        return {name: body["spec"]["replicas"] for name, body in self.cluster.objects["Deployment"].items()}

    def writes(self) -> list[tuple[str, str]]:
        """Writes since the last time that were no status and no Event."""
        done = [w for w in self.cluster.writes if not w[1].endswith("/status") and "/events" not in w[1]]
        self.cluster.writes.clear()
        return done


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(FakeCluster().install())
    made.cluster.serve(requests_per_s=6.0)
    before = threading.active_count()
    yield made
    made.decider.stop()
    assert threading.active_count() <= before + 2


def condition(cluster: FakeCluster, name: str, kind: str) -> tuple[str, str, str]:
    found = {c["type"]: c for c in cluster.statuses.get(name, {}).get("conditions", ())}
    entry = found.get(kind, {"status": "", "reason": "", "message": ""})
    return entry["status"], entry["reason"], entry["message"]


def test_a_fleet_is_placed_and_the_second_turn_does_nothing(bench: Bench) -> None:
    report = bench.settle()
    assert report.decision is not None
    assert sum(bench.replicas().values()) == sum(row.replicas for row in report.decision.plan.placements) > 0
    assert [turn.number for turn in bench.published] == [1]
    bench.writes()
    bench.turn()
    bench.turn(pause_s=61.0)  # a decision, too
    bench.turn()
    assert bench.writes() == []
    assert condition(bench.cluster, "chat", "Ready")[:2] == ("True", "Serving")


def test_a_plan_is_recorded_before_anything_is_done_for_it(bench: Bench) -> None:
    bench.settle()
    verbs = [path.rpartition("/")[2] for verb, path in bench.writes() if verb in ("create", "scale")]
    assert verbs[0] == "fleetplans"


def test_advice_is_recorded_and_told_but_no_workload_is_written(bench: Bench) -> None:
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(modes={"replicas": "Advise"}))
    for _ in range(3):
        report = bench.turn()
    assert bench.replicas() == {}
    assert "plan-000001" in bench.cluster.objects["FleetPlan"]
    assert report.holds == ("FleetPolicy/default is in mode Advise",)
    assert condition(bench.cluster, "chat", "Applied")[:2] == ("False", "AdviceOnly")
    assert bench.cluster.statuses["plan-000001"]["state"] == "Advised"


def test_off_writes_nothing_but_statuses(bench: Bench) -> None:
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(modes={"replicas": "Off"}))
    for _ in range(3):
        bench.turn()
    assert bench.writes() == []


def test_a_service_that_may_not_act_holds_up_nobody(bench: Bench) -> None:
    bench.cluster.serve("shy", 4.0, modes={"replicas": "Advise"})
    bench.settle()
    assert sum(bench.replicas().values()) > 0
    assert not any("shy" in name for name in bench.replicas())


def test_nothing_is_done_between_a_blind_watch_and_our_own_list(bench: Bench) -> None:
    bench.settle()
    bench.writes()
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    bench.turn()
    node = bench.cluster.objects["Node"]["rack-1-0"]
    wait_until(lambda: bench.decider.has_answer, "the solve")
    bench.cache.see("Node", None, node)
    report = bench.cycle.turn()  # at once: the events of the relist are not quiet yet
    assert "list of our own" in report.holds[0]
    assert {path.rpartition("/")[2] for _, path in bench.writes()} <= {"fleetplans"}, "written down, but not done"
    bench.settle()
    assert bench.writes() != []


def test_a_blind_turn_builds_no_view_and_the_next_one_comes_soon(bench: Bench) -> None:
    seen = bench.settle()
    bench.cluster.put("Node", {**bench.cluster.objects["Node"]["rack-1-0"], "metadata": {"name": "new"}})
    bench.cache.see("Node", None, bench.cluster.objects["Node"]["rack-1-0"])
    blind = bench.cycle.turn().sight
    assert blind.observation is seen.sight.observation, "nothing new was made of what cannot be relied on"
    assert bench.cycle.pause_s(blind) < bench.cycle.tick_s(blind.specs)
    after = bench.turn().sight
    assert "new" in after.view.nodes
    assert bench.cycle.pause_s(after) == bench.cycle.tick_s(after.specs)


def test_the_step_that_a_new_plan_asks_for_is_taken_in_the_turn_that_takes_it_in(bench: Bench) -> None:
    bench.turn()
    wait_until(lambda: bench.decider.has_answer, "the solve")
    report = bench.cycle.turn()
    assert report.decision is not None
    assert report.decision.number == 1
    assert report.outcomes
    assert sum(bench.replicas().values()) > 0


def raise_demand(spec: Json) -> None:
    spec["demand"]["declared"]["milliRequestsPerSecond"] = 20_000


def test_ghosts_are_gone_before_anything_is_done(bench: Bench) -> None:
    bench.settle()
    bench.cluster.listener = None  # the watch is blind
    for key in list(bench.cluster.objects["Pod"]):
        bench.cluster.remove("Pod", key)
    bench.cluster.listener = bench.cache
    bench.cache.see("Node", None, bench.cluster.objects["Node"]["rack-1-0"])
    bench.cache.suspect_all()
    report = bench.turn()
    assert report.sight.observation.snapshot.replicas == ()


def test_an_unreachable_api_server_holds_and_is_caught_up_with(bench: Bench) -> None:
    bench.settle()
    before = bench.replicas()
    bench.cluster.is_down = True
    report = bench.turn(pause_s=61.0)
    assert "cannot be relied on" in report.holds[0]
    bench.cluster.is_down = False
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    bench.settle()
    assert sum(bench.replicas().values()) > sum(before.values())


def test_a_missing_kind_is_named_and_the_watches_begin_anew_when_it_is_back(bench: Bench) -> None:
    bench.settle()
    bench.cluster.lacking.add("PowerDomain")
    report = bench.turn(pause_s=61.0)
    assert "powerdomains; apply the CustomResourceDefinitions" in report.holds[0]
    bench.cluster.lacking.clear()
    bench.turn()
    assert bench.watch.renewals == 1


def test_a_failed_solve_keeps_the_last_good_plan_and_is_told(bench: Bench) -> None:
    bench.settle()
    before = bench.replicas()
    bench.worker.fault = SolveFailed("the solver's process ended with code 137; out of memory?")
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    for _ in range(3):
        report = bench.turn()
    assert report.solve_fault.endswith("out of memory?")
    assert bench.replicas() == before
    reasons = {event["reason"] for event in bench.cluster.events}
    assert "SolveFailed" in reasons
    assert condition(bench.cluster, "default", "PlanFeasible") == (
        "Unknown",
        "SolveFailed",
        f"plan-000001 stays: {bench.worker.fault}",
    )
    bench.worker.fault = None
    for _ in range(5):  # the solve in flight may have failed before that; the pause after it is longer
        if not bench.turn().solve_fault:
            break
    bench.settle()
    assert condition(bench.cluster, "default", "PlanFeasible")[0] == "True"
    assert sum(bench.replicas().values()) > sum(before.values())


def test_a_standby_writes_nothing_and_follows_the_recorded_plan(bench: Bench) -> None:
    bench.settle()
    number = bench.published[-1].number
    bench.restart()
    bench.elector.is_leader = False
    bench.writes()
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    solves = bench.worker.solves
    report = bench.turn()
    assert bench.cycle.latest is not None
    assert bench.cycle.latest.number == number
    assert "this replica does not lead" in report.holds
    assert bench.cluster.writes == []
    assert bench.worker.solves == solves


def test_a_new_process_goes_on_where_the_old_one_stopped(bench: Bench) -> None:
    bench.settle()
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    bench.turn()
    bench.turn()
    bench.restart()
    report = bench.settle()
    assert report.decision is not None
    assert report.decision.number == 2
    assert len(bench.cluster.objects["FleetPlan"]) == 2
    assert sum(bench.replicas().values()) == sum(row.replicas for row in report.decision.plan.placements)


def test_a_cut_budget_is_kept_even_when_paused_and_unsolved(bench: Bench) -> None:
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    report = bench.settle()
    rack = max(report.sight.observation.snapshot.desired.items(), key=lambda item: item[1])[0][1]
    bench.worker.fault = SolveFailed("no")
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(paused=True))
    bench.cluster.change("PowerDomain", rack, lambda spec: spec.update(budgetWatts=8 * 35 + 10))
    bench.turn()
    report = bench.turn()
    left = {place: count for place, count in report.sight.observation.snapshot.desired.items() if place[1] == rack}
    assert not any(left.values())
    assert "FleetPolicy/default is paused" in report.holds
    assert "OverBudget" in {event["reason"] for event in bench.cluster.events}


def test_a_pause_stops_a_rollout(bench: Bench) -> None:
    bench.settle()
    before = bench.replicas()
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(paused=True))
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    for _ in range(4):
        report = bench.turn()
    assert bench.replicas() == before
    assert report.actions == ()
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(paused=False))
    bench.settle()
    assert bench.replicas() != before


def test_a_removed_model_leaves_its_pods_and_its_gpus_stay_charged(bench: Bench) -> None:
    bench.cluster.serve("code", 4.0)
    bench.settle()
    pods = {key for key in bench.cluster.objects["Pod"] if "code" in key}
    bench.cluster.remove("ServedModel", f"{NAMESPACE}/code")
    report = bench.settle()
    assert {key for key in bench.cluster.objects["Pod"] if "code" in key} == pods
    assert sum(node.held_watts for node in report.sight.observation.snapshot.nodes) > 0


def measured(requests_per_s: float, at_s: float) -> Readings:
    sizes = {"prompt_histogram": ((1024.0,), (1.0,)), "output_histogram": ((256.0,), (1.0,))}
    histograms = {name: Histogram(upper_bounds=bounds, weights=rows) for name, (bounds, rows) in sizes.items()}
    sample = LoadSample(time_s=at_s, requests_per_s=requests_per_s, window_s=60.0)
    reading = ServiceReading(
        service=SERVICE,
        source="Gateway",
        requests_per_s=requests_per_s,
        history=(sample,),
        as_of_s=at_s,
        prompt_histogram=histograms["prompt_histogram"],
        output_histogram=histograms["output_histogram"],
    )
    return Readings(taken_at_s=at_s, services={SERVICE: reading})


def test_stale_telemetry_changes_nothing_and_is_said(bench: Bench) -> None:
    bench.cluster.change("ServedModel", SERVICE, lambda spec: spec.update(demand={"source": "Gateway"}))
    bench.telemetry.latest = measured(6.0, bench.clock.now_s + 10.0)
    bench.settle()
    before, solves = bench.replicas(), bench.worker.solves
    assert sum(before.values()) > 0
    for _ in range(3):
        bench.turn(pause_s=61.0)
    assert (bench.replicas(), bench.worker.solves) == (before, solves)
    assert condition(bench.cluster, "chat", "TelemetryFresh")[:2] == ("False", "Held")
    assert condition(bench.cluster, "default", "TelemetryFresh")[2] == "no fresh demand of team-a/chat"
    bench.telemetry.latest = measured(40.0, bench.clock.now_s + 10.0)
    bench.turn()
    bench.settle()
    assert sum(bench.replicas().values()) > sum(before.values())
    assert condition(bench.cluster, "chat", "TelemetryFresh")[:2] == ("True", "Gateway")


def test_a_restart_without_telemetry_decides_nothing_about_what_runs(bench: Bench) -> None:
    bench.cluster.change("ServedModel", SERVICE, lambda spec: spec.update(demand={"source": "Gateway"}))
    bench.telemetry.latest = measured(6.0, bench.clock.now_s + 10.0)
    bench.settle()
    before, solves = bench.replicas(), bench.worker.solves
    bench.telemetry.latest = Readings(taken_at_s=bench.clock.now_s, faults=("refused",))
    bench.restart()
    for _ in range(3):
        bench.turn()
    assert (bench.replicas(), bench.worker.solves) == (before, solves)


def test_no_decision_is_made_before_telemetry_was_asked(bench: Bench) -> None:
    bench.telemetry.has_read = False
    for _ in range(3):
        bench.turn()
    assert bench.worker.solves == 0


def test_history_is_trimmed_to_the_policys_count(bench: Bench) -> None:
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.update(planHistory={"count": 2}))
    for rate in (4_000, 20_000, 6_000, 30_000):
        bench.cluster.change(
            "ServedModel",
            SERVICE,
            lambda spec, rate=rate: spec["demand"]["declared"].update(milliRequestsPerSecond=rate),  # type: ignore[misc]
        )
        bench.settle()
    bench.turn()
    kept = sorted(bench.cluster.objects["FleetPlan"])
    assert len(kept) == 2
    assert kept[-1] == f"plan-{bench.published[-1].number:06d}"


def test_only_what_lowers_a_domain_over_budget_is_protective(bench: Bench) -> None:
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    snapshot = bench.settle().sight.observation.snapshot
    pool, rack = next(place for place, count in snapshot.desired.items() if count)
    down = Scale(pool=pool, location=rack, from_replicas=2, to_replicas=1, reason="")
    up = Scale(pool=pool, location=rack, from_replicas=2, to_replicas=3, reason="")
    assert protective((down, up), snapshot) == ()
    bench.cluster.change("PowerDomain", rack, lambda spec: spec.update(budgetWatts=100))
    assert protective((down, up), bench.turn().sight.observation.snapshot) == (down,)


def test_services_that_may_not_act_stay_as_they_are_in_the_plan_to_act_on(bench: Bench) -> None:
    report = bench.settle()
    assert report.decision is not None
    bench.cluster.change("ServedModel", SERVICE, lambda spec: spec.update(modes={"replicas": "Advise"}))
    observation = bench.turn().sight.observation
    other = PoolKey(service=SERVICE, role=Role.MIXED, gpu_class="h100-sxm", config=EngineConfig())
    placements = plan_to_act_on(report.decision.plan, observation).placements
    assert other not in {row.pool for row in placements}
    assert {(row.pool, row.location): row.replicas for row in placements} == {
        place: count for place, count in observation.snapshot.desired.items() if count
    }
