"""The content of one bin worth most, for many resources, with a bound in whole numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from solvers.packing.items import Ints

NODE_LIMIT = 20_000
GRID = 1000
WORTH_TOLERANCE = 1e-4
"""Contents worth so little more than the best one found are not looked for; the bound allows for them."""


class _Node(NamedTuple):
    """Part of a content: what it and any completion can be worth, its last kind, and the room left."""

    bound: int
    value: int
    first: int
    room: Ints
    rooms: Ints
    path: tuple[int, ...]


class Branching:
    r"""The content of one bin worth most, by depth-first branch and bound, one item at a time, best value first.

    What the rest of a bin can still be worth is bounded by the least of several knapsacks of one resource: each
    resource by itself, and the mean of all, on a grid of whole numbers. Sizes are cut down to the grid, so the bound
    holds: :math:`\sum_i \lfloor s_i G / C \rfloor \le G` for everything that fits.
    """

    def __init__(self, sizes: Ints, worth: Ints, limit: Ints, capacity: Ints) -> None:
        share = np.divide(sizes, capacity, out=np.zeros(sizes.shape), where=capacity > 0)
        self.order = np.argsort(-worth / np.maximum(share.mean(axis=1), 1e-9), kind="stable")
        self.sizes, self.worth, self.limit = sizes[self.order], worth[self.order], limit[self.order]
        self.capacity = capacity
        self.grid = np.array([*(min(int(c), GRID) for c in capacity), GRID])
        cut = [s * g // max(int(c), 1) for s, g, c in zip(self.sizes.T, self.grid, capacity, strict=False)]
        mean = np.floor(share[self.order].mean(axis=1) * GRID * (1.0 - 1e-12)).astype(np.int64)
        self.cut = np.array([*cut, mean])  # (S, T)
        self.rest = np.array([self._suffixes(row, int(room)) for row, room in zip(self.cut, self.grid, strict=True)])

    def _suffixes(self, sizes: Ints, room: int) -> Ints:
        """Most worth that the kinds from each on can put into every room, (T + 1, G + 1)."""
        most = np.zeros((len(sizes) + 1, GRID + 1), dtype=np.int64)
        for kind in range(len(sizes) - 1, -1, -1):
            most[kind] = most[kind + 1]
            size, worth, limit = int(sizes[kind]), int(self.worth[kind]), int(self.limit[kind])
            for count in range(1, min(limit, room // size if size else limit) + 1):
                here = most[kind, count * size :]
                np.maximum(here, most[kind + 1, : GRID + 1 - count * size] + count * worth, out=here)
        return most

    def run(self, incumbent: int) -> tuple[Ints | None, int]:
        """The best content if it is worth more than the incumbent, and an upper bound on the worth of any."""
        best: tuple[int, ...] | None = None
        stack, nodes, spare = [self._root()], 0, int(max(1, incumbent) * WORTH_TOLERANCE)
        while stack and nodes < NODE_LIMIT:
            node = stack.pop()
            if node.bound <= incumbent + spare:
                continue
            nodes += 1
            kinds, values, bounds, left = self._children(node)
            if len(kinds) and int(values.max()) > incumbent:
                at = int(np.argmax(values))
                incumbent, best = int(values[at]), (*node.path, int(kinds[at]))
            order = np.argsort(bounds, kind="stable")
            stack += self._kept(node, order[bounds[order] > incumbent + spare], kinds, values, bounds, left)
        most = max([incumbent + spare, *(node.bound for node in stack)])
        return None if best is None else self._content(best), most

    def list_from(self, least: int) -> list[Ints]:
        """Contents worth at least so much to which nothing can be added, within the limit of nodes."""
        found: list[Ints] = []
        stack = [self._root()]
        for _ in range(NODE_LIMIT):
            if not stack:
                break
            node = stack.pop()
            kinds, values, bounds, left = self._children(node)
            if node.value >= least and not self._has_room(node):
                found.append(self._content(node.path))
            stack += self._kept(node, np.flatnonzero(bounds >= least), kinds, values, bounds, left)
        return found

    def _root(self) -> _Node:
        highest = int(self.rest[np.arange(len(self.grid)), 0, self.grid].min())
        return _Node(highest, 0, 0, self.capacity, self.grid, ())

    def _children(self, node: _Node) -> tuple[Ints, Ints, Ints, Ints]:
        """Kinds that may come next, worth with each, bounds, and rooms left on the grids, (S, J)."""
        kinds = node.first + np.flatnonzero((self.sizes[node.first :] <= node.room).all(axis=1))
        if node.path.count(node.first) >= self.limit[node.first]:
            kinds = kinds[kinds != node.first]
        values = node.value + self.worth[kinds]
        left = node.rooms[:, None] - self.cut[:, kinds]
        bounds = values + self.rest[np.arange(len(left))[:, None], kinds, left].min(axis=0)
        return kinds, values, bounds, left

    def _kept(self, node: _Node, which: Ints, kinds: Ints, values: Ints, bounds: Ints, left: Ints) -> list[_Node]:
        """Those of the children that are wanted."""
        return [
            _Node(
                bound=int(bounds[at]),
                value=int(values[at]),
                first=int(kinds[at]),
                room=node.room - self.sizes[kinds[at]],
                rooms=left[:, at],
                path=(*node.path, int(kinds[at])),
            )
            for at in which
        ]

    def _has_room(self, node: _Node) -> bool:
        """Whether any kind could still be added, those before the last one too."""
        able = np.flatnonzero((self.sizes <= node.room).all(axis=1))
        return any(node.path.count(int(kind)) < self.limit[kind] for kind in able)

    def _content(self, path: tuple[int, ...]) -> Ints:
        content = np.zeros(len(self.worth), dtype=np.int64)
        np.add.at(content, self.order[list(path)], 1)
        return content
