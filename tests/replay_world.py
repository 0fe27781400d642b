"""One service on a small fleet with its plan: what tests of replays and policies stand on."""

from __future__ import annotations

from functools import lru_cache

from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from tests.fleets import nodes, problem, profile, service

RATE = 20.0


@lru_cache
def small_case() -> tuple[Problem, Plan]:
    """One service of 20 requests a second, two kinds of GPU, budgets that leave room."""
    fleet = (*nodes("h100-sxm", 2, "rack-1"), *nodes("l40s", 2, "rack-2"))
    profiles = [profile("llama-8b", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    stated = problem([(service("chat", "llama-8b"), RATE)], fleet, profiles)
    return stated, make_plan(stated)
