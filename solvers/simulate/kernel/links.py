"""Links that move KV caches: one transfer after the other, or all at once in equal shares.

On a shared link with ``n`` transfers each is served an ``n``-th of the time; shares are rounded down to whole ticks
whenever a transfer comes or goes. What each has been served since the link was last idle is one number, ``served``, so
a transfer ends when that reaches what it was plus its own size.

A transfer that crosses between places has several *legs* at once, as a stream does: the link of its prefill replica,
the one out of its place and the one into the other. Each serves it as if alone; it lands when the last has served it.
"""

from __future__ import annotations

from solvers.simulate.kernel.clock import schedule
from solvers.simulate.kernel.records import NEVER, NONE, OUT, OWN, Link, Request, World


def start_transfer(w: World, q: int, now: int) -> None:
    """Put a computed prompt on the link of its prefill replica, and on those between its replicas' places."""
    req = w.requests[q]
    giver = w.replicas[req.prefill_replica]
    req.legs = 1
    enter_link(w, giver.link, q, req.prompt * giver.transfer, now)
    if req.way != NONE:
        way = w.ways[req.way]
        if way.out_link != NONE:
            req.legs += 1
            enter_link(w, way.out_link, q, req.prompt * way.out_transfer, now)
        if way.into_link != NONE:
            req.legs += 1
            enter_link(w, way.into_link, q, req.prompt * way.into_transfer, now)


def enter_link(w: World, link_index: int, q: int, size: int, now: int) -> None:
    """Begin one leg of a transfer, of so many ticks of the whole link."""
    link, req = w.links[link_index], w.requests[q]
    if link.is_shared:
        serve_link(link, now)
        due = link.served + size
    else:
        link.free = max(now, link.free) + size
        due = link.free
    set_due(req, link.leg, due)
    insert_by_due(w, link, q, req, due)
    link.active += 1
    schedule_link(w, link_index, now)


def due_on(req: Request, leg: int) -> int:
    """When a leg of a request is over, as its link counts."""
    return req.due if leg == OWN else (req.out_due if leg == OUT else req.into_due)


def set_due(req: Request, leg: int, due: int) -> None:
    """Say when a leg of a request is over."""
    if leg == OWN:
        req.due = due
    elif leg == OUT:
        req.out_due = due
    else:
        req.into_due = due


def next_on(req: Request, leg: int) -> int:
    """The request behind one on the link of a leg."""
    return req.next if leg == OWN else (req.out_next if leg == OUT else req.into_next)


def set_next(req: Request, leg: int, after: int) -> None:
    """Put a request behind another one on the link of a leg."""
    if leg == OWN:
        req.next = after
    elif leg == OUT:
        req.out_next = after
    else:
        req.into_next = after


def serve_link(link: Link, now: int) -> None:
    """Bring what each transfer has been served up to now."""
    if link.active > 0:
        link.served += (now - link.at) // link.active
    else:
        link.served = 0
    link.at = now


def insert_by_due(w: World, link: Link, q: int, req: Request, due: int) -> None:
    """Put a request where its due belongs, at equal dues by index."""
    leg, before, after = link.leg, NONE, link.head
    if after == NONE and leg == OWN:  # most find their link idle
        link.head, req.next = q, NONE
        return
    while after != NONE:
        other = due_on(w.requests[after], leg)
        if other > due or (other == due and after > q):
            break
        before, after = after, next_on(w.requests[after], leg)
    set_next(req, leg, after)
    if before == NONE:
        link.head = q
    else:
        set_next(w.requests[before], leg, q)


def schedule_link(w: World, link_index: int, now: int) -> None:
    """Put the end of the next transfer on the clock."""
    link = w.links[link_index]
    at = NEVER
    if link.head != NONE:
        due = due_on(w.requests[link.head], link.leg)
        at = now + max(0, due - link.served) * link.active if link.is_shared else due
    schedule(w, w.states[0].first_link + link_index, at)


def land(w: World, link_index: int, now: int) -> int:
    """End the next transfer of a link; return its request, or none while other legs of it go on."""
    link = w.links[link_index]
    if link.is_shared:
        serve_link(link, now)
    q = link.head
    req = w.requests[q]
    link.head = next_on(req, link.leg)
    link.active -= 1
    set_due(req, link.leg, NEVER)
    req.legs -= 1
    schedule_link(w, link_index, now)
    return q if req.legs == 0 else NONE


def cut_transfers(w: World, r: int, now: int) -> None:
    """Take every transfer from or to a replica off its links and add it to ``lost``."""
    state = w.states[0]
    for i in range(len(w.links)):
        link = w.links[i]
        before, q, gone = NONE, link.head, 0
        while q != NONE:
            req = w.requests[q]
            after = next_on(req, link.leg)
            if req.prefill_replica == r or req.replica == r:
                if gone == 0 and link.is_shared:
                    serve_link(link, now)
                gone += 1
                set_due(req, link.leg, NEVER)
                if req.legs != NONE:
                    req.legs = NONE
                    w.lost[state.lost] = q
                    state.lost += 1
                if before == NONE:
                    link.head = after
                else:
                    set_next(w.requests[before], link.leg, after)
            else:
                before = q
            q = after
        if gone > 0:
            link.active -= gone
            schedule_link(w, i, now)
