"""Let the simulation refute a plan: replay its demand, tighten what missed its SLO, and decide again.

Queueing formulas size the pools; they assume less than a fleet does. So the plan's own demand (Poisson at the planned
mix and the rate that the plan serves) is replayed on the plan's own replicas. Where an SLO is missed by more than the
run's scatter explains, the roles that the SLO depends on are held to carry less from then on, and the problem is
solved again, at most ``ROUNDS`` times. Where prompts wait longer for their transfer than for prefill, the busy links
between locations are held to less instead: a plan may fill a link, and what comes in bursts then waits for it. The
notes of the plan say what was refuted. Whoever waits for the answer may end it before any replay or solve but the
first (``goes_on``); the plan then is the last one, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.evaluate import Load, Settings, Summary, evaluate
from solvers.evaluate.summary import Kept
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.splits.splitting import cuts_of, opened, split
from solvers.policies.fixed import Fixed
from solvers.problem import Problem
from solvers.simulate import Workload
from solvers.simulate.arrivals import Ints
from solvers.sizing import Capacity, CapacityOf, Unfit, replica_capacity
from solvers.workload import Demand, SizeBucket, Slo, SloMetric

ROUNDS = 3
REQUESTS_EACH = 3000  # of the service that is asked least: its 95th percentile then stands on 150 requests
SHORTEST_S, LONGEST_S = 120.0, 3600.0
BLOCK_TOKENS = 64  # of prefixes that prompts of one size share
MOST_SIZES, MOST_BLOCKS = 1 << 16, 1 << 24  # of a service, and of a prompt: ids of blocks are made of these
MOST_REQUESTS = (
    60_000  # of all services together; a decision waits for this: seconds, plain, in a process that may be new
)
WINDOWS = 20
STEP_AT_MOST, STEP_AT_LEAST = 0.75, 0.97  # what one round takes off a capacity at most, and at least
LEAST_FACTOR = 0.55  # of the formula's capacity; below, the profile is wrong and no plan helps
BUSY_LINK_RATIO = 0.5  # from here on a link is thought to keep prompts waiting

ROLES: Mapping[SloMetric, tuple[Role, ...]] = {
    SloMetric.TTFT: (Role.PREFILL, Role.MIXED),
    SloMetric.ITL: (Role.DECODE, Role.MIXED),
}
"""Roles whose load an SLO depends on."""

Decide = Callable[..., Plan]
Factors = dict[tuple[str, Role], float]
Asked = tuple[str, tuple[SizeBucket, ...], tuple[Slo, ...], Role]
"""Model, mix, SLOs and role: what a capacity depends on besides the profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refutation:
    """A plan after its replay. ``rounds`` solves followed the first; ``kept`` is False when an SLO is still missed.

    ``links`` says of which part of their bytes the plan makes use, where the replay held links to less than all.
    """

    plan: Plan
    summary: Summary | None
    rounds: int
    kept: bool
    factors: Mapping[tuple[str, Role], float]
    links: Mapping[str, float] = field(default_factory=dict)


def refuted_plan(
    problem: Problem,
    *,
    previous: Plan | None = None,
    seed: int = 1,
    decide: Decide = make_plan,
    goes_on: Callable[[], bool] = lambda: True,
) -> Refutation:
    """Decide, replay, tighten and decide again until the replay agrees.

    Parameters
    ----------
    previous : Plan, optional
        The plan in force, handed to ``decide``.
    seed : int
        Of the arrivals; the same in every round, so that rounds differ by the plan only.
    decide : callable
        ``make_plan`` or one with its signature.
    goes_on : callable
        Asked before each replay, and before each solve that a replay led to; False ends it with the plan so far.

    Returns
    -------
    Refutation
        With the last plan; its notes say what was refuted and by how much capacities were tightened.

    Raises
    ------
    InvalidInput, SolveFailed
        As ``decide``.
    """
    held = _Held()
    plan = decide(problem, previous=previous)
    for number in range(ROUNDS + 1):
        if not goes_on():
            return held.ended(plan, number)
        summary = replayed(problem, plan, seed)
        missed = _missed(summary) if summary else []
        if not summary or not missed or number == ROUNDS or not goes_on():
            break
        if not held.tighten(number + 1, problem, plan, summary):
            break
        problem_now, capacity_of = held.applied(problem, plan)
        plan = decide(problem_now, previous=previous, capacity_of=capacity_of)
        plan = replace(plan, certificate=None)  # it was proved with less than the sizing gives
    return held.concluded(plan, summary, number)


