"""Types of command-line options that several commands share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Read a count of at least 1."""
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count of at least 1")
    return count
