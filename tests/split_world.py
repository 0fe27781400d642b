"""Fleets whose services may be split by size: one where it pays, and tiny ones that can be tried through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.fleet import PowerDomain
from solvers.planner.splits.cuts import open_book, stops_usd_per_hour
from solvers.planner.splits.splitting import Cuts, dropped, split
from solvers.problem import Policy, Problem
from solvers.sizes import ranges_between
from solvers.sizing import Capacity, Unfit
from solvers.workload import SizeBucket
from tests import fleets
from tests.test_against_brute_force import Tiny, best_counts, tiny, tries

MOST_TRIES = 800  # counts of all pools of the finest cut

SHORT, LONG = 100, 4000
PARTS = ranges_between([2048])
CHAT = "default/chat"


def lengths(*shares: tuple[int, int, float]) -> tuple[SizeBucket, ...]:
    """Buckets from (prompt tokens, output tokens, share)."""
    return tuple(SizeBucket(prompt_tokens=p, output_tokens=o, weight_ratio=w) for p, o, w in shares)


MIX = lengths((800, 200, 0.93), (8000, 200, 0.07))
"""Chats, and one request in fourteen with a document that only the fast GPUs read in time."""


def documents(requests_per_s: float = 60.0, *, splits: bool = True, policy: Policy | None = None) -> Problem:
    """One service on cheap and on fast GPUs; a prompt of 8,000 tokens takes too long on the cheap ones."""
    fleet = (*fleets.nodes("h100-sxm", 6, "rack-a"), *fleets.nodes("l40s", 8, "rack-b"))
    profiles = [fleets.profile("chat", name, tp, 14.0) for name in ("h100-sxm", "l40s") for tp in (1, 2)]
    served = replace(fleets.service("chat", "chat", ttft_s=0.6, itl_s=0.1, min_replicas=3), splits_by_size=splits)
    built = fleets.problem([(served, requests_per_s)], fleet, profiles, mix=MIX, policy=policy)
    cheap = replace(built.gpu_classes["l40s"], price_usd_per_hour=0.4)
    return replace(built, gpu_classes={**built.gpu_classes, "l40s": cheap})


def readers(seed: int, nodes: int = 40, services: int = 6) -> Problem:
    """A fleet too large for menus: services with prompts of 800, 3,000 and 8,000 tokens on cheap and on fast GPUs."""
    rng = np.random.default_rng(seed)
    fleet = (*fleets.nodes("h100-sxm", nodes, "rack-a"), *fleets.nodes("l40s", nodes, "rack-b"))
    profiles = [fleets.profile("chat", name, tp, 14.0) for name in ("h100-sxm", "l40s") for tp in (1, 2)]
    asked, mixes = [], {}
    for number in range(services):
        ttft_s, rate = float(rng.choice([0.6, 1.0, 2.0])), float(rng.uniform(60.0, 250.0))
        served = fleets.service(f"chat{number}", "chat", ttft_s=ttft_s, itl_s=0.1, min_replicas=3)
        middle, long = float(rng.uniform(0.1, 0.4)), float(rng.uniform(0.02, 0.3))
        asked.append((replace(served, splits_by_size=True), rate))
        mixes[served.name] = lengths((800, 200, 1.0 - middle - long), (3000, 200, middle), (8000, 200, long))
    built = fleets.problem(asked, fleet, profiles, policy=Policy(min_saving_ratio=0.0, time_limit_s=600.0))
    demands = {name: replace(demand, mix=mixes[name]) for name, demand in built.demands.items()}
    cheap = replace(built.gpu_classes["l40s"], price_usd_per_hour=0.4)
    return replace(built, demands=demands, gpu_classes={**built.gpu_classes, "l40s": cheap})


@dataclass(frozen=True)
class Sized:
    """What pools carry, by the mix: requests/s of a GPU by size of prompt, 0 for what cannot be; growth, watts."""

    rates: dict[tuple[str, Role, str, int], float]
    table: dict[tuple[str, Role, str], tuple[float, float, float]]

    def rate(self, model: str, role: Role, gpu_class: str, mix: Sequence[SizeBucket]) -> float:
        """Of one GPU at the mix: times add up."""
        each = [(bucket.weight_ratio, self.rates[model, role, gpu_class, bucket.prompt_tokens]) for bucket in mix]
        if not each or any(rate <= 0.0 for _, rate in each):
            return 0.0
        return sum(weight for weight, _ in each) / sum(weight / rate for weight, rate in each)

    def capacity_of(
        self,
        profile: EngineProfile,
        role: Role,
        mix: Sequence[SizeBucket],
        slos: Sequence[object],
        *,
        pool_replicas: int,
    ) -> Capacity | Unfit:
        """As fast as the profile's curves at its cap are, beside those of ``bare_profile``."""
        key = profile.key
        rate = self.rate(key.model, role, key.gpu_class, mix)
        _, growth, watts = self.table[key.model, role, key.gpu_class]
        if rate <= 0.0:
            return Unfit(reason="too slow")
        speed = 0.01 / profile.decode_step_s[0][0] if role is Role.DECODE else 0.1 / profile.prefill_s[0]
        return Capacity(
            requests_per_s=rate * speed * key.config.gpus * (1.0 - growth / (1.0 + pool_replicas)),
            utilisation_ratio=0.5,
            gpu_watts=min(watts, profile.prefill_watts_per_gpu),
        )

    def tiny(self, problem: Problem) -> Tiny:
        """The fleet of plain services as the brute force takes it."""
        table = {
            (service.name, role, name): (
                self.rate(service.model, role, name, problem.demands[service.name].mix),
                *self.table[service.model, role, name][1:],
            )
            for service, role, name in product(problem.services, Role, problem.gpu_classes)
        }
        return TinyParts(problem=problem, table=table, sized=self)


