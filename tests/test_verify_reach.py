"""The check of bounds under rules on places: what nobody can have is paid for, and no bound passes the best plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from solvers.certificate import LINK_IN, LINK_OUT, RESOURCES, RESOURCES_WHOLE, PricedRow
from solvers.engine import Role
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.pools.crew import WIDE_GPUS
from solvers.problem import KvLink, Policy, Problem
from solvers.sizing import replica_capacity
from solvers.verify.bound import BoundCheck, recomputed, verify_bound
from solvers.verify.stock import Stock, first_apart
from solvers.verify.ways import Asked, least
from solvers.workload import Pin
from tests import fleets, synthetic
from tests.pair_world import bounded
from tests.test_against_brute_force import Tiny, best_by_trying, drawn
from tests.test_links import Linked
from tests.test_pairing import Grouped, grouped
from tests.test_pins import pinned_somewhere
from tests.test_rules_together import Together, with_rules
from tests.test_spread import spread

COUNT = 6  # fleets by rule
WITHIN = 1e-3  # of what the planner claims, what a bound that is found again may lie below it
Rule = Callable[[Problem, np.random.Generator], Problem]


def free(problem: Problem, rng: np.random.Generator) -> Problem:
    return problem


def pinned(problem: Problem, rng: np.random.Generator) -> Problem:
    return replace(problem, services=tuple(pinned_somewhere(s, rng) for s in problem.services))


def spread_out(problem: Problem, rng: np.random.Generator) -> Problem:
    return replace(problem, services=tuple(spread(s, rng) for s in problem.services))


def on_spot(problem: Problem, rng: np.random.Generator) -> Problem:
    nodes = tuple(replace(n, reclaims_per_hour=float(rng.choice([0.0, 2.0]))) for n in problem.nodes)
    services = tuple(replace(s, max_spot_ratio=float(rng.choice([0.0, 0.5]))) for s in problem.services)
    return replace(problem, nodes=nodes, services=services)


def in_groups(problem: Problem, rng: np.random.Generator) -> Problem:
    return grouped(problem, rng)


def at_locations(problem: Problem, rng: np.random.Generator) -> Problem:
    return replace(problem, services=tuple(replace(s, kv_may_cross=False) for s in problem.services))


def in_groups_at_locations(problem: Problem, rng: np.random.Generator) -> Problem:
    return at_locations(in_groups(problem, rng), rng)


def over_a_link(problem: Problem, rng: np.random.Generator) -> Problem:
    """One service, and a link that may be narrow, dear or both."""
    most, usd = float(rng.choice([40.0, 150.0, 1e6])), float(rng.choice([0.0, 1e6, 5e6]))
    link = KvLink(name="up", locations=("left",), bytes_per_s=most, usd_per_terabyte=usd)
    first = problem.services[0]
    one = replace(problem, services=(first,), demands={first.name: problem.demands[first.name]})
    return replace(one, policy=replace(problem.policy, kv_links=(link,)))


def with_cpus(problem: Problem, rng: np.random.Generator) -> Problem:
    services = tuple(
        replace(s, requests={role: {"cpu": int(rng.integers(1, 4))} for role in s.roles}) for s in problem.services
    )
    nodes = tuple(replace(n, resources={"cpu": int(rng.integers(1, 9))}) for n in problem.nodes)
    return replace(problem, services=services, nodes=nodes)


def planned_as(seed: int) -> int:
    """GPUs from which a fleet is a large one: every other fleet is planned in that way, small as it is."""
    return 0 if seed % 2 else WIDE_GPUS


@pytest.mark.parametrize(
    ("rule", "oracle", "first"),
    [
        (in_groups, Grouped, 11010),
        (at_locations, Grouped, 11000),
        (in_groups_at_locations, Grouped, 11012),
        (over_a_link, Linked, 12000),
        (with_cpus, None, 9000),
    ],
)
def test_bounds_that_rest_on_pairs_links_and_cpus_are_found_again(
    rule: Rule, oracle: type[Tiny] | None, first: int
) -> None:
    """Tiny fleets: below the best of all counts (where they can all be tried), and as high as prices alone claim."""
    supported = 0
    for seed, tiny in drawn(first, COUNT):
        case = (oracle or Tiny)(problem=rule(tiny.problem, np.random.default_rng(seed)), table=tiny.table)
        plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=planned_as(seed))
        check = verify_bound(plan, case.problem, capacity_of=case.capacity_of)
        assert check is not None
        assert check.is_supported, (seed, str(check))
        most = best_by_trying(case, planned_as(seed)) if oracle else plan.report.objective_usd_per_hour
        if not check.is_held:
            assert check.recomputed_usd_per_hour <= most * (1.0 + 1e-6) + 1e-6, (seed, str(check))
        supported += str(check).startswith("bound supported: ")
    assert supported >= 4  # what is short owes something to branches


def any_rows(problem: Problem, rng: np.random.Generator) -> Iterator[PricedRow]:
    """Prices of CPUs and links, as no planner would ask."""
    for gpu_class, location in sorted({(n.gpu_class, n.location) for n in problem.nodes if n.resources}):
        for limit, size in ((RESOURCES, 3.0), (RESOURCES_WHOLE, float(rng.integers(1, 4)))):
            usd = float(rng.exponential(20.0))
            yield PricedRow(
                limit=limit, places=(location,), gpu_class=gpu_class, resource="cpu", size=size, usd_per_hour=usd
            )
    for link in problem.policy.kv_links:
        for limit in (LINK_OUT, LINK_IN):
            yield PricedRow(limit=limit, places=(link.name,), usd_per_hour=float(rng.exponential(20.0)))


@pytest.mark.parametrize("rule", [over_a_link, with_cpus])
def test_no_prices_of_links_and_cpus_give_a_bound_above_the_plan(rule: Rule) -> None:
    told = 0
    for seed, tiny in drawn(12000, COUNT):
        rng = np.random.default_rng(seed)
        problem = rule(tiny.problem, rng)
        plan = make_plan(problem, capacity_of=tiny.capacity_of)
        shown = plan.certificate
        assert shown is not None
        for rows in ((), tuple(any_rows(problem, rng)), (*shown.rows, *any_rows(problem, rng))):
            found = recomputed(replace(shown, rows=rows, held=()), problem, tiny.capacity_of)
            assert found <= plan.report.objective_usd_per_hour * (1.0 + 1e-6) + 1e-6, seed
            told += found > 0.0
    assert told > 9


def without(plan: Plan, *limits: str) -> Plan:
    """The plan, its prices of some limits left out."""
    shown = plan.certificate
    assert shown is not None
    return replace(plan, certificate=replace(shown, rows=tuple(row for row in shown.rows if row.limit not in limits)))


PRICED_CPUS = (12030, 12051, 12065, 12082)  # where services want more CPU together than any pool of theirs alone


def test_a_bound_that_rests_on_prices_of_cpus_needs_them() -> None:
    for seed in PRICED_CPUS:
        tiny = next(drawn(seed, 1))[1]
        problem = with_cpus(tiny.problem, np.random.default_rng(seed))
        plan = make_plan(problem, capacity_of=tiny.capacity_of, wide_gpus=0)
        check = verify_bound(without(plan, RESOURCES, RESOURCES_WHOLE), problem, capacity_of=tiny.capacity_of)
        assert check is not None
        assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-6) + 1e-6, seed
        assert not check.is_supported, seed


def test_a_bound_that_rests_on_prices_of_links_needs_them() -> None:
    """Racks that send over links with room for a tenth of all keys and values."""
    size = synthetic.Size(nodes=24, services=2, rows=4, designs=3)
    problem = bounded(synthetic.make_problem(size, 1, load=synthetic.LOAD, policy=Policy(min_saving_ratio=0.0)))
    plan = make_plan(problem, wide_gpus=0)
    check = verify_bound(plan, problem, capacity_of=replica_capacity)
    assert check is not None
    assert check.is_supported, str(check)
    fewer = without(plan, LINK_OUT, LINK_IN)
    assert fewer != plan
    assert str(verify_bound(fewer, problem, capacity_of=replica_capacity)).startswith("claimed bound not supported: ")


@pytest.mark.parametrize("rule", [free, pinned, spread_out, on_spot, with_rules])
def test_no_recomputed_bound_passes_the_best_of_all_counts(rule: Rule) -> None:
    """Tiny fleets: below the best in all, and in most as high as claimed where prices are all that was claimed."""
    supported = 0
    for seed, tiny in drawn(9000, COUNT):
        case = Together(problem=rule(tiny.problem, np.random.default_rng(seed)), table=tiny.table)
        plan = make_plan(case.problem, capacity_of=case.capacity_of, wide_gpus=planned_as(seed))
        best = best_by_trying(case, planned_as(seed))
        check = verify_bound(plan, case.problem, capacity_of=case.capacity_of)
        assert check is not None
        assert check.is_supported, (seed, str(check))
        if not check.is_held:
            assert check.recomputed_usd_per_hour <= best * (1.0 + 1e-6) + 1e-6, (seed, str(check))
        assert check.recomputed_usd_per_hour >= check.priced_usd_per_hour * (1.0 - WITHIN) - 1e-6, (seed, str(check))
        supported += str(check).startswith("bound supported: ")
    assert supported >= 2  # what is short owes something to branches, or to whole replicas


def racks(count: int = 2, **how: Any) -> Problem:
    """A mixed service that racks of H100 hold with ease, and needs one of."""
    fleet = tuple(node for n in range(count) for node in fleets.nodes("h100-sxm", 1, f"rack-{n + 1}"))
    served = replace(fleets.service("chat", "chat", roles=(Role.MIXED,)), **how)
    return fleets.problem([(served, 6.0)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])


def found(problem: Problem) -> BoundCheck:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    check = verify_bound(plan, problem, capacity_of=fleets.plain_capacity)
    assert check is not None
    assert check.is_supported, str(check)
    assert check.recomputed_usd_per_hour <= plan.report.objective_usd_per_hour * (1.0 + 1e-6)
    return check


def test_replicas_that_a_pin_cannot_have_are_paid_for() -> None:
    """Eight of nine fit at the rack: the ninth costs ten times the tier's weight on a replica."""
    usual = found(racks()).recomputed_usd_per_hour
    missing = found(racks(pins=(Pin(location="rack-1", replicas=9),))).recomputed_usd_per_hour
    assert missing - usual >= 60.0 * 10.0 * 2.5 * (1.0 - 1e-4)
    assert found(racks(pins=(Pin(location="rack-1", replicas=8),))).recomputed_usd_per_hour < usual + 8 * 6.0
    held = found(racks(pins=(Pin(location="rack-1", replicas=5),), max_replicas=5)).recomputed_usd_per_hour
    assert held < usual + 8 * 6.0


