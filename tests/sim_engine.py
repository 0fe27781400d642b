"""Parts of the step-by-step truth: a request, a link, and an engine that does one step at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from solvers.engine import EngineProfile, Role
from solvers.simulate import SimRequest
from solvers.simulate.tables import NEVER, EngineTables, compile_profile
from tests.sim_blocks import BlockCache, Path


@dataclass(kw_only=True, eq=False)
class Sequence:
    index: int
    asked: SimRequest
    arrival: int
    path: Path = ()
    client: int | None = None
    left: int = 0
    emitted: int = 0
    reserved: int = 0
    hits: int = 0
    context: int = 0
    order: int = 0
    preemptions: int = 0
    reroutes: int = 0
    cached: int | None = None
    prompt_charge: int = 0
    sequence_charge: int = 0
    is_prefilled: bool = False
    times: list[int] = field(default_factory=list)
    prompt_at: Engine | None = None
    output_at: Engine | None = None
    remaining: dict[int, int] = field(default_factory=dict)  # by link; none while it is not under way
    way: Way | None = None
    is_rejected: bool = False
    timed_out_at: int = NEVER

    def restart(self) -> None:
        self.left, self.emitted, self.reserved, self.context, self.hits = self.asked.prompt_tokens, 0, 0, 0, 0
        self.is_prefilled, self.times, self.remaining, self.cached = False, [], {}, None
        self.prompt_at = self.output_at = self.way = None

    @property
    def is_over(self) -> bool:
        return self.is_rejected or self.timed_out_at != NEVER or self.emitted == self.asked.output_tokens


@dataclass(kw_only=True, eq=False)
class Link:
    """Transfers one after the other by their ``remaining`` time from ``at`` on, or all at once in equal shares."""

    index: int
    is_shared: bool
    flying: list[Sequence] = field(default_factory=list)
    at: int = 0
    free: int = 0

    def serve(self, now: int) -> None:
        elapsed, self.at = now - self.at, now
        for sequence in self.flying:  # one after the other, each remaining counts what is ahead of it too
            sequence.remaining[self.index] -= elapsed // len(self.flying) if self.is_shared else elapsed

    def first(self) -> Sequence:
        return min(self.flying, key=lambda s: (s.remaining[self.index], s.index))

    def due(self) -> int:
        if not self.flying:
            return NEVER
        left = max(0, self.first().remaining[self.index])
        return self.at + left * (len(self.flying) if self.is_shared else 1)


@dataclass(kw_only=True, eq=False)
class Way:
    """Between domains, or for the mixed replicas of a service; ``over`` are the links that it crosses, with the ticks
    that a token takes of each."""

    index: int
    giver: str | None
    receiver: str | None
    over: tuple[tuple[Link, int], ...] = ()
    stride: int = 0
    turn: int = 0


@dataclass(kw_only=True, eq=False)
class Engine:
    index: int
    name: str
    service: str
    role: Role
    profile: EngineProfile
    tables: EngineTables
    link: Link | None
    transfer: int
    stride: int
    blocks: BlockCache
    domain: str = ""
    given: int = 0
    prompts_given: int = 0
    whole: int = 0
    due: int = NEVER
    is_ready: bool = False
    is_open: bool = False
    queue: list[Sequence] = field(default_factory=list)
    decoding: list[Sequence] = field(default_factory=list)
    pieces: list[tuple[Sequence, int]] | None = None
    parts: tuple[int, int] = (0, 0)
    residents: list[Sequence] = field(default_factory=list)
    held: int = 0
    orders: int = 0
    milliwatts: int = 0
    energy: int = 0
    since: int = 0

    def charge(self, now: int, milliwatts: int) -> None:
        self.energy += self.milliwatts * (now // 1_000_000 - self.since // 1_000_000)
        self.since, self.milliwatts = now, milliwatts

    def fits(self, sequence: Sequence) -> bool:
        output = 1 if self.role is Role.PREFILL else sequence.asked.output_tokens
        return sequence.asked.prompt_tokens + output <= self.tables.kv_capacity

    @property
    def kv(self) -> int:
        """By definition: what each resident holds alone, and every shared block in use once."""
        alone = sum(max(s.reserved, s.context) - s.hits * self.blocks.tokens for s in self.residents)
        return alone + self.blocks.used_tokens()

    def trim(self) -> None:
        self.blocks.evict(self.tables.kv_capacity - self.kv)

    def admit(self, sequence: Sequence) -> bool:
        if sequence.reserved:
            return True
        need = sequence.asked.prompt_tokens + sequence.emitted
        hits = self.blocks.hits(sequence.path) if sequence.left else 0
        unused = self.blocks.unused_among(sequence.path[:hits])
        alone = need + (unused - hits) * self.blocks.tokens
        if self.held >= self.tables.max_batch or self.kv + alone + len(self.decoding) + 1 > self.tables.kv_capacity:
            return False
        self.blocks.pin(sequence.path[:hits])
        self.held, self.orders = self.held + 1, self.orders + 1
        sequence.reserved, sequence.order, sequence.hits = need, self.orders, hits
        sequence.left -= hits * self.blocks.tokens
        if sequence.cached is None and not sequence.is_prefilled:
            sequence.cached = hits * self.blocks.tokens
        self.residents.append(sequence)
        self.trim()
        return True

    def let_go(self, sequence: Sequence) -> None:
        """Free the KV room; shared blocks stay for others."""
        self.residents.remove(sequence)
        self.blocks.unpin(sequence.path[: sequence.hits])
        sequence.reserved = sequence.context = sequence.hits = 0

    def give_up(self, sequence: Sequence) -> None:
        self.let_go(sequence)
        self.held -= 1
        sequence.left = sequence.asked.prompt_tokens + sequence.emitted
        sequence.preemptions += 1

    def plan(self, now: int) -> None:
        tight = False
        while self.decoding and self.kv + len(self.decoding) > self.tables.kv_capacity:
            tight = True
            if self.queue and self.queue[0].reserved:
                self.give_up(self.queue[0])
                continue
            youngest = max(self.decoding, key=lambda s: s.order)
            self.decoding.remove(youngest)
            self.give_up(youngest)
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
        prompts = before = 0
        for s, tokens in pieces:
            done = s.reserved - s.left
            cached = 0 if before else s.hits * self.blocks.tokens
            prompts += self.tables.piece(max(before, done), tokens, cached=cached)
            before += tokens
        decodes = 0
        if self.decoding:
            decodes = self.tables.row(len(self.decoding)).at(sum(s.context for s in self.decoding))
        self.charge(now, self.tables.milliwatts(len(self.decoding), prefilling=bool(pieces)))
        self.pieces, self.parts, self.due = pieces, (decodes, prompts), now + max(1, decodes + prompts)
        self.whole = max(1, decodes + prompts)

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

    def set_cap(self, cap_watts: float | None, now: int) -> None:
        """What is left of the step under way lasts longer or shorter by the ratio of its whole under both caps."""
        old, self.tables = self.tables, compile_profile(self.profile, cap_watts)
        if self.pieces is None:
            self.charge(now, self.tables.idle_milliwatts)
            return
        self.charge(now, self.tables.milliwatts(len(self.decoding), prefilling=bool(self.pieces)))
        if self.due <= now:
            return
        prompts = self.parts[1] * old.prefill_speed // self.tables.prefill_speed
        decodes = (self.whole - self.parts[1]) * old.decode_speed // self.tables.decode_speed
        self.due = now + max(1, int((self.due - now) * ((prompts + decodes) / self.whole)))
        self.whole, self.parts = prompts + decodes, (decodes, prompts)