@dataclass(frozen=True)
class TinyParts(Tiny):
    """A tiny fleet whose table is by service: parts of a model are as fast as their sizes allow."""

    sized: Sized

    def capacity_of(
        self,
        profile: EngineProfile,
        role: Role,
        mix: Sequence[SizeBucket],
        slos: Sequence[object],
        *,
        pool_replicas: int,
    ) -> Capacity | Unfit:
        return self.sized.capacity_of(profile, role, mix, slos, pool_replicas=pool_replicas)


SPEEDS: Mapping[int, Mapping[str, tuple[float, ...]]] = {
    SHORT: {"big": (1.0, 2.0), "small": (1.5, 3.0)},
    LONG: {"big": (0.5, 1.0, 2.0), "small": (0.0, 0.1, 0.5)},
}
"""What a rate may be multiplied by, by prompt tokens and GPU class."""


def drawn(rng: np.random.Generator) -> tuple[Problem, Sized]:
    """Draw a tiny fleet whose services have short requests, and long ones that small GPUs serve slowly or not at all.

    One node of each class has two or three GPUs; of most fleets watts are no matter, so that many can serve all.
    """
    case = tiny(rng)
    weight = round(float(rng.uniform(0.1, 0.9)), 2)
    mix = lengths((SHORT, 10, weight), (LONG, 10, 1.0 - weight))
    rates = {
        (*key, prompt): round(max(rate, 0.8) * float(rng.choice(SPEEDS[prompt][key[2]])), 3)
        for key, (rate, _, _) in case.table.items()
        for prompt in (SHORT, LONG)
    }
    nodes = tuple(
        replace(
            case.problem.nodes[0],
            name=name,
            gpu_class=name,
            gpus_usable=int(rng.integers(2, 4)),
            domains=("feed-0" if rng.random() < 0.3 else "feed-1", "site"),
        )
        for name in ("big", "small")
    )
    problem = replace(
        case.problem,
        nodes=nodes,
        domains={**case.problem.domains, "site": PowerDomain(name="site", budget_watts=9000.0)},
        services=tuple(replace(service, splits_by_size=True, max_replicas=10) for service in case.problem.services),
        demands={
            name: replace(demand, mix=mix, requests_per_s=round(0.5 * demand.requests_per_s, 3))
            for name, demand in case.problem.demands.items()
        },
        policy=replace(case.problem.policy, tier_penalties=(9e3, 3e3, 1e3)),  # never cheaper to serve less
    )
    return problem, Sized(rates=rates, table=case.table)


def drawn_small(seed: int) -> tuple[Problem, Sized]:
    """The first fleet of a seed of whose parts all counts can be tried."""
    rng = np.random.default_rng(seed)
    while True:
        problem, sized = drawn(rng)
        if tries(sized.tiny(split(problem, every_cut(problem)[-1]))) <= MOST_TRIES:
            return problem, sized


def every_cut(problem: Problem) -> list[Cuts]:
    """Each service that may be split whole or in two parts."""
    names = [service.name for service in problem.services if service.splits_by_size]
    chosen = product((False, True), repeat=len(names))
    return [{name: PARTS for name, is_cut in zip(names, some, strict=True) if is_cut} for some in chosen]


def best_by_trying(problem: Problem, sized: Sized) -> list[float]:
    """The least objective of all counts by cut; only the prices of failing are taken as given."""
    names = [service.name for service in problem.services]
    book = open_book(problem, sized.capacity_of, {}, names)
    weighed = replace(problem, serving_usd_per_request=book.serving_usd_per_request)
    return [
        best_counts(sized.tiny(split(weighed, cuts)))[0] + stops_usd_per_hour(problem, dropped(problem, cuts))
        for cuts in every_cut(problem)
    ]
