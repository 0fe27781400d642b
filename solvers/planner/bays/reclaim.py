"""Nodes that may be taken away: what they save, what their loss costs, and who will not have them.

A bay counts as its riskiest and dearest node with GPUs to give: the scheduler chooses among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from solvers.derived import derived
from solvers.fleet import ANYWHERE, PoolKey
from solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms the nodes of a bay are had."""

    reclaims_per_hour: float = 0.0
    price_ratio: float = 1.0


OWNED = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaims:
    """Terms by (location, GPU class), only where they differ from the usual; and who refuses such bays."""

    terms: Mapping[tuple[str, str], Terms]
    refusing: frozenset[str]

    @classmethod
    def of(cls, problem: Problem) -> Reclaims:
        return derived(problem, _reclaims)

    def at(self, pool: PoolKey, location: str) -> Terms:
        """Terms of the pool's bay there; the usual ones for a pool placed ``Class``."""
        return OWNED if location == ANYWHERE else self.terms.get((location, pool.gpu_class), OWNED)

    def is_spot(self, location: str, gpu_class: str) -> bool:
        return self.terms.get((location, gpu_class), OWNED).reclaims_per_hour > 0.0

    def refuses(self, service: str, location: str, gpu_class: str) -> bool:
        """Tell whether the service will not run there."""
        return service in self.refusing and self.is_spot(location, gpu_class)


def _reclaims(problem: Problem) -> Reclaims:
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    for node in (n for n in problem.nodes if n.gpus_usable > 0):
        key = (node.location, node.gpu_class)
        reclaims, price = worst.get(key, (0.0, node.price_ratio))
        worst[key] = max(reclaims, node.reclaims_per_hour), max(price, node.price_ratio)
    usual = (OWNED.reclaims_per_hour, OWNED.price_ratio)
    return Reclaims(
        terms={
            key: Terms(reclaims_per_hour=reclaims, price_ratio=price)
            for key, (reclaims, price) in worst.items()
            if (reclaims, price) != usual
        },
        refusing=frozenset(s.name for s in problem.services if s.max_spot_ratio <= 0.0),
    )


def rent_usd_per_hour(problem: Problem, pool: PoolKey, terms: Terms) -> float:
    """What the GPUs of one replica cost beside (or below) their list price."""
    return _list_usd_per_hour(problem, pool) * (terms.price_ratio - 1.0)


def loss_usd_per_hour(problem: Problem, pool: PoolKey, terms: Terms) -> float:
    """What one replica is expected to lose by being taken away: a start for each time."""
    return _list_usd_per_hour(problem, pool) * problem.policy.start_cost_hours * terms.reclaims_per_hour


def _list_usd_per_hour(problem: Problem, pool: PoolKey) -> float:
    return pool.config.gpus * problem.gpu_classes[pool.gpu_class].price_usd_per_hour
