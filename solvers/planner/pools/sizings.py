"""What sizing said in earlier decisions, for the next one: the same answers, not worked out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from solvers.engine import EngineProfile, ProfileKey
from solvers.fleet import PoolKey
from solvers.problem import Problem
from solvers.sizing import Capacity, Unfit, replica_capacity
from solvers.workload import Demand, ServedModel, SizeBucket, Slo

MOST = 200_000
"""Answers that are kept, of some 300 bytes each; with more, a decision begins with none."""

Known = dict[tuple[PoolKey, int], Capacity | Unfit]
Rest = tuple[str, tuple[SizeBucket, ...], tuple[Slo, ...]]


@dataclass(slots=True, kw_only=True)
class Sizings:
    """Capacities by (pool, size), kept between the decisions of one fleet, one decision at a time.

    What an answer rests on is remembered beside it (profile, model, mix, SLOs; no rate): where that changed, it is
    asked again. So a plan is the same with what was kept and without.

    Attributes
    ----------
    capacity_of : callable
        Whose answers these are; decisions with another one neither read nor write here.
    """

    capacity_of: Callable[..., Capacity | Unfit] = replica_capacity
    most: int = MOST
    known: Known = field(default_factory=dict)
    _rests: dict[str, Rest] = field(default_factory=dict)
    _profiles: Mapping[ProfileKey, EngineProfile] = field(default_factory=dict)

    def of(self, problem: Problem, capacity_of: Callable[..., Capacity | Unfit]) -> Known:
        """Answers that hold for the problem too; what is added to them is kept."""
        if capacity_of is not self.capacity_of:
            return {}
        rests = {s.name: _rest(s, problem.demands[s.name]) for s in problem.services}
        same = {name for name, rest in rests.items() if self._rests.get(name) == rest}
        changed = {key for key, profile in self._profiles.items() if problem.profiles.get(key) != profile}
        if len(self.known) > self.most:
            self.known = {}
        elif changed or len(same) < len(self._rests):  # anew: an earlier desk may still read what it was given
            self.known = {key: sized for key, sized in self.known.items() if self._holds(key[0], same, changed)}
        self._rests, self._profiles = rests, problem.profiles
        return self.known

    def _holds(self, pool: PoolKey, same: set[str], changed: set[ProfileKey]) -> bool:
        if pool.service not in same:
            return False
        model = self._rests[pool.service][0]
        return ProfileKey(model=model, gpu_class=pool.gpu_class, config=pool.config) not in changed


def _rest(service: ServedModel, demand: Demand) -> Rest:
    return service.model, tuple(demand.mix), tuple(service.slos)


class UnknownSize(LookupError):
    """A size that was not asked for before."""


def refuse(*_: object, **__: object) -> Capacity | Unfit:
    """Size nothing: what is known already has to do."""
    raise UnknownSize
