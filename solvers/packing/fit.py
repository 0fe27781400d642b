"""Packings by decreasing size, kind by kind: first fit, best fit and dot product, for one resource or many.

A pattern is (type of bin, how many items of each kind). Source of the dot product rule: Panigrahy, Talwar, Uyeda,
Wieder, "Heuristics for Vector Bin Packing", Microsoft Research 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from solvers.packing.items import Floats, Ints, Kinds

Pattern = tuple[int, Ints]
Rule = Callable[[Floats, Floats], Floats]
"""From free shares of the bins that fit (B, R) and the item's shares (R,) to what to make small, (B,)."""


@dataclass(slots=True, eq=False)
class Filled:
    """Bins filled so far, and how many items of each kind found none."""

    patterns: list[Pattern]
    left: Ints

    def cost(self, kinds: Kinds) -> int:
        return int(sum(int(kinds.cost[k]) for k, _ in self.patterns))

    def is_complete(self) -> bool:
        return not self.left.any()


def _first(free: Floats, item: Floats) -> Floats:
    return np.zeros(len(free))


def _best(free: Floats, item: Floats) -> Floats:
    return np.asarray((free - item).sum(axis=1))


def _largest_left(free: Floats, item: Floats) -> Floats:
    return np.asarray((free - item).max(axis=1))


def _dot(free: Floats, item: Floats) -> Floats:
    return np.asarray(-(free @ item))


RULES: dict[str, Rule] = {"first fit": _first, "best fit": _best, "least of the largest": _largest_left, "dot": _dot}


def fit_decreasing(kinds: Kinds, demand: Ints, used: Ints, order: Ints, rule: Rule) -> Filled:
    """Put the demand into bins, kinds in the order given.

    Parameters
    ----------
    demand : (T,) int
        Items of each kind to place.
    used : (K,) int
        Bins of each type that are taken already.
    order : (T,) int
        Kinds, first to place first.
    """
    scale = np.maximum(kinds.capacity.mean(axis=0), 1)
    room = kinds.count - used
    free = np.empty((0, kinds.sizes.shape[1]), dtype=np.int64)
    filled = Filled([], np.zeros_like(demand))
    for kind in order:
        size = kinds.sizes[kind]
        for placed in range(int(demand[kind])):
            able = np.flatnonzero((free >= size).all(axis=1))
            if not len(able):
                new = _new_bin(kinds, room, size)
                if new is None:
                    filled.left[kind] = demand[kind] - placed
                    break
                room[new] -= 1
                filled.patterns.append((new, np.zeros_like(demand)))
                free, at = np.vstack([free, kinds.capacity[new]]), len(free)
            else:
                at = int(able[np.argmin(rule(free[able] / scale, size / scale))])
            free[at] -= size
            filled.patterns[at][1][kind] += 1
    return filled


def _new_bin(kinds: Kinds, room: Ints, size: Ints) -> int | None:
    """The type with most room for its cost of those that are left and can hold the item."""
    able = np.flatnonzero((room > 0) & (kinds.capacity >= size).all(axis=1))
    if not len(able):
        return None
    worth = (kinds.capacity[able] / np.maximum(kinds.capacity.mean(axis=0), 1)).sum(axis=1) / kinds.cost[able]
    return int(able[np.argmax(worth)])


def orders(kinds: Kinds, demand: Ints) -> Iterator[Ints]:
    """Kinds by falling size: the sum of shares, the largest share, shares weighted by how scarce a resource is."""
    share = kinds.share()
    asked = (share * demand[:, None]).sum(axis=0)
    for size in (share.sum(axis=1), share.max(axis=1, initial=0.0), share @ asked):
        yield np.argsort(-size, kind="stable")
        if kinds.sizes.shape[1] == 1:
            return


def best_of_rules(kinds: Kinds, demand: Ints, used: Ints) -> Filled:
    """The cheapest of all orders and rules; fewest left over comes first."""
    found = [
        fit_decreasing(kinds, demand, used, order, rule) for order in orders(kinds, demand) for rule in RULES.values()
    ]
    return min(found, key=lambda filled: (int(filled.left.sum()), filled.cost(kinds)))
