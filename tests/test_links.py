"""Keys and values over links between locations: bounded, priced, recomputed, and why decode stands beside prefill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.fleet import Node, PoolKey
from solvers.pairing import Domain
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.planner.bays.links import Route
from solvers.problem import KvLink, Problem
from solvers.sizing import Unfit
from solvers.tick import Ticker
from solvers.verify import verify
from solvers.workload import PlacementMode, ServedModel
from tests import fleets
from tests.test_against_brute_force import Placed, Tiny, capacity, drawn, hold_to_best, is_bound

SPLIT = (Role.PREFILL, Role.DECODE)
SIDES = ("left", "right")
PROMPT_BYTES = 100.0  # of the tiny fleets' one size of prompt


def planned(problem: Problem, **how: Any) -> Plan:
    plan = make_plan(problem, capacity_of=fleets.plain_capacity, **how)
    assert verify(plan, problem, capacity_of=fleets.plain_capacity) == ()
    return plan


def racks(links: tuple[KvLink, ...] = (), **how: Any) -> Problem:
    """A chat service on two like racks of H100."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("h100-sxm", 1, "rack-2"))
    served = replace(fleets.service("chat", "chat", roles=SPLIT), **how)
    problem = fleets.problem([(served, 6.0)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])
    return replace(problem, policy=replace(problem.policy, kv_links=links))


def uplink(rack: str, bytes_per_s: float = 1e12, usd: float = 0.0) -> KvLink:
    return KvLink(name=f"up-{rack}", locations=(rack,), bytes_per_s=bytes_per_s, usd_per_terabyte=usd)


def test_requests_stay_near_as_far_as_capacity_goes() -> None:
    here, there = Domain(group="a", site="x"), Domain(group="a")
    route = Route(
        mixed_per_s=1.0,
        sides={
            (Role.PREFILL, here): 5.0,
            (Role.DECODE, here): 2.0,
            (Role.PREFILL, there): 1.0,
            (Role.DECODE, there): 4.0,
        },
        bytes_by_group={"a": 10.0},
    )
    assert route.near_per_s == 1.0 + 2.0 + 1.0
    assert route.traffic(4.0) == {}
    assert route.traffic(5.5) == {("x", Role.PREFILL): pytest.approx(15.0)}
    flows = route.flows(5.5)
    assert flows[Role.PREFILL, here] == pytest.approx(3.5)
    assert flows[Role.DECODE, there] == pytest.approx(2.5)
    half = route.flows(2.0)
    assert half[Role.MIXED, Domain()] == pytest.approx(0.5)
    assert half[Role.PREFILL, here] == half[Role.DECODE, here] == pytest.approx(1.0)


def test_dear_links_move_decode_next_to_prefill() -> None:
    """Like racks are planned as one; what crosses between them is seen when replicas have places."""
    links = tuple(uplink(rack, usd=5000.0) for rack in ("rack-1", "rack-2"))
    plan = planned(racks(links))
    assert not plan.is_short
    assert [row.usd_per_hour for row in plan.links] == pytest.approx([0.0, 0.0], abs=1e-6)


def only_one_role(profile: Any, role: Role, *args: Any, **how: Any) -> Any:
    """H100 prefills and L40S decodes, and nothing else."""
    able = role is {"h100-sxm": Role.PREFILL, "l40s": Role.DECODE}[profile.key.gpu_class]
    return fleets.plain_capacity(profile, role, *args, **how) if able else Unfit(reason="not here")


