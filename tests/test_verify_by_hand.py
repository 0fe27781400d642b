"""Rules, claims, pairs and parts, checked on plans written down by hand: just what is wrong is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from solvers.engine import EngineConfig, Role
from solvers.fleet import Node, PoolKey
from solvers.plan import PartPlan, Plan, Relief
from solvers.problem import Problem, Quota
from solvers.verify.claims import claims, penalties
from solvers.verify.pairs import pairs
from solvers.verify.parts import mix_of, part_sizes, parts
from solvers.verify.rules import locations, losses, on_spot, pins, quotas, relief, terms_by_bay
from solvers.workload import Pin, SizeBucket
from tests import fleets
from tests.plans_by_hand import Held, written

MIX = tuple(SizeBucket(prompt_tokens=n, output_tokens=9, weight_ratio=0.25) for n in (0, 99, 100, 900))


def pool(service: str, role: Role, gpu_class: str = "h100-sxm", gpus: int = 1, sizes: str = "") -> PoolKey:
    config = EngineConfig(tensor_parallel=gpus)
    return PoolKey(service=f"default/{service}", role=role, gpu_class=gpu_class, config=config, sizes=sizes)


def problem(nodes: tuple[Node, ...] = (), **services: Mapping[str, Any]) -> Problem:
    """Services a and b on three racks of both classes."""
    fleet = nodes or tuple(
        node
        for at in ("r1", "r2", "r3")
        for name in ("h100-sxm", "l40s")
        for node in fleets.nodes(name, 1, at, prefix=name)
    )
    served = [(replace(fleets.service(name, "m"), **services.get(name, {})), 4.0) for name in ("a", "b")]
    profiles = [fleets.profile("m", name, gpus, 8.0) for name in ("h100-sxm", "l40s") for gpus in (1, 2, 16)]
    return fleets.problem(served, fleet, profiles, mix=MIX)


def plan(held: Held, served: float = 4.0, **how: Any) -> Plan:
    names = ("default/a", "default/b")
    return written(held, dict.fromkeys(names, served), asked_per_s=dict.fromkeys(names, 4.0), **how)


def test_a_pin_counts_its_own_service_role_class_and_location() -> None:
    held: Held = {
        pool("a", Role.DECODE): (1.0, {"r1": 1, "r2": 5}),
        pool("a", Role.PREFILL): (1.0, {"r1": 5}),
        pool("a", Role.DECODE, "l40s"): (1.0, {"r1": 5}),
        pool("b", Role.DECODE): (1.0, {"r1": 5}),
    }
    asked = Pin(location="r1", replicas=2, role=Role.DECODE, gpu_class="h100-sxm")
    found = tuple(pins(plan(held), problem(a={"pins": (asked,)})))
    assert found == (("default/a", "pins[default/a r1 decode h100-sxm]: 1 replicas, at least 2"),)
    assert not tuple(pins(plan(held), problem(a={"pins": (replace(asked, replicas=1),)})))


def test_each_chain_of_a_service_counts_its_own_locations() -> None:
    held: Held = {
        pool("a", Role.PREFILL): (1.0, {"r1": 1, "r2": 1}),
        pool("a", Role.DECODE): (1.0, {"r1": 2}),
        pool("b", Role.DECODE): (1.0, {"r3": 1}),
    }
    found = tuple(locations(plan(held), problem(a={"min_locations": 2})))
    assert found == (("default/a", "locations[default/a]: decode + mixed at 1 locations, at least 2"),)
    assert not tuple(locations(plan({}), problem(a={"min_locations": 1})))
    assert len(tuple(locations(plan({}), problem(a={"min_locations": 2})))) == 2


def test_a_bay_is_as_risky_and_dear_as_its_worst_node_with_gpus_to_give() -> None:
    one, two, three = fleets.nodes("h100-sxm", 3, "r1")
    nodes = (
        replace(one, reclaims_per_hour=0.5, price_ratio=0.6),
        replace(two, price_ratio=0.9, gpus_usable=1),
        replace(three, reclaims_per_hour=5.0, price_ratio=2.0, gpus_usable=0),
    )
    assert terms_by_bay(problem(nodes)) == {("r1", "h100-sxm"): (0.5, 0.9)}


def spotty(**how: Any) -> Problem:
    """Rack r2 may be taken away."""
    made = problem(a=how)
    nodes = tuple(replace(n, reclaims_per_hour=0.5) if n.location == "r2" else n for n in made.nodes)
    return replace(made, nodes=nodes)


def test_what_stays_must_carry_its_part_of_each_chain() -> None:
    held: dict[PoolKey, tuple[float, Mapping[str, int]]] = {
        pool("a", Role.PREFILL): (1.0, {"r1": 2, "r2": 9}),
        pool("a", Role.DECODE): (1.99, {"r1": 1, "r2": 9}),
        pool("b", Role.DECODE): (9.0, {"r1": 9}),
    }
    said = "spot[default/a]: decode + mixed carry 1.99 requests/s on nodes that stay, 2 asked"
    assert tuple(on_spot(plan(held), spotty(max_spot_ratio=0.5))) == (said,)
    held[pool("a", Role.DECODE)] = (2.0, {"r1": 1, "r2": 9})
    assert not tuple(on_spot(plan(held), spotty(max_spot_ratio=0.5)))
    refused = tuple(on_spot(plan(held, 0.0), spotty(max_spot_ratio=0.0)))
    assert refused == ("spot[default/a]: replicas on nodes that may be taken away, none allowed",)
    assert not tuple(on_spot(plan(held, 9.0), spotty(max_spot_ratio=1.0)))


def test_the_loss_of_any_location_leaves_each_chain_its_part() -> None:
    held: dict[PoolKey, tuple[float, Mapping[str, int]]] = {
        pool("a", Role.PREFILL): (1.0, {"r1": 2, "r2": 2}),
        pool("a", Role.DECODE): (1.99, {"r1": 2, "r2": 1}),
        pool("b", Role.DECODE): (9.0, {"r3": 9}),
    }
    said = "share[default/a]: decode + mixed carry 1.99 requests/s without r1, 2 asked"
    asked = problem(a={"max_share_per_location_ratio": 0.5})
    assert tuple(losses(plan(held), asked)) == (said,)
    held[pool("a", Role.DECODE)] = (2.0, {"r1": 2, "r2": 1})
    assert not tuple(losses(plan(held), asked))


@pytest.mark.parametrize(
    ("amount", "usd", "is_wrong"),
    [(1.0, 0.0, False), (0.0, 1.0, True), (math.inf, 1.0, True), (1.0, -0.01, True), (1.0, math.inf, True)],
)
def test_relief_is_said_in_finite_amounts(amount: float, usd: float, is_wrong: bool) -> None:
    row = Relief(limit="gpus", subject="x", unit="GPUs", amount=amount, usd_per_hour=usd)
    made = plan({})
    short = tuple(replace(service, short_because=("why",)) for service in made.services)
    assert len(tuple(relief(replace(made, relief=(row,), services=short)))) == is_wrong
    assert len(tuple(relief(replace(made, relief=(row,))))) == 1 + is_wrong
    assert not tuple(relief(made))


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        (Quota(namespace="default", max_gpus=3), ()),
        (Quota(namespace="default", max_gpus=2), ("quota_gpus[default]: holds 3 GPUs, at most 2",)),
        (
            Quota(namespace="default", gpu_class="l40s", max_gpus=0),
            ("quota_gpus[default l40s]: holds 1 GPUs, at most 0",),
        ),
        (Quota(namespace="default", gpu_class="h100-sxm", max_watts=1700.0), ()),
        (
            Quota(namespace="default", gpu_class="h100-sxm", max_watts=1699.0),
            ("quota_power[default h100-sxm]: holds 1,700 W, at most 1,699 W",),
        ),
        (Quota(namespace="team", max_gpus=0, max_watts=0.0), ()),
    ],
)
def test_quotas_count_what_a_namespace_holds(quota: Quota, said: tuple[str, ...]) -> None:
    made = problem()
    held: Held = {pool("a", Role.MIXED): (1.0, {"r1": 2}), pool("b", Role.MIXED, "l40s"): (1.0, {"r1": 1})}
    asked = replace(made, policy=replace(made.policy, quotas=(quota,)))
    assert tuple(quotas(plan(held), asked)) == said


def claimed(**how: Any) -> tuple[str, ...]:
    """What is said of two mixed replicas: 0.75 of 1.5 requests/s each, 70 + 0.375 x 665 W and the host's 150."""
    made = plan({pool("a", Role.MIXED): (1.125, {"r1": 2})})
    row = replace(made.pools[0], planned_watts=2 * (70.0 + 0.375 * 665.0 + 150.0))
    made = replace(made, pools=(replace(row, **how),))
    return tuple(claims(made, problem(), fleets.plain_capacity))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, ""),
        ({"capacity_requests_per_s": 1.125}, ""),  # half of it: a plan tightened by a replay
        ({"capacity_requests_per_s": 1.12}, "said 1.12 requests/s, sized for 2.25"),
        ({"capacity_requests_per_s": 2.2501}, "said 2.2501 requests/s, sized for 2.25"),
        ({"planned_watts": 938.755}, ""),
        ({"planned_watts": 938.77}, "planned 939 W, sized for 939 W"),
        ({"planned_watts": 938.73}, "planned 939 W, sized for 939 W"),
        ({"cap_watts": 500.0}, "cap["),  # the profile knows no speed at that cap
    ],
)
def test_claims_are_held_to_the_sizing(how: dict[str, float], words: str) -> None:
    found = claimed(**how)
    assert [words in fault for fault in found] == ([True] if words else [])


