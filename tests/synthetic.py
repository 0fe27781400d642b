"""Whole problems drawn by seed, from a hundred nodes to a hundred thousand GPUs, for benchmarks and tests of scale.

Rows of racks repeat a few designs of one or two GPU classes each; racks, rows and the site have budgets that full draw
would pass by half. Services ask in proportion to a Zipf law, and the sum is set by ``load``: what the cheapest GPUs for
everything would cost, over the price of the fleet.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from controller.facts import GPU_FACTS
from solvers.engine import EngineConfig, EngineProfile, Role
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.engine.roofline import ModelFacts, roofline_profile
from solvers.errors import InvalidInput, OutOfRange
from solvers.fleet import GpuClass, Node, PowerDomain
from solvers.plan import Plan
from solvers.problem import Policy, Problem
from solvers.workload import Demand, ServedModel, SizeBucket, Slo, SloMetric

TIERS = ("critical", "standard", "best-effort")
GPUS = 8  # of one node
# USD per GPU hour, host W per GPU, nodes of a rack
CLASSES: Mapping[str, tuple[float, float, int]] = {
    "l4": (0.60, 75.0, 8),
    "l40s": (1.20, 125.0, 6),
    "a100-sxm": (1.60, 190.0, 4),
    "h100-sxm": (2.60, 275.0, 4),
    "h200-sxm": (3.20, 275.0, 4),
    "b200-sxm": (5.00, 375.0, 4),
}
DESIGNS = (
    ("l40s", "a100-sxm"),
    ("h100-sxm",),
    ("h200-sxm",),
    ("b200-sxm", "l4"),
    ("a100-sxm",),
    ("h100-sxm", "h200-sxm"),
    ("l4", "l40s"),
    ("b200-sxm",),
    ("h100-sxm", "l4"),
    ("b200-sxm", "h200-sxm"),
)
"""GPU classes of the racks of a row, in turn."""

# name: billions of parameters, of them active, layers, hidden size, key and value numbers per token and layer, share
MODELS: Mapping[str, tuple[float, float, int, int, int, float]] = {
    "8b": (8.0, 8.0, 32, 4096, 2048, 0.20),
    "14b": (14.8, 14.8, 48, 5120, 2048, 0.12),
    "32b": (32.8, 32.8, 64, 5120, 2048, 0.14),
    "30b-a3b": (30.5, 3.3, 48, 2048, 1024, 0.12),
    "70b": (70.6, 70.6, 80, 8192, 2048, 0.16),
    "123b": (123.0, 123.0, 88, 12288, 2048, 0.06),
    "235b-a22b": (235.0, 22.0, 94, 4096, 1024, 0.08),
    "405b": (405.0, 405.0, 126, 16384, 2048, 0.05),
    "671b-a37b": (671.0, 37.0, 61, 7168, 576, 0.07),
}
EXPERTS, PICKED = 128, 8  # of the models whose active part is smaller
BUCKETS = ((256, 256), (1024, 256), (4096, 512), (16384, 512))
DEGREES = (1, 2, 4, 8)
LEAST_ROOM_TOKENS = 40_000  # a replica that holds no more than a request or two is not offered


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a fleet is drawn; ``designs`` is how many different rows it has."""

    nodes: int
    services: int
    rows: int
    designs: int


SIZES: Mapping[str, Size] = {
    "XS": Size(nodes=24, services=4, rows=4, designs=4),
    "S": Size(nodes=100, services=10, rows=4, designs=4),
    "M": Size(nodes=1_000, services=50, rows=16, designs=8),
    "L": Size(nodes=12_500, services=200, rows=80, designs=10),
}
LOAD = 0.5
POWER_RATIO = 0.66


def sizes(text: str) -> list[str]:
    """Names of sizes joined by commas, as a command line says them.

    Raises
    ------
    ArgumentTypeError
        When one is none of ``SIZES``.
    """
    names = text.split(",")
    if unknown := [name for name in names if name not in SIZES]:
        raise ArgumentTypeError(f"no fleet is of size {unknown[0]!r}: say some of {','.join(SIZES)}, with commas")
    return names


