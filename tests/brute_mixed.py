"""Tiny fleets with rules of every family, drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from solvers.fleet import PoolKey
from solvers.problem import KvLink, Problem, Quota
from solvers.workload import Pin, PlacementMode, ServedModel
from tests.brute_oracle import Spot
from tests.split_world import LONG, SHORT, SPEEDS, Sized, lengths
from tests.test_against_brute_force import POLICY, tiny

LIKELY = 0.35  # each family, of a fleet
CAPS = (150.0, 220.0)
LOCATIONS = ("left", "right")

Draw = Callable[[Problem, np.random.Generator], Problem]


@dataclass(frozen=True)
class Mixed(Sized):
    """A tiny fleet with what its pools carry, and the families of its rules."""

    problem: Problem
    families: tuple[str, ...]


# ---------------------------------------------------------------- what is drawn


def _services(problem: Problem, change: Callable[[ServedModel], ServedModel]) -> Problem:
    return replace(problem, services=tuple(change(service) for service in problem.services))


def links(problem: Problem, rng: np.random.Generator) -> Problem:
    """One link or two, narrow or not, dear or not."""
    some = LOCATIONS[: int(rng.integers(1, 3))]
    made = tuple(
        KvLink(
            name=f"up-{at}",
            locations=(at,),
            bytes_per_s=float(rng.choice([40.0, 150.0, 1e6])),
            usd_per_terabyte=float(rng.choice([0.0, 1e6, 5e6])),
        )
        for at in some
    )
    return replace(problem, policy=replace(problem.policy, kv_links=made))


def groups(problem: Problem, rng: np.random.Generator) -> Problem:
    """KV groups by class or by configuration, their caches of one size or two."""
    by_class, wide = rng.random() < 0.7, float(rng.choice([1, 2]))
    profiles = {
        key: replace(
            profile,
            kv_compatibility_group=key.gpu_class if by_class else key.config.label,
            kv_bytes_per_token=int(wide) if key.gpu_class == "big" else 1,
        )
        for key, profile in problem.profiles.items()
    }
    return replace(problem, profiles=profiles)


def local(problem: Problem, rng: np.random.Generator) -> Problem:
    return _services(problem, lambda s: replace(s, kv_may_cross=bool(rng.random() < 0.3)))


def pins(problem: Problem, rng: np.random.Generator) -> Problem:
    def pinned(service: ServedModel) -> ServedModel:
        side, role = str(rng.choice(LOCATIONS)), service.roles[0] if rng.random() < 0.5 else None
        gpu_class = str(rng.choice(["", "big", "small"]))
        most = min(2, service.max_replicas)
        pin = Pin(location=side, replicas=int(rng.integers(1, most + 1)), role=role, gpu_class=gpu_class)
        return replace(service, pins=(pin,)) if rng.random() < 0.7 else service

    return _services(problem, pinned)


def places(problem: Problem, rng: np.random.Generator) -> Problem:
    """Keep a service to one side, or to one class."""

    def kept(service: ServedModel) -> ServedModel:
        where = tuple({pin.location for pin in service.pins}) or (str(rng.choice(LOCATIONS)),)
        by_class = replace(service, gpu_classes=(str(rng.choice(["big", "small"])),))
        return (replace(service, locations=where), by_class, service)[int(rng.integers(0, 3))]

    return _services(problem, kept)


def quotas(problem: Problem, rng: np.random.Generator) -> Problem:
    made = (
        Quota(namespace="team", max_gpus=int(rng.integers(1, 6))),
        Quota(namespace="team", gpu_class="big", max_watts=float(rng.choice([400.0, 900.0, 2000.0]))),
        Quota(namespace="team", gpu_class="small", guaranteed_ratio=float(rng.choice([0.0, 0.3, 0.8]))),
    )
    some = tuple(quota for quota in made if rng.random() < 0.6)
    return replace(problem, policy=replace(problem.policy, quotas=some))


def fair(problem: Problem, rng: np.random.Generator) -> Problem:
    """Services of one tier with weights of their own."""
    rank = int(rng.integers(0, 3))
    weights = rng.choice([0.5, 1.0, 3.0], len(problem.services))
    services = tuple(
        replace(s, tier_rank=rank, fair_weight=float(w)) for s, w in zip(problem.services, weights, strict=True)
    )
    return replace(problem, services=services)


def spot(problem: Problem, rng: np.random.Generator) -> Problem:
    nodes = tuple(
        replace(n, reclaims_per_hour=float(rng.choice([0.0, 2.0])), price_ratio=float(rng.choice([0.4, 1.0, 1.2])))
        for n in problem.nodes
    )
    drawn = _services(problem, lambda s: replace(s, max_spot_ratio=float(rng.choice([0.0, 0.5, 1.0]))))
    return replace(drawn, nodes=nodes)


def spread(problem: Problem, rng: np.random.Generator) -> Problem:
    def spreading(service: ServedModel) -> ServedModel:
        share = float(rng.choice([1.0, 0.8, 0.5, 0.3]))
        return replace(service, min_locations=int(rng.choice([0, 2])), max_share_per_location_ratio=share)

    return _services(problem, spreading)


def resources(problem: Problem, rng: np.random.Generator) -> Problem:
    usable = 4 if len(problem.services) == 1 and rng.random() < 0.5 else 0  # so that large replicas have a choice
    nodes = tuple(
        replace(
            n,
            gpus_usable=max(usable, n.gpus_usable),
            resources={"cpu": int(rng.choice([2, 4, 8])), "memory": int(rng.integers(1, 9))},
        )
        if rng.random() < 0.8
        else n
        for n in problem.nodes
    )

    def asking(service: ServedModel) -> ServedModel:
        asked = {role: {"cpu": int(rng.integers(0, 5)), "memory": int(rng.integers(0, 4))} for role in service.roles}
        return replace(service, requests=asked)

    return replace(_services(problem, asking), nodes=nodes)


def running(problem: Problem, rng: np.random.Generator) -> Problem:
    """Some replicas of any pools, also where none may be."""
    found: dict[Spot, int] = {}
    for service, key in product(problem.services, sorted(problem.profiles)):
        if key.model == service.model and rng.random() < 0.4:
            role = service.roles[int(rng.integers(0, len(service.roles)))]
            pool = PoolKey(service=service.name, role=role, gpu_class=key.gpu_class, config=key.config)
            found[pool, str(rng.choice(LOCATIONS))] = int(rng.integers(1, 3))
    hours = float(rng.choice([0.05, 0.5, 3.0]))
    return replace(problem, running=found, policy=replace(problem.policy, start_cost_hours=hours))


def caps(problem: Problem, rng: np.random.Generator) -> Problem:
    """Two lower caps that profiles know, and budgets that bind."""
    profiles = {
        key: replace(
            profile,
            cap_watts_per_gpu=(*CAPS, 400.0),
            prefill_speed_ratio=(0.6, 0.8, 1.0),
            decode_speed_ratio=(0.85, 1.0, 1.0),
        )
        for key, profile in problem.profiles.items()
    }
    domains = {
        name: replace(domain, budget_watts=float(rng.choice([500, 700, 900, 1200])))
        for name, domain in problem.domains.items()
    }
    policy = replace(problem.policy, power_caps=True)
    return replace(problem, profiles=profiles, domains=domains, policy=policy)


def splits(problem: Problem, rng: np.random.Generator) -> Problem:
    """Short requests and long ones, and routers that can tell them apart; pins go."""
    weight = round(float(rng.uniform(0.1, 0.9)), 2)
    mix = lengths((SHORT, 10, weight), (LONG, 10, 1.0 - weight))
    demands = {name: replace(demand, mix=mix) for name, demand in problem.demands.items()}
    split_them = _services(problem, lambda s: replace(s, splits_by_size=bool(rng.random() < 0.8), pins=()))
    return replace(split_them, demands=demands)


def anywhere(problem: Problem, rng: np.random.Generator) -> Problem:
    """Services placed by class, where no rule speaks of their places."""
    has_links = bool(problem.policy.kv_links)

    def placed(service: ServedModel) -> ServedModel:
        ruled = service.pins or service.locations or service.is_spread or service.max_spot_ratio < 1.0
        if ruled or service.pairs_locally or (has_links and service.has_pairs) or rng.random() < 0.3:
            return service
        return replace(service, placement=PlacementMode.CLASS)

    return _services(problem, placed)


FAMILIES: Mapping[str, Draw] = {
    "links": links,
    "groups": groups,
    "local": local,
    "pins": pins,
    "places": places,
    "quotas": quotas,
    "fair": fair,
    "spot": spot,
    "spread": spread,
    "resources": resources,
    "running": running,
    "caps": caps,
    "splits": splits,
    "anywhere": anywhere,
}


def draw(rng: np.random.Generator, only: Sequence[str] = ()) -> Mixed:
    """Draw a fleet; of the families some, or those that are named."""
    case = tiny(rng)
    problem = replace(case.problem, policy=replace(POLICY))
    chosen = tuple(name for name in FAMILIES if (name in only if only else rng.random() < LIKELY))
    for name in chosen:
        problem = FAMILIES[name](problem, rng)
    rates = {
        (*key, prompt): round(rate * (float(rng.choice(SPEEDS[LONG][key[2]])) if prompt == LONG else 1.0), 3)
        for key, (rate, _, _) in sorted(case.table.items())
        for prompt in (SHORT, LONG)
    }
    return Mixed(problem=problem, rates=rates, table=case.table, families=chosen)
