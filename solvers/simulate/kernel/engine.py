"""One engine: FIFO queue, chunked prompts, a decode batch, KV room, preemption. One model for all three roles.

A prefill replica computes one whole prompt a step; mixed ones (and decode ones that recompute a preempted sequence)
compute ``chunk_tokens`` beside each decode step. Sequences stand in ``World.leave`` by the step at which they leave,
the next one last, so nothing is touched per token. KV room is taken for the prompt at admission and grows by a token a
step; when it runs out the half-computed prompt at the head of the queue gives way first, then the sequence admitted
last, which is computed again from the start.
"""

from __future__ import annotations

from solvers.simulate.kernel.clock import put_first, schedule_replica
from solvers.simulate.kernel.curves import alike_pieces, draw, piece_ticks, segment, steps_until, time_of
from solvers.simulate.kernel.prefix import evict, find_hits, pin, unpin
from solvers.simulate.kernel.records import (
    METER_TICKS,
    NEVER,
    NONE,
    PREFILL,
    Replica,
    Request,
    Table,
    World,
)


def enqueue(w: World, r: int, q: int, now: int) -> None:
    """Take a request in; a run whose batch it might join is cut at its next step."""
    rep = w.replicas[r]
    w.requests[q].next = NONE
    was_empty = rep.head == NONE
    if was_empty:
        rep.head = q
    else:
        w.requests[rep.tail].next = q
    rep.tail = q
    rep.queued += 1
    if rep.run_steps == 0:
        if rep.is_ready:
            schedule_replica(w, r, now)
    elif was_empty and rep.run_steps > 1:
        steps = steps_until(rep, now - rep.run_start)
        if steps < rep.run_steps:
            rep.run_steps = steps
            schedule_replica(w, r, rep.run_start + time_of(rep, steps))


def wake(w: World, r: int, now: int) -> None:
    """Look at the queue again if idle, as when KV room came back."""
    rep = w.replicas[r]
    if rep.run_steps == 0 and rep.head != NONE and rep.is_ready:
        schedule_replica(w, r, now)


