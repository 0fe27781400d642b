"""One step of a rollout: what starts, what waits, what leaves, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.engine import Role
from solvers.fleet import ANYWHERE, ReplicaState
from solvers.problem import Policy
from solvers.rollout import next_step
from solvers.rollout.chains import START_PATIENCE_S
from tests.rollout_world import moves, node, plan, pool, replicas, snapshot

POLICY = Policy(max_starts_per_turn=8)
A, B = node("a1", "a"), node("b1", "b")
IDLE = 8 * 75.0
EXTRA = 2 * (700 + 125 - 75.0)  # one tp2 replica


def test_first_placement_starts_as_many_as_a_turn_may() -> None:
    want = {(pool(gpus=1), "a"): 6}
    assert moves(next_step(snapshot([A]), plan(want), Policy(max_starts_per_turn=4))) == [("tp1", "a", 0, 4)]


def test_the_reached_plan_asks_for_nothing() -> None:
    state = snapshot([A], replicas(pool(), "a", 2, "a1"))
    assert next_step(state, plan({(pool(), "a"): 2}), POLICY) == ()


def test_starts_in_flight_count_until_they_lose_patience() -> None:
    want = plan({(pool(gpus=1), "a"): 6})
    young = replicas(pool(gpus=1), "a", 2, "a1", state=ReplicaState.STARTING, age_s=1.0)
    assert moves(next_step(snapshot([A], young), want, Policy(max_starts_per_turn=3))) == [("tp1", "a", 2, 3)]
    stuck = [replace(r, age_s=START_PATIENCE_S + 1) for r in young]
    assert moves(next_step(snapshot([A], stuck), want, Policy(max_starts_per_turn=3))) == [("tp1", "a", 2, 5)]


def test_a_group_starts_only_where_one_node_has_it_free() -> None:
    nodes = [node("a1", "a", gpus=4), node("a2", "a", gpus=4)]
    half = [*replicas(pool(gpus=3), "a", 1, "a1"), *replicas(pool(gpus=3), "a", 1, "a2")]
    want = plan({(pool(gpus=3), "a"): 2, (pool(gpus=2), "a"): 1})
    assert next_step(snapshot(nodes, half), want, POLICY) == ()
    assert moves(next_step(snapshot(nodes, half[:1]), want, POLICY))[0] == ("tp3", "a", 1, 2)


def test_leaving_replicas_hold_their_gpus() -> None:
    gone = replicas(pool(gpus=8), "a", 1, "a1", state=ReplicaState.LEAVING)
    assert next_step(snapshot([A], gone), plan({(pool(gpus=4), "a"): 1}), POLICY) == ()


def test_leaving_replicas_hold_their_watts() -> None:
    gone = replicas(pool(), "a", 1, "a1", state=ReplicaState.LEAVING)
    want = plan({(pool(), "a"): 1})
    assert next_step(snapshot([A], gone, {"a": IDLE + EXTRA}), want, POLICY) == ()
    assert moves(next_step(snapshot([A], gone, {"a": IDLE + 2 * EXTRA}), want, POLICY)) == [("tp2", "a", 0, 1)]


def test_any_domain_above_the_place_can_hold_a_start_back() -> None:
    want = plan({(pool(), "a"): 2})
    assert moves(next_step(snapshot([A, B], (), {"site": 2 * IDLE + EXTRA}), want, POLICY)) == [("tp2", "a", 0, 1)]


def test_the_more_important_service_starts_first() -> None:
    vip, mass = pool("demo/vip", gpus=4), pool("demo/mass", gpus=4)
    want = plan({(vip, "a"): 2, (mass, "a"): 2})
    action = next_step(snapshot([A]), want, POLICY, tier_ranks={"demo/vip": 0, "demo/mass": 2})[0]
    assert (action.pool, action.to_replicas) == (vip, 2)


def test_prefill_and_decode_fill_up_together() -> None:
    want = plan({(pool(role=Role.PREFILL), "a"): 2, (pool(role=Role.DECODE), "a"): 2})
    assert [a.to_replicas for a in next_step(snapshot([A]), want, Policy(max_starts_per_turn=2))] == [1, 1]


def test_small_groups_wait_until_the_larger_one_has_its_node() -> None:
    want = plan({(pool(gpus=8), "a"): 1, (pool(gpus=1), "a"): 3})
    nodes = [node("a1"), node("a2")]
    assert moves(next_step(snapshot(nodes), want, POLICY)) == [("tp8", "a", 0, 1)]
    bound = replicas(pool(gpus=8), "a", 1, "a2", state=ReplicaState.STARTING, age_s=5.0)
    assert moves(next_step(snapshot(nodes, bound), want, POLICY)) == [("tp1", "a", 0, 3)]


def test_make_before_break() -> None:
    old = replicas(pool(), "a", 2, "a1")
    want = plan({(pool(), "b"): 2})
    assert moves(next_step(snapshot([A, B], old), want, POLICY)) == [("tp2", "b", 0, 2)]
    halfway = (*old, *replicas(pool(), "b", 1, "b1"), *replicas(pool(), "b", 1, "b1", state=ReplicaState.STARTING))
    assert moves(next_step(snapshot([A, B], halfway), want, POLICY)) == [("tp2", "a", 2, 1)]
    done = (*old, *replicas(pool(), "b", 2, "b1"))
    actions = next_step(snapshot([A, B], done), want, POLICY)
    assert moves(actions) == [("tp2", "a", 2, 0)]
    assert set(actions[0].leaving) == {r.name for r in old}
    assert "Ready" in actions[0].reason


def test_many_small_replicas_stay_until_the_one_large_successor_is_ready() -> None:
    old = replicas(pool(gpus=1), "a", 6, "a1")
    large = replicas(pool(gpus=8), "b", 1, "b1", state=ReplicaState.STARTING, age_s=5.0)
    want = plan({(pool(gpus=8), "b"): 1})
    assert next_step(snapshot([A, B], (*old, *large)), want, POLICY) == ()
    ready = [replace(r, state=ReplicaState.READY) for r in large]
    assert moves(next_step(snapshot([A, B], (*old, *ready)), want, POLICY)) == [("tp1", "a", 6, 0)]


def test_mixed_replicas_stay_until_both_prefill_and_decode_are_ready() -> None:
    old = replicas(pool(role=Role.MIXED), "a", 1, "a1")
    prefill = replicas(pool(role=Role.PREFILL), "b", 1, "b1")
    decode = replicas(pool(role=Role.DECODE), "b", 1, "b1", state=ReplicaState.STARTING, age_s=5.0)
    want = plan({(pool(role=Role.PREFILL), "b"): 1, (pool(role=Role.DECODE), "b"): 1})
    assert next_step(snapshot([A, B], (*old, *prefill, *decode)), want, POLICY) == ()
    ready = [replace(r, state=ReplicaState.READY) for r in decode]
    assert moves(next_step(snapshot([A, B], (*old, *prefill, *ready)), want, POLICY)) == [("tp2", "a", 1, 0)]


def test_spare_replicas_leave_at_once_and_the_least_loaded_go() -> None:
    busy = replicas(pool(), "a", 2, "a1", outstanding_requests=7.0)
    calm = replicas(pool(), "a", 1, "a1", outstanding_requests=1.0, age_s=5000.0)
    actions = next_step(snapshot([A], (*busy, *calm)), plan({(pool(), "a"): 2}), POLICY)
    assert moves(actions) == [("tp2", "a", 3, 2)]
    assert actions[0].leaving == (calm[0].name,)


def test_a_service_that_left_the_plan_goes_to_zero() -> None:
    actions = next_step(snapshot([A], replicas(pool(), "a", 2, "a1")), plan({}), POLICY)
    assert moves(actions) == [("tp2", "a", 2, 0)]


def test_what_was_asked_for_but_is_not_wanted_any_more_is_not_created() -> None:
    state = snapshot([A], desired={(pool(), "a"): 3})
    assert moves(next_step(state, plan({(pool(), "a"): 1}), POLICY)) == [("tp2", "a", 3, 1)]


def test_a_budget_cut_sheds_all_at_once_lowest_tier_and_last_started_first() -> None:
    vip, mass = pool("demo/vip"), pool("demo/mass")
    running = (*replicas(vip, "a", 2, "a1"), *replicas(mass, "a", 2, "a1"))
    want = plan({(vip, "a"): 2, (mass, "a"): 2})
    ranks = {"demo/vip": 0, "demo/mass": 2}
    cut = next_step(snapshot([A], running, {"a": IDLE + EXTRA}), want, POLICY, tier_ranks=ranks)
    assert [(a.pool.service, a.from_replicas, a.to_replicas) for a in cut] == [("demo/mass", 2, 0), ("demo/vip", 2, 1)]
    assert cut[1].leaving == (running[0].name,), "the younger one goes"
    assert "power[a] reserves 6,600 W of 2,100 W usable" in cut[0].reason


def test_a_cut_leaves_a_service_what_carries_most_of_its_load() -> None:
    """Seen on a fleet: the only decode replica left as the youngest, and the prefill replicas stayed for nothing."""
    prefill, decode = pool(role=Role.PREFILL), pool(role=Role.DECODE)
    running = (*replicas(prefill, "a", 3, "a1"), *replicas(decode, "a", 1, "a1", age_s=1.0))
    want = plan({(prefill, "a"): 3, (decode, "a"): 1})
    cut = next_step(snapshot([A], running, {"a": IDLE + 2 * EXTRA}), want, POLICY)
    assert [(a.pool, a.to_replicas) for a in cut] == [(prefill, 1)]


def test_a_cut_stops_what_was_asked_for_and_not_seen_yet() -> None:
    asked = {(pool(), "a"): 3, (pool("demo/other"), "a"): 2}
    cut = next_step(snapshot([A], (), {"a": IDLE + EXTRA}, desired=asked), plan(asked), POLICY)
    assert sum(action.to_replicas for action in cut) == 1


def test_what_has_no_node_yet_is_shed_before_anything_that_serves() -> None:
    """Seen on a fleet: a lost node held its watts, its replicas were asked for again, and another tier was shed."""
    vip, mass = pool("demo/vip"), pool("demo/mass")
    nodes = [replace(A, gpus_usable=0, held_watts=EXTRA), node("a2", "a")]
    lost = replicas(vip, "a", 1, "a1", state=ReplicaState.LOST)
    running = (*lost, *replicas(mass, "a", 2, "a2"))
    want = plan({(vip, "a"): 1, (mass, "a"): 2})
    state = snapshot(nodes, running, {"a": 2 * IDLE + 3 * EXTRA}, desired={(vip, "a"): 1})
    actions = next_step(state, want, POLICY, tier_ranks={"demo/vip": 0, "demo/mass": 2})
    assert [(a.pool, a.to_replicas) for a in actions] == [(vip, 0)]
    assert actions[0].reason.endswith("what has no node yet serves nothing")


def test_a_cut_goes_by_tier_where_what_the_plan_gives_up_is_not_replaced_yet() -> None:
    vip, mass = pool("demo/vip"), pool("demo/mass")
    running = (*replicas(vip, "a", 2, "a1"), *replicas(mass, "a", 1, "a1"))
    want, ranks = plan({(vip, "b"): 2, (mass, "a"): 1}), {"demo/vip": 0}
    cut = next_step(snapshot([A, B], running, {"a": IDLE + 2 * EXTRA}), want, POLICY, tier_ranks=ranks)
    assert [(a.pool.service, a.location, a.to_replicas) for a in cut] == [("demo/mass", "a", 0), ("demo/vip", "b", 2)]


def test_a_cut_takes_what_is_replaced_before_anything_that_the_plan_wants() -> None:
    vip, mass = pool("demo/vip"), pool("demo/mass")
    running = (*replicas(vip, "a", 2, "a1"), *replicas(vip, "b", 2, "b1"), *replicas(mass, "a", 1, "a1"))
    want, ranks = plan({(vip, "b"): 2, (mass, "a"): 1}), {"demo/vip": 0}
    cut = next_step(snapshot([A, B], running, {"a": IDLE + EXTRA}), want, POLICY, tier_ranks=ranks)
    assert [(a.pool.service, a.location, a.to_replicas) for a in cut] == [("demo/vip", "a", 0)]


def test_a_cut_is_not_answered_twice_while_the_first_answer_is_leaving() -> None:
    running = replicas(pool(), "a", 3, "a1")
    going = [replace(running[0], state=ReplicaState.LEAVING), *running[1:]]
    want = plan({(pool(), "a"): 2})
    assert next_step(snapshot([A], going, {"a": IDLE + 2 * EXTRA}), want, POLICY) == ()
    not_seen_yet = snapshot([A], running, {"a": IDLE + 2 * EXTRA}, desired={(pool(), "a"): 2})
    assert next_step(not_seen_yet, want, POLICY) == ()


@pytest.mark.parametrize("spare", [0.0, -1.0])
def test_a_budget_that_is_used_up_to_the_last_watt_is_kept(spare: float) -> None:
    state = snapshot([A], replicas(pool(), "a", 3, "a1"), {"a": IDLE + 3 * EXTRA + spare})
    cut = [("tp2", "a", 3, 2)] if spare < 0.0 else []
    assert moves(next_step(state, plan({(pool(), "a"): 3}), POLICY)) == cut


def test_nothing_starts_under_a_domain_that_is_over_its_budget() -> None:
    foreign = replace(A, held_watts=4000.0)
    want = plan({(pool(), "a"): 1, (pool(), "b"): 1})
    assert moves(next_step(snapshot([foreign, B], (), {"a": 3000.0}), want, POLICY)) == [("tp2", "b", 0, 1)]


def test_a_lost_replica_is_replaced_elsewhere_and_named_when_its_workload_shrinks() -> None:
    lost = replicas(pool(), "a", 1, "a1", state=ReplicaState.LOST)
    ready = replicas(pool(), "a", 1, "a2")
    nodes = [replace(A, gpus_usable=0), node("a2"), B]
    want = plan({(pool(), "a"): 1, (pool(), "b"): 1})
    actions = next_step(snapshot(nodes, (*lost, *ready)), want, POLICY)
    assert moves(actions) == [("tp2", "a", 2, 1), ("tp2", "b", 0, 1)]
    assert actions[0].leaving == (lost[0].name,)


def test_class_placement_counts_every_location() -> None:
    want = plan({(pool(gpus=8), ANYWHERE): 3})
    assert moves(next_step(snapshot([A, B]), want, POLICY)) == [("tp8", ANYWHERE, 0, 2)]
    tight = snapshot([A, B], (), {"b": IDLE + EXTRA})
    assert next_step(tight, want, POLICY) == (), "it could land in b"


def test_the_same_input_gives_the_same_step() -> None:
    running = replicas(pool(), "a", 3, "a1")
    want = plan({(pool(), "b"): 2, (pool(gpus=4), "b"): 1})
    state = snapshot([A, B], running)
    backwards = replace(state, replicas=state.replicas[::-1], desired=dict(sorted(state.desired.items(), reverse=True)))
    assert next_step(state, want, POLICY) == next_step(backwards, want, POLICY)
