"""The truth for ``solvers.simulate``: one event per engine step, naive lists, every token time kept.

Shares only the compiled tables with the simulation; the closed form, the incremental loads, the clock, the prefix
cache, the links and the accounts are all done again by looking at everything each time.
"""

from __future__ import annotations

from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource, Role
from solvers.simulate import Routing, SimRequest
from solvers.simulate.tables import NEVER, TICKS_PER_S, compile_profile, to_ticks
from tests.sim_blocks import BlockCache, Path, Stretches
from tests.sim_engine import Engine, Link, Sequence, Way
from tests.sim_ways import STRIDE, BruteWays


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


class BruteFleet(BruteWays):
    """The same interface in ticks, stepped one token at a time."""

    def __init__(
        self,
        queue_limit: int = NEVER,
        patience: int = NEVER,
        routing: dict[str, Routing] | None = None,
        stretches: Stretches | None = None,
    ) -> None:
        super().__init__()
        self.queue_limit, self.patience, self.routing = queue_limit, patience, routing or {}
        self.stretches = stretches or Stretches((), 1)
        self.engines: dict[str, Engine] = {}
        self.made = 0
        self.sequences: list[Sequence] = []
        self.arriving: list[Sequence] = []
        self.clients: list[tuple[int, list[Sequence], int]] = []  # due, what they ask in turn, pause
        self.waiting: list[Sequence] = []
        self.stranded: list[Sequence] = []
        self.services: list[str] = []
        self.gone_energy = 0

    def add(
        self,
        name: str,
        service: str,
        role: Role,
        profile: EngineProfile,
        ready_at: int,
        link: str | None = None,
        weight: float = 1.0,
        cap_watts: float | None = None,
        domain: str = "",
    ) -> None:
        tables = compile_profile(profile, cap_watts)
        on, speed = None, profile.transfer_bytes_per_s
        if role is Role.PREFILL:
            on, speed = self.named[link] if link else (self.new_link(is_shared=False), speed)
        engine = Engine(
            index=self.made, name=name, service=service, role=role, profile=profile, tables=tables, link=on,
            transfer=round(profile.kv_bytes_per_token * TICKS_PER_S / speed), stride=max(1, round(STRIDE / weight)),
            blocks=BlockCache(self.stretches, is_on=role is not Role.DECODE), domain=domain,
        )  # fmt: skip
        engine.since, engine.milliwatts = self.now, engine.tables.idle_milliwatts
        engine.is_open, engine.due = True, max(self.now, ready_at)
        self.made += 1
        self.engines[name] = engine
        self.know(service)
        if engine.due == self.now:
            self.become_ready(engine)

    def know(self, service: str) -> None:
        if service not in self.services:
            self.services.append(service)

    def become_ready(self, engine: Engine) -> None:
        engine.is_ready, engine.due = True, NEVER
        if not engine.is_open:
            return
        others = [e for e in self.serving(engine.service, engine.role) if e is not engine]
        if self.policy(engine.service) is Routing.WEIGHTED and others:
            engine.given = max(engine.given, min(e.given for e in others))
        mine = [s for s in self.stranded if s.asked.service == engine.service]
        self.stranded = [s for s in self.stranded if s.asked.service != engine.service]
        for sequence in mine:
            self.hand_on(sequence)
        self.let_in()

    def cap(self, name: str, cap_watts: float | None) -> None:
        self.engines[name].set_cap(cap_watts, self.now)

    def drain(self, name: str) -> None:
        self.engines[name].is_open = False
        self.let_in()

    def remove(self, name: str) -> None:
        engine = self.engines.pop(name)
        engine.charge(self.now, 0)
        self.gone_energy += engine.energy
        flying = [s for s in self.sequences if s.remaining and engine in (s.prompt_at, s.output_at)]
        stranded = [s for s in self.stranded if s.prompt_at is engine]
        self.stranded = [s for s in self.stranded if s not in stranded]
        for link in self.links:
            if any(s in flying for s in link.flying):
                link.serve(self.now)
                link.flying = [s for s in link.flying if s not in flying]
        for sequence in sorted([*engine.queue, *engine.decoding, *flying, *stranded], key=lambda s: s.index):
            if sequence in flying:
                self.release(sequence)
            sequence.restart()
            sequence.reroutes += 1
            self.arrive(sequence)
        self.let_in()

    def submit(self, asked: SimRequest, path: Path = ()) -> Sequence:
        sequence = Sequence(index=len(self.sequences), asked=asked, arrival=to_ticks(asked.arrival_s), path=path)
        self.know(asked.service)
        sequence.restart()
        self.sequences.append(sequence)
        self.arriving.append(sequence)
        return sequence

    def add_clients(self, count: int, asked: list[SimRequest], think: int) -> None:
        mine = [self.submit(one) for one in asked]
        self.arriving = [s for s in self.arriving if s not in mine]
        self.clients += [(self.now, mine, think)] * count

    def policy(self, service: str) -> Routing:
        return self.routing.get(service, Routing.LEAST_WORK)

    def serving(self, service: str, *roles: Role) -> list[Engine]:
        return [
            e for e in self.engines.values() if e.service == service and e.is_ready and e.is_open and e.role in roles
        ]

    def load(self, engine: Engine) -> int:
        """What is outstanding by definition: prompts to compute there, sequences to decode there."""
        if self.policy(engine.service) is Routing.WEIGHTED:
            return engine.given
        living = [s for s in self.sequences if not s.is_over]
        prompts = sum(s.prompt_charge for s in living if s.prompt_at is engine and not s.is_prefilled)
        return prompts + sum(s.sequence_charge for s in living if s.output_at is engine)

    def prompt_cost(self, engine: Engine, sequence: Sequence) -> int:
        done = engine.blocks.hits(sequence.path) * engine.blocks.tokens
        return engine.tables.behind_prefix(done, sequence.asked.prompt_tokens - done)

    def score(self, engine: Engine, sequence: Sequence) -> int:
        is_aware = self.policy(engine.service) is Routing.PREFIX_AWARE and engine.role is not Role.DECODE
        return self.load(engine) + (self.prompt_cost(engine, sequence) if is_aware else 0)

    def first_waiting(self, service: str) -> Sequence | None:
        mine = [s for s in self.waiting if s.asked.service == service]
        return min(mine, key=lambda s: (s.arrival, s.index), default=None)

    def arrive(self, sequence: Sequence) -> None:
        if self.first_waiting(sequence.asked.service) or not self.route(sequence):
            self.waiting.append(sequence)

    def let_in(self) -> None:
        """Look at everybody who waits first in a service, until none of them can go on."""
        for service in self.services:
            while (first := self.first_waiting(service)) and self.route(first):
                self.waiting.remove(first)

    def route(self, sequence: Sequence) -> bool:
        service = sequence.asked.service
        mixed, givers, takers = (self.serving(service, role) for role in (Role.MIXED, Role.PREFILL, Role.DECODE))
        pairs = [(e, e) for e in mixed] + [(giver, taker) for giver in givers for taker in takers]
        ways = [(giver, taker, way) for giver, taker in pairs for way in self.ways_between(giver, taker)]
        reachable = [way for way in ways if all(e.fits(sequence) for e in way[:2])]
        free = [way for way in reachable if all(len(e.queue) < self.queue_limit for e in way[:2])]
        begun = {way.giver for way in self.ways.get(service, ())} or {""}
        givers = [e for e in givers if e.domain in begun]
        if (ways and not reachable) or (not ways and givers and not any(e.fits(sequence) for e in givers)):
            sequence.is_rejected = True
            self.call_again(sequence)
        elif not free:
            return False
        else:
            giver, taker, sequence.way = min(free, key=lambda way: self.preference(way, sequence))
            self.take(service, sequence.way)
            self.charge(sequence, giver, taker)
            self.enqueue(giver, sequence)
        return True

    def preference(self, way: tuple[Engine, Engine, Way | None], sequence: Sequence) -> tuple[int, ...]:
        """Whose turn it is; least load ahead; mixed before chains; in a chain the lightest of each side, the first
        among equals."""
        giver, taker, named = way
        first, second = self.score(giver, sequence), self.score(taker, sequence) if taker is not giver else 0
        ahead = first if self.policy(giver.service) is Routing.WEIGHTED else first + second
        is_aware = self.policy(giver.service) is Routing.PREFIX_AWARE
        given = giver.prompts_given if is_aware else 0
        if named:  # each side by itself
            ahead = 0
        return (
            *self.turn(giver.service, named),
            ahead,
            giver is not taker,
            first,
            given,
            giver.index,
            second,
            taker.index,
        )

    def charge(self, sequence: Sequence, giver: Engine, taker: Engine) -> None:
        policy = self.policy(giver.service)
        if policy is Routing.WEIGHTED:
            giver.given += giver.stride
            sequence.prompt_charge = 0
        elif policy is Routing.LEAST_LOADED:
            sequence.prompt_charge = int(giver is not taker)
        elif policy is Routing.PREFIX_AWARE:
            sequence.prompt_charge = self.prompt_cost(giver, sequence)
        else:
            sequence.prompt_charge = giver.tables.prefill(sequence.asked.prompt_tokens)
        sequence.prompt_at = giver
        giver.prompts_given += sequence.asked.prompt_tokens
        self.bind(sequence, taker)

    def bind(self, sequence: Sequence, taker: Engine) -> None:
        policy = self.policy(taker.service)
        sequence.output_at = taker
        sequence.sequence_charge = 1 if policy is Routing.LEAST_LOADED else taker.tables.sequence_work
        if policy is Routing.WEIGHTED and taker is not sequence.prompt_at:
            taker.given += taker.stride

    def enqueue(self, engine: Engine, sequence: Sequence) -> None:
        engine.queue.append(sequence)
        if engine.is_ready and engine.pieces is None:
            engine.due = self.now

    def hand_on(self, sequence: Sequence) -> None:
        service, giver = sequence.asked.service, sequence.prompt_at
        assert giver is not None
        decoders = self.serving(service, Role.DECODE)
        ways = [(d, way) for d in decoders for way in self.ways_between(giver, d)]
        fitting = [(d, way) for d, way in ways if d.fits(sequence)]
        if sequence.output_at not in decoders:
            sequence.output_at = None
        if sequence.output_at is None and not ways:
            self.stranded.append(sequence)
        elif sequence.output_at is None and not fitting:
            self.release(sequence)
            sequence.is_rejected = True
            self.call_again(sequence)
        else:
            if sequence.output_at is None:
                taker, sequence.way = min(
                    fitting, key=lambda x: (*self.turn(service, x[1]), self.load(x[0]), x[0].index)
                )
                self.take(service, sequence.way)
                self.bind(sequence, taker)
            self.fly(sequence)

    def fly(self, sequence: Sequence) -> None:
        giver = sequence.prompt_at
        assert giver is not None
        assert giver.link is not None
        link, size = giver.link, sequence.asked.prompt_tokens * giver.transfer
        link.serve(self.now)
        if not link.is_shared:
            link.free = max(self.now, link.free) + size
        sequence.remaining[link.index] = size if link.is_shared else link.free - self.now
        link.flying.append(sequence)
        for crossed, per_token in sequence.way.over if sequence.way else ():
            crossed.serve(self.now)
            sequence.remaining[crossed.index] = sequence.asked.prompt_tokens * per_token
            crossed.flying.append(sequence)

    def land(self, link: Link) -> None:
        link.serve(self.now)
        sequence = link.first()
        link.flying.remove(sequence)
        del sequence.remaining[link.index]
        if sequence.remaining:
            return
        self.release(sequence)
        assert sequence.output_at is not None
        self.enqueue(sequence.output_at, sequence)

    def release(self, sequence: Sequence) -> None:
        giver = sequence.prompt_at
        assert giver is not None
        giver.let_go(sequence)
        if giver.name in self.engines and giver.pieces is None and giver.queue:
            giver.due = self.now

    def call_again(self, sequence: Sequence) -> None:
        if sequence.client is not None:
            _, asked, think = self.clients[sequence.client]
            self.clients[sequence.client] = self.now + think if asked else NEVER, asked, think

    def finish_step(self, engine: Engine) -> None:
        pieces = engine.pieces or []
        for s in engine.decoding:
            s.context, s.emitted = s.context + 1, s.emitted + 1
            s.times.append(self.now)
        if engine.decoding:
            engine.trim()
        for s in sorted(engine.decoding, key=lambda s: s.index):
            self.leave_when_done(engine, s)
        for s, tokens in pieces:
            s.left -= tokens
            if s.left == 0:
                engine.queue.remove(s)
                self.prefilled(engine, s)
        engine.pieces = None
        engine.plan(self.now)

    def prefilled(self, engine: Engine, s: Sequence) -> None:
        s.is_prefilled = True
        if s.path and engine.blocks.is_on:
            engine.blocks.share(s.path, s.hits)
            s.hits = len(s.path)
        if engine.role is Role.PREFILL:
            engine.held -= 1
            self.hand_on(s)
            return
        s.emitted, s.context = s.emitted + 1, s.reserved + 1
        s.times.append(self.now)
        engine.trim()
        engine.decoding.append(s)
        self.leave_when_done(engine, s)

    def leave_when_done(self, engine: Engine, sequence: Sequence) -> None:
        if sequence.emitted == sequence.asked.output_tokens:
            engine.decoding.remove(sequence)
            engine.let_go(sequence)
            engine.held -= 1
            self.call_again(sequence)

    def advance(self, until: int) -> None:
        while True:
            arrival = min(self.arriving, key=lambda s: (s.arrival, s.index), default=None)
            client = min(range(len(self.clients)), key=lambda c: (self.clients[c][0], c), default=None)
            link = min(self.links, key=lambda k: (k.due(), k.index), default=None)
            engine = min(self.engines.values(), key=lambda e: (e.due, e.index), default=None)
            heads = [s for name in self.services if (s := self.first_waiting(name))]
            leaving = min(heads, key=self.patience_ends, default=None)
            times = (
                arrival.arrival if arrival else NEVER,
                NEVER if client is None else self.clients[client][0],
                link.due() if link else NEVER,
                engine.due if engine else NEVER,
                self.patience_ends(leaving) if leaving else NEVER,
            )
            if min(times) > until or min(times) == NEVER:
                self.now = max(self.now, until if until < NEVER - 1 else self.now)
                return
            self.now = min(times)
            kind = times.index(self.now)
            if kind == 0 and arrival:
                self.arriving.remove(arrival)
                self.arrive(arrival)
            elif kind == 1 and client is not None:
                self.ask(client)
            elif kind == 2 and link:
                self.land(link)
            elif kind == 3 and engine:
                self.step(engine)
            elif leaving:
                self.waiting.remove(leaving)
                leaving.timed_out_at = self.now
                self.call_again(leaving)
            self.let_in()

    def ask(self, client: int) -> None:
        _, asked, think = self.clients[client]
        self.clients[client] = NEVER, asked, think
        if asked:
            sequence = asked.pop(0)
            sequence.arrival, sequence.client = self.now, client
            self.arrive(sequence)

    def patience_ends(self, sequence: Sequence) -> int:
        return NEVER if self.patience == NEVER else max(self.now, sequence.arrival + self.patience)

    def step(self, engine: Engine) -> None:
        if not engine.is_ready:
            self.become_ready(engine)
        elif engine.pieces is not None:
            self.finish_step(engine)
        else:
            engine.plan(self.now)
