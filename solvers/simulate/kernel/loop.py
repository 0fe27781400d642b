"""The event loop, and everything that happens between its calls: replicas come, drain and fail, caps change.

``run`` is the one way in, so that compiling it compiles everything.
"""

from __future__ import annotations

from solvers.simulate.kernel.accounts import (
    abandon,
    account,
    change_table,
    log_gap,
    settle,
    tell_first_token,
)
from solvers.simulate.kernel.clock import end_request, schedule, take_first
from solvers.simulate.kernel.engine import enqueue, join, plan, release_kv
from solvers.simulate.kernel.links import cut_transfers, land
from solvers.simulate.kernel.prefix import evict, share
from solvers.simulate.kernel.records import FINISHED, NEVER, NONE, PREFILL, Replica, World
from solvers.simulate.kernel.routing import (
    add_load,
    arrive,
    free_prompt,
    give_up_waiting,
    hand_on,
    join_group,
    leave_group,
    let_in,
    strand,
    unbind,
    watch_patience,
)

ADVANCE, READY, DRAIN, LOSE, BEGIN_AGAIN, SETTLE, SET_TABLE = 0, 1, 2, 3, 4, 5, 6
DONE, LOG_FULL = 0, 1


def run(w: World, what: int, which: int, value: int) -> int:
    """Do one thing, now.

    ``ADVANCE`` up to tick ``value``, ``DONE`` or as far as the log goes; ``READY``, ``DRAIN`` and ``LOSE``
    replica ``which``; ``SETTLE`` all of them; give one table ``value`` (``SET_TABLE``); let the first
    ``value`` requests in ``lost`` begin again after replica ``which`` was lost.
    """
    now = w.states[0].now
    if what == ADVANCE:
        return advance(w, value)
    w.states[0].entity = w.states[0].entities  # everything of this tick is over
    if what == READY:
        make_ready(w, which, now)
    elif what == DRAIN:
        w.replicas[which].is_draining = 1
        leave_group(w, which)
        let_in(w, w.replicas[which].service, now)
    elif what == LOSE:
        lose(w, which, now)
    elif what == BEGIN_AGAIN:
        begin_again(w, which, value, now)
    elif what == SETTLE:
        for r in range(w.states[0].replicas):
            settle(w, r, now)
    else:
        change_table(w, which, value, now)
    return DONE


def advance(w: World, until: int) -> int:
    """Process every event up to a tick, that one included."""
    state = w.states[0]
    while state.runs < state.runs_room and state.firsts < state.runs_room:
        entity = w.soonest[1]
        at = w.due[entity]
        if at > until or at == NEVER:
            return DONE
        state.now, state.entity = at, entity
        state.events += 1
        if entity >= state.first_gateway:
            give_up_waiting(w, entity - state.first_gateway, at)
        elif entity >= state.first_replica:
            boundary(w, entity - state.first_replica, at)
        elif entity >= state.first_link:
            deliver(w, entity - state.first_link, at)
        elif entity > 0:
            ask(w, entity - state.first_client, at)
        else:
            next_arrival(w, at)
    return LOG_FULL


def next_arrival(w: World, now: int) -> None:
    """The next request of the trace arrives."""
    state = w.states[0]
    q = state.next_arrival
    state.next_arrival += 1
    schedule(w, 0, w.requests[q + 1].arrival if q + 1 < state.arrivals else NEVER)
    w.services[w.requests[q].service].submitted += 1
    arrive(w, q, now)


def ask(w: World, client: int, now: int) -> None:
    """A client asks the next request of its source."""
    source = w.sources[w.clients[client].source]
    schedule(w, w.states[0].first_client + client, NEVER)
    if source.next == source.end:
        return
    q = source.next
    source.next += 1
    w.requests[q].arrival, w.requests[q].client = now, client
    w.services[w.requests[q].service].submitted += 1
    arrive(w, q, now)


def deliver(w: World, link: int, now: int) -> None:
    """A leg of a transfer is over; after the last one the prompt comes to its decode replica."""
    q = land(w, link, now)
    if q == NONE:
        return
    w.requests[q].transferred = now
    free_prompt(w, q, now)
    enqueue(w, w.requests[q].replica, q, now)


# ---------------------------------------------------------------- a boundary of a replica


def boundary(w: World, r: int, now: int) -> None:
    """A run ended, or a replica is to look at its queue, or it is ready."""
    rep = w.replicas[r]
    if not rep.is_ready:
        make_ready(w, r, now)
        return
    was_full = rep.queued >= w.states[0].queue_limit
    if rep.run_steps > 0:
        finish_run(w, r, now)
    plan(w, r, now)
    if was_full and rep.queued < w.states[0].queue_limit:
        let_in(w, rep.service, now)


