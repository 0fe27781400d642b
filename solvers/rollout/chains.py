"""What a service can serve during a rollout: Ready capacity of its role chains against what the plan serves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from solvers.engine import ProfileKey, Role
from solvers.fleet import PoolKey, Replica, ReplicaState, Snapshot
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.sizes import SizeRange
from solvers.sizing import Capacity, replica_capacity

Place = tuple[PoolKey, str]
Chain = tuple[str, Role]

CHAINS = {
    Role.PREFILL: (Role.PREFILL,),
    Role.DECODE: (Role.DECODE,),
    Role.MIXED: (Role.PREFILL, Role.DECODE),
}
"""The role chains that a replica serves; the plan sizes both in requests per second, so they add up."""
START_PATIENCE_S = 900.0  # several cold starts; a replica not Ready by then no longer holds up other starts
KEEP_START_S = 300.0  # two to three; a start that is not wanted any more is not waited for longer where others serve
ROUNDING = 1e-9  # relative; capacities are quotients of floats


class Chains:
    """Ready replicas of every (service or part of one, role chain), and how much of them the plan needs.

    A replica counts what the plan's sizing gives one of its pool, else what ``carried`` says. Where neither knows its
    pool it counts nothing: others must carry the load before it may leave.

    Parameters
    ----------
    want : mapping of place to int
        Replicas planned.
    kept : mapping of place to replicas
        Those that exist and stay as far as is decided.
    carried : mapping of pool to float, requests/s
        What one replica of a pool carries that the plan lacks.
    """

    def __init__(
        self,
        plan: Plan,
        want: Mapping[Place, int],
        kept: Mapping[Place, Sequence[Replica]],
        carried: Mapping[PoolKey, float],
    ) -> None:
        sized = {row.pool: row.capacity_requests_per_s / row.replicas for row in plan.pools if row.replicas > 0}
        self._parts: dict[str, list[str]] = {}
        for row in plan.parts:
            self._parts.setdefault(row.service, []).append(row.sizes)
        known = {pool: rate for pool, rate in carried.items() if pool.sizes in self._parts.get(pool.service, [""])}
        self._weight = {**known, **sized}
        self._served = {row.service: row.served_requests_per_s for row in plan.services}
        self._served |= {f"{row.service}:{row.sizes}": row.served_requests_per_s for row in plan.parts}
        self._want = want
        self._wanted: Counter[Chain] = Counter()
        self._ready: dict[Chain, float] = defaultdict(float)
        self._ready_replicas: Counter[Chain] = Counter()
        self._ready_wanted: Counter[Chain] = Counter()
        self._ready_at: Counter[Place] = Counter()
        for (pool, _), count in want.items():
            for chain in self._chains_of(pool):
                self._wanted[chain] += count
        for replicas in kept.values():
            for replica in replicas:
                self.count(replica, 1)

    def _chains_of(self, pool: PoolKey) -> list[Chain]:
        """Name the chains that a replica of the pool serves: of its part where its service is split by size.

        Replicas of another cut serve every part, nobody knows how much of each: others must carry the load before they
        may leave.
        """
        parts = self._parts.get(pool.service, [])
        mine = [pool.sizes] if pool.sizes in parts else parts
        names = [f"{pool.service}:{sizes}" for sizes in mine] or [pool.service]
        return [(name, chain) for name in names for chain in CHAINS[pool.role]]

    def count(self, replica: Replica, sign: int) -> None:
        """Add a Ready replica to its chains, or take it off with ``sign`` −1."""
        if replica.state is not ReplicaState.READY:
            return
        place = replica.pool, replica.location
        want, before = self._want.get(place, 0), self._ready_at[place]
        self._ready_at[place] += sign
        for chain in self._chains_of(replica.pool):
            self._ready[chain] += sign * self._weight.get(replica.pool, 0.0)
            self._ready_replicas[chain] += sign
            self._ready_wanted[chain] += min(want, before + sign) - min(want, before)

    def is_last(self, replica: Replica) -> bool:
        """True for the last Ready replica of a chain that the plan still wants."""
        return replica.state is ReplicaState.READY and any(
            self._wanted[chain] > 0 and self._ready_replicas[chain] <= 1 for chain in self._chains_of(replica.pool)
        )

    def can_spare(self, replica: Replica) -> bool:
        """True when its service serves what the plan does without it: not serving, spare, or replaced by Ready ones.

        A start counts as not serving where the Ready ones carry the load, and once it took too long; else it will
        serve sooner than one that begins now.
        """
        if replica.state is ReplicaState.PENDING:
            return True
        if replica.state is ReplicaState.STARTING:
            wanted = [chain for chain in self._chains_of(replica.pool) if self._wanted[chain] > 0]
            serves = all(self._ready_replicas[chain] > 0 for chain in wanted)
            is_late = replica.age_s > (KEEP_START_S if serves else START_PATIENCE_S)
            return is_late or (serves and all(self._is_met(chain) for chain in wanted))
        less, at = self._weight.get(replica.pool, 0.0), (replica.pool, replica.location)
        is_wanted = self._ready_at[at] <= self._want.get(at, 0)
        return not self.is_last(replica) and all(
            self._is_met(c, less, is_wanted) for c in self._chains_of(replica.pool)
        )

    def _is_met(self, chain: Chain, less: float = 0.0, fewer: int = 0) -> bool:
        """True when a chain carries what is served, or all that is wanted of it is Ready, with so much less of both."""
        if self._ready_wanted[chain] - fewer >= self._wanted[chain]:
            return True
        return self._ready[chain] - less >= self._served.get(chain[0], 0.0) * (1.0 - ROUNDING)

    def met_ratio(self, service: str) -> float:
        """How much of what the plan serves the Ready replicas carry, 0 to 1: of the chain that is worst off."""
        names = [f"{service}:{sizes}" for sizes in self._parts.get(service, [])] or [service]
        wanted = [
            (name, role) for name in names for role in (Role.PREFILL, Role.DECODE) if self._wanted[name, role] > 0
        ]
        served = {chain: self._served.get(chain[0], 0.0) for chain in wanted}
        return min((min(1.0, self._ready[c] / rate) for c, rate in served.items() if rate > 0.0), default=1.0)

    def left_ratio(self, replica: Replica) -> float:
        """How much of what the plan serves the chains of a Ready replica carry without it: of the worst off.

        It never grows as more leave. Where nobody knows what the replica carries, replicas are counted instead.
        """
        return min(
            (self._left(chain, replica) for chain in self._chains_of(replica.pool) if self._wanted[chain]), default=1.0
        )

    def _left(self, chain: Chain, without: Replica) -> float:
        served, weight = self._served.get(chain[0], 0.0), self._weight.get(without.pool, 0.0)
        if served > 0.0 and weight > 0.0:
            return (self._ready[chain] - weight) / served
        return (self._ready_replicas[chain] - 1) / self._wanted[chain]


def carried_requests_per_s(problem: Problem, snapshot: Snapshot) -> dict[PoolKey, float]:
    """Size one Ready replica of every running pool at the present mix of its service.

    For what a plan dropped and therefore did not size. Each pool at the size that it has once one left, as smaller
    pools carry less per replica.

    Returns
    -------
    dict of pool to float, requests/s
        0.0 for what has no profile, or cannot keep the SLOs any more.
    """
    ready = Counter(r.pool for r in snapshot.replicas if r.state is ReplicaState.READY)
    return {pool: _carried(problem, pool, max(1, count - 1)) for pool, count in sorted(ready.items())}


def _carried(problem: Problem, pool: PoolKey, replicas: int) -> float:
    service = next((service for service in problem.services if service.name == pool.service), None)
    demand = problem.demands.get(pool.service)
    if service is None or demand is None or not demand.mix:
        return 0.0
    key = ProfileKey(model=service.model, gpu_class=pool.gpu_class, config=pool.config)
    if key not in problem.profiles:
        return 0.0
    sizes = SizeRange.parse(pool.sizes) if pool.sizes else SizeRange(0)
    mix = [bucket for bucket in demand.mix if sizes.holds(bucket.prompt_tokens)]
    if not mix:
        return 0.0
    sized = replica_capacity(problem.profiles[key], pool.role, mix, service.slos, pool_replicas=replicas)
    return sized.requests_per_s if isinstance(sized, Capacity) else 0.0
