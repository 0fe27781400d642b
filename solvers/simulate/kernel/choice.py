"""Which way a request goes: the replicas that compute its prompt and decode it.

A request has two ways to its end: one mixed replica, or a *chain* of a prefill and a decode replica, both bound and
charged at once. Ways are compared by the loads of their replicas, which the policy of the service defines:

- least work: ticks of outstanding work, prompts by their curve and sequences by a nominal output;
- least loaded: requests outstanding;
- weighted: what each replica was given so far, over its weight;
- prefix-aware: least work, after the prompt is added as far as the replica's cache does not hold it; among equals the
  replica that was given the fewest prompt tokens, so that caches fill evenly.

Among equals the first one is taken, and a mixed replica before a chain.

A service may say which of its domains of prefill replicas hand prompts to which of decode replicas, and how much each
such *way* has of its requests; mixed replicas are a way too. Requests then take turns over the ways by their shares
(those whose next turn comes first; what is closed for a time does not catch up), and the loads decide inside a way.
"""

from __future__ import annotations

from solvers.simulate.kernel.curves import behind_ticks, steps_until, time_of
from solvers.simulate.kernel.prefix import evict, find_hits
from solvers.simulate.kernel.records import (
    DECODE,
    MIXED,
    NEVER,
    NONE,
    PREFILL,
    PREFIX_AWARE,
    WEIGHTED,
    Request,
    Service,
    Way,
    World,
)


def fits(w: World, r: int, req: Request) -> bool:
    """True when an otherwise empty replica could serve the request to the end of its part."""
    rep = w.replicas[r]
    grown = 1 if rep.role == PREFILL else req.output
    return req.prompt + grown <= w.tables[rep.table].kv_capacity


def score(w: World, r: int, req: Request) -> int:
    """Load of a replica as the policy compares it for this request."""
    rep = w.replicas[r]
    if rep.role == DECODE or w.services[rep.service].policy != PREFIX_AWARE:
        return rep.load
    return rep.load + prompt_cost(w, r, req)


def prompt_cost(w: World, r: int, req: Request) -> int:
    """Ticks of a prompt on a replica, as far as its cache does not hold it now."""
    rep = w.replicas[r]
    table = w.tables[rep.table]
    hits = 0
    if rep.cache != NONE and req.path != NONE:
        if rep.spare > 0 and rep.active > 0 and rep.run_steps > 1:
            evict_until_now(w, r)
        hits, _ = find_hits(w, rep, req.path)
    done = hits * w.states[0].block_tokens
    return behind_ticks(w, table, done, req.prompt - done)


def evict_until_now(w: World, r: int) -> None:
    """Drop the blocks that the steps done so far in a run have pushed out, which it would find only at its end.

    A step that ends now is done if the replica's turn at this tick is over.
    """
    rep, state = w.replicas[r], w.states[0]
    elapsed = state.now - rep.run_start
    done = steps_until(rep, elapsed)
    if time_of(rep, done) > elapsed or state.first_replica + r >= state.entity:
        done -= 1
    grown = rep.active * min(done, rep.run_steps - 1)
    rep.kv += grown
    evict(w, rep, w.tables[rep.table].kv_capacity)
    rep.kv -= grown


def lightest_of(w: World, g: int, req: Request, queue_limit: int) -> int:
    """Member of a group with the least score that fits and whose queue is shorter than the limit, or none."""
    group = w.groups[g]
    if group.count == 0:
        return NONE
    is_aware = group.role != DECODE and w.services[group.service].policy == PREFIX_AWARE
    if not is_aware:
        r = w.members[group.first + w.lightest[2 * group.first + 1]]
        if w.replicas[r].queued < queue_limit and fits(w, r, req):
            return r
    best, least, fewest = NONE, NEVER, 0
    for slot in range(group.count):
        r = w.members[group.first + slot]
        rep = w.replicas[r]
        if rep.queued < queue_limit and fits(w, r, req):
            mine, given = rep.load, 0
            if is_aware:
                mine, given = mine + prompt_cost(w, r, req), rep.given
            if mine < least or (mine == least and given < fewest):
                best, least, fewest = r, mine, given
    return best


