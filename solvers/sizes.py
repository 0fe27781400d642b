"""Ranges of request sizes, as a router can tell them apart: by the prompt, which is known when a request comes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from solvers.errors import InvalidInput

LABEL = re.compile(r"p(\d{1,12})-(\d{1,12}|up)")


@dataclass(frozen=True, slots=True, order=True)
class SizeRange:
    """Prompts of ``least`` to ``most`` tokens, both included; without end where ``most`` is None."""

    least: int
    most: int | None = None

    @property
    def label(self) -> str:
        """Text that a Kubernetes label takes.

        >>> SizeRange(0, 2047).label, SizeRange(2048).label
        ('p0-2047', 'p2048-up')
        """
        return f"p{self.least}-{'up' if self.most is None else self.most}"

    @classmethod
    def parse(cls, label: str) -> SizeRange:
        """Read a label back.

        Raises
        ------
        InvalidInput
            When the text names no range.
        """
        found = LABEL.fullmatch(label)
        most = None if found is None or found[2] == "up" else int(found[2])
        if found is None or (most is not None and most < int(found[1])):
            raise InvalidInput(f"sizes/{label}", "", "is no range of prompt tokens", "write p0-2047 or p2048-up")
        return cls(int(found[1]), most)

    def holds(self, prompt_tokens: int) -> bool:
        """True for a prompt of the range."""
        return self.least <= prompt_tokens and (self.most is None or prompt_tokens <= self.most)


def ranges_between(starts: Sequence[int]) -> tuple[SizeRange, ...]:
    """Ranges that begin at 0 and at each of the starts, and hold every prompt once.

    >>> [sizes.label for sizes in ranges_between([2048])]
    ['p0-2047', 'p2048-up']
    """
    edges = [0, *starts]
    return (*(SizeRange(low, high - 1) for low, high in pairwise(edges)), SizeRange(edges[-1]))


def tiles(ranges: Sequence[SizeRange]) -> bool:
    """True when ascending ranges hold every prompt length exactly once."""
    if not ranges or ranges[0].least != 0 or ranges[-1].most is not None:
        return False
    return all(one.most is not None and one.most + 1 == other.least for one, other in pairwise(ranges))
