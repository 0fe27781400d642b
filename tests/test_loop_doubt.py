"""What the loop leaves undone while it cannot be sure: of its plan's record, of what it sees, or of who leads."""

from __future__ import annotations

import copy

from controller.correction_status import render_corrections
from controller.corrections import Corrections
from controller.resources import parse_engine_profile
from solvers.correction import Belief, Held, Phase
from tests.simcluster.poll import wait_until
from tests.test_loop import SERVICE, Bench, bench, raise_demand

__all__ = ["bench"]  # the fixture


def set_ready(bench: Bench, status: str) -> None:
    """Say of every node whether it is heard of."""
    for body in list(bench.cluster.objects["Node"].values()):
        changed = copy.deepcopy(body)
        changed["status"]["conditions"] = [{"type": "Ready", "status": status}]
        bench.cluster.put("Node", changed)


def test_a_plan_that_cannot_be_recorded_waits_and_is_not_decided_again(bench: Bench) -> None:
    bench.cluster.refused.add("fleetplans")
    for _ in range(4):
        report = bench.turn()
        assert bench.replicas() == {}
    assert "the plan is not recorded as a FleetPlan yet" in report.holds
    bench.cluster.refused.clear()
    report = bench.settle()
    assert report.decision is not None
    assert report.decision.number == 1
    assert bench.worker.solves == 1
    assert sum(bench.replicas().values()) > 0


def test_nothing_is_decided_while_no_node_is_heard_of(bench: Bench) -> None:
    bench.settle()
    before, solves = bench.replicas(), bench.worker.solves
    set_ready(bench, "Unknown")
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    for _ in range(3):
        report = bench.turn(pause_s=61.0)
    assert "none of the 4 managed nodes is Ready" in report.holds[0]
    assert (bench.replicas(), bench.worker.solves) == (before, solves)
    set_ready(bench, "True")
    bench.settle()
    assert sum(bench.replicas().values()) > sum(before.values())


def test_a_watch_that_begins_anew_between_look_and_act_stops_the_act(bench: Bench) -> None:
    bench.turn()
    wait_until(lambda: bench.decider.has_answer, "the solve")
    cycle = bench.cycle
    sight = cycle.look()
    cycle.think(sight)
    actions, holds = cycle.compare(sight, cycle.doubt(sight))
    assert (len(actions) > 0, holds) == (True, ())
    bench.cache.see("Node", None, bench.cluster.objects["Node"]["rack-1-0"])
    assert cycle.act(sight, actions) == ()
    assert bench.replicas() == {}
    bench.settle()
    assert sum(bench.replicas().values()) > 0


def test_no_status_is_written_before_every_kind_was_listed(bench: Bench) -> None:
    bench.cluster.lacking.add("PowerDomain")
    bench.turn()
    assert (bench.cluster.writes, bench.cluster.statuses) == ([], {})
    bench.cluster.lacking.clear()
    bench.settle()
    assert "chat" in bench.cluster.statuses


def test_a_standby_follows_every_plan_that_the_leader_records(bench: Bench) -> None:
    bench.settle()
    bench.elector.is_leader = False
    bench.turn()
    leader = Bench(bench.cluster)
    bench.cluster.change("ServedModel", SERVICE, raise_demand)
    leader.settle()
    leader.decider.stop()
    bench.cluster.listener = bench.cache
    bench.turn(pause_s=61.0)  # its list is due
    assert bench.cycle.latest is not None
    assert bench.cycle.latest.number == leader.published[-1].number == 2
    assert bench.cycle.latest.plan.placements == leader.published[-1].plan.placements


def test_a_standby_follows_the_corrections_in_statuses_and_a_leader_its_own(bench: Bench) -> None:
    bench.cluster.change("FleetPolicy", "default", lambda spec: spec.setdefault("modes", {}).update(correction="Act"))
    bench.settle()
    body = next(iter(bench.cluster.objects["EngineProfile"].values()))
    key = parse_engine_profile(body).key
    belief = Belief(weight=41.25, mean=0.18, squares=0.02, as_of_s=bench.clock.now_s)
    held = Held(factor=1.2, since_s=bench.clock.now_s)
    told = Corrections(beliefs={(key, Phase.DECODE): belief}, held={(key, Phase.DECODE): held})
    rows = render_corrections(told, key, body["metadata"]["generation"])
    bench.cluster.put("EngineProfile", {**body, "status": {"corrections": rows}})
    assert bench.turn().sight.corrections.factors(key) == {}
    bench.elector.is_leader = False
    assert bench.turn().sight.corrections.factors(key) == {Phase.DECODE: 1.2}
