"""A decision and its evidence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from solvers.certificate import Certificate
from solvers.derived import Derives
from solvers.fleet import PoolKey


class SolveStatus(StrEnum):
    """OPTIMAL: proved within ``relative_gap``. FEASIBLE: verified, gap as said. FAILED: no plan."""

    OPTIMAL = "Optimal"
    FEASIBLE = "Feasible"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Placement:
    """So many replicas of a pool at a location."""

    pool: PoolKey
    location: str
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What one pool is sized for.

    Attributes
    ----------
    demand_ratio : float
        Share of the service's served requests (of that role) routed to the pool.
    capacity_requests_per_s : float
        What the pool carries with the SLOs kept, at the mix of the service, or of its part.
    cap_watts : float
        Cap of one GPU; the class maximum while power caps are off.
    reserved_watts, planned_watts : float
        Of the whole pool: worst case at the cap, and mean at the planned load; host share and idle included.
    nodes_per_replica : int
        Whole nodes of one island that each replica stands on, 1 where it is a part of a node.
    """

    pool: PoolKey
    replicas: int
    demand_ratio: float
    capacity_requests_per_s: float
    cap_watts: float
    reserved_watts: float
    planned_watts: float
    cost_usd_per_hour: float
    nodes_per_replica: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """What one service gets. ``short_because`` names the binding limits when something is unserved.

    ``penalty_usd_per_hour`` is what its shortage weighs in the objective.
    """

    service: str
    tier: str
    demand_requests_per_s: float
    served_requests_per_s: float
    short_because: tuple[str, ...] = ()
    penalty_usd_per_hour: float = 0.0

    @property
    def unserved_requests_per_s(self) -> float:
        return max(0.0, self.demand_requests_per_s - self.served_requests_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPlan:
    """Watts of one power domain under the plan. ``price_usd_per_kilowatt_hour`` is the worth of one more kW."""

    domain: str
    budget_watts: float
    reserved_watts: float
    planned_watts: float
    price_usd_per_kilowatt_hour: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A limit with no slack left and what one more unit of it is worth."""

    limit: str
    subject: str
    unit: str
    price_usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceWhy:
    """A few words on why a service is placed as it is, see ``solvers.explain.brief``."""

    service: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relief:
    """So much more of a limit would help a short plan; a plan's rows belong together.

    ``usd_per_hour`` is what it costs to have: list price of GPUs, of watts; next to nothing for a word in a policy.

    Attributes
    ----------
    is_estimate : bool
        The linear relaxation decided, which knows no whole replicas and may ask for a little less than is needed.
    first_serves_requests_per_s, first_saves_usd_per_hour : float
        What the first unit would do by itself, at the relaxation: more served, and fewer penalties; 0 for one that
        helps only together with the others.
    """

    limit: str
    subject: str
    unit: str
    amount: float
    usd_per_hour: float
    is_estimate: bool = False
    first_serves_requests_per_s: float = 0.0
    first_saves_usd_per_hour: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """What one part of a service that is split by size gets; its pools carry the same ``sizes``.

    The parts of a service hold every prompt length once.
    """

    service: str
    sizes: str
    demand_requests_per_s: float
    served_requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPrice:
    """What a service would cost more without its split, USD per hour; ``sizes`` are the parts, none where one mix does.

    ``is_estimate``: found for the service alone, at the prices of the fleet, not by a decision of the whole fleet.
    Where it is not ``is_declared``, the service is whole, and this is what it would save if its router could split.
    """

    service: str
    sizes: tuple[str, ...]
    usd_per_hour: float
    is_estimate: bool
    is_declared: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """Keys and values that go through a link between locations, each way, and what they cost."""

    link: str
    bytes_per_s: float
    outgoing_bytes_per_s: float
    incoming_bytes_per_s: float
    usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveReport:
    """Evidence of a solve. ``gap_ratio`` = (objective − bound) / max(|objective|, 1e-9)."""

    status: SolveStatus
    objective_usd_per_hour: float
    bound_usd_per_hour: float
    gap_ratio: float
    cost_usd_per_hour: float
    rounds: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Derives):
    """A verified decision for the whole fleet; every tuple is sorted, so equal decisions are equal values.

    ``routing`` states the routing that the sizing assumed, ``whys`` says in words what led to it where somebody asked,
    ``relief`` is the cheapest way to serve what is unserved, ``parts`` says which requests go where in services that
    are split by size, and ``splits`` the price of not splitting. ``links`` says what keys and values load the links
    with, when prefill and decode are kept on one side of them as far as capacity goes. ``certificate`` is what the
    report's bound rests on.
    """

    placements: tuple[Placement, ...]
    pools: tuple[PoolPlan, ...]
    services: tuple[ServicePlan, ...]
    domains: tuple[DomainPlan, ...]
    bindings: tuple[Binding, ...]
    report: SolveReport
    whys: tuple[ServiceWhy, ...] = ()
    routing: str = "least outstanding work, one mix per role, in proportion to capacity"
    relief: tuple[Relief, ...] = ()
    parts: tuple[PartPlan, ...] = ()
    splits: tuple[SplitPrice, ...] = ()
    links: tuple[LinkPlan, ...] = ()
    certificate: Certificate | None = None

    @property
    def is_short(self) -> bool:
        """True when some demand stays unserved."""
        return any(s.unserved_requests_per_s > 1e-6 * max(1.0, s.demand_requests_per_s) for s in self.services)

    @property
    def decision_hash(self) -> str:
        """Sixteen hex digits over what is decided (placements and caps), not over prices or predictions."""
        rows = [f"{p.pool}|{p.location}|{p.replicas}" for p in self.placements if p.replicas]
        caps = [f"{p.pool}|{p.cap_watts:.0f}" for p in self.pools if p.replicas]
        return hashlib.sha256("\n".join(sorted(rows) + sorted(caps)).encode()).hexdigest()[:16]
