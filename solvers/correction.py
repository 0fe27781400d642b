r"""Learn, while services run, how far an engine profile is off, and plan with what is likely rather than with the mean.

For each (profile, phase) a belief holds the mean of :math:`x = \ln(\mathrm{observed} / \mathrm{predicted})`, its spread
and how many observations it rests on. Old observations lose half of their weight every half-life, so a belief that is
not fed returns to the prior: the profile is right, give or take ``prior_spread``. With weight :math:`w`, mean
:math:`\bar x`, squares :math:`S` about it, and a prior of :math:`n_0` observations

.. math:: m = \frac{w \bar x}{w + n_0} \qquad s^2 = \frac{n_0 s_0^2 + S + \frac{w n_0}{w + n_0} \bar x^2}{w + n_0}
          \qquad q = \exp\left(m + z \, s \sqrt{\frac{k}{w + n_0}}\right)

(the normal-gamma update), where ``k`` says how many neighbouring observations tell the same story. Every ``x`` and
every factor is bounded: a wrong reading can bend a plan so far and no further. What planning uses moves in steps
(``hold``), so that plans do not follow every reading.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist

from solvers.engine import EngineProfile, ProfileKey
from solvers.errors import InvalidInput
from solvers.plan import Plan
from solvers.problem import Problem


class Phase(StrEnum):
    """What is compared, and with it which part of a profile is corrected."""

    PREFILL = "prefill"
    """Time to first token: prefill times."""
    DECODE = "decode"
    """Gap between output tokens: decode steps."""
    THROUGHPUT = "throughput"
    """Work per second at full load against what the observed times allow; below 1, time is lost between them."""
    POWER = "power"
    """Watts of a busy GPU."""


HIGHER_IS_BETTER = frozenset({Phase.THROUGHPUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How a belief is formed.

    Attributes
    ----------
    half_life_s : float
        Age at which an observation counts half; a day's rhythm passes, a driver update shows after hours.
    largest_factor : float
        No observation and no correction is taken beyond this factor, up or down.
    prior_observations, prior_spread : float
        Weight of the belief that the profile is right, and how far profiles usually are off (log units).
    repeats : float
        Neighbouring observations that tell the same story: windows of the same requests on the same replicas.
    enough_requests : float
        Requests that make one whole observation; fewer count in proportion.
    quantile_ratio : float
        Planning uses the value that the true one stays below with this probability.
    enough_observations : float
        Planning takes a belief up from this weight on, and drops it below half of it.
    step_ratio : float
        Planning moves to another factor when it is off by more than this share.
    """

    half_life_s: float = 6 * 3600.0
    largest_factor: float = 2.0
    prior_observations: float = 4.0
    prior_spread: float = 0.15
    repeats: float = 4.0
    enough_requests: float = 30.0
    quantile_ratio: float = 0.8
    enough_observations: float = 8.0
    step_ratio: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One comparison of a pool with its prediction, at the load that it had.

    ``observed`` and ``predicted`` share a unit; ``requests`` is how many the observation rests on.
    """

    key: ProfileKey
    phase: Phase
    observed: float
    predicted: float
    requests: float
    as_of_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What observations say of one (profile, phase), as of a time: weight, mean and squares about it, in log units."""

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    as_of_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """What to multiply a profile's numbers by.

    Attributes
    ----------
    likely, low, high : float
        The middle, and what the true factor lies between with the probability of ``Learning.quantile_ratio`` each way.
    planned : float
        The cautious end: what planning multiplies times and watts by, and throughput too.
    observations : float
        Weight of what it rests on; 0 when only the prior speaks.
    """

    likely: float
    low: float
    high: float
    planned: float
    observations: float


Beliefs = Mapping[tuple[ProfileKey, Phase], Belief]


def learn(beliefs: Beliefs, seen: Iterable[Observed], learning: Learning) -> dict[tuple[ProfileKey, Phase], Belief]:
    """Add observations to beliefs, in the order of their times; those that are older than the belief are passed over.

    Raises
    ------
    InvalidInput
        When an observation or a prediction is not above 0.
    """
    found = dict(beliefs)
    for each in sorted(seen, key=lambda one: (one.as_of_s, one.key, one.phase)):
        place = each.key, each.phase
        found[place] = _learn_one(found.get(place), each, learning)
    return found


def _learn_one(belief: Belief | None, seen: Observed, learning: Learning) -> Belief:
    for field in ("observed", "predicted"):
        value = getattr(seen, field)
        if not 0.0 < value < math.inf:
            subject = f"correction of {seen.key.model} on {seen.key.gpu_class}/{seen.key.config.label}"
            raise InvalidInput(subject, f"{seen.phase} {field}", f"is {value}, must be above 0", "leave it out")
    if belief is not None and seen.as_of_s <= belief.as_of_s:
        return belief
    old = aged(belief or Belief(as_of_s=seen.as_of_s), seen.as_of_s, learning)
    share = min(1.0, max(0.0, seen.requests) / learning.enough_requests)
    if share == 0.0:
        return old
    limit = math.log(learning.largest_factor)
    ratio = min(limit, max(-limit, math.log(seen.observed / seen.predicted)))
    weight = old.weight + share
    mean = old.mean + (ratio - old.mean) * share / weight
    squares = old.squares + share * (ratio - old.mean) * (ratio - mean)
    return Belief(weight=weight, mean=mean, squares=squares, as_of_s=seen.as_of_s)


def aged(belief: Belief, now_s: float, learning: Learning) -> Belief:
    """Let a belief lose weight with time; its mean stays, and the prior gains on it."""
    kept = math.pow(0.5, max(0.0, now_s - belief.as_of_s) / learning.half_life_s)
    as_of_s = max(now_s, belief.as_of_s)
    return replace(belief, weight=belief.weight * kept, squares=belief.squares * kept, as_of_s=as_of_s)


