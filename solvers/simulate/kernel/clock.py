"""Tournaments: which of many numbers is least, kept as they change; and chains of requests.

A tournament of ``size`` leaves (a power of two) keeps the winner of every pair up to the root, node 1; ties go to the
lower leaf. The clock is one over the due times of everything that can happen; there are no outdated events on it.
"""

from __future__ import annotations

from solvers.simulate.kernel.records import NEVER, NONE, Replica, World


def settle_leaf(keys: list[int], winners: list[int], base: int, size: int, leaf: int, key: int) -> None:
    """Give a leaf another key and find the winners above it."""
    keys[base + leaf] = key
    top = 2 * base
    node = (size + leaf) >> 1
    while node > 0:
        left, right = winners[top + 2 * node], winners[top + 2 * node + 1]
        best = left if keys[base + left] <= keys[base + right] else right
        if best != leaf and winners[top + node] == best:
            return
        winners[top + node] = best
        node >>= 1


def build_tournament(keys: list[int], winners: list[int], base: int, size: int) -> None:
    """Find all winners from the keys."""
    top = 2 * base
    for leaf in range(size):
        winners[top + size + leaf] = leaf
    for node in range(size - 1, 0, -1):
        left, right = winners[top + 2 * node], winners[top + 2 * node + 1]
        winners[top + node] = left if keys[base + left] <= keys[base + right] else right


def schedule(w: World, entity: int, at: int) -> None:
    """Put an entity on the clock."""
    if w.due[entity] != at:
        settle_leaf(w.due, w.soonest, 0, w.states[0].entities, entity, at)


def schedule_replica(w: World, r: int, at: int) -> None:
    """Put a replica's next boundary on the clock."""
    schedule(w, w.states[0].first_replica + r, at)


def put_first(w: World, rep: Replica, q: int) -> None:
    """Put a request first in the queue of a replica."""
    w.requests[q].next = rep.head
    if rep.head == NONE:
        rep.tail = q
    rep.head = q
    rep.queued += 1


def take_first(w: World, rep: Replica) -> int:
    """Take the first request out of the queue of a replica."""
    q = rep.head
    rep.head = w.requests[q].next
    rep.queued -= 1
    return q


def call_again(w: World, q: int, now: int) -> None:
    """Let the client of a request that ended ask again after its pause, if it is one that does."""
    client = w.requests[q].client
    if client != NONE:
        source = w.sources[w.clients[client].source]
        at = now + source.think if source.next < source.end else NEVER
        schedule(w, w.states[0].first_client + client, at)


def end_request(w: World, q: int, status: int, now: int) -> None:
    """Write down that a request is over."""
    req, state = w.requests[q], w.states[0]
    req.status, req.end = status, now
    w.ended[state.ended] = q
    state.ended += 1
    call_again(w, q, now)
