"""HiGHS as this package wants it."""

from __future__ import annotations

from typing import Any

import highspy


def quiet_highs(**options: Any) -> Any:
    """HiGHS without output, on one thread, with a fixed seed: the same input gives the same answer."""
    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in {"output_flag": False, "threads": 1, "random_seed": 7, **options}.items():
        highs.setOptionValue(name, value)
    return highs
