"""The parts of a tick by hand: what may be drawn, caps that are raised as promised, and pairs of prefill and decode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.engine import Role
from solvers.planner import make_plan
from solvers.tick import WATTS, Ticker, _routed
from tests import fleets
from tests.test_tick import lowest_known, planned


@pytest.fixture(scope="module")
def ticker() -> Ticker:
    problem, plan = planned()
    return Ticker(lowest_known(problem), plan)


def test_of_a_budget_headroom_and_fixed_draw_are_taken_off() -> None:
    problem, plan = planned()
    site = replace(problem.domains["site"], headroom_ratio=0.1, fixed_watts=500.0)
    tick = Ticker(replace(problem, domains={**problem.domains, "site": site}), plan).tick(budgets={"site": 20_000.0})
    usable = dict(zip(tick.domains, tick.usable_watts.tolist(), strict=True))
    assert usable.pop("site") == pytest.approx(17_500.0)
    assert usable == {name: problem.domains[name].usable_watts for name in usable}


def test_room_lies_a_little_below_a_budget_and_is_ample_where_full_gpus_would_not_fill_it(ticker: Ticker) -> None:
    cells = ticker.cells
    tight, loose = cells.ceiling_watts - 1.0, cells.ceiling_watts
    assert ticker._room_watts(tight) == pytest.approx(tight - WATTS - cells.idle_watts, abs=0.1 * WATTS)
    assert (ticker._room_watts(loose) > 10.0 * (cells.ceiling_watts - cells.idle_watts)).all()


def test_caps_are_raised_to_what_was_promised_as_far_as_there_are_watts(ticker: Ticker) -> None:
    cells = ticker.cells
    levels = [cells.levels[p] for p in cells.cell_pool]
    caps = np.array([each.cap_watts[0] for each in levels])
    most = np.array([each.requests_per_s[-1] for each in levels])
    needs = np.array([each.cap_for(rate) for each, rate in zip(levels, most, strict=True)]) - caps
    site = cells.charged[[cells.domains.index("site")]].toarray().ravel()
    first, second = np.flatnonzero(site * needs)[:2].tolist()
    promised = np.zeros(len(caps))
    promised[[first, second]] = most[[first, second]]
    drawn, ample = cells.watts(caps), np.full(len(cells.domains), 1e6)

    def raised(spare_watts: float) -> list[int]:
        usable = np.minimum(ample, cells.ceiling_watts - 1.0)
        usable[cells.domains.index("site")] = drawn[cells.domains.index("site")] + WATTS + spare_watts
        found = ticker._kept_promises(caps, promised, usable)
        assert (cells.watts(found) <= np.maximum(usable, drawn)).all()
        return np.flatnonzero(found > caps).tolist()

    one, other = (float(needs[c] * cells.cell_gpus[c]) for c in (first, second))
    assert raised(0.5 * min(one, other)) == []
    assert raised(one + 0.5 * other) == [first]
    assert raised(one + other + 1.0) == [first, second]


@pytest.mark.parametrize("ahead", [Role.PREFILL, Role.DECODE])
def test_what_nothing_pairs_with_serves_nothing(ahead: Role) -> None:
    service = fleets.service("chat", "chat", roles=(Role.PREFILL, Role.DECODE))
    fleet = fleets.nodes("h100-sxm", 1, "rack-a")
    problem = fleets.problem([(service, 6.0)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])
    plan = make_plan(problem, capacity_of=fleets.plain_capacity)
    cells = Ticker(problem, plan, capacity_of=fleets.plain_capacity).cells
    carried = np.array([6.0 if cells.pools[p].role is ahead else 4.0 for p in cells.cell_pool])
    assert sorted(carried) == [4.0, 6.0]
    for asked_per_s, served_per_s in ((10.0, 4.0), (4.0, 4.0), (3.0, 3.0)):
        served, shares = _routed(cells, carried, np.array([asked_per_s]))
        assert served.tolist() == [served_per_s]
        assert shares.tolist() == pytest.approx([1.0, 1.0])
