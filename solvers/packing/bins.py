"""Items into as few bins as can be proved: rules first, then bin contents by column generation, then dives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from solvers.errors import SolveFailed
from solvers.packing.bounds import rows_bound
from solvers.packing.columns import Master
from solvers.packing.dive import Dive, Effort
from solvers.packing.fit import Filled, Pattern, best_of_rules
from solvers.packing.items import BinType, Ints, Kinds, PackedBin, Packing, read_items

BY_ROWS = "volume and the Martello-Toth bound of each resource"
BY_PRICES_1 = "prices of the relaxation over bin contents, recomputed in whole numbers by dynamic programming"
BY_PRICES_R = "prices of the relaxation over bin contents, recomputed in whole numbers by branch and bound"
SHARES = (0.6, 0.9, 0.35, 0.75)
"""Use of a content from which a dive fixes it, dive by dive."""


def pack_bins(items: Any, bins: int | Sequence[int] | Sequence[BinType], *, effort: Effort | None = None) -> Packing:
    """Pack items of one or many resources into bins at least cost, and say what is proved.

    Parameters
    ----------
    items : (N,) or (N, R) array of whole numbers
        Size of each item.
    bins : int, sequence of int, or sequence of BinType
        One capacity, a capacity per resource, or types of bins with counts and costs.
    effort : Effort, optional
        How much work to put in; never seconds.

    Returns
    -------
    Packing
        ``is_proved`` when all is placed and no packing costs less. Items for which limited bins do not suffice are in
        ``unplaced``; the bound then is that of packing everything.

    Raises
    ------
    InvalidInput
        Sizes, shapes or bins make no sense, or an item fits no bin; the error names it.

    Examples
    --------
    >>> packing = pack_bins([6, 5, 5, 4, 3, 3, 2, 2], 10)
    >>> packing.cost, packing.lower_bound, packing.is_proved
    (3, 3, True)
    """
    kinds = read_items(items, bins)
    filled = best_of_rules(kinds, kinds.demand, np.zeros_like(kinds.count))
    bound, proof = rows_bound(kinds), BY_ROWS
    if filled.is_complete() and filled.cost(kinds) <= bound:
        return _written(kinds, filled, bound, proof)
    effort = effort or Effort()
    master = Master(kinds, full_searches=effort.full_searches)
    master.add(filled.patterns)
    try:
        master.relax(kinds.demand, kinds.count)
        if master.lower > bound:
            bound, proof = master.lower, BY_PRICES_1 if kinds.sizes.shape[1] == 1 else BY_PRICES_R
        filled = _improved(kinds, master, filled, bound, effort)
    except SolveFailed as fault:
        proof += f" (search ended early: {fault})"
    return _written(kinds, filled, bound, proof)


def _improved(kinds: Kinds, master: Master, filled: Filled, bound: int, effort: Effort) -> Filled:
    """Dive to the bound, and to one above it as long as that is better than what there is."""
    most = filled.cost(kinds) if filled.is_complete() else int(kinds.cost @ kinds.count) + 1
    for target in _targets(bound, most):
        for dive in range(effort.dives):
            share = SHARES[dive % len(SHARES)]
            found = Dive.start(kinds, master, target, effort, share).run()
            if found is not None:
                return Filled(_trimmed(kinds, found), np.zeros_like(kinds.demand))
    return filled


def _targets(bound: int, most: int) -> Iterator[int]:
    """The bound, then twice as far above it each time, up to just below what there is."""
    step, target = 1, bound
    while target < most:
        yield target
        target, step = min(target + step, most - 1) if target < most - 1 else most, 2 * step


def _trimmed(kinds: Kinds, patterns: Sequence[Pattern]) -> list[Pattern]:
    """Take off what was packed twice: contents cover the demand, and may do more."""
    left, kept = kinds.demand.copy(), []
    for k, counts in patterns:
        here = np.minimum(counts, left)
        left = left - here
        if here.any():
            kept.append((k, here))
    if left.any():
        raise SolveFailed(f"a packing left out {int(left.sum())} items")
    return kept


def _written(kinds: Kinds, filled: Filled, bound: int, proof: str) -> Packing:
    """Give every item its bin, check every bin again, and say what is proved."""
    queues = [list(members) for members in kinds.members]
    bins = []
    for k, counts in filled.patterns:
        _check(kinds, k, counts)
        items = sorted(queues[kind].pop(0) for kind in np.flatnonzero(counts) for _ in range(int(counts[kind])))
        bins.append(PackedBin(bin_type=k, items=tuple(items)))
    unplaced = tuple(sorted(item for queue in queues for item in queue))
    cost = filled.cost(kinds)
    return Packing(
        bins=tuple(sorted(bins, key=lambda each: each.items)),
        cost=cost,
        lower_bound=bound,
        is_proved=not unplaced and cost <= bound,
        unplaced=unplaced,
        proof=proof,
    )


def _check(kinds: Kinds, bin_type: int, counts: Ints) -> None:
    load = counts @ kinds.sizes
    if (load > kinds.capacity[bin_type]).any():
        raise SolveFailed(f"a bin of {kinds.capacity[bin_type].tolist()} would hold {load.tolist()}")
