"""When a decision has to end: by a clock that the caller hands in. Without one nothing ends for want of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]

# Shares of the limit: when a stage has to do with what it has, and what is kept for what comes after it.
PRICES_UNTIL = 0.7  # prices of the whole fleet; choosing and placing come after them
HELD_PRICES_UNTIL = 0.8, 0.6  # prices beside held tiers; of very many services, whose choice takes long
HELD_PRICES_LEAST = 0.15, 0.0  # what they get at least; of very many services a plan is at hand by then
DIVE_PRICED_UNTIL = 0.7  # a dive has to do with the ways that are known from then on
DIVE_UNTIL = 0.9  # a dive that has not come to its end is given up
FITTED_UNTIL = 0.95  # when what a dive leaves open should be planned too
AGAIN_UNTIL = 0.8  # what a fit found no place for is fitted once more
WHOLE_UNTIL = 0.8  # no whole choice of very many services is begun any more: that and placing it take long
CHOICE_UNTIL = 0.9  # what an integer choice found that is all but the last thing done; its places come after it
CLOSER_OF_REST = 0.5  # of what is left after a dive, what prices beside its plan get; fits come after them
SOLVE_LEAST = 0.05  # what a solve that is begun may take, however little is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """So many seconds from when it was made, by a clock that only rises."""

    clock: Clock = lambda: 0.0
    began_s: float = 0.0
    limit_s: float = math.inf

    @classmethod
    def after(cls, limit_s: float, clock: Clock | None) -> Deadline:
        """Begin now; without a clock it never passes."""
        return cls() if clock is None else cls(clock=clock, began_s=clock(), limit_s=limit_s)

    def passed_share(self) -> float:
        """How much of the limit is over."""
        return (self.clock() - self.began_s) / self.limit_s

    def is_past(self, share: float = 1.0) -> bool:
        """Tell whether so much of the limit is over."""
        return self.passed_share() >= share

    def seconds_for(self, asked_s: float, until: float = 1.0) -> float:
        """What a solve may take that asks for so many seconds: no longer than is left, but enough to find something.

        Parameters
        ----------
        until : float
            Share of the limit by which it is to end.
        """
        left_s = self.began_s + until * self.limit_s - self.clock()
        return min(asked_s, max(left_s, SOLVE_LEAST * self.limit_s))


@dataclass(slots=True, kw_only=True)
class Turns:
    """How long the turns of a stage take, which tells how long one after it will; ``begun`` is a share of the limit."""

    deadline: Deadline
    begun: float
    done: int = 0

    @classmethod
    def of(cls, deadline: Deadline) -> Turns:
        """Begin now."""
        return cls(deadline=deadline, begun=deadline.passed_share())

    def allow(self, turns: int, until: float) -> bool:
        """Tell whether so many more, as long as those so far, would end by that share of the limit."""
        passed = self.deadline.passed_share()
        return passed + turns * (passed - self.begun) / max(1, self.done) <= until
