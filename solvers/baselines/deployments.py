"""Deployments as people write them: one GPU class and one engine configuration for each service, chosen once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from solvers.baselines.stage import Stage, Way
from solvers.workload import ServedModel

Prefers = Callable[[Way], bool]
"""Tells whether the habit is to run a service that way: split by role, or mixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What a user asks for: a way, and replicas of each of its pools for the whole demand."""

    service: ServedModel
    way: Way
    replicas: tuple[int, ...]

    @property
    def watts(self) -> float:
        """What all its replicas would add to the idle draw at their highest cap."""
        return sum(o.reserved_watts * n for o, n in zip(self.way, self.replicas, strict=True))


def deployments(stage: Stage, prefers: Prefers) -> list[Deployment]:
    """Choose for every service, in order of tier, knowing only how many GPUs others have asked for.

    A class that the service names is taken, the first of them that fits. Where it names none, the cheapest whose free
    GPUs hold the whole demand, and when no class does, the one with most of it.
    """
    free = {g: sum(n.gpus_usable for n in stage.desk.problem.nodes if n.gpu_class == g) for g in _classes(stage)}
    found = []
    for service in stage.services:
        ways = stage.ways(service)
        habit = [way for way in ways if prefers(way)] or ways
        if not habit:
            continue
        way = _chosen(stage, service, habit, free)
        rate = stage.missing_per_s(service)
        sizes = tuple(max(stage.needed(option, rate), service.min_replicas) for option in way)
        free[way[0].pool.gpu_class] -= sum(o.gpus * n for o, n in zip(way, sizes, strict=True))
        found.append(Deployment(service=service, way=way, replicas=sizes))
    return found


def _classes(stage: Stage) -> list[str]:
    return sorted(stage.desk.problem.gpu_classes)


def _chosen(stage: Stage, service: ServedModel, ways: list[Way], free: dict[str, int]) -> Way:
    for gpu_class in service.gpu_classes:
        if named := [way for way in ways if way[0].pool.gpu_class == gpu_class]:
            return named[0]
    rate = stage.missing_per_s(service)

    def share(way: Way) -> float:
        asked = sum(option.gpus * stage.needed(option, rate) for option in way)
        return min(1.0, max(0, free[way[0].pool.gpu_class]) / asked) if asked else 1.0

    return max(ways, key=share)  # the first of equals, and ways come cheapest first