@dataclass(slots=True)
class _Held:
    """What the rounds of one decision hold to less than the formulas say, and the notes on why.

    Attributes
    ----------
    factors : dict of (service, role) to float
        What is left of the capacities.
    links : dict of link to float
        What is left of the links' bytes per second.
    asked : dict
        The least of ``factors`` so far by what is asked of a model: what sizing is asked with.
    """

    factors: Factors = field(default_factory=dict)
    links: dict[str, float] = field(default_factory=dict)
    asked: dict[Asked, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def tighten(self, number: int, problem: Problem, plan: Plan, summary: Summary) -> bool:
        """Hold what is behind each missed SLO to less, links that prompts wait for, else roles; False at the bound."""
        before = dict(self.factors), dict(self.links)
        for service, kept in _missed(summary):
            self.said.append(_told(number, service, kept))
            if busy := _busy_links(problem, plan, summary, service, kept):
                self.links |= {name: _less(self.links.get(name, 1.0), kept) for name in busy}
            else:
                keys = [(service, role) for role in ROLES[kept.slo.metric]]
                self.factors |= {key: _less(self.factors.get(key, 1.0), kept) for key in keys}
        return before != (self.factors, self.links)

    def applied(self, problem: Problem, plan: Plan) -> tuple[Problem, CapacityOf]:
        """The problem with narrower links, and sizing that carries less, for the plan's parts and for all before."""
        self.asked |= _asked(split(problem, cuts_of(plan)), self.factors)
        return _narrowed(problem, self.links), _tightened(self.asked)

    def concluded(self, plan: Plan, summary: Summary | None, rounds: int) -> Refutation:
        missed = _missed(summary) if summary else []
        notes = [*self.said, _verdict(summary, missed, self.factors, self.links)]
        return self._refutation(_with_notes(plan, notes), summary, rounds, kept=not missed)

    def ended(self, plan: Plan, rounds: int) -> Refutation:
        """The plan as far as time allowed: nobody knows whether a replay would refute it."""
        what = "this plan was not replayed again" if self.said else "it was not replayed"
        notes = [*self.said, f"{what}: the time for it was over"]
        return self._refutation(_with_notes(plan, notes), None, rounds, kept=False)

    def _refutation(self, plan: Plan, summary: Summary | None, rounds: int, *, kept: bool) -> Refutation:
        factors, links = dict(self.factors), dict(self.links)
        return Refutation(plan=plan, summary=summary, rounds=rounds, kept=kept, factors=factors, links=links)


def _with_notes(plan: Plan, notes: Iterable[str]) -> Plan:
    return replace(plan, report=replace(plan.report, notes=(*plan.report.notes, *notes)))


def replayed(problem: Problem, plan: Plan, seed: int) -> Summary | None:
    """Replay what a plan serves on its own replicas, part by part where it splits; None when it serves nothing."""
    plan, problem = opened(plan, problem)
    served = {row.service: row.served_requests_per_s for row in plan.services if row.served_requests_per_s > 1e-9}
    demands = {name: replace(problem.demands[name], requests_per_s=rate) for name, rate in sorted(served.items())}
    demands = {name: demand for name, demand in demands.items() if demand.mix}
    if not demands:
        return None
    rates = [demand.requests_per_s for demand in demands.values()]
    duration_s = min(LONGEST_S, max(SHORTEST_S, REQUESTS_EACH / min(rates)), MOST_REQUESTS / sum(rates))
    load = poisson_load(demands, duration_s, seed)
    if not load.requests:
        return None
    return evaluate(problem, plan, load, Fixed(), Settings(window_s=duration_s / WINDOWS, may_compile=False))


def poisson_load(demands: Mapping[str, Demand], duration_s: float, seed: int) -> Load:
    """Draw Poisson arrivals at the rate and the mix of each demand; each service from a seed of its own.

    Prompts of one size of one service share a prefix of its cached tokens, in whole blocks of ``BLOCK_TOKENS``.
    """
    services = tuple(sorted(demands))
    arrivals, sizes, owners = [], [], []
    for index, name in enumerate(services):
        rng = np.random.default_rng([seed, index])
        demand = demands[name]
        count = int(rng.poisson(demand.requests_per_s * duration_s))
        weights = np.array([bucket.weight_ratio for bucket in demand.mix])
        table = np.array([(b.prompt_tokens, b.output_tokens, b.cached_tokens) for b in demand.mix], dtype=np.int64)
        arrivals.append(np.sort(rng.uniform(0.0, duration_s, count)))
        chosen = rng.choice(len(table), size=count, p=weights / weights.sum())
        sizes.append(np.column_stack([table[chosen], chosen]))
        owners.append(np.full(count, index, dtype=np.int64))
    together, owner = np.concatenate(sizes), np.concatenate(owners)
    workload = Workload(
        services=services,
        arrival_s=np.concatenate(arrivals),
        service=owner,
        prompt_tokens=together[:, 0],
        output_tokens=together[:, 1],
    )
    return Load(workload=_with_prefixes(workload, together[:, 2] // BLOCK_TOKENS, owner * MOST_SIZES + together[:, 3]))


def _with_prefixes(workload: Workload, blocks: Ints, kind: Ints) -> Workload:
    """Let requests of a kind, (N,), share their first ``blocks``, (N,)."""
    if not blocks.any():
        return workload
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], blocks)
    ids = np.repeat(kind, blocks) * MOST_BLOCKS + within
    return replace(workload, block_tokens=BLOCK_TOKENS, block_starts=starts, block_ids=ids)


def _missed(summary: Summary) -> list[tuple[str, Kept]]:
    return [(name, kept) for name, service in summary.services.items() for kept in service.slos if kept.is_refuted]


def _busy_links(problem: Problem, plan: Plan, summary: Summary, service: str, kept: Kept) -> tuple[str, ...]:
    """Busy links, if the prompts of a service wait longer for their transfer than for prefill."""
    latencies = summary.services[service].latencies_s
    ratio = min(latencies["queue"], key=lambda known: abs(known - kept.slo.percentile_ratio))
    if kept.slo.metric is not SloMetric.TTFT or not plan.links:
        return ()
    if latencies["transfer"][ratio].value <= latencies["queue"][ratio].value:
        return ()
    room = {link.name: BUSY_LINK_RATIO * link.bytes_per_s for link in problem.policy.kv_links}
    most = {row.link: max(row.outgoing_bytes_per_s, row.incoming_bytes_per_s) for row in plan.links}
    return tuple(name for name, sent in most.items() if sent >= room[name])


def _narrowed(problem: Problem, links: Mapping[str, float]) -> Problem:
    """The problem with links that carry less."""
    if not links:
        return problem
    left = tuple(
        replace(link, bytes_per_s=links.get(link.name, 1.0) * link.bytes_per_s) for link in problem.policy.kv_links
    )
    return replace(problem, policy=replace(problem.policy, kv_links=left))


def _less(before: float, kept: Kept) -> float:
    """What one round leaves of a part of a capacity, the less the more was missed; never below the bound."""
    allowed = 1.0 - kept.slo.percentile_ratio
    share = float((allowed / max(1.0 - kept.within_ratio.value, 1e-9)) ** 0.5)  # misses grow faster than load
    return max(LEAST_FACTOR, before * min(STEP_AT_LEAST, max(STEP_AT_MOST, share)))


def _asked(problem: Problem, factors: Factors) -> dict[Asked, float]:
    """Factors by what is asked of a model, parts of services that are split by size included."""
    found: dict[Asked, float] = {}
    for service in problem.services:
        for role in Role:
            key = (service.model, tuple(problem.demands[service.name].mix), tuple(service.slos), role)
            found[key] = min(found.get(key, 1.0), factors.get((service.name, role), 1.0))
    return found


def _tightened(by_asked: Mapping[Asked, float]) -> CapacityOf:
    """Sizing that carries less where the replay said so; services that ask the same of a model share the factor."""

    def capacity(
        profile: EngineProfile,
        role: Role,
        mix: tuple[SizeBucket, ...],
        slos: tuple[Slo, ...],
        *,
        pool_replicas: int,
    ) -> Capacity | Unfit:
        found = replica_capacity(profile, role, mix, slos, pool_replicas=pool_replicas)
        factor = by_asked.get((profile.key.model, tuple(mix), tuple(slos), role), 1.0)
        if isinstance(found, Unfit) or factor >= 1.0:
            return found
        return replace(found, requests_per_s=factor * found.requests_per_s)

    return capacity


def _told(number: int, service: str, kept: Kept) -> str:
    slo, within = kept.slo, kept.within_ratio
    return (
        f"refuted in round {number}: {service} {slo.metric} p{100 * slo.percentile_ratio:g} holds for "
        f"{100 * within.value:.1f} % ± {100 * within.half_width:.1f} in the replay"
    )


def _verdict(
    summary: Summary | None, missed: list[tuple[str, Kept]], factors: Factors, links: Mapping[str, float]
) -> str:
    if summary is None:
        return "not replayed: nothing is served"
    asked = sum(service.submitted for service in summary.services.values())
    held = ", ".join(f"{name} {role} at {factor:.2f}" for (name, role), factor in sorted(factors.items()))
    tightened = f"; capacities held below the formulas': {held}" if held else ""
    narrowed = ", ".join(f"{name} at {factor:.2f}" for name, factor in sorted(links.items()))
    tightened += f"; links held below what they carry: {narrowed}" if narrowed else ""
    if missed:
        names = ", ".join(dict.fromkeys(name for name, _ in missed))
        return f"the replay of {asked} requests still refutes {names}{tightened}"
    return f"the replay of {asked} requests refutes nothing{tightened}"
