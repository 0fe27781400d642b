"""What running services teach about their profiles, from turn to turn: one value, and pure steps from one to the next.

A pool teaches only while it is steady: the same Ready replicas for a whole window, none of them starting or leaving,
under one cap. All pools of a profile make one observation a window (``solvers.operating``); beliefs and the factors
that planning holds are ``solvers.correction``'s. ``with_corrections`` is the one place where factors get into profiles.

The value lives on in the statuses of the EngineProfiles (``correction_status``), so another leader goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import geometric_mean

from controller.observe import Observation
from controller.readings import EngineReading, Readings
from controller.schema import Mode
from controller.specs import Specs
from solvers.correction import HIGHER_IS_BETTER, Belief, Held, Learning, Observed, Phase, hold, learn, scaled
from solvers.engine import EngineProfile, ProfileKey
from solvers.fleet import PoolKey, Replica, ReplicaState
from solvers.operating import OperatingPoint, Residual, merged, residuals
from solvers.plan import Plan
from solvers.sizes import SizeRange
from solvers.workload import Demand, SizeBucket

UNSETTLED = frozenset({ReplicaState.STARTING, ReplicaState.LEAVING})
LEAST_REQUESTS = 5.0  # of a profile in a window; fewer say more of themselves than of the engine

Place = tuple[ProfileKey, Phase]
Notice = tuple[str, str, str, bool]
"""Name of an EngineProfile, reason, message, whether it is a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Replicas of a pool and the cap of their GPUs, and since when they have been these."""

    replicas: tuple[str, ...]
    cap_watts: float | None
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """All that is known, as of a turn.

    Attributes
    ----------
    beliefs, held : mapping of (profile, phase)
        What was learnt, and the factors that planning uses.
    profiles : mapping of ProfileKey to EngineProfile
        What it was learnt of; another profile of that name begins anew.
    steady : mapping of PoolKey to Steady
        Pools with replicas.
    taught_s : float
        Time of the last readings that were learnt from.
    passed_over : mapping of PoolKey to str
        Why the pool taught nothing in the last window.
    names : mapping of ProfileKey to str
        Names of the EngineProfiles, as statuses were read back from them.
    notices : tuple of Notice
        News of the last turn.
    """

    beliefs: Mapping[Place, Belief] = field(default_factory=dict)
    held: Mapping[Place, Held] = field(default_factory=dict)
    profiles: Mapping[ProfileKey, EngineProfile] = field(default_factory=dict)
    steady: Mapping[PoolKey, Steady] = field(default_factory=dict)
    taught_s: float = float("-inf")
    passed_over: Mapping[PoolKey, str] = field(default_factory=dict)
    names: Mapping[ProfileKey, str] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()

    def factors(self, key: ProfileKey) -> dict[Phase, float]:
        """Factors that planning holds for a profile, from what was seen of it."""
        return {phase: self.held[key, phase].factor for phase in Phase if (key, phase) in self.held}

    def planned(self, key: ProfileKey) -> dict[Phase, float]:
        """Factors that planning uses for a profile: its own, else those of its siblings where they are for the worse.

        Siblings are other configurations of the model on the GPU class. Were they let off, a plan would leave whatever
        was found slow for what nobody has run yet, and find that as slow.
        """
        own = self.factors(key)
        lent = {phase: self._lent(key, phase) for phase in Phase if not self._is_known(key, phase)}
        return {phase: value for phase, value in {**lent, **own}.items() if phase in own or value != 1.0}

    def _is_known(self, key: ProfileKey, phase: Phase) -> bool:
        """True where enough was seen of the profile itself, were it only that it is right."""
        belief = self.beliefs.get((key, phase))
        is_enough = belief is not None and belief.weight >= Learning().enough_observations
        return is_enough or (key, phase) in self.held

    def _lent(self, key: ProfileKey, phase: Phase) -> float:
        """Geometric mean of what siblings hold, in hundredths; 1 where that would be for the better."""
        place = key.model, key.gpu_class
        seen = [h.factor for (k, p), h in self.held.items() if p is phase and (k.model, k.gpu_class) == place]
        if not seen:
            return 1.0
        mean = round(geometric_mean(sorted(seen)), 2)
        return min(1.0, mean) if phase in HIGHER_IS_BETTER else max(1.0, mean)


def with_corrections(specs: Specs, corrections: Corrections) -> Specs:
    """Write the factors in force into the profiles, where the policy lets planning use them."""
    if specs.policy.modes.correction is not Mode.ACT or not corrections.held:
        return specs
    profiles = tuple(scaled(profile, corrections.planned(profile.key)) for profile in specs.engine_profiles)
    return replace(specs, engine_profiles=profiles)


def observed_pools(
    known: Corrections,
    specs: Specs,
    observation: Observation,
    readings: Readings,
    *,
    now_s: float,
    window_s: float,
    time_scale: float = 1.0,
    plan: Plan | None = None,
    learning: Learning | None = None,
) -> Corrections:
    """Learn from one turn's readings; engines that were not asked anew teach nothing.

    Parameters
    ----------
    specs : Specs
        With the profiles as they were made.
    window_s : float
        Real seconds that the readings are means of.
    time_scale : float
        Seconds of the served world per real second; beliefs age by the served ones.
    plan : Plan, optional
        The plan in force, which says the caps.
    """
    terms = learning or Learning()
    terms = replace(terms, half_life_s=terms.half_life_s / time_scale)
    profiles = {profile.key: profile for profile in specs.engine_profiles}
    kept = replace(_of_these(known, profiles), notices=())
    kept = replace(kept, steady=_steady(kept.steady, observation, plan, now_s))
    as_of_s = max((engine.as_of_s for engine in readings.engines.values()), default=float("-inf"))
    is_new = as_of_s >= kept.taught_s + 0.5 * window_s
    if is_new and now_s - as_of_s <= observation.policy.telemetry_max_age_s:
        look = _Look(observation, readings, profiles, window_s, time_scale, as_of_s)
        seen = list(look.taught(kept.steady, now_s))
        beliefs = learn(kept.beliefs, seen, terms)
        kept = replace(kept, beliefs=beliefs, taught_s=as_of_s, passed_over=look.passed_over)
    return _held(kept, now_s, terms)


def _of_these(known: Corrections, profiles: Mapping[ProfileKey, EngineProfile]) -> Corrections:
    """Forget what was learnt of profiles that are gone or say something else now."""
    gone = {key for key, profile in known.profiles.items() if profiles.get(key) != profile}
    return replace(
        known,
        beliefs={place: belief for place, belief in known.beliefs.items() if place[0] not in gone},
        held={place: held for place, held in known.held.items() if place[0] not in gone},
        profiles=profiles,
    )


def _steady(
    before: Mapping[PoolKey, Steady], observation: Observation, plan: Plan | None, now_s: float
) -> dict[PoolKey, Steady]:
    """Note which replicas serve; a pool with one on its way in or out has been steady since now."""
    caps = {row.pool: row.cap_watts for row in (plan.pools if plan else ())}
    found = {}
    for pool, replicas in sorted(_by_pool(observation.snapshot.replicas).items()):
        names = tuple(sorted(replica.name for replica in replicas if replica.state is ReplicaState.READY))
        highest = observation.snapshot.gpu_classes[pool.gpu_class].max_cap_watts
        cap_watts = caps[pool] if caps.get(pool, highest) < highest else None
        old, is_unsettled = before.get(pool), any(replica.state in UNSETTLED for replica in replicas)
        same = old is not None and (old.replicas, old.cap_watts) == (names, cap_watts) and not is_unsettled
        found[pool] = old if old and same else Steady(replicas=names, cap_watts=cap_watts, since_s=now_s)
    return found


def _by_pool(replicas: Iterable[Replica]) -> dict[PoolKey, list[Replica]]:
    found: dict[PoolKey, list[Replica]] = {}
    for replica in replicas:
        found.setdefault(replica.pool, []).append(replica)
    return found


def _held(known: Corrections, now_s: float, learning: Learning) -> Corrections:
    """Move the factors of planning that are due, and say so."""
    held: dict[Place, Held] = {}
    notices = list(known.notices)
    for (key, phase), belief in sorted(known.beliefs.items()):
        before = known.held.get((key, phase))
        after = hold(before, belief, phase, now_s, learning)
        if after is not None:
            held[key, phase] = after
        if after is not before and key in known.names:
            was, now = (one.factor if one else 1.0 for one in (before, after))
            notices.append((known.names[key], "Corrected", f"{phase} x{now:.2f}, was x{was:.2f}", False))
    return replace(known, held=held, notices=tuple(notices))


class _Look:
    """One window of readings, and why pools taught nothing in it."""

    def __init__(
        self,
        observation: Observation,
        readings: Readings,
        profiles: Mapping[ProfileKey, EngineProfile],
        window_s: float,
        time_scale: float,
        as_of_s: float,
    ) -> None:
        self._observation, self._engines, self._profiles = observation, readings.engines, profiles
        self._window_s, self._served_s, self._as_of_s = window_s, window_s * time_scale, as_of_s
        self._models = {service.name: service.model for service in observation.problem.services}
        self.passed_over: dict[PoolKey, str] = {}

    def taught(self, pools: Mapping[PoolKey, Steady], now_s: float) -> Iterable[Observed]:
        """One observation for each profile and phase."""
        rows: dict[ProfileKey, list[Residual]] = {}
        for pool, steady in pools.items():
            key = ProfileKey(model=self._models.get(pool.service, ""), gpu_class=pool.gpu_class, config=pool.config)
            found = self._pool(pool, steady, self._profiles.get(key))
            if isinstance(found, str):
                self.passed_over[pool] = found
            else:
                rows.setdefault(key, []).extend(found)
        for key, residual_rows in sorted(rows.items()):
            seen = merged(residual_rows, self._profiles[key], now_s)
            yield from (each for each in seen if each.requests >= LEAST_REQUESTS)

    def _pool(self, pool: PoolKey, steady: Steady, profile: EngineProfile | None) -> list[Residual] | str:
        """Residuals of all replicas of a pool, or why there are none."""
        demand = self._observation.problem.demands.get(pool.service)
        if profile is None or demand is None or not demand.mix:
            return "no profile or no sizes of requests are known"
        told = [self._engines.get(f"{pool.namespace}/{name}") for name in steady.replicas]
        if not told or any(each is None or self._is_old(each) for each in told):
            return "not all of its engines were read"
        if any(each is not None and each.as_of_s - self._window_s < steady.since_s for each in told):
            return "its replicas or their cap changed within the window"
        found = [
            row
            for each in told
            if each is not None
            for row in residuals(profile, self._point(pool, steady, each, demand))
        ]
        return found or "too little traffic, or a load outside the profile's tables"

    def _is_old(self, engine: EngineReading) -> bool:
        return engine.as_of_s < self._as_of_s - 0.5 * self._window_s

    def _point(self, pool: PoolKey, steady: Steady, engine: EngineReading, demand: Demand) -> OperatingPoint:
        prompts = engine.prompts_per_s
        is_mean_known = prompts > 0 and engine.prompt_tokens_per_s > 0
        return OperatingPoint(
            role=pool.role,
            mix=_mix(demand, pool.sizes),
            running=engine.running,
            waiting=engine.waiting,
            prompts_per_s=prompts,
            output_tokens_per_s=engine.output_tokens_per_s,
            prompt_tokens=engine.prompt_tokens_per_s / prompts if is_mean_known else None,
            prefill_s=engine.prefill_s,
            ttft_s=engine.ttft_s,
            itl_s=engine.itl_s,
            gpu_watts=engine.gpu_watts,
            cap_watts=steady.cap_watts,
            window_s=self._served_s,
        )


def _mix(demand: Demand, sizes: str) -> tuple[SizeBucket, ...]:
    """Sizes that a pool gets: those of its range, where the service is split by size."""
    if not sizes:
        return demand.mix
    wanted = SizeRange.parse(sizes)
    return tuple(bucket for bucket in demand.mix if wanted.holds(bucket.prompt_tokens)) or demand.mix
