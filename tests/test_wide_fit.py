"""Plans of short large fleets: a few services at a time anew, at sizes that promise nothing they do not carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest

from solvers.deadline import AGAIN_UNTIL, Deadline
from solvers.fleet import PoolKey
from solvers.planner import desk_for, make_plan
from solvers.planner.model.relax import LEAN, UNUSED, Arrays, state
from solvers.planner.placing.desk import Desk
from solvers.planner.placing.places import Placed, cell_counts
from solvers.planner.placing.tiers import is_taken, lacking_above
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.crew import Crew
from solvers.planner.pools.options import step_at
from solvers.planner.pools.tally import CLEAR_SHARE, Worth
from solvers.planner.search import Search
from solvers.planner.wide import fit as fit_module
from solvers.planner.wide import near as near_module
from solvers.planner.wide import rows
from solvers.planner.wide import wide as wide_module
from solvers.planner.wide.fit import FIT_GAP, MOST_TRIES, OTHERS, ROUGH_GAP, Fitter, exact_steps
from solvers.planner.wide.near import Near, Neighbours, split_usd_per_hour
from solvers.planner.wide.ways import SparseWay, WayMaker
from solvers.programme import Programme, Solution, solve
from solvers.verify import verify
from tests.clocks import Stepped
from tests.wide_world import priced, short_fleet


@pytest.fixture(scope="module")
def desk() -> Desk:
    return desk_for(short_fleet())


@pytest.fixture(scope="module")
def fitter(desk: Desk) -> Fitter:
    search, wide = Search(desk=desk), priced(desk)
    arrays = state(wide.cells)
    return Fitter(
        desk=desk,
        wide=wide,
        gap=0.01,
        settled=search.settler.settled,
        seated=search.settler.seated,
        placed=lambda replicas: search._placed(wide.cells, arrays, replicas),
    )


def test_steps_have_no_holes_and_promise_no_more_than_their_ends_carry(desk: Desk) -> None:
    for option in (o for o in desk.options.pools if o.most > 12):
        for is_free in (False, True):
            steps = exact_steps(option, desk.sizer, {3, 9}, is_free)
            assert [step.lower for step in steps] == [1, *(step.upper + 1 for step in steps[:-1])]
            assert steps[-1].upper == option.most
            told = replace(option, steps=steps)
            for size in {end for step in steps for end in (step.lower, step.upper)}:
                step = step_at(told, size)
                assert step is not None
                carried = desk.sizer.carried(option.pool, option.profile, size)
                assert size * step.capacity_requests_per_s <= carried * (1.0 + 1e-9)
            assert all(step_at(told, size).lower == size for size in (3, 9))  # type: ignore[union-attr]


def of_others(worth: Worth, names: set[str]) -> dict[tuple[PoolKey, str], int]:
    return {key: count for key, count in worth.counts.items() if key[0].service not in names}


def test_only_the_chosen_services_change_and_no_held_tier_lacks_more(desk: Desk, fitter: Fitter) -> None:
    greedy, free = desk.repaired({}), (0, 3)
    found, _ = fitter.fitted(greedy, free)
    assert found is not None
    names = {fitter.wide.cells.services[s].name for s in free}
    totals = [np.sum(list(of_others(worth, names).values())) for worth in (greedy, found)]
    assert totals[1] >= totals[0]  # what is left over is filled
    *above, _ = sorted(greedy.lacking_usd_by_tier)
    assert all(found.lacking_usd_by_tier[t] <= greedy.lacking_usd_by_tier[t] * (1.0 + 1e-5) + 1e-3 for t in above)
    assert found.objective_usd_per_hour <= greedy.objective_usd_per_hour * (1.0 + 1e-9)


def lacking(worth: Worth, *lacks_usd: float) -> Worth:
    """The same worth with so much undone in each tier, of a hundred thousand USD per hour that could be."""
    by_tier = dict(enumerate(lacks_usd))
    whole = dict.fromkeys(by_tier, 1e5)
    return replace(
        worth, lacking_usd_by_tier=by_tier, demand_usd_by_tier=whole, penalty_usd_per_hour=sum(by_tier.values())
    )


def test_held_amounts_do_not_drift_by_plans_that_are_each_nearly_as_short(desk: Desk) -> None:
    base = desk.repaired({})
    best = lacking(base, 0.0, 2000.0, 40_000.0)
    drifted = lacking(base, 0.0, 2000.0 + 0.9 * CLEAR_SHARE * 1e5, 35_000.0)
    assert drifted.is_better_than(best)
    assert not is_taken(drifted, best, lacking_above(best))
    assert is_taken(lacking(base, 0.0, 2000.0, 39_999.0), best, lacking_above(best))
    assert not is_taken(lacking(base, 0.0, 2000.0, 40_001.0), best, lacking_above(best))


def test_of_plans_found_together_one_that_keeps_the_held_tiers_is_taken_though_dearer(
    desk: Desk, fitter: Fitter
) -> None:
    greedy = desk.repaired({})
    best, dearer, drifted = lacking(greedy, 0.0, 90.0), lacking(greedy, 0.0, 80.0), lacking(greedy, 1.0, 10.0)
    assert fitter._best_kept([drifted, dearer], best) is dearer
    assert fitter._best_kept([drifted], best) is drifted
    assert fitter._best_kept([], best) is None


def test_a_tier_clearly_less_short_counts_for_more_than_money(desk: Desk) -> None:
    base = desk.repaired({})
    best, less = lacking(base, 0.0, 2000.0, 40_000.0), 2000.0 - 1.1 * CLEAR_SHARE * 1e5
    assert is_taken(lacking(base, 0.0, less, 50_000.0), best, lacking_above(best))
    assert not is_taken(lacking(base, 10.0, less, 30_000.0), best, lacking_above(best))


def test_ways_chosen_near_a_plan_cost_no_more_than_its_own(desk: Desk, fitter: Fitter) -> None:
    greedy, wide = desk.repaired({}), fitter.wide
    near = Near.of(wide, greedy, Neighbours())

    def total_usd(replicas: Floats) -> float:
        return sum(way.cost_usd_per_hour + way.penalty_usd_per_hour for way in wide.maker.of_counts(replicas))

    chosen = near.chosen()
    assert (wide.shared @ chosen <= wide.room * (1.0 + 1e-6) + 1e-6).all()
    assert total_usd(chosen) <= total_usd(near.replicas) * (1.0 + 1e-9)


def test_what_a_service_could_move_is_no_more_than_is_open(desk: Desk, fitter: Fitter) -> None:
    near = Near.of(fitter.wide, desk.repaired({}), Neighbours())
    swings = near.swings_usd_per_hour()
    assert swings.max() > 0.0
    assert ((swings >= 0.0) & (swings <= near.open_usd_per_hour)).all()


def test_what_a_service_could_move_counts_up_to_what_is_open(desk: Desk, fitter: Fitter) -> None:
    near = Near.of(fitter.wide, desk.repaired({}), Neighbours())
    for open_usd, most_usd in ((-5.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
        assert replace(near, open_usd_per_hour=open_usd).swings_usd_per_hour().max() == most_usd


def test_ways_near_a_plan_are_chosen_from_its_own_on(desk: Desk, fitter: Fitter) -> None:
    begun = list[Floats]()

    def seen(programme: Programme) -> Solution:
        assert programme.start is not None
        begun.append(programme.start)
        return solve(programme)

    near = Near.of(replace(fitter.wide, crew=Crew(solve=seen)), desk.repaired({}), Neighbours())
    near.chosen()
    (start,) = begun
    assert [w for w, share in zip(near._among(), start, strict=True) if share == 1.0] == sorted(near.held.tolist())


def test_fitting_stops_when_the_plan_is_proved(desk: Desk, fitter: Fitter) -> None:
    greedy = desk.repaired({})
    assert fitter.run(greedy, lambda worth: True) is greedy


def test_services_are_never_planned_anew_together_twice_in_vain(fitter: Fitter) -> None:
    scores, closed = [float(3 * s % 7) for s in range(10)], set[frozenset[int]]()
    while free := fitter._next(scores, {1: 2}, closed, 3):
        assert frozenset(free) not in closed
        if not closed:
            assert set(free) == set(
                sorted(range(10), key=lambda s: (-scores[s] / (3.0 if s == 1 else 1.0), s))[: len(free)]
            )
        closed.add(frozenset(free))
    assert len(closed) == comb(3 + OTHERS, 3)


def test_services_that_were_of_no_use_count_for_less(fitter: Fitter) -> None:
    scores = [9.0, 8.0, 7.0, 1.0]
    assert fitter._next(scores, {}, set(), 2) == (0, 1)
    assert fitter._next(scores, {0: 1}, set(), 2) == (1, 2)


def test_no_plan_that_leaves_a_tier_more_short_than_it_is_held_at_is_fitted(desk: Desk, fitter: Fitter) -> None:
    wide = replace(fitter.wide, held_usd_per_hour=np.array([-1.0, -1.0]))
    assert replace(fitter, wide=wide).fitted(desk.repaired({}), (0, 3)) == (None, False)


def test_room_where_replicas_found_no_place_is_used_by_the_plan_at_hand_alone(desk: Desk, fitter: Fitter) -> None:
    greedy, seen = desk.repaired({}), list[tuple[Cells, Floats, Arrays]]()

    def settled(cells: Cells, x: Floats, arrays: Arrays) -> Worth:
        seen.append((cells, x, arrays))
        return fitter.settled(cells, x, arrays)

    shared = [row for row in state(fitter.wide.cells).rows if row[0] == "gpus"]
    tight = replace(fitter, settled=settled, unusable=dict.fromkeys(shared, 1e9))
    found, _ = tight.fitted(greedy, (0, 3))
    assert found is not None
    cells, x, arrays = seen[0]
    replicas = arrays.columns["replicas"]
    rows = [r for r, row in enumerate(arrays.rows) if row in shared]
    used = arrays.matrix.tocsr()[rows][:, replicas]
    assert rows
    assert (used @ x[replicas] <= used @ cell_counts(cells, greedy.counts) + 1e-6).all()


def test_tiers_are_held_anew_where_a_plan_is_clearly_less_short(desk: Desk, fitter: Fitter) -> None:
    base = desk.repaired({})
    best, less = lacking(base, 0.0, 2000.0, 40_000.0), 2000.0 - 1.1 * CLEAR_SHARE * 1e5
    for found, held_usd in ((lacking(base, 0.0, 2000.0, 39_000.0), 2000.0), (lacking(base, 0.0, less, 50_000.0), less)):
        wide = replace(fitter.wide, search=fitter.wide.search)
        wide.hold(best)
        assert replace(fitter, wide=wide)._is_taken(found, best)
        assert wide.held_usd_per_hour == pytest.approx([0.0, held_usd], rel=1e-3, abs=1e-3)


def test_services_that_the_relaxed_choice_splits_are_told(fitter: Fitter) -> None:
    wide = fitter.wide
    spread, shares = split_usd_per_hour(wide), wide.relaxed().x
    is_split = [((shares > 1e-4) & (shares < 1.0 - 1e-4) & (wide.table.service == s)).any() for s in range(len(spread))]
    assert any(is_split)
    assert (spread[np.logical_not(is_split)] <= 1e-6 * (1.0 + spread.max())).all()
    assert spread[is_split].max() > 0.0


def test_unlike_ways_have_pools_of_their_own(fitter: Fitter) -> None:
    wide, values = fitter.wide, fitter.wide.priced_ways(fitter.wide.prices)
    for service in range(len(wide.stocks)):
        mine = np.flatnonzero(wide.table.service == service)
        every = {pool for way in mine.tolist() for pool in wide.table.sizes(way, wide.cells)}
        found = list(wide.table.sizes_of_best(service, values, len(mine), wide.cells, are_unlike=True))
        assert {pool for pool, _ in found} == every
        assert len(found) <= len(list(wide.table.sizes_of_best(service, values, len(mine), wide.cells)))


def test_a_slightly_short_wide_plan_is_sound_and_in_reach_of_its_bound() -> None:
    problem = short_fleet()
    plan = make_plan(problem)
    assert plan.is_short
    assert verify(plan, problem) == ()
    assert plan.report.gap_ratio < 0.15


def test_ways_near_those_that_a_plan_keeps_are_looked_for_again_at_other_prices_only(
    desk: Desk, fitter: Fitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, plain = list[SparseWay](), rows.ways_near

    def seen(maker: WayMaker, way: SparseWay, *rest: Any) -> list[SparseWay]:
        looked.append(way)
        return plain(maker, way, *rest)

    monkeypatch.setattr(near_module, "ways_near", seen)
    known, wide = Neighbours(), replace(fitter.wide, table=fitter.wide.table.apart())
    ways = list(wide.maker.of_counts(cell_counts(wide.cells, desk.repaired({}).counts)))
    first = list(known.of(wide, ways))
    assert (first, looked) == (list(known.of(wide, ways)), ways)
    others = [*ways[1:], next(wide.maker.nothing())]
    list(known.of(wide, others))
    assert looked == [*ways, others[-1]]
    wide.prices = 1.01 * wide.prices
    list(known.of(wide, ways))
    assert looked == [*ways, others[-1], *ways]


@pytest.mark.parametrize("is_late", [False, True])
def test_where_replicas_find_no_place_a_fit_is_tried_again_while_there_is_time(
    is_late: bool, desk: Desk, fitter: Fitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, tries = Stepped(now_s=AGAIN_UNTIL - (0.0 if is_late else 0.01)), list[Cells]()
    hurried = replace(desk, crew=Crew(deadline=Deadline(clock=clock, limit_s=1.0)))

    def seated(cells: Cells, replicas: Floats) -> Placed:
        tries.append(cells)
        return replace(fitter.seated(cells, replicas), left=1)

    monkeypatch.setattr(fit_module, "unusable", lambda *_: {("gpus", "somewhere"): 1.0})
    found, _ = replace(fitter, desk=hurried, seated=seated).fitted(desk.repaired({}), (0, 3))
    assert found is not None
    assert len(tries) == (1 if is_late else MOST_TRIES)


@pytest.mark.parametrize(("is_rough", "gap"), [(False, FIT_GAP), (True, ROUGH_GAP)])
@pytest.mark.parametrize(("most_chosen", "spared"), [(0, LEAN), (100, UNUSED)])
def test_what_is_fitted_again_may_leave_more_open(
    is_rough: bool,
    gap: float,
    most_chosen: int,
    spared: Mapping[str, bool],
    desk: Desk,
    fitter: Fitter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And of many services without what brings them little."""
    asked = list[Mapping[str, Any]]()

    def solved(programme: Programme) -> Solution:
        asked.append(programme.options)
        return solve(programme)

    monkeypatch.setattr(wide_module, "MOST_CHOSEN", most_chosen)
    watched = replace(fitter, desk=replace(desk, crew=Crew(solve=solved)))
    found, _ = watched.fitted(desk.repaired({}), (0, 1), is_rough=is_rough)
    assert found is not None
    assert {options["mip_rel_gap"] for options in asked} == {gap * fitter.gap}
    assert {name for name in asked[0] if name in LEAN} == set(spared)
    assert FIT_GAP < ROUGH_GAP


@pytest.mark.parametrize(("most_chosen", "most_dived", "is_first"), [(100, 100, True), (0, 100, False), (0, 0, True)])
@pytest.mark.parametrize("is_done_at", [0, 1, 9])
def test_ways_near_a_plan_are_chosen_among_before_fits_of_few_and_of_very_many_services(
    most_chosen: int,
    most_dived: int,
    is_first: bool,
    is_done_at: int,
    desk: Desk,
    fitter: Fitter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, best = list[str](), desk.repaired({})

    def stage(name: str) -> Callable[..., Worth]:
        def run(made: Fitter, worth: Worth, is_done: Callable[[Worth], bool]) -> Worth:
            begun.append(name)
            return worth

        return run

    for name in ("_nearby", "_fits"):
        monkeypatch.setattr(Fitter, name, stage(name))
    monkeypatch.setattr(wide_module, "MOST_CHOSEN", most_chosen)
    monkeypatch.setattr(wide_module, "MOST_DIVED", most_dived)
    assert fitter.run(best, lambda worth: len(begun) >= is_done_at) is best
    assert begun == (["_nearby", "_fits"] if is_first else ["_fits"])[:is_done_at]  # fits in vain end it
