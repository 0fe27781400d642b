"""The best power cap of every pool once its replicas are placed, at the exact capacity of its size.

What comes before chooses counts and caps together, by size steps that promise a little too much, or chooses counts
alone. With the counts fixed only one level for each pool is left to choose: a model of a few dozen columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.pairing import Domain
from solvers.planner.bays.nodes import Counts, Room
from solvers.planner.model.relax import Arrays, solve_whole
from solvers.planner.pools.cells import CHAINS
from solvers.planner.pools.options import Options, PoolOption
from solvers.planner.pools.penalties import Penalties
from solvers.planner.pools.sizer import Sizer
from solvers.problem import Problem
from solvers.programme import Run, solve, stacked

TIER_STEP = 100.0  # a tier outweighs the one below by so much more than its penalties say: counts no longer change
RELATIVE_GAP = 1e-6
NODE_LIMIT = 2000
SECONDS = 5.0  # a safety net only


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """One cap of one placed pool: what the pool carries in each pairing domain, costs in energy, adds to each feed."""

    pool: PoolKey
    carried_per_s: Mapping[Domain, float]
    energy_usd_per_hour: float
    watts: Mapping[str, float]


def recapped(
    problem: Problem, sizer: Sizer, options: Options, penalties: Penalties, counts: Counts, run: Run = solve
) -> dict[tuple[PoolKey, str], int]:
    """Return the counts with the caps that serve most, tiers in order, and then cost least.

    Raises
    ------
    SolveFailed
        When HiGHS finds nothing; the counts as they are remain a plan.
    """
    by_base = _levels(problem, sizer, options, counts)
    levels = [level for found in by_base.values() for level in found]
    if len(levels) == len(by_base):
        return dict(counts)
    arrays = _state(problem, penalties, by_base)
    found = solve_whole(arrays, relative_gap=RELATIVE_GAP, time_limit_s=SECONDS, node_limit=NODE_LIMIT, run=run)
    chosen = {level.pool.uncapped: level.pool for level, x in zip(levels, found.x, strict=False) if x > 0.5}
    return {(chosen[pool.uncapped], location): count for (pool, location), count in counts.items()}


def _levels(problem: Problem, sizer: Sizer, options: Options, counts: Counts) -> dict[PoolKey, list[_Level]]:
    """The levels that each placed pool could have, its own among them."""
    placed: dict[PoolKey, dict[str, int]] = {}
    own = {pool.uncapped: pool for pool, _ in counts}
    for (pool, location), count in sorted(counts.items()):
        placed.setdefault(pool.uncapped, {})[location] = count
    room, found = Room.of(problem), dict[PoolKey, list[_Level]]()
    for option in options.pools:
        base = option.pool.uncapped
        if base in placed:
            found.setdefault(base, []).append(_level(problem, sizer, option, placed[base], room))
    whole = {base: levels for base, levels in found.items() if own[base] in {level.pool for level in levels}}
    return whole if len(whole) == len(placed) else {}


def _level(problem: Problem, sizer: Sizer, option: PoolOption, places: Mapping[str, int], room: Room) -> _Level:
    count, watts = sum(places.values()), dict[str, float]()
    for location, replicas in places.items():
        for domain in room.charged(option.pool, location):
            watts[domain] = watts.get(domain, 0.0) + replicas * option.reserved_watts
    sized = sizer.at(option.pool, option.profile, count) if problem.demands[option.pool.service].mix else None
    gpu_watts = getattr(sized, "gpu_watts", option.profile.idle_watts_per_gpu)
    energy = problem.policy.energy_usd_per_kilowatt_hour / 1000.0
    carried: dict[Domain, float] = {}
    for location, replicas in places.items():
        at = sizer.pairing.domain(option.pool, location)
        carried[at] = carried.get(at, 0.0) + replicas * getattr(sized, "requests_per_s", 0.0)
    return _Level(
        pool=option.pool,
        carried_per_s=carried,
        energy_usd_per_hour=count * energy * option.replica_watts(gpu_watts),
        watts=watts,
    )


def _state(problem: Problem, penalties: Penalties, by_base: Mapping[PoolKey, Sequence[_Level]]) -> Arrays:
    """Columns: every level (0 or 1); of each service what mixed pools, pairs of each domain and nobody carry."""
    levels = [level for found in by_base.values() for level in found]
    services = sorted({level.pool.service for level in levels})
    domains = {service: _domains(levels, service) for service in services}
    rooms = Room.of(problem).free_watts
    ranks = {service.name: service.tier_rank for service in problem.services}
    lowest = max(ranks.values(), default=0)
    rows = _Rows(columns=len(levels) + sum(2 + len(mine) for mine in domains.values()))
    index = {base: n for n, base in enumerate(by_base)}
    for base in by_base:
        rows.add({c: 1.0 for c, level in enumerate(levels) if index[level.pool.uncapped] == index[base]}, 1.0, 1.0)
    for domain, watts in sorted(rooms.items()):
        rows.add(
            {c: level.watts[domain] / 1000.0 for c, level in enumerate(levels) if domain in level.watts},
            upper=watts / 1000.0,
        )
    cost = [level.energy_usd_per_hour for level in levels]
    for service in services:
        demand = max(problem.demands[service].requests_per_s, 1e-12)
        mixed = len(cost)
        pairs = range(mixed + 1, mixed + 1 + len(domains[service]))
        rows.add({**_carried(levels, service, Role.MIXED, None, demand), mixed: -1.0}, lower=0.0)
        for column, at in zip(pairs, domains[service], strict=True):
            for _, (role, _) in CHAINS:
                rows.add({**_carried(levels, service, role, at, demand), column: -1.0}, lower=0.0)
        rows.add({mixed: 1.0, **dict.fromkeys(pairs, 1.0), pairs.stop: 1.0}, lower=1.0)
        unserved = penalties.unserved_usd_per_hour[service] * TIER_STEP ** (lowest - ranks[service])
        cost += [0.0] * (1 + len(pairs)) + [unserved]
    return rows.arrays(np.array(cost), len(levels))


def _domains(levels: Sequence[_Level], service: str) -> list[Domain]:
    """Where the service pairs prefill with decode."""
    mine = (level for level in levels if level.pool.service == service and level.pool.role is not Role.MIXED)
    return sorted({domain for level in mine for domain in level.carried_per_s})


def _carried(
    levels: Sequence[_Level], service: str, role: Role, domain: Domain | None, demand: float
) -> dict[int, float]:
    """What each level carries in a role and domain (all for None), in shares of the demand."""
    mine = ((c, x) for c, x in enumerate(levels) if (x.pool.service, x.pool.role) == (service, role))
    return {
        c: sum(rate for at, rate in level.carried_per_s.items() if domain in (None, at)) / demand for c, level in mine
    }


class _Rows:
    """Rows of a model, added one by one."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.entries: list[Mapping[int, float]] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def add(self, terms: Mapping[int, float], lower: float = -np.inf, upper: float = np.inf) -> None:
        self.entries.append(terms)
        self.lower.append(lower)
        self.upper.append(upper)

    def arrays(self, cost: np.ndarray, whole: int) -> Arrays:
        return Arrays(
            cost=cost / max(1.0, float(np.abs(cost).max(initial=0.0)) / 1e4),
            matrix=stacked(self.entries, self.columns),
            row_lower=np.array(self.lower),
            row_upper=np.array(self.upper),
            lower=np.zeros(self.columns),
            upper=np.ones(self.columns),
            whole=np.arange(self.columns) < whole,
            columns={},
            rows=(),
        )