def test_locations_that_there_are_not_are_paid_for() -> None:
    usual = found(racks()).recomputed_usd_per_hour
    three = found(racks(min_locations=3)).recomputed_usd_per_hour  # of two, in both chains
    assert three - usual >= 2.0 * 60.0 * 10.0 * 2.5 * (1.0 - 1e-4)
    assert found(racks(min_locations=2)).recomputed_usd_per_hour < usual + 8 * 6.0


def test_what_may_not_be_lost_is_not_served_from_one_place() -> None:
    """At one rack nothing may be served that must survive its loss; at two, each carries its part."""
    lost = racks(max_share_per_location_ratio=0.5, locations=("rack-1",))
    plan = make_plan(lost, capacity_of=fleets.plain_capacity)
    assert plan.services[0].served_requests_per_s == 0.0
    assert found(lost).recomputed_usd_per_hour == pytest.approx(plan.report.objective_usd_per_hour, rel=1e-3)
    usual = found(racks()).recomputed_usd_per_hour
    quarter = found(racks(max_share_per_location_ratio=0.25)).recomputed_usd_per_hour  # 1.5 times the capacity
    assert quarter > 1.3 * usual
    three = found(racks(3, max_share_per_location_ratio=0.4)).recomputed_usd_per_hour  # 60 % are left anyway
    assert three < 1.3 * usual


