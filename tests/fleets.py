"""Builders of small fleets and problems, shared by tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource, Role
from solvers.fleet import GpuClass, Node, PoolKey, PowerDomain
from solvers.problem import Policy, Problem
from solvers.sizing import Capacity, Unfit
from solvers.workload import Demand, PlacementMode, ServedModel, SizeBucket, Slo, SloMetric

TIERS = ("critical", "standard", "best-effort")
GIB = 2**30
CHAT = (
    SizeBucket(prompt_tokens=512, output_tokens=128, weight_ratio=0.6),
    SizeBucket(prompt_tokens=2048, output_tokens=256, weight_ratio=0.4),
)
# name: speed of compute, speed of memory, idle W, cap W, host W, USD/h, memory GiB; ratios to h100-sxm
CLASSES: Mapping[str, tuple[float, float, float, float, float, float, int]] = {
    "a100-sxm": (0.32, 0.60, 50.0, 400.0, 100.0, 1.30, 80),
    "b200-sxm": (2.30, 2.30, 140.0, 1000.0, 200.0, 4.50, 180),
    "h100-sxm": (1.00, 1.00, 70.0, 700.0, 150.0, 2.50, 80),
    "h200-sxm": (1.00, 1.40, 75.0, 700.0, 150.0, 3.00, 141),
    "l40s": (0.36, 0.26, 35.0, 350.0, 80.0, 0.80, 48),
}


def gpu_class(name: str) -> GpuClass:
    """Build one of ``CLASSES``."""
    _, _, idle, cap, host, price, memory = CLASSES[name]
    return GpuClass(
        name=name,
        resource_name="nvidia.com/gpu",
        node_selector={"penstock.dev/gpu-class": name},
        memory_bytes=memory * GIB,
        link_island_gpus=8,
        idle_watts=idle,
        min_cap_watts=cap / 2,
        max_cap_watts=cap,
        host_share_watts=host,
        price_usd_per_hour=price,
    )


def profile(model: str, name: str, tensor_parallel: int, billions: float) -> EngineProfile:
    """Build smooth curves for a dense model of so many billion parameters."""
    compute, memory, idle, cap, _, _, gib = CLASSES[name]
    config = EngineConfig(tensor_parallel=tensor_parallel)
    speed = tensor_parallel**0.9
    prompts, batches, contexts = (128, 1024, 8192), (1, 16, 64, 256), (256, 4096, 16384)
    weights = 2e9 * billions
    kv_bytes = int(16000 * billions**0.5)
    step = [
        [
            0.004 + weights / (2.5e12 * memory * speed) + b * (0.00004 * billions / 8 + c * kv_bytes / 2.5e12) / speed
            for c in contexts
        ]
        for b in batches
    ]
    return EngineProfile(
        key=ProfileKey(model=model, gpu_class=name, config=config),
        source=ProfileSource.ROOFLINE,
        source_detail="synthetic",
        prefill_tokens=prompts,
        prefill_s=tuple(0.005 + n * weights / (4.5e14 * compute * speed) for n in prompts),
        decode_batches=batches,
        decode_contexts=contexts,
        decode_step_s=tuple(tuple(row) for row in step),
        kv_capacity_tokens=int(max(0.0, 0.9 * gib * GIB * tensor_parallel - weights) / kv_bytes),
        kv_bytes_per_token=kv_bytes,
        transfer_bytes_per_s=25e9 * tensor_parallel,
        idle_watts_per_gpu=idle,
        prefill_watts_per_gpu=0.95 * cap,
        decode_watts_per_gpu=tuple(cap * share for share in (0.35, 0.45, 0.55, 0.65)),
    )


def slos(ttft_s: float = 0.5, itl_s: float = 0.05) -> tuple[Slo, ...]:
    """Ask both metrics at p95."""
    return (
        Slo(metric=SloMetric.TTFT, percentile_ratio=0.95, limit_s=ttft_s),
        Slo(metric=SloMetric.ITL, percentile_ratio=0.95, limit_s=itl_s),
    )


def service(
    name: str,
    model: str,
    *,
    rank: int = 0,
    ttft_s: float = 0.5,
    itl_s: float = 0.05,
    roles: Sequence[Role] = tuple(Role),
    gpu_classes: Sequence[str] = (),
    min_replicas: int = 0,
    max_replicas: int = 1000,
    placement: PlacementMode = PlacementMode.LOCATION,
) -> ServedModel:
    """Build a service of the tier with that rank."""
    return ServedModel(
        name=f"default/{name}",
        model=model,
        tier=TIERS[rank],
        tier_rank=rank,
        slos=slos(ttft_s, itl_s),
        roles=tuple(roles),
        gpu_classes=tuple(gpu_classes),
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        placement=placement,
    )


def demand(served: ServedModel, requests_per_s: float, mix: Sequence[SizeBucket] = CHAT) -> Demand:
    return Demand(service=served.name, requests_per_s=requests_per_s, mix=tuple(mix))


def nodes(
    name: str,
    count: int,
    location: str,
    *,
    gpus: int = 8,
    usable: int | None = None,
    row: str = "row-a",
    prefix: str = "n",
) -> tuple[Node, ...]:
    """Build like nodes of one class in one rack; domains are the rack, its row and the site."""
    return tuple(
        Node(
            name=f"{prefix}-{location}-{name}-{index:02d}",
            gpu_class=name,
            location=location,
            gpus_total=gpus,
            gpus_usable=gpus if usable is None else usable,
            domains=tuple(sorted((location, row, "site"))),
        )
        for index in range(count)
    )


def problem(
    services: Sequence[tuple[ServedModel, float]],
    fleet: Sequence[Node],
    profiles: Sequence[EngineProfile],
    *,
    budgets: Mapping[str, float] | None = None,
    running: Mapping[tuple[PoolKey, str], int] | None = None,
    policy: Policy | None = None,
    mix: Sequence[SizeBucket] = CHAT,
) -> Problem:
    """Put a problem together; domains without a budget get one that never binds."""
    domains = sorted({d for node in fleet for d in node.domains})
    return Problem(
        services=tuple(served for served, _ in services),
        demands={served.name: demand(served, rate, mix) for served, rate in services},
        gpu_classes={name: gpu_class(name) for name in sorted({n.gpu_class for n in fleet})},
        nodes=tuple(fleet),
        domains={d: PowerDomain(name=d, budget_watts=(budgets or {}).get(d, 1e9)) for d in domains},
        profiles={p.key: p for p in profiles},
        running=dict(running or {}),
        policy=policy or Policy(),
    )


def demo(scale: float = 1.0, *, budget_ratio: float = 0.8, policy: Policy | None = None) -> Problem:
    """Fourteen nodes of five classes in two rows, three services in three tiers."""
    fleet = (
        *nodes("h100-sxm", 2, "rack-a1"),
        *nodes("h100-sxm", 2, "rack-a2"),
        *nodes("h200-sxm", 2, "rack-a3"),
        *nodes("a100-sxm", 3, "rack-b1", row="row-b"),
        *nodes("l40s", 3, "rack-b2", row="row-b"),
        *nodes("b200-sxm", 2, "rack-b3", row="row-b"),
    )
    models = (("chat-8b", 8.0, (1, 2)), ("chat-70b", 70.0, (2, 4, 8)), ("moe", 30.0, (1, 2, 4)))
    profiles = [profile(m, c, tp, size) for m, size, degrees in models for c in CLASSES for tp in degrees]
    fits = [p for p in profiles if p.kv_capacity_tokens > 20_000]
    services = (
        (service("chat-8b", "chat-8b", rank=0, min_replicas=1), 40.0 * scale),
        (service("chat-70b", "chat-70b", rank=1, ttft_s=2.0, itl_s=0.08), 6.0 * scale),
        (service("moe", "moe", rank=2, ttft_s=1.0), 10.0 * scale),
    )
    built = problem(services, fleet, fits, policy=policy)
    return replace(built, domains=budgets(built, budget_ratio))


def budgets(built: Problem, ratio: float) -> dict[str, PowerDomain]:
    """Give every domain the ratio of what its nodes draw with every GPU at its cap."""
    ceilings: dict[str, float] = {}
    for node in built.nodes:
        kind = built.gpu_classes[node.gpu_class]
        for name in node.domains:
            ceilings[name] = ceilings.get(name, 0.0) + node.gpus_total * (kind.max_cap_watts + kind.host_share_watts)
    return {name: PowerDomain(name=name, budget_watts=round(ratio * watts)) for name, watts in sorted(ceilings.items())}


def seeded(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain_capacity(
    profile: EngineProfile,
    role: Role,
    mix: Sequence[SizeBucket],
    slos: Sequence[Slo],
    *,
    pool_replicas: int,
) -> Capacity | Unfit:
    """A table with the signature of ``replica_capacity``: fixed rates by role, more of them in larger pools."""
    rate = {Role.PREFILL: 2.0, Role.DECODE: 5.0, Role.MIXED: 1.5}[role] * CLASSES[profile.key.gpu_class][0]
    scale = 1.0 if role is Role.DECODE else 1.0 - 0.5 / pool_replicas
    return Capacity(
        requests_per_s=rate * profile.key.config.gpus * scale,
        utilisation_ratio=0.9 * scale,
        gpu_watts=profile.idle_watts_per_gpu + 0.5 * scale * profile.prefill_watts_per_gpu,
    )