def two_kinds(*links: KvLink, also: tuple[Node, ...] = ()) -> Problem:
    """A rack of a class that only prefills, and one of a class that only decodes."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("l40s", 2, "rack-2"), *also)
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    problem = fleets.problem([(fleets.service("chat", "chat", roles=SPLIT), 6.0)], fleet, profiles)
    return replace(problem, policy=replace(problem.policy, kv_links=links))


def decided(problem: Problem) -> Plan:
    plan = make_plan(problem, capacity_of=only_one_role)
    assert verify(plan, problem, capacity_of=only_one_role) == ()
    return plan


def test_what_a_link_carries_bounds_what_crosses_and_is_said() -> None:
    free = decided(two_kinds(uplink("rack-1", usd=20.0), uplink("rack-2")))
    needed = free.links[0].outgoing_bytes_per_s
    assert not free.is_short
    assert needed == pytest.approx(free.links[1].incoming_bytes_per_s)
    assert needed > 0.0
    assert free.links[0].usd_per_hour == pytest.approx(needed * 3600.0 / 1e12 * 20.0)
    tight = decided(two_kinds(uplink("rack-1"), uplink("rack-2", bytes_per_s=needed / 3.0)))
    assert tight.services[0].served_requests_per_s == pytest.approx(2.0, rel=1e-4)
    assert any(reason.startswith("kvLinks[up-rack-2]:") for reason in tight.services[0].short_because)


@pytest.mark.parametrize("wide_gpus", [512, 0])
def test_nobody_crosses_a_link_for_more_than_it_costs_to_leave_the_request(wide_gpus: int) -> None:
    """Some L40S stand beside the H100: what they pair with is served, the rest would cross for a fortune."""
    beside = fleets.nodes("l40s", 1, "rack-1", prefix="m")
    for usd, is_dear in ((20.0, False), (1e9, True)):
        problem = two_kinds(uplink("rack-1", usd=usd), also=beside)
        problem = replace(
            problem, demands={name: replace(d, requests_per_s=40.0) for name, d in problem.demands.items()}
        )
        plan = make_plan(problem, capacity_of=only_one_role, wide_gpus=wide_gpus)
        assert verify(plan, problem, capacity_of=only_one_role) == ()
        assert (plan.links[0].usd_per_hour == 0.0) is is_dear
        assert plan.services[0].served_requests_per_s == pytest.approx(14.4 if is_dear else 15.0)
        assert plan.report.gap_ratio <= problem.policy.relative_gap


def test_a_link_that_binds_moves_decode_next_to_prefill() -> None:
    """L40S beside the H100 cost nothing more: with the link free any rack will do, with it full only that one."""
    beside = fleets.nodes("l40s", 2, "rack-1", prefix="m")
    needed = decided(two_kinds(uplink("rack-1"))).links[0].outgoing_bytes_per_s
    plan = decided(two_kinds(uplink("rack-1", bytes_per_s=needed / 50.0), also=beside))
    assert not plan.is_short
    decode = {row.location for row in plan.placements if row.pool.role is Role.DECODE and row.replicas}
    assert "rack-1" in decode
    assert plan.links[0].outgoing_bytes_per_s <= needed / 50.0 * (1.0 + 1e-6)


def test_wrong_words_on_links_are_caught() -> None:
    problem = two_kinds(uplink("rack-1", usd=20.0), uplink("rack-2"))
    plan = decided(problem)
    first, *others = plan.links
    wrong = {
        "links[up-rack-1]: said 0 B/s out": replace(first, outgoing_bytes_per_s=0.0),
        "links[up-rack-1]: said 9.0": replace(first, usd_per_hour=9.0),
    }
    for words, row in wrong.items():
        assert any(fault.startswith(words) for fault in verify(replace(plan, links=(row, *others)), problem)), words
    assert verify(replace(plan, links=()), problem)[0] == "links[up-rack-1]: planned and existing links differ"
    full = two_kinds(uplink("rack-1", bytes_per_s=1e3, usd=20.0), uplink("rack-2"))
    assert any(fault.endswith("out, carries 1,000") for fault in verify(plan, full))
    paid = replace(plan, links=(replace(first, usd_per_hour=0.0), *others))
    assert any(fault.startswith("objective: said") for fault in verify(paid, problem))


def test_the_tick_serves_no_more_than_links_carry() -> None:
    needed = decided(two_kinds(uplink("rack-1"))).links[0].outgoing_bytes_per_s
    problem = two_kinds(uplink("rack-1", bytes_per_s=0.7 * needed))
    plan = decided(problem)
    ticker = Ticker(problem, plan, capacity_of=only_one_role)
    tick = ticker.tick()
    assert tick.served_per_s[0] == pytest.approx(plan.services[0].served_requests_per_s)
    shares = {row.pool: row.demand_ratio for row in plan.pools}
    assert dict(zip(tick.pools, tick.share_ratio.tolist(), strict=True)) == pytest.approx(shares)
    assert any(note.startswith("kvLinks: default/chat serves") for note in ticker.tick({"default/chat": 60.0}).notes)


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ((uplink("rack-1", bytes_per_s=0.0),), "bytesPerSecond: is 0.0"),
        ((uplink("rack-1", usd=float("nan")),), "usdPerTerabyte: is nan"),
        ((uplink("rack-1"), uplink("rack-1")), "up-rack-1 is given twice"),
        ((uplink("rack-1"), replace(uplink("rack-2"), locations=("rack-1",))), "rack-1 hangs on up-rack-1 already"),
    ],
)
def test_links_that_mean_nothing_are_refused(links: tuple[KvLink, ...], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        planned(racks(links))
    assert words in str(caught.value)


def test_class_wide_pairs_cannot_be_charged_to_links() -> None:
    with pytest.raises(InvalidInput, match="leaves open which links"):
        planned(racks((uplink("rack-1"),), placement=PlacementMode.CLASS))


class Linked(Tiny):
    """Pairs on one side of the link first, what is asked beyond over it, as far as it carries."""

    def sides(self, service: ServedModel, counts: Placed) -> tuple[float, float, float]:
        """What is served without the link, what more could be over it, at most the bytes that it takes a second."""
        sizes: dict[PoolKey, int] = {}
        for (pool, _), n in counts.items():
            sizes[pool] = sizes.get(pool, 0) + n
        rate = {
            key: n * capacity(self, key[0], sizes[key[0]])
            for key, n in counts.items()
            if key[0].service == service.name
        }
        of = {
            (role, at): sum(r for (p, where), r in rate.items() if p.role is role and where == at)
            for role in Role
            for at in SIDES
        }
        near = sum(of[Role.MIXED, at] + min(of[Role.PREFILL, at], of[Role.DECODE, at]) for at in SIDES)
        chain = min(sum(of[role, at] for at in SIDES) for role in SPLIT)
        able = sum(of[Role.MIXED, at] for at in SIDES) + chain
        (link,) = self.problem.policy.kv_links
        return near, able - near, link.bytes_per_s / PROMPT_BYTES

    def limited_per_s(self, service: ServedModel, counts: Placed, able_per_s: float) -> float:
        near, beyond, most = self.sides(service, counts)
        return near + min(beyond, most)

    def terms_usd_per_hour(self, counts: Placed) -> float:
        (link,) = self.problem.policy.kv_links
        total = 0.0
        for service in self.problem.services:
            near, beyond, most = self.sides(service, counts)
            asked = self.problem.demands[service.name].requests_per_s
            crossed = max(0.0, min(asked, near + min(beyond, most)) - near)
            total += crossed * PROMPT_BYTES * 3600.0 / 1e12 * link.usd_per_terabyte
        return total


@pytest.mark.parametrize(("first", "usd"), [(12000, 1e6), (12100, 5e6)])
def test_no_counts_over_a_link_are_cheaper_than_the_plan(first: int, usd: float) -> None:
    bound = 0
    for seed, case in drawn(first, 40):
        if len(case.problem.services) > 1:
            continue
        rng = np.random.default_rng(seed)
        link = KvLink(
            name="up", locations=("left",), bytes_per_s=float(rng.choice([40.0, 150.0, 1e6])), usd_per_terabyte=usd
        )
        problem = replace(case.problem, policy=replace(case.problem.policy, kv_links=(link,)))
        linked = Linked(problem=problem, table=case.table)
        bound += is_bound(linked, hold_to_best(linked, seed))
    assert bound >= 1
