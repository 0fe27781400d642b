"""Workloads as arrays are held against their shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.errors import InvalidInput
from solvers.simulate.arrivals import Workload, check_workload


def three_requests() -> Workload:
    return Workload(
        services=("a", "b"),
        arrival_s=np.array([0.0, 0.5, 0.5]),
        service=np.array([0, 1, 0]),
        prompt_tokens=np.array([1024, 600, 5]),
        output_tokens=np.array([3, 1, 9]),
        block_tokens=512,
        block_starts=np.array([0, 2, 3, 3]),
        block_ids=np.array([7, 8, 7]),
    )


def test_a_whole_workload_passes() -> None:
    check_workload(three_requests())
    assert (len(three_requests()), three_requests().tokens) == (3, 1629 + 13)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service", np.array([0, 2, 0])),
        ("prompt_tokens", np.array([1, 2])),
        ("output_tokens", np.array([1, 0, 2])),
        ("arrival_s", np.array([0.0, np.nan, 1.0])),
        ("block_tokens", 0),
        ("block_starts", np.array([0, 2, 1, 3])),
        ("names", ("one",)),
    ],
)
def test_a_workload_that_does_not_fit_together_is_refused_by_field(field: str, value: Any) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(InvalidInput) as refused:
        check_workload(replace(three_requests(), **changes))
    assert refused.value.field == field
