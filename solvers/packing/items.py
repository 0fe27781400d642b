"""Items, kinds of bins and packings as values, and the check of what is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from solvers.errors import InvalidInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MOST = 2**40
"""Sizes beyond it would lose whole numbers in sums of doubles."""

MOST_COST = 2**20
"""Costs times items times the unit of prices stay within whole numbers of 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BinType:
    """Bins of one capacity.

    Attributes
    ----------
    capacity : tuple of int
        Whole units of each resource.
    count : int or None
        Bins that there are, None for as many as needed.
    cost : int
        What one costs, 1 to count bins.
    """

    capacity: tuple[int, ...]
    count: int | None = None
    cost: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBin:
    """One bin that is used: which type, and the items in it (their numbers, rising)."""

    bin_type: int
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Items in bins, with evidence.

    Attributes
    ----------
    bins : tuple of PackedBin
    cost : int
        Cost of the bins used; their number when every bin costs 1.
    lower_bound : int
        No packing of all items costs less.
    is_proved : bool
        Every item is placed and the cost meets the bound.
    unplaced : tuple of int
        Items for which no bin was left.
    proof : str
        What the bound rests on.
    """

    bins: tuple[PackedBin, ...]
    cost: int
    lower_bound: int
    is_proved: bool
    unplaced: tuple[int, ...]
    proof: str

    @property
    def gap_ratio(self) -> float:
        """Cost above the bound, as a share of the cost, 0-1."""
        return (self.cost - self.lower_bound) / self.cost if self.cost else 0.0

    def bin_of(self) -> dict[int, int]:
        """Bin number of every placed item."""
        return {item: number for number, packed in enumerate(self.bins) for item in packed.items}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kinds:
    """The items with equal ones put together, larger first, and the types of bins, as whole-number arrays.

    ``sizes`` (T, R) and ``demand`` (T,) of kinds, ``members`` the items of each; ``capacity`` (K, R), ``cost`` (K,),
    and ``count`` (K,), which is the number of items where bins are without number.
    """

    sizes: Ints
    demand: Ints
    members: tuple[tuple[int, ...], ...]
    capacity: Ints
    count: Ints
    is_limited: npt.NDArray[np.bool_]
    cost: Ints

    def fits_alone(self) -> npt.NDArray[np.bool_]:
        """Whether one item of the kind fits an empty bin of the type, (T, K)."""
        return np.asarray((self.sizes[:, None, :] <= self.capacity[None, :, :]).all(axis=2))

    def share(self) -> Floats:
        """Sizes over the mean capacity of each resource, (T, R); resources that no bin has count nothing."""
        mean = self.capacity.mean(axis=0)
        return np.asarray(np.divide(self.sizes, mean, out=np.zeros(self.sizes.shape), where=mean > 0))


def read_items(items: Any, bins: int | Sequence[int] | Sequence[BinType]) -> Kinds:
    """Take items and bins in, or say what is wrong with them.

    Raises
    ------
    InvalidInput
        Sizes are not whole numbers from 0 on, shapes disagree, there are no bins, or an item is larger than every bin.
    """
    sizes = _whole("items", items)
    if sizes.ndim == 1:
        sizes = sizes.reshape(-1, 1)
    if sizes.ndim != 2:
        raise InvalidInput("items", "", f"have {sizes.ndim} axes", "give one row per item, one column per resource")
    types = _bin_types(bins)
    capacity = _whole("bins", [t.capacity for t in types])
    if len(sizes) and sizes.shape[1] != capacity.shape[1]:
        given = f"have {sizes.shape[1]} resources, the bins {capacity.shape[1]}"
        raise InvalidInput("items", "", given, "give both the same resources, in one order")
    kinds = _grouped(sizes.reshape(-1, capacity.shape[1]), capacity, types)
    homeless = np.flatnonzero(~kinds.fits_alone().any(axis=1))
    if len(homeless):
        item = min(min(kinds.members[k]) for k in homeless)
        raise InvalidInput(
            f"item {item}", "", f"of size {sizes[item].tolist()} is larger than every bin", "split it, or leave it out"
        )
    return kinds


def _bin_types(bins: int | Sequence[int] | Sequence[BinType]) -> list[BinType]:
    if isinstance(bins, int | np.integer):
        types = [BinType(capacity=(int(bins),))]
    elif not isinstance(bins, Sequence | np.ndarray):
        raise InvalidInput("bins", "", f"are {bins!r}, no bins", "give a capacity, one per resource, or BinTypes")
    elif any(isinstance(each, BinType) for each in bins):
        types = [each for each in bins if isinstance(each, BinType)]
    else:
        types = [BinType(capacity=tuple(bins))] if len(bins) else []  # type: ignore[arg-type]
    if not types:
        raise InvalidInput("bins", "", "there are none", "give a capacity, or at least one type")
    lengths = {len(t.capacity) for t in types}
    if len(lengths) > 1 or 0 in lengths:
        raise InvalidInput("bins", "capacity", f"have {sorted(lengths)} resources", "give every type the same ones")
    for number, each in enumerate(types):
        if each.count is not None and not 0 <= each.count < MOST:
            raise InvalidInput(
                f"bin type {number}", "count", f"is {each.count!r}", "give 0 or more, None for any number"
            )
        if not (isinstance(each.cost, int | np.integer) and 1 <= each.cost <= MOST_COST):
            raise InvalidInput(
                f"bin type {number}", "cost", f"is {each.cost!r}", f"give a whole number of 1 to {MOST_COST}"
            )
    return types


def _whole(subject: str, values: Any) -> Ints:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(subject, "", f"are no table of numbers: {error}", "give rows of equal length") from error
    bad = array[~(np.isfinite(array) & (array >= 0) & (array <= MOST) & (array == np.floor(array)))]
    if bad.size:
        raise InvalidInput(subject, "size", f"is {bad.flat[0]:g}", "give whole numbers from 0 on, in a finer unit")
    return array.astype(np.int64)


def _grouped(sizes: Ints, capacity: Ints, types: list[BinType]) -> Kinds:
    unique, inverse = np.unique(sizes, axis=0, return_inverse=True)
    share = unique / np.maximum(capacity.mean(axis=0), 1)
    order = np.lexsort((*unique.T[::-1], share.sum(axis=1)))[::-1]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    members: list[list[int]] = [[] for _ in order]
    for item, kind in enumerate(rank[inverse.ravel()] if len(sizes) else ()):
        members[int(kind)].append(item)
    return Kinds(
        sizes=unique[order],
        demand=np.array([len(m) for m in members], dtype=np.int64),
        members=tuple(map(tuple, members)),
        capacity=capacity,
        count=np.array([len(sizes) if t.count is None else min(t.count, len(sizes)) for t in types], dtype=np.int64),
        is_limited=np.array([t.count is not None for t in types]),
        cost=np.array([t.cost for t in types], dtype=np.int64),
    )
