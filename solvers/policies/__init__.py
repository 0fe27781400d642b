"""Policies that move a running fleet, by name: what people run today, what papers propose, and ours.

Each is a ``solvers.evaluate.Policy``: it sees metrics of the past and asks for counts. All start from the same plan and
live on the same nodes; replicas that start take their cold start, ones that stop serve what they hold to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from solvers.baselines import greedy, per_service, watt_clamp
from solvers.errors import InvalidInput
from solvers.evaluate import Policy
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.policies.fixed import Fixed
from solvers.policies.hpa import QueueAutoscaler
from solvers.policies.keda import RatioAutoscaler
from solvers.policies.replan import Replanner
from solvers.problem import Problem

PolicyMaker = Callable[[Problem, Plan], Policy]

POLICIES: Mapping[str, PolicyMaker] = MappingProxyType({
    "fixed": lambda problem, plan: Fixed(),
    "hpa": lambda problem, plan: QueueAutoscaler(),
    "keda": lambda problem, plan: RatioAutoscaler(plan),
    "watt-clamp": lambda problem, plan: Replanner("watt-clamp", lambda p, previous: watt_clamp(p), plan),
    "greedy": lambda problem, plan: Replanner("greedy", lambda p, previous: greedy(p), plan),
    "per-service": lambda problem, plan: Replanner("per-service", lambda p, previous: per_service(p), plan),
    "ours": lambda problem, plan: Replanner("ours", lambda p, previous: make_plan(p, previous=previous), plan),
})  # fmt: skip
"""Makers by name, in the order in which tables show them."""

__all__ = ["POLICIES", "PolicyMaker", "make_policy"]


def make_policy(name: str, problem: Problem, plan: Plan) -> Policy:
    """Make a fresh policy of a name; policies remember, so each run needs its own.

    Raises
    ------
    InvalidInput
        When there is none of that name.
    """
    if name not in POLICIES:
        raise InvalidInput("policy", "", f"{name!r} is unknown", f"use some of {', '.join(POLICIES)}")
    return POLICIES[name](problem, plan)
