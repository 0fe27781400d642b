"""What a change would cost, without deciding anew: bounds at prices from below, a repaired plan from above.

Duals alone would be wrong: replicas are whole, so a GPU less may cost nothing or a whole replica elsewhere. The changed
problem is priced afresh (no plan for it can be cheaper than that), and the plan at hand is repaired for it (it need not
be dearer than that). Between the two lies what a decision made anew would come to.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from solvers.errors import InvalidInput
from solvers.explain.changes import Change, changed, is_loss
from solvers.explain.market import Market
from solvers.explain.other_cuts import Opened
from solvers.fleet import PoolKey
from solvers.plan import Plan
from solvers.planner import desk_for
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.caps import planned_counts
from solvers.planner.pools.options import Options
from solvers.planner.splits.splitting import whole_name
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity


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
    keeps_cuts : bool
        ``low`` is of plans that split services by size as this one does; another split might undercut it.
    """

    low_usd_per_hour: float
    high_usd_per_hour: float
    expected_usd_per_hour: float
    short: tuple[str, ...]
    keeps_cuts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """One plan, its problem and its prices, to predict from more than once.

    Attributes
    ----------
    problem, plan
        As they were given; where a service is split by size, ``opened`` has its parts as services of their own.
    told : dict
        What was predicted already.
    """

    problem: Problem
    plan: Plan
    capacity_of: CapacityOf
    opened: Opened
    market: Market
    told: dict[Change, Prediction] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, plan: Plan, capacity_of: CapacityOf = replica_capacity) -> Predictor:
        """Price the problem that the plan answers."""
        opened = Opened.of(problem, plan, capacity_of)
        market = Market.of(desk_for(opened.problem, capacity_of, opened.plan))
        return cls(problem=problem, plan=plan, capacity_of=capacity_of, opened=opened, market=market)

    def after(self, change: Change) -> Prediction:
        """Predict what the change does to the objective.

        Raises
        ------
        InvalidInput
            The change names what is not there, a part of a service that is split by size among it.
        SolveFailed
            The relaxation gave no prices.
        """
        if change not in self.told:
            opened = Opened.of(changed(self.problem, change), self.plan, self.capacity_of)
            desk = desk_for(opened.problem, self.capacity_of, opened.plan)
            self.told[change] = self._predicted(desk, opened, is_loss=is_loss(change))
        return self.told[change]

    def with_only(self, service: str, pools: Collection[PoolKey]) -> Prediction:
        """Predict what it costs to serve the service by these pools, at any power caps, and no others.

        Services that are split by size keep their parts; ``service`` may be one of them.
        """
        desk, wanted = self.market.desk, {pool.uncapped for pool in pools}
        kept = tuple(o for o in desk.options.pools if o.pool.service != service or o.pool.uncapped in wanted)
        if not any(option.pool.service == service for option in kept):
            raise InvalidInput(f"ServedModel/{service}", "", "has none of these pools", "take some that fit")
        options = Options(pools=kept, unfit=desk.options.unfit)
        return self._predicted(replace(desk, options=options), replace(self.opened, book=None), is_loss=True)

    def _predicted(self, desk: Desk, opened: Opened, *, is_loss: bool) -> Prediction:
        now, stops = self.plan.report.objective_usd_per_hour, opened.stops_usd_per_hour
        if not desk.problem.services:  # nothing is asked: there is no model to price
            gone = stops + desk.greedy().objective_usd_per_hour - now
            return Prediction(low_usd_per_hour=gone, high_usd_per_hour=gone, expected_usd_per_hour=gone, short=())
        market = Market.of(desk)
        repaired = market.best([desk.repaired(planned_counts(desk.problem, opened.plan))])
        same = self.opened if opened.book is not None else replace(self.opened, book=None)
        before = same.bound_usd_per_hour(self.market.bound_usd_per_hour)
        bound = after = opened.bound_usd_per_hour(market.bound_usd_per_hour)
        if is_loss and desk.penalties == self.market.desk.penalties:  # what bounded plans before does so after
            after = max(after, before)
            bound = max(after, self.plan.report.bound_usd_per_hour)
        low, high = bound - now, stops + repaired.objective_usd_per_hour - now
        return Prediction(
            low_usd_per_hour=min(low, high),
            high_usd_per_hour=high,
            expected_usd_per_hour=min(max(after - before, low), high),
            short=tuple(dict.fromkeys(whole_name(name)[0] for name in repaired.short)),
            keeps_cuts=opened.keeps_cuts,
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
