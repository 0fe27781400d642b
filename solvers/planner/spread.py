"""Services that must not hang on one location: what survives the loss of any, and where the next replica helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.planner.floors import CHAIN_ROLES, Places, missing_replicas
from solvers.planner.grouping import Bay
from solvers.planner.nodes import Room
from solvers.workload import ServedModel

SLACK = 1e-7  # relative, as ``tally.ROUNDING``

PlaceRates = Mapping[tuple[Role, str], float]
"""Requests per second that the replicas of a role carry at a location."""


def place_rates(places: Places, replica_rates: Mapping[PoolKey, float]) -> dict[tuple[Role, str], float]:
    """Add up what a service's replicas carry, by role and location."""
    rates: dict[tuple[Role, str], float] = {}
    for (pool, at), count in sorted((key, count) for key, count in places.items() if count):
        rates[pool.role, at] = rates.get((pool.role, at), 0.0) + count * replica_rates.get(pool, 0.0)
    return rates


def left_without(rates: PlaceRates, roles: tuple[Role, ...], location: str) -> float:
    """What a chain carries when a location is lost."""
    return sum(rate for (role, at), rate in rates.items() if role in roles and at != location)


def survivable_per_s(service: ServedModel, rates: PlaceRates) -> float:
    """The most that may be served, so that the loss of any location leaves what the service asks for."""
    if service.max_share_per_location_ratio >= 1.0:
        return float("inf")
    least = min((left for _, _, left in _losses(rates)), default=0.0)
    return least / (1.0 - service.max_share_per_location_ratio)


def worst_loss(rates: PlaceRates) -> tuple[str, tuple[Role, ...], float] | None:
    """The location whose loss leaves a chain with least: (location, roles of the chain, requests/s left)."""
    return min(_losses(rates), key=lambda loss: (loss[2], loss[0]), default=None)


def _losses(rates: PlaceRates) -> list[tuple[str, tuple[Role, ...], float]]:
    locations = sorted({at for _, at in rates})
    return [(at, roles, left_without(rates, roles, at)) for at in locations for roles in CHAIN_ROLES]


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
    for _ in range(count):
        able = [bay for bay in bays if room.room(pool, bay.location, bay) > 0]
        if not able:
            break
        least = min(held.get(bay.location, 0) for bay in able)
        bay = room.best_bay(pool, [bay for bay in able if held.get(bay.location, 0) == least])
        if bay is None:
            break
        room.take(pool, bay.location, 1, bay)
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
