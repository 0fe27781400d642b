"""One simulated engine: FIFO queue, chunked prompts, a decode batch, KV room, power. One model for all three roles.

A *run* is ``k`` steps of an unchanged batch; step ``i`` takes ``step + i * growth`` ticks because every sequence gains
a token, so the end of step ``k`` is ``k * step + growth * k * (k - 1) / 2`` and nothing is touched per token. What a
step costs: the decode table at (batch, mean context) plus the increments of the prefill curve for the prompt pieces in
it; a prompt that joins others in a step goes on where they end on the curve. A prefill replica computes one whole
prompt a step; mixed ones (and decode ones that recompute a preempted sequence) compute ``prefill_chunk_tokens`` beside
each decode step.

KV cache is taken for the prompt at admission and grows by a token a step; when it runs out the half-computed prompt
at the head of the queue gives way first, then the sequence admitted last, which is computed again from the start.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from math import sqrt
from typing import TypeAlias

from solvers.engine import Role
from solvers.simulate.results import GapHistogram, LiveRequest, ReplicaView
from solvers.simulate.tables import NEVER, TICKS_PER_S, EngineTables

WHOLE_PROMPT_TOKENS = 1 << 60

FirstTokens: TypeAlias = deque[tuple[str, int, int, int]]
"""(service, index of the prompt's replica, ticks from arrival, ticks from routing to the end of the prompt)."""


class Replica:
    """State of one engine; the fleet calls it at events and puts ``due`` on its clock."""

    __slots__ = (
        "active", "busy", "chunk", "chunk_tokens", "context", "due", "energy", "extrapolated_prompts",
        "extrapolated_steps", "finishing", "fresh", "gaps", "growth", "held", "index", "is_beyond_table", "is_draining",
        "is_ready", "kv", "late_limit", "late_steps", "link_free", "loads", "milliwatts", "orders",
        "output_tokens", "preemptions", "prompt_tokens", "queue", "replica_id", "role", "run_start", "run_steps",
        "service", "slot", "started", "step", "steps", "tables",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        replica_id: str,
        service: str,
        role: Role,
        tables: EngineTables,
        *,
        now: int,
        late_limit: int,
        started: FirstTokens,
    ) -> None:
        self.index, self.replica_id, self.service, self.role, self.tables = index, replica_id, service, role, tables
        self.chunk_tokens = WHOLE_PROMPT_TOKENS if role is Role.PREFILL else tables.chunk_tokens
        self.queue: deque[LiveRequest] = deque()
        self.active: list[tuple[int, int, LiveRequest]] = []  # (-step to leave at, index, request): last leaves first
        self.is_ready = self.is_draining = False
        self.loads, self.slot = [0], 0  # outstanding work in ticks; the list is shared with the routing group
        self.context = self.kv = self.held = self.steps = self.orders = self.preemptions = 0
        self.run_start, self.run_steps, self.step, self.growth = now, 0, 0, 0
        self.chunk = self.finishing = self.fresh = 0
        self.started = started
        self.is_beyond_table = False
        self.due, self.link_free = NEVER, now
        self.milliwatts, self.energy, self.busy = tables.idle_milliwatts, 0, 0
        self.gaps, self.late_limit, self.late_steps = GapHistogram(), late_limit, 0
        self.prompt_tokens = self.output_tokens = self.extrapolated_steps = self.extrapolated_prompts = 0

    # ------------------------------------------------------------------ work arrives

    def prompt_work(self, request: LiveRequest) -> int:
        """Ticks of work that a prompt is to the router."""
        return self.tables.prefill_line.at(request.prompt)

    def enqueue(self, request: LiveRequest, now: int) -> bool:
        """Take a request in; True when ``due`` moved forward."""
        queue = self.queue
        queue.append(request)
        if self.run_steps == 0:
            if self.is_ready and self.due != now:
                self.due = now
                return True
        elif self.run_steps > 1 and len(queue) == 1:
            steps = self._steps_until(now - self.run_start)
            if steps < self.run_steps:
                self.run_steps = steps
                self.due = self.run_start + self._time_of(steps)
                return True
        return False

    def wake(self, now: int) -> bool:
        """Look at the queue again if idle, as when KV room came back; True when ``due`` moved forward."""
        if self.run_steps == 0 and self.queue and self.is_ready and self.due != now:
            self.due = now
            return True
        return False

    def _time_of(self, steps: int) -> int:
        return steps * self.step + self.growth * (steps * (steps - 1) // 2)

    def _steps_until(self, elapsed: int) -> int:
        """Fewest steps (at least 1) that last ``elapsed`` ticks; the float guess is corrected by comparing."""
        step, growth = self.step, self.growth
        if growth:
            half = step / growth - 0.5
            guess = int(2.0 * (elapsed / growth) / (half + sqrt(half * half + 2.0 * elapsed / growth)))
        else:
            guess = elapsed // step
        steps = max(1, guess)
        while steps > 1 and self._time_of(steps - 1) >= elapsed:
            steps -= 1
        while self._time_of(steps) < elapsed:
            steps += 1
        return steps

    # ------------------------------------------------------------------ a run begins

    def plan(self, now: int) -> None:
        """At a boundary: make room, admit, choose the pieces and the length of the next run, set ``due``."""
        if self.run_steps == 0:
            self._charge(now)
        queue, active, tables = self.queue, self.active, self.tables
        tight = bool(active) and self.kv + len(active) > tables.kv_capacity and self._make_room(now)
        fresh = self._join_transferred(now) if not tight and queue and queue[0].left == 0 else None
        self.chunk = self.finishing = 0
        steps, cost = (1, 0) if tight else (NEVER, 0)
        if queue and not tight and queue[0].left:
            steps, cost = self._plan_chunk(now)
        batch = len(active)
        if batch:
            steps = min(steps, self._plan_decode(batch))
        elif self.chunk:
            self.step, self.growth = 0, 0
        else:
            self._rest(now)
            return
        self.step = max(1, self.step + cost)
        self.run_start, self.run_steps = now, steps
        self.milliwatts = tables.milliwatts(batch, prefilling=self.chunk > 0)
        if fresh:
            self._mark_first_tokens(fresh)
        self.due = now + self._time_of(steps)

    def _rest(self, now: int) -> None:
        self.run_start, self.run_steps, self.due = now, 0, NEVER
        self.milliwatts = self.tables.idle_milliwatts

    def _plan_decode(self, batch: int) -> int:
        """Set step and growth from the decode table; return how many steps this line and this batch hold for."""
        row = self.tables.row(batch)
        knots, context = row.knots, self.context
        i = bisect_right(knots, context) - 1
        slope = row.slopes[i]
        self.step, self.growth = row.values[i] + slope * (context - knots[i]), slope * batch
        steps = min(-self.active[-1][0] - self.steps, (self.tables.kv_capacity - self.kv) // batch)
        self.is_beyond_table = i + 1 == len(knots)
        return steps if self.is_beyond_table else min(steps, (knots[i + 1] - context) // batch + 1)

    def _admit(self, request: LiveRequest, now: int) -> bool:
        """Reserve KV room and a place in the batch; False when it does not fit now."""
        if request.kv:
            return True
        need = request.prompt + request.emitted
        tables = self.tables
        if self.held >= tables.max_batch or self.kv + need + len(self.active) + 1 > tables.kv_capacity:
            return False
        self.kv += need
        self.held += 1
        request.kv = need
        request.order = self.orders
        self.orders += 1
        if request.prefill_start < 0:
            request.prefill_start = now
        return True

    def _join_transferred(self, now: int) -> list[LiveRequest]:
        queue = self.queue
        fresh: list[LiveRequest] = []
        while queue and queue[0].left == 0 and self._admit(queue[0], now):
            fresh.append(queue.popleft())
            self._join(fresh[-1])
        return fresh

    def _join(self, request: LiveRequest) -> None:
        insort(self.active, (request.emitted - request.output - self.steps, request.index, request))
        self.context += request.kv
        request.late_at_join = self.late_steps

    def _mark_first_tokens(self, fresh: list[LiveRequest]) -> None:
        """The first step of a sequence yields its first token: part of TTFT, no gap."""
        self.fresh = len(fresh)
        late = self.step > self.late_limit
        for request in fresh:
            request.late_at_join += late
            self._first_token(request, self.run_start + self.step)

    def _first_token(self, request: LiveRequest, at: int) -> None:
        request.first_token = at
        prompt = request.prefill_end - request.routed
        self.started.append((self.service, request.prefill_replica, at - request.arrival, prompt))

    def _plan_chunk(self, now: int) -> tuple[int, int]:
        """(steps, ticks added to each) of the prompt pieces in the next run."""
        head = self.queue[0]
        if not self._admit(head, now):
            return NEVER, 0
        if head.left > self.chunk_tokens:  # whole chunks of one prompt: steps alike while the curve is straight
            self.chunk = self.chunk_tokens
            alike, cost = self.tables.pieces(head.kv - head.left, self.chunk)
            return min(alike, (head.left - 1) // self.chunk), cost
        return 1, self._fill_step(now)

    def _fill_step(self, now: int) -> int:
        """Fill one step with the tail of a prompt and the next ones; return the ticks they add."""
        cost, room = 0, self.chunk_tokens
        last = self.tables.prefill_line.knots[-1]
        for request in self.queue:
            if not room or not request.left or not self._admit(request, now):
                break
            take = min(request.left, room)
            done = self.chunk or request.kv - request.left  # a prompt that joins others reads no weights again
            cost += self.tables.piece(done, take)
            room -= take
            self.chunk += take
            if take < request.left:
                break
            self.finishing += 1
            self.extrapolated_prompts += request.kv > last
            if self.role is Role.PREFILL:
                break
        return cost

    def _make_room(self, now: int) -> bool:
        """Preempt until every sequence can gain a token; True, because the queue must then wait a step."""
        while self.active and self.kv + len(self.active) > self.tables.kv_capacity:
            head = self.queue[0] if self.queue else None
            if head is not None and head.kv:
                self._give_up(head)
            else:
                self._preempt_youngest(now)
        return True

    def _give_up(self, request: LiveRequest) -> None:
        self.kv -= request.kv
        self.held -= 1
        request.left = request.prompt + request.emitted
        request.kv = 0
        request.preemptions += 1
        self.preemptions += 1

    def _preempt_youngest(self, now: int) -> None:
        place = max(range(len(self.active)), key=lambda i: self.active[i][2].order)
        minus_leave, _, request = self.active.pop(place)
        request.emitted = request.output + minus_leave + self.steps
        request.kv = request.prompt + request.emitted
        request.late_gaps += self.late_steps - request.late_at_join
        request.last_token = now
        self.context -= request.kv
        self._give_up(request)
        self.queue.appendleft(request)

    # ------------------------------------------------------------------ a run ends

    def finish_run(self, now: int) -> list[LiveRequest]:
        """Close the run that ends now; return the requests that leave: finished ones, and prompts to hand on."""
        finishing = self.finishing
        self._account(self.run_steps)
        leaving: list[LiveRequest] = []
        active, steps = self.active, self.steps
        while active and -active[-1][0] == steps:
            request = active.pop()[2]
            held = request.prompt + request.output
            self.context -= held
            request.late_gaps += self.late_steps - request.late_at_join
            self._finish(request, held, now)
            leaving.append(request)
        if finishing:
            self._finish_prompts(now, leaving)
        return leaving

    def _finish(self, request: LiveRequest, held: int, now: int) -> None:
        self.kv -= held
        self.held -= 1
        request.kv, request.end = 0, now
        self.loads[self.slot] -= self.tables.sequence_work

    def _finish_prompts(self, now: int, leaving: list[LiveRequest]) -> None:
        rest = self.chunk
        for _ in range(self.finishing):
            request = self.queue.popleft()
            rest -= request.left
            request.left = 0
            if self._prefilled(request, now):
                leaving.append(request)
        if rest:
            self.queue[0].left -= rest
        self.chunk = self.finishing = 0

    def _prefilled(self, request: LiveRequest, now: int) -> bool:
        """A prompt is computed; True when the request leaves the replica."""
        if request.prefill_end < 0:
            request.prefill_end = now
            self.loads[self.slot] -= self.prompt_work(request)
        if self.role is Role.PREFILL:
            self.held -= 1  # its KV cache stays until it is transferred
            return True
        request.emitted += 1
        request.kv += 1
        self.kv += 1
        self.output_tokens += 1
        self._count_token_of_prompt(request, now)
        if request.emitted == request.output:
            self._finish(request, request.kv, now)
            return True
        self._join(request)
        return False

    def _count_token_of_prompt(self, request: LiveRequest, now: int) -> None:
        """The last piece yields a token: the first one, or the one after a preemption, a single long gap."""
        if request.first_token < 0:
            self._first_token(request, now)
            return
        gap = now - request.last_token
        self.gaps.add(gap)
        if gap > self.late_limit:
            self.gaps.late += 1
            request.late_gaps += 1

    # ------------------------------------------------------------------ accounts

    def settle(self, now: int) -> None:
        """Bring energy and token counts up to now without touching what is to come."""
        if self.run_steps == 0:
            self._charge(now)
            return
        whole = self._steps_until(now - self.run_start)
        if self._time_of(whole) > now - self.run_start:
            whole -= 1
        if 0 < whole < self.run_steps:
            self._account(whole)

    def _charge(self, now: int) -> None:
        """Charge the time since the last account at the present draw."""
        self.energy += self.milliwatts * (now - self.run_start)
        self.run_start = now

    def _account(self, steps: int) -> None:
        """Write down the next ``steps`` of the run: gaps, tokens, energy."""
        step, growth, batch = self.step, self.growth, len(self.active)
        took = steps * step + growth * (steps * (steps - 1) // 2)
        self.energy += self.milliwatts * took
        self.busy += took
        if batch:
            self.gaps.add_run(step, growth, steps, batch, self.fresh)
            if step + growth * steps > self.late_limit:
                self._count_late(steps, batch)
            self.fresh = 0
            if self.is_beyond_table:
                self.extrapolated_steps += steps
            tokens = batch * steps
            self.steps += steps
            self.context += tokens
            self.kv += tokens
            self.output_tokens += tokens
        if self.chunk:
            self.prompt_tokens += self.chunk * steps
            if not self.finishing:
                self.queue[0].left -= self.chunk * steps
        self.run_start += took
        self.step = step + steps * growth
        self.run_steps -= steps

    def _count_late(self, steps: int, batch: int) -> None:
        step, growth, limit = self.step, self.growth, self.late_limit
        if step > limit:
            late = steps
            self.gaps.late -= self.fresh
        else:
            late = max(0, steps - 1 - (limit - step) // growth) if growth else 0
        self.late_steps += late
        self.gaps.late += late * batch

    # ------------------------------------------------------------------ life

    def abandon(self, now: int) -> list[LiveRequest]:
        """Give up everything at once, as when the node is lost; the steps done until now still count."""
        self.settle(now)
        self._charge(now)  # an unfinished step produced nothing but drew its watts
        lost = [*self.queue, *(entry[2] for entry in self.active)]
        self.queue.clear()
        self.active.clear()
        self.due, self.run_steps, self.is_ready = NEVER, 0, False
        return lost

    def view(self, now: int) -> ReplicaView:
        """The replica as it stands; token counts as of the last ``settle``."""
        holding = sum(1 for request in self.queue if request.kv)
        return ReplicaView(
            replica_id=self.replica_id,
            service=self.service,
            role=self.role,
            is_ready=self.is_ready,
            is_draining=self.is_draining,
            running=len(self.active) + holding,
            waiting=len(self.queue) - holding,
            kv_usage_ratio=self.kv / self.tables.kv_capacity,
            draw_watts=self.milliwatts / 1000,
            energy_joules=(self.energy + self.milliwatts * (now - self.run_start)) / (1000 * TICKS_PER_S),
            busy_s=self.busy / TICKS_PER_S,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            preemptions=self.preemptions,
            gaps=self.gaps,
        )
