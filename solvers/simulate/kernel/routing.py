"""Where requests go: groups of replicas by role, what waits at the gateway for them, prompts on links.

``choice`` finds the way of a request; here it is charged to its replicas, sent on, or kept.
"""

from __future__ import annotations

from solvers.simulate.kernel.choice import choose_way, has_receiver, may_serve, prompt_cost, receiver_for, take_turn
from solvers.simulate.kernel.clock import build_tournament, end_request, schedule, settle_leaf
from solvers.simulate.kernel.curves import prompt_ticks
from solvers.simulate.kernel.engine import enqueue, release_kv, wake
from solvers.simulate.kernel.links import start_transfer
from solvers.simulate.kernel.records import (
    LEAST_LOADED,
    LEAST_WORK,
    NEVER,
    NONE,
    REJECTED,
    TIMED_OUT,
    WEIGHTED,
    World,
)


def add_load(w: World, r: int, amount: int) -> None:
    """Change the load of a replica, and what its group thinks of it."""
    rep = w.replicas[r]
    rep.load += amount
    if rep.slot != NONE and amount != 0:
        group = w.groups[rep.group]
        settle_leaf(w.load, w.lightest, group.first, group.room, rep.slot, rep.load)


def join_group(w: World, r: int) -> None:
    """Route to a replica from now on; members stand in the order of their index."""
    rep = w.replicas[r]
    g = rep.group
    group = w.groups[g]
    if w.services[rep.service].policy == WEIGHTED and group.count > 0:
        rep.load = max(rep.load, w.load[group.first + w.lightest[2 * group.first + 1]])
    at = group.count
    while at > 0 and w.members[group.first + at - 1] > r:
        w.members[group.first + at] = w.members[group.first + at - 1]
        at -= 1
    w.members[group.first + at] = r
    group.count += 1
    number_group(w, g)


def leave_group(w: World, r: int) -> None:
    """Route no more to a replica."""
    rep = w.replicas[r]
    if rep.slot == NONE:
        return
    g = rep.group
    group = w.groups[g]
    for i in range(rep.slot, group.count - 1):
        w.members[group.first + i] = w.members[group.first + i + 1]
    group.count -= 1
    rep.slot = NONE
    number_group(w, g)


def number_group(w: World, g: int) -> None:
    """Give the members their places and find the lightest again."""
    group = w.groups[g]
    for slot in range(group.room):
        key = NEVER
        if slot < group.count:
            rep = w.replicas[w.members[group.first + slot]]
            rep.slot, key = slot, rep.load
        w.load[group.first + slot] = key
    build_tournament(w.load, w.lightest, group.first, group.room)


# ---------------------------------------------------------------- on the way


def charge(w: World, s: int, q: int, giver: int, receiver: int) -> None:
    """Count a request on the replicas that it goes to; what is taken off again later stands in the request."""
    req = w.requests[q]
    policy = w.services[s].policy
    if policy == WEIGHTED:
        add_load(w, giver, w.replicas[giver].stride)
        req.prompt_charge = 0
    else:
        if policy == LEAST_WORK:
            req.prompt_charge = prompt_ticks(w, w.tables[w.replicas[giver].table], req.prompt)
        elif policy == LEAST_LOADED:
            req.prompt_charge = 0 if giver == receiver else 1
        else:
            req.prompt_charge = prompt_cost(w, giver, req)
        add_load(w, giver, req.prompt_charge)
    bind(w, s, q, receiver, giver == receiver)
    req.prefill_replica = giver
    w.replicas[giver].given += req.prompt


def bind(w: World, s: int, q: int, receiver: int, is_alone: bool) -> None:
    """Count a sequence on the replica that will decode it."""
    req, rep = w.requests[q], w.replicas[receiver]
    policy = w.services[s].policy
    req.replica, req.sequence_charge = receiver, 0
    if policy == WEIGHTED:
        add_load(w, receiver, 0 if is_alone else rep.stride)
        return
    req.sequence_charge = 1 if policy == LEAST_LOADED else w.tables[rep.table].sequence_work
    add_load(w, receiver, req.sequence_charge)


def route(w: World, s: int, q: int, now: int) -> bool:
    """Send or reject a request; False when it must wait at the gateway."""
    req, state = w.requests[q], w.states[0]
    if not choose_way(w, s, req):
        if may_serve(w, s, req):
            return False
        w.services[s].rejected += 1
        end_request(w, q, REJECTED, now)
        return True
    req.routed, req.way = now, state.way
    if state.way != NONE:
        take_turn(w, s, state.way)
    charge(w, s, q, state.giver, state.receiver)
    enqueue(w, state.giver, q, now)
    return True


