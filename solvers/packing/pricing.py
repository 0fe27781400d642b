"""The bin content worth most at given prices of items: a dynamic program for one resource, branch and bound for many.

Counts of a kind in a bin never pass what is asked of it (proper patterns): this tightens the relaxation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from solvers.packing.bounds import WORTH_UNIT
from solvers.packing.branching import Branching
from solvers.packing.items import Floats, Ints, Kinds

MOST_CELLS = 40_000_000
"""Kinds × capacity that the dynamic program keeps; beyond, one resource too is left to branch and bound."""
SPARE_PATTERNS = 12
MOST_LISTED = 40_000


class Pricer(Protocol):
    """Finds contents of one bin by worth."""

    def quick(self, bin_type: int, prices: Floats, limit: Ints) -> list[Ints]:
        """Contents worth much, found fast; perhaps not the best."""
        ...

    def best(self, bin_type: int, worth: Ints, limit: Ints) -> tuple[list[Ints], int]:
        """Contents worth most in whole numbers, and a proved upper bound on the worth of any."""
        ...

    def all_from(self, bin_type: int, prices: Floats, limit: Ints, least: float) -> list[Ints]:
        """Every content worth at least so much, where they can be listed; up to ``MOST_LISTED`` steps of search."""
        ...


def make_pricer(kinds: Kinds) -> Pricer:
    cells = len(kinds.sizes) * (int(kinds.capacity.max(initial=0)) + 1)
    if kinds.sizes.shape[1] == 1 and cells <= MOST_CELLS:
        return OneResource(kinds)
    return ManyResources(kinds)


@dataclass(slots=True, eq=False)
class OneResource:
    """Bounded knapsack by dynamic programming over the capacity, one kind after the other, vectorised."""

    kinds: Kinds

    def quick(self, bin_type: int, prices: Floats, limit: Ints) -> list[Ints]:
        worth, taken = self._fill(bin_type, prices, limit)
        rises = np.flatnonzero(np.r_[worth[0] > 0, worth[1:] > worth[:-1] + 1e-12])
        ends = rises[np.argsort(-worth[rises], kind="stable")][:SPARE_PATTERNS]
        return [self._content(taken, int(end)) for end in ends]

    def best(self, bin_type: int, worth: Ints, limit: Ints) -> tuple[list[Ints], int]:
        most, taken = self._fill(bin_type, worth, limit)
        return [self._content(taken, len(most) - 1)], int(most[-1])

    def all_from(self, bin_type: int, prices: Floats, limit: Ints, least: float) -> list[Ints]:
        """Depth first, one item at a time, kinds in falling number, as long as the rest can still be worth enough."""
        capacity, sizes = int(self.kinds.capacity[bin_type, 0]), self.kinds.sizes[:, 0]
        most = self._prefixes(np.maximum(prices, 0.0), limit, capacity)
        kinds = np.arange(len(prices))
        found: list[Ints] = []
        stack = [(len(prices) - 1, capacity, least, np.zeros(len(prices), dtype=np.int64))]
        for _ in range(MOST_LISTED):
            if not stack:
                break
            last, room, lacking, content = stack.pop()
            fits = (sizes <= room) & (content < limit)
            if lacking <= 1e-7 and not fits.any():
                found.append(content)
            able = kinds[: last + 1][fits[: last + 1]]
            reach = prices[able] + most[able + 1, room - sizes[able]]
            for kind in able[reach >= lacking - 1e-7]:
                more = content.copy()
                more[kind] += 1
                stack.append((int(kind), room - int(sizes[kind]), lacking - float(prices[kind]), more))
        return found

    def _prefixes(self, worth: Floats, limit: Ints, capacity: int) -> Floats:
        """Most worth that the first kinds alone can put into every capacity, (T + 1, C + 1)."""
        most = np.zeros((len(worth) + 1, capacity + 1))
        for kind, size in enumerate(self.kinds.sizes[:, 0]):
            most[kind + 1] = most[kind]
            for count in range(1, min(int(limit[kind]), capacity // max(int(size), 1)) + 1):
                offered = most[kind, : capacity + 1 - count * size] + count * worth[kind]
                np.maximum(most[kind + 1, count * size :], offered, out=most[kind + 1, count * size :])
        return most

    def _fill(self, bin_type: int, prices: Floats | Ints, limit: Ints) -> tuple[Any, Ints]:
        """Most worth within every capacity, (C + 1,), and how many of each kind it takes there, (T, C + 1)."""
        capacity = int(self.kinds.capacity[bin_type, 0])
        best = np.zeros(capacity + 1, dtype=prices.dtype)
        taken = np.zeros((len(prices), capacity + 1), dtype=np.int64)
        for kind, price in enumerate(prices):
            size = int(self.kinds.sizes[kind, 0])
            many = int(limit[kind]) if size == 0 else min(int(limit[kind]), capacity // size)
            if price <= 0 or many == 0:
                continue
            if size == 0:
                best, taken[kind] = best + many * price, many
                continue
            before = best.copy()
            for count in range(1, many + 1):
                offered = before[: capacity + 1 - count * size] + count * price
                here = best[count * size :]
                better = offered > here
                here[better], taken[kind, count * size :][better] = offered[better], count
        return best, taken

    def _content(self, taken: Ints, room: int) -> Ints:
        content = np.zeros(len(taken), dtype=np.int64)
        for kind in range(len(taken) - 1, -1, -1):
            content[kind] = taken[kind, room]
            room -= int(content[kind] * self.kinds.sizes[kind, 0])
        return content


@dataclass(slots=True, eq=False)
class ManyResources:
    """Greedy contents with exchanges, and branch and bound from the best of them."""

    kinds: Kinds

    def quick(self, bin_type: int, prices: Floats, limit: Ints) -> list[Ints]:
        share = self.kinds.sizes / np.maximum(self.kinds.capacity[bin_type], 1)
        weights = [np.ones(share.shape[1]), *np.eye(share.shape[1]) + 0.1]
        found = []
        for weight in weights:
            order = np.argsort(-prices / np.maximum(share @ weight, 1e-9), kind="stable")
            found.append(self._greedy(bin_type, prices, limit, order))
        order = np.argsort(-prices / np.maximum(share.sum(axis=1), 1e-9), kind="stable")
        starts = np.argsort(-prices, kind="stable")[:SPARE_PATTERNS]
        found += [self._greedy(bin_type, prices, limit, np.r_[first, order[order != first]]) for first in starts]
        return found

    def _greedy(self, bin_type: int, prices: Floats, limit: Ints, order: Ints) -> Ints:
        """Fill a bin in the order given, then exchange single items while that is worth more."""
        sizes, room = self.kinds.sizes, self.kinds.capacity[bin_type].copy()
        content = np.zeros(len(prices), dtype=np.int64)
        for kind in order:
            if prices[kind] > 0 and limit[kind] > 0 and (sizes[kind] <= room).all():
                content[kind] = _copies(sizes[kind], room, int(limit[kind]))
                room -= content[kind] * sizes[kind]
        for _ in range(len(prices)):
            swap = self._exchange(prices, limit, content, room)
            if swap is None:
                break
            out, into = swap
            room += sizes[out] - sizes[into]
            content[out] -= 1
            content[into] += 1
        return content

    def _exchange(self, prices: Floats, limit: Ints, content: Ints, room: Ints) -> tuple[int, int] | None:
        """The one-for-one exchange that gains most."""
        sizes, inside = self.kinds.sizes, np.flatnonzero(content)
        fits = (sizes[None, :, :] <= room + sizes[inside][:, None, :]).all(axis=2) & (content < limit)
        gain = np.where(fits, prices[None, :] - prices[inside][:, None], 0.0)
        if not gain.size or gain.max() <= 1e-9:
            return None
        out, into = np.unravel_index(int(np.argmax(gain)), gain.shape)
        return int(inside[out]), int(into)

    def best(self, bin_type: int, worth: Ints, limit: Ints) -> tuple[list[Ints], int]:
        """Branch and bound from the best quick content; see ``Branching``."""
        capacity = self.kinds.capacity[bin_type]
        able = np.flatnonzero((limit > 0) & (worth > 0) & (self.kinds.sizes <= capacity).all(axis=1))
        if not len(able):
            return [], 0
        start = max(self.quick(bin_type, worth.astype(float), limit), key=lambda content: int(content @ worth))
        branching = Branching(self.kinds.sizes[able], worth[able], limit[able], capacity)
        found, most = branching.run(int(start @ worth))
        content = start
        if found is not None:
            content = np.zeros_like(start)
            content[able] = found
        return [content], most

    def all_from(self, bin_type: int, prices: Floats, limit: Ints, least: float) -> list[Ints]:
        capacity = self.kinds.capacity[bin_type]
        able = np.flatnonzero((limit > 0) & (self.kinds.sizes <= capacity).all(axis=1))
        if not len(able):
            return []
        worth = np.floor(np.maximum(prices[able], 0.0) * WORTH_UNIT).astype(np.int64)
        found = []
        for part in Branching(self.kinds.sizes[able], worth, limit[able], capacity).list_from(int(least * WORTH_UNIT)):
            content = np.zeros_like(limit)
            content[able] = part
            found.append(content)
        return found


def _copies(size: Ints, room: Ints, limit: int) -> int:
    """How often an item fits the room, up to a limit."""
    needed = size > 0
    return min(limit, int((room[needed] // size[needed]).min())) if needed.any() else limit
