"""Profiles, requests and stories for tests of the simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.simulate import Fleet, SimRequest
from solvers.simulate.tables import to_ticks
from tests.sim_brute import BruteFleet, make_profile


def random_profile(rng: np.random.Generator) -> EngineProfile:
    base, per_sequence, per_token = rng.uniform(0.001, 0.02), rng.uniform(0, 1e-3), rng.choice([0.0, 1e-6, 1e-5])
    batches = tuple(sorted({1, int(rng.integers(2, 5)), int(rng.integers(5, 12))}))
    contexts = (32, 128, 300)
    bends = np.cumsum(rng.uniform(0.2, 2.0, len(contexts)))
    return make_profile(
        prefill_tokens=(20, 90, 250),
        prefill_s=tuple(float(x) for x in np.cumsum(rng.uniform(0.001, 0.05, 3))),
        decode_batches=batches,
        decode_contexts=contexts,
        decode_step_s=tuple(
            tuple(float(base + b * (per_sequence + per_token * bend)) for bend in bends * contexts) for b in batches
        ),
        decode_watts_per_gpu=tuple(200.0 + 10.0 * b for b in batches),
        kv_capacity_tokens=int(rng.integers(350, 1500)),
        kv_bytes_per_token=int(rng.integers(1, 100) * 10_000),
        transfer_bytes_per_s=float(rng.uniform(1e8, 1e10)),
        prefill_chunk_tokens=int(rng.integers(16, 200)),
    )  # fmt: skip


def random_requests(rng: np.random.Generator, services: list[str]) -> list[SimRequest]:
    count = int(rng.integers(5, 30))
    arrivals = np.cumsum(rng.exponential(rng.choice([0.002, 0.02, 0.2]), count))
    if rng.random() < 0.3:
        arrivals = np.repeat(arrivals[::3], 3)[:count]
    return [
        SimRequest(
            name=f"r{i}",
            service=str(rng.choice(services)),
            arrival_s=float(arrival),
            prompt_tokens=int(rng.integers(1, 300)),
            output_tokens=int(rng.integers(1, 50)) if rng.random() < 0.97 else 900,
        )
        for i, arrival in enumerate(arrivals)
    ]


def random_story(rng: np.random.Generator, services: list[str]) -> list[tuple[float, str, tuple[Any, ...]]]:
    """Replicas that come at the start, and a few that come, drain or fail later."""
    profiles = [random_profile(rng) for _ in range(2)]
    story: list[tuple[float, str, tuple[Any, ...]]] = []
    for service in services:
        roles = [Role.MIXED] if rng.random() < 0.4 else [Role.PREFILL, Role.DECODE]
        roles += [Role.MIXED] if rng.random() < 0.4 else []
        for role in roles:
            for _ in range(int(rng.integers(1, 4))):
                profile = profiles[int(rng.integers(2))]
                ready = float(rng.choice([0.0, 0.0, 0.1]))
                story.append((0.0, "add", (f"{role}-{len(story)}", service, role, profile, ready)))
    names = [made[2][0] for made in story]
    for name in rng.permutation(names)[: int(rng.integers(0, 3))]:
        at = float(rng.uniform(0, 2))
        if rng.random() < 0.5:
            story.append((at, "drain", (str(name),)))
            at += float(rng.exponential(0.3))
        if rng.random() < 0.7:
            story.append((at, "remove", (str(name),)))
            again = next(made[2] for made in story if made[2][0] == name)
            story.append((at, "add", (f"{name}-again", *again[1:4], at + float(rng.choice([0.0, 0.4])))))
    return sorted(story, key=lambda act: act[0])


def tell(story: list[tuple[float, str, tuple[Any, ...]]], fleet: Fleet | BruteFleet) -> None:
    for at, verb, words in story:
        if isinstance(fleet, Fleet):
            fleet.advance(at)
            getattr(fleet, f"{verb}_replica")(*words)
            continue
        fleet.advance(to_ticks(at))
        getattr(fleet, verb)(*words[:4], *(to_ticks(ready) for ready in words[4:]))


def small_fleet(**options: Any) -> Fleet:
    fleet = Fleet(**options)
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    fleet.add_replica("d0", "s", Role.DECODE, make_profile())
    return fleet


def ask(name: str = "r", at: float = 0.0, prompt: int = 1000, output: int = 10, service: str = "s") -> SimRequest:
    return SimRequest(name=name, service=service, arrival_s=at, prompt_tokens=prompt, output_tokens=output)


def some_requests(count: int = 200, rate: float = 8.0, seed: int = 1) -> list[SimRequest]:
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    return [
        ask(f"r{i}", float(at), int(rng.integers(50, 2000)), int(rng.integers(1, 200))) for i, at in enumerate(arrivals)
    ]
