"""Lower bounds on the cost of a packing in whole-number arithmetic."""

from __future__ import annotations

import numpy as np

from solvers.packing.items import Ints, Kinds


def volume_bound(kinds: Kinds) -> int:
    r"""Bound by each resource alone: what is asked, in the cheapest bins for that resource first.

    .. math:: L_1 = \max_r \Bigl\lceil \sum_i s_{ir} / C_r \Bigr\rceil \text{ for one type that costs 1}
    """
    if not kinds.demand.sum():
        return 0
    asked = (kinds.sizes * kinds.demand[:, None]).sum(axis=0)
    return max(max(_cheapest_cover(kinds, r, int(need)) for r, need in enumerate(asked)), int(kinds.cost.min()))


def _cheapest_cover(kinds: Kinds, resource: int, need: int) -> int:
    """Least cost of bins, split at will, that hold so much of a resource; whole because costs are."""
    capacity = [int(c) for c in kinds.capacity[:, resource]]
    order = sorted((k for k, c in enumerate(capacity) if c > 0), key=lambda k: int(kinds.cost[k]) / capacity[k])
    cost = 0
    for k in order:
        held = min(need, capacity[k] * int(kinds.count[k]))
        if held == need:
            return cost + -(-need * int(kinds.cost[k]) // capacity[k])
        cost, need = cost + int(kinds.cost[k]) * int(kinds.count[k]), need - held
    return cost


def martello_toth_bound(sizes: Ints, demand: Ints, capacity: int) -> int:
    r"""Bound :math:`L_2` for one resource and equal bins.

    .. math:: L_2 = \max_{0 \le a \le C/2} |J_1| + |J_2| +
              \max\Bigl(0, \Bigl\lceil \frac{\sum_{J_3} s - (|J_2| C - \sum_{J_2} s)}{C} \Bigr\rceil\Bigr)

    with :math:`J_1: s > C - a`, :math:`J_2: C/2 < s \le C - a`, :math:`J_3: a \le s \le C/2`.

    Source: Martello and Toth, "Lower bounds and reduction procedures for the bin packing problem", Discrete Applied
    Mathematics 28 (1990).
    """
    if capacity == 0:  # only items of no size fit
        return 0
    best = 0
    for least in [0, *sorted({int(s) for s in sizes if 2 * s <= capacity})]:
        large = sizes > capacity - least
        half = ~large & (2 * sizes > capacity)
        small = (2 * sizes <= capacity) & (sizes >= least)
        spare = int(demand[half].sum()) * capacity - int((sizes * demand)[half].sum())
        more = max(0, -(-(int((sizes * demand)[small].sum()) - spare) // capacity))
        best = max(best, int(demand[large].sum() + demand[half].sum()) + more)
    return best


def rows_bound(kinds: Kinds) -> int:
    """The better of volume and, for equal bins that cost 1, the Martello-Toth bound of every resource."""
    bound = volume_bound(kinds)
    if len(kinds.cost) == 1 and kinds.cost[0] == 1 and kinds.demand.sum():
        for r, capacity in enumerate(kinds.capacity[0]):
            bound = max(bound, martello_toth_bound(kinds.sizes[:, r], kinds.demand, int(capacity)))
    return bound


def priced_bound(worth: Ints, kinds: Kinds, most: Ints) -> int:
    r"""Bound from a whole-number worth of items and the most worth that one bin of each type can hold.

    .. math:: L(y) = \sum_t d_t y_t + \sum_k n_k \min(0, c_k - z_k(y)), \qquad
              y \leftarrow y \cdot \min_{k \text{ unlimited}} c_k / z_k

    Every packing pays at least this: a bin whose content is worth more than it costs can be used :math:`n_k` times.
    The arithmetic is in whole numbers, after multiplying with the denominator.
    """
    total = sum(int(d) * int(y) for d, y in zip(kinds.demand, worth, strict=True))
    top, bottom = 1, 1  # y = worth · top / bottom
    for k in np.flatnonzero(~kinds.is_limited):
        cost, value = int(kinds.cost[k]), int(most[k])
        if value * top > cost * bottom:
            top, bottom = cost, value
    if not (~kinds.is_limited).any():
        top, bottom = 1, WORTH_UNIT
    bound = total * top
    for k in np.flatnonzero(kinds.is_limited):
        bound += int(kinds.count[k]) * min(0, int(kinds.cost[k]) * bottom - int(most[k]) * top)
    return -(-bound // bottom)


WORTH_UNIT = 2**20
"""A worth of one, when prices are written as whole numbers."""
