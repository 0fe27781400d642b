"""Packings are whole, proved ones are as few bins as brute force finds, bounds never lie, and errors name the item."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.errors import InvalidInput
from solvers.packing import BinType, Effort, Packing, pack_bins
from solvers.packing.bounds import WORTH_UNIT, martello_toth_bound, priced_bound, rows_bound, volume_bound
from solvers.packing.columns import Master
from solvers.packing.fit import RULES, fit_decreasing, orders
from solvers.packing.items import Ints, read_items
from solvers.packing.pricing import ManyResources, OneResource, Pricer
from tests.bench_packing import FAMILIES, first_fit_decreasing, run

FEW = Effort(dives=2, nodes=200, full_searches=30)


def fewest_bins(items: list[tuple[int, ...]], capacity: tuple[int, ...]) -> int:
    """By trying every bin for every item, bins alike counted once."""

    @cache
    def best(number: int, free: tuple[tuple[int, ...], ...]) -> int:
        if number == len(items):
            return len(free)
        size, found = items[number], len(items)
        for at in range(len(free)):
            if free[at] not in free[:at] and all(f >= s for f, s in zip(free[at], size, strict=True)):
                left = tuple(f - s for f, s in zip(free[at], size, strict=True))
                found = min(found, best(number + 1, tuple(sorted((*free[:at], left, *free[at + 1 :])))))
        new = tuple(c - s for c, s in zip(capacity, size, strict=True))
        return min(found, best(number + 1, tuple(sorted((*free, new)))))

    return best(0, ())


def assert_sound(packing: Packing, items: Any, types: list[BinType]) -> None:
    """Every item once, no bin overfull, no type used too often, and cost and proof as the bins say."""
    sizes = np.asarray(items).reshape(len(items), -1)
    placed = [item for packed in packing.bins for item in packed.items]
    assert sorted([*placed, *packing.unplaced]) == list(range(len(sizes)))
    for packed in packing.bins:
        assert packed.items
        assert (sizes[list(packed.items)].sum(axis=0) <= np.array(types[packed.bin_type].capacity)).all()
    for number, each in enumerate(types):
        assert each.count is None or sum(p.bin_type == number for p in packing.bins) <= each.count
    assert packing.cost == sum(types[p.bin_type].cost for p in packing.bins)
    assert packing.is_proved == (not packing.unplaced and packing.cost <= packing.lower_bound)
    assert packing.unplaced or packing.lower_bound <= packing.cost
    assert all(packing.bin_of()[item] == n for n, packed in enumerate(packing.bins) for item in packed.items)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(30, 60))
@settings(max_examples=60, deadline=None)
def test_one_resource_as_brute_force(sizes: list[int], capacity: int) -> None:
    packing = pack_bins(sizes, capacity, effort=FEW)
    assert_sound(packing, sizes, [BinType(capacity=(capacity,))])
    assert packing.is_proved
    assert packing.cost == fewest_bins([(s,) for s in sorted(sizes, reverse=True)], (capacity,))


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_two_resources_as_brute_force(sizes: list[tuple[int, int]]) -> None:
    packing = pack_bins(sizes, (12, 15), effort=FEW)
    assert_sound(packing, sizes, [BinType(capacity=(12, 15))])
    best = fewest_bins(sorted(sizes, reverse=True), (12, 15))
    assert packing.lower_bound <= best <= packing.cost
    assert packing.cost == best


def cheapest_of_types(sizes: list[int], types: list[BinType]) -> int | None:
    """By trying every item in every bin that there is."""
    room = [(k, t.capacity[0]) for k, t in enumerate(types) for _ in range(t.count or 0)]
    best: list[int | None] = [None]

    def place(number: int, free: list[int], used: list[bool], cost: int) -> None:
        if best[0] is not None and cost >= best[0]:
            return
        if number == len(sizes):
            best[0] = cost
            return
        for at in range(len(free)):
            if free[at] >= sizes[number]:
                was, paid = used[at], 0 if used[at] else types[room[at][0]].cost
                free[at] -= sizes[number]
                used[at] = True
                place(number + 1, free, used, cost + paid)
                free[at] += sizes[number]
                used[at] = was

    place(0, [c for _, c in room], [False] * len(room), 0)
    return best[0]


@pytest.mark.parametrize("seed", range(25))
def test_types_with_counts_and_costs_as_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types = [
        BinType(capacity=(10,), count=int(rng.integers(1, 4)), cost=int(rng.integers(1, 5))),
        BinType(capacity=(16,), count=int(rng.integers(1, 3)), cost=int(rng.integers(2, 8))),
    ]
    sizes = [int(s) for s in rng.integers(2, 9, int(rng.integers(2, 7)))]
    packing, best = pack_bins(sizes, types), cheapest_of_types(sizes, types)
    assert_sound(packing, sizes, types)
    if best is None:
        assert packing.unplaced
    else:
        assert packing.lower_bound <= best
        assert not packing.unplaced
        assert packing.cost == best


@pytest.mark.parametrize(("family", "size"), [("U", 120), ("U", 250), ("T", 60), ("T", 120)])
def test_falkenauers_classes_are_proved(family: str, size: int) -> None:
    for seed in range(2):
        items, capacity = FAMILIES[family].make(size, np.random.default_rng(seed))
        packing = pack_bins(items, capacity)
        assert_sound(packing, items, [BinType(capacity=capacity)])
        assert packing.is_proved
        if family == "T":
            assert packing.cost == size // 3


def test_replicas_on_hosts_are_proved_and_beat_first_fit() -> None:
    row = run("H", 1000, [0])
    assert row.proved == 1
    assert row.ffd_over_bins > 1.02


def test_the_order_of_the_items_changes_nothing_but_their_numbers() -> None:
    items, capacity = FAMILIES["U"].make(120, np.random.default_rng(5))
    first, again = pack_bins(items, capacity), pack_bins(items, capacity)
    assert first == again
    assert pack_bins(items[::-1], capacity).cost == first.cost


@pytest.mark.parametrize("seed", range(10))
def test_bounds_stay_below_the_fewest_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = sorted((int(s) for s in rng.integers(1, 40, 8)), reverse=True)
    best, kinds = fewest_bins([(s,) for s in sizes], (40,)), read_items(sizes, 40)
    assert martello_toth_bound(kinds.sizes[:, 0], kinds.demand, 40) <= best
    assert rows_bound(kinds) <= best
    worth = rng.integers(0, WORTH_UNIT, len(kinds.demand))  # any prices bound, good ones or not
    most = Master(kinds, full_searches=1).pricer.best(0, worth, kinds.demand)[1]
    assert priced_bound(worth, kinds, np.array([most])) <= best


def every_content(sizes: Ints, limit: Ints, capacity: Ints) -> list[tuple[int, ...]]:
    """All contents of a bin, by counting up."""
    counts = product(*(range(int(most) + 1) for most in limit))
    return [content for content in counts if (np.array(content) @ sizes <= capacity).all()]


@pytest.mark.parametrize("seed", range(25))
def test_the_best_content_as_by_counting(seed: int) -> None:
    """Both ways of pricing, capacities beyond the grid too: best found, bound above it, all of a worth listed."""
    rng = np.random.default_rng(seed)
    resources, scale = int(rng.integers(1, 4)), int(rng.choice([1, 700]))
    items = rng.integers(1, 12, (12, resources)) * scale + rng.integers(0, scale, (12, resources))
    kinds = read_items(items, [24 * scale] * resources)
    worth = rng.integers(WORTH_UNIT // 8, WORTH_UNIT // 2, len(kinds.demand))
    contents = np.array(every_content(kinds.sizes, kinds.demand, kinds.capacity[0]))
    most = int((contents @ worth).max())
    pricers: list[Pricer] = [ManyResources(kinds)] + ([OneResource(kinds)] if resources == 1 else [])
    for pricer in pricers:
        found, bound = pricer.best(0, worth, kinds.demand)
        assert all((content @ kinds.sizes <= kinds.capacity[0]).all() for content in found)
        assert max(int(content @ worth) for content in found) >= most * (1 - 1e-3)
        assert most <= bound <= most * (1 + 1e-3)
        parts = pricer.all_from(0, worth / WORTH_UNIT, kinds.demand, 0.8 * most / WORTH_UNIT)
        listed = {tuple(map(int, part)) for part in parts}
        room = [(kinds.sizes <= kinds.capacity[0] - c @ kinds.sizes).all(axis=1) & (c < kinds.demand) for c in contents]
        wanted = [c for c, more in zip(contents, room, strict=True) if not more.any() and c @ worth >= 0.8 * most + 1]
        assert {tuple(map(int, c)) for c in wanted} <= listed


def test_the_martello_toth_bound_as_by_hand() -> None:
    # two items of 6 and two of 5 in bins of 10 need four bins but for the pair of 5s: 6 | 6 | 5 5
    assert martello_toth_bound(np.array([6, 5]), np.array([2, 2]), 10) == 3
    # each 7 leaves 3, which no 4 fits: three bins for the 7s, two 4s to a bin
    assert martello_toth_bound(np.array([7, 4]), np.array([3, 3]), 10) == 5


def test_the_bound_of_volume_as_by_hand() -> None:
    types = [BinType(capacity=(10,), count=1, cost=2), BinType(capacity=(16,), count=2, cost=4)]
    assert volume_bound(read_items([3, 3, 3], 5)) == 2  # nine of five to a bin
    assert volume_bound(read_items([5, 5, 3], types)) == 3  # ten for 2, and three sixteenths of 4 make one whole
    assert volume_bound(read_items([1], types)) == 2  # no bin is cheaper, however little is asked
    assert volume_bound(read_items([0, 0], types)) == 2  # what has no size is in a bin too


def test_bounds_of_items_larger_than_half_a_bin_are_their_number() -> None:
    kinds = read_items([6, 6, 6], 10)
    assert (volume_bound(kinds), rows_bound(kinds)) == (2, 3)
    beside = read_items([(1, 6), (1, 6), (1, 6)], (10, 10))
    assert rows_bound(beside) == 3  # of whichever resource says more


def test_a_bound_of_worth_is_rounded_up() -> None:
    kinds = read_items([4, 4, 4], 10)
    half = np.array([WORTH_UNIT // 2])
    assert priced_bound(half, kinds, 2 * half) == 2  # one and a half bins


def test_every_rule_places_everything() -> None:
    items, capacity = FAMILIES["V"].make(60, np.random.default_rng(1))
    kinds = read_items(items, capacity)
    for order in orders(kinds, kinds.demand):
        for rule in RULES.values():
            filled = fit_decreasing(kinds, kinds.demand, np.zeros_like(kinds.count), order, rule)
            assert filled.is_complete()
            assert (np.sum([counts for _, counts in filled.patterns], axis=0) == kinds.demand).all()
            assert all((counts @ kinds.sizes <= kinds.capacity[k]).all() for k, counts in filled.patterns)
    assert first_fit_decreasing(kinds) >= rows_bound(kinds)


def test_nothing_needs_no_bin_and_items_of_no_size_one() -> None:
    assert pack_bins([], 5).cost == 0
    assert pack_bins([], 5).is_proved
    assert pack_bins([0, 0, 0], 5).cost == 1
    assert pack_bins([0, 0, 0], 5).is_proved
    assert pack_bins([(0, 3), (0, 4)], (0, 7)).cost == 1


@pytest.mark.parametrize(
    ("items", "bins", "says"),
    [
        ([3, -1], 5, "items size: is -1"),
        ([3, float("nan")], 5, "items size: is nan"),
        ([0.5], 5, "items size: is 0.5; give whole numbers"),
        ([[1, 2], [3]], 5, "no table of numbers"),
        ([[1, 2]], 5, "have 2 resources, the bins 1"),
        ([3, 6], 5, r"item 1: of size \[6\] is larger than every bin"),
        ([1], [], "bins: there are none"),
        ([1], [BinType(capacity=(1,)), BinType(capacity=(1, 2))], "have \\[1, 2\\] resources"),
        ([1], [BinType(capacity=(1,), count=-1)], "bin type 0 count: is -1"),
        ([1], [BinType(capacity=(1,), cost=0)], "bin type 0 cost: is 0"),
        ([1], [BinType(capacity=(1,), cost=2**21)], "bin type 0 cost: is 2097152"),
        ([1], float("inf"), "are inf, no bins; give"),
        ([10**13], 10**14, "size: is 1e"),
    ],
)
def test_what_makes_no_sense_is_named(items: Any, bins: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        pack_bins(items, bins)


def test_what_limited_bins_cannot_hold_is_said() -> None:
    packing = pack_bins([6, 6, 6], [BinType(capacity=(10,), count=2)])
    assert (len(packing.bins), len(packing.unplaced), packing.is_proved) == (2, 1, False)
