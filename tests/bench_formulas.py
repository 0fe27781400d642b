"""How far the queueing formulas and the simulation disagree over load: ``python -m tests.bench_formulas``.

For each role, GPU class and utilisation from 0.3 to 0.95 of saturation, one pool is replayed with Poisson arrivals of
the mix, and its 95th percentile is set beside what the formulas predict there. The prefill pool is followed, and the
decode pool preceded, by so many replicas that those never queue; a decode pool shows in ITL, and when it is full in
TTFT. *SIM LOAD* is the load at which the simulation just holds every SLO over the load at which the formulas say so,
found by bisection: above 1 the formulas are safe, below 1 they are hopeful. With ``--cached RATIO`` prompts of one size
share a prefix of so much of them, by the profile's own table of prefixes, and *IGNORED / SIM* is what the formulas say
when they are not told. Saturation is then that of prompts with their prefix.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

from controller.tables import Cell, render_table
from solvers import sizing
from solvers.engine import EngineProfile, Role
from solvers.evaluate import Load, Settings, Summary, evaluate
from solvers.fleet import PoolKey
from solvers.plan import Placement, Plan
from solvers.policies.fixed import Fixed
from solvers.problem import Problem
from solvers.refute import BLOCK_TOKENS, poisson_load
from solvers.sizing import Capacity, pools, replica_capacity
from solvers.sizing.queueing import MAX_LOAD_RATIO
from solvers.workload import SizeBucket, SloMetric
from tests.fleets import CHAT, demand, nodes, problem, profile, service
from tests.plans_by_hand import NOTHING

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
CLASSES = ("h100-sxm", "l40s")
HALVINGS = 6
P95 = 0.95
UNBOUNDED = 1000.0  # times the simulation: beyond saturation a formula has no answer
PLENTY = 8  # times the pool's replicas, of the other side of a chain
METRIC = {Role.PREFILL: SloMetric.TTFT, Role.DECODE: SloMetric.ITL, Role.MIXED: SloMetric.ITL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pool at one load; ratios are 0-1."""

    role: str
    gpu_class: str
    replicas: int
    metric: str
    load_ratio: float
    formula_s: float
    simulated_s: float
    half_width_s: float
    missed_ratio: float
    ignored_s: float

    @property
    def formula_ratio(self) -> float:
        """Prediction over simulation."""
        return self.formula_s / self.simulated_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The load at which the simulation just holds every SLO, over the formulas' own."""

    role: str
    gpu_class: str
    replicas: int
    simulated_load_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool under test."""

    role: Role
    profile: EngineProfile
    replicas: int
    capacity: Capacity
    mix: tuple[SizeBucket, ...]

    @property
    def gpu_class(self) -> str:
        return self.profile.key.gpu_class

    @property
    def saturation_per_s(self) -> float:
        """Rate of one replica at which it is never idle."""
        return self.capacity.requests_per_s / self.capacity.utilisation_ratio

    def predicted_s(self, metric: SloMetric, ratio: float) -> float:
        """What the formulas say the 95th percentile is at a utilisation."""
        return PREDICTED[self.role](self, ratio)[metric]


def _prefill_s(pool: Pool, ratio: float) -> dict[SloMetric, float]:
    curves, mix, rate = pool.profile, pools.Mix.of(pool.mix), ratio * pool.saturation_per_s
    transfer_s = mix.prompt_tokens * curves.kv_bytes_per_token / curves.transfer_bytes_per_s
    link = min(0.99, rate * float(mix.weight @ transfer_s))
    step_s = float(curves.decode_step_s[0][0])  # the decode side is all but idle here
    prompts = pools.Prompts(
        weight=mix.weight,
        service_s=pools.prefill_times_s(curves, mix),
        after_s=transfer_s / (1.0 - link) + sizing.STEPS_TO_FIRST_TOKEN * step_s,
    )
    return {SloMetric.TTFT: prompts.quantile_s(P95, prompts.tail(rate * pool.replicas, pool.replicas))}


def _decode_s(pool: Pool, ratio: float) -> dict[SloMetric, float]:
    mix = pools.Mix.of(pool.mix)
    chain = pools.decoding_pool(pool.profile, mix, pools.chained_replicas(pool.profile, mix, pool.replicas))
    return {SloMetric.ITL: chain.itl_s(chain.chain.probabilities(ratio * chain.chain.saturation_per_s), P95)}


def _mixed_s(pool: Pool, ratio: float) -> dict[SloMetric, float]:
    together = pools.chained_replicas(pool.profile, pools.Mix.of(pool.mix), pool.replicas)
    sized = sizing._mixed_sizing(pool.profile, pool.mix, service("x", "llama-8b").slos, together)
    said = sized.at(ratio)
    tail = said.prompts.tail(said.rate_per_s * pool.replicas, pool.replicas)
    time = sized.pool.time_in_states(said.rate_per_s)
    itl_s = sized.pool.itl_s(said.rate_per_s, time, P95)
    return {SloMetric.TTFT: said.prompts.quantile_s(P95, tail), SloMetric.ITL: itl_s}


PREDICTED = {Role.PREFILL: _prefill_s, Role.DECODE: _decode_s, Role.MIXED: _mixed_s}


def pools_to_try(replicas: Sequence[int], cached_ratio: float) -> Iterator[Pool]:
    """Pools that can serve the mix within the SLOs."""
    mix = cached_mix(cached_ratio)
    for role in (role for role in Role if role is not Role.DECODE or not cached_ratio):
        for name in CLASSES:
            curves = profile("llama-8b", name, 1, 8.0)
            if cached_ratio:
                curves = with_prefixes(curves)
            for count in replicas:
                found = replica_capacity(curves, role, mix, service("x", "llama-8b").slos, pool_replicas=count)
                if isinstance(found, Capacity):
                    yield Pool(role=role, profile=curves, replicas=count, capacity=found, mix=mix)


def cached_mix(ratio: float) -> tuple[SizeBucket, ...]:
    """The mix with so much of every prompt cached, in whole blocks."""
    return tuple(
        replace(size, cached_tokens=BLOCK_TOKENS * int(ratio * size.prompt_tokens / BLOCK_TOKENS)) for size in CHAT
    )


def with_prefixes(curves: EngineProfile) -> EngineProfile:
    """Give a profile a table of prefixes: attention to 1,024 and 4,096 cached tokens costs 6 and 25 % more."""
    rows = tuple((ratio,) * len(curves.prefill_tokens) for ratio in (1.06, 1.25))
    return replace(curves, prefill_cached_tokens=(1024, 4096), prefill_cached_ratio=rows)


def ignored_s(pool: Pool, metric: SloMetric, ratio: float) -> float:
    """What the formulas say of the same requests when they are not told of the prefixes."""
    if not any(size.cached_tokens for size in pool.mix):
        return pool.predicted_s(metric, ratio)
    slos = service("x", "llama-8b").slos
    found = replica_capacity(pool.profile, pool.role, CHAT, slos, pool_replicas=pool.replicas)
    if not isinstance(found, Capacity):
        return float("inf")
    unaware = replace(pool, mix=CHAT, capacity=found)
    own_ratio = ratio * pool.saturation_per_s / unaware.saturation_per_s
    return unaware.predicted_s(metric, own_ratio) if own_ratio < 1.0 else float("inf")


def world(pool: Pool) -> tuple[Problem, Plan]:
    """The pool with what it needs beside it."""
    chat = service("chat", "llama-8b")
    key = pool.profile.key
    fleet = nodes(key.gpu_class, pool.replicas * (1 + PLENTY), "rack-1")
    stated = problem([(chat, 1.0)], fleet, [pool.profile])
    counts = {pool.role: pool.replicas}
    if pool.role is not Role.MIXED:
        counts[Role.DECODE if pool.role is Role.PREFILL else Role.PREFILL] = PLENTY * pool.replicas
    placements = tuple(
        Placement(
            pool=PoolKey(service=chat.name, role=role, gpu_class=key.gpu_class, config=key.config),
            location="rack-1",
            replicas=count,
        )
        for role, count in sorted(counts.items())
    )
    return stated, replace(NOTHING, placements=placements)


def load_of(pool: Pool, ratio: float, requests: int, seed: int) -> Load:
    """Poisson arrivals at a share of what saturates the pool."""
    rate = ratio * pool.replicas * pool.saturation_per_s
    chat = service("chat", "llama-8b")
    return poisson_load({chat.name: replace(demand(chat, rate), mix=pool.mix)}, requests / rate, seed)


def simulated(pool: Pool, ratio: float, requests: int, seed: int) -> Summary:
    """Replay the pool at a load."""
    stated, plan = world(pool)
    load = load_of(pool, ratio, requests, seed)
    return evaluate(stated, plan, load, Fixed(), Settings(window_s=max(1.0, load.span_s / 20)))


def rows_of(pool: Pool, requests: int, seed: int) -> Iterator[Row]:
    """The pool at every load, by the metrics that its role decides."""
    for ratio in LOADS:
        summary = simulated(pool, ratio, requests, seed)
        for kept in summary.services["default/chat"].slos:
            if pool.role is Role.MIXED or kept.slo.metric is METRIC[pool.role]:
                yield Row(
                    role=str(pool.role),
                    gpu_class=pool.gpu_class,
                    replicas=pool.replicas,
                    metric=str(kept.slo.metric),
                    load_ratio=ratio,
                    formula_s=pool.predicted_s(kept.slo.metric, ratio),
                    simulated_s=kept.value_s.value,
                    half_width_s=kept.value_s.half_width,
                    missed_ratio=1.0 - kept.within_ratio.value,
                    ignored_s=ignored_s(pool, kept.slo.metric, ratio),
                )


def edge_of(pool: Pool, requests: int, seed: int) -> Edge:
    """Bisect for the load at which the simulation just holds."""
    low, high = 0.1, 1.2
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        holds = simulated(pool, middle, requests, seed).is_met
        low, high = (middle, high) if holds else (low, middle)
    ratio = low / pool.capacity.utilisation_ratio
    return Edge(role=str(pool.role), gpu_class=pool.gpu_class, replicas=pool.replicas, simulated_load_ratio=ratio)


def tables(rows: Sequence[Row], edges: Sequence[Edge]) -> Iterator[str]:
    headers = (
        "ROLE",
        "GPU CLASS",
        "REPLICAS",
        "SLO",
        "LOAD",
        "FORMULA MS",
        "SIM MS",
        "± MS",
        "FORMULA / SIM",
        "IGNORED / SIM",
        "MISSED %",
    )
    yield render_table(headers, (_cells(row) for row in rows))
    spread = render_table(("ROLE", "SLO", "LOAD", "LEAST", "MEDIAN", "MOST"), _spreads(rows))
    yield f"formula over simulation\n{spread}"
    yield render_table(
        ("ROLE", "GPU CLASS", "REPLICAS", "SIM LOAD / FORMULA LOAD"),
        ((e.role, e.gpu_class, e.replicas, e.simulated_load_ratio) for e in edges),
    )


def _spreads(rows: Sequence[Row]) -> Iterator[tuple[Cell, ...]]:
    """Within the loads that are ever planned, and beyond."""
    for role, metric in sorted({(row.role, row.metric) for row in rows}):
        mine = [row for row in rows if (row.role, row.metric) == (role, metric)]
        for name, part in (
            (f"up to {MAX_LOAD_RATIO:g}", [row for row in mine if row.load_ratio <= MAX_LOAD_RATIO]),
            (f"above {MAX_LOAD_RATIO:g}, never planned", [row for row in mine if row.load_ratio > MAX_LOAD_RATIO]),
        ):
            ratios = sorted(row.formula_ratio for row in part)
            yield role, metric, name, *(_ratio(each) for each in (ratios[0], median(ratios), ratios[-1]))


def _ratio(value: float) -> Cell:
    """A ratio; where the formulas find no steady state they say so."""
    return value if value < UNBOUNDED else "unbounded"


def _cells(row: Row) -> tuple[Cell, ...]:
    times = (1000 * row.simulated_s, 1000 * row.half_width_s)
    place = (row.role, row.gpu_class, row.replicas, row.metric, row.load_ratio)
    said: Cell = 1000 * row.formula_s if row.formula_ratio < UNBOUNDED else "unbounded"
    ignored = _ratio(row.ignored_s / row.simulated_s)
    return *place, said, *times, _ratio(row.formula_ratio), ignored, 100 * row.missed_ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of each replay")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--cached", type=float, nargs="+", default=[0.0, 0.5], metavar="RATIO",
                        help="of each prompt that is cached (0 0.5)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    found = [measured(ratio, options) for ratio in options.cached]
    if options.output == "json":
        data = [
            {"cachedRatio": ratio, "loads": [asdict(r) for r in rows], "edges": [asdict(e) for e in edges]}
            for ratio, (rows, edges) in zip(options.cached, found, strict=True)
        ]
        print(json.dumps(data, indent=2))
        return
    for ratio, (rows, edges) in zip(options.cached, found, strict=True):
        print(f"{ratio:.0%} of each prompt cached\n")
        print("\n\n".join(tables(rows, edges)) + "\n")


def measured(cached_ratio: float, options: argparse.Namespace) -> tuple[list[Row], list[Edge]]:
    """All pools at all loads."""
    rows: list[Row] = []
    edges: list[Edge] = []
    for pool in pools_to_try(options.replicas, cached_ratio):
        print(f"{pool.role} on {pool.replicas} {pool.gpu_class}, {cached_ratio:.0%} cached", file=sys.stderr)
        rows += rows_of(pool, options.requests, options.seed)
        edges.append(edge_of(pool, options.requests, options.seed))
    return rows, edges


if __name__ == "__main__":
    main()
