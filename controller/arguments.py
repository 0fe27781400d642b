"""Types of command-line options that several commands share."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    """Read a count of at least 1."""
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count of at least 1")
    return count


def positive_seconds(text: str) -> float:
    """Read a time above 0 that ends."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of more than 0 seconds")
    return seconds
