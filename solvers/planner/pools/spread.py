"""Services that must not hang on one location: what survives the loss of any, and where the next replica helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Room
from solvers.planner.bays.reclaim import Reclaims
from solvers.planner.pools.floors import CHAIN_ROLES, Places, missing_replicas
from solvers.workload import ServedModel

SLACK = 1e-7  # relative, as ``tally.ROUNDING``

PlaceRates = Mapping[tuple[Role, str, bool], float]
"""Requests per second that the replicas of a role carry at a location, on nodes that may be taken away or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Something that may be lost at once, and what a chain then carries.

    ``location`` is None for all nodes that may be taken away. ``keep_ratio`` of what is served must be left.
    """

    location: str | None
    roles: tuple[Role, ...]
    left_per_s: float
    keep_ratio: float

    @property
    def survivable_per_s(self) -> float:
        return self.left_per_s / self.keep_ratio

    def spares(self, bay: Bay) -> bool:
        """Tell whether a bay is still there after it."""
        return bay.terms.reclaims_per_hour <= 0.0 if self.location is None else bay.location != self.location


def place_rates(
    places: Places, replica_rates: Mapping[PoolKey, float], reclaims: Reclaims
) -> dict[tuple[Role, str, bool], float]:
    """Add up what a service's replicas carry, by role and place."""
    rates: dict[tuple[Role, str, bool], float] = {}
    for (pool, at), count in sorted((key, count) for key, count in places.items() if count):
        key = (pool.role, at, reclaims.is_spot(at, pool.gpu_class))
        rates[key] = rates.get(key, 0.0) + count * replica_rates.get(pool, 0.0)
    return rates


def survivable_per_s(service: ServedModel, rates: PlaceRates) -> float:
    """The most that may be served, so that every loss that counts leaves what the service asks for."""
    worst = worst_loss(service, rates)
    return float("inf") if worst is None else worst.survivable_per_s


def worst_loss(service: ServedModel, rates: PlaceRates) -> Loss | None:
    """The loss that allows least to be served; None when the service counts none."""
    found: list[Loss] = []
    for roles in CHAIN_ROLES:
        mine = [(at, is_spot, rate) for (role, at, is_spot), rate in rates.items() if role in roles]
        if (keep := 1.0 - service.max_share_per_location_ratio) > 0.0:
            for lost in sorted({at for _, at, _ in rates}) or [""]:
                left = sum(rate for at, _, rate in mine if at != lost)
                found.append(Loss(location=lost, roles=roles, left_per_s=left, keep_ratio=keep))
        if 0.0 < service.max_spot_ratio < 1.0:
            left = sum(rate for _, is_spot, rate in mine if not is_spot)
            found.append(Loss(location=None, roles=roles, left_per_s=left, keep_ratio=1.0 - service.max_spot_ratio))
    return min(found, key=lambda loss: (loss.survivable_per_s, loss.location or ""), default=None)


def spread_evenly(room: Room, pool: PoolKey, count: int, bays: Sequence[Bay], places: Places) -> dict[str, int]:
    """Take in up to ``count`` replicas, each at the location that holds least of the service in the pool's chains.

    Parameters
    ----------
    places : mapping of (pool, location) to int
        What the service has so far.
    """
    held: dict[str, int] = {}
    for (other, at), n in places.items():
        if _shares_chain(other.role, pool.role):
            held[at] = held.get(at, 0) + n * other.config.gpus
    added: dict[str, int] = {}
    while sum(added.values()) < count:
        able = [bay for bay in bays if room.room(pool, bay.location, bay) > 0]
        if not able:
            break
        least = min(held.get(bay.location, 0) for bay in able)
        bay = room.best_bay(pool, [bay for bay in able if held.get(bay.location, 0) == least])
        if bay is None:
            break
        if not room.take(pool, bay.location, 1, bay):
            continue  # there is none any more
        held[bay.location] = held.get(bay.location, 0) + pool.config.gpus
        added[bay.location] = added.get(bay.location, 0) + 1
    return added


def _shares_chain(one: Role, other: Role) -> bool:
    return any(one in roles and other in roles for roles in CHAIN_ROLES)


def loses_nothing(
    service: ServedModel, before: Places, after: Places, demand_per_s: float, rates: tuple[PlaceRates, PlaceRates]
) -> bool:
    """True when fewer replicas break no floor, no pin and no spread that is kept."""
    if missing_replicas(service, after) > missing_replicas(service, before):
        return False
    served, still = (min(demand_per_s, survivable_per_s(service, rate)) for rate in rates)
    return still >= served * (1.0 - SLACK)
