r"""Learn, while services run, how far an engine profile is off, and plan with what is likely rather than with the mean.

For each (profile, phase) a belief holds the mean of :math:`x = \ln(\mathrm{observed} / \mathrm{predicted})`, its spread
and how many observations it rests on. Old observations lose half of their weight every half-life, so a belief that is
not fed returns to the prior: the profile is right, give or take ``prior_spread``. With weight :math:`w`, mean
:math:`\bar x`, squares :math:`S` about it, and a prior of :math:`n_0` observations

.. math:: m = \frac{w \bar x}{w + n_0} \qquad s^2 = \frac{n_0 s_0^2 + S + \frac{w n_0}{w + n_0} \bar x^2}{w + n_0}
          \qquad q = \exp\left(m + z \, s \sqrt{\frac{k}{w + n_0}}\right)

(the normal-gamma update), where ``k`` says how many neighbouring observations tell the same story. Every ``x`` and
every factor is bounded: a wrong reading can bend a plan so far and no further.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist

from solvers.engine import EngineProfile, ProfileKey
from solvers.errors import InvalidInput


class Phase(StrEnum):
    """What is compared, and with it which part of a profile is corrected."""

    PREFILL = "prefill"
    """Time to first token: prefill times."""
    DECODE = "decode"
    """Gap between output tokens: decode steps."""
    THROUGHPUT = "throughput"
    """Requests per second at full load: capacity, to be divided by the factor."""
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
    """

    half_life_s: float = 6 * 3600.0
    largest_factor: float = 2.0
    prior_observations: float = 4.0
    prior_spread: float = 0.15
    repeats: float = 4.0
    enough_requests: float = 30.0
    quantile_ratio: float = 0.8


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


def corrected(profile: EngineProfile, beliefs: Beliefs, now_s: float, learning: Learning) -> EngineProfile:
    """Write the planned factors of prefill, decode and power into a profile; it comes back itself when there are none.

    Throughput is not a number of a profile: who sizes pools multiplies capacity by its factor.
    """
    known = {phase: beliefs.get((profile.key, phase)) for phase in (Phase.PREFILL, Phase.DECODE, Phase.POWER)}
    if not any(known.values()):
        return profile
    slower, step, watts = (factor(belief, phase, now_s, learning).planned for phase, belief in known.items())
    idle = profile.idle_watts_per_gpu
    return replace(
        profile,
        source_detail=f"{profile.source_detail}; corrected while running: prefill x{slower:.2f}, decode x{step:.2f}, "
        f"watts x{watts:.2f}",
        prefill_s=tuple(slower * time for time in profile.prefill_s),
        decode_step_s=tuple(tuple(step * time for time in row) for row in profile.decode_step_s),
        prefill_watts_per_gpu=max(idle, watts * profile.prefill_watts_per_gpu),
        decode_watts_per_gpu=tuple(max(idle, watts * each) for each in profile.decode_watts_per_gpu),
    )


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
