"""Explanations with prices, for the operator: worked out in a process of their own, where the modeller is loaded."""

from __future__ import annotations

from solvers.apart import apart
from solvers.explain import Explanation
from solvers.plan import Plan
from solvers.problem import Problem


def explained_apart(plan: Plan, problem: Problem, service: str, with_losses: bool, deadline_s: float) -> Explanation:
    """Explain with shadow prices, and with losses where they are asked for.

    Raises
    ------
    WorkLost
        It took longer than the deadline, or the process ended.
    InvalidInput, SolveFailed
        As ``solvers.explain.pricing.explain_priced``.
    """
    return apart(_explained, plan, problem, service, with_losses, deadline_s=deadline_s)


def _explained(plan: Plan, problem: Problem, service: str, with_losses: bool) -> Explanation:
    from solvers.explain.pricing import explain_priced  # the operator's own process loads no modeller

    return explain_priced(plan, problem, service, with_losses=with_losses)
