"""Moves free hosts: as few busy host-seconds as brute force finds, within the budget, and in any order."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from solvers.errors import InvalidInput
from solvers.packing import Consolidation, Site, Tenant, consolidate
from solvers.packing.consolidation import read_scene
from solvers.packing.moves import choose_greedily, improve_by_windows, is_sound, worth_after

DAY_S = 86_400.0


def made(rng: np.random.Generator, hosts: int, items: int) -> tuple[list[Site], list[Tenant]]:
    sites = [
        Site(name=f"h{h}", capacity=(8.0, 96.0), worth_per_s=float(rng.choice([1.0, 1.0, 2.5]))) for h in range(hosts)
    ]
    free = {site.name: np.array(site.capacity) for site in sites}
    tenants = []
    for i in range(items):
        gpus = float(rng.choice([1, 1, 2, 4]))
        size = np.array([gpus, gpus * float(rng.choice([8, 12]))])
        able = [name for name in free if (free[name] >= size).all()]
        if not able:
            continue
        host = str(rng.choice(able))
        free[host] -= size
        tenants.append(
            Tenant(
                name=f"t{i}",
                host=host,
                size=(float(size[0]), float(size[1])),
                remaining_s=float(rng.choice([600.0, 7200.0, 40_000.0, np.inf])),
                move_worth=float(rng.choice([0.0, 60.0, 600.0, np.inf], p=[0.4, 0.3, 0.2, 0.1])),
                allowed=("h0", "h1") if rng.random() < 0.1 else (),
            )
        )
    return sites, tenants


def worth_of(sites: list[Site], tenants: list[Tenant], to: dict[str, str], horizon_s: float) -> float:
    """Busy host-seconds by their worth, and the moves' cost, by plain arithmetic."""
    busy = dict.fromkeys((site.name for site in sites), 0.0)
    for t in tenants:
        host = to.get(t.name, t.host)
        busy[host] = max(busy[host], min(t.remaining_s, horizon_s))
    paid = sum(t.move_worth for t in tenants if t.name in to)
    return sum(site.worth_per_s * busy[site.name] for site in sites) + paid


def is_allowed(sites: list[Site], tenants: list[Tenant], to: dict[str, str], most_moves: int) -> bool:
    """Budget, room that is free before any move, hosts that only give or only take, and wishes of the tenants."""
    free = {site.name: np.array(site.capacity) for site in sites}
    gives, takes = set(), set()
    for t in tenants:
        free[t.host] = free[t.host] - np.array(t.size)
    for t in tenants:
        if t.name in to:
            free[to[t.name]] = free[to[t.name]] - np.array(t.size)
            gives.add(t.host)
            takes.add(to[t.name])
            if not np.isfinite(t.move_worth) or (t.allowed and to[t.name] not in t.allowed):
                return False
    return len(to) <= most_moves and not gives & takes and all((room >= -1e-9).all() for room in free.values())


def least_worth(sites: list[Site], tenants: list[Tenant], most_moves: int) -> float:
    names, best = [site.name for site in sites], np.inf
    for places in product(names, repeat=len(tenants)):
        to = {t.name: place for t, place in zip(tenants, places, strict=True) if place != t.host}
        if len(to) <= most_moves and is_allowed(sites, tenants, to, most_moves):
            best = min(best, worth_of(sites, tenants, to, DAY_S))
    return float(best)


def assert_sound(found: Consolidation, sites: list[Site], tenants: list[Tenant], most_moves: int) -> None:
    to = {move.tenant: move.to_host for move in found.moves}
    assert is_allowed(sites, tenants, to, most_moves)
    assert found.worth_before == pytest.approx(worth_of(sites, tenants, {}, DAY_S))
    assert found.worth_after == pytest.approx(worth_of(sites, tenants, to, DAY_S))
    assert found.worth_after <= found.worth_before + 1e-6
    assert found.lower_bound <= found.worth_after + 1e-6
    before, after = {t.host for t in tenants}, {to.get(t.name, t.host) for t in tenants}
    assert set(found.freed) == before - after


@pytest.mark.parametrize("seed", range(30))
def test_small_fleets_as_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sites, tenants = made(rng, 3 + seed % 2, 5 + seed % 2)
    most_moves = int(rng.integers(0, 5))
    found = consolidate(sites, tenants, most_moves=most_moves, horizon_s=DAY_S)
    assert_sound(found, sites, tenants, most_moves)
    assert found.worth_after == pytest.approx(least_worth(sites, tenants, most_moves), abs=1e-3)
    assert found.is_proved