@pytest.mark.parametrize(
    ("demand", "served", "penalty", "is_wrong"),
    [
        (4.0, 3.9, 1.0, False),
        (4.0, 3.9, 0.0, True),
        (4.0, 4.0, -0.1, True),
        (4.0, 4.0, math.nan, True),
        (0.01, 0.01 - 5e-7, 0.0, False),  # less than a sum of loads rounds by
        (100.0, 100.0 - 5e-5, 0.0, False),
        (100.0, 100.0 - 5e-4, 0.0, True),
    ],
)
def test_whoever_is_short_pays(demand: float, served: float, penalty: float, is_wrong: bool) -> None:
    made = plan({})
    row = replace(
        made.services[0],
        demand_requests_per_s=demand,
        served_requests_per_s=served,
        penalty_usd_per_hour=penalty,
    )
    assert len(tuple(penalties(replace(made, services=(row,))))) == is_wrong


def paired(held: Held, made: Problem, served: float = 4.0) -> tuple[str, ...]:
    """Faults of service a alone."""
    rows = plan(held, served)
    return tuple(pairs(replace(rows, services=rows.services[:1]), made))


def test_pairs_of_a_service_are_its_own_and_inside_a_group() -> None:
    near: Held = {
        pool("a", Role.PREFILL): (4.0, {"r1": 1}),
        pool("a", Role.DECODE): (4.0, {"r2": 1}),
        pool("b", Role.MIXED): (9.0, {"r1": 1}),
    }
    assert paired(near, problem()) == ()
    over = paired(near, problem(), 4.0001)
    assert over == ("pairs[default/a]: serves 4.0001 requests/s, pairs inside one KV group and mixed replicas carry 4",)
    local = paired(near, problem(a={"kv_may_cross": False}))
    assert local == (
        "pairs[default/a]: serves 4 requests/s, pairs inside one KV group at one location and mixed replicas carry 0",
    )
    far: Held = {
        pool("a", Role.PREFILL): (4.0, {"r1": 1}),
        pool("a", Role.DECODE, "l40s"): (4.0, {"r1": 1}),
        pool("a", Role.MIXED): (1.0, {"r1": 1}),
    }
    made = problem()
    assert paired(far, made) == ()
    kinds = {name: replace(kind, kv_fabric=name) for name, kind in made.gpu_classes.items()}
    apart = paired(far, replace(made, gpu_classes=kinds))
    assert apart[0].endswith("pairs inside one KV group and mixed replicas carry 1")
    assert apart[1:] == (
        "pairs[default/a vllm h100-sxm]: prefills 1.000000 of what is served, decodes 0.000000",
        "pairs[default/a vllm l40s]: prefills 0.000000 of what is served, decodes 1.000000",
    )
    assert paired(far, replace(made, gpu_classes=kinds), 0.0) == ()


