"""The ledger never counts less than the fleet could draw."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.fleet import ANYWHERE, Replica, ReplicaState
from solvers.ledger import balance, measured_watts, reserved_now_watts, unseen_replicas
from solvers.power import base_watts, extra_watts, reserved_watts
from tests.rollout_world import CLASSES, H100, node, plan, pool, replicas, snapshot

NODES = (node("a1"), node("a2"), node("b1", "b"))
EXTRA = 2 * (700 + 125 - 75)  # one tp2 replica


def idle(count: int) -> float:
    return count * 8 * 75.0


def test_a_placed_replica_is_charged_to_its_own_node_only() -> None:
    nodes = (replace(NODES[0], domains=("a", "a1-feed", "site")), replace(NODES[1], domains=("a", "a2-feed", "site")))
    reserved = reserved_now_watts(snapshot(nodes, replicas(pool(), "a", 1, "a1")))
    assert reserved == {"a": idle(2) + EXTRA, "a1-feed": idle(1) + EXTRA, "a2-feed": idle(1), "site": idle(2) + EXTRA}


def test_a_pending_replica_is_charged_wherever_it_could_land() -> None:
    nodes = (replace(NODES[0], domains=("a", "a1-feed", "site")), replace(NODES[1], domains=("a", "a2-feed", "site")))
    reserved = reserved_now_watts(snapshot(nodes, replicas(pool(), "a", 1, None, state=ReplicaState.PENDING)))
    assert reserved["a1-feed"] == reserved["a2-feed"] == idle(1) + EXTRA


def test_under_class_placement_every_location_of_the_class_is_charged() -> None:
    asked = {(pool(), ANYWHERE): 1}
    assert reserved_now_watts(snapshot(NODES, desired=asked)) == {
        "a": idle(2) + EXTRA,
        "b": idle(1) + EXTRA,
        "site": idle(3) + EXTRA,
    }


def test_what_is_asked_for_counts_before_it_is_seen_and_leaving_ones_until_they_are_gone() -> None:
    running = (
        *replicas(pool(), "a", 2, "a1"),
        *replicas(pool(), "a", 1, "a2", state=ReplicaState.LEAVING),
    )
    reserved = reserved_now_watts(snapshot(NODES, running, desired={(pool(), "a"): 4}))
    assert reserved["a"] == idle(2) + 5 * EXTRA


def test_more_seen_than_asked_for_counts_as_seen() -> None:
    running = replicas(pool(), "a", 3, "a1")
    assert reserved_now_watts(snapshot(NODES, running, desired={(pool(), "a"): 1}))["a"] == idle(2) + 3 * EXTRA


def test_a_lost_replica_holds_its_watts_and_its_replacement_is_charged_beside_it() -> None:
    lost = replicas(pool(), "a", 1, "a1", state=ReplicaState.LOST)
    down = replace(NODES[0], gpus_usable=0)
    state = snapshot((down, *NODES[1:]), lost)
    assert len(unseen_replicas(state)) == 1
    assert reserved_now_watts(state)["a"] == idle(2) + 2 * EXTRA
    already_held = replace(down, held_watts=float(EXTRA))
    assert reserved_now_watts(snapshot((already_held, *NODES[1:]), lost))["a"] == idle(2) + 2 * EXTRA


def test_no_domain_reserves_more_than_all_its_gpus_at_their_cap() -> None:
    reserved = reserved_now_watts(snapshot(NODES, desired={(pool(), "b"): 50}))
    assert reserved["b"] == 8 * (700 + 125)


def test_a_domain_without_a_full_set_of_meters_is_absent_not_zero() -> None:
    state = snapshot(NODES)
    assert measured_watts(state, {"a1": 600.0, "a2": 0.0}) == {"a": 600.0, "b": None, "site": None}


def test_the_balance_sets_the_three_counts_beside_the_budget() -> None:
    state = snapshot(NODES, replicas(pool(), "a", 2, "a1"), budgets={"a": 4000.0})
    row = balance(state, plan({}), {"a1": 900.0, "a2": 500.0})[0]
    assert (row.domain, row.budget_watts, row.reserved_watts, row.measured_watts) == ("a", 4000.0, 4200.0, 1400.0)
    assert row.is_over
    assert not balance(snapshot(NODES, budgets={"a": 4200.0}, running=replicas(pool(), "a", 2, "a1")))[0].is_over


@st.composite
def some_replicas(draw: st.DrawFn) -> list[Replica]:
    rng = random.Random(draw(st.integers(0, 10**6)))
    found: list[Replica] = []
    for i in range(rng.randint(0, 6)):
        place = rng.choice([(None, "a"), (None, "b"), (None, ANYWHERE), ("a1", "a"), ("a2", "a"), ("b1", "b")])
        of = pool(gpus=rng.choice([1, 2, 4]))
        state = ReplicaState.PENDING if place[0] is None else rng.choice([ReplicaState.READY, ReplicaState.LEAVING])
        found += replicas(of, place[1], 1, place[0], state=state, age_s=float(i))
    return found


@settings(max_examples=60, deadline=None)
@given(some_replicas())
def test_every_way_the_scheduler_may_choose_draws_no_more_than_reserved(running: list[Replica]) -> None:
    reserved = reserved_now_watts(snapshot(NODES, running))
    choices = [
        [n for n in NODES if r.location in (n.location, ANYWHERE)]
        if r.node is None
        else [n for n in NODES if n.name == r.node]
        for r in running
    ]
    for ends in itertools.islice(itertools.product(*choices), 300):
        used = Counter[str]()
        for replica, end in zip(running, ends, strict=True):
            used[end.name] += replica.pool.config.gpus
        if any(count > 8 for count in used.values()):
            continue
        for domain, watts in reserved.items():
            fed = [n for n in NODES if domain in n.domains]
            busy = sum(extra_watts(H100, r.pool.config) for r, e in zip(running, ends, strict=True) if e in fed)
            assert watts >= base_watts(fed, CLASSES) + busy - 1e-6


@settings(max_examples=60, deadline=None)
@given(some_replicas())
def test_with_no_node_known_it_equals_the_planners_accounting_and_never_exceeds_it(running: list[Replica]) -> None:
    counts = Counter((r.pool, r.location) for r in running)
    worst = reserved_watts(NODES, CLASSES, counts)
    loose = [replace(r, node=None, state=ReplicaState.PENDING) for r in running]
    assert reserved_now_watts(snapshot(NODES, loose)) == pytest.approx(worst)
    assert all(watts <= worst[d] + 1e-6 for d, watts in reserved_now_watts(snapshot(NODES, running)).items())