def meter(rep: Replica, now: int, milliwatts: int) -> None:
    """Charge the energy since the last reading, and draw ``milliwatts`` from now on."""
    rep.energy += rep.milliwatts * (now // METER_TICKS - rep.metered // METER_TICKS)
    rep.metered, rep.milliwatts = now, milliwatts


def plan(w: World, r: int, now: int) -> None:
    """At a boundary: make room, admit, choose the pieces and the length of the next run, put its end on the clock."""
    rep = w.replicas[r]
    table = w.tables[rep.table]
    is_tight = rep.active > 0 and rep.kv + rep.active > table.kv_capacity
    if is_tight:
        make_room(w, rep, table, now)
    rep.fresh, rep.chunk, rep.finishing, rep.prompt_part, rep.whole = 0, 0, 0, 0, 0
    steps = 1 if is_tight else NEVER
    if not is_tight and rep.head != NONE:
        if w.requests[rep.head].left == 0:
            join_transferred(w, r, table, now)
        if rep.head != NONE and w.requests[rep.head].left > 0:
            steps = plan_prompts(w, rep, table, now)
    if rep.active > 0:
        steps = min(steps, plan_decode(w, rep, table))
    elif rep.chunk > 0:
        rep.step, rep.growth = 0, 0
    else:
        rep.run_start, rep.run_steps = now, 0
        meter(rep, now, table.idle_milliwatts)
        schedule_replica(w, r, NEVER)
        return
    rep.step = max(1, rep.step + rep.prompt_part)
    rep.run_start, rep.run_steps = now, steps
    milliwatts = draw(w, table, rep.active, rep.chunk)
    if milliwatts != rep.milliwatts:
        meter(rep, now, milliwatts)
    schedule_replica(w, r, now + time_of(rep, steps))


def plan_decode(w: World, rep: Replica, table: Table) -> int:
    """Set step and growth from the decode table; return how many steps this line and this batch hold for."""
    batch, context = rep.active, rep.context
    base = table.rows + batch * table.row_knots
    i = segment(w, base, table.row_knots, context)
    rep.step = w.values[i] + w.slopes[i] * (context - w.knots[i])
    rep.growth = w.slopes[i] * batch
    steps = min(w.leave[rep.row + batch - 1] - rep.steps, (table.kv_capacity - rep.kv) // batch)
    rep.is_beyond = 1 if i + 1 == base + table.row_knots else 0
    return steps if rep.is_beyond else min(steps, (w.knots[i + 1] - context) // batch + 1)


def admit(w: World, rep: Replica, table: Table, req: Request, now: int) -> bool:
    """Reserve KV room and a place in the batch; False when it does not fit now."""
    if req.kv > 0:
        return True
    if rep.held >= table.max_batch:
        return False
    need, hits, unused = req.prompt + req.emitted, 0, 0
    if rep.cache != NONE and req.path != NONE and req.left > 0:
        hits, unused = find_hits(w, rep, req.path)
    block = w.states[0].block_tokens
    found = hits * block
    if rep.kv + unused * block + need - found + rep.active + 1 > table.kv_capacity:
        return False
    if hits > 0:
        pin(w, rep, req.path, hits)
        req.left -= found
        rep.cached_tokens += found
    rep.kv += need - found
    if rep.spare > 0:
        evict(w, rep, table.kv_capacity)
    rep.held += 1
    req.kv, req.hits, req.order = need, hits, rep.orders
    rep.orders += 1
    if req.prefill_start == NONE:
        req.prefill_start, req.cached = now, found
    return True


def release_kv(w: World, rep: Replica, req: Request, context: int) -> None:
    """Free the KV room of a request that holds ``context`` tokens; shared blocks stay cached."""
    rep.kv -= context - req.hits * w.states[0].block_tokens
    if req.hits > 0:
        unpin(w, rep, req.path, req.hits)
    req.kv, req.hits = 0, 0


def join_transferred(w: World, r: int, table: Table, now: int) -> None:
    """Let sequences whose prompt came over a link into the batch, while they fit."""
    rep = w.replicas[r]
    rep.fresh_head = rep.head
    while rep.head != NONE and w.requests[rep.head].left == 0:
        q = rep.head
        if not admit(w, rep, table, w.requests[q], now):
            return
        rep.head = w.requests[q].next
        rep.queued -= 1
        rep.fresh += 1
        join(w, rep, q)


def join(w: World, rep: Replica, q: int) -> None:
    """A sequence starts to decode at this boundary: put it where the step at which it leaves belongs."""
    req = w.requests[q]
    leaves = rep.steps + req.output - req.emitted
    at = rep.row + rep.active
    while at > rep.row and (w.leave[at - 1] < leaves or (w.leave[at - 1] == leaves and w.member[at - 1] < q)):
        w.leave[at], w.member[at] = w.leave[at - 1], w.member[at - 1]
        at -= 1
    w.leave[at], w.member[at] = leaves, q
    rep.active += 1
    rep.context += req.kv
    req.late_at_join = rep.late_steps


def plan_prompts(w: World, rep: Replica, table: Table, now: int) -> int:
    """Choose the prompt pieces of the next run; return the steps for which they stay alike."""
    head = w.requests[rep.head]
    if not admit(w, rep, table, head, now):
        return NEVER
    room = NEVER if rep.role == PREFILL else table.chunk_tokens
    if head.left <= room:
        fill_step(w, rep, table, now, room)
        return 1
    done = head.kv - head.left
    cached = head.hits * w.states[0].block_tokens
    rep.chunk = room
    rep.prompt_part = piece_ticks(w, table, cached, done, room)
    if cached > 0 or done == 0:  # the first piece pays for more than its tokens
        return 1
    return max(1, min(alike_pieces(w, table, done, room), (head.left - 1) // room))


def fill_step(w: World, rep: Replica, table: Table, now: int, room: int) -> None:
    """Fill one step with the tail of a prompt and the next ones; a prompt that joins others goes on where they end."""
    block = w.states[0].block_tokens
    q = rep.head
    while q != NONE and room > 0:
        req = w.requests[q]
        if req.left == 0 or not admit(w, rep, table, req, now):
            return
        take, done = min(req.left, room), req.kv - req.left
        cached = req.hits * block if rep.chunk == 0 else 0
        rep.prompt_part += piece_ticks(w, table, cached, max(rep.chunk, done), take)
        room -= take
        rep.chunk += take
        if take < req.left:
            return
        rep.finishing += 1
        rep.far_prompts += 1 if req.kv > table.last_prompt else 0
        if rep.role == PREFILL:
            return
        q = req.next


def make_room(w: World, rep: Replica, table: Table, now: int) -> None:
    """Preempt until every sequence can gain a token."""
    while rep.active > 0 and rep.kv + rep.active > table.kv_capacity:
        if rep.head != NONE and w.requests[rep.head].kv > 0:
            head = w.requests[rep.head]
            give_up(w, rep, head, head.kv)
        else:
            preempt_youngest(w, rep, now)


def give_up(w: World, rep: Replica, req: Request, context: int) -> None:
    """Take a request's KV room away; it will be computed again."""
    release_kv(w, rep, req, context)
    rep.held -= 1
    req.left = req.prompt + req.emitted
    req.preemptions += 1
    rep.preemptions += 1


def preempt_youngest(w: World, rep: Replica, now: int) -> None:
    """Take the sequence admitted last out of the batch and put it first in the queue."""
    last = rep.row + rep.active
    at = rep.row
    for i in range(rep.row + 1, last):
        if w.requests[w.member[i]].order > w.requests[w.member[at]].order:
            at = i
    q = w.member[at]
    req = w.requests[q]
    req.emitted = req.output - (w.leave[at] - rep.steps)
    for i in range(at, last - 1):
        w.leave[i], w.member[i] = w.leave[i + 1], w.member[i + 1]
    rep.active -= 1
    context = req.prompt + req.emitted
    rep.context -= context
    req.late_gaps += rep.late_steps - req.late_at_join
    req.last_token = now
    give_up(w, rep, req, context)
    put_first(w, rep, q)
