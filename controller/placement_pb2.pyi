# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]
    ROLE_MIXED: _ClassVar[Role]

class SolveStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOLVE_STATUS_UNSPECIFIED: _ClassVar[SolveStatus]
    SOLVE_STATUS_OPTIMAL: _ClassVar[SolveStatus]
    SOLVE_STATUS_FEASIBLE: _ClassVar[SolveStatus]
    SOLVE_STATUS_FAILED: _ClassVar[SolveStatus]
ROLE_UNSPECIFIED: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role
ROLE_MIXED: Role
SOLVE_STATUS_UNSPECIFIED: SolveStatus
SOLVE_STATUS_OPTIMAL: SolveStatus
SOLVE_STATUS_FEASIBLE: SolveStatus
SOLVE_STATUS_FAILED: SolveStatus

class EngineConfig(_message.Message):
    __slots__ = ("engine", "tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel", "variant", "gpus", "label")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    EXPERT_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    DATA_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    engine: str
    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    data_parallel: int
    variant: str
    gpus: int
    label: str
    def __init__(self, engine: _Optional[str] = ..., tensor_parallel: _Optional[int] = ..., pipeline_parallel: _Optional[int] = ..., expert_parallel: _Optional[int] = ..., data_parallel: _Optional[int] = ..., variant: _Optional[str] = ..., gpus: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("service", "role", "gpu_class", "config", "sizes")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    GPU_CLASS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    service: str
    role: Role
    gpu_class: str
    config: EngineConfig
    sizes: str
    def __init__(self, service: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., gpu_class: _Optional[str] = ..., config: _Optional[_Union[EngineConfig, _Mapping]] = ..., sizes: _Optional[str] = ...) -> None: ...

class LocationReplicas(_message.Message):
    __slots__ = ("location", "replicas")
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    location: str
    replicas: int
    def __init__(self, location: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class PoolPlan(_message.Message):
    __slots__ = ("pool", "replicas", "placements", "demand_ratio", "capacity_requests_per_s", "cap_watts", "reserved_watts", "planned_watts", "cost_usd_per_hour", "nodes_per_replica")
    POOL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_RATIO_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CAP_WATTS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_WATTS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_WATTS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    NODES_PER_REPLICA_FIELD_NUMBER: _ClassVar[int]
    pool: Pool
    replicas: int
    placements: _containers.RepeatedCompositeFieldContainer[LocationReplicas]
    demand_ratio: float
    capacity_requests_per_s: float
    cap_watts: float
    reserved_watts: float
    planned_watts: float
    cost_usd_per_hour: float
    nodes_per_replica: int
    def __init__(self, pool: _Optional[_Union[Pool, _Mapping]] = ..., replicas: _Optional[int] = ..., placements: _Optional[_Iterable[_Union[LocationReplicas, _Mapping]]] = ..., demand_ratio: _Optional[float] = ..., capacity_requests_per_s: _Optional[float] = ..., cap_watts: _Optional[float] = ..., reserved_watts: _Optional[float] = ..., planned_watts: _Optional[float] = ..., cost_usd_per_hour: _Optional[float] = ..., nodes_per_replica: _Optional[int] = ...) -> None: ...

class ServicePlan(_message.Message):
    __slots__ = ("service", "tier", "demand_requests_per_s", "served_requests_per_s", "unserved_requests_per_s", "short_because")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEMAND_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    SERVED_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    SHORT_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    service: str
    tier: str
    demand_requests_per_s: float
    served_requests_per_s: float
    unserved_requests_per_s: float
    short_because: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, service: _Optional[str] = ..., tier: _Optional[str] = ..., demand_requests_per_s: _Optional[float] = ..., served_requests_per_s: _Optional[float] = ..., unserved_requests_per_s: _Optional[float] = ..., short_because: _Optional[_Iterable[str]] = ...) -> None: ...

class PartPlan(_message.Message):
    __slots__ = ("service", "sizes", "demand_requests_per_s", "served_requests_per_s")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DEMAND_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    SERVED_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    service: str
    sizes: str
    demand_requests_per_s: float
    served_requests_per_s: float
    def __init__(self, service: _Optional[str] = ..., sizes: _Optional[str] = ..., demand_requests_per_s: _Optional[float] = ..., served_requests_per_s: _Optional[float] = ...) -> None: ...

class SplitPrice(_message.Message):
    __slots__ = ("service", "sizes", "price_usd_per_hour", "is_estimate", "is_declared")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    PRICE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    IS_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    IS_DECLARED_FIELD_NUMBER: _ClassVar[int]
    service: str
    sizes: _containers.RepeatedScalarFieldContainer[str]
    price_usd_per_hour: float
    is_estimate: bool
    is_declared: bool
    def __init__(self, service: _Optional[str] = ..., sizes: _Optional[_Iterable[str]] = ..., price_usd_per_hour: _Optional[float] = ..., is_estimate: _Optional[bool] = ..., is_declared: _Optional[bool] = ...) -> None: ...

class DomainPlan(_message.Message):
    __slots__ = ("domain", "budget_watts", "reserved_watts", "planned_watts", "price_usd_per_kilowatt_hour")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    BUDGET_WATTS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_WATTS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_WATTS_FIELD_NUMBER: _ClassVar[int]
    PRICE_USD_PER_KILOWATT_HOUR_FIELD_NUMBER: _ClassVar[int]
    domain: str
    budget_watts: float
    reserved_watts: float
    planned_watts: float
    price_usd_per_kilowatt_hour: float
    def __init__(self, domain: _Optional[str] = ..., budget_watts: _Optional[float] = ..., reserved_watts: _Optional[float] = ..., planned_watts: _Optional[float] = ..., price_usd_per_kilowatt_hour: _Optional[float] = ...) -> None: ...

class Binding(_message.Message):
    __slots__ = ("limit", "subject", "unit", "price_usd_per_hour")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PRICE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    limit: str
    subject: str
    unit: str
    price_usd_per_hour: float
    def __init__(self, limit: _Optional[str] = ..., subject: _Optional[str] = ..., unit: _Optional[str] = ..., price_usd_per_hour: _Optional[float] = ...) -> None: ...

class Relief(_message.Message):
    __slots__ = ("limit", "subject", "unit", "amount_units", "price_usd_per_hour", "is_estimate", "first_serves_requests_per_s", "first_saves_usd_per_hour")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UNITS_FIELD_NUMBER: _ClassVar[int]
    PRICE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    IS_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SERVES_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_SAVES_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    limit: str
    subject: str
    unit: str
    amount_units: float
    price_usd_per_hour: float
    is_estimate: bool
    first_serves_requests_per_s: float
    first_saves_usd_per_hour: float
    def __init__(self, limit: _Optional[str] = ..., subject: _Optional[str] = ..., unit: _Optional[str] = ..., amount_units: _Optional[float] = ..., price_usd_per_hour: _Optional[float] = ..., is_estimate: _Optional[bool] = ..., first_serves_requests_per_s: _Optional[float] = ..., first_saves_usd_per_hour: _Optional[float] = ...) -> None: ...

class LinkPlan(_message.Message):
    __slots__ = ("link", "bytes_per_s", "outgoing_bytes_per_s", "incoming_bytes_per_s", "cost_usd_per_hour")
    LINK_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    OUTGOING_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    INCOMING_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    link: str
    bytes_per_s: float
    outgoing_bytes_per_s: float
    incoming_bytes_per_s: float
    cost_usd_per_hour: float
    def __init__(self, link: _Optional[str] = ..., bytes_per_s: _Optional[float] = ..., outgoing_bytes_per_s: _Optional[float] = ..., incoming_bytes_per_s: _Optional[float] = ..., cost_usd_per_hour: _Optional[float] = ...) -> None: ...

class SolveReport(_message.Message):
    __slots__ = ("status", "objective_usd_per_hour", "bound_usd_per_hour", "gap_ratio", "cost_usd_per_hour", "rounds", "notes")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    BOUND_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    GAP_RATIO_FIELD_NUMBER: _ClassVar[int]
    COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    status: SolveStatus
    objective_usd_per_hour: float
    bound_usd_per_hour: float
    gap_ratio: float
    cost_usd_per_hour: float
    rounds: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, status: _Optional[_Union[SolveStatus, str]] = ..., objective_usd_per_hour: _Optional[float] = ..., bound_usd_per_hour: _Optional[float] = ..., gap_ratio: _Optional[float] = ..., cost_usd_per_hour: _Optional[float] = ..., rounds: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("number", "decision_hash", "pools", "services", "domains", "bindings", "report", "routing", "is_short", "parts", "splits", "relief", "links")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DECISION_HASH_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    BINDINGS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    IS_SHORT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    RELIEF_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    number: int
    decision_hash: str
    pools: _containers.RepeatedCompositeFieldContainer[PoolPlan]
    services: _containers.RepeatedCompositeFieldContainer[ServicePlan]
    domains: _containers.RepeatedCompositeFieldContainer[DomainPlan]
    bindings: _containers.RepeatedCompositeFieldContainer[Binding]
    report: SolveReport
    routing: str
    is_short: bool
    parts: _containers.RepeatedCompositeFieldContainer[PartPlan]
    splits: _containers.RepeatedCompositeFieldContainer[SplitPrice]
    relief: _containers.RepeatedCompositeFieldContainer[Relief]
    links: _containers.RepeatedCompositeFieldContainer[LinkPlan]
    def __init__(self, number: _Optional[int] = ..., decision_hash: _Optional[str] = ..., pools: _Optional[_Iterable[_Union[PoolPlan, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[ServicePlan, _Mapping]]] = ..., domains: _Optional[_Iterable[_Union[DomainPlan, _Mapping]]] = ..., bindings: _Optional[_Iterable[_Union[Binding, _Mapping]]] = ..., report: _Optional[_Union[SolveReport, _Mapping]] = ..., routing: _Optional[str] = ..., is_short: _Optional[bool] = ..., parts: _Optional[_Iterable[_Union[PartPlan, _Mapping]]] = ..., splits: _Optional[_Iterable[_Union[SplitPrice, _Mapping]]] = ..., relief: _Optional[_Iterable[_Union[Relief, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkPlan, _Mapping]]] = ...) -> None: ...

class GetPlanRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class GetPlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class WatchPlansRequest(_message.Message):
    __slots__ = ("after_number",)
    AFTER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    after_number: int
    def __init__(self, after_number: _Optional[int] = ...) -> None: ...

class WatchPlansResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ...) -> None: ...

class DemandChange(_message.Message):
    __slots__ = ("service", "requests_per_s", "factor_ratio")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    FACTOR_RATIO_FIELD_NUMBER: _ClassVar[int]
    service: str
    requests_per_s: float
    factor_ratio: float
    def __init__(self, service: _Optional[str] = ..., requests_per_s: _Optional[float] = ..., factor_ratio: _Optional[float] = ...) -> None: ...

class BudgetChange(_message.Message):
    __slots__ = ("domain", "budget_watts")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    BUDGET_WATTS_FIELD_NUMBER: _ClassVar[int]
    domain: str
    budget_watts: float
    def __init__(self, domain: _Optional[str] = ..., budget_watts: _Optional[float] = ...) -> None: ...

class NodesChange(_message.Message):
    __slots__ = ("gpu_class", "location", "nodes", "gpus_per_node", "domains")
    GPU_CLASS_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    GPUS_PER_NODE_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    gpu_class: str
    location: str
    nodes: int
    gpus_per_node: int
    domains: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, gpu_class: _Optional[str] = ..., location: _Optional[str] = ..., nodes: _Optional[int] = ..., gpus_per_node: _Optional[int] = ..., domains: _Optional[_Iterable[str]] = ...) -> None: ...