PARTS = (("p0-99", 2.0), ("p100-up", 2.0))


def split(rows: tuple[tuple[str, float], ...] = PARTS, served: float = 4.0, **how: Any) -> tuple[str, ...]:
    """Faults of service a in two parts of two requests/s, each with a mixed pool."""
    held: Held = {pool("a", Role.MIXED, sizes=sizes): (9.0, {"r1": 1}) for sizes, _ in PARTS}
    made = plan(held, served)
    made = replace(
        made,
        pools=tuple(replace(p, demand_ratio=0.5) for p in made.pools),
        parts=tuple(
            replace(
                PartPlan(
                    service="default/a", sizes=sizes, demand_requests_per_s=rate, served_requests_per_s=served / 2.0
                ),
                **how,
            )
            for sizes, rate in rows
        ),
    )
    asked = problem(a={"splits_by_size": True})
    return tuple(part_sizes(made, asked)) or tuple(parts(made, asked))


def test_parts_hold_every_request_once() -> None:
    """Prompts of 0, 99, 100 and 900 tokens: an end of a range belongs to it."""
    assert split() == ()
    sized = {s: [b.prompt_tokens for b in mix_of(problem(), pool("a", Role.MIXED, sizes=s))] for s, _ in PARTS}
    assert sized == {"p0-99": [0, 99], "p100-up": [100, 900]}
    assert split((("p0-99", 2.0), ("p100-up", 2.001)))[0].startswith("parts[default/a]: ask 4.001 requests/s together")
    wrong = split((("p0-99", 1.9), ("p100-up", 2.1)))
    assert wrong[:2] == (
        "parts[default/a]: p0-99 asks 1.9 requests/s, by its mix 2",
        "parts[default/a]: p100-up asks 2.1 requests/s, by its mix 2",
    )
    gap = split((("p0-98", 2.0), ("p100-up", 2.0)))
    assert gap[0] == "parts[default/a]: p0-98, p100-up do not hold every prompt length once, in order"
    twice = split((("p0-99", 2.0), ("p99-up", 2.0)))
    assert twice[0] == "parts[default/a]: p0-99, p99-up do not hold every prompt length once, in order"
    words = split((("p0-99", 2.0), ("pall-up", 2.0)))
    assert words[0] == "parts[default/a]: p0-99, pall-up do not hold every prompt length once, in order"


