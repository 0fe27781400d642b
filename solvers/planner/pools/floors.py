"""What a service shall have at least, whatever its load: replicas in each chain, and those pinned to a location."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.workload import Demand, Pin, ServedModel

CHAIN_ROLES = ((Role.PREFILL, Role.MIXED), (Role.DECODE, Role.MIXED))

Places = Mapping[tuple[PoolKey, str], int]
"""Replicas of one service by (pool, location)."""


def least_locations(service: ServedModel) -> int:
    """Locations that each chain must be at; 0 where one will do, since a service without replicas is at none."""
    return service.min_locations if service.min_locations > 1 else 0


def places_of(service: ServedModel, counts: Mapping[tuple[PoolKey, str], int]) -> Places:
    """Pick the replicas of one service."""
    return {key: count for key, count in counts.items() if key[0].service == service.name and count > 0}


def pinned_most(service: ServedModel, pool: PoolKey) -> int:
    """Replicas of one pool that the pins could ask for."""
    return sum(pin.replicas for pin in service.pins if pin.counts(pool.role, pool.gpu_class, pin.location))


def missing_replicas(service: ServedModel, places: Places) -> int:
    """Replicas below the floor of each chain, and below every pin, together."""
    chains = sum(
        missing_of_chain(service, places, roles) + missing_locations(service, places, roles) for roles in CHAIN_ROLES
    )
    return chains + sum(missing_of_pin(pin, places) for pin in service.pins)


def missing_of_chain(service: ServedModel, places: Places, roles: tuple[Role, ...]) -> int:
    """Replicas that the service lacks in the roles of a chain."""
    return max(0, service.min_replicas - sum(n for (pool, _), n in places.items() if pool.role in roles))


def missing_locations(service: ServedModel, places: Places, roles: tuple[Role, ...]) -> int:
    """Locations that the roles of a chain are short of."""
    if service.min_locations <= 1:
        return 0
    return max(0, service.min_locations - len({at for (pool, at), n in places.items() if pool.role in roles and n > 0}))


def missing_of_pin(pin: Pin, places: Places) -> int:
    """Replicas that the pin still wants."""
    there = sum(n for (pool, at), n in places.items() if pin.counts(pool.role, pool.gpu_class, at))
    return max(0, pin.replicas - there)


def least_useful(service: ServedModel, pool: PoolKey) -> int:
    """Replicas of a pool that floors, pins and locations could ask for."""
    return max(service.min_replicas, least_locations(service), pinned_most(service, pool))


def spread_demand(service: ServedModel, demand: Demand) -> Demand:
    """What the replicas of one pool carry together at most where two locations stand in for each other."""
    keeps = 1.0 - min(service.max_share_per_location_ratio, service.max_spot_ratio)
    factor = max(1.0, 2.0 * keeps)
    return replace(demand, requests_per_s=factor * demand.requests_per_s) if factor > 1.0 else demand