def make_problem(
    size: Size, seed: int, *, load: float = LOAD, power_ratio: float = POWER_RATIO, policy: Policy | None = None
) -> Problem:
    """Draw a whole problem.

    Parameters
    ----------
    load : float
        About 0.5 keeps a fleet busy inside its budgets; 1.3 to 2 times as much overloads it.
    power_ratio : float
        Budget of a row above idle draw, over what its replicas could add at most.
    """
    rng = np.random.default_rng(seed)
    nodes = tuple(_nodes(size))
    profiles = {p.key: p for p in _profiles()}
    services = tuple(_service(index, rng) for index in range(size.services))
    mixes = {s.name: _mix(s, rng) for s in services}
    services = tuple(_reachable(s, mixes[s.name]) for s in services)
    problem = Problem(
        services=services,
        demands={s.name: Demand(service=s.name, requests_per_s=0.0, mix=mixes[s.name]) for s in services},
        gpu_classes={name: _gpu_class(name) for name in sorted({n.gpu_class for n in nodes})},
        nodes=nodes,
        domains={},
        profiles={key: p for key, p in sorted(profiles.items()) if key.gpu_class in {n.gpu_class for n in nodes}},
        policy=policy or Policy(),
    )
    problem = replace(problem, domains=domains(problem, power_ratio))
    return replace(problem, demands=_demands(problem, load, rng))


def shifted(problem: Problem, plan: Plan, sigma: float, seed: int) -> Problem:
    """The same fleet with ``plan`` running and every demand moved by a normal factor of spread ``sigma``."""
    rng = np.random.default_rng(seed)
    running = {(row.pool, row.location): row.replicas for row in plan.placements}
    demands = {
        name: replace(demand, requests_per_s=round(demand.requests_per_s * max(0.1, rng.normal(1.0, sigma)), 6))
        for name, demand in sorted(problem.demands.items())
    }
    return replace(problem, demands=demands, running=running)