def test_parts_serve_what_they_are_asked_at_most_and_what_their_pools_carry() -> None:
    over = split(served=4.2)
    assert [fault for fault in over if "serves" in fault] == [
        "parts[default/a]: p0-99 serves 2.1 of 2 requests/s",
        "parts[default/a]: p100-up serves 2.1 of 2 requests/s",
    ]
    less = split(served_requests_per_s=1.9)
    assert less[0] == "parts[default/a]: serve 3.8 requests/s together, the service 4"
    assert "parts[default/a]: p0-99: prefill + mixed carry 2 requests/s of 1.9 served" in less
    plain = problem()
    made = plan({}, parts=tuple(
        PartPlan(service="default/a", sizes=s, demand_requests_per_s=2.0, served_requests_per_s=2.0) for s, _ in PARTS
    ))  # fmt: skip
    assert tuple(part_sizes(made, plain)) == ("parts[default/a]: no such service splits by size",)
    other = problem(b={"splits_by_size": True})
    assert tuple(part_sizes(made, other)) == ("parts[default/a]: no such service splits by size",)


def test_pools_serve_the_parts_of_their_service_and_nothing_else() -> None:
    whole, stray = pool("a", Role.MIXED), pool("b", Role.MIXED, sizes="p0-99")
    rows = tuple(
        PartPlan(service="default/a", sizes=s, demand_requests_per_s=2.0, served_requests_per_s=2.0) for s, _ in PARTS
    )
    said = (
        "parts[default/a/mixed/h100-sxm/tp1]: serves every size, which is no part of its service",
        "parts[default/b/mixed/h100-sxm/tp1/p0-99]: serves p0-99, which is no part of its service",
    )
    both = plan({whole: (1.0, {"r1": 1}), stray: (1.0, {"r1": 1})}, parts=rows)
    asked = problem(a={"splits_by_size": True})
    for made in (both, replace(both, pools=()), replace(both, placements=())):
        assert tuple(part_sizes(made, asked)) == said
    plain = plan({pool("b", Role.MIXED): (1.0, {"r1": 1})}, parts=rows)
    assert tuple(part_sizes(plain, asked)) == ()


@pytest.mark.parametrize(
    ("served", "off", "is_told"), [(4.0, 3e-6, 0), (4.0, 5e-6, 1), (4e-5, 5e-10, 0), (4e-5, 2e-9, 1)]
)
def test_chains_carry_their_part_to_a_millionth_of_what_the_service_is_served(
    served: float, off: float, is_told: int
) -> None:
    """A millionth of four requests/s, and of a thousandth where hardly anything is served."""
    found = split(served=served, served_requests_per_s=served / 2.0 + off)
    assert sum("p0-99: prefill + mixed carry" in fault for fault in found) == is_told
