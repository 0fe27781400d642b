"""Reject what no plan can be made of: names that lead nowhere, rates that are no rates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from solvers.engine import ProfileKey, check_profile
from solvers.errors import InvalidInput
from solvers.fleet import ANYWHERE, GpuClass, Node
from solvers.planner.checks_links import check_links
from solvers.problem import Policy, Problem
from solvers.workload import Demand, PlacementMode, ServedModel, SizeBucket

MOST_REQUESTS_PER_S = 1e12
MOST_NODE_GPUS = 100_000
MOST_USD = 1e9  # of a GPU or a kilowatt for an hour, as weights and hours of a start: no solver adds more to cents
MOST_TOKENS = 10**12
MIN_WEIGHT = 1e-12  # of all sizes together; shares of less are lost in arithmetic


def check_problem(problem: Problem) -> None:
    """Raise on the first object that cannot be planned with.

    Raises
    ------
    InvalidInput
        Names the object, its field, the number and the remedy. Demand that cannot be met is no such case: it ends in a
        plan that is short.
    """
    _unique("ServedModel", (service.name for service in problem.services))
    _unique("Node", (node.name for node in problem.nodes))
    for service in problem.services:
        _check_service(service)
        if service.name not in problem.demands:
            raise InvalidInput(f"ServedModel/{service.name}", "demand", "is not known", "declare 0 if nothing is asked")
        demand = problem.demands[service.name]
        if demand.service != service.name:
            raise InvalidInput(
                f"ServedModel/{service.name}", "demand", f"is that of {demand.service!r}", "name the service in it"
            )
        _check_demand(demand)
        _finite(
            f"ServedModel/{service.name}",
            "serving_usd_per_request",
            problem.serving_usd_per_request.get(service.name, 0.0),
            least=0.0,
        )
    for node in problem.nodes:
        _check_node(problem, node)
    for domain in problem.domains.values():
        _finite(f"PowerDomain/{domain.name}", "budgetWatts", domain.usable_watts, least=-math.inf)
    _check_quotas(problem)
    check_links(problem)
    for gpu_class in problem.gpu_classes.values():
        _check_class(gpu_class)
    _check_keys("PowerDomain", {key: domain.name for key, domain in problem.domains.items()})
    _check_keys("GpuClass", {key: gpu_class.name for key, gpu_class in problem.gpu_classes.items()})
    _check_policy(problem.policy)
    models = {service.model for service in problem.services}
    for profile_key, profile in sorted(problem.profiles.items()):
        if profile_key != profile.key:
            held = f"is kept as {profile_key.model} on {profile_key.gpu_class}/{profile_key.config.label}"
            raise InvalidInput(f"EngineProfile/{profile.key.model}", "key", held, "use the profile's own key")
        if profile_key.model in models:  # a model that leaves no room for its cache is no fault: it fits nowhere
            check_profile(replace(profile, kv_capacity_tokens=profile.kv_capacity_tokens or 1))
            _check_degrees(profile_key)
    for (pool, location), count in problem.running.items():
        _whole(f"running/{pool}@{location}", "", count, least=0, remedy="count replicas from 0")


def _check_keys(kind: str, names: Mapping[str, str]) -> None:
    for key, name in sorted(names.items()):
        if key != name:
            raise InvalidInput(f"{kind}/{name}", "name", f"is kept as {key!r}", "keep each object under its own name")


def _check_class(gpu_class: GpuClass) -> None:
    subject = f"GpuClass/{gpu_class.name}"
    for field in ("idle_watts", "min_cap_watts", "max_cap_watts", "host_share_watts", "price_usd_per_hour"):
        _finite(subject, field, getattr(gpu_class, field), least=0.0)
    _at_most(subject, "price_usd_per_hour", gpu_class.price_usd_per_hour, MOST_USD)
    if gpu_class.min_cap_watts > gpu_class.max_cap_watts:
        caps = f"{gpu_class.min_cap_watts:g} W is above the highest cap {gpu_class.max_cap_watts:g} W"
        raise InvalidInput(subject, "min_cap_watts", caps, "swap them")
    if gpu_class.max_cap_watts <= 0.0:
        raise InvalidInput(subject, "max_cap_watts", "is 0 W, which no GPU works at", "give what one may draw at most")


def _check_degrees(key: ProfileKey) -> None:
    config = key.config
    degrees = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")
    for field in degrees:
        subject = f"EngineProfile/{key.model} on {key.gpu_class}/{config.label}"
        _whole(subject, field, getattr(config, field), least=1, remedy="give the GPUs that work together, at least 1")


def _check_service(service: ServedModel) -> None:
    """Locations and pins speak of places, so the service must be placed by location; pins must be able to hold."""
    subject = f"ServedModel/{service.name}"
    _check_name(subject, service)
    spreads = service.is_spread or service.max_spot_ratio < 1.0 or service.pairs_locally
    if (service.pins or service.locations or spreads) and service.placement is PlacementMode.CLASS:
        remedy = "set placement Location, or drop locations, pins, spread, maxSpot and kvMayCross"
        raise InvalidInput(subject, "placement", "is Class, which leaves places to the scheduler", remedy)
    for slo in service.slos:
        if not (0.0 < slo.limit_s < math.inf and 0.0 < slo.percentile_ratio < 1.0):
            said = f"{slo.metric} of {slo.limit_s!r} s at {slo.percentile_ratio!r}"
            raise InvalidInput(subject, "slos", f"{said} is no limit", "give a time above 0 and a share inside 0 and 1")
    if service.splits_by_size and service.pins:
        remedy = "drop the pins, or splitsBySize: a pin does not say which sizes it holds"
        raise InvalidInput(subject, "pins", "are asked for a service that splits by size", remedy)
    for role, asked in service.requests.items():
        for name, amount in asked.items():
            _finite(subject, f"requests[{role}].{name}", amount, least=0.0)
    _whole(subject, "minReplicas", service.min_replicas, least=0, remedy="give a whole number, 0 or more")
    _whole(subject, "maxReplicas", service.max_replicas, least=0, remedy="give a whole number, 0 or more")
    _whole(subject, "tierRank", service.tier_rank, least=0, remedy="count tiers from 0")
    if service.min_replicas > service.max_replicas:
        counts = f"{service.min_replicas} is above maxReplicas {service.max_replicas}"
        raise InvalidInput(subject, "minReplicas", counts, "lower it or raise maxReplicas")
    if not 0.0 <= service.max_spot_ratio <= 1.0:
        raise InvalidInput(subject, "maxSpot", f"is {service.max_spot_ratio!r}", "give a share between 0 and 1")
    if not 0.0 < service.fair_weight < math.inf:
        raise InvalidInput(subject, "fairWeight", f"is {service.fair_weight!r}", "give a finite number above 0")
    if not 0.0 < service.max_share_per_location_ratio <= 1.0:
        share = f"is {service.max_share_per_location_ratio!r}"
        raise InvalidInput(subject, "spread.maxSharePerLocation", share, "give a share above 0 and at most 1")
    if not 0 <= service.min_locations <= max(1, service.max_replicas):
        counts = f"is {service.min_locations}, maxReplicas is {service.max_replicas}"
        raise InvalidInput(subject, "spread.minLocations", counts, "give at most as many as replicas are allowed")
    for index, pin in enumerate(service.pins):
        if not service.allows_location(pin.location):
            known = ", ".join(service.locations)
            raise InvalidInput(
                subject, f"pins[{index}].location", f"{pin.location!r} is not in locations", f"use {known}"
            )
        if not 1 <= pin.replicas <= service.max_replicas:
            counts = f"is {pin.replicas}, maxReplicas is {service.max_replicas}"
            raise InvalidInput(subject, f"pins[{index}].replicas", counts, "give at least 1 and at most maxReplicas")
        if pin.role not in (None, *service.roles):
            raise InvalidInput(subject, f"pins[{index}].role", f"{pin.role} is not in roles", "add the role or drop it")


def _check_name(subject: str, service: ServedModel) -> None:
    if not service.name.strip():
        raise InvalidInput(subject, "name", "is empty", "write namespace/name")
    if not service.roles or len(set(service.roles)) < len(service.roles):
        said = f"names {', '.join(service.roles)}" if service.roles else "names none"
        raise InvalidInput(subject, "roles", said, "name each of prefill, decode and mixed once that it may have")


def _unique(kind: str, names: Iterable[str]) -> None:
    for name, times in sorted(Counter(names).items()):
        if times > 1:
            raise InvalidInput(f"{kind}/{name}", "name", f"is given {times} times", "give each object its own name")


def _finite(subject: str, field: str, value: float, *, least: float) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise InvalidInput(subject, field, f"is {value!r}", f"give a finite number of at least {max(least, 0.0):g}")


def _at_most(subject: str, field: str, value: float, most: float) -> None:
    if value > most:
        raise InvalidInput(subject, field, f"is {value:g}", f"give at most {most:g}")


def _whole(subject: str, field: str, value: float, *, least: int, remedy: str) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value) or value != int(value) or value < least:
        raise InvalidInput(subject, field, f"is {value!r}", remedy)


def _check_demand(demand: Demand) -> None:
    subject = f"ServedModel/{demand.service}"
    _finite(subject, "demand.requestsPerSecond", demand.requests_per_s, least=0.0)
    if demand.requests_per_s > MOST_REQUESTS_PER_S:
        rate = f"is {demand.requests_per_s:g}, more than all the world asks"
        raise InvalidInput(subject, "demand.requestsPerSecond", rate, f"give at most {MOST_REQUESTS_PER_S:g}")
    if demand.requests_per_s > 0.0 and not demand.mix:
        raise InvalidInput(subject, "demand.mix", "is empty", "give at least one size of prompt and output")
    for index, bucket in enumerate(demand.mix):
        _finite(subject, f"demand.mix[{index}].weight", bucket.weight_ratio, least=0.0)
        _check_tokens(subject, f"demand.mix[{index}]", bucket)
    total = sum(bucket.weight_ratio for bucket in demand.mix)
    if demand.mix and not MIN_WEIGHT <= total <= MOST_REQUESTS_PER_S:
        weighs = f"weighs {total:g} in all" if total > 0.0 else "weighs nothing"
        raise InvalidInput(subject, "demand.mix", weighs, "give one bucket a weight above 0, and shares of 1 in all")


def _check_tokens(subject: str, field: str, bucket: SizeBucket) -> None:
    size = f"asks {bucket.prompt_tokens} tokens for {bucket.output_tokens}"
    if not min(bucket.prompt_tokens, bucket.output_tokens) >= 1:
        raise InvalidInput(subject, field, size, "give at least one token of each")
    if not max(bucket.prompt_tokens, bucket.output_tokens) <= MOST_TOKENS:
        raise InvalidInput(subject, field, size, f"give at most {MOST_TOKENS:g} tokens of each")
    if not 0 <= bucket.cached_tokens <= bucket.prompt_tokens:
        found = f"finds {bucket.cached_tokens} of {bucket.prompt_tokens} tokens in a cache"
        raise InvalidInput(subject, f"{field}.cachedTokens", found, "give no more than the prompt has")


def _check_policy(policy: Policy) -> None:
    """Prices, shares and limits that every stage multiplies by."""
    subject = "FleetPolicy/default"
    for field in ("energy_usd_per_kilowatt_hour", "start_cost_hours", "min_saving_ratio", "relative_gap"):
        _finite(subject, field, getattr(policy, field), least=0.0)
        _at_most(subject, field, getattr(policy, field), MOST_USD)
    for index, weight in enumerate(policy.tier_penalties):
        _finite(subject, f"tier_penalties[{index}]", weight, least=0.0)
        _at_most(subject, f"tier_penalties[{index}]", weight, MOST_USD)
        if weight <= 0.0:
            raise InvalidInput(subject, f"tier_penalties[{index}]", "is 0", "a tier weighs more than nothing")
    if not 0.0 < policy.time_limit_s < math.inf:
        raise InvalidInput(subject, "time_limit_s", f"is {policy.time_limit_s!r}", "give a finite time above 0")


def _check_quotas(problem: Problem) -> None:
    subject = "FleetPolicy/default"
    _unique("FleetPolicy/default quota", (f"{quota.namespace} {quota.gpu_class}" for quota in problem.policy.quotas))
    for index, quota in enumerate(problem.policy.quotas):
        if quota.max_gpus is not None:
            _whole(
                subject, f"quotas[{index}].maxGpus", float(quota.max_gpus), least=0, remedy="give whole GPUs, 0 or more"
            )
        if quota.max_watts is not None:
            _finite(subject, f"quotas[{index}].maxWatts", quota.max_watts, least=0.0)
        if not 0.0 <= quota.guaranteed_ratio <= 1.0:
            share = f"is {quota.guaranteed_ratio!r}"
            raise InvalidInput(subject, f"quotas[{index}].guaranteed", share, "give a share between 0 and 1")


def _check_node(problem: Problem, node: Node) -> None:
    subject = f"Node/{node.name}"
    if node.gpu_class not in problem.gpu_classes:
        raise InvalidInput(subject, "gpuClass", f"{node.gpu_class!r} is not defined", "create the GpuClass")
    for domain in node.domains:
        if domain not in problem.domains:
            raise InvalidInput(subject, "powerDomain", f"{domain!r} is not defined", "create the PowerDomain")
    for field, gpus in (("gpusUsable", node.gpus_usable), ("gpusTotal", node.gpus_total)):
        if gpus >= 0:
            _whole(subject, field, gpus, least=0, remedy="count whole GPUs")
    if node.location == ANYWHERE:
        raise InvalidInput(subject, "location", f"is {ANYWHERE!r}, which stands for any", "give the rack or row a name")
    if not 0 <= node.gpus_usable <= node.gpus_total:
        counts = f"{node.gpus_usable} usable of {node.gpus_total}"
        raise InvalidInput(subject, "gpus", f"{counts} GPUs", "count usable GPUs between 0 and the total")
    if node.gpus_total > MOST_NODE_GPUS:
        raise InvalidInput(subject, "gpus", f"has {node.gpus_total}", f"no node has more than {MOST_NODE_GPUS}")
    for name, amount in node.resources.items():
        _finite(subject, f"resources[{name}]", amount, least=0.0)
    _finite(subject, "heldWatts", node.held_watts, least=0.0)
    _finite(subject, "reclaimsPerHour", node.reclaims_per_hour, least=0.0)
    _finite(subject, "priceRatio", node.price_ratio, least=0.0)
