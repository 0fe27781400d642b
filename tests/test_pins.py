"""Where a service may run and where it must: kept by every plan, checked, and priced when nothing else will do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from solvers.verify import verify, verify_places
from solvers.workload import Pin, PlacementMode, ServedModel
from tests import fleets
from tests.test_against_brute_force import Placed, Tiny, drawn, hold_to_best, is_bound


def one_service(rate: float = 6.0, **how: Any) -> Problem:
    """A chat service on three racks, the third of another class."""
    racks = [fleets.nodes("h100-sxm", 1, f"rack-{n}") for n in (1, 2)]
    fleet = (*racks[0], *racks[1], *fleets.nodes("l40s", 1, "rack-3"))
    served = replace(fleets.service("chat", "chat", roles=(Role.MIXED,)), **how)
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    return fleets.problem([(served, rate)], fleet, profiles)


def planned(problem: Problem, **how: Any) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity, **how)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def at(plan: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in plan.placements:
        counts[row.location] = counts.get(row.location, 0) + row.replicas
    return counts


def test_a_service_runs_only_where_it_may() -> None:
    plan = planned(one_service(rate=30.0, locations=("rack-2",)))
    assert at(plan) == {"rack-2": 8}
    (short,) = plan.services
    assert short.unserved_requests_per_s > 0.0
    assert short.short_because == ("gpus[h100-sxm]: 8 of 16 in use, no 1 free on one node that may be used",)


def test_what_runs_where_it_no_longer_may_moves() -> None:
    before = planned(one_service(locations=("rack-1",)))
    held = {(p.pool, p.location): p.replicas for p in before.placements}
    after = planned(replace(one_service(locations=("rack-2",)), running=held), previous=before)
    assert set(at(after)) == {"rack-2"}


def test_pins_are_kept_first_and_the_rest_is_free() -> None:
    pins = (Pin(location="rack-2", replicas=2), Pin(location="rack-3", gpu_class="l40s", role=Role.MIXED))
    plan = planned(one_service(pins=pins))
    assert at(plan)["rack-2"] >= 2
    assert at(plan)["rack-3"] >= 1
    assert not plan.is_short
    again = planned(replace(one_service(pins=pins), running={}), previous=plan)
    assert again.decision_hash == plan.decision_hash


def test_a_pin_is_kept_even_without_load_and_costs_what_is_said() -> None:
    plan = planned(one_service(rate=0.0, pins=(Pin(location="rack-2", replicas=2),)))
    assert at(plan) == {"rack-2": 2}
    assert any(b.limit == "pin" and b.unit == "replica" and b.price_usd_per_hour > 0.0 for b in plan.bindings)


def test_a_pin_that_cannot_be_kept_is_named() -> None:
    plan = planned(one_service(rate=1.0, pins=(Pin(location="rack-2", replicas=9), Pin(location="nowhere"))))
    (service,) = plan.services
    assert service.unserved_requests_per_s == 0.0
    assert service.penalty_usd_per_hour > 0.0
    assert "pins[rack-2]: 1 of 9 replicas have no place there" in service.short_because
    assert "pins[nowhere]: 1 of 1 replicas have no place there" in service.short_because
    silent = replace(plan, services=(replace(service, short_because=()),))
    assert "pins[default/chat nowhere]: 0 replicas, at least 1" in verify(
        silent, one_service(rate=1.0, pins=PINS_THERE)
    )


PINS_THERE = (Pin(location="rack-2", replicas=9), Pin(location="nowhere"))


def test_a_plan_at_a_forbidden_place_or_without_its_pins_is_caught() -> None:
    plan = planned(one_service(rate=1.0))
    (where,) = at(plan)
    other = "rack-1" if where == "rack-2" else "rack-2"
    (fault, *_) = verify_places(plan, one_service(rate=1.0, locations=(other,)))
    assert fault.endswith(f"@{where}]: location is not allowed by the service")
    lacking = f"pins[default/chat {other}]: 0 replicas, at least 1"
    assert lacking in verify(plan, one_service(rate=1.0, pins=(Pin(location=other),)))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"placement": PlacementMode.CLASS, "locations": ("rack-1",)}, "placement: is Class"),
        ({"placement": PlacementMode.CLASS, "pins": (Pin(location="rack-1"),)}, "placement: is Class"),
        (
            {"locations": ("rack-1",), "pins": (Pin(location="rack-2"),)},
            "pins[0].location: 'rack-2' is not in locations",
        ),
        ({"pins": (Pin(location="rack-1", replicas=0),)}, "pins[0].replicas: is 0"),
        ({"pins": (Pin(location="rack-1", replicas=5),), "max_replicas": 4}, "maxReplicas is 4"),
        ({"pins": (Pin(location="rack-1", role=Role.DECODE),)}, "pins[0].role: decode is not in roles"),
    ],
)
def test_places_that_mean_nothing_are_refused(how: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_plan(one_service(**how))
    assert words in str(caught.value)


class Pinned(Tiny):
    """The oracle with its own reading of places."""

    def allows(self, counts: Placed) -> bool:
        allowed = {s.name: s.locations for s in self.problem.services}
        return all(not allowed[pool.service] or where in allowed[pool.service] for pool, where in counts)

    def missing(self, service: ServedModel, counts: Placed) -> int:
        lacking = 0
        for pin in service.pins:
            mine = [(p, n) for (p, where), n in counts.items() if p.service == service.name and where == pin.location]
            there = sum(n for p, n in mine if pin.role in (None, p.role) and pin.gpu_class in ("", p.gpu_class))
            lacking += max(0, pin.replicas - there)
        return lacking


@pytest.mark.parametrize("first", [6100, 6130])
def test_no_counts_that_keep_the_places_are_cheaper_than_the_plan(first: int) -> None:
    bound = 0
    for seed, drawn_case in drawn(first, 30):
        rng = np.random.default_rng(seed)
        problem = replace(
            drawn_case.problem, services=tuple(pinned_somewhere(s, rng) for s in drawn_case.problem.services)
        )
        case = Pinned(problem=problem, table=drawn_case.table)
        bound += is_bound(case, hold_to_best(case, seed))
    assert bound >= 5


def pinned_somewhere(service: ServedModel, rng: np.random.Generator) -> ServedModel:
    """Pin the service to one side, keep it to one, or leave it alone."""
    side = str(rng.choice(["left", "right"]))
    role = service.roles[0] if rng.random() < 0.5 else None
    pins = (Pin(location=side, replicas=int(rng.integers(1, 3)), role=role),)
    choices = (replace(service, pins=pins), replace(service, locations=(side,)), service)
    return choices[int(rng.integers(0, 3))]
