"""Evaluate a plan or a policy on a load: run it in simulation, and say what came of it with its confidence."""

from __future__ import annotations

from solvers.evaluate.load import Load
from solvers.evaluate.parts import in_parts
from solvers.evaluate.run import Policy, Record, Seen, Settings, Wish, run
from solvers.evaluate.summary import Summary, summarise
from solvers.plan import Plan
from solvers.problem import Problem

__all__ = [
    "Load",
    "Policy",
    "Record",
    "Seen",
    "Settings",
    "Summary",
    "Wish",
    "evaluate",
    "in_parts",
    "run",
    "summarise",
]


def evaluate(problem: Problem, plan: Plan, load: Load, policy: Policy, settings: Settings | None = None) -> Summary:
    """Run and summarise; the same arguments give the same numbers (see ``run.run`` for what is refused).

    Of services that the plan splits by size every part is told as a service of its own (see ``parts.in_parts``).
    """
    return summarise(run(*in_parts(problem, plan, load), policy, settings))
