"""Decision after decision on one fleet: noise moves nothing, a surge only starts, and a lower load is paid for less.

Run with ``-s`` to see the moves of every scenario.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest

from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Policy, Problem
from solvers.verify import verify
from tests import fleets

DECISIONS = 60
SETTLED = 12  # decisions after which what is in force has seen the noise
SURGE = range(25, 40)
SURGE_FACTOR = 1.8
NOISE_RATIO = 0.03  # of the mean: what the counts of some 1,000 arrivals swing by

Counts = Mapping[tuple[PoolKey, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One decision, and what it starts and stops."""

    problem: Problem
    plan: Plan
    starts: int
    stops: int

    @property
    def moves(self) -> int:
        return self.starts + self.stops


def counts_of(plan: Plan) -> dict[tuple[PoolKey, str], int]:
    return {(row.pool, row.location): row.replicas for row in plan.placements}


def risen(counts: Counts, before: Counts) -> int:
    return sum(max(0, count - before.get(key, 0)) for key, count in counts.items())


def with_loads(problem: Problem, loads: Mapping[str, float]) -> Problem:
    demands = {n: replace(d, requests_per_s=d.requests_per_s * loads[n]) for n, d in problem.demands.items()}
    return replace(problem, demands=demands)


def noisy_loads(seed: int, surging: str) -> Iterator[dict[str, float]]:
    rng = fleets.seeded(seed)
    for index in range(DECISIONS):
        names = [s.name for s in fleets.demo().services]
        loads = {name: float(rng.normal(1.0, NOISE_RATIO)) for name in names}
        if index in SURGE:
            loads[surging] *= SURGE_FACTOR
        yield loads


def decide_on(problem: Problem, loads: Iterator[Mapping[str, float]]) -> list[Turn]:
    """Decide anew for every load, with the last plan in force and all that it wants running."""
    turns: list[Turn] = []
    previous: Plan | None = None
    for load in loads:
        before = counts_of(previous) if previous else {}
        asked = replace(with_loads(problem, load), running=before)
        plan = make_plan(asked, previous=previous)
        now = counts_of(plan)
        turns.append(Turn(problem=asked, plan=plan, starts=risen(now, before), stops=risen(before, now)))
        previous = plan
    return turns


def say(turns: list[Turn]) -> None:
    for index, turn in enumerate(turns):
        if turn.moves:
            print(f"{index}: +{turn.starts} -{turn.stops}, {turn.plan.report.cost_usd_per_hour:.2f} USD/h")
    print(f"moves per decision {sum(turn.moves for turn in turns) / len(turns):.2f}")


def demo() -> Problem:
    return fleets.demo(1.5, policy=Policy(relative_gap=0.015))


@pytest.mark.parametrize(("seed", "surging"), [(1, "default/chat-8b"), (2, "default/moe")])
def test_noise_moves_nothing_and_a_surge_only_starts(seed: int, surging: str) -> None:
    turns = decide_on(demo(), noisy_loads(seed, surging))
    say(turns)
    quiet = [*turns[SETTLED : SURGE.start], *turns[SURGE.stop + SETTLED :]]
    surge = turns[SURGE.start : SURGE.stop]
    assert all(verify(turn.plan, turn.problem) == () and not turn.plan.is_short for turn in turns)
    assert sum(turn.moves for turn in quiet) == 0
    assert surge[0].starts > 0
    assert sum(turn.stops for turn in surge) <= sum(turn.starts for turn in surge) // 2
    assert len({turn.plan.decision_hash for turn in turns}) <= DECISIONS // 6
    assert turns[-1].plan.report.cost_usd_per_hour < surge[-1].plan.report.cost_usd_per_hour


def test_a_surge_that_comes_in_steps_extends_what_starts() -> None:
    problem = demo()
    loads = [dict.fromkeys(problem.demands, 1.0 + 0.1 * step) for step in range(8)]
    turns = decide_on(problem, iter(loads))
    say(turns)
    assert not any(turn.plan.is_short for turn in turns)
    assert sum(turn.stops for turn in turns) <= sum(turn.starts for turn in turns[1:]) // 2


def test_load_that_falls_for_good_is_followed_down() -> None:
    problem = demo()
    loads = [dict.fromkeys(problem.demands, load) for load in (2.0, 1.0, 1.0, 0.5, 0.5)]
    costs = [turn.plan.report.cost_usd_per_hour for turn in decide_on(problem, iter(loads))]
    assert costs[2] < 0.75 * costs[0]
    assert costs[4] < 0.75 * costs[2]


def test_replicas_that_start_count_as_if_they_ran() -> None:
    """A plan is repeated while half of what it wants has not been started: nothing else is begun meanwhile."""
    problem = demo()
    plan = make_plan(problem)
    half = {key: count // 2 for key, count in counts_of(plan).items()}
    louder = replace(with_loads(problem, dict.fromkeys(problem.demands, 1.04)), running=half)
    again = make_plan(louder, previous=plan)
    assert all(counts_of(again).get(key, 0) >= count for key, count in counts_of(plan).items())


def test_a_budget_cut_takes_from_the_lower_tiers() -> None:
    """A watt too few for all that shares a rack: what the highest tier runs there stays, small as it is."""
    problem = demo()
    plan = make_plan(problem)
    before = counts_of(plan)
    shared = {rack for _, rack in before if len({pool.service for pool, at in before if at == rack}) > 1}
    rack = next(at for pool, at in sorted(before) if pool.service == "default/chat-8b" and at in shared)
    reserved = next(domain.reserved_watts for domain in plan.domains if domain.domain == rack)
    cut = replace(problem.domains[rack], budget_watts=reserved - 1.0)
    changed = replace(problem, domains={**problem.domains, rack: cut}, running=before)
    again = make_plan(changed, previous=plan)
    assert verify(again, changed) == ()
    assert not again.is_short
    kept = counts_of(again)
    assert all(kept.get(key, 0) >= n for key, n in before.items() if key[0].service == "default/chat-8b")
