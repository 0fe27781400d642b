"""How a blocked start gets its room: who is pushed out, when, for whom, and what moves together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.engine import Role
from solvers.fleet import ReplicaState
from solvers.problem import Policy
from solvers.rollout import next_step
from solvers.rollout.chains import KEEP_START_S, START_PATIENCE_S
from tests.rollout_world import moves, node, plan, pool, replicas, snapshot

POLICY = Policy(max_starts_per_turn=8)
A, B = node("a1", "a"), node("b1", "b")
IDLE = 8 * 75.0
EXTRA = 2 * (700 + 125 - 75.0)  # one tp2 replica


def test_unwanted_replicas_make_room_for_a_blocked_start() -> None:
    old = replicas(pool(gpus=2), "a", 3, "a1")
    want = plan({(pool(gpus=4), "a"): 2})
    actions = next_step(snapshot([A], old), want, POLICY)
    assert moves(actions) == [("tp2", "a", 3, 2)]
    assert "makes room for demo/chat/mixed/h100/tp4 in a" in actions[0].reason


def test_room_is_made_for_watts_too_and_only_as_much_as_needed() -> None:
    old = replicas(pool(), "a", 3, "a1")
    want = plan({(pool(gpus=2), "b"): 3})
    state = snapshot([A, B], old, {"site": 2 * IDLE + 3 * EXTRA})
    actions = next_step(state, want, Policy(max_starts_per_turn=1))
    assert moves(actions) == [("tp2", "a", 3, 2)]
    assert "site has 0 W left" in actions[0].reason
    assert (
        next_step(
            snapshot([A, B], [*old[:2], replace(old[2], state=ReplicaState.LEAVING)], {"site": 5700.0}),
            want,
            Policy(max_starts_per_turn=1),
        )
        == ()
    )


def test_the_last_ready_replica_stays_while_its_service_still_has_something_to_come() -> None:
    old = replicas(pool(gpus=8), "a", 1, "a1")
    want = plan({(pool(gpus=4), "a"): 2, (pool(), "b"): 1})
    assert moves(next_step(snapshot([A, B], old), want, POLICY)) == [("tp2", "b", 0, 1)]
    coming = replicas(pool(), "b", 1, "b1", state=ReplicaState.STARTING, age_s=5.0)
    assert next_step(snapshot([A, B], (*old, *coming)), want, POLICY) == ()
    ready = [replace(replica, state=ReplicaState.READY) for replica in coming]
    assert moves(next_step(snapshot([A, B], (*old, *ready)), want, POLICY)) == [("tp8", "a", 1, 0)]


def test_a_start_that_only_waits_for_its_turn_is_still_to_come() -> None:
    old = replicas(pool(gpus=8), "a", 1, "a1")
    other = pool("demo/other", gpus=3)
    want = plan({(pool(gpus=4), "a"): 2, (other, "b"): 1, (pool(), "b"): 1})
    actions = next_step(snapshot([A, B], old), want, Policy(max_starts_per_turn=1))
    assert [a.pool.service for a in actions] == ["demo/other"]


def test_room_promised_to_a_service_is_something_to_come() -> None:
    old = (*replicas(pool(gpus=8), "a", 1, "a1"), *replicas(pool(gpus=8), "b", 1, "b1"))
    prefill, decode = pool(role=Role.PREFILL, gpus=8), pool(role=Role.DECODE, gpus=8)
    actions = next_step(snapshot([A, B], old), plan({(prefill, "a"): 1, (decode, "b"): 1}), POLICY)
    assert len(actions) == 1, "the other one keeps serving"


def test_a_swap_in_place_takes_the_last_when_nothing_else_can_make_the_room() -> None:
    old = replicas(pool(gpus=4), "a", 2, "a1")
    assert moves(next_step(snapshot([A, B], old), plan({(pool(gpus=8), "a"): 1}), POLICY)) == [("tp4", "a", 2, 0)]


def test_a_start_that_is_not_wanted_any_more_goes_on_while_its_service_lacks_capacity() -> None:
    """Seen on a fleet: plans changed faster than a cold start takes, and nothing ever got Ready."""
    ready, other = (
        replicas(pool(), "a", 1, "a1"),
        replicas(pool(gpus=4), "a", 1, "a1", state=ReplicaState.STARTING, age_s=5.0),
    )
    want = plan({(pool(), "a"): 1, (pool(gpus=4), "b"): 1})
    begun = snapshot([A, B], (*ready, *other))
    assert moves(next_step(begun, want, POLICY)) == [("tp4", "b", 0, 1)]
    enough = plan({(pool(), "a"): 1, (pool(gpus=4), "b"): 1}, served={"demo/chat": 2.0})
    assert moves(next_step(begun, enough, POLICY)) == [("tp4", "a", 1, 0), ("tp4", "b", 0, 1)]
    late = (*ready, replace(other[0], age_s=KEEP_START_S + 1))
    assert moves(next_step(snapshot([A, B], late), want, POLICY)) == [("tp4", "a", 1, 0), ("tp4", "b", 0, 1)]


@pytest.mark.parametrize(("rank", "left"), [(0, []), (1, [("tp4", "a", 2, 0)]), (2, [("tp4", "a", 2, 0)])])
def test_starts_that_are_not_wanted_any_more_are_stopped_for_a_higher_tier(
    rank: int, left: list[tuple[str, str, int, int]]
) -> None:
    """Two for two: room that is promised to one start is not promised again."""
    mass, vip = pool("demo/mass", gpus=4), pool("demo/vip", gpus=4)
    going_on = replicas(mass, "a", 2, "a1", state=ReplicaState.STARTING, age_s=5.0)
    prefill, decode = replace(vip, role=Role.PREFILL), replace(vip, role=Role.DECODE)
    want = plan({(prefill, "a"): 1, (decode, "a"): 1, (pool("demo/mass", gpus=8), "c"): 1})
    ranks = {"demo/vip": 0, "demo/mass": rank}
    assert moves(next_step(snapshot([A, B], going_on), want, POLICY, tier_ranks=ranks)) == left


def test_only_what_is_really_in_the_way_makes_room() -> None:
    small, large = pool("demo/small", gpus=1), pool("demo/large", gpus=4)
    old = (*replicas(small, "a", 2, "a1"), *replicas(large, "b", 2, "b1"))
    new = pool("demo/new", gpus=4)
    want = plan({(small, "a"): 1, (small, "b"): 1, (large, "b"): 1, (large, "a"): 1, (new, "a"): 1})
    site = snapshot([A, B], old, {"site": 2 * IDLE + 10 * EXTRA / 2})
    ranks = {"demo/new": 0, "demo/large": 1, "demo/small": 2}
    actions = next_step(site, want, Policy(max_starts_per_turn=1), tier_ranks=ranks)
    assert [a.pool.service for a in actions] == ["demo/large"], "small is of a lower tier, and would not have helped"


def test_a_serving_replica_stays_while_another_start_wants_its_room_and_its_own_successor_starts() -> None:
    """Seen on a fleet: moe lost a third of its capacity for somebody else's watts, its own successor not Ready yet."""
    moe, chat = pool("demo/moe", Role.PREFILL), pool("demo/chat", Role.PREFILL)
    old = replicas(moe, "a", 3, "a1")
    coming = replicas(pool("demo/moe", Role.PREFILL, gpus=4), "b", 1, "b1", state=ReplicaState.STARTING, age_s=5.0)
    want = plan({(moe, "a"): 1, (coming[0].pool, "b"): 1, (chat, "a"): 2})
    full = snapshot([A, B], (*old, *coming), {"a": IDLE + 3 * EXTRA})
    assert next_step(full, want, POLICY, tier_ranks={"demo/chat": 0, "demo/moe": 2}) == ()
    ready = snapshot([A, B], (*old, replace(coming[0], state=ReplicaState.READY)), {"a": IDLE + 3 * EXTRA})
    assert [(a.pool, a.to_replicas) for a in next_step(ready, want, POLICY)] == [(moe, 1)]


