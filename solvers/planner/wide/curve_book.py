"""What the pools of a large fleet carry and cost at the sizes asked for so far, and who sizes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solvers.engine import EngineProfile
from solvers.fleet import PoolKey
from solvers.planner.pools.cells import Cells
from solvers.planner.pools.crew import Crew, of_service
from solvers.planner.pools.sizer import CURVE_ENDS
from solvers.planner.wide.curve import Curve
from solvers.planner.wide.stock_taking import known_sizes, size_at
from solvers.planner.wide.ways import WayMaker
from solvers.sizing import Capacity

MOST_ALONE = 200  # sizes that are not worth sending to others


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveBook:
    """``curves`` of each service by pool (index inside the service), filled as they are asked for."""

    cells: Cells
    maker: WayMaker
    crew: Crew
    curves: Sequence[dict[int, Curve]]

    def know(self, kept: Sequence[frozenset[int]]) -> None:
        """Size the pools that are told apart, by service, at a few sizes."""
        stocks = self.maker.stocks
        fresh = [(s, p) for s in range(len(stocks)) for p in sorted(kept[s] - self.curves[s].keys())]
        asks = [(s, p, size) for s, p in fresh for size in known_sizes(int(stocks[s].most[p]), stocks[s].every)]
        if self.crew.workers > 1 and len(asks) > MOST_ALONE:
            self._size_ahead(asks)
        for s, pool in fresh:
            self.curves[s][pool] = Curve()
        for s, pool, size in asks:
            self.learn(s, pool, size)

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

    def _size_ahead(self, asks: Sequence[tuple[int, int, int]]) -> None:
        """Let the crew size pools, so that what follows looks it up."""
        known = self.maker.sizer.known
        by_service: dict[int, list[tuple[PoolKey, EngineProfile, int]]] = {}
        for s, pool, size in asks:
            option = self.maker.option(s, pool)
            if (option.pool, size) not in known:
                by_service.setdefault(s, []).append((option.pool, option.profile, size))
        problem = self.cells.problem
        work = [
            (of_service(problem, self.cells.services[s]), self.maker.sizer.capacity_of, tuple(pools))
            for s, pools in sorted(by_service.items())
        ]
        for (_, _, pools), found in zip(work, self.crew.each(size_at, work), strict=True):
            for (key, _, size), sized in zip(pools, found, strict=True):
                known[key, min(size, CURVE_ENDS)] = sized
