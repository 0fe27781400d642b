"""Blocks of prompts as a tree, with stretches that are always used together put into one node."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from solvers.simulate.arrivals import Ints, Workload


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixTree:
    """Nodes of the tree of all prompts of a workload; a node's parent has a lower number.

    Attributes
    ----------
    parent, start, length : (K,) int
        Node above, -1 at the top; blocks before the node on its path; blocks in it.
    path : (N,) int
        Deepest node of each request, -1 without blocks to share.
    """

    parent: Ints
    start: Ints
    length: Ints
    path: Ints


def build_tree(workload: Workload) -> PrefixTree:
    """Put the blocks of a workload into a tree.

    The block of a prompt's last token is left out, because something must be computed to yield a first token.
    """
    none = np.zeros(0, np.int64)
    given = np.diff(workload.block_starts) if len(workload.block_starts) else np.zeros(len(workload), np.int64)
    depth = np.minimum(given, (workload.prompt_tokens - 1) // max(1, workload.block_tokens))
    if not depth.any():
        return PrefixTree(parent=none, start=none, length=none, path=np.full(len(workload), -1))
    begin = workload.block_starts[:-1]
    above, level, last = _block_nodes(workload.block_ids, begin, depth)
    return _joined(above, level, last)


def _block_nodes(ids: Ints, begin: Ints, depth: Ints) -> tuple[Ints, Ints, Ints]:
    """(parent of each block node, its depth, last node of each request): a node for each different prefix."""
    _, ids = np.unique(ids, return_inverse=True)
    width = int(ids.max(initial=0)) + 1
    last = np.full(len(begin), -1, np.int64)
    rows = np.flatnonzero(depth > 0)
    above, levels, made, level = [], [], 0, 0
    while len(rows):
        keys = (last[rows] + 1) * width + ids[begin[rows] + level]
        nodes, where = np.unique(keys, return_inverse=True)
        last[rows] = made + where
        above.append(nodes // width - 1)
        levels.append(np.full(len(nodes), level, np.int64))
        made, level = made + len(nodes), level + 1
        rows = rows[depth[rows] > level]
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *above]), np.concatenate([empty, *levels]), last


def _joined(above: Ints, level: Ints, last: Ints) -> PrefixTree:
    """Join each block to the one above when nothing else follows or ends there."""
    count = len(above)
    children = np.bincount(above[above >= 0], minlength=count)
    ends = np.bincount(last[last >= 0], minlength=count)
    is_first = (above < 0) | (children[above] != 1) | (ends[above] > 0)
    node_of = np.zeros(count, np.int64)
    firsts = np.flatnonzero(is_first)
    node_of[firsts] = np.arange(len(firsts))
    edges = np.searchsorted(level, np.arange(level.max(initial=-1) + 2))  # blocks stand by level: parents come first
    for low, high in pairwise(edges.tolist()):
        follows = low + np.flatnonzero(~is_first[low:high])
        node_of[follows] = node_of[above[follows]]
    parent = np.where(above[firsts] >= 0, node_of[above[firsts]], -1)
    length = np.bincount(node_of, minlength=len(firsts)).astype(np.int64)
    path = np.where(last >= 0, node_of[last], -1)
    return PrefixTree(parent=parent.astype(np.int64), start=level[firsts], length=length, path=path.astype(np.int64))
