"""Wait for something to become true, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 300.0  # what comes at all comes within seconds, but a busy machine can take many times as long


class DeadlineError(TimeoutError):
    """Something did not come true in time."""


def wait_until(
    probe: Callable[[], T], what: str | Callable[[], str], *, timeout_s: float = PATIENCE_S, interval_s: float = 0.05
) -> T:
    """Call ``probe`` until it returns something true, and return that.

    Parameters
    ----------
    probe : callable
        Asked again and again; what it raises ends the wait.
    what : str or callable
        What is waited for, as it shall read in the error; a callable is asked at the deadline, to tell what it saw.
    timeout_s, interval_s : float, s
        How long to wait in total, and between two questions.

    Raises
    ------
    DeadlineError
        If the answer stays false.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        if answer := probe():
            return answer
        if time.monotonic() > deadline_s:
            raise DeadlineError(f"waited {timeout_s:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(interval_s)