def test_what_serves_more_than_the_plan_does_leaves_at_once() -> None:
    want, carried = plan({(pool(gpus=4), "b"): 1}), {pool(): 2.0}
    old = replicas(pool(), "a", 3, "a1")
    actions = next_step(snapshot([A, B], old), want, POLICY, carried=carried)
    assert moves(actions) == [("tp2", "a", 3, 2), ("tp4", "b", 0, 1)]
    assert "other Ready ones carry the load" in actions[0].reason
    assert moves(next_step(snapshot([A, B], old), want, POLICY)) == [("tp4", "b", 0, 1)], "nobody knows what they carry"


def test_the_last_one_serves_on_even_where_no_load_is_planned() -> None:
    old, want = replicas(pool(), "a", 2, "a1"), plan({(pool(), "b"): 1}, served={"demo/chat": 0.0})
    assert moves(next_step(snapshot([A, B], old), want, POLICY)) == [("tp2", "a", 2, 1), ("tp2", "b", 0, 1)]


def test_a_standstill_ends_with_one_replica_of_the_lowest_tier() -> None:
    vip, mass = pool("demo/vip", gpus=4), pool("demo/mass", gpus=4)
    old = (*replicas(vip, "a", 2, "a1"), *replicas(mass, "b", 2, "b1"))
    want = plan({(vip, "b"): 2, (mass, "a"): 2})
    ranks = {"demo/vip": 0, "demo/mass": 2}
    first = next_step(snapshot([A, B], old), want, POLICY, tier_ranks=ranks)
    assert [(a.pool, a.location, a.to_replicas) for a in first] == [(mass, "b", 1)]
    assert "makes room for demo/vip/mixed/h100/tp4 in b: 0 h100 GPUs are free there and 4 are asked for" in (
        first[0].reason
    )
    going = (*old[:3], replace(old[3], state=ReplicaState.LEAVING))
    assert next_step(snapshot([A, B], going), want, POLICY, tier_ranks=ranks) == (), "its room is on the way"


