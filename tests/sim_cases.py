"""Profiles, requests and stories for tests of the simulation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from solvers.engine import EngineProfile, Role
from solvers.simulate import Clients, Fleet, Routing, SimRequest, Workload
from solvers.simulate.tables import NEVER, to_ticks, to_ticks_or_never
from tests.sim_blocks import Stretches, path_of
from tests.sim_brute import BruteFleet, make_profile

Story: TypeAlias = list[tuple[float, str, tuple[Any, ...]]]


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
        **({"prefill_cached_tokens": (40, 160), "prefill_cached_ratio": ((1.0, 1.1, 1.2), (1.3, 1.3, 1.5))}
           if rng.random() < 0.5 else {}),
        cap_watts_per_gpu=(200.0, 400.0, 700.0),
        prefill_speed_ratio=(0.3, 0.8, 1.0),
        decode_speed_ratio=(0.7, 0.9, 1.0),
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


def random_ids(rng: np.random.Generator, requests: list[SimRequest], block_tokens: int) -> list[list[int]]:
    """Blocks of prompts that begin alike: each goes on where another one was cut, or begins anew."""
    made: list[list[int]] = []
    fresh = 0
    for request in requests:
        count = -(-request.prompt_tokens // block_tokens)
        other = made[int(rng.integers(len(made)))] if made and rng.random() < 0.8 else []
        ids = other[: int(rng.integers(len(other) + 1))][:count]
        made.append([*ids, *range(fresh, fresh + count - len(ids))])
        fresh += count
    return made


def random_story(rng: np.random.Generator, services: list[str]) -> Story:
    """Replicas that come at the start, and a few that come, drain or fail or get another cap later."""
    profiles = [random_profile(rng) for _ in range(2)]
    story: Story = []
    is_linked = rng.random() < 0.5
    if is_linked:
        story.append((0.0, "link", ("spine", float(rng.uniform(1e7, 1e9)))))
    for service in services:
        roles = [Role.MIXED] if rng.random() < 0.4 else [Role.PREFILL, Role.DECODE]
        roles += [Role.MIXED] if rng.random() < 0.4 else []
        for role in roles:
            for _ in range(int(rng.integers(1, 4))):
                profile = profiles[int(rng.integers(2))]
                ready = float(rng.choice([0.0, 0.0, 0.1]))
                link = "spine" if is_linked and rng.random() < 0.7 else None
                cap = float(rng.choice([250.0, 500.0])) if rng.random() < 0.2 else None
                weight = float(rng.choice([1.0, 2.0, 0.7]))
                story.append((0.0, "add", (f"{role}-{len(story)}", service, role, profile, ready, link, weight, cap)))
    names = [made[2][0] for made in story if made[1] == "add"]
    for name in rng.permutation(names)[: int(rng.integers(0, 3))]:
        at = float(rng.uniform(0, 2))
        if rng.random() < 0.5:
            story.append((at, "drain", (str(name),)))
            at += float(rng.exponential(0.3))
        if rng.random() < 0.7:
            story.append((at, "remove", (str(name),)))
            again = next(made[2] for made in story if made[2][0] == name)
            ready = at + float(rng.choice([0.0, 0.4]))
            story.append((at, "add", (f"{name}-again", *again[1:4], ready, *again[5:])))
            continue
        caps = rng.choice([200.0, 300.0, 450.0, 700.0, 0.0], int(rng.integers(1, 6)))
        later = at + np.cumsum(rng.exponential(0.05, len(caps)))
        story += [(float(t), "cap", (str(name), float(cap) or None)) for t, cap in zip(later, caps, strict=True)]
    return sorted(story, key=lambda act: act[0])


def paired(rng: np.random.Generator, services: list[str], story: Story) -> Story:
    """The same story of services some of which say which domains pair, and over which links."""
    first: Story = [(0.0, "crossing", (f"up-{at}", float(rng.uniform(1e7, 1e9)))) for at in DOMAINS]
    homes: dict[str, str] = {}
    for service in services:
        if rng.random() < 0.4:
            continue
        domains = DOMAINS[: int(rng.integers(1, 4))]
        ways = [(x, y) for x in domains for y in domains if rng.random() < (0.8 if x == y else 0.5)]
        for x, y in ways:
            out, into = (f"up-{at}" if x != y and rng.random() < 0.7 else None for at in (x, y))
            first.append((0.0, "way", (service, x, y, out, into, float(rng.integers(1, 100) * 10_000))))
        for at in (0.0, *rng.uniform(0, 2, int(rng.integers(0, 3)))) if ways else ():
            shares = {way: float(rng.choice([0.0, 1.0, 2.5, rng.random()])) for way in ways}
            first.append((float(at), "shares", (service, float(rng.choice([0.0, 1.0])), shares)))
        mine = [words[0] for _, verb, words in story if verb == "add" and words[1] == service]
        homes |= {name.removesuffix("-again"): str(rng.choice(domains)) for name in mine}
    told = [
        (at, verb, (*words, homes.get(words[0].removesuffix("-again"), "")) if verb == "add" else words)
        for at, verb, words in story
    ]
    return sorted([*first, *told], key=lambda act: act[0])


DOMAINS = ("x", "y", "z")
VERBS = {
    "crossing": "add_crossing",
    "way": "add_way",
    "shares": "share_out",
    "add": "add_replica",
    "drain": "drain_replica",
    "remove": "remove_replica",
    "cap": "set_cap",
    "link": "add_link",
}
NAMED = {
    "add": (5, ("link", "weight", "cap_watts", "domain")),
    "way": (3, ("out", "into", "bytes_per_token")),
}  # words of an act before those that have names


def tell(story: Story, fleet: Fleet | BruteFleet) -> None:
    for at, verb, words in story:
        if isinstance(fleet, Fleet):
            fleet.advance(at)
            after, names = NAMED.get(verb, (len(words), ()))
            getattr(fleet, VERBS[verb])(*words[:after], **dict(zip(names, words[after:], strict=False)))
            continue
        fleet.advance(to_ticks(at))
        told = (*words[:4], to_ticks(words[4]), *words[5:]) if verb == "add" else words
        getattr(fleet, verb if hasattr(fleet, verb) else VERBS[verb])(*told)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A random fleet, what it is asked, and what happens to it."""

    seed: int
    requests: list[SimRequest]
    story: Story
    ids: list[list[int]] | None
    block_tokens: int
    clients: list[SimRequest]
    client_count: int
    queue_limit: int | None
    patience_s: float | None
    routing: dict[str, Routing]


