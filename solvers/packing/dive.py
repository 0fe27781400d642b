"""From the relaxation to whole bins: fix contents, price again, and give the rest to a small exact solve.

A dive fixes the contents that the relaxation uses most, takes what they hold off the demand, and solves again; columns
that the rest needs are made on the way. When little is left, or when the rest can no longer be packed for the target,
the last bins are taken out again and solved as whole numbers over every content known, more of them each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from solvers.packing.columns import Master, Relaxed, solve_contents
from solvers.packing.fit import Filled, Pattern, best_of_rules
from solvers.packing.items import Ints, Kinds

LAST_BINS = (8, 16, 32, 64)
SOLVE_NODES = 2000
MOST_COLUMNS = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much work may go into one packing; nothing is measured in seconds, so that the answer is the same.

    ``dives`` are tried with less and less greed, ``nodes`` are those of each exact solve of the last bins,
    ``full_searches`` are those for the best content of a bin, which take long where there are many resources.
    """

    dives: int = 4
    nodes: int = SOLVE_NODES
    full_searches: int = 300


@dataclass(slots=True, eq=False)
class Dive:
    """One descent to ``target``: what is fixed so far, what is left, and how many bins of each type are left."""

    kinds: Kinds
    master: Master
    target: int
    effort: Effort
    share: float
    fixed: list[Pattern]
    demand: Ints
    room: Ints

    @classmethod
    def start(cls, kinds: Kinds, master: Master, target: int, effort: Effort, share: float) -> Dive:
        return cls(kinds, master, target, effort, share, [], kinds.demand.copy(), kinds.count.copy())

    def run(self) -> list[Pattern] | None:
        """Bins that hold everything for the target, or None."""
        while self.demand.any():
            relaxed = self.master.relax(self.demand, self.room, enough=self.target - self.spent() + 1e-6)
            if not relaxed.is_complete or self.spent() + relaxed.value > self.target + 1e-6:
                return self._mend()
            if (filled := self._filled()) is not None:
                return self.fixed + filled
            if relaxed.value <= LAST_BINS[0] * float(self.kinds.cost.min()):
                return self._mend()
            for pattern in self._choose(relaxed):
                self._fix(pattern)
        return self.fixed

    def spent(self) -> int:
        return int(sum(int(self.kinds.cost[k]) for k, _ in self.fixed))

    def _fix(self, pattern: Pattern) -> None:
        self.fixed.append(pattern)
        self.demand = self.demand - np.minimum(pattern[1], self.demand)
        self.room[pattern[0]] -= 1

    def _unfix(self, count: int) -> None:
        for k, counts in self.fixed[len(self.fixed) - count :]:
            self.demand = self.demand + counts
            self.room[k] += 1
        del self.fixed[len(self.fixed) - count :]

    def _filled(self) -> list[Pattern] | None:
        """The rest by a simple rule, where that is cheap enough."""
        filled: Filled = best_of_rules(self.kinds, self.demand, self.kinds.count - self.room)
        if filled.is_complete() and self.spent() + filled.cost(self.kinds) <= self.target:
            return filled.patterns
        return None

    def _choose(self, relaxed: Relaxed) -> Iterator[Pattern]:
        """Whole parts first; then what is used most, down to ``share`` of a bin, at least one."""
        demand, room, taken = self.demand.copy(), self.room.copy(), 0
        rows = sorted(relaxed.used, key=lambda row: (-row[1], row[0]))
        whole = [(p, int(x + 1e-6)) for p, x in rows if x >= 1.0 - 1e-6]
        parts = whole or [(p, 1) for p, x in rows if x >= self.share] or [(rows[0][0], 1)]
        for p, times in parts:
            k, counts = self.master.patterns[p]
            for _ in range(times):
                if (counts <= demand).all() and room[k] > 0:
                    demand, taken = demand - counts, taken + 1
                    room[k] -= 1
                    yield k, counts
        if not taken:
            k, counts = self.master.patterns[rows[0][0]]
            yield k, np.minimum(counts, self.demand)

    def _mend(self) -> list[Pattern] | None:
        """Solve the last bins exactly, over more and more of them."""
        for bins in LAST_BINS:
            if bins > LAST_BINS[0] and not self.fixed:
                return None
            self._unfix(min(len(self.fixed), max(0, bins - (self.target - self.spent()))))
            left = self.target - self.spent()
            relaxed = self.master.relax(self.demand, self.room, enough=left + 1e-6)
            if relaxed.value > left + 1e-6:
                continue
            self.master.add(self.master.list_all(relaxed, self.demand, self.room, left - relaxed.value))
            contents = [pattern for pattern in self.master.patterns if (pattern[1] <= self.demand).all()]
            found = solve_contents(
                self.kinds,
                contents[-MOST_COLUMNS:],
                self.demand,
                self.room,
                most_cost=left,
                node_limit=self.effort.nodes,
            )
            if found is not None:
                return self.fixed + found
        return None
