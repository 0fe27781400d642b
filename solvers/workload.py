"""What is asked: served models with their SLOs, and the demand on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from solvers.engine import EngineConfig, Role


class SloMetric(StrEnum):
    """Latencies that an SLO may bound."""

    TTFT = "TTFT"
    ITL = "ITL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """At least ``percentile_ratio`` (0-1) of requests (TTFT) or token gaps (ITL) stay within ``limit_s``."""

    metric: SloMetric
    percentile_ratio: float
    limit_s: float


class PlacementMode(StrEnum):
    """How finely a pool is pinned: any node of the class, or one location (rack or row)."""

    CLASS = "Class"
    LOCATION = "Location"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """At least so many replicas of a service at a location, of one role and GPU class where they are said."""

    location: str
    replicas: int = 1
    role: Role | None = None
    gpu_class: str = ""

    def counts(self, role: Role, gpu_class: str, location: str) -> bool:
        """Tell whether a replica keeps the pin."""
        return location == self.location and self.role in (None, role) and self.gpu_class in ("", gpu_class)

    def __str__(self) -> str:
        return " ".join(word for word in (self.location, self.role or "", self.gpu_class) if word)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One service. ``name`` is ``namespace/name``; ``tier_rank`` 0 is the most important.

    ``gpu_classes`` empty means any that fits, ``engine_configs`` (labels) any with a profile, ``locations`` everywhere.
    ``max_replicas`` bounds each role.

    Attributes
    ----------
    min_locations : int
        Locations with replicas in each chain (prompts, output tokens) of a service; as many replicas at least.
    max_share_per_location_ratio : float
        The largest part of what is served that may go with any one location: the replicas elsewhere carry the rest.
    max_spot_ratio : float
        The largest part of what is served that may hang on nodes that can be taken away; 0 refuses them.
    fair_weight : float
        When its tier is short, services are short in inverse proportion to this.
    is_one_pod : bool
        Each of its replicas is made as one pod, so none can stand on several nodes.
    splits_by_size : bool
        Its router can send requests to pools by the length of their prompts; else every pool of a role gets one mix.
    kv_compatibility_group : str
        KV group of the pools whose profile names none: prefill and decode pair only inside one group.
    kv_may_cross : bool
        False when prefill and decode may only pair at one location.
    requests : mapping of Role to mapping of str to int
        What each pod of a role asks for beside GPUs, named and counted as in ``Node.resources``.
    """

    name: str
    model: str
    tier: str
    tier_rank: int
    slos: tuple[Slo, ...]
    roles: tuple[Role, ...] = (Role.PREFILL, Role.DECODE, Role.MIXED)
    gpu_classes: tuple[str, ...] = ()
    min_replicas: int = 0
    max_replicas: int = 1000
    placement: PlacementMode = PlacementMode.LOCATION
    kv_compatibility_group: str = ""
    kv_may_cross: bool = True
    engine_configs: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    min_locations: int = 1
    max_share_per_location_ratio: float = 1.0
    max_spot_ratio: float = 1.0
    fair_weight: float = 1.0
    is_one_pod: bool = False
    splits_by_size: bool = False
    requests: Mapping[Role, Mapping[str, int]] = field(default_factory=dict, hash=False)

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]

    @property
    def is_spread(self) -> bool:
        """True when it matters how the replicas divide over locations."""
        return self.min_locations > 1 or self.hangs

    @property
    def hangs(self) -> bool:
        """True when it matters how much capacity is lost with a location, or with what may be taken away."""
        return self.max_share_per_location_ratio < 1.0 or 0.0 < self.max_spot_ratio < 1.0

    @property
    def has_pairs(self) -> bool:
        """True when prefill and decode may be done by different replicas."""
        return Role.PREFILL in self.roles and Role.DECODE in self.roles

    @property
    def pairs_locally(self) -> bool:
        """True when it matters whether prefill and decode are at the same location."""
        return self.has_pairs and not self.kv_may_cross

    def allows_location(self, location: str) -> bool:
        return not self.locations or location in self.locations

    def allows(self, gpu_class: str, config: EngineConfig) -> bool:
        """Tell whether the service may run on the GPU class in this configuration."""
        return (not self.gpu_classes or gpu_class in self.gpu_classes) and (
            not self.engine_configs or config.label in self.engine_configs
        )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SizeBucket:
    """Requests of about one size; ``weight_ratio`` is their share of the service's requests.

    ``cached_tokens`` of each prompt are found in a replica's prefix cache and not computed again.
    """

    prompt_tokens: int
    output_tokens: int
    weight_ratio: float
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Load expected at the planning horizon, at the quantile that planning uses.

    ``source`` says where it came from (Declared, Gateway, Engine) and which assumption made the joint mix.
    """

    service: str
    requests_per_s: float
    mix: tuple[SizeBucket, ...]
    source: str = "Declared"
