"""Part of the step-by-step truth: links, and the ways over which domains pair."""

from __future__ import annotations

from solvers.simulate.tables import NEVER, TICKS_PER_S
from tests.sim_engine import Engine, Link, Way

STRIDE = 1 << 20


class BruteWays:
    """Links and ways by service; whose turn it is is found by looking at all of them."""

    def __init__(self) -> None:
        self.now = 0
        self.links: list[Link] = []
        self.named: dict[str, tuple[Link, float]] = {}
        self.crossings: dict[str, tuple[Link, Link, float]] = {}
        self.ways: dict[str, list[Way]] = {}
        self.turns: dict[str, int] = {}

    def new_link(self, *, is_shared: bool) -> Link:
        self.links.append(Link(index=len(self.links), is_shared=is_shared, at=self.now))
        return self.links[-1]

    def add_link(self, name: str, bytes_per_s: float) -> None:
        self.named[name] = self.new_link(is_shared=True), bytes_per_s

    def add_crossing(self, name: str, bytes_per_s: float) -> None:
        self.crossings[name] = self.new_link(is_shared=True), self.new_link(is_shared=True), bytes_per_s

    def add_way(
        self, service: str, giver: str, receiver: str, out: str | None, into: str | None, bytes_per_token: float
    ) -> None:
        ways = self.ways.setdefault(service, [])
        if not ways:
            ways.append(Way(index=0, giver=None, receiver=None))
        crossed = [self.crossings[name] for name in (out, into) if name]
        ends = [end for end, name in enumerate((out, into)) if name]
        over = [
            ((leaving, entering)[end], round(bytes_per_token * TICKS_PER_S / rate))
            for (leaving, entering, rate), end in zip(crossed, ends, strict=True)
        ]
        ways.append(Way(index=len(ways), giver=giver, receiver=receiver, over=tuple(over)))

    def share_out(self, service: str, mixed: float, shares: dict[tuple[str, str], float]) -> None:
        total, now = mixed + sum(shares.values()), self.turns.get(service, 0)
        for way in self.ways[service]:
            share = mixed if way.index == 0 else shares.get((str(way.giver), str(way.receiver)), 0.0)
            part = share / total if total else 0.0
            stride = round(STRIDE / part) if part >= 1e-6 else 0
            if stride != way.stride:
                way.stride, way.turn = stride, now + stride // 2

    def ways_between(self, giver: Engine, taker: Engine) -> list[Way | None]:
        """Ways that lead from one to the other; one without a name where a service says nothing."""
        named = self.ways.get(giver.service)
        if giver is taker:
            return [named[0] if named else None]
        if named is None:
            return [None] if giver.domain == taker.domain == "" else []
        return [way for way in named[1:] if (way.giver, way.receiver) == (giver.domain, taker.domain)]

    def turn(self, service: str, way: Way | None) -> tuple[int, int]:
        if way is None:
            return 0, 0
        return max(way.turn, self.turns.get(service, 0)) if way.stride else NEVER, way.index

    def take(self, service: str, way: Way | None) -> None:
        if way and way.stride:
            self.turns[service], _ = self.turn(service, way)
            way.turn = self.turns[service] + way.stride