# ---------------------------------------------------------------- the gateway


def arrive(w: World, q: int, now: int) -> None:
    """A request comes to the gateway: it goes on at once, or waits behind those that came before it."""
    s = w.requests[q].service
    if w.services[s].head != NONE or not route(w, s, q, now):
        wait_at_gateway(w, s, q, now)


def wait_at_gateway(w: World, s: int, q: int, now: int) -> None:
    """Put a request into the queue of the gateway, in order of arrival; those that begin again go far ahead."""
    service, req = w.services[s], w.requests[q]
    before, after = NONE, service.head
    if service.tail != NONE and comes_before(w, service.tail, q):
        before, after = service.tail, NONE
    while after != NONE and comes_before(w, after, q):
        before, after = after, w.requests[after].next
    req.next = after
    if before == NONE:
        service.head = q
    else:
        w.requests[before].next = q
    if after == NONE:
        service.tail = q
    service.queued += 1
    watch_patience(w, s, now)


def comes_before(w: World, a: int, b: int) -> bool:
    """True when request ``a`` arrived before ``b``."""
    first, second = w.requests[a].arrival, w.requests[b].arrival
    return first < second or (first == second and a < b)


def leave_gateway(w: World, s: int) -> int:
    """Take the first request out of the queue of the gateway."""
    service = w.services[s]
    q = service.head
    service.head = w.requests[q].next
    if service.head == NONE:
        service.tail = NONE
    service.queued -= 1
    return q


def let_in(w: World, s: int, now: int) -> None:
    """Route what waits at the gateway, as far as it goes now."""
    service = w.services[s]
    if service.head == NONE:
        return
    while service.head != NONE:
        q = service.head
        after = w.requests[q].next
        if not route(w, s, q, now):
            break
        service.head = after
        service.queued -= 1
    if service.head == NONE:
        service.tail = NONE
    watch_patience(w, s, now)


def watch_patience(w: World, s: int, now: int) -> None:
    """Put the end of the patience of whoever waits first on the clock."""
    state, service = w.states[0], w.services[s]
    at = NEVER
    if service.head != NONE and state.patience != NEVER:
        at = max(now, w.requests[service.head].arrival + state.patience)
    schedule(w, state.first_gateway + s, at)


def give_up_waiting(w: World, s: int, now: int) -> None:
    """The patience of whoever waits first is over."""
    q = leave_gateway(w, s)
    w.services[s].timed_out += 1
    end_request(w, q, TIMED_OUT, now)
    let_in(w, s, now)
    watch_patience(w, s, now)


# ---------------------------------------------------------------- computed prompts


def hand_on(w: World, q: int, now: int) -> None:
    """Send a computed prompt to its decode replica, or to another one if that one takes no more."""
    req = w.requests[q]
    s = req.service
    if req.replica == NONE or w.replicas[req.replica].slot == NONE:
        unbind(w, q)
        receiver = receiver_for(w, req)
        if receiver == NONE:
            if not has_receiver(w, req):
                strand(w, s, q)
            else:
                free_prompt(w, q, now)
                w.services[s].rejected += 1
                end_request(w, q, REJECTED, now)
            return
        bind(w, s, q, receiver, False)
    start_transfer(w, q, now)


def unbind(w: World, q: int) -> None:
    """Take a request off the load of the replica that it was to be decoded on."""
    req = w.requests[q]
    if req.replica != NONE:
        add_load(w, req.replica, -req.sequence_charge)
        req.replica, req.sequence_charge = NONE, 0


def strand(w: World, s: int, q: int) -> None:
    """Keep a computed prompt where it is until a decode replica is ready."""
    service = w.services[s]
    w.requests[q].next = NONE
    if service.stranded_head == NONE:
        service.stranded_head = q
    else:
        w.requests[service.stranded_tail].next = q
    service.stranded_tail = q


def free_prompt(w: World, q: int, now: int) -> None:
    """Free the KV room that a computed prompt holds on its prefill replica."""
    req = w.requests[q]
    giver = w.replicas[req.prefill_replica]
    release_kv(w, giver, req, req.kv)
    if not giver.is_gone:
        wake(w, req.prefill_replica, now)