def test_nothing_is_pushed_out_while_the_room_comes_through_others() -> None:
    """x waits for the room of y, y for that of z, and z's successor is starting."""
    x, y, z = (pool(f"demo/{name}", gpus=8) for name in "xyz")
    nodes = [node(f"{place}1", place) for place in "abcd"]
    old = (*replicas(y, "a", 1, "a1"), *replicas(z, "b", 1, "b1"))
    want = plan({(x, "a"): 1, (y, "b"): 1, (z, "c"): 1})
    coming = replicas(z, "c", 1, "c1", state=ReplicaState.STARTING, age_s=5.0)
    assert next_step(snapshot(nodes, (*old, *coming)), want, POLICY) == ()
    late = [replace(coming[0], age_s=START_PATIENCE_S + 1)]
    pushed = next_step(snapshot(nodes, (*old, *late)), want, POLICY)
    assert [a.pool for a in pushed] == [y], "z has nothing else that serves"


@pytest.mark.parametrize(
    ("served", "rank", "is_quiet", "pushed"),
    [
        (16.0, 1, False, 1),  # capacity that x lacks
        (8.0, 1, False, 0),  # a mere move of x
        (16.0, 0, False, 0),  # y is more important
        (8.0, 1, True, 1),
        (16.0, 0, True, 1),
    ],
)
def test_only_missing_capacity_ends_a_standstill_while_something_starts_elsewhere(
    served: float, rank: int, is_quiet: bool, pushed: int
) -> None:
    x, y, far = pool("demo/x", gpus=8), pool("demo/y", gpus=8), pool("demo/far", gpus=8)
    nodes = [node(f"{place}1", place) for place in "abc"]
    old = (*replicas(x, "a", 1, "a1"), *replicas(y, "b", 1, "b1"))
    state = ReplicaState.READY if is_quiet else ReplicaState.STARTING
    running = snapshot(nodes, (*old, *replicas(far, "c", 1, "c1", state=state, age_s=5.0)))
    want = plan({(x, "a"): 1, (x, "b"): 1, (y, "no-room"): 1, (far, "c"): 1}, served={"demo/x": served})
    ranks = {"demo/x": 1, "demo/y": rank, "demo/far": 1}
    assert len(next_step(running, want, POLICY, tier_ranks=ranks)) == pushed


def test_a_standstill_costs_a_service_as_little_as_may_be() -> None:
    """Two have to leave: one of either role leaves more than two of the same."""
    prefill, decode = pool("demo/moe", Role.PREFILL), pool("demo/moe", Role.DECODE)
    old = (*replicas(prefill, "a", 3, "a1"), *replicas(decode, "a", 2, "a2"))
    nodes = [node("a1"), node("a2"), B]
    want = plan({(pool("demo/moe", Role.MIXED, gpus=4), "b"): 2}, served={"demo/moe": 4.0})
    full = snapshot(nodes, old, {"site": 3 * IDLE + 5 * EXTRA})
    carried = {prefill: 4 / 3, decode: 2.0}
    actions = next_step(full, want, POLICY, carried=carried)
    assert [(a.pool, a.from_replicas, a.to_replicas) for a in actions] == [(decode, 2, 1), (prefill, 3, 2)]


def test_the_start_that_gets_the_room_is_the_one_that_is_named() -> None:
    vip, mass = pool("demo/vip"), pool("demo/mass", gpus=4)
    old = replicas(mass, "a", 2, "a1")
    want = plan({(vip, "a"): 1, (pool("demo/mass", gpus=8), "b"): 1})
    tight = snapshot([A, B], old, {"site": 2 * IDLE + 4 * EXTRA})
    actions = next_step(tight, want, POLICY, tier_ranks={"demo/vip": 0, "demo/mass": 2})
    assert len(actions) == 1
    assert "makes room for demo/vip/mixed/h100/tp2 in a" in actions[0].reason


