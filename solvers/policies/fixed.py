"""The plan as it is: nothing moves."""

from __future__ import annotations

from math import inf

from solvers.evaluate.run import Seen, Wish


class Fixed:
    """Keeps what was planned, whatever comes: capacity planning by hand."""

    name = "fixed"
    period_s = inf

    def decide(self, seen: Seen) -> Wish:
        """Ask for what is asked for already."""
        return Wish(counts=seen.asked)
