"""Prefill and decode that may not be apart are placed by the bundle: in proportion at every location."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.engine import EngineProfile, Role
from solvers.planner.cells import Cells
from solvers.planner.options import Sizer
from solvers.planner.places import Placed, place
from solvers.sizing import Capacity
from tests import fleets
from tests.test_limits import cells_of

PREFILL_PER_S, DECODE_PER_S = 3.0, 2.0  # of a replica: two prefill for three decode


def racks_of(racks: int, gpus: int) -> Cells:
    """A service of prefill and decode only that stays inside racks, all alike."""
    served = replace(
        fleets.service("chat", "chat", roles=(Role.PREFILL, Role.DECODE), gpu_classes=("h100-sxm",)), kv_may_cross=False
    )
    fleet = [node for rack in range(racks) for node in fleets.nodes("h100-sxm", 1, f"rack-{rack}", gpus=gpus)]
    cells = cells_of(fleets.problem([(served, 40.0)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)]))
    assert len(cells.cell_pool) == len(Role) - 1
    return cells


def capacity(curves: EngineProfile, role: Role, *_: Any, **__: Any) -> Capacity:
    rate = PREFILL_PER_S if role is Role.PREFILL else DECODE_PER_S
    return Capacity(requests_per_s=rate, utilisation_ratio=0.5, gpu_watts=500.0, ttft_s=None, itl_s=None)


def spread(cells: Cells, prefill: int, decode: int) -> Placed:
    sizer = Sizer(problem=cells.problem, capacity_of=capacity)
    count = {Role.PREFILL: prefill, Role.DECODE: decode}
    return place(cells, np.array([count[cells.pools[p].pool.role] for p in cells.cell_pool], dtype=float), sizer)


def at_each(placed: Placed) -> list[tuple[int, int]]:
    """Prefill and decode replicas of each rack that has any, sorted."""
    found: dict[str, Counter[Role]] = {}
    for (pool, at), count in placed.counts.items():
        found.setdefault(at, Counter())[pool.role] += count
    return sorted((of[Role.PREFILL], of[Role.DECODE]) for of in found.values())


def paired_per_s(racks: list[tuple[int, int]]) -> float:
    return sum(min(prefill * PREFILL_PER_S, decode * DECODE_PER_S) for prefill, decode in racks)


def best_per_s(prefill: int, decode: int, racks: int, gpus: int) -> float:
    """The most that pairs can carry, by trying every content of every rack."""
    best = {(0, 0): 0.0}
    for _ in range(racks):
        for (p, d), carried in list(best.items()):
            for a in range(min(gpus, prefill - p) + 1):
                for b in range(min(gpus - a, decode - d) + 1):
                    to = p + a, d + b
                    best[to] = max(best.get(to, 0.0), carried + min(a * PREFILL_PER_S, b * DECODE_PER_S))
    return max(best.values())


def test_whole_bundles_stand_together() -> None:
    placed = spread(racks_of(4, 8), 6, 9)
    assert placed.left == 0
    assert paired_per_s(at_each(placed)) == 18.0  # spread one by one, no rack would have two for three


def test_what_nothing_pairs_with_comes_last() -> None:
    placed = spread(racks_of(2, 5), 2, 8)
    assert placed.left == 0
    assert paired_per_s(at_each(placed)) == 6.0


@pytest.mark.parametrize("seed", range(30))
def test_no_more_than_a_replica_a_rack_is_lost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    racks, gpus = int(rng.integers(2, 5)), int(rng.integers(4, 9))
    prefill = int(rng.integers(1, racks * gpus // 2))
    decode = int(rng.integers(1, racks * gpus - prefill + 1))
    placed = spread(racks_of(racks, gpus), prefill, decode)
    found, best = paired_per_s(at_each(placed)), best_per_s(prefill, decode, racks, gpus)
    assert placed.left == 0
    assert best - racks * DECODE_PER_S <= found <= best + 1e-9  # bundles are taken one by one, the best first