def finish_run(w: World, r: int, now: int) -> None:
    """Close the run that ends now: sequences leave, prompts are computed."""
    rep = w.replicas[r]
    finishing, rest = rep.finishing, rep.chunk
    account(w, r, rep.run_steps)
    while rep.active > 0 and w.leave[rep.row + rep.active - 1] == rep.steps:
        rep.active -= 1
        q = w.member[rep.row + rep.active]
        req = w.requests[q]
        rep.context -= req.prompt + req.output
        req.late_gaps += rep.late_steps - req.late_at_join
        finish(w, rep, r, q, now)
    if finishing > 0:
        for _ in range(finishing):
            q = take_first(w, rep)
            rest -= w.requests[q].left
            w.requests[q].left = 0
            prefilled(w, rep, r, q, now)
        if rest > 0:
            w.requests[rep.head].left -= rest
    rep.chunk, rep.finishing = 0, 0


def finish(w: World, rep: Replica, r: int, q: int, now: int) -> None:
    """A request has its last token."""
    req, service = w.requests[q], w.services[rep.service]
    release_kv(w, rep, req, req.prompt + req.output)
    rep.held -= 1
    add_load(w, r, -req.sequence_charge)
    service.finished += 1
    service.prompt_tokens += req.prompt
    service.output_tokens += req.output
    end_request(w, q, FINISHED, now)


def prefilled(w: World, rep: Replica, r: int, q: int, now: int) -> None:
    """A prompt is computed: its blocks are cached, and it is handed on or starts to decode here."""
    req = w.requests[q]
    if req.prefill_end == NONE:
        req.prefill_end = now
        add_load(w, r, -req.prompt_charge)
    if rep.cache != NONE and req.path != NONE:
        req.hits = share(w, rep, req.path, req.hits)
    if rep.role == PREFILL:
        rep.held -= 1  # its KV cache stays until it is transferred
        hand_on(w, q, now)
        return
    req.emitted += 1
    req.kv += 1
    rep.kv += 1
    if rep.spare > 0:
        evict(w, rep, w.tables[rep.table].kv_capacity)
    rep.output_tokens += 1
    token_of_prompt(w, rep, r, q, now)
    if req.emitted == req.output:
        finish(w, rep, r, q, now)
    else:
        join(w, rep, q)


def token_of_prompt(w: World, rep: Replica, r: int, q: int, now: int) -> None:
    """The last piece yields a token: the first one, or the one after a preemption, a single long gap."""
    req = w.requests[q]
    if req.first_token == NONE:
        tell_first_token(w, q, now)
        return
    gap = now - req.last_token
    log_gap(w, r, req.last_token, gap)
    if gap > rep.late_limit:
        rep.late_gaps += 1
        req.late_gaps += 1


# ---------------------------------------------------------------- replicas come and go


def make_ready(w: World, r: int, now: int) -> None:
    """A replica is ready: prompts without a decode replica go on, then those who wait at the gateway."""
    rep = w.replicas[r]
    rep.is_ready = 1
    schedule(w, w.states[0].first_replica + r, NEVER)
    if rep.is_draining:
        return
    join_group(w, r)
    service = w.services[rep.service]
    q = service.stranded_head
    service.stranded_head, service.stranded_tail = NONE, NONE
    while q != NONE:
        after = w.requests[q].next
        hand_on(w, q, now)
        q = after
    let_in(w, rep.service, now)


def lose(w: World, r: int, now: int) -> None:
    """A replica is gone at once; what it held, also on links and stranded, stands in ``lost``, in no order."""
    state, rep = w.states[0], w.replicas[r]
    state.lost = 0
    leave_group(w, r)
    abandon(w, r, now)
    cut_transfers(w, r, now)
    service = w.services[rep.service]
    q = service.stranded_head
    service.stranded_head, service.stranded_tail = NONE, NONE
    while q != NONE:
        after = w.requests[q].next
        if w.requests[q].prefill_replica == r:
            w.lost[state.lost] = q
            state.lost += 1
        else:
            strand(w, rep.service, q)
        q = after


def begin_again(w: World, r: int, count: int, now: int) -> None:
    """Requests whose replica was lost come to the gateway again, with their old arrival."""
    s = w.replicas[r].service
    w.services[s].rerouted += count
    for i in range(count):
        q = w.lost[i]
        if w.requests[q].legs == NONE:  # it was on a link: both ends forget it
            w.requests[q].legs = 0
            free_prompt(w, q, now)
        unbind(w, q)
        restart(w, q)
        arrive(w, q, now)
    let_in(w, s, now)
    watch_patience(w, s, now)


def restart(w: World, q: int) -> None:
    """Forget all progress of a request."""
    req = w.requests[q]
    req.left, req.emitted, req.kv, req.hits, req.order = req.prompt, 0, 0, 0, 0
    req.prefill_start, req.prefill_end, req.transferred, req.first_token = NONE, NONE, NONE, NONE
    req.last_token, req.routed, req.prefill_replica, req.replica = NONE, NONE, NONE, NONE
    req.way = NONE
    req.late_at_join, req.late_gaps, req.prompt_charge, req.sequence_charge, req.cached = 0, 0, 0, 0, 0
    req.reroutes += 1
