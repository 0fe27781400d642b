"""What a plan shows of its bound: every price is named so that its room is found again, and no term is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from solvers.certificate import (
    GPUS,
    LINK_IN,
    LINK_OUT,
    POWER,
    POWER_WHOLE,
    QUOTA_GPUS,
    QUOTA_POWER,
    RESOURCES,
    RESOURCES_WHOLE,
    Branch,
    Certificate,
    HeldTier,
    PricedRow,
)
from solvers.engine import Role
from solvers.planner import desk_for
from solvers.planner.menus.compose import shared_rows
from solvers.planner.model.relax import Arrays, state
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.tally import Worth
from solvers.planner.proof.bound import dual_bound
from solvers.planner.proof.certify import UNSHOWN, Evidence, best_certificate, certificate, known_duals
from solvers.problem import KvLink, Problem, Quota
from solvers.verify.market import Market
from tests import fleets
from tests.test_limits import cells_of, golden_problem, linked_problem

KINDS = {GPUS, POWER, POWER_WHOLE, RESOURCES, RESOURCES_WHOLE}
SHOWN = Certificate(usd_per_hour=1000.0, rows=(PricedRow(limit="gpus", places=("a",), usd_per_hour=1.0),), weights=())
HELD = (
    HeldTier(tier_rank=0, lacking_usd_per_hour=0.0, price_ratio=0.5),
    HeldTier(tier_rank=1, lacking_usd_per_hour=100.0, price_ratio=0.2),
)


@pytest.fixture(scope="module")
def greedy() -> Worth:
    return desk_for(fleets.demo(), fleets.plain_capacity).repaired({})


def lacking(worth: Worth, *lacks_usd: float) -> Worth:
    return replace(worth, lacking_usd_by_tier=dict(enumerate(lacks_usd)))


def amounts(shown: Certificate | None) -> list[tuple[int, float, float]]:
    assert shown is not None
    return [(tier.tier_rank, tier.lacking_usd_per_hour, tier.price_ratio) for tier in shown.held]


def test_a_plan_that_leaves_tiers_more_short_pays_what_they_are_held_at_for_it(greedy: Worth) -> None:
    evidence = Evidence(shown=SHOWN, held=HELD)
    bound, shown = evidence.of(lacking(greedy, 10.0, 150.0, 9e9), 1000.0)
    assert bound == pytest.approx(1000.0 - 0.5 * 10.0 - 0.2 * 50.0)
    assert amounts(shown) == [(0, 10.0, 0.5), (1, 150.0, 0.2)]


def test_a_plan_that_leaves_tiers_less_short_is_given_nothing_for_it(greedy: Worth) -> None:
    bound, shown = Evidence(shown=SHOWN, held=HELD).of(lacking(greedy, 0.0, 30.0, 0.0), 1000.0)
    assert bound == 1000.0
    assert amounts(shown) == [(0, 0.0, 0.5), (1, 30.0, 0.2)]


def test_what_is_true_whatever_the_tiers_lack_is_shown_where_it_says_as_much(greedy: Worth) -> None:
    free = replace(SHOWN, usd_per_hour=985.0)
    evidence = Evidence(shown=free)
    evidence.hold(985.0, HELD)
    evidence.shown = SHOWN
    evidence.hold(999.0, HELD)  # what was free at first is all that is
    assert evidence.of(lacking(greedy, 0.0, 100.0, 0.0), 1000.0)[0] == 1000.0
    assert evidence.of(lacking(greedy, 20.0, 150.0, 0.0), 1000.0) == (985.0, free)  # held, it would say 980
    assert Evidence(shown=SHOWN).of(lacking(greedy, 20.0, 150.0, 0.0), 1000.0) == (1000.0, SHOWN)


def test_what_a_search_adds_to_prices_is_said(greedy: Worth) -> None:
    found = [Evidence(shown=SHOWN).of(greedy, usd)[1] for usd in (1000.0, 1001.0)]
    assert [shown is not None and shown.is_searched for shown in found] == [False, True]


def test_a_bound_of_nothing_is_shown_as_any_other(greedy: Worth) -> None:
    nothing = replace(SHOWN, usd_per_hour=0.0)
    assert Evidence(shown=nothing).of(greedy, 0.0) == (0.0, nothing)


def test_of_branches_each_pays_at_its_own_prices_and_the_least_is_the_bound(greedy: Worth) -> None:
    branches = tuple(
        Branch(usd_per_hour=usd, undone=(), rows=(), held_ratios=ratios)
        for usd, ratios in ((1000.0, (0.0, 0.1)), (1004.0, (1.0, 0.0)))
    )
    evidence = Evidence(shown=replace(SHOWN, branches=branches), held=HELD)
    bound, shown = evidence.of(lacking(greedy, 10.0, 150.0, 0.0), 1000.0)
    assert shown is not None
    assert [branch.usd_per_hour for branch in shown.branches] == pytest.approx([995.0, 994.0])
    assert bound == shown.usd_per_hour == pytest.approx(994.0)
    less, _ = evidence.of(lacking(greedy, 0.0, 0.0, 0.0), 1000.0)
    assert less == 1000.0


def twins() -> Problem:
    """Two racks that are alike, each of two classes whose replicas draw nearly as much; two things may run out."""
    cores = {"cpu": 16, "memory": 16}
    fleet = [
        replace(node, resources=cores)
        for at in ("rack-a", "rack-b")
        for name in ("h100-sxm", "h200-sxm")
        for node in fleets.nodes(name, 1, at)
    ]
    chat = replace(fleets.service("chat", "chat", roles=(Role.MIXED,)), requests={Role.MIXED: {"cpu": 8, "memory": 8}})
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in ("h100-sxm", "h200-sxm")]
    asked = [(chat, 20.0), (replace(chat, name="default/more"), 20.0)]
    problem = fleets.problem(asked, fleet, profiles, budgets={"rack-a": 6e3, "rack-b": 6e3, "site": 12e3})
    one = problem.gpu_classes["h100-sxm"]
    other = replace(one, name="h200-sxm", host_share_watts=one.host_share_watts + 0.3)
    return replace(problem, gpu_classes={"h100-sxm": one, "h200-sxm": other})


def linked_twins() -> Problem:
    """Two racks that are alike, each on a link of its own, whose prefill and decode may stand in different ones."""
    problem = twins()
    services = tuple(
        replace(s, roles=tuple(Role), requests={r: {"cpu": 8, "memory": 8} for r in Role}) for s in problem.services
    )
    links = tuple(KvLink(name=f"up-{at}", locations=(at,), bytes_per_s=2e9) for at in ("rack-a", "rack-b"))
    return replace(problem, services=services, policy=replace(problem.policy, kv_links=links))


def more_quotas() -> Problem:
    """A namespace with quotas on all GPUs and on those of each class, in number and in watts."""
    quotas = (
        Quota(namespace="default", max_gpus=20, max_watts=9000.0),
        Quota(namespace="default", gpu_class="h100-sxm", max_gpus=12, max_watts=7000.0),
        Quota(namespace="default", gpu_class="l40s", max_gpus=3, max_watts=5000.0),
    )
    problem = golden_problem()
    return replace(problem, policy=replace(problem.policy, quotas=quotas))


@pytest.fixture(scope="module", params=[golden_problem, more_quotas, linked_problem, twins, linked_twins])
def stated(request: pytest.FixtureRequest) -> tuple[Problem, Cells, Arrays]:
    make: Callable[[], Problem] = request.param
    cells = cells_of(make())
    return cells.problem, cells, state(cells)


def link_rows(arrays: Arrays) -> list[int]:
    return [row for row, (limit, _) in enumerate(arrays.rows) if limit == "link"]


def test_prices_of_shared_rows_fetch_what_their_room_is_worth(stated: tuple[Problem, Cells, Arrays]) -> None:
    problem, cells, arrays = stated
    shared, links = shared_rows(arrays), link_rows(arrays)
    room = arrays.row_upper[[*shared, *links]]
    for at, most in enumerate(room):
        prices = np.zeros(len(room))
        prices[at] = 3.0
        shown = certificate(cells, arrays, prices, 1.0)
        assert len(shown.rows) == 1
        assert Market.of(problem, shown).fetched_usd_per_hour() == pytest.approx(3.0 * most, rel=1e-5)
    every = certificate(cells, arrays, np.ones(len(room)), 1.0).rows
    assert len(every) == len(room)
    quotas = {QUOTA_GPUS, QUOTA_POWER} if problem.policy.quotas else set()
    assert {row.limit for row in every} == {*KINDS, *quotas, *([LINK_OUT, LINK_IN] if links else [])}
    assert len(set(every)) == len(every)


def test_watts_for_a_whole_number_of_replicas_are_room_for_it_however_they_were_rounded() -> None:
    problem, rng = twins(), np.random.default_rng(3)
    for _ in range(200):
        watts, count = round(float(rng.uniform(100.0, 900.0)), 1), int(rng.integers(1, 7))
        site = replace(problem.domains["site"], budget_watts=32 * 70.0 + count * watts)
        row = PricedRow(limit=POWER_WHOLE, places=("site",), size=watts, usd_per_hour=1.0)
        shown = Certificate(usd_per_hour=0.0, rows=(row,), weights=())
        assert fetched(replace(problem, domains={**problem.domains, "site": site}), shown) == count


def test_weights_of_a_certificate_are_what_failing_each_service_costs(stated: tuple[Problem, Cells, Arrays]) -> None:
    _, cells, arrays = stated
    cells = replace(cells, fair_ratio=np.array([0.25, 0.5]), floor_usd_per_hour=np.array([1.0, 2.0]))
    shown = certificate(cells, arrays, np.zeros(len(shared_rows(arrays))), 1.0)
    assert [(w.service, w.unserved_usd_per_hour, w.floor_usd_per_hour, w.fair_ratio) for w in shown.weights] == [
        (service.name, float(cells.penalty_usd_per_hour[s]), 1.0 + s, 0.25 * (1 + s))
        for s, service in enumerate(cells.services)
    ]


def test_known_prices_are_read_back_from_a_certificate(stated: tuple[Problem, Cells, Arrays]) -> None:
    _, cells, arrays = stated
    shared = shared_rows(arrays)
    prices = np.random.default_rng(5).uniform(1.0, 2.0, len(shared))
    duals = known_duals(cells, arrays, certificate(cells, arrays, prices, 1.0))
    assert duals[shared] == pytest.approx(-prices)
    assert not np.delete(duals, shared).any()


def fetched(problem: Problem, shown: Certificate) -> float:
    return Market.of(problem, shown).fetched_usd_per_hour()


def drawn_duals(arrays: Arrays, limits: set[str]) -> Floats:
    rng = np.random.default_rng(7)
    return np.array([-rng.uniform(1e-4, 2e-4) if limit in limits else 0.0 for limit, _ in arrays.rows])


def test_a_certificate_of_the_relaxation_shows_ceilings_and_links_too(stated: tuple[Problem, Cells, Arrays]) -> None:
    problem, cells, arrays = stated
    named = {arrays.rows[row][0] for row in shared_rows(arrays)}
    for limits in (named, {"ceiling"}, {"link"}):
        duals = drawn_duals(arrays, limits)
        shown = best_certificate(cells, arrays, duals, np.zeros(len(shared_rows(arrays))), -np.inf)
        assert len(shown.rows) == np.count_nonzero(duals)
        assert fetched(problem, shown) == pytest.approx(-float(duals @ np.where(duals < 0.0, arrays.row_upper, 0.0)))
        assert shown.usd_per_hour == dual_bound(arrays, duals)


def test_what_no_certificate_shows_counts_for_nothing(stated: tuple[Problem, Cells, Arrays]) -> None:
    _, cells, arrays = stated
    none = np.zeros(len(shared_rows(arrays)))
    duals = drawn_duals(arrays, {"gpus"})
    beside = duals + drawn_duals(arrays, set(UNSHOWN))
    has_any = any(limit in UNSHOWN for limit, _ in arrays.rows)
    assert (dual_bound(arrays, beside) != dual_bound(arrays, duals)) == has_any
    plain, same = (best_certificate(cells, arrays, each, none, -np.inf) for each in (duals, beside))
    assert same == plain


def test_prices_of_ways_are_shown_where_they_say_as_much_as_the_relaxation(
    stated: tuple[Problem, Cells, Arrays],
) -> None:
    _, cells, arrays = stated
    duals = drawn_duals(arrays, {"gpus"})
    relaxed, prices = dual_bound(arrays, duals), np.ones(len(shared_rows(arrays)))
    ways = best_certificate(cells, arrays, duals, prices, relaxed)
    assert ways == certificate(cells, arrays, prices, relaxed)
    assert best_certificate(cells, arrays, duals, prices, relaxed - 1.0).usd_per_hour == relaxed
