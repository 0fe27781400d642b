"""Capacities of pools at their sizes, each looked up once."""

from __future__ import annotations

from dataclasses import dataclass, field

from solvers.engine import EngineProfile, ProfileKey
from solvers.fleet import PoolKey
from solvers.pairing import Pairing
from solvers.planner.bays.links import Links
from solvers.planner.bays.reclaim import Reclaims
from solvers.planner.pools.caps import profile_at
from solvers.problem import Problem
from solvers.sizing import Capacity, CapacityOf, Unfit

CURVE_ENDS = 64  # sizing counts economies of scale up to this pool size


@dataclass(slots=True, kw_only=True)
class Sizer:
    """Capacities of one problem by (pool, pool size), each asked for once."""

    problem: Problem
    capacity_of: CapacityOf
    known: dict[tuple[PoolKey, int], Capacity | Unfit] = field(default_factory=dict)
    _reclaims: Reclaims | None = None
    _pairing: Pairing | None = None
    _links: Links | None = None
    _profiles: dict[PoolKey, EngineProfile | None] = field(default_factory=dict)

    def profile(self, pool: PoolKey) -> EngineProfile | None:
        """Curves of the pool at its cap; None where the problem has none."""
        if pool not in self._profiles:
            model = next(s.model for s in self.problem.services if s.name == pool.service)
            key = ProfileKey(model=model, gpu_class=pool.gpu_class, config=pool.config)
            known = self.problem.profiles.get(key)
            self._profiles[pool] = known and profile_at(known, pool)
        return self._profiles[pool]

    @property
    def reclaims(self) -> Reclaims:
        """On what terms nodes are had; looked up once."""
        if self._reclaims is None:
            self._reclaims = Reclaims.of(self.problem)
        return self._reclaims

    @property
    def pairing(self) -> Pairing:
        """Which pools may hand keys and values to which; looked up once."""
        if self._pairing is None:
            self._pairing = Pairing.of(self.problem)
        return self._pairing

    @property
    def links(self) -> Links:
        """Links between locations, and who may use them; looked up once."""
        if self._links is None:
            self._links = Links.of(self.problem, self.pairing)
        return self._links

    def at(self, pool: PoolKey, profile: EngineProfile, replicas: int) -> Capacity | Unfit:
        """Capacity of one replica of the pool at the size; it never falls as the pool grows."""
        key = (pool, size := min(replicas, CURVE_ENDS))
        if (found := self.known.get(key)) is None:
            service = next(s for s in self.problem.services if s.name == pool.service)
            mix = self.problem.demands[pool.service].mix
            found = self.known[key] = self.capacity_of(profile, pool.role, mix, service.slos, pool_replicas=size)
        return found

    def carried(self, pool: PoolKey, profile: EngineProfile, replicas: int) -> float:
        """Requests per second of the whole pool, 0 when it cannot serve the mix."""
        capacity = self.at(pool, profile, replicas)
        return 0.0 if isinstance(capacity, Unfit) else replicas * capacity.requests_per_s
