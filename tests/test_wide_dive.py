"""Ways of a short large fleet decided one after another: what is decided fits, and is whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from solvers.deadline import DIVE_PRICED_UNTIL, DIVE_UNTIL, Deadline
from solvers.planner import desk_for, make_plan
from solvers.planner.model.relax import Solution
from solvers.planner.pools.cells import Floats
from solvers.planner.pools.crew import Crew
from solvers.planner.wide import dive as wide_dive
from solvers.planner.wide import wide as wide_ways
from solvers.planner.wide.dive import dived
from solvers.planner.wide.wide import Wide
from solvers.verify import verify
from tests.clocks import Stepped
from tests.wide_world import priced, short_fleet


@pytest.fixture
def held() -> Wide:
    """A short fleet's ways at prices, tiers held at what filling leaves them short of."""
    desk = desk_for(short_fleet())
    wide = priced(desk)
    wide.hold(desk.repaired({}))
    wide.bound(lambda bound: False)
    return wide


def test_what_a_dive_decides_fits_and_is_one_known_way_of_each_service(
    held: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 2)
    stocks, bound = list(held.stocks), held.best
    found = dived(held)
    assert found is not None
    assert len(found.open) <= 2
    assert (held.shared @ found.replicas <= held.room + 1e-6).all()
    known = {(way.service, way.replicas) for way in held.table.ways}
    service_of = held.cells.pool_service[held.cells.cell_pool]
    for s in range(len(held.stocks)):
        cells = np.flatnonzero((service_of == s) & (found.replicas > 0.0))
        assert (s, tuple((int(c), int(found.replicas[c])) for c in cells)) in known
        assert not (len(cells) and s in found.open)
    assert (held.best, list(held.stocks)) == (bound, stocks)  # what it was asked about stays as it was


def test_a_dive_is_given_up_where_time_is_nearly_over_and_it_is_not_done(
    held: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, early = (
        replace(held, crew=Crew(deadline=Deadline(clock=Stepped(now_s=share), limit_s=1.0)))
        for share in (DIVE_UNTIL, DIVE_UNTIL - 0.01)
    )
    assert dived(late) is not None  # no more services are split than may be open
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 0)
    assert dived(late) is None
    found = dived(early)
    assert found is not None
    owners = held.cells.pool_service[held.cells.cell_pool[found.replicas > 0.0]]
    assert not set(owners.tolist()) & set(found.open)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_dive_prices_in_between_while_there_is_time(
    is_late: bool, held: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Stepped(now_s=DIVE_PRICED_UNTIL - (0.0 if is_late else 0.01))
    hurried = replace(held, crew=Crew(deadline=Deadline(clock=clock, limit_s=1.0)))
    pricings, plain = list[None](), Wide.priced

    def counted(made: Wide, prices: Floats) -> float:
        pricings.append(None)
        return plain(made, prices)

    monkeypatch.setattr(Wide, "priced", counted)
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 1)
    assert dived(hurried) is not None
    assert bool(pricings) is not is_late


def test_the_clearest_way_is_decided_first_and_stays(held: Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 1)
    splits, decisions = list[dict[int, tuple[float, int]]](), list[dict[int, int]]()
    plain_split, plain_among = wide_dive._split, wide_dive._among

    def split(*asked: Any) -> dict[int, tuple[float, int]]:
        splits.append(plain_split(*asked))
        return splits[-1]

    def among(wide: Wide, decided: dict[int, int], refused: set[int]) -> list[int]:
        found = plain_among(wide, decided, refused)
        of = wide.table.service[found]
        assert all([w for w, s in zip(found, of, strict=True) if s == mine] == [way] for mine, way in decided.items())
        assert not set(found) & refused
        decisions.append(dict(decided))
        return found

    monkeypatch.setattr(wide_dive, "_split", split)
    monkeypatch.setattr(wide_dive, "_among", among)
    assert dived(held) is not None
    firsts = [d for before, d in pairwise(decisions) if len(d) > len(before)]
    assert firsts
    (service,) = firsts[0]
    last = next(each for each in reversed(splits) if each.get(service, (0.0, -1))[1] == firsts[0][service])
    assert last[service][0] == max(share for share, _ in last.values())


@pytest.mark.parametrize("gap", [1e9, 0.0])
def test_ways_that_leave_the_others_dear_ones_are_taken_back(
    gap: float, held: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 0)
    steps, plain_among, plain_relaxed = list[tuple[dict[int, int], int, float]](), wide_dive._among, wide_dive._relaxed
    now: tuple[dict[int, int], int] = {}, 0

    def among(wide: Wide, decided: dict[int, int], refused: set[int]) -> list[int]:
        nonlocal now
        now = dict(decided), len(refused)
        return plain_among(wide, decided, refused)

    def relaxed(part: Wide, ways: list[int]) -> Solution | None:
        found = plain_relaxed(part, ways)
        steps.append((*now, np.inf if found is None else found.value))
        return found

    monkeypatch.setattr(wide_dive, "_among", among)
    monkeypatch.setattr(wide_dive, "_relaxed", relaxed)
    found = dived(replace(held, gap=gap))
    assert found is not None
    assert (held.shared @ found.replicas <= held.room + 1e-6).all()
    taken_back = risen = 0
    for (before, refused, least), (tried, _, value), (after, *_) in zip(steps, steps[1:], steps[2:], strict=False):
        if len(tried) > len(before) and refused < wide_dive.MOST_REFUSED and least < value < np.inf:
            risen += 1
            taken_back += after == before
    assert risen > 0
    assert taken_back == (0 if gap else risen)
    assert steps[-1][1] <= wide_dive.MOST_REFUSED


def test_a_dive_from_which_nothing_could_follow_is_none(held: Wide) -> None:
    held.room = held.room - 1.0 - held.room.max()
    assert dived(held) is None


def test_a_plan_of_a_dive_is_sound_the_same_for_any_workers_and_no_worse_than_filling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wide_ways, "MOST_CHOSEN", 3)
    monkeypatch.setattr(wide_dive, "MOST_OPEN", 2)
    problem = short_fleet(load=0.7)
    plan, filled = make_plan(problem, workers=2), desk_for(problem).repaired({})
    assert repr(make_plan(problem)) == repr(make_plan(problem, workers=4, is_isolated=True)) == repr(plan)
    assert verify(plan, problem) == ()
    assert plan.is_short
    worth = desk_for(problem).worth({(row.pool, row.location): row.replicas for row in plan.placements})
    assert not filled.is_better_than(worth)