def choose_way(w: World, s: int, req: Request) -> bool:
    """Find where to compute the prompt and where to decode; False when every way is full or there is none."""
    state, service = w.states[0], w.services[s]
    limit, home = state.queue_limit, service.home
    state.way = NONE
    if service.first_way != NONE:
        return choose_pair(w, service, req)
    alone = lightest_of(w, home + MIXED, req, limit)
    receiver = lightest_of(w, home + DECODE, req, limit)
    giver = lightest_of(w, home + PREFILL, req, limit) if receiver != NONE else NONE
    state.giver, state.receiver = giver, receiver
    if giver == NONE or receiver == NONE:
        state.giver, state.receiver = alone, alone
        return alone != NONE
    if alone != NONE:
        ahead = score(w, giver, req)
        if service.policy != WEIGHTED:
            ahead += score(w, receiver, req)
        if score(w, alone, req) <= ahead:
            state.giver, state.receiver = alone, alone
    return True


def any_fits(w: World, g: int, req: Request) -> bool:
    """True when a member of the group could hold the request."""
    group = w.groups[g]
    for slot in range(group.count):  # noqa: SIM110  (a generator does not compile)
        if fits(w, w.members[group.first + slot], req):
            return True
    return False


def may_serve(w: World, s: int, req: Request) -> bool:
    """False when the request is too large for every way; with no way at all it may wait for one, unless the prefill
    side is there and too small.
    """
    service = w.services[s]
    if service.first_way != NONE:
        return may_serve_pair(w, service, req)
    home = service.home
    mixed, prefill, decode = w.groups[home + MIXED], w.groups[home + PREFILL], w.groups[home + DECODE]
    if mixed.count > 0 or (prefill.count > 0 and decode.count > 0):
        by_chain = any_fits(w, home + PREFILL, req) and any_fits(w, home + DECODE, req)
        return by_chain or any_fits(w, home + MIXED, req)
    return prefill.count == 0 or any_fits(w, home + PREFILL, req)


# ---------------------------------------------------------------- services whose domains pair


def turn_of(service: Service, way: Way) -> int:
    """When a way has its next turn; one without a share only after all others."""
    return max(way.turn, service.turn) if way.stride > 0 else NEVER


def take_turn(w: World, s: int, k: int) -> None:
    """Count a request on its way."""
    way, service = w.ways[k], w.services[s]
    if way.stride > 0:
        service.turn = turn_of(service, way)
        way.turn = service.turn + way.stride


def choose_pair(w: World, service: Service, req: Request) -> bool:
    """Find the open way whose turn comes first, and the lightest replicas on it."""
    state = w.states[0]
    limit, soonest, k = state.queue_limit, NEVER, service.first_way
    while k != NONE:
        way = w.ways[k]
        turn = turn_of(service, way)
        if state.way == NONE or turn < soonest:
            giver = lightest_of(w, way.giver, req, limit)
            receiver = giver
            if giver != NONE and way.receiver != way.giver:
                receiver = lightest_of(w, way.receiver, req, limit)
            if receiver != NONE:
                state.way, state.giver, state.receiver, soonest = k, giver, receiver, turn
        k = way.next
    return state.way != NONE


def may_serve_pair(w: World, service: Service, req: Request) -> bool:
    """As ``may_serve``, over the ways: one must hold the request on both its sides."""
    is_whole, is_begun, has_room, k = False, False, False, service.first_way
    while k != NONE:
        way = w.ways[k]
        if w.groups[way.giver].count > 0:
            is_begun = True
            begins = any_fits(w, way.giver, req)
            has_room = has_room or begins
            if w.groups[way.receiver].count > 0:
                is_whole = True
                if begins and any_fits(w, way.receiver, req):
                    return True
        k = way.next
    return not is_whole and (has_room or not is_begun)


def receiver_for(w: World, req: Request) -> int:
    """Decode replica for a prompt that is computed, the lightest one on the way that has its turn first, or none."""
    service = w.services[req.service]
    if service.first_way == NONE:
        return lightest_of(w, service.home + DECODE, req, NEVER)
    found, soonest, k = NONE, NEVER, service.first_way
    while k != NONE:
        way = w.ways[k]
        turn = turn_of(service, way)
        if way.giver == w.replicas[req.prefill_replica].group and (found == NONE or turn < soonest):
            receiver = lightest_of(w, way.receiver, req, NEVER)
            if receiver != NONE:
                found, soonest, req.way = receiver, turn, k
        k = way.next
    if found != NONE:
        take_turn(w, req.service, req.way)
    return found


def has_receiver(w: World, req: Request) -> bool:
    """True when there is a decode replica, whatever its room, that can take what the prefill replica computed."""
    service = w.services[req.service]
    if service.first_way == NONE:
        return w.groups[service.home + DECODE].count > 0
    k = service.first_way
    while k != NONE:
        way = w.ways[k]
        if way.giver == w.replicas[req.prefill_replica].group and w.groups[way.receiver].count > 0:
            return True
        k = way.next
    return False
