"""What stops pools at the bays is looked for once for all that are alike: those that are not are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from solvers.engine import Role
from solvers.fleet import Node
from solvers.planner.bays.nodes import Room
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.shortage import _alike, _blocked_at_bays, _Facts
from solvers.problem import Problem
from solvers.sizing import replica_capacity
from solvers.workload import PlacementMode
from tests import fleets

FAST, OTHER = "h100-sxm", "h200-sxm"
REPLICA_WATTS = 700.0 + 150.0 - 70.0


Held = Mapping[str, int]
"""Replicas that stand already, by location: of the first pool of the class that is there."""


def of_two(first: Mapping[str, Any], second: Mapping[str, Any], fleet: Iterable[Node], **watts: float) -> Problem:
    """Two services of one model that differ in this alone; ``watts`` of a rack are beyond what its GPUs draw idle."""
    chat, fleet = fleets.service("chat", "chat", roles=(Role.MIXED,)), tuple(fleet)
    services = [replace(chat, name=f"default/{name}", **how) for name, how in (("one", first), ("two", second))]
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in sorted({node.gpu_class for node in fleet})]
    budgets = {rack: 8 * 70.0 + extra for rack, extra in watts.items()}
    return fleets.problem([(service, 1000.0) for service in services], fleet, profiles, budgets=budgets)


def racks(*names: str, **how: Any) -> tuple[Node, ...]:
    """One node of eight GPUs in each."""
    return tuple(replace(node, **how) for name in names for node in fleets.nodes(FAST, 1, name))


def classes() -> tuple[Problem, Held]:
    """Two classes of GPU with the same watts, and all GPUs are in use."""
    problem = of_two({}, {}, (*racks("a"), *fleets.nodes(OTHER, 1, "b")))
    alike = replace(problem.gpu_classes[FAST], name=OTHER)
    return replace(problem, gpu_classes={**problem.gpu_classes, OTHER: alike}), {"a": 8, "b": 8}


def placements() -> tuple[Problem, Held]:
    """One rack is out of watts and the other is not: a replica that may land on either would be charged to both."""
    return of_two({}, {"placement": PlacementMode.CLASS}, racks("a", "b"), a=7.5 * REPLICA_WATTS, b=3e3), {"a": 7}


def locations() -> tuple[Problem, Held]:
    """One may only be where all GPUs are in use."""
    return of_two({"locations": ("a",)}, {}, racks("a", "b")), {"a": 8}


def spot() -> tuple[Problem, Held]:
    """One refuses nodes that may be taken away, and of the others all GPUs are in use."""
    return of_two({"max_spot_ratio": 0.0}, {}, (*racks("a"), *racks("b", reclaims_per_hour=0.1))), {"a": 8}


def requests() -> tuple[Problem, Held]:
    """One asks for more CPUs than are left."""
    few, many = ({"requests": {Role.MIXED: {"cpu": cpu}}} for cpu in (3, 5))
    return of_two(few, many, racks("a", resources={"cpu": 10})), {"a": 2}


def sizes() -> tuple[Problem, Held]:
    """One GPU is left, enough for replicas of one and not of two; the watts of both are those of idle GPUs."""
    problem = of_two({}, {}, racks("a"))
    profiles = {p.key: p for gpus in (1, 2) for p in [fleets.profile("chat", FAST, gpus, 8.0)]}
    drawing = replace(problem.gpu_classes[FAST], host_share_watts=0.0, idle_watts=700.0)
    return replace(problem, gpu_classes={FAST: drawing}, profiles=profiles), {"a": 7}


def caps() -> tuple[Problem, Held]:
    """The watts that are left are enough for a replica at the lowest cap, and not at the highest."""
    problem = of_two({}, {}, racks("a"), a=1.7 * REPLICA_WATTS)
    known = {"cap_watts_per_gpu": (350.0, 700.0), "prefill_speed_ratio": (0.8, 1.0), "decode_speed_ratio": (0.9, 1.0)}
    profiles = {key: replace(profile, **known) for key, profile in problem.profiles.items()}  # type: ignore[arg-type]
    return replace(problem, profiles=profiles, policy=replace(problem.policy, power_caps=True)), {"a": 1}


def answers(problem: Problem, held: Held) -> set[tuple[str, ...]]:
    """What stops pools, each looked at for itself; of all that are alike it is the same."""
    desk, room = Desk.of(problem, replica_capacity), Room.of(problem)
    for at, count in held.items():
        able = (o.pool for o in desk.options.pools if (at, o.pool.gpu_class) in room.bays)
        assert room.take(max(able, key=lambda pool: (room.extra_watts(pool), -pool.config.gpus)), at, count) == count
    facts = _Facts(problem, {})
    found: dict[tuple[object, ...], tuple[str, ...]] = {}
    for option in desk.options.pools:
        alone = tuple(_blocked_at_bays(option, room, facts))
        assert found.setdefault(_alike(option, room), alone) == alone, option.pool
    return set(found.values())


@pytest.mark.parametrize("make", [classes, placements, locations, spot, requests, sizes, caps])
def test_pools_that_bays_stop_by_other_limits_are_not_alike(make: Callable[[], tuple[Problem, Held]]) -> None:
    assert len(answers(*make())) == 2


def test_pools_of_services_that_differ_in_nothing_are_alike() -> None:
    problem = of_two({}, {}, racks("a"))
    desk, room = Desk.of(problem, replica_capacity), Room.of(problem)
    assert len(desk.options.pools) == 2
    assert len({_alike(option, room) for option in desk.options.pools}) == 1
