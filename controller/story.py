"""What the operator's log tells of a rollout: each plan, each step and each hold once, and nothing of a quiet turn."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from controller.inventory import Place
from controller.plan_bodies import plan_name
from controller.targets import Outcome
from controller.turn import Report
from solvers.rollout import Scale

log = logging.getLogger("penstock.rollout")


class Story:
    """Remembers what was told last, so that what lasts is told once."""

    def __init__(self) -> None:
        self._number = 0
        self._holds: tuple[str, ...] = ()
        self._refusals: dict[Place, str] = {}

    def tell(self, report: Report) -> None:
        """Log what is new in a turn."""
        self._tell_plan(report)
        self._tell_holds(report.holds)
        self._tell_steps(report.actions, report.outcomes)

    def _tell_plan(self, report: Report) -> None:
        decision = report.decision
        if decision is None or decision.number in (0, self._number):
            return
        self._number, plan = decision.number, decision.plan
        replicas = sum(row.replicas for row in plan.pools)
        cost, status = plan.report.cost_usd_per_hour, plan.report.status
        log.info("%s is in force: %d replicas, %.2f USD/h, %s", plan_name(self._number), replicas, cost, status)
        for row in plan.services:
            if row.short_because:
                log.info("%s leaves %s short: %s", plan_name(self._number), row.service, "; ".join(row.short_because))

    def _tell_holds(self, holds: tuple[str, ...]) -> None:
        kinds = tuple(hold.partition(":")[0] for hold in holds)  # the figures behind it differ from turn to turn
        if kinds == self._holds:
            return
        self._holds = kinds
        if holds:
            log.info("held: %s", "; ".join(holds))
        else:
            log.info("held no longer")

    def _tell_steps(self, actions: Sequence[Scale], outcomes: Sequence[Outcome]) -> None:
        for action, outcome in zip(actions, outcomes, strict=False):  # no outcomes at all when nothing may be written
            step = f"{action.pool} at {action.location}: {action.from_replicas} -> {action.to_replicas}"
            self._tell_outcome(outcome, f"{step}, {action.reason}", step)
        for outcome in outcomes[len(actions) :]:
            self._tell_outcome(outcome, outcome.message, f"{outcome.pool} at {outcome.location}: template")

    def _tell_outcome(self, outcome: Outcome, done: str, tried: str) -> None:
        place = outcome.pool, outcome.location
        refusal = "" if outcome.is_done else f"{tried} failed with {outcome.reason}"
        if not refusal:
            log.info("%s", done)
        elif refusal != self._refusals.get(place):
            log.warning("%s: %s", refusal, outcome.message)
        self._refusals[place] = refusal