def factor(belief: Belief | None, phase: Phase, now_s: float, learning: Learning) -> Factor:
    """Say what a belief means for a plan made now; without one, nothing is corrected."""
    if belief is None:
        return Factor(likely=1.0, low=1.0, high=1.0, planned=1.0, observations=0.0)
    now, prior = aged(belief, now_s, learning), learning.prior_observations
    total = now.weight + prior
    middle = now.weight * now.mean / total
    spread = prior * learning.prior_spread**2 + now.squares + now.weight * prior / total * now.mean**2
    reach = NormalDist().inv_cdf(learning.quantile_ratio) * math.sqrt(spread / total * learning.repeats / total)
    low, likely, high = (_bounded(middle + away, learning) for away in (-reach, 0.0, reach))
    cautious = low if phase in HIGHER_IS_BETTER else high
    return Factor(likely=likely, low=low, high=high, planned=cautious, observations=now.weight)


def _bounded(log_ratio: float, learning: Learning) -> float:
    return min(learning.largest_factor, max(1.0 / learning.largest_factor, math.exp(log_ratio)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The factor that planning uses, in whole hundredths, and since when; ``Factor.planned`` as of then."""

    factor: float
    since_s: float


def hold(held: Held | None, belief: Belief | None, phase: Phase, now_s: float, learning: Learning) -> Held | None:
    """Move the factor of planning when the cautious end moved by more than a step; None: the profile as it is.

    Rounded to hundredths towards caution, so that a status holds it exactly.
    """
    found = factor(belief, phase, now_s, learning)
    least = learning.enough_observations * (1.0 if held is None else 0.5)
    if found.observations < least:
        return None
    places = math.floor(100 * found.planned + 1e-9) if phase in HIGHER_IS_BETTER else math.ceil(100 * found.planned)
    planned = places / 100
    moved = abs(math.log(planned / (held.factor if held else 1.0)))
    return Held(factor=planned, since_s=now_s) if moved > math.log1p(learning.step_ratio) else held


def corrected(profile: EngineProfile, beliefs: Beliefs, now_s: float, learning: Learning) -> EngineProfile:
    """Write the planned factors of a profile's beliefs into it; it comes back itself when there are none."""
    known = {phase: belief for phase in Phase if (belief := beliefs.get((profile.key, phase))) is not None}
    return scaled(profile, {phase: factor(found, phase, now_s, learning).planned for phase, found in known.items()})


def scaled(profile: EngineProfile, factors: Mapping[Phase, float]) -> EngineProfile:
    """Write factors into a profile's tables, and say so in it.

    Throughput below what times explain is time that nobody saw: it slows both phases. Above, it changes nothing.
    """
    if not factors:
        return profile
    lost = 1.0 / min(1.0, factors.get(Phase.THROUGHPUT, 1.0))
    slower, step = lost * factors.get(Phase.PREFILL, 1.0), lost * factors.get(Phase.DECODE, 1.0)
    idle, watts = profile.idle_watts_per_gpu, factors.get(Phase.POWER, 1.0)
    return replace(
        profile,
        source_detail=f"{profile.source_detail}; corrected while running: prefill x{slower:.2f}, decode x{step:.2f}, "
        f"watts x{watts:.2f}",
        prefill_s=tuple(slower * time for time in profile.prefill_s),
        decode_step_s=tuple(tuple(step * time for time in row) for row in profile.decode_step_s),
        prefill_watts_per_gpu=max(idle, watts * profile.prefill_watts_per_gpu),
        decode_watts_per_gpu=tuple(max(idle, watts * each) for each in profile.decode_watts_per_gpu),
        corrections=tuple((str(phase), factors[phase]) for phase in Phase if phase in factors),
    )


def notes_of(plan: Plan, problem: Problem, services: Collection[str] | None = None) -> tuple[str, ...]:
    """Say which of the profiles that a plan uses (for some services) were corrected, and by how much."""
    models = {service.name: service.model for service in problem.services}
    keys = {
        ProfileKey(model=models[row.pool.service], gpu_class=row.pool.gpu_class, config=row.pool.config)
        for row in plan.pools
        if row.replicas and (services is None or row.pool.service in services)
    }
    used = [problem.profiles[key] for key in sorted(keys) if key in problem.profiles]
    return tuple(_note(profile) for profile in used if profile.corrections)


def with_notes(plan: Plan, problem: Problem) -> Plan:
    """Add ``notes_of`` to the plan's notes."""
    said = notes_of(plan, problem)
    return replace(plan, report=replace(plan.report, notes=(*plan.report.notes, *said))) if said else plan


def _note(profile: EngineProfile) -> str:
    factors = ", ".join(f"{phase} x{value:.2f}" for phase, value in profile.corrections)
    key = profile.key
    return f"{key.model} on {key.gpu_class}/{key.config.label} is planned with what running engines showed: {factors}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the report: which profile and phase, and its factor now."""

    key: ProfileKey
    phase: Phase
    factor: Factor

    def text(self) -> str:
        """Say it in words."""
        name, found = f"{self.key.model} on {self.key.gpu_class}/{self.key.config.label}", self.factor
        return (
            f"{name} {self.phase}: x{found.likely:.2f} ({found.low:.2f}-{found.high:.2f})"
            f" from {found.observations:.1f} observations; planned with x{found.planned:.2f}"
        )


def report(beliefs: Beliefs, now_s: float, learning: Learning) -> tuple[Line, ...]:
    """Every belief, in a fixed order."""
    return tuple(
        Line(key=key, phase=phase, factor=factor(beliefs[key, phase], phase, now_s, learning))
        for key, phase in sorted(beliefs)
    )
