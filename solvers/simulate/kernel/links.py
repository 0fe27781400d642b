"""Links that move KV caches: one transfer after the other, or all at once in equal shares.

On a shared link with ``n`` transfers each is served an ``n``-th of the time; shares are rounded down to whole ticks
whenever a transfer comes or goes. What each has been served since the link was last idle is one number, ``served``, so
a transfer ends when that reaches what it was plus its own size.
"""

from __future__ import annotations

from solvers.simulate.kernel.clock import schedule
from solvers.simulate.kernel.records import NEVER, NONE, Link, Request, World


def start_transfer(w: World, q: int, now: int) -> None:
    """Put a computed prompt on the link of its prefill replica."""
    req = w.requests[q]
    giver = w.replicas[req.prefill_replica]
    link = w.links[giver.link]
    size = req.prompt * giver.transfer
    if link.is_shared:
        serve_link(link, now)
        req.due = link.served + size
    else:
        link.free = max(now, link.free) + size
        req.due = link.free
    insert_by_due(w, link, q, req)
    link.active += 1
    schedule_link(w, giver.link, now)


def serve_link(link: Link, now: int) -> None:
    """Bring what each transfer has been served up to now."""
    if link.active > 0:
        link.served += (now - link.at) // link.active
    else:
        link.served = 0
    link.at = now


def insert_by_due(w: World, link: Link, q: int, req: Request) -> None:
    """Put a request where its due belongs, at equal dues by index."""
    before, after = NONE, link.head
    while after != NONE and (w.requests[after].due < req.due or (w.requests[after].due == req.due and after < q)):
        before, after = after, w.requests[after].next
    req.next = after
    if before == NONE:
        link.head = q
    else:
        w.requests[before].next = q


def schedule_link(w: World, link_index: int, now: int) -> None:
    """Put the end of the next transfer on the clock."""
    link = w.links[link_index]
    at = NEVER
    if link.head != NONE:
        due = w.requests[link.head].due
        at = now + max(0, due - link.served) * link.active if link.is_shared else due
    schedule(w, w.states[0].first_link + link_index, at)


def land(w: World, link_index: int, now: int) -> int:
    """End the next transfer of a link; return its request."""
    link = w.links[link_index]
    if link.is_shared:
        serve_link(link, now)
    q = link.head
    req = w.requests[q]
    link.head = req.next
    link.active -= 1
    req.due = NEVER
    schedule_link(w, link_index, now)
    return q


def cut_transfers(w: World, r: int, now: int) -> None:
    """Take every transfer from or to a replica off its link and add it to ``lost``."""
    state = w.states[0]
    for i in range(len(w.links)):
        link = w.links[i]
        before, q, gone = NONE, link.head, 0
        while q != NONE:
            req = w.requests[q]
            after = req.next
            if req.prefill_replica == r or req.replica == r:
                if gone == 0 and link.is_shared:
                    serve_link(link, now)
                gone += 1
                w.lost[state.lost] = q
                state.lost += 1
                if before == NONE:
                    link.head = after
                else:
                    w.requests[before].next = after
            else:
                before = q
            q = after
        if gone > 0:
            link.active -= gone
            schedule_link(w, i, now)
