"""Every exception of Penstock, drawn as a tree.

::

    PenstockError
    ├── InvalidInput          an object is wrong: names object, field, what and the way out
    │   └── OutOfRange        a lookup outside the measured table
    ├── PlanRejected          verify found violations: the plan must not be used
    └── SolveFailed           the solver crashed, timed out without an answer, or said something unknown
"""

from __future__ import annotations

from collections.abc import Sequence


class PenstockError(Exception):
    """Base of everything that Penstock raises on purpose."""


class InvalidInput(PenstockError):
    """An object that a user gave is wrong.

    Parameters
    ----------
    subject : str
        What is wrong, as ``Kind/name`` or ``file:line``.
    field : str
        Path of the field inside it, dotted, empty when the whole object is meant.
    problem : str
        What is wrong with it, with the numbers.
    remedy : str
        What the reader can do about it.
    """

    def __init__(self, subject: str, field: str, problem: str, remedy: str = "") -> None:
        self.subject, self.field, self.problem, self.remedy = subject, field, problem, remedy
        place = f"{subject} {field}" if field else subject
        super().__init__(f"{place}: {problem}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return type(self), (self.subject, self.field, self.problem, self.remedy)


class OutOfRange(InvalidInput):
    """A lookup outside the table of a profile: the answer would be invented."""


class PlanRejected(PenstockError):
    """A plan breaks limits that plain arithmetic recomputed."""

    def __init__(self, violations: Sequence[str]) -> None:
        self.violations = tuple(violations)
        super().__init__(f"plan breaks {len(self.violations)} limits: " + "; ".join(self.violations[:5]))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        return type(self), (self.violations,)


class SolveFailed(PenstockError):
    """The solver gave no usable answer; the last good plan stays."""


SOLVER_FAULTS = (SolveFailed, ArithmeticError, ValueError, RuntimeError)
"""What a stage of a decision may fail with; what was found before it stands."""
