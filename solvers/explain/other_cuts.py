"""A plan and its problem of plain services, weighed as the decision weighed them, and the bound over other splits.

Where services may be split by size, deciding anew may split them otherwise: what bounds plans with the split in force
bounds too little. Every range of prompts is priced again (``planner.splits.cuts``), and the least of any split counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from solvers.plan import Plan
from solvers.planner.splits.cuts import Book, open_book, stops_usd_per_hour
from solvers.planner.splits.splitting import Cuts, cuts_of, dropped, split, split_plan
from solvers.problem import Problem
from solvers.sizing import CapacityOf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """Parts of services that are split by size are services of their own here.

    Attributes
    ----------
    book : Book or None
        The splits on offer, priced; None where no service may be split, or splits are to stay.
    stops_usd_per_hour : float
        Price of stopping what runs for other ranges than those of the plan.
    keeps_cuts : bool
        Services are split, or may be, and no bound is known over other splits.
    """

    problem: Problem
    plan: Plan
    cuts: Cuts
    book: Book | None
    stops_usd_per_hour: float
    keeps_cuts: bool = False

    @classmethod
    def of(cls, problem: Problem, plan: Plan, capacity_of: CapacityOf) -> Opened:
        """Open a plan for its problem, or for one with changes: services that are gone have no parts."""
        names = {service.name for service in problem.services}
        cuts = {name: ranges for name, ranges in cuts_of(plan).items() if name in names}
        splitting = [service.name for service in problem.services if service.splits_by_size]
        if not (splitting or cuts or any(pool.sizes for pool, _ in problem.running)):
            return cls(problem=problem, plan=plan, cuts={}, book=None, stops_usd_per_hour=0.0)
        book = open_book(problem, capacity_of, cuts, splitting) if names else None
        weighed = replace(problem, serving_usd_per_request=book.serving_usd_per_request) if book else problem
        return cls(
            problem=split(weighed, cuts),
            plan=split_plan(plan, cuts),
            cuts=cuts,
            book=book,
            stops_usd_per_hour=stops_usd_per_hour(problem, dropped(problem, cuts)),
            keeps_cuts=book is not None and book.bound_usd_per_hour is None,
        )

    def bound_usd_per_hour(self, kept_usd_per_hour: float) -> float:
        """Least of any plan, given that of plans that keep the cuts in force (their stops not counted)."""
        kept = kept_usd_per_hour + self.stops_usd_per_hour
        if self.book is None or self.book.bound_usd_per_hour is None:
            return kept
        others = (bound for bound, cuts in self.book.ranked() if cuts != self.cuts)
        return min(kept, next(others, self.book.bound_usd_per_hour))
