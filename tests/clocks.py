"""Clocks for decisions that have to end in time: none of them looks at the real one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Stepped:
    """A clock that stands still until it is moved on."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(slots=True, kw_only=True)
class Ticking:
    """A clock that shows ``step_s`` more each time that it is read."""

    step_s: float
    reads: int = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.reads * self.step_s
