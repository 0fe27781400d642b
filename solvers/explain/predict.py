"""What a change would cost, without deciding anew: bounds at prices from below, a repaired plan from above.

Duals alone would be wrong: replicas are whole, so a GPU less may cost nothing or a whole replica elsewhere. The changed
problem is priced afresh (no plan for it can be cheaper than that), and the plan at hand is repaired for it (it need not
be dearer than that). Between the two lies what a decision made anew would come to.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from solvers.errors import InvalidInput
from solvers.explain.changes import Change, changed, is_loss
from solvers.explain.market import Market
from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.planner import desk_for
from solvers.planner.caps import planned_counts
from solvers.planner.desk import Desk
from solvers.planner.options import CapacityOf, Options
from solvers.planner.splitting import opened
from solvers.problem import Problem
from solvers.sizing import replica_capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Change of the objective (GPUs, energy, starts and stops, penalties of what is short), USD per hour.

    Attributes
    ----------
    low_usd_per_hour, high_usd_per_hour : float
        No plan changes it by less than ``low``; a plan that changes it by ``high`` is known.
    expected_usd_per_hour : float
        By how much the bound moves, kept between the two: what is left open before and after cancels in it.
    short : tuple of str
        Services that would lack demand or replicas in the repaired plan.
    """

    low_usd_per_hour: float
    high_usd_per_hour: float
    expected_usd_per_hour: float
    short: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """One plan, its problem and its prices, to predict from more than once."""

    problem: Problem
    plan: Plan
    capacity_of: CapacityOf
    market: Market

    @classmethod
    def of(cls, problem: Problem, plan: Plan, capacity_of: CapacityOf = replica_capacity) -> Predictor:
        """Price the problem that the plan answers; parts of services that are split are services of their own."""
        plan, problem = opened(plan, problem)
        market = Market.of(desk_for(problem, capacity_of, plan))
        return cls(problem=problem, plan=plan, capacity_of=capacity_of, market=market)

    def after(self, change: Change) -> Prediction:
        """Predict what the change does to the objective."""
        desk = desk_for(changed(self.problem, change), self.capacity_of, self.plan)
        return self._predicted(desk, is_loss=is_loss(change))

    def with_only(self, service: str, pools: Collection[PoolKey]) -> Prediction:
        """Predict what it costs to serve the service by these pools, at any power caps, and no others."""
        desk, wanted = self.market.desk, {pool.uncapped for pool in pools}
        kept = tuple(o for o in desk.options.pools if o.pool.service != service or o.pool.uncapped in wanted)
        if not any(option.pool.service == service for option in kept):
            raise InvalidInput(f"ServedModel/{service}", "", "has none of these pools", "take some that fit")
        options = Options(pools=kept, unfit=desk.options.unfit)
        return self._predicted(replace(desk, options=options), is_loss=True)

    def _predicted(self, desk: Desk, *, is_loss: bool) -> Prediction:
        if not desk.problem.services:  # nothing is asked: there is no model to price
            gone = desk.repaired({}).objective_usd_per_hour - self.plan.report.objective_usd_per_hour
            return Prediction(low_usd_per_hour=gone, high_usd_per_hour=gone, expected_usd_per_hour=gone, short=())
        market = Market.of(desk)
        repaired = market.best([desk.repaired(planned_counts(desk.problem, self.plan))])
        now, before = self.plan.report.objective_usd_per_hour, self.market.bound_usd_per_hour
        bound = market.bound_usd_per_hour
        if is_loss and desk.penalties == self.market.desk.penalties:  # what bounded plans before does so after
            bound = max(bound, before, self.plan.report.bound_usd_per_hour)
        low, high = bound - now, repaired.objective_usd_per_hour - now
        moved = market.bound_usd_per_hour - before
        return Prediction(
            low_usd_per_hour=min(low, high),
            high_usd_per_hour=high,
            expected_usd_per_hour=min(max(moved, low), high),
            short=repaired.short,
        )


def predict(problem: Problem, plan: Plan, change: Change, *, capacity_of: CapacityOf = replica_capacity) -> Prediction:
    """Predict what one change to the problem does to the plan's objective.

    Raises
    ------
    InvalidInput
        The change names what is not there.
    SolveFailed
        The relaxation gave no prices.
    """
    return Predictor.of(problem, plan, capacity_of).after(change)
