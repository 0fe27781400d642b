"""How others decide, small and faithful, to measure the planner against: each ``Problem -> Plan``.

All of them size replicas with ``solvers.sizing`` and are held to the same limits, so that only decisions differ. Their
plans pass ``solvers.verify``, prove nothing (bound 0), and say what they leave unserved and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from solvers.baselines.best_fit import best_fit
from solvers.baselines.greedy import greedy
from solvers.baselines.per_service import per_service
from solvers.baselines.watt_clamp import watt_clamp
from solvers.plan import Plan
from solvers.problem import Problem

Baseline = Callable[[Problem], Plan]

BASELINES: Mapping[str, Baseline] = MappingProxyType({
    "greedy": greedy,
    "per_service": per_service,
    "watt_clamp": watt_clamp,
    "best_fit": best_fit,
})  # fmt: skip
"""Baselines by name, in the order in which tables show them."""

__all__ = ["BASELINES", "Baseline", "best_fit", "greedy", "per_service", "watt_clamp"]
