"""What a bound rests on, in names of the problem: prices of what services share, and what failing is said to cost."""

from __future__ import annotations

from dataclasses import dataclass

GPUS, POWER, POWER_WHOLE = "gpus", "power", "power_whole"
QUOTA_GPUS, QUOTA_POWER = "quota_gpus", "quota_power"
CEILING = "ceiling"
RESOURCES, RESOURCES_WHOLE = "resources", "resources_whole"
LINK_OUT, LINK_IN = "link_out", "link_in"


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedRow:
    """One price, USD per hour and unit, of the same limit at each of several places.

    =============== ======================= ==================== =========================================
    limit           ``places``              ``size``             unit
    =============== ======================= ==================== =========================================
    gpus            locations of the class  GPUs of a group      groups of so many GPUs that could stand
    power           power domains           0                    kW above idle draw
    power_whole     power domains           watts of a replica   replicas of so many watts
    quota_gpus      the namespace           0                    GPUs, of the class or (empty) of all
    quota_power     the namespace           0                    kW at the highest cap
    ceiling         the service             0                    replicas of ``role``
    resources       locations of the class  an amount            so much of ``resource``
    resources_whole locations of the class  what a pod asks      pods that ask for so much of ``resource``
    link_out        links                   0                    links full of what leaves their locations
    link_in         links                   0                    links full of what enters them
    =============== ======================= ==================== =========================================
    """

    limit: str
    places: tuple[str, ...]
    gpu_class: str = ""
    size: float = 0.0
    role: str = ""
    resource: str = ""
    usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceWeights:
    """What failing a service weighs: all of its demand unserved, and one replica below its floor.

    What it lacks beyond ``fair_ratio`` of its demand weighs twice.
    """

    service: str
    unserved_usd_per_hour: float
    floor_usd_per_hour: float
    fair_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTier:
    """A tier that no plan in question leaves more short than ``lacking_usd_per_hour``, in penalties.

    Its penalties weigh ``1 + price_ratio`` times as much, and ``price_ratio`` times what may lack is given back.
    """

    tier_rank: int
    lacking_usd_per_hour: float
    price_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What a service leaves undone at least and at most, in penalties before any price of its tier."""

    service: str
    least_usd_per_hour: float
    most_usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Why no plan that leaves so much undone costs less than ``usd_per_hour``: prices as in ``Certificate``.

    ``held_ratios`` are the prices of the certificate's held tiers in this branch.
    """

    usd_per_hour: float
    undone: tuple[Undone, ...]
    rows: tuple[PricedRow, ...]
    held_ratios: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Why no plan costs less than ``usd_per_hour``: at these prices the services' least values say so.

    ``is_searched`` says that the plan's bound may lie above that, by a solver's branch and bound, which leaves no
    evidence that could be checked in seconds. With tiers in ``held`` the bound is of the plans that leave none of them
    more short than this plan does. Where there are ``branches``, every plan lies in one or another of them, and none
    costs less than the least of their bounds, which is ``usd_per_hour``; ``rows`` are then those before any branch.
    """

    usd_per_hour: float
    rows: tuple[PricedRow, ...]
    weights: tuple[ServiceWeights, ...]
    is_searched: bool = False
    held: tuple[HeldTier, ...] = ()
    branches: tuple[Branch, ...] = ()
