"""Which replicas leave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solvers.fleet import Replica, ReplicaState
from solvers.rollout.assign import choose_leaving
from tests.rollout_world import pool

STATES = [ReplicaState.PENDING, ReplicaState.LOST, ReplicaState.STARTING, ReplicaState.READY, ReplicaState.LEAVING]


def one(
    name: str, state: ReplicaState = ReplicaState.READY, node: str | None = "n1", load: float = 0.0, age_s: float = 60.0
) -> Replica:
    return Replica(name=name, pool=pool(), location="a", node=node, state=state, age_s=age_s, outstanding_requests=load)


def names(replicas: tuple[Replica, ...]) -> list[str]:
    return [replica.name for replica in replicas]


def test_what_serves_least_leaves_first() -> None:
    fleet = [
        one("ready"),
        one("starting", ReplicaState.STARTING),
        one("lost", ReplicaState.LOST),
        one("pending", ReplicaState.PENDING, node=None),
    ]
    assert names(choose_leaving(fleet, 4)) == ["pending", "lost", "starting", "ready"]


def test_the_least_loaded_of_the_ready_leaves_before_the_youngest() -> None:
    fleet = [one("busy-young", load=9, age_s=1), one("calm-old", load=2, age_s=9000), one("calmer", load=1)]
    assert names(choose_leaving(fleet, 2)) == ["calmer", "calm-old"]


def test_of_equals_the_emptiest_node_is_emptied_then_the_youngest_leaves() -> None:
    fleet = [one("full-1"), one("full-2"), one("full-3"), one("alone-old", node="n2", age_s=99)]
    assert names(choose_leaving(fleet, 1)) == ["alone-old"]
    assert names(choose_leaving([one("old", age_s=9), one("young", age_s=3), one("older", age_s=99)], 2)) == [
        "young",
        "old",
    ]


def test_those_already_leaving_are_not_chosen_again() -> None:
    assert choose_leaving([one("gone", ReplicaState.LEAVING)], 3) == ()
    assert choose_leaving([one("stays")], 0) == ()
    assert choose_leaving([one("stays")], -2) == ()


@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=9)
)
def test_fewer_are_a_prefix_of_more_and_order_of_input_does_not_matter(
    rows: list[tuple[ReplicaState, int, int, int]],
) -> None:
    fleet = [one(f"p{i}", s, f"n{n}", float(q), float(age)) for i, (s, n, q, age) in enumerate(rows)]
    everything = choose_leaving(fleet, len(fleet))
    assert len(everything) == sum(replica.state is not ReplicaState.LEAVING for replica in fleet)
    for count in range(len(fleet)):
        assert choose_leaving(fleet[::-1], count) == everything[:count]