class PriceChange(_message.Message):
    __slots__ = ("gpu_class", "price_usd_per_hour")
    GPU_CLASS_FIELD_NUMBER: _ClassVar[int]
    PRICE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    gpu_class: str
    price_usd_per_hour: float
    def __init__(self, gpu_class: _Optional[str] = ..., price_usd_per_hour: _Optional[float] = ...) -> None: ...

class WhatIfRequest(_message.Message):
    __slots__ = ("demands", "budgets", "nodes", "prices", "removed_nodes")
    DEMANDS_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODES_FIELD_NUMBER: _ClassVar[int]
    demands: _containers.RepeatedCompositeFieldContainer[DemandChange]
    budgets: _containers.RepeatedCompositeFieldContainer[BudgetChange]
    nodes: _containers.RepeatedCompositeFieldContainer[NodesChange]
    prices: _containers.RepeatedCompositeFieldContainer[PriceChange]
    removed_nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, demands: _Optional[_Iterable[_Union[DemandChange, _Mapping]]] = ..., budgets: _Optional[_Iterable[_Union[BudgetChange, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodesChange, _Mapping]]] = ..., prices: _Optional[_Iterable[_Union[PriceChange, _Mapping]]] = ..., removed_nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class PlacementDifference(_message.Message):
    __slots__ = ("pool", "location", "from_replicas", "to_replicas")
    POOL_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    FROM_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TO_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    pool: Pool
    location: str
    from_replicas: int
    to_replicas: int
    def __init__(self, pool: _Optional[_Union[Pool, _Mapping]] = ..., location: _Optional[str] = ..., from_replicas: _Optional[int] = ..., to_replicas: _Optional[int] = ...) -> None: ...