def random_case(seed: int) -> Case:
    """Half of the fleets hold requests back at a gateway that gives up, half have ways between domains; others route,
    link, cache, ask in turn."""
    rng = np.random.default_rng(seed)
    services = ["a", "b"][: int(rng.integers(1, 3))]
    requests, story = random_requests(rng, services), random_story(rng, services)
    story = paired(np.random.default_rng([seed, 1]), services, story) if seed % 4 in (1, 2) else story
    held = bool(seed % 2)
    limit, patience_s = (int(rng.integers(1, 6)), float(rng.choice([0.0, 0.1, 0.4, 2.0]))) if held else (None, None)
    block_tokens = int(rng.choice([4, 16, 40]))
    ids = random_ids(rng, requests, block_tokens) if seed % 3 else None
    asked = [replace(one, name=f"c{i}", service=services[0]) for i, one in enumerate(random_requests(rng, services))]
    routing = {service: Routing(str(rng.choice(list(Routing)))) for service in services if rng.random() < 0.6}
    return Case(
        seed=seed, requests=requests, story=story, ids=ids, block_tokens=block_tokens,
        clients=asked if seed % 5 == 0 else [], client_count=int(rng.integers(1, 5)), queue_limit=limit,
        patience_s=patience_s, routing=routing,
    )  # fmt: skip


def as_workload(requests: list[SimRequest], ids: list[list[int]] | None = None, block_tokens: int = 0) -> Workload:
    services = tuple(dict.fromkeys(r.service for r in requests))
    return Workload(
        services=services,
        arrival_s=np.array([r.arrival_s for r in requests]),
        service=np.array([services.index(r.service) for r in requests], np.int64),
        prompt_tokens=np.array([r.prompt_tokens for r in requests], np.int64),
        output_tokens=np.array([r.output_tokens for r in requests], np.int64),
        names=tuple(r.name for r in requests),
        block_tokens=block_tokens if ids else 0,
        block_starts=np.cumsum([0, *map(len, ids)]) if ids else np.zeros(0, np.int64),
        block_ids=np.array([i for some in ids for i in some], np.int64) if ids else np.zeros(0, np.int64),
    )


THINK_S = 0.05


def simulated(case: Case, *, compiled: bool = False, itl_limit_s: float = 0.02, kind: type[Fleet] = Fleet) -> Fleet:
    """Let the simulation do the case to its end."""
    fleet = kind(
        itl_limits_s={"a": itl_limit_s, "b": itl_limit_s}, record_runs=True, routing=case.routing,
        replica_queue_limit=case.queue_limit, gateway_patience_s=case.patience_s, compiled=compiled,
    )  # fmt: skip
    if case.clients:
        clients = Clients(count=case.client_count, workload=as_workload(case.clients), think_s=THINK_S)
        fleet.add_clients(clients)
    fleet.submit_workload(as_workload(case.requests, case.ids, case.block_tokens))
    tell(case.story, fleet)
    fleet.advance(1e4)
    return fleet


def stepped(case: Case) -> BruteFleet:
    """Let the brute force do it."""
    ids = case.ids or [[] for _ in case.requests]
    paths = [path_of(some, r.prompt_tokens, case.block_tokens) for some, r in zip(ids, case.requests, strict=True)]
    brute = BruteFleet(
        queue_limit=NEVER if case.queue_limit is None else case.queue_limit,
        patience=to_ticks_or_never(case.patience_s),
        routing=case.routing,
        stretches=Stretches(paths, case.block_tokens),
    )
    if case.clients:
        brute.add_clients(case.client_count, case.clients, to_ticks(THINK_S))
    for request, path in zip(case.requests, paths, strict=True):
        brute.submit(request, path)
    tell(case.story, brute)
    brute.advance(to_ticks(1e4))
    return brute


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
