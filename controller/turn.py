"""What one turn of the loop saw, decided and did, as one immutable value."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.cache import CacheView
from controller.corrections import Corrections
from controller.observe import Observation
from controller.readings import Readings
from controller.specs import Specs
from controller.targets import Outcome
from solvers.fleet import Snapshot
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.rollout import Scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a turn looked at.

    ``blind_because`` is empty when the cache is true; otherwise it says why nothing may be done on it. ``specs`` has
    the profiles as they were made, ``observation`` with the corrections in force.
    """

    now_s: float
    view: CacheView
    specs: Specs
    readings: Readings
    observation: Observation
    blind_because: str = ""
    corrections: Corrections = field(default_factory=Corrections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A plan in force and the problem that it answered. ``number`` is 0 until a FleetPlan holds it."""

    plan: Plan
    problem: Problem
    number: int = 0
    made_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is told about a turn.

    Attributes
    ----------
    holds : tuple of str
        Why the plan is not carried out now, empty when it is.
    violations : tuple of str
        Limits that the plan in force breaks now; then only scale-downs are done until there is a new one.
    solve_fault : str
        Why the last solve gave no plan, empty when it did.
    """

    sight: Sight
    decision: Decision | None
    actions: tuple[Scale, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    holds: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    solve_fault: str = ""
    is_leader: bool = False
    holder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What readers are handed: the plan in force, and the fleet as it was when it was last looked at."""

    plan: Plan
    problem: Problem
    snapshot: Snapshot
    number: int
    decision_hash: str
    taken_at_s: float
    report: Report
