"""What follows from a value that never changes, worked out when it is first asked for and kept beside the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

P = TypeVar("P", bound="Derives")
T = TypeVar("T")


class Derives:
    """Base of frozen dataclasses with slots that keep what follows from them.

    What is kept is no field: it is neither compared, printed, replaced nor sent to other processes.
    """

    __slots__ = ("_derived",)
    _derived: dict[Callable[[Any], Any], Any]


def derived(of: P, make: Callable[[P], T]) -> T:
    """What the function makes of the value; it must read nothing else, and nobody may change the answer."""
    try:
        known = of._derived
    except AttributeError:
        known = {}
        object.__setattr__(of, "_derived", known)
    if make not in known:
        known[make] = make(of)
    found: T = known[make]
    return found