def _nodes(size: Size) -> Iterator[Node]:
    """Fill the rows one after the other with racks of one class each."""
    left, per_row = size.nodes, -(-size.nodes // size.rows)
    for row in range(size.rows):
        kinds, rack, in_row = DESIGNS[row % size.designs % len(DESIGNS)], 0, min(per_row, left)
        left -= in_row
        while in_row > 0:
            kind = kinds[rack % len(kinds)]
            count = min(CLASSES[kind][2], in_row)
            where = f"row-{row:02d}-rack-{rack:02d}"
            for index in range(count):
                yield Node(
                    name=f"{where}-{index}",
                    gpu_class=kind,
                    location=where,
                    gpus_total=GPUS,
                    gpus_usable=GPUS,
                    domains=tuple(sorted((where, f"row-{row:02d}", "site"))),
                )
            rack, in_row = rack + 1, in_row - count


def _gpu_class(name: str) -> GpuClass:
    price, host, _ = CLASSES[name]
    facts = GPU_FACTS[name]
    return GpuClass(
        name=name,
        resource_name="nvidia.com/gpu",
        node_selector={"penstock.dev/gpu-class": name},
        memory_bytes=int(facts.memory_bytes),
        link_island_gpus=GPUS,
        idle_watts=facts.idle_watts,
        min_cap_watts=facts.max_watts / 2,
        max_cap_watts=facts.max_watts,
        host_share_watts=host,
        price_usd_per_hour=price,
    )


def domains(problem: Problem, ratio: float) -> dict[str, PowerDomain]:
    """Racks get a tenth more than their row's ratio, the site a twentieth less than the rows together."""
    idle: dict[str, float] = {}
    extra: dict[str, float] = {}
    for node in problem.nodes:
        kind = problem.gpu_classes[node.gpu_class]
        for name in node.domains:
            idle[name] = idle.get(name, 0.0) + node.gpus_total * kind.idle_watts
            added = node.gpus_total * (kind.max_cap_watts + kind.host_share_watts - kind.idle_watts)
            extra[name] = extra.get(name, 0.0) + added
    part = {name: ratio * (0.95 if name == "site" else 1.1 if "rack" in name else 1.0) for name in idle}
    return {
        name: PowerDomain(name=name, budget_watts=float(round(idle[name] + min(1.0, part[name]) * extra[name])))
        for name in sorted(idle)
    }


def _facts(name: str) -> ModelFacts:
    total, active, layers, hidden, kv, _ = MODELS[name]
    return ModelFacts(
        name=name,
        parameters=total * 1e9,
        active_parameters=active * 1e9,
        layers=layers,
        hidden_size=hidden,
        attention_width=hidden,
        kv_values_per_token=layers * kv,
        experts=EXPERTS if active < total else 1,
        experts_per_token=PICKED if active < total else 1,
    )


def _profiles() -> Iterator[EngineProfile]:
    for model in MODELS:
        for kind in CLASSES:
            for degree in DEGREES:
                try:
                    made = roofline_profile(_facts(model), GPU_FACTS[kind], EngineConfig(tensor_parallel=degree))
                except InvalidInput:
                    continue  # the weights do not fit
                if made.kv_capacity_tokens >= LEAST_ROOM_TOKENS:
                    yield made


def _service(index: int, rng: np.random.Generator) -> ServedModel:
    names = list(MODELS)
    model = names[int(rng.choice(len(names), p=[MODELS[name][-1] for name in names]))]
    rank = int(rng.choice(3, p=[0.25, 0.5, 0.25]))
    ttft = float(rng.choice([0.5, 1.0, 2.0, 4.0], p=[0.2, 0.35, 0.3, 0.15]))
    itl = float(rng.choice([0.025, 0.04, 0.06, 0.1], p=[0.15, 0.35, 0.35, 0.15]))
    return ServedModel(
        name=f"prod/svc-{index:03d}",
        model=model,
        tier=TIERS[rank],
        tier_rank=rank,
        slos=(
            Slo(metric=SloMetric.TTFT, percentile_ratio=0.95, limit_s=ttft),
            Slo(metric=SloMetric.ITL, percentile_ratio=0.95, limit_s=itl),
        ),
        min_replicas=2 if rank == 0 else 1 if rank == 1 else 0,
        max_replicas=100_000,
    )


def _mix(served: ServedModel, rng: np.random.Generator) -> tuple[SizeBucket, ...]:
    """Two or three neighbouring sizes, by random weights."""
    first, count = int(rng.choice(3, p=[0.45, 0.35, 0.2])), int(rng.integers(2, 4))
    sizes = BUCKETS[first : first + count]
    weights = rng.dirichlet(np.ones(len(sizes)) * 1.5)
    return tuple(
        SizeBucket(prompt_tokens=prompt, output_tokens=output, weight_ratio=round(float(0.05 + 0.95 * weight), 4))
        for (prompt, output), weight in zip(sizes, weights, strict=True)
    )


def _reachable(served: ServedModel, mix: tuple[SizeBucket, ...]) -> ServedModel:
    """Loosen the limits of long prompts and of large models, which nobody promises as much for."""
    longest, billions = max(b.prompt_tokens for b in mix), MODELS[served.model][0]
    slack = {SloMetric.TTFT: max(1.0, longest / 2048) * (1.0 + billions / 100), SloMetric.ITL: 1.0 + billions / 200}
    slos = tuple(replace(slo, limit_s=round(slo.limit_s * slack[slo.metric], 4)) for slo in served.slos)
    return replace(served, slos=slos)


def _demands(problem: Problem, load: float, rng: np.random.Generator) -> dict[str, Demand]:
    count = len(problem.services)
    weights = 1.0 / (1.0 + rng.permutation(count)) ** 0.9
    fleet = sum(n.gpus_usable * problem.gpu_classes[n.gpu_class].price_usd_per_hour for n in problem.nodes)
    shares = load * fleet * weights / weights.sum()
    return {
        served.name: replace(
            problem.demands[served.name], requests_per_s=round(float(share) / _rough_usd(problem, served), 4)
        )
        for served, share in zip(problem.services, shares, strict=True)
    }


def _rough_usd(problem: Problem, served: ServedModel) -> float:
    """About what a request per second costs for an hour on the cheapest pair of pools; no queueing is counted."""
    mix = problem.demands[served.name].mix
    cheapest = dict.fromkeys((Role.PREFILL, Role.DECODE), 1e9)
    for key, made in problem.profiles.items():
        if key.model != served.model:
            continue
        price = key.config.gpus * problem.gpu_classes[key.gpu_class].price_usd_per_hour
        try:
            seconds = _rough_seconds(made, served, mix)
        except OutOfRange:
            continue
        cheapest = {role: min(cheapest[role], price * seconds[role]) for role in cheapest}
    return sum(cheapest.values())


def _rough_seconds(made: EngineProfile, served: ServedModel, mix: tuple[SizeBucket, ...]) -> dict[Role, float]:
    """Seconds of one replica that the mean request takes."""
    weight = sum(b.weight_ratio for b in mix)
    ttft, itl = (next(s.limit_s for s in served.slos if s.metric is m) for m in (SloMetric.TTFT, SloMetric.ITL))
    longest = max(prefill_s(made, b.prompt_tokens) for b in mix)
    prompts = sum(b.weight_ratio * prefill_s(made, b.prompt_tokens) for b in mix) / weight
    context = sum(b.weight_ratio * (b.prompt_tokens + b.output_tokens / 2) for b in mix) / weight
    tokens = sum(b.weight_ratio * b.output_tokens for b in mix) / weight
    fits = [b for b in made.decode_batches if b * context <= 0.9 * made.kv_capacity_tokens]
    batches = [b for b in fits if decode_step_s(made, b, min(context, made.decode_contexts[-1])) <= 0.9 * itl]
    if longest > 0.8 * ttft or not batches:
        return {Role.PREFILL: 1e9 if longest > 0.8 * ttft else prompts, Role.DECODE: 1e9}
    step = decode_step_s(made, batches[-1], min(context, made.decode_contexts[-1]))
    return {Role.PREFILL: prompts / 0.8, Role.DECODE: tokens * step / batches[-1] / 0.9}