def test_a_chain_that_could_only_stand_on_spot_nodes_serves_nothing() -> None:
    problem = racks(max_spot_ratio=0.5)
    spot = replace(problem, nodes=tuple(replace(n, reclaims_per_hour=0.5) for n in problem.nodes))
    plan = make_plan(spot, capacity_of=fleets.plain_capacity)
    assert plan.services[0].served_requests_per_s == 0.0
    assert found(spot).recomputed_usd_per_hour == pytest.approx(plan.report.objective_usd_per_hour, rel=1e-3)


def carrying(rate: float, size: int) -> tuple[float, float]:
    return rate, 2.0


@pytest.mark.parametrize("count", [3, 200])
def test_replicas_that_are_cheaper_kept_than_stopped_are_all_kept(count: int) -> None:
    """Each saves 5 USD/h of stopping and costs 2 to run; only one is needed, and none of another pool."""
    kept = [
        Stock(
            pair=(Role.MIXED, str(rate)),
            role=Role.MIXED,
            units_usd_per_hour=np.full(count, -5.0),
            price_usd_per_hour=2.0,
            idle_usd_per_hour=2.0,
            sized=partial(carrying, rate),
        )
        for rate in (10.0, 0.001)
    ]
    for stock in kept:
        stock.ask(stock.most)
    asked = Asked(demand_per_s=5.0, unserved_usd_per_hour=1e3, fair_ratio=1.0, floor=0, floor_usd_per_hour=0.0)
    value = least(kept, first_apart(kept), asked, 1000).usd_per_hour
    assert value <= -3.0 * 2 * count + 1e-9
    assert value >= -3.0 * 2 * count - 3.0