def test_nothing_is_pushed_out_while_something_starts_in_the_same_power_domain() -> None:
    old = replicas(pool("demo/moe"), "a", 2, "a1")
    other = replicas(pool("demo/other"), "b", 1, "b1", state=ReplicaState.STARTING, age_s=5.0)
    want = plan({(pool("demo/moe", gpus=4), "b"): 1, (other[0].pool, "b"): 1})
    full = {"site": 2 * IDLE + 3 * EXTRA}
    assert next_step(snapshot([A, B], (*old, *other), full), want, POLICY) == ()
    ready = [replace(r, state=ReplicaState.READY) for r in other]
    assert len(next_step(snapshot([A, B], (*old, *ready), full), want, POLICY)) == 1


def test_replicas_do_not_move_together_while_their_service_needs_them() -> None:
    nodes = [node("a1", "a", gpus=4), node("a2", "a", gpus=4), node("b1", "b")]
    here = (*replicas(pool(gpus=2), "a", 1, "a1"), *replicas(pool(gpus=2), "a", 1, "a2", age_s=2000.0))
    want = plan({(pool(gpus=2), "a"): 2, (pool("demo/new", gpus=4), "a"): 1, (pool(gpus=8), "b"): 1})
    coming = replicas(pool(gpus=8), "b", 1, "b1", state=ReplicaState.STARTING, age_s=5.0)
    assert next_step(snapshot(nodes, (*here, *coming)), want, POLICY) == ()
    spare = plan({(p.pool, p.location): p.replicas for p in want.placements}, served={"demo/chat": 2.0})
    assert moves(next_step(snapshot(nodes, (*here, *coming)), spare, POLICY)) == [("tp2", "a", 2, 1)]


def test_small_replicas_move_together_when_free_gpus_are_not_in_one_piece() -> None:
    nodes = [node("a1", "a", gpus=4), node("a2", "a", gpus=4)]
    one, other = replicas(pool(gpus=2), "a", 1, "a1"), replicas(pool(gpus=2), "a", 1, "a2", age_s=2000.0)
    want = plan({(pool(gpus=2), "a"): 2, (pool(gpus=4), "a"): 1})
    actions = next_step(snapshot(nodes, (*one, *other)), want, POLICY)
    assert moves(actions) == [("tp2", "a", 2, 1)]
    assert actions[0].reason == "moves to another node: demo/chat/mixed/h100/tp4 needs 4 GPUs on one"
    leaving = [replace(one[0], state=ReplicaState.LEAVING), *other]
    assert moves(next_step(snapshot(nodes, leaving), want, POLICY)) == [("tp2", "a", 1, 2)], "back beside the other"


def test_the_last_ready_replica_of_a_service_is_not_moved() -> None:
    nodes = [node("a1", "a", gpus=4), node("a2", "a", gpus=4)]
    x, y = pool("demo/x"), pool("demo/y")
    want = plan({(x, "a"): 1, (y, "a"): 1, (pool("demo/new", gpus=4), "a"): 1})
    assert next_step(snapshot(nodes, (*replicas(x, "a", 1, "a1"), *replicas(y, "a", 1, "a2"))), want, POLICY) == ()


def test_nothing_moves_together_while_something_starts_there() -> None:
    nodes = [node(f"a{i}", "a", gpus=4) for i in (1, 2, 3)]
    x, z = pool("demo/x"), pool("demo/z")
    running = (*replicas(x, "a", 1, "a1"), *replicas(x, "a", 1, "a2"), *replicas(z, "a", 1, "a3"))
    want = plan({(x, "a"): 3, (z, "a"): 1, (pool("demo/new", gpus=4), "a"): 1})
    actions = next_step(snapshot(nodes, running), want, POLICY, tier_ranks={"demo/x": 0})
    assert [(a.pool.service, a.to_replicas) for a in actions] == [("demo/x", 3)]


def test_nothing_moves_together_where_it_would_not_fit_back() -> None:
    nodes = [node("a1", "a", gpus=4), node("a2", "a", gpus=4)]
    full = (*replicas(pool(gpus=2), "a", 1, "a1"), *replicas(pool(gpus=1), "a", 3, "a2"))
    want = plan({(pool(gpus=2), "a"): 1, (pool(gpus=1), "a"): 3, (pool(gpus=4), "a"): 1})
    assert next_step(snapshot(nodes, full), want, POLICY) == ()
