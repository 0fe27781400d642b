"""The truth for ``solvers.simulate``: one event per engine step, naive lists, every token time kept.

Shares only the compiled tables with the simulation; the closed form, the incremental loads, the clock and the accounts
are all done again by looking at everything each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource, Role
from solvers.simulate.results import SimRequest
from solvers.simulate.tables import NEVER, EngineTables, compile_profile, to_ticks


def make_profile(**changes: object) -> EngineProfile:
    """A small engine: 10 ms steps that grow with batch and context, 1000 prompt tokens in 0.1 s."""
    batches, contexts = (1, 4, 16, 64), (256, 1024, 4096)
    values: dict[str, object] = {
        "key": ProfileKey(model="model", gpu_class="class", config=EngineConfig()),
        "source": ProfileSource.ROOFLINE,
        "source_detail": "made for tests",
        "prefill_tokens": (100, 1000, 4000),
        "prefill_s": (0.02, 0.1, 0.5),
        "decode_batches": batches,
        "decode_contexts": contexts,
        "decode_step_s": tuple(tuple(0.01 + 1e-4 * b + 1e-7 * b * c for c in contexts) for b in batches),
        "kv_capacity_tokens": 100_000,
        "kv_bytes_per_token": 100_000,
        "transfer_bytes_per_s": 25e9,
        "prefill_chunk_tokens": 512,
        "idle_watts_per_gpu": 75.0,
        "prefill_watts_per_gpu": 600.0,
        "decode_watts_per_gpu": (200.0, 240.0, 320.0, 400.0),
    }
    return EngineProfile(**{**values, **changes})  # type: ignore[arg-type]


@dataclass(kw_only=True, eq=False)
class Sequence:
    index: int
    asked: SimRequest
    left: int = 0
    emitted: int = 0
    reserved: int = 0
    context: int = 0
    order: int = 0
    preemptions: int = 0
    reroutes: int = 0
    is_prefilled: bool = False
    times: list[int] = field(default_factory=list)
    prompt_at: Engine | None = None
    output_at: Engine | None = None
    lands_at: int = NEVER
    is_rejected: bool = False
    timed_out_at: int = NEVER

    def restart(self) -> None:
        self.left, self.emitted, self.reserved, self.context = self.asked.prompt_tokens, 0, 0, 0
        self.is_prefilled, self.times, self.lands_at = False, [], NEVER
        self.prompt_at = self.output_at = None


@dataclass(kw_only=True, eq=False)
class Engine:
    index: int
    name: str
    service: str
    role: Role
    tables: EngineTables
    due: int = NEVER
    is_ready: bool = False
    is_open: bool = False
    queue: list[Sequence] = field(default_factory=list)
    decoding: list[Sequence] = field(default_factory=list)
    pieces: list[tuple[Sequence, int]] | None = None
    kv: int = 0
    held: int = 0
    orders: int = 0
    link_free: int = 0
    milliwatts: int = 0
    energy: int = 0
    since: int = 0

    def charge(self, now: int, milliwatts: int) -> None:
        self.energy += self.milliwatts * (now - self.since)
        self.since, self.milliwatts = now, milliwatts

    def fits(self, sequence: Sequence) -> bool:
        output = 1 if self.role is Role.PREFILL else sequence.asked.output_tokens
        return sequence.asked.prompt_tokens + output <= self.tables.kv_capacity

    def admit(self, sequence: Sequence) -> bool:
        if sequence.reserved:
            return True
        need = sequence.asked.prompt_tokens + sequence.emitted
        if self.held >= self.tables.max_batch or self.kv + need + len(self.decoding) + 1 > self.tables.kv_capacity:
            return False
        self.kv, self.held, self.orders = self.kv + need, self.held + 1, self.orders + 1
        sequence.reserved, sequence.order = need, self.orders
        return True

    def give_up(self, sequence: Sequence, tokens: int) -> None:
        self.kv, self.held = self.kv - tokens, self.held - 1
        sequence.left, sequence.reserved = sequence.asked.prompt_tokens + sequence.emitted, 0
        sequence.preemptions += 1

    def plan(self, now: int) -> None:
        tight = False
        while self.decoding and self.kv + len(self.decoding) > self.tables.kv_capacity:
            tight = True
            if self.queue and self.queue[0].reserved:
                self.give_up(self.queue[0], self.queue[0].reserved)
                continue
            youngest = max(self.decoding, key=lambda s: s.order)
            self.decoding.remove(youngest)
            self.give_up(youngest, youngest.context)
            self.queue.insert(0, youngest)
        while not tight and self.queue and self.queue[0].left == 0 and self.admit(self.queue[0]):
            joined = self.queue.pop(0)
            joined.context = joined.reserved
            self.decoding.append(joined)
        pieces = [] if tight else self.choose_pieces()
        if not self.decoding and not pieces:
            self.pieces, self.due = None, NEVER
            self.charge(now, self.tables.idle_milliwatts)
            return
        took = before = 0
        for s, tokens in pieces:
            took += self.tables.piece(before or s.reserved - s.left, tokens)
            before += tokens
        if self.decoding:
            took += self.tables.row(len(self.decoding)).at(sum(s.context for s in self.decoding))
        self.charge(now, self.tables.milliwatts(len(self.decoding), prefilling=bool(pieces)))
        self.pieces, self.due = pieces, now + max(1, took)

    def choose_pieces(self) -> list[tuple[Sequence, int]]:
        if self.role is Role.PREFILL:
            return [(s, s.left) for s in self.queue[:1] if self.admit(s)]
        room, pieces = self.tables.chunk_tokens, []
        for sequence in self.queue:
            if room == 0 or sequence.left == 0 or not self.admit(sequence):
                break
            pieces.append((sequence, min(room, sequence.left)))
            room -= pieces[-1][1]
            if pieces[-1][1] < sequence.left:
                break
        return pieces


class BruteFleet:
    """The same interface in ticks, stepped one token at a time."""

    def __init__(self, queue_limit: int = NEVER, patience: int = NEVER) -> None:
        self.queue_limit, self.patience = queue_limit, patience
        self.engines: dict[str, Engine] = {}
        self.made = 0
        self.sequences: list[Sequence] = []
        self.arriving: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.stranded: list[Sequence] = []
        self.gone_energy = 0
        self.now = 0

    def add(self, name: str, service: str, role: Role, profile: EngineProfile, ready_at: int) -> None:
        engine = Engine(index=self.made, name=name, service=service, role=role, tables=compile_profile(profile))
        engine.since, engine.link_free, engine.milliwatts = self.now, self.now, engine.tables.idle_milliwatts
        engine.is_open, engine.due = True, max(self.now, ready_at)
        self.made += 1
        self.engines[name] = engine
        if engine.due == self.now:
            self.become_ready(engine)

    def become_ready(self, engine: Engine) -> None:
        engine.is_ready, engine.due = True, NEVER
        if not engine.is_open:
            return
        mine = [s for s in self.stranded if s.asked.service == engine.service]
        self.stranded = [s for s in self.stranded if s.asked.service != engine.service]
        for sequence in mine:
            self.hand_on(sequence)
        self.let_in()

    def drain(self, name: str) -> None:
        self.engines[name].is_open = False
        self.let_in()

    def remove(self, name: str) -> None:
        engine = self.engines.pop(name)
        engine.charge(self.now, 0)
        self.gone_energy += engine.energy
        flying = [s for s in self.sequences if s.lands_at != NEVER and engine in (s.prompt_at, s.output_at)]
        stranded = [s for s in self.stranded if s.prompt_at is engine]
        self.stranded = [s for s in self.stranded if s not in stranded]
        for sequence in sorted([*engine.queue, *engine.decoding, *flying, *stranded], key=lambda s: s.index):
            if sequence in flying:
                self.release(sequence)
            sequence.restart()
            sequence.reroutes += 1
            self.arrive(sequence)
        self.let_in()

    def submit(self, asked: SimRequest) -> None:
        sequence = Sequence(index=len(self.sequences), asked=asked)
        sequence.restart()
        self.sequences.append(sequence)
        self.arriving.append(sequence)

    def serving(self, service: str, *roles: Role) -> list[Engine]:
        return [
            e for e in self.engines.values() if e.service == service and e.is_ready and e.is_open and e.role in roles
        ]

    def work(self, engine: Engine) -> int:
        """Outstanding work by definition: prompts to compute there, sequences to decode there."""
        total = 0
        for s in self.sequences:
            if s.is_rejected or s.timed_out_at != NEVER or s.emitted == s.asked.output_tokens:
                continue
            if s.prompt_at is engine and not s.is_prefilled:
                total += engine.tables.prefill(s.asked.prompt_tokens)
            if s.output_at is engine:
                total += engine.tables.sequence_work
        return total

    def first_waiting(self, service: str) -> Sequence | None:
        mine = [s for s in self.waiting if s.asked.service == service]
        return min(mine, key=lambda s: (to_ticks(s.asked.arrival_s), s.index), default=None)

    def arrive(self, sequence: Sequence) -> None:
        if self.first_waiting(sequence.asked.service) or not self.route(sequence):
            self.waiting.append(sequence)

    def let_in(self) -> None:
        """Look at everybody who waits first in a service, until none of them can go on."""
        for service in {s.asked.service for s in self.waiting}:
            while (first := self.first_waiting(service)) and self.route(first):
                self.waiting.remove(first)

    def route(self, sequence: Sequence) -> bool:
        service = sequence.asked.service
        mixed, givers, takers = (self.serving(service, role) for role in (Role.MIXED, Role.PREFILL, Role.DECODE))
        ways = [(e, e) for e in mixed] + [(giver, taker) for giver in givers for taker in takers]
        reachable = [way for way in ways if all(e.fits(sequence) for e in way)]
        free = [way for way in reachable if all(len(e.queue) < self.queue_limit for e in way)]
        if (ways and not reachable) or (not ways and givers and not any(e.fits(sequence) for e in givers)):
            sequence.is_rejected = True
        elif not free:
            return False
        else:
            sequence.prompt_at, sequence.output_at = min(free, key=self.preference)
            self.enqueue(sequence.prompt_at, sequence)
        return True

    def preference(self, way: tuple[Engine, Engine]) -> tuple[int, ...]:
        """Least work ahead; mixed before chains; in a chain the lightest of each side, the first among equals."""
        giver, taker = way
        first, second = self.work(giver), self.work(taker) if taker is not giver else 0
        return first + second, giver is not taker, first, giver.index, second, taker.index

    def enqueue(self, engine: Engine, sequence: Sequence) -> None:
        engine.queue.append(sequence)
        if engine.is_ready and engine.pieces is None:
            engine.due = self.now

    def hand_on(self, sequence: Sequence) -> None:
        decoders = self.serving(sequence.asked.service, Role.DECODE)
        fitting = [d for d in decoders if d.fits(sequence)]
        if sequence.output_at not in decoders:
            sequence.output_at = None
        if not decoders:
            self.stranded.append(sequence)
        elif sequence.output_at is None and not fitting:
            self.release(sequence)
            sequence.is_rejected = True
        else:
            giver = sequence.prompt_at
            assert giver is not None
            if sequence.output_at is None:
                sequence.output_at = min(fitting, key=lambda d: (self.work(d), d.index))
            giver.link_free = max(self.now, giver.link_free) + giver.tables.transfer(sequence.asked.prompt_tokens)
            sequence.lands_at = giver.link_free

    def release(self, sequence: Sequence) -> None:
        giver = sequence.prompt_at
        assert giver is not None
        giver.kv -= sequence.reserved
        sequence.reserved = 0
        if giver.name in self.engines and giver.pieces is None and giver.queue:
            giver.due = self.now

    def finish_step(self, engine: Engine) -> None:
        pieces = engine.pieces or []
        for s in list(engine.decoding):
            s.context, s.emitted, engine.kv = s.context + 1, s.emitted + 1, engine.kv + 1
            s.times.append(self.now)
            self.leave_when_done(engine, s)
        handed: list[Sequence] = []
        for s, tokens in pieces:
            s.left -= tokens
            if s.left:
                continue
            engine.queue.remove(s)
            s.is_prefilled = True
            if engine.role is Role.PREFILL:
                engine.held -= 1
                handed.append(s)
                continue
            s.emitted, s.context, engine.kv = s.emitted + 1, s.reserved + 1, engine.kv + 1
            s.times.append(self.now)
            engine.decoding.append(s)
            self.leave_when_done(engine, s)
        engine.pieces = None
        engine.plan(self.now)
        for s in handed:
            self.hand_on(s)

    def leave_when_done(self, engine: Engine, sequence: Sequence) -> None:
        if sequence.emitted == sequence.asked.output_tokens:
            engine.decoding.remove(sequence)
            engine.kv, engine.held = engine.kv - sequence.context, engine.held - 1

    def advance(self, until: int) -> None:
        while True:
            arrival = min(self.arriving, key=lambda s: (to_ticks(s.asked.arrival_s), s.index), default=None)
            landing = min(self.sequences, key=lambda s: (s.lands_at, s.index), default=None)
            engine = min(self.engines.values(), key=lambda e: (e.due, e.index), default=None)
            leaving = min(self.waiting, key=lambda s: (self.patience_ends(s), s.index), default=None)
            times = (
                to_ticks(arrival.asked.arrival_s) if arrival else NEVER,
                landing.lands_at if landing else NEVER,
                engine.due if engine else NEVER,
                self.patience_ends(leaving) if leaving else NEVER,
            )
            if min(times) > until or min(times) == NEVER:
                self.now = max(self.now, until if until < NEVER - 1 else self.now)
                return
            self.now = min(times)
            if arrival and times[0] == self.now:
                self.arriving.remove(arrival)
                self.arrive(arrival)
            elif landing and times[1] == self.now:
                landing.lands_at = NEVER
                self.release(landing)
                assert landing.output_at is not None
                self.enqueue(landing.output_at, landing)
            elif engine and times[2] == self.now:
                self.step(engine)
            elif leaving:
                self.waiting.remove(leaving)
                leaving.timed_out_at = self.now
            self.let_in()

    def patience_ends(self, sequence: Sequence) -> int:
        ends = to_ticks(sequence.asked.arrival_s) + self.patience
        return NEVER if self.patience == NEVER else max(self.now, ends)

    def step(self, engine: Engine) -> None:
        if not engine.is_ready:
            self.become_ready(engine)
        elif engine.pieces is not None:
            self.finish_step(engine)
        else:
            engine.plan(self.now)
