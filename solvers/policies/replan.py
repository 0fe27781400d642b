"""Policies that plan anew every few minutes and move there in safe steps: ours, and baselines of the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from solvers.errors import PlanRejected, SolveFailed
from solvers.evaluate.run import Seen, Wish, caps_of
from solvers.forecast import expected_demand
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.rollout import next_step
from solvers.simulate import FinishedRequest
from solvers.workload import Demand, SizeBucket

STEP_S = 15.0
REPLAN_S = 60.0
HORIZON_S = 180.0  # a cold start and a look at the metrics
QUANTILE = 0.9
MIX_S = 900.0
MIX_LEAST = 200  # served requests before their sizes are believed more than the declared ones
MIX_BUCKETS = 12

Decide = Callable[[Problem, Plan], Plan]


class Replanner:
    """Forecasts each service's load, plans, and takes the rollout's next step.

    Every ``REPLAN_S`` the demand is forecast at the 0.9 quantile of the load three minutes on
    (``solvers.forecast``), sizes are those of the requests served lately, and ``decide`` makes a plan. Every ``STEP_S``
    the rollout takes the steps that are safe: watts for the worst case, make before break. All planning policies share
    forecast and rollout, so what differs is the decision: ``make_plan`` with the plan in force (ours), greedy by cost,
    an exact optimum for each service alone (per-service), replicas in proportion to demand clamped to the watts
    (watt-clamp); see ``solvers.baselines`` for what each imitates. A decision that fails keeps the plan in force.
    """

    period_s = STEP_S

    def __init__(self, name: str, decide: Decide, plan: Plan) -> None:
        self.name, self.plan, self._decide = name, plan, decide
        self._planned_s = 0.0
        self.failures = 0

    def decide(self, seen: Seen) -> Wish:
        """Plan anew if it is time, and take the next safe step towards the plan."""
        if seen.now_s - self._planned_s >= REPLAN_S - 1e-6:
            self._planned_s = seen.now_s
            try:
                self.plan = self._decide(problem_now(seen), self.plan)
            except (SolveFailed, PlanRejected):
                self.failures += 1
        ranks = {service.name: service.tier_rank for service in seen.problem.services}
        steps = next_step(seen.snapshot, self.plan, seen.problem.policy, tier_ranks=ranks)
        counts = {(step.pool, step.location): step.to_replicas for step in steps}
        leaving = tuple(name for step in steps for name in step.leaving)
        return Wish(counts=counts, leaving=leaving, cap_watts=caps_of(self.plan))


def problem_now(seen: Seen) -> Problem:
    """The problem that a fleet states at this moment: forecast demand, sizes of late, and what runs."""
    demands = {name: _demand(seen, name, demand) for name, demand in seen.problem.demands.items()}
    running = {place: count for place, count in seen.asked.items() if count > 0}
    return replace(seen.problem, demands=demands, running=running)


def _demand(seen: Seen, service: str, declared: Demand) -> Demand:
    loads = seen.loads.get(service, ())
    if not loads:
        return declared
    rate = expected_demand(loads, now_s=seen.now_s, horizon_s=HORIZON_S, quantile=QUANTILE)
    recent = [r for r in seen.ended if r.service == service and r.arrival_s > seen.now_s - MIX_S]
    mix = mix_of(recent) if len(recent) >= MIX_LEAST else declared.mix
    return replace(declared, requests_per_s=rate, mix=mix, source="simulated gateway")


def mix_of(requests: Sequence[FinishedRequest]) -> tuple[SizeBucket, ...]:
    """Sum sizes up in a few buckets: equal numbers of requests by prompt, each cut in halves by output; means of each.

    Means keep the load that the requests are; the largest bucket keeps the longest prompts apart.
    """
    rows = sorted((r.prompt_tokens, r.output_tokens, r.cached_tokens) for r in requests)
    sizes, buckets = np.array(rows, dtype=np.float64), []
    for part in np.array_split(sizes, min(MIX_BUCKETS // 2, len(sizes))):
        by_output = part[np.argsort(part[:, 1], kind="stable")]
        for half in np.array_split(by_output, min(2, len(by_output))):
            prompt, output, cached = (round(float(mean)) for mean in half.mean(axis=0))
            size = {"prompt_tokens": max(1, prompt), "output_tokens": max(1, output), "cached_tokens": cached}
            buckets.append(SizeBucket(**size, weight_ratio=len(half) / len(sizes)))
    return tuple(sorted(buckets))
