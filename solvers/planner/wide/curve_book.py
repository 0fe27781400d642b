"""What the pools of a large fleet carry and cost at the sizes asked for so far, and who sizes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from solvers.engine import EngineProfile
from solvers.fleet import PoolKey
from solvers.planner.pools.cells import Cells
from solvers.planner.pools.crew import Crew, of_service
from solvers.planner.pools.sizer import CURVE_ENDS
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.stock_taking import known_sizes, size_at
from solvers.planner.wide.ways import WayMaker
from solvers.problem import Problem
from solvers.sizing import Capacity, CapacityOf, Unfit

MOST_ALONE = 200  # sizes that are not worth sending to others


Ask = tuple[PoolKey, EngineProfile, int]
Work = tuple[Problem, CapacityOf, tuple[Ask, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveBook:
    """``curves`` of each service by pool (index inside the service), filled as they are asked for.

    ``begun`` is what the crew is sizing beside what this process does, and what gives its answers.
    """

    cells: Cells
    maker: WayMaker
    crew: Crew
    curves: Sequence[dict[int, Curve]]
    begun: list[tuple[list[Work], Callable[[], list[list[Capacity | Unfit]]]]] = field(default_factory=list)

    def size_ahead(self, kept: Sequence[frozenset[int]]) -> None:
        """Let the crew size pools that will be told apart, by service, while this process does something else."""
        if work := self._work(self._asks(kept)):
            self.begun.append((work, self.crew.ahead(size_at, work)))

    def know(self, kept: Sequence[frozenset[int]]) -> None:
        """Size the pools that are told apart, by service, at a few sizes."""
        while self.begun:
            work, answers = self.begun.pop()
            self._take(work, answers())
        asks = self._asks(kept)
        if work := self._work(asks):
            self._take(work, self.crew.each(size_at, work))
        for s, pool in dict.fromkeys((s, pool) for s, pool, _ in asks):
            self.curves[s][pool] = Curve()
        for s, pool, size in asks:
            self.learn(s, pool, size)

    def _asks(self, kept: Sequence[frozenset[int]]) -> list[tuple[int, int, int]]:
        """(service, pool, size) of what is told apart and not known yet."""
        stocks = self.maker.stocks
        fresh = [(s, p) for s in range(len(stocks)) for p in sorted(kept[s] - self.curves[s].keys())]
        return [(s, p, size) for s, p in fresh for size in known_sizes(int(stocks[s].most[p]), stocks[s].every)]

    def learn(self, service: int, pool: int, size: int) -> None:
        """Make the curve of a pool exact at a size."""
        option = self.maker.option(service, pool)
        sized = self.maker.sizer.at(option.pool, option.profile, size)
        rate, watts = 0.0, option.profile.idle_watts_per_gpu
        if isinstance(sized, Capacity):
            rate, watts = sized.requests_per_s, sized.gpu_watts
        curve, energy = self.curves[service][pool], self.cells.policy.energy_usd_per_kilowatt_hour
        curve.rate_per_s[size] = size * rate
        curve.run_usd_per_hour[size] = size * (
            option.price_usd_per_hour + energy * option.replica_watts(watts) / 1000.0
        )

    def _work(self, asks: Sequence[tuple[int, int, int]]) -> list[Work]:
        """What is to be sized, in a piece for each service; nothing where that is not worth sending to others."""
        if self.crew.workers <= 1 or len(asks) <= MOST_ALONE:
            return []
        known = self.maker.sizer.known
        by_service: dict[int, list[Ask]] = {}
        for s, pool, size in asks:
            option = self.maker.option(s, pool)
            if (option.pool, size) not in known:
                by_service.setdefault(s, []).append((option.pool, option.profile, size))
        problem = self.cells.problem
        return [
            (of_service(problem, self.cells.services[s]), self.maker.sizer.capacity_of, tuple(pools))
            for s, pools in sorted(by_service.items())
        ]

    def _take(self, work: Sequence[Work], answers: Sequence[Sequence[Capacity | Unfit]]) -> None:
        """Note capacities, so that what follows looks them up."""
        known = self.maker.sizer.known
        for (_, _, pools), found in zip(work, answers, strict=True):
            for (key, _, size), sized in zip(pools, found, strict=True):
                known[key, min(size, CURVE_ENDS)] = sized