def test_large_fleets_are_consolidated_within_the_budget() -> None:
    rng = np.random.default_rng(1)
    sites, tenants = made(rng, 120, 260)
    found = consolidate(sites, tenants, most_moves=40, horizon_s=DAY_S)
    assert_sound(found, sites, tenants, 40)
    assert len(found.freed) >= 5
    assert found == consolidate(sites, tenants, most_moves=40, horizon_s=DAY_S)


def test_windows_bring_greedy_moves_close_to_the_best() -> None:
    """Fleets small enough to be solved, given to the part for large ones."""
    greedy, improved = [], []
    for seed in range(5):
        sites, tenants = made(np.random.default_rng(300 + seed), 8, 13)
        best = consolidate(sites, tenants, most_moves=6, horizon_s=DAY_S)
        scene, possible = read_scene(sites, tenants, 6, DAY_S), best.worth_before - best.worth_after
        first = choose_greedily(scene, 6)
        then = improve_by_windows(scene, first, 6)
        assert is_sound(scene, first, 6)
        assert is_sound(scene, then, 6)
        assert best.worth_after - 1e-6 <= worth_after(scene, then) <= worth_after(scene, first) + 1e-6
        greedy.append((best.worth_before - worth_after(scene, first)) / possible)
        improved.append((best.worth_before - worth_after(scene, then)) / possible)
    assert np.mean(greedy) > 0.6
    assert np.mean(improved) > 0.9


SIZE = (4.0,)
PAIR = [Site(name=name, capacity=(8.0,)) for name in ("a", "b", "c")]


def tenant(name: str, host: str, remaining_s: float, **more: Any) -> Tenant:
    return Tenant(name=name, host=host, size=SIZE, remaining_s=remaining_s, **more)


def test_a_long_lived_item_goes_to_where_another_lives_long() -> None:
    tenants = [tenant("long", "a", 9e4), tenant("brief", "b", 60.0), tenant("old", "c", 9e4)]
    found = consolidate(PAIR, tenants, most_moves=1, horizon_s=DAY_S)
    assert len(found.moves) == 1
    assert {found.moves[0].from_host, found.moves[0].to_host} == {"a", "c"}  # not to b, which is free in a minute


def test_items_that_end_soon_are_left_alone() -> None:
    tenants = [tenant("x", "a", 60.0, move_worth=100.0), tenant("y", "b", 9e4, move_worth=100.0)]
    assert consolidate(PAIR, tenants, most_moves=5, horizon_s=DAY_S).moves == ()


def test_what_must_not_move_stays() -> None:
    tenants = [tenant("x", "a", 9e4, move_worth=float("inf")), tenant("y", "b", 9e4, allowed=("b", "c"))]
    assert consolidate(PAIR, tenants, most_moves=5, horizon_s=DAY_S).moves == ()


def test_a_second_turn_moves_nothing() -> None:
    sites, tenants = made(np.random.default_rng(5), 6, 12)
    first = consolidate(sites, tenants, most_moves=99, horizon_s=DAY_S)
    to = {move.tenant: move.to_host for move in first.moves}
    for _ in range(5):
        tenants = [replace(t, host=to.get(t.name, t.host)) for t in tenants]
        again = consolidate(sites, tenants, most_moves=99, horizon_s=DAY_S)
        to = {move.tenant: move.to_host for move in again.moves}
        assert again.worth_after <= again.worth_before
    assert to == {}


@pytest.mark.parametrize(
    ("sites", "tenants", "options", "says"),
    [
        (PAIR, [tenant("x", "z", 1.0)], {}, "tenant x host: 'z' is not among the hosts"),
        (PAIR, [tenant("x", "a", 1.0), tenant("x", "b", 1.0)], {}, "tenant x name: is given twice"),
        ([PAIR[0], PAIR[0]], [], {}, "host a name: is given twice"),
        (PAIR, [tenant("x", "a", float("nan"))], {}, "remaining_s: is nan"),
        (PAIR, [tenant(name, "a", 1.0) for name in "xyz"], {}, "host a: holds 4 more than it can"),
        (PAIR, [Tenant(name="x", host="a", size=(1.0, 1.0), remaining_s=1.0)], {}, "has 2 resources, not 1"),
        (PAIR, [], {"most_moves": -1}, "most_moves: is -1"),
        (PAIR, [], {"horizon_s": 0.0}, "horizon_s: is 0.0"),
    ],
)
def test_what_makes_no_sense_is_named(
    sites: list[Site], tenants: list[Tenant], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        consolidate(sites, tenants, **{"most_moves": 1, "horizon_s": 1.0, **options})