class ServiceDifference(_message.Message):
    __slots__ = ("service", "from_served_requests_per_s", "to_served_requests_per_s")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    FROM_SERVED_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    TO_SERVED_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    service: str
    from_served_requests_per_s: float
    to_served_requests_per_s: float
    def __init__(self, service: _Optional[str] = ..., from_served_requests_per_s: _Optional[float] = ..., to_served_requests_per_s: _Optional[float] = ...) -> None: ...

class DomainDifference(_message.Message):
    __slots__ = ("domain", "from_reserved_watts", "to_reserved_watts")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    FROM_RESERVED_WATTS_FIELD_NUMBER: _ClassVar[int]
    TO_RESERVED_WATTS_FIELD_NUMBER: _ClassVar[int]
    domain: str
    from_reserved_watts: float
    to_reserved_watts: float
    def __init__(self, domain: _Optional[str] = ..., from_reserved_watts: _Optional[float] = ..., to_reserved_watts: _Optional[float] = ...) -> None: ...

class PlanDifference(_message.Message):
    __slots__ = ("placements", "services", "domains", "from_cost_usd_per_hour", "to_cost_usd_per_hour", "starting_replicas", "stopping_replicas")
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    FROM_COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    TO_COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    STARTING_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    placements: _containers.RepeatedCompositeFieldContainer[PlacementDifference]
    services: _containers.RepeatedCompositeFieldContainer[ServiceDifference]
    domains: _containers.RepeatedCompositeFieldContainer[DomainDifference]
    from_cost_usd_per_hour: float
    to_cost_usd_per_hour: float
    starting_replicas: int
    stopping_replicas: int
    def __init__(self, placements: _Optional[_Iterable[_Union[PlacementDifference, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[ServiceDifference, _Mapping]]] = ..., domains: _Optional[_Iterable[_Union[DomainDifference, _Mapping]]] = ..., from_cost_usd_per_hour: _Optional[float] = ..., to_cost_usd_per_hour: _Optional[float] = ..., starting_replicas: _Optional[int] = ..., stopping_replicas: _Optional[int] = ...) -> None: ...

class WhatIfResponse(_message.Message):
    __slots__ = ("plan", "base_number", "difference")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    BASE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    base_number: int
    difference: PlanDifference
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ..., base_number: _Optional[int] = ..., difference: _Optional[_Union[PlanDifference, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("service", "number", "with_prices", "with_losses")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WITH_PRICES_FIELD_NUMBER: _ClassVar[int]
    WITH_LOSSES_FIELD_NUMBER: _ClassVar[int]
    service: str
    number: int
    with_prices: bool
    with_losses: bool
    def __init__(self, service: _Optional[str] = ..., number: _Optional[int] = ..., with_prices: _Optional[bool] = ..., with_losses: _Optional[bool] = ...) -> None: ...

class PoolCount(_message.Message):
    __slots__ = ("pool", "replicas")
    POOL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    replicas: int
    def __init__(self, pool: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class ChosenPool(_message.Message):
    __slots__ = ("pool", "used_ratio", "cost_usd_per_thousand_requests")
    POOL_FIELD_NUMBER: _ClassVar[int]
    USED_RATIO_FIELD_NUMBER: _ClassVar[int]
    COST_USD_PER_THOUSAND_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    pool: PoolPlan
    used_ratio: float
    cost_usd_per_thousand_requests: float
    def __init__(self, pool: _Optional[_Union[PoolPlan, _Mapping]] = ..., used_ratio: _Optional[float] = ..., cost_usd_per_thousand_requests: _Optional[float] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("pools", "cost_usd_per_hour", "cost_usd_per_thousand_requests", "extra_usd_per_hour", "extra_at_scarcity_usd_per_hour", "blocked_by", "fleet_low_usd_per_hour", "fleet_high_usd_per_hour", "fleet_expected_usd_per_hour")
    POOLS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    COST_USD_PER_THOUSAND_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    EXTRA_AT_SCARCITY_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_BY_FIELD_NUMBER: _ClassVar[int]
    FLEET_LOW_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    FLEET_HIGH_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    FLEET_EXPECTED_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[PoolCount]
    cost_usd_per_hour: float
    cost_usd_per_thousand_requests: float
    extra_usd_per_hour: float
    extra_at_scarcity_usd_per_hour: float
    blocked_by: _containers.RepeatedScalarFieldContainer[str]
    fleet_low_usd_per_hour: float
    fleet_high_usd_per_hour: float
    fleet_expected_usd_per_hour: float
    def __init__(self, pools: _Optional[_Iterable[_Union[PoolCount, _Mapping]]] = ..., cost_usd_per_hour: _Optional[float] = ..., cost_usd_per_thousand_requests: _Optional[float] = ..., extra_usd_per_hour: _Optional[float] = ..., extra_at_scarcity_usd_per_hour: _Optional[float] = ..., blocked_by: _Optional[_Iterable[str]] = ..., fleet_low_usd_per_hour: _Optional[float] = ..., fleet_high_usd_per_hour: _Optional[float] = ..., fleet_expected_usd_per_hour: _Optional[float] = ...) -> None: ...

class CapReason(_message.Message):
    __slots__ = ("pool", "cap_watts", "max_cap_watts", "speed_ratio", "saved_watts", "worth_usd_per_hour", "lower_cap_watts", "lower_speed_ratio")
    POOL_FIELD_NUMBER: _ClassVar[int]
    CAP_WATTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CAP_WATTS_FIELD_NUMBER: _ClassVar[int]
    SPEED_RATIO_FIELD_NUMBER: _ClassVar[int]
    SAVED_WATTS_FIELD_NUMBER: _ClassVar[int]
    WORTH_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    LOWER_CAP_WATTS_FIELD_NUMBER: _ClassVar[int]
    LOWER_SPEED_RATIO_FIELD_NUMBER: _ClassVar[int]
    pool: str
    cap_watts: float
    max_cap_watts: float
    speed_ratio: float
    saved_watts: float
    worth_usd_per_hour: float
    lower_cap_watts: float
    lower_speed_ratio: float
    def __init__(self, pool: _Optional[str] = ..., cap_watts: _Optional[float] = ..., max_cap_watts: _Optional[float] = ..., speed_ratio: _Optional[float] = ..., saved_watts: _Optional[float] = ..., worth_usd_per_hour: _Optional[float] = ..., lower_cap_watts: _Optional[float] = ..., lower_speed_ratio: _Optional[float] = ...) -> None: ...

class PoolSwap(_message.Message):
    __slots__ = ("pool", "instead", "extra_usd_per_hour", "extra_at_scarcity_usd_per_hour", "blocked_by")
    POOL_FIELD_NUMBER: _ClassVar[int]
    INSTEAD_FIELD_NUMBER: _ClassVar[int]
    EXTRA_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    EXTRA_AT_SCARCITY_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_BY_FIELD_NUMBER: _ClassVar[int]
    pool: str
    instead: PoolCount
    extra_usd_per_hour: float
    extra_at_scarcity_usd_per_hour: float
    blocked_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pool: _Optional[str] = ..., instead: _Optional[_Union[PoolCount, _Mapping]] = ..., extra_usd_per_hour: _Optional[float] = ..., extra_at_scarcity_usd_per_hour: _Optional[float] = ..., blocked_by: _Optional[_Iterable[str]] = ...) -> None: ...

class ShadowPrice(_message.Message):
    __slots__ = ("limit", "subject", "unit", "more_usd_per_hour", "more_holds_for_units", "less_usd_per_hour", "less_holds_for_units")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    MORE_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    MORE_HOLDS_FOR_UNITS_FIELD_NUMBER: _ClassVar[int]
    LESS_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    LESS_HOLDS_FOR_UNITS_FIELD_NUMBER: _ClassVar[int]
    limit: str
    subject: str
    unit: str
    more_usd_per_hour: float
    more_holds_for_units: float
    less_usd_per_hour: float
    less_holds_for_units: float
    def __init__(self, limit: _Optional[str] = ..., subject: _Optional[str] = ..., unit: _Optional[str] = ..., more_usd_per_hour: _Optional[float] = ..., more_holds_for_units: _Optional[float] = ..., less_usd_per_hour: _Optional[float] = ..., less_holds_for_units: _Optional[float] = ...) -> None: ...

class Loss(_message.Message):
    __slots__ = ("change", "low_usd_per_hour", "expected_usd_per_hour", "high_usd_per_hour", "short", "keeps_cuts")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    LOW_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    HIGH_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    SHORT_FIELD_NUMBER: _ClassVar[int]
    KEEPS_CUTS_FIELD_NUMBER: _ClassVar[int]
    change: str
    low_usd_per_hour: float
    expected_usd_per_hour: float
    high_usd_per_hour: float
    short: _containers.RepeatedScalarFieldContainer[str]
    keeps_cuts: bool
    def __init__(self, change: _Optional[str] = ..., low_usd_per_hour: _Optional[float] = ..., expected_usd_per_hour: _Optional[float] = ..., high_usd_per_hour: _Optional[float] = ..., short: _Optional[_Iterable[str]] = ..., keeps_cuts: _Optional[bool] = ...) -> None: ...

class CountReason(_message.Message):
    __slots__ = ("pool", "replicas", "kept_by", "one_less_serves_requests_per_s")
    POOL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    KEPT_BY_FIELD_NUMBER: _ClassVar[int]
    ONE_LESS_SERVES_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    pool: str
    replicas: int
    kept_by: str
    one_less_serves_requests_per_s: float
    def __init__(self, pool: _Optional[str] = ..., replicas: _Optional[int] = ..., kept_by: _Optional[str] = ..., one_less_serves_requests_per_s: _Optional[float] = ...) -> None: ...

class DemandRange(_message.Message):
    __slots__ = ("least_requests_per_s", "most_requests_per_s")
    LEAST_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MOST_REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    least_requests_per_s: float
    most_requests_per_s: float
    def __init__(self, least_requests_per_s: _Optional[float] = ..., most_requests_per_s: _Optional[float] = ...) -> None: ...

class PriceSwitch(_message.Message):
    __slots__ = ("gpu_class", "now_usd_per_hour", "at_usd_per_hour", "pools")
    GPU_CLASS_FIELD_NUMBER: _ClassVar[int]
    NOW_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    AT_USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    gpu_class: str
    now_usd_per_hour: float
    at_usd_per_hour: float
    pools: _containers.RepeatedCompositeFieldContainer[PoolCount]
    def __init__(self, gpu_class: _Optional[str] = ..., now_usd_per_hour: _Optional[float] = ..., at_usd_per_hour: _Optional[float] = ..., pools: _Optional[_Iterable[_Union[PoolCount, _Mapping]]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("number", "text", "service", "chosen", "rejected", "bindings", "unfit", "counts", "demand_range", "switches", "caps", "relief", "prices", "losses", "links", "swaps")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    BINDINGS_FIELD_NUMBER: _ClassVar[int]
    UNFIT_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_RANGE_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    CAPS_FIELD_NUMBER: _ClassVar[int]
    RELIEF_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    SWAPS_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    service: ServicePlan
    chosen: _containers.RepeatedCompositeFieldContainer[ChosenPool]
    rejected: _containers.RepeatedCompositeFieldContainer[Alternative]
    bindings: _containers.RepeatedCompositeFieldContainer[Binding]
    unfit: _containers.RepeatedScalarFieldContainer[str]
    counts: _containers.RepeatedCompositeFieldContainer[CountReason]
    demand_range: DemandRange
    switches: _containers.RepeatedCompositeFieldContainer[PriceSwitch]
    caps: _containers.RepeatedCompositeFieldContainer[CapReason]
    relief: _containers.RepeatedCompositeFieldContainer[Relief]
    prices: _containers.RepeatedCompositeFieldContainer[ShadowPrice]
    losses: _containers.RepeatedCompositeFieldContainer[Loss]
    links: _containers.RepeatedCompositeFieldContainer[LinkPlan]
    swaps: _containers.RepeatedCompositeFieldContainer[PoolSwap]
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ..., service: _Optional[_Union[ServicePlan, _Mapping]] = ..., chosen: _Optional[_Iterable[_Union[ChosenPool, _Mapping]]] = ..., rejected: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., bindings: _Optional[_Iterable[_Union[Binding, _Mapping]]] = ..., unfit: _Optional[_Iterable[str]] = ..., counts: _Optional[_Iterable[_Union[CountReason, _Mapping]]] = ..., demand_range: _Optional[_Union[DemandRange, _Mapping]] = ..., switches: _Optional[_Iterable[_Union[PriceSwitch, _Mapping]]] = ..., caps: _Optional[_Iterable[_Union[CapReason, _Mapping]]] = ..., relief: _Optional[_Iterable[_Union[Relief, _Mapping]]] = ..., prices: _Optional[_Iterable[_Union[ShadowPrice, _Mapping]]] = ..., losses: _Optional[_Iterable[_Union[Loss, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkPlan, _Mapping]]] = ..., swaps: _Optional[_Iterable[_Union[PoolSwap, _Mapping]]] = ...) -> None: ...
