"""FleetPlan objects: every decision recorded once, numbered, and kept for a while.

A plan is written only when its decision differs from the last one recorded, under a number one above the last, so that
of two writers one gets AlreadyExists. After a restart the newest whole plan is where the loop goes on.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from controller.cache import CacheView
from controller.client import AlreadyExists, Body, KubeClient, NotFound
from controller.kinds import GROUP, VERSION, PlanRecord
from controller.plan_bodies import PLAN_LABEL, parse_fleet_plan, plan_name, render_fleet_plan
from solvers.errors import InvalidInput, PenstockError
from solvers.plan import Plan

log = logging.getLogger("penstock.history")

COLLECTION = f"/apis/{GROUP}/{VERSION}/fleetplans"
ATTEMPTS = 5
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A decision as it is recorded."""

    number: int
    decision_hash: str


class PlanHistory:
    """Writes, finds and trims FleetPlans. The cache may lag behind our own writes, so the last one is remembered."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._last = Recorded(number=0, decision_hash="")

    def newest(self, view: CacheView) -> Recorded:
        """The newest whole plan, number 0 when there is none."""
        whole = [
            Recorded(number=number, decision_hash=parts[0].decision_hash)
            for number, parts in _by_number(view.plans).items()
            if len(parts) == parts[0].parts
        ]
        return max([*whole, self._last], key=lambda recorded: recorded.number)

    def load(self, number: int) -> Plan | None:
        """Read a plan back; None, and a word in the log, when it cannot be."""
        try:
            return parse_fleet_plan(self._parts(number))
        except InvalidInput as error:
            log.warning("FleetPlan %s cannot be read back: %s", plan_name(number), error)
            return None

    def record(self, plan: Plan, view: CacheView) -> int:
        """Write the plan unless the last one recorded decides the same; return its number.

        Raises
        ------
        PenstockError
            When it could not be written; the plan must not be carried out before it is.
        """
        newest = self.newest(view)
        if newest.decision_hash != plan.decision_hash:
            number = max([newest.number, *(record.number for record in view.plans.values())]) + 1
            self._last = Recorded(number=self._write(plan, number), decision_hash=plan.decision_hash)
            return self._last.number
        return newest.number

    def trim(self, view: CacheView, *, days: float, count: int, now_s: float) -> None:
        """Remove plans beyond the newest ``count`` and older than ``days``; the newest always stays."""
        plans = sorted(_by_number(view.plans).items(), reverse=True)
        for rank, (_, parts) in enumerate(plans):
            if rank and (rank >= count or now_s - parts[0].created_at_s > days * DAY_S):
                for part in parts:
                    self._remove(part)

    def _write(self, plan: Plan, number: int) -> int:
        for attempt in range(number, number + ATTEMPTS):
            first, *others = render_fleet_plan(plan, attempt)
            if self._claim(first, plan, attempt):
                for body in others:
                    self._create(body)
                return attempt
        raise PenstockError(f"no free number for a FleetPlan in {number} to {number + ATTEMPTS - 1}")

    def _claim(self, first: Body, plan: Plan, number: int) -> bool:
        """Take the number; it may be ours already when an earlier answer was lost."""
        try:
            self._client.create(COLLECTION, first)
        except AlreadyExists:
            return any(part["spec"].get("decisionHash") == plan.decision_hash for part in self._parts(number))
        return True

    def _create(self, body: Body) -> None:
        try:
            self._client.create(COLLECTION, body)
        except AlreadyExists:
            log.info("part %s was written already", body["metadata"]["name"])

    def _parts(self, number: int) -> list[Body]:
        pages = self._client.list_pages(COLLECTION, f"{PLAN_LABEL}={plan_name(number)}")
        return [body for items, _ in pages for body in items]

    def _remove(self, part: PlanRecord) -> None:
        try:
            self._client.delete(f"{COLLECTION}/{part.name}", uid=part.uid)
        except NotFound:
            return
        except PenstockError as error:
            log.info("FleetPlan %s stays for now: %s", part.name, error)


def _by_number(plans: Mapping[str, PlanRecord]) -> dict[int, list[PlanRecord]]:
    found: dict[int, list[PlanRecord]] = defaultdict(list)
    for record in plans.values():
        found[record.number].append(record)
    return found
