"""The sizes of drawn fleets, as benches take them."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from tests.synthetic import SIZES, sizes


def test_sizes_are_names_joined_by_commas() -> None:
    assert sizes("S,M") == ["S", "M"]
    assert sizes(",".join(SIZES)) == [*SIZES]


@pytest.mark.parametrize("text", ["SM", "S,Q", "", "S,", "s"])
def test_a_size_that_is_none_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="say some of XS,S,M,L"):
        sizes(text)
