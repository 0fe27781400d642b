"""What rules on places leave a service: where it may be at all, what that costs it, and how much must be carried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from solvers.engine import Role
from solvers.fleet import PoolKey
from solvers.verify.market import Market
from solvers.verify.rules import CHAINS
from solvers.workload import PlacementMode, ServedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What no way of a service can escape, for where its pools could stand.

    Attributes
    ----------
    missing : int
        Replicas below pins and locations below those asked for that no plan can have.
    locations : tuple of int
        At so many either chain (prompts, tokens) can be, where that is asked; more replicas at different locations
        are asked by nothing.
    carried_ratio : float
        Capacity that a chain needs for each request/s that is served, so that a location may be lost.
    served_ratio : float
        0 where nothing can be served under the rules, else 1.
    """

    missing: int = 0
    locations: tuple[int, ...] = ()
    carried_ratio: float = 1.0
    served_ratio: float = 1.0

    @staticmethod
    def is_free(service: ServedModel) -> bool:
        """True where no such rule is stated: which pools carry anything makes no difference."""
        is_free = not service.pins and service.min_locations <= 1
        return is_free and service.max_share_per_location_ratio >= 1.0 and service.max_spot_ratio >= 1.0

    @classmethod
    def of(cls, service: ServedModel, market: Market, pools: Mapping[PoolKey, float]) -> Reach:
        """Work it out; ``pools`` are those that carry something, with the watts that a replica reserves at least."""
        if cls.is_free(service) or service.placement is PlacementMode.CLASS:
            return cls()
        places = {pool: _places(service, market, pool, watts) for pool, watts in sorted(pools.items())}
        chains = [_union(places, chain) for chain in CHAINS]
        fewest = min(len(chain) for chain in chains)
        wanted = service.min_locations if service.min_locations > 1 else 0
        missing = sum(max(0, wanted - len(chain)) for chain in chains)
        missing += sum(
            max(0, pin.replicas - _most(service, market, places, pin.location, pin.role, pin.gpu_class))
            for pin in service.pins
        )
        return cls(
            missing=missing,
            locations=tuple(len(chain) for chain in chains),
            carried_ratio=_carried_ratio(service, max(len(chain) for chain in chains)),
            served_ratio=float(_serves(service, market, places, fewest)),
        )


def _places(service: ServedModel, market: Market, pool: PoolKey, watts: float) -> dict[str, int]:
    """Replicas of the pool that a location holds when nothing else is there, where the service may be."""
    found: dict[str, int] = {}
    for kind in market.kinds[pool.gpu_class]:
        for location in kind.locations if not (service.max_spot_ratio <= 0.0 and kind.terms[0] > 0.0) else ():
            if service.allows_location(location) and (n := market.slots_of(pool, watts, location)):
                found[location] = n
    return found


def _union(places: dict[PoolKey, dict[str, int]], roles: tuple[Role, ...]) -> set[str]:
    return {at for pool, counts in places.items() if pool.role in roles for at in counts}


def _most(
    service: ServedModel,
    market: Market,
    places: dict[PoolKey, dict[str, int]],
    location: str,
    role: Role | None,
    gpu_class: str,
) -> int:
    """The most replicas that could count for a pin: no more than of each pool alone, nor groups of its smallest."""
    able = [p for p in places if role in (None, p.role) and gpu_class in ("", p.gpu_class) and location in places[p]]
    by_class: dict[str, tuple[int, int]] = {}
    for pool in able:
        groups, alone = by_class.get(pool.gpu_class, (0, 0))
        slots = market.slots(pool.gpu_class, location, pool.config.gpus)
        by_class[pool.gpu_class] = max(groups, slots), alone + places[pool][location]
    return min(sum(map(min, by_class.values())), service.max_replicas * len({pool.role for pool in able}))


def _carried_ratio(service: ServedModel, locations: int) -> float:
    """What is left when the fullest of so many locations is lost is at most all but one part in so many."""
    if service.max_share_per_location_ratio >= 1.0 or locations <= 1:
        return 1.0
    return max(1.0, (1.0 - service.max_share_per_location_ratio) * locations / (locations - 1))


def _serves(service: ServedModel, market: Market, places: dict[PoolKey, dict[str, int]], fewest: int) -> bool:
    """False where a chain could only be at one location that may not be lost, or only on nodes that may be taken."""
    if service.max_share_per_location_ratio < 1.0 and fewest <= 1:
        return False
    if service.max_spot_ratio >= 1.0:
        return True
    owned = {
        pool: {at: n for at, n in counts.items() if _reclaims(market, pool.gpu_class, at) <= 0.0}
        for pool, counts in places.items()
    }
    return all(_union(owned, chain) for chain in CHAINS)


def _reclaims(market: Market, gpu_class: str, location: str) -> float:
    kind = market.kinds[gpu_class][market.kind_of[gpu_class, location]]
    return kind.terms[0] if math.isfinite(kind.terms[0]) else 0.0
