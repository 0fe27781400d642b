"""Prefix cache of a replica: blocks shared by prompts that begin alike, the least recently used ones evicted first.

All prompts of a workload form a tree of blocks; a *node* is a stretch of it that no prompt leaves or ends within, so
its blocks are always used together: ``length`` blocks of which the first ``cached`` are held. A request has the path
from its node up. At admission the longest held prefix is pinned; when the prompt is computed its own blocks join the
cache, and blocks that another request brought meanwhile are kept once. Nodes that nobody uses form a chain from the
oldest to the newest, let go deepest first, so a prefix is evicted from its end. ``kv`` counts what is in use and
``spare`` what is cached beside it; room for requests comes first.
"""

from __future__ import annotations

from solvers.simulate.kernel.records import NONE, Replica, World


def find_hits(w: World, rep: Replica, path: int) -> tuple[int, int]:
    """(blocks of a path that are held from its start on, those of them that nobody uses now)."""
    hits = unused = 0
    node = path
    while node != NONE:
        at = rep.cache + node
        held = w.cached[at]
        spare = held if w.users[at] == 0 else 0
        if held == w.length[node]:
            hits, unused = hits + held, unused + spare
        else:
            hits, unused = held, spare  # what lies deeper does not continue it
        node = w.parent[node]
    return hits, unused


def pin(w: World, rep: Replica, path: int, hits: int) -> None:
    """Use the nodes of a path as far as ``hits`` blocks."""
    block = w.states[0].block_tokens
    node = path
    while node != NONE:
        if w.start[node] < hits:
            use(w, rep, node, block)
        node = w.parent[node]


def use(w: World, rep: Replica, node: int, block: int) -> None:
    """Count one more user of a node; its blocks are no longer spare."""
    at = rep.cache + node
    if w.users[at] == 0 and w.cached[at] > 0:
        unlink(w, rep, node)
        rep.spare -= block * w.cached[at]
        rep.kv += block * w.cached[at]
    w.users[at] += 1


def share(w: World, rep: Replica, path: int, hits: int) -> int:
    """Add the blocks of a computed prompt, of which ``hits`` were pinned; return how many are pinned now."""
    block = w.states[0].block_tokens
    node, total = path, w.start[path] + w.length[path]
    while node != NONE:
        at, begin, length = rep.cache + node, w.start[node], w.length[node]
        if begin >= hits:
            use(w, rep, node, block)
        mine = length - max(0, min(length, hits - begin))
        missing = length - w.cached[at]
        rep.kv -= block * (mine - missing)  # held twice until now
        w.cached[at] = length
        node = w.parent[node]
    return total


def unpin(w: World, rep: Replica, path: int, hits: int) -> None:
    """Let go of the nodes of a path as far as ``hits`` blocks, the deepest first."""
    block = w.states[0].block_tokens
    node = path
    while node != NONE:
        at = rep.cache + node
        if w.start[node] < hits:
            w.users[at] -= 1
            if w.users[at] == 0 and w.cached[at] > 0:
                rep.kv -= block * w.cached[at]
                rep.spare += block * w.cached[at]
                link_newest(w, rep, node)
        node = w.parent[node]


def link_newest(w: World, rep: Replica, node: int) -> None:
    """Put a node at the newest end of the chain of unused ones."""
    at = rep.cache + node
    w.older[at], w.newer[at] = rep.newest, NONE
    if rep.newest == NONE:
        rep.oldest = node
    else:
        w.newer[rep.cache + rep.newest] = node
    rep.newest = node


def unlink(w: World, rep: Replica, node: int) -> None:
    """Take a node out of the chain of unused ones."""
    at = rep.cache + node
    before, after = w.older[at], w.newer[at]
    if before == NONE:
        rep.oldest = after
    else:
        w.newer[rep.cache + before] = after
    if after == NONE:
        rep.newest = before
    else:
        w.older[rep.cache + after] = before


def evict(w: World, rep: Replica, capacity: int) -> None:
    """Drop spare blocks, oldest first, until everything fits."""
    block = w.states[0].block_tokens
    while rep.spare > 0 and rep.kv + rep.spare > capacity:
        node = rep.oldest
        at = rep.cache + node
        excess = (rep.kv + rep.spare - capacity + block - 1) // block
        dropped = min(excess, w.cached[at])
        w.cached[at] -= dropped
        rep.spare -= block * dropped
        if w.cached[at] == 0:
            unlink(w, rep, node)
