"""Fewer looks for unreachable cycles while a fleet is planned: a large one is millions of small values that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARE = 100_000, 50, 100
"""New objects between two looks, and looks between those at older ones; usual are 700, 10, 10."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for cycles at every 100,000th new object only; the process's own habit comes back afterwards."""
    before = gc.get_threshold()
    gc.set_threshold(*RARE)
    try:
        yield
    finally:
        if before != RARE:  # another thread's planning, still under way, found it so; the first one puts it back
            gc.set_threshold(*before)
