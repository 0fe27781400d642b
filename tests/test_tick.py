"""The tick against an independent linear programme, against trying every level, and against its own promises."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog

from solvers.capping.cells import Levels
from solvers.engine import EngineProfile, Role
from solvers.engine.curves import capped
from solvers.errors import InvalidInput
from solvers.fleet import GpuClass
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.power import reserved_watts
from solvers.problem import Problem
from solvers.sizing import Capacity, Unfit, replica_capacity
from solvers.tick import Tick, Ticker
from solvers.workload import SizeBucket, Slo
from tests import fleets
from tests.test_planner_caps import knowing_caps, scarce

SEEDS = range(12)


@cache
def planned() -> tuple[Problem, Plan]:
    """Replicas that a roomy budget lets run at their highest caps."""
    problem = knowing_caps(scarce(1.0, 0.7), power_caps=False)
    return problem, make_plan(problem)


def lowest_known(problem: Problem) -> Problem:
    """The same where every class allows no cap below the lowest with a known speed: all levels serve something."""

    def proud(kind: GpuClass) -> GpuClass:
        return replace(kind, min_cap_watts=float(round(0.55 * kind.max_cap_watts)))

    return replace(problem, gpu_classes={name: proud(kind) for name, kind in problem.gpu_classes.items()})


def drawn(seed: int) -> tuple[Ticker, dict[str, float], dict[str, float]]:
    """A ticker with other demands and budgets, often short of both."""
    problem, plan = planned()
    rng = np.random.default_rng(seed)
    ticker = Ticker(lowest_known(problem), plan)
    demands = {name: d.requests_per_s * rng.uniform(0.4, 1.3) for name, d in problem.demands.items()}
    budgets = {name: d.budget_watts * rng.uniform(0.45, 1.1) for name, d in problem.domains.items()}
    return ticker, demands, budgets


def worth(ticker: Ticker, tick: Tick) -> float:
    """The objective of a tick, from its definition: reserved watts above idle, and what is shed."""
    cells = ticker.cells
    added = cells.cell_gpus @ (tick.cap_watts + cells.rise_watts) / 1000.0
    shed = cells.penalty_usd_per_request @ (tick.demand_per_s - tick.served_per_s)
    return float(ticker.problem.policy.energy_usd_per_kilowatt_hour * added + shed)


# The oracle: replicas of every cell split over levels, each row written out by itself.


def least_by_linprog(ticker: Ticker, demands: dict[str, float], budgets: dict[str, float]) -> float | None:
    cells, energy = ticker.cells, ticker.problem.policy.energy_usd_per_kilowatt_hour
    levels = [
        (c, float(w), float(q))
        for c, p in enumerate(cells.cell_pool)
        for w, q in zip(cells.levels[p].cap_watts, cells.levels[p].requests_per_s, strict=True)
    ]
    services, first = cells.services, len(levels)
    columns = first + 3 * len(services)  # mixed, pairs, unserved by service
    cost = np.zeros(columns)
    gpus = cells.cell_gpus / cells.cell_replicas
    for j, (c, w, _) in enumerate(levels):
        cost[j] = energy * gpus[c] * (w + cells.rise_watts[c]) / 1000.0
    equal, equal_to, below, below_to = [], [], [], []
    for c, replicas in enumerate(cells.cell_replicas):
        equal.append([float(j < first and levels[j][0] == c) for j in range(columns)])
        equal_to.append(replicas)
    for s, name in enumerate(services):
        cost[first + 3 * s + 2] = cells.penalty_usd_per_request[s]
        equal.append([float(first + 3 * s <= j < first + 3 * s + 3) for j in range(columns)])
        equal_to.append(demands[name])
        for role, flow in ((Role.MIXED, 0), (Role.PREFILL, 1), (Role.DECODE, 1)):
            row = np.zeros(columns)
            for j, (c, _, q) in enumerate(levels):
                pool = cells.pools[cells.cell_pool[c]]
                row[j] = -q * (pool.service == name and pool.role is role)
            row[first + 3 * s + flow] = 1.0
            below.append(row)
            below_to.append(0.0)
    for d, name in enumerate(cells.domains):
        row = np.zeros(columns)
        for j, (c, w, _) in enumerate(levels):
            row[j] = gpus[c] * (w + cells.rise_watts[c]) * cells.charged[[d], [c]].item()
        if cells.ceiling_watts[d] > budgets[name]:
            below.append(row)
            below_to.append(budgets[name] - cells.idle_watts[d])
    found = linprog(cost, A_ub=np.array(below), b_ub=below_to, A_eq=np.array(equal), b_eq=equal_to)
    return float(found.fun) if found.status == 0 else None


@pytest.mark.parametrize("seed", SEEDS)
def test_the_tick_is_worth_what_an_independent_programme_finds(seed: int) -> None:
    ticker, demands, budgets = drawn(seed)
    tick, least = ticker.tick(demands, budgets), least_by_linprog(ticker, demands, budgets)
    if least is None:
        assert tick.over_watts.max() > 0.0
        return
    assert tick.over_watts.max() == 0.0
    assert worth(ticker, tick) == pytest.approx(least, rel=2e-5)


def test_no_choice_of_whole_levels_is_better() -> None:
    ticker, demands, budgets = drawn(3)
    tick, cells, tried = ticker.tick(demands, budgets), ticker.cells, 0
    usable = np.array([budgets[name] for name in cells.domains])
    for caps in itertools.product(*(cells.levels[p].cap_watts for p in cells.cell_pool)):
        other = ticker._worked_out(np.array(caps), tick.demand_per_s, usable, usable, tick.service_usd_per_request)
        if other.over_watts.max() > 0.0:
            continue
        tried += 1
        assert worth(ticker, tick) <= worth(ticker, other) * (1.0 + 2e-5)
    assert tried > 50


@pytest.mark.parametrize("seed", range(20))
def test_no_budget_is_passed_that_the_lowest_caps_can_keep(seed: int) -> None:
    problem, plan = planned()
    rng, ticker = np.random.default_rng(seed), Ticker(problem, plan)
    for _ in range(5):
        demands = {name: d.requests_per_s * rng.uniform(0.0, 2.0) for name, d in problem.demands.items()}
        budgets = {name: d.budget_watts * rng.uniform(0.2, 1.2) for name, d in problem.domains.items()}
        tick = ticker.tick(demands, budgets)
        counts = {(row.pool, row.location): row.replicas for row in plan.placements}
        at_caps = {(replace(pool, cap_watts=tick.caps[pool, at]), at): n for (pool, at), n in counts.items()}
        lowest = {
            (replace(pool, cap_watts=problem.gpu_classes[pool.gpu_class].min_cap_watts), at): n
            for (pool, at), n in counts.items()
        }
        drawn_watts = reserved_watts(problem.nodes, problem.gpu_classes, at_caps)
        least = reserved_watts(problem.nodes, problem.gpu_classes, lowest)
        for d, name in enumerate(tick.domains):
            assert tick.reserved_watts[d] == pytest.approx(drawn_watts[name], abs=1e-6)
            assert drawn_watts[name] <= max(budgets[name], least[name]) + 0.01
            assert (tick.over_watts[d] > 0.0) == any(note.startswith(f"power[{name}]") for note in tick.notes)
            if least[name] <= budgets[name] - 1.0:
                assert tick.over_watts[d] == 0.0


def test_every_gpu_of_a_large_replica_is_counted_in_the_watts() -> None:
    problem = fleets.demo()
    plan = make_plan(problem)
    assert {pool.config.gpus for pool in (row.pool for row in plan.pools)} > {1}
    tick = Ticker(problem, plan).tick()
    counts = {(row.pool, row.location): row.replicas for row in plan.placements}
    at_caps = {(replace(pool, cap_watts=tick.caps[pool, at]), at): n for (pool, at), n in counts.items()}
    drawn_watts = reserved_watts(problem.nodes, problem.gpu_classes, at_caps)
    assert dict(zip(tick.domains, tick.reserved_watts.tolist(), strict=True)) == pytest.approx(drawn_watts)


def test_a_budget_below_idle_draw_says_so_with_its_numbers() -> None:
    problem, plan = planned()
    ticker = Ticker(problem, plan)
    low = ticker.tick(budgets={"rack-1": 500.0})
    assert any(note.startswith("power[rack-1]: idle GPUs alone draw 1,120 W, usable 500 W") for note in low.notes)
    lowest = ticker.cells.levels[0].cap_watts[0]
    assert low.cap_watts.min() == lowest
    assert ticker.tick().notes == ()


@pytest.mark.parametrize("load_ratio", [1.0, 0.01])
def test_no_cap_rises_under_a_budget_that_the_lowest_pass_whatever_it_would_serve(load_ratio: float) -> None:
    """The model itself, with many kilowatts and with few: what comes after it would only bring such caps down."""
    problem, plan = planned()
    demands = {n: replace(d, requests_per_s=load_ratio * d.requests_per_s) for n, d in problem.demands.items()}
    problem = replace(problem, demands=demands)
    ticker = Ticker(lowest_known(problem), plan if load_ratio == 1.0 else make_plan(problem))
    model, cells = ticker._model, ticker.cells
    assert model is not None
    d = cells.domains.index("site")
    room = np.full(len(cells.domains), 1e6)
    room[d] = model._lowest_rise[d] - 1000.0
    used = model.solve(np.full(len(cells.services), 1e6), room).used
    assert cells.charged[[d]].toarray()[0].all()
    assert used == pytest.approx(0.0)
    assert model.solve(np.full(len(cells.services), 1e6), np.full(len(cells.domains), 1e6)).used.max() == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_served_is_carried_and_shares_are_whole(seed: int) -> None:
    ticker, demands, budgets = drawn(seed)
    tick = ticker.tick(demands, budgets)
    for s, name in enumerate(tick.services):
        served = tick.served_per_s[s]
        assert served <= demands[name] * (1.0 + 1e-9)
        for chain in ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED)):
            mine = [p for p, pool in enumerate(tick.pools) if pool.service == name and pool.role in chain]
            if served > 0.0:
                assert sum(tick.share_ratio[mine]) == pytest.approx(1.0)
            for p in mine:
                assert tick.share_ratio[p] * served <= tick.capacity_requests_per_s[p] * (1.0 + 1e-5)
    assert tick.shares.keys() == set(tick.pools)
    assert set(tick.unserved_per_s) == {
        n for n, d, v in zip(tick.services, tick.demand_per_s, tick.served_per_s, strict=True) if v < d
    }


def test_capacity_between_levels_is_a_safe_reading_of_the_sizing() -> None:
    """The chord lies below what sizing gives at the cap itself: half a percent for what its search leaves open."""
    problem, plan = planned()
    ticker, rng = Ticker(problem, plan), np.random.default_rng(5)
    for _ in range(3):
        caps = np.array([rng.uniform(*ticker.cells.levels[p].cap_watts[[0, -1]]) for p in ticker.cells.cell_pool])
        rates = ticker.cells.replica_rates(caps)
        for c, p in enumerate(ticker.cells.cell_pool):
            pool = ticker.cells.pools[p]
            service = next(s for s in problem.services if s.name == pool.service)
            profile = next(
                v
                for k, v in problem.profiles.items()
                if (k.model, k.gpu_class, k.config) == (service.model, pool.gpu_class, pool.config)
            )
            if caps[c] < profile.cap_watts_per_gpu[0]:
                assert rates[c] == 0.0
                continue
            replicas = sum(row.replicas for row in plan.placements if row.pool == pool)
            sized = replica_capacity(
                capped(profile, caps[c]),
                pool.role,
                problem.demands[pool.service].mix,
                service.slos,
                pool_replicas=replicas,
            )
            assert rates[c] <= getattr(sized, "requests_per_s", 0.0) * 1.005


def test_caps_between_levels_that_gain_late_are_raised_until_they_carry_what_is_asked() -> None:
    """Speed that comes with the last watts: a cap on the straight line between far levels carries less than it says."""
    problem, plan = planned()

    def late(
        curves: EngineProfile, role: Role, mix: Sequence[SizeBucket], slos: Sequence[Slo], *, pool_replicas: int = 1
    ) -> Capacity | Unfit:
        sized, full = (
            replica_capacity(at, role, mix, slos, pool_replicas=pool_replicas)
            for at in (curves, problem.profiles[curves.key])
        )
        assert isinstance(full, Capacity)
        if isinstance(sized, Unfit):
            return sized
        return replace(sized, requests_per_s=full.requests_per_s * (sized.requests_per_s / full.requests_per_s) ** 3)

    ticker = Ticker(lowest_known(problem), plan, capacity_of=late)
    most = ticker.tick(dict.fromkeys(problem.demands, 1e6))
    asked = {name: 0.7 * most.served_per_s[s] for s, name in enumerate(most.services)}
    tick = ticker.tick(asked)
    assert tick.unserved_per_s == {}
    assert (tick.cap_watts < most.cap_watts - 1.0).any()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_caps_that_pass_a_budget_are_lowered_by_what_is_too_much_and_no_more(part: float) -> None:
    ticker = drawn(3)[0]
    lowest, highest = (
        np.array([levels.cap_watts[end] for levels in ticker.cells.levels])[ticker.cells.cell_pool] for end in (0, -1)
    )
    least, most = ticker.cells.watts(lowest), ticker.cells.watts(highest)
    caps = ticker._kept_inside(highest, least + part * (most - least))
    assert (ticker.cells.watts(caps) <= least + part * (most - least)).all()
    tightest = ticker.cells.watts(caps) - least - part * (most - least)
    assert tightest.max() == pytest.approx(0.0, abs=1.0)
    assert (caps >= lowest).all()


def test_hot_ticks_say_what_a_cold_one_says() -> None:
    problem, plan = planned()
    hot, rng = Ticker(problem, plan), np.random.default_rng(9)
    for _ in range(6):
        demands = {name: d.requests_per_s * rng.uniform(0.5, 1.5) for name, d in problem.demands.items()}
        budgets = {"site": problem.domains["site"].budget_watts * rng.uniform(0.5, 1.0)}
        warm, cold = hot.tick(demands, budgets), Ticker(problem, plan).tick(demands, budgets)
        assert worth(hot, warm) == pytest.approx(worth(hot, cold), rel=1e-4)
        assert warm.served_per_s == pytest.approx(cold.served_per_s, rel=1e-4)


def test_the_model_is_stated_once_and_takes_its_parameters_where_cvxpy_puts_them() -> None:
    problem, plan = planned()
    ticker = Ticker(problem, plan)
    model = ticker._model
    assert model is not None
    assert model.problem.is_dpp()
    asked, room = np.linspace(0.5, 0.9, len(ticker.cells.services)), np.linspace(3.0, 9.0, len(ticker.cells.domains))
    model.demand.value, model.room.value = asked, room
    data, _, _ = model.problem.get_problem_data(cp.HIGHS)
    assert np.asarray(data["b"])[model._demand_rows] == pytest.approx(asked)
    assert np.asarray(data["b"])[model._room_rows] == pytest.approx(room)


def test_prices_are_what_one_unit_more_changes() -> None:
    problem, plan = planned()
    ticker, demands = Ticker(lowest_known(problem), plan), {n: d.requests_per_s for n, d in problem.demands.items()}
    loose, cells = ticker.tick(demands), ticker.cells
    d, s = loose.domains.index("site"), 0
    least = cells.watts(np.array([cells.levels[p].cap_watts[0] for p in cells.cell_pool]))[d]
    tight = {"site": 0.5 * (least + loose.reserved_watts[d])}
    before = ticker.tick(demands, tight)
    after = ticker.tick(demands, {"site": tight["site"] + 10.0})
    assert before.domain_usd_per_kilowatt_hour[d] > 0.0
    gain = (worth(ticker, before) - worth(ticker, after)) / 0.01
    assert gain == pytest.approx(before.domain_usd_per_kilowatt_hour[d], rel=0.02)
    more = ticker.tick({**demands, before.services[s]: demands[before.services[s]] + 0.01}, tight)
    rise = (worth(ticker, more) - worth(ticker, before)) / 0.01
    assert rise == pytest.approx(before.service_usd_per_request[s], rel=0.02, abs=1e-3)


def test_lower_tiers_are_shed_first() -> None:
    problem, plan = planned()
    ticker = Ticker(problem, plan)
    tick = ticker.tick(budgets={"site": 0.6 * problem.domains["site"].budget_watts})
    assert set(tick.unserved_per_s) == {"default/batch"}


def test_pools_of_unknown_speed_keep_their_highest_cap() -> None:
    problem = scarce(1.0, 0.7)
    plan = make_plan(problem)
    ticker = Ticker(problem, plan)
    tick = ticker.tick(budgets={"site": 0.5 * problem.domains["site"].budget_watts})
    highest = [problem.gpu_classes[pool.gpu_class].max_cap_watts for pool, _ in tick.places]
    assert tick.cap_watts.tolist() == highest
    assert "the lowest caps need" in tick.notes[0]


def test_a_plan_without_replicas_sheds_everything() -> None:
    problem, plan = planned()
    empty = replace(plan, placements=(), pools=())
    tick = Ticker(problem, empty).tick()
    assert tick.caps == {}
    assert tick.served_per_s.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("demands", "budgets", "named"),
    [
        ({"default/none": 1.0}, {}, "ServedModel/default/none"),
        ({"default/chat": float("nan")}, {}, "ServedModel/default/chat"),
        ({"default/chat": -1.0}, {}, "ServedModel/default/chat"),
        ({}, {"attic": 1.0}, "PowerDomain/attic"),
        ({}, {"site": float("inf")}, "PowerDomain/site"),
    ],
)
def test_bad_input_is_named(demands: dict[str, float], budgets: dict[str, float], named: str) -> None:
    problem, plan = planned()
    with pytest.raises(InvalidInput) as refused:
        Ticker(problem, plan).tick(demands, budgets)
    assert refused.value.subject == named


def test_a_plan_of_another_problem_is_refused() -> None:
    problem, plan = planned()
    with pytest.raises(InvalidInput, match="plan anew"):
        Ticker(replace(problem, profiles={}), plan)


def test_levels_are_read_along_chords_and_not_below_the_first_that_serves() -> None:
    levels = Levels(cap_watts=np.array([200.0, 300.0, 400.0, 500.0]), requests_per_s=np.array([0.0, 1.0, 3.0, 4.0]))
    watts, rates = levels.segments()
    assert (watts.tolist(), rates.tolist()) == ([200.0, 100.0], [3.0, 1.0])  # 300 W lies below the chord
    assert levels.cap_for(0.5) == 300.0
    assert levels.cap_for(2.0) == 350.0
    assert levels.cap_for(9.0) == 500.0
