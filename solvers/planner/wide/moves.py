"""One way of each service of a large short fleet by moves: soon found, and about right where the rest is filled.

The relaxed choice splits what no whole ways serve together. Rounded to the way that each service has most of, it takes
more room than there is. From there services change their ways one or two at a time, whatever helps most, while room
that is missing is paid for: at its price first, then at more and more (strategic oscillation without the way back,
Glover and Kochenberger 1996). What is missing in the end finds no place, and what is filled instead costs a little: a
choice that takes a little too much is often better than one that takes none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.planner.model.relax import Arrays
from solvers.planner.pools.cells import Floats, Ints
from solvers.planner.wide.rows import NEAR_ROOM

TIMES_PRICE = (1.0, 3.0, 10.0, 100.0)  # what missing room is paid at, in turn
MOST_MOVES = 2000  # of all services
PAIRS_WORK, MOST_FIRST = 100_000, 120  # ways that begin a pair of moves: those times all ways, and at most
GAIN = 1e-6  # USD per hour, what a move has to bring


def moved(choice: Arrays, services: Ints, shares: Floats, prices: Floats) -> list[list[int]]:
    """Choose one way for each service, those that relaxed shares and prices speak for; rows may stay overfull.

    Parameters
    ----------
    choice : Arrays
        Its first rows take one way of each service; the others, (R,), have room.
    services : (W,) int
        Whose each way is; every service has one.
    shares : (W,) float
        Of each way in the relaxed choice.
    prices : (R,) float
        USD per hour and unit of the room, above 0.

    Returns
    -------
    list of list of int
        A way of each service, in their order, once as missing room is paid for well and once better, if that differs.
    """
    count = int(services.max()) + 1
    room = choice.row_upper[count:]
    used = choice.matrix.toarray()[count:].T
    largest = [int(mine[np.argmax(shares[mine])]) for mine in (np.flatnonzero(services == s) for s in range(count))]
    most = np.zeros((count, len(room)))
    np.maximum.at(most, services, used)
    tight = np.flatnonzero(most.sum(axis=0) > room)  # others have room for whatever is chosen
    room = room[tight] + NEAR_ROOM * np.maximum(1.0, np.abs(room[tight]))
    used = np.ascontiguousarray(used[:, tight])
    moves = _Moves(used=used, cost=choice.cost, services=services, held=np.array(largest), room=room)
    found = list[list[int]]()
    for times in TIMES_PRICE:
        moves.descend(times * prices[tight])
        found.append([int(way) for way in moves.held])
    *_, before, last = found
    return [before] if before == last else [before, last]


@dataclass(slots=True, kw_only=True)
class _Moves:
    """The ways chosen so far, ``held`` (S,), of those that ``used`` (W, R) of the ``room``; ``made`` counts moves."""

    used: Floats
    cost: Floats
    services: Ints
    held: Ints
    room: Floats
    made: int = 0

    def descend(self, prices: Floats) -> None:
        """Change ways while it helps, where missing room is paid for, (R,)."""
        while self.made < MOST_MOVES:
            free = self.room - self.used[self.held].sum(axis=0)
            more = self.used - self.used[self.held][self.services]
            dearer = self.cost - self.cost[self.held][self.services]
            missing = np.maximum(0.0, more - free) @ prices - float(np.maximum(0.0, -free) @ prices)
            best = int(np.argmin(dearer + missing))
            if dearer[best] + missing[best] < -GAIN:
                self._take(best)
                continue
            pair = self._best_pair(free, more, dearer, missing, prices)
            if pair is None:
                return
            self._take(*pair)

    def _take(self, *ways: int) -> None:
        for way in ways:
            self.held[self.services[way]] = way
        self.made += 1

    def _best_pair(
        self, free: Floats, more: Floats, dearer: Floats, missing: Floats, prices: Floats
    ) -> tuple[int, int] | None:
        """The best two ways to change to together: one that costs less or lacks less room, and any of another service.

        Parameters
        ----------
        free, more, dearer, missing : (R,), (W, R), (W,), (W,) float
            Room that is left; what each way takes and costs above its service's present one, and pays for room.
        """
        helps = np.flatnonzero((dearer < -GAIN) | (missing < -GAIN))
        order = helps[np.argsort((dearer + missing)[helps], kind="stable")]
        now, found, least = float(np.maximum(0.0, -free) @ prices), None, -GAIN
        for first in order[: min(MOST_FIRST, max(1, PAIRS_WORK // len(dearer)))].tolist():
            both = dearer + dearer[first] + np.maximum(0.0, more - (free - more[first])) @ prices - now
            both[self.services == self.services[first]] = np.inf
            second = int(np.argmin(both))
            if both[second] < least:
                found, least = (first, second), float(both[second])
        return found
