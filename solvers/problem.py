"""One decision's whole input, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from solvers.derived import Derives, derived
from solvers.engine import EngineProfile, ProfileKey
from solvers.fleet import GpuClass, Node, PoolKey, PowerDomain
from solvers.power import Feeds
from solvers.workload import Demand, ServedModel

STOP_SHARE = 0.5
"""A stop weighs this share of a start: demand comes back before it has fallen for good about as often as not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The most that the services of a namespace may hold together, of one GPU class or (empty) of all.

    ``max_watts`` counts their GPUs at the highest cap, host share included. None leaves a number open.
    ``guaranteed_ratio`` of each service's demand is served before other services of its tier get more.
    """

    namespace: str
    gpu_class: str = ""
    max_gpus: int | None = None
    max_watts: float | None = None
    guaranteed_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLink:
    """What joins some locations to all others, for keys and values: bytes per second each way, and their price."""

    name: str
    locations: tuple[str, ...]
    bytes_per_s: float
    usd_per_terabyte: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the decision weighs.

    Attributes
    ----------
    energy_usd_per_kilowatt_hour : float
        Price of a planned kilowatt for an hour.
    start_cost_hours : float
        A started replica costs so many hours of its GPU price (lost while it loads weights).
    min_saving_ratio : float
        A plan that only saves money must save at least this share before anything moves.
    max_starts_per_turn : int
        Replicas that one turn may start, over the whole fleet.
    tier_penalties : tuple of float
        Penalty of one unserved request by tier rank, as a multiple of the dearest way to serve it.
    relative_gap : float
        The solver stops when objective and bound agree this well.
    time_limit_s : float
        After which nothing more is tried, where ``make_plan`` is handed a clock; the best plan so far is taken.
    power_caps : bool
        Pools may be planned at lower caps than their class's highest, where their profiles know the speed under one.
    replay : bool
        A simulation may refute a plan, which is then tightened and solved again: ``solvers.refute``.
    """

    energy_usd_per_kilowatt_hour: float = 0.12
    start_cost_hours: float = 0.3
    min_saving_ratio: float = 0.03
    max_starts_per_turn: int = 8
    tier_penalties: tuple[float, ...] = (60.0, 20.0, 7.0)
    relative_gap: float = 0.01
    time_limit_s: float = 20.0
    quotas: tuple[Quota, ...] = ()
    power_caps: bool = False
    replay: bool = False
    kv_links: tuple[KvLink, ...] = ()

    @property
    def stop_cost_hours(self) -> float:
        """Hours of its GPU price that a stopped replica costs: its start is lost, and may be asked for again."""
        return STOP_SHARE * self.start_cost_hours

    def tier_weight(self, rank: int) -> float:
        """Penalty weight of a tier; ranks past the table weigh as its last entry."""
        weights = self.tier_penalties or (1.0,)
        return weights[min(max(rank, 0), len(weights) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(Derives):
    """What exists, what is asked and what runs. Every mapping is iterated in sorted order.

    ``running`` counts the replicas that serve or will (pending and starting ones too) by (pool, location).
    ``serving_usd_per_request`` (USD an hour for one request/s) weighs shortage where a service's own pools do not say
    it: parts of a service that is split by size share what the whole weighs.
    """

    services: tuple[ServedModel, ...]
    demands: Mapping[str, Demand]
    gpu_classes: Mapping[str, GpuClass]
    nodes: tuple[Node, ...]
    domains: Mapping[str, PowerDomain]
    profiles: Mapping[ProfileKey, EngineProfile]
    running: Mapping[tuple[PoolKey, str], int] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    serving_usd_per_request: Mapping[str, float] = field(default_factory=dict)


def feeds_of(problem: Problem) -> Feeds:
    """What the power domains of the problem draw and feed, worked out once."""
    return derived(problem, _feeds)


def _feeds(problem: Problem) -> Feeds:
    return Feeds.of(problem.nodes, problem.gpu_classes)
