"""A tick of services that are split by size: each part is a service of the tick, and the answer is said of the service.

Between plans a service's mix is taken as it was planned: demand of the service is demand of its parts in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.plan import Plan
from solvers.planner.splits.splitting import Cuts, cuts_of, split, split_plan, whole_name
from solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class TickParts:
    """How the services of a plan fall apart."""

    cuts: Cuts
    ratios: Mapping[str, Mapping[str, float]]  # part → share of the demand, by service

    @classmethod
    def of(cls, problem: Problem, plan: Plan) -> tuple[TickParts, Problem, Plan]:
        """Open plan and problem into plain services."""
        cuts = cuts_of(plan)
        parts = cls(cuts=cuts, ratios={})
        if not cuts:
            return parts, problem, plan
        parted = split(problem, cuts)
        ratios: dict[str, dict[str, float]] = {}
        for name, demand in sorted(parted.demands.items()):
            service, label = whole_name(name)
            whole = problem.demands[service].requests_per_s
            if label and service in cuts:
                ratios.setdefault(service, {})[name] = demand.requests_per_s / whole if whole > 0.0 else 0.0
        return cls(cuts=cuts, ratios=ratios), parted, split_plan(plan, cuts)

    def asked(self, demands: Mapping[str, float]) -> dict[str, float]:
        """Demands by plain service."""
        found: dict[str, float] = {}
        for service, rate in demands.items():
            ratios = self.ratios.get(service)
            found |= {name: rate * ratio for name, ratio in ratios.items()} if ratios else {service: rate}
        return found

    def owners(self, services: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Names of the services, sorted, and which one each plain service belongs to."""
        of = [whole_name(name)[0] if whole_name(name)[0] in self.cuts else name for name in services]
        names = tuple(sorted(set(of)))
        return names, np.array([names.index(name) for name in of], dtype=np.int64)
