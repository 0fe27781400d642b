"""Services split by size: parts that add up, plans that are best over every cut, and prices of not splitting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.splits.cuts import cuts_at, open_book, starts_of
from solvers.planner.splits.splitting import cuts_of, joined, split, split_plan
from solvers.problem import Policy, Problem, Quota
from solvers.sizes import SizeRange, ranges_between, tiles
from solvers.sizing import replica_capacity
from solvers.verify import verify
from solvers.workload import Pin
from tests import split_world
from tests.split_world import CHAT, documents, lengths
from tests.test_against_brute_force import TOLERANCE

THREE = ranges_between([1024, 8192])


@pytest.fixture(scope="module")
def problem() -> Problem:
    return documents()


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return make_plan(problem)


def test_a_range_is_written_and_read_back() -> None:
    for sizes in (*THREE, SizeRange(0)):
        assert SizeRange.parse(sizes.label) == sizes
    assert tiles(THREE)
    assert not tiles(THREE[1:])
    assert not tiles((THREE[0], THREE[2]))
    for wrong in ("", "p", "p5-2", "0-5", "p0-2047x", "pup-3"):
        with pytest.raises(InvalidInput):
            SizeRange.parse(wrong)


def test_places_to_cut_are_round_and_stay_when_sizes_drift() -> None:
    assert starts_of(lengths((200, 1, 0.5), (3000, 1, 0.5)), 3) == (2048,)
    assert starts_of(lengths((240, 1, 0.5), (2700, 1, 0.5)), 3) == (2048,)
    assert starts_of(lengths((200, 1, 0.5), (3000, 1, 0.5)), 3, known=[1000]) == (1000,)
    assert starts_of(lengths((100, 1, 0.3), (110, 1, 0.3), (900, 1, 0.4)), 1) == (512,)
    assert starts_of(lengths((100, 1, 0.5), (100, 9, 0.5)), 3) == ()


def test_parts_add_up_to_the_service_exactly() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        rate = float(rng.uniform(1e-3, 1e4))
        sizes = sorted(rng.choice(20_000, size=5, replace=False) + 1)
        mix = lengths(*((int(p), 10, float(w)) for p, w in zip(sizes, rng.uniform(0.0, 1.0, 5), strict=True)))
        whole = documents(rate)
        whole = replace(whole, demands={CHAT: replace(whole.demands[CHAT], mix=mix)})
        parts = split(whole, {CHAT: THREE})
        assert sum(demand.requests_per_s for demand in parts.demands.values()) == rate
        total = sum(bucket.weight_ratio for bucket in mix)
        for bucket in mix:
            inside = [(d, b) for d in parts.demands.values() for b in d.mix if b.prompt_tokens == bucket.prompt_tokens]
            asked = math.fsum(demand.requests_per_s * b.weight_ratio for demand, b in inside)
            assert asked == pytest.approx(rate * bucket.weight_ratio / total, rel=1e-9, abs=rate * 1e-12)


def test_floors_and_ceilings_of_parts_are_the_services() -> None:
    for floor, ceiling in ((0, 3), (2, 7), (5, 5), (17, 40)):
        whole = documents()
        whole = replace(whole, services=(replace(whole.services[0], min_replicas=floor, max_replicas=ceiling),))
        plain = split(whole, {CHAT: THREE})
        parts = plain.services
        assert sum(part.min_replicas for part in parts) == floor
        assert sum(part.max_replicas for part in parts) == ceiling
        assert all(part.min_replicas <= part.max_replicas for part in parts)
        assert all((part.max_replicas > 0) == (plain.demands[part.name].requests_per_s > 0.0) for part in parts)


def test_short_prompts_go_to_cheap_gpus_and_the_plan_says_what_that_saves(problem: Problem, plan: Plan) -> None:
    whole = make_plan(documents(splits=False))
    assert verify(plan, problem, capacity_of=replica_capacity) == ()
    labels = {(row.pool.sizes, row.pool.gpu_class) for row in plan.pools}
    assert ("p0-4095", "l40s") in labels
    assert ("p4096-up", "l40s") not in {(r.pool.sizes, r.pool.gpu_class) for r in plan.pools if r.pool.role == "mixed"}
    saving = whole.report.objective_usd_per_hour - plan.report.objective_usd_per_hour
    assert saving > 0.05 * whole.report.objective_usd_per_hour
    (price,) = plan.splits
    assert price.usd_per_hour == pytest.approx(saving)
    assert not price.is_estimate
    assert any("at 4096 prompt tokens, at any of these or none" in note for note in plan.report.notes)
    assert plan.report.bound_usd_per_hour <= plan.report.objective_usd_per_hour


def test_a_plan_of_parts_is_joined_and_split_again(problem: Problem, plan: Plan) -> None:
    cuts = cuts_of(plan)
    parts = split_plan(plan, cuts)
    assert {row.service for row in parts.services} == {f"{CHAT}:p0-4095", f"{CHAT}:p4096-up"}
    assert verify(replace(parts, splits=()), split(problem, cuts), capacity_of=replica_capacity) == ()
    again = joined(parts, problem, cuts)
    assert again.placements == plan.placements
    assert again.parts == plan.parts
    for one, other in zip(again.pools, plan.pools, strict=True):
        assert one.demand_ratio == pytest.approx(other.demand_ratio)


def test_what_is_decided_once_stays_and_gives_the_same_bytes(problem: Problem, plan: Plan) -> None:
    assert make_plan(problem) == plan
    running = {(row.pool, row.location): row.replicas for row in plan.placements}
    for previous in (plan, None):
        again = make_plan(replace(problem, running=running), previous=previous)
        assert again.placements == plan.placements
        assert again.parts == plan.parts


def test_a_service_that_stops_declaring_is_joined_again(problem: Problem, plan: Plan) -> None:
    running = {(row.pool, row.location): row.replicas for row in plan.placements}
    whole = replace(documents(splits=False), running=running)
    joined_again = make_plan(whole, previous=plan)
    assert verify(joined_again, whole, capacity_of=replica_capacity) == ()
    assert joined_again.parts == ()
    assert all(not row.pool.sizes for row in joined_again.pools)
    assert verify(plan, whole)


def test_a_part_that_nobody_asks_anymore_is_given_up(problem: Problem, plan: Plan) -> None:
    running = {(row.pool, row.location): row.replicas for row in plan.placements}
    short = replace(problem.demands[CHAT], mix=lengths((800, 200, 1.0)))
    now = replace(problem, demands={CHAT: short}, running=running)
    again = make_plan(now, previous=plan)
    assert verify(again, now, capacity_of=replica_capacity) == ()
    assert "p4096-up" not in {row.pool.sizes for row in again.pools}
    assert any("cut as decided" in note for note in again.report.notes)


def test_another_cut_must_save_enough_to_replace_the_one_in_force(problem: Problem, plan: Plan) -> None:
    whole = make_plan(documents(splits=False))
    running = {(row.pool, row.location): row.replicas for row in whole.placements}
    stays = make_plan(replace(problem, running=running), previous=whole)
    assert stays.parts == ()
    assert stays.splits[0].sizes == ()
    calm = replace(problem.policy, start_cost_hours=0.01)
    moves = make_plan(replace(problem, running=running, policy=calm), previous=whole)
    assert [part.sizes for part in moves.parts] == ["p0-4095", "p4096-up"]
    eager = replace(calm, min_saving_ratio=0.5)
    assert make_plan(replace(problem, running=running, policy=eager), previous=whole).parts == ()


def test_sizes_that_no_pool_serves_together_are_served_apart() -> None:
    world = documents(4.0)
    rates = {
        ("chat", role, name, prompt): 3.0 * (name == fits)
        for role in Role
        for prompt, fits in ((800, "l40s"), (8000, "h100-sxm"))
        for name in ("l40s", "h100-sxm")
    }
    sized = split_world.Sized(rates=rates, table={key[:3]: (1.0, 0.0, 200.0) for key in rates})
    plan = make_plan(world, capacity_of=sized.capacity_of)
    assert verify(plan, world, capacity_of=sized.capacity_of) == ()
    assert not plan.is_short
    assert {(row.pool.sizes, row.pool.gpu_class) for row in plan.pools} == {
        ("p0-4095", "l40s"),
        ("p4096-up", "h100-sxm"),
    }
    whole = replace(world, services=(replace(world.services[0], splits_by_size=False),))
    assert make_plan(whole, capacity_of=sized.capacity_of).services[0].served_requests_per_s == 0.0


def test_a_quota_counts_all_parts(problem: Problem) -> None:
    quota = Quota(namespace="default", gpu_class="h100-sxm", max_gpus=4)
    tight = replace(problem, policy=replace(problem.policy, quotas=(quota,)))
    plan = make_plan(tight)
    assert verify(plan, tight, capacity_of=replica_capacity) == ()
    assert plan.is_short
    assert any("p4096-up: " in reason for reason in plan.services[0].short_because)
    assert sum(r.replicas * r.pool.config.gpus for r in plan.pools if r.pool.gpu_class == "h100-sxm") <= 4


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_no_cut_and_no_counts_are_cheaper_than_the_plan(first: int) -> None:
    split_ones = short = 0
    for seed in range(first, first + 20):
        problem, sized = split_world.drawn_small(seed)
        plan = make_plan(problem, capacity_of=sized.capacity_of)
        assert verify(plan, problem, capacity_of=sized.capacity_of) == ()
        best, found = min(split_world.best_by_trying(problem, sized)), plan.report.objective_usd_per_hour
        assert found >= best * (1.0 - TOLERANCE), seed
        if not any("gave way" in note for note in plan.report.notes):
            assert plan.report.bound_usd_per_hour <= best * (1.0 + TOLERANCE), seed
        split_ones += bool(plan.parts)
        short += plan.is_short
        if not plan.is_short and not problem.running:  # what runs may stay for less than another cut must save
            assert found == pytest.approx(best, rel=TOLERANCE), seed
    assert split_ones > 0
    assert short < 10


def test_the_bound_covers_every_cut_and_few_of_them_are_decided() -> None:
    mix = lengths((300, 150, 0.5), (1000, 250, 0.36), (3000, 200, 0.09), (8000, 200, 0.05))
    problem = documents(80.0)
    problem = replace(problem, demands={CHAT: replace(problem.demands[CHAT], mix=mix)})
    plan = make_plan(problem)
    book = open_book(problem, replica_capacity, {}, [CHAT])
    assert book.starts == {CHAT: (512, 2048, 4096)}
    weighed = replace(problem, serving_usd_per_request=book.serving_usd_per_request)
    found = {}
    for ranges in cuts_at(book.starts[CHAT]):
        plain = split(
            replace(weighed, services=(replace(weighed.services[0], splits_by_size=False),)),
            {CHAT: ranges} if ranges else {},
        )
        found[tuple(sizes.label for sizes in ranges)] = make_plan(plain).report.objective_usd_per_hour
    assert len(found) == 8
    assert plan.splits[0].sizes == min(found, key=lambda labels: found[labels])
    assert plan.report.objective_usd_per_hour == pytest.approx(min(found.values()))
    assert plan.report.bound_usd_per_hour <= min(found.values())
    assert plan.report.gap_ratio <= problem.policy.relative_gap


def with_part(index: int, **how: float | str) -> Callable[[Plan], Plan]:
    def corrupt(plan: Plan) -> Plan:
        rows = list(plan.parts)
        rows[index] = replace(rows[index], **how)  # type: ignore[arg-type]
        return replace(plan, parts=tuple(rows))

    return corrupt


def moved_share(plan: Plan) -> Plan:
    """Let the pools of one part carry what belongs to the other."""
    factors = {"p0-4095": 0.9, "p4096-up": 2.9}
    pools = tuple(replace(row, demand_ratio=row.demand_ratio * factors[row.pool.sizes]) for row in plan.pools)
    return replace(plan, pools=pools)


CORRUPTIONS: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "demand of a part": (with_part(0, demand_requests_per_s=50.0), "by its mix"),
    "service of a part": (with_part(1, served_requests_per_s=1.0), "together"),
    "hole between parts": (with_part(0, sizes="p0-9999"), "once, in order"),
    "no range": (with_part(0, sizes="short"), "once, in order"),
    "part left out": (lambda plan: replace(plan, parts=plan.parts[:1]), "once, in order"),
    "no parts at all": (lambda plan: replace(plan, parts=()), "no part of its service"),
    "part of nobody": (
        lambda plan: replace(
            plan,
            parts=(*plan.parts, replace(plan.parts[0], service="x/y", sizes="p0-up")),
        ),
        "no such service",
    ),
    "shares of the wrong part": (moved_share, "carry"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_parts_are_caught(name: str, plan: Plan, problem: Problem) -> None:
    corrupt, words = CORRUPTIONS[name]
    found = verify(corrupt(plan), problem)
    assert any("parts[" in fault and words in fault for fault in found), found


def test_pins_and_splits_are_refused_together(problem: Problem) -> None:
    pinned = replace(problem, services=(replace(problem.services[0], pins=(Pin(location="rack-a"),)),))
    with pytest.raises(InvalidInput, match="splits by size"):
        make_plan(pinned)


def test_a_floor_is_kept_over_all_parts() -> None:
    small = documents(2.0, policy=Policy(relative_gap=1e-6))
    plan = make_plan(replace(small, services=(replace(small.services[0], min_replicas=7),)))
    for roles in (("prefill", "mixed"), ("decode", "mixed")):
        assert sum(row.replicas for row in plan.pools if row.pool.role in roles) >= 7
