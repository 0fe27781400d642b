"""What one replica carries at most where prefill and decode may not be apart: what there is room for beside it.

A pair is at one location. However many replicas of a pool are there, the other role's replicas have what is left of
its GPUs and watts, and together they carry no more than those do: so no replica counts for more than its part of that,
the best over all numbers of them. Summed over locations, pairs carry no more than replicas of either role at this rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from solvers.fleet import Node
from solvers.power import base_watts, ceiling_watts, nodes_by_domain
from solvers.problem import Problem

MOST_GPUS = 256  # of a location; what is lost in larger ones is not worth looking at
WATTS = 1e-3
USELESS = 1e-6  # of its rate, what a replica counts for that nothing can stand beside: tables have no room for nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A location by what is free: GPUs by class, and watts with the classes there that draw on them."""

    gpus: tuple[tuple[str, int], ...]
    watts: tuple[tuple[float, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Each:
    """One replica: where it may be, what it takes, and what it carries at most."""

    gpu_class: str
    gpus: int
    watts: float
    rate_per_s: float


def places_of(problem: Problem, bays: Mapping[tuple[str, str], Sequence[Node]]) -> dict[str, Place]:
    """Every location, empty."""
    rooms: dict[str, float] = {}
    for name, nodes in nodes_by_domain(problem.nodes).items():
        usable = problem.domains[name].usable_watts if name in problem.domains else math.inf
        if ceiling_watts(nodes, problem.gpu_classes) > usable + WATTS:
            rooms[name] = max(0.0, usable - base_watts(nodes, problem.gpu_classes))
    gpus: dict[str, list[tuple[str, int]]] = {}
    fed: dict[str, dict[str, set[str]]] = {}
    for (gpu_class, location), of in sorted(bays.items()):
        gpus.setdefault(location, []).append((gpu_class, sum(max(0, node.gpus_usable) for node in of)))
        for domain in {domain for node in of for domain in node.domains if domain in rooms}:
            fed.setdefault(location, {}).setdefault(domain, set()).add(gpu_class)
    return {
        location: Place(
            gpus=tuple(of),
            watts=tuple(sorted((rooms[d], tuple(sorted(classes))) for d, classes in fed.get(location, {}).items())),
        )
        for location, of in gpus.items()
    }


@lru_cache(maxsize=100_000)
def most_per_s(place: Place, mine: Each, others: tuple[Each, ...]) -> float:
    """Requests per second that no replica of its kind carries more than at the place, where others must serve too."""
    have = dict(place.gpus)
    if sum(have.values()) > MOST_GPUS:
        return mine.rate_per_s
    count = np.arange(1.0, have.get(mine.gpu_class, 0) // mine.gpus + 1.0)
    beside = np.zeros(len(count))
    for gpu_class in {each.gpu_class for each in others} & have.keys():
        able = [each for each in others if each.gpu_class == gpu_class]
        left = have[gpu_class] - (count * mine.gpus if gpu_class == mine.gpu_class else 0.0 * count)
        least = min(each.watts / each.gpus for each in able)
        for watts, classes in place.watts if least > 0.0 else ():
            if gpu_class in classes:
                spare = watts - (count * mine.watts if mine.gpu_class in classes else 0.0 * count)
                left = np.minimum(left, np.floor((spare + WATTS) / least))
        beside += _carried(able, have[gpu_class])[np.maximum(left, 0.0).astype(np.int64)]
    most = float((beside / count).max(initial=0.0))
    return mine.rate_per_s * USELESS if most <= 0.0 else min(mine.rate_per_s, most)


def _carried(able: Sequence[Each], gpus: int) -> Floats:
    """What replicas on 0 to so many GPUs carry at most, any number of each; (G + 1,)."""
    most = np.zeros(gpus + 1)
    for have in range(1, gpus + 1):
        more = (most[have - each.gpus] + each.rate_per_s for each in able if each.gpus <= have)
        most[have] = max(more, default=0.0)
    maximum: Floats = np.maximum.accumulate(most)
    return maximum
