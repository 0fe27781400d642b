"""When a decision has to end: by a clock that the caller hands in. Without one nothing ends for want of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]

LEAST_SHARE = 0.05  # of the limit, what a solve that is begun may take, however little is left


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

    def seconds_for(self, asked_s: float) -> float:
        """What a solve may take that asks for so many seconds: no longer than is left, but enough to find something."""
        left_s = self.began_s + self.limit_s - self.clock()
        return min(asked_s, max(left_s, LEAST_SHARE * self.limit_s))
