"""Writing down what an engine did: steps, tokens, late gaps, first tokens, energy; changing its speed in mid-run."""

from __future__ import annotations

from solvers.simulate.kernel.clock import schedule_replica
from solvers.simulate.kernel.curves import draw, steps_until, time_of
from solvers.simulate.kernel.engine import meter
from solvers.simulate.kernel.prefix import evict
from solvers.simulate.kernel.records import NEVER, NONE, Replica, World


def account(w: World, r: int, steps: int) -> None:
    """Write down the next ``steps`` of the run of a replica."""
    rep = w.replicas[r]
    batch = rep.active
    took = time_of(rep, steps)
    rep.busy += took
    if batch > 0:
        log_run(w, r, steps)
        if rep.step + rep.growth * steps > rep.late_limit:
            count_late(w, rep, steps)
        if rep.fresh > 0:
            tell_first_tokens(w, r)
        rep.far_steps += steps * rep.is_beyond
        tokens = batch * steps
        rep.steps += steps
        rep.context += tokens
        rep.kv += tokens
        rep.output_tokens += tokens
        if rep.spare > 0:
            evict(w, rep, w.tables[rep.table].kv_capacity)
    if rep.chunk > 0:
        rep.prompt_tokens += rep.chunk * steps
        if rep.finishing == 0:
            w.requests[rep.head].left -= rep.chunk * steps
    rep.run_start += took
    rep.step += steps * rep.growth
    rep.run_steps -= steps


def log_run(w: World, r: int, steps: int) -> None:
    """Add a row to the log of runs."""
    rep, state = w.replicas[r], w.states[0]
    run = w.runs[state.runs]
    state.runs += 1
    run.replica, run.start, run.step, run.growth = r, rep.run_start, rep.step, rep.growth
    run.steps, run.batch, run.fresh = steps, rep.active, rep.fresh


def log_gap(w: World, r: int, start: int, gap: int) -> None:
    """Add a single gap, as across a preemption, to the log of runs."""
    state = w.states[0]
    run = w.runs[state.runs]
    state.runs += 1
    run.replica, run.start, run.step, run.growth = r, start, gap, 0
    run.steps, run.batch, run.fresh = 1, 1, 0


def count_late(w: World, rep: Replica, steps: int) -> None:
    """Count steps above the limit; the first one of fresh sequences is no gap of theirs."""
    over = rep.late_limit - rep.step
    late = 0
    if over < 0:
        late = steps
        rep.late_gaps -= rep.fresh
        q = rep.fresh_head
        for _ in range(rep.fresh):
            w.requests[q].late_at_join += 1
            q = w.requests[q].next
    elif rep.growth > 0:
        late = max(0, steps - 1 - over // rep.growth)
    rep.late_steps += late
    rep.late_gaps += late * rep.active


def tell_first_tokens(w: World, r: int) -> None:
    """The first step of the fresh sequences yields their first tokens."""
    rep = w.replicas[r]
    at = rep.run_start + rep.step
    q = rep.fresh_head
    for _ in range(rep.fresh):
        tell_first_token(w, q, at)
        q = w.requests[q].next
    rep.fresh = 0


def tell_first_token(w: World, q: int, at: int) -> None:
    """A request gets its first token."""
    req, state = w.requests[q], w.states[0]
    req.first_token = at
    if state.record_firsts:
        row = w.firsts[state.firsts]
        state.firsts += 1
        row.service, row.replica = req.service, req.prefill_replica
        row.waited, row.in_engine = at - req.arrival, req.prefill_end - req.routed


def settle(w: World, r: int, now: int) -> None:
    """Bring energy and token counts up to now without touching what is to come."""
    rep = w.replicas[r]
    meter(rep, now, rep.milliwatts)
    if rep.run_steps == 0:
        return
    elapsed = now - rep.run_start
    whole = steps_until(rep, elapsed)
    if time_of(rep, whole) > elapsed:
        whole -= 1
    if 0 < whole < rep.run_steps:
        account(w, r, whole)


def change_table(w: World, r: int, t: int, now: int) -> None:
    """Give a replica the curves of another power cap; the rest of the step under way is stretched in proportion."""
    rep = w.replicas[r]
    old, new = w.tables[rep.table], w.tables[t]
    settle(w, r, now)
    rep.table = t
    meter(rep, now, draw(w, new, rep.active, rep.chunk) if rep.run_steps > 0 else new.idle_milliwatts)
    if rep.run_steps == 0 or w.due[w.states[0].first_replica + r] <= now:
        return
    elapsed = now - rep.run_start
    whole = rep.whole if rep.whole > 0 else rep.step
    prompt_part = rep.prompt_part * old.prefill_speed // new.prefill_speed
    decode_part = (whole - rep.prompt_part) * old.decode_speed // new.decode_speed
    rest = max(1, int((rep.step - elapsed) * ((prompt_part + decode_part) / whole)))
    rep.prompt_part, rep.whole = prompt_part, prompt_part + decode_part
    rep.step, rep.run_steps = elapsed + rest, 1
    schedule_replica(w, r, now + rest)


def abandon(w: World, r: int, now: int) -> None:
    """Give up everything on a replica at once; the steps done until now still count. What it held is in ``lost``."""
    rep, state = w.replicas[r], w.states[0]
    settle(w, r, now)
    meter(rep, now, 0)
    q = rep.head
    while q != NONE:
        w.lost[state.lost] = q
        state.lost += 1
        q = w.requests[q].next
    for i in range(rep.row, rep.row + rep.active):
        w.lost[state.lost] = w.member[i]
        state.lost += 1
    rep.head, rep.queued, rep.active, rep.run_steps = NONE, 0, 0, 0
    rep.is_ready, rep.is_gone = 0, 1
    schedule_replica(w, r, NEVER)
