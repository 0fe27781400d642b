"""Replays of plans whose prefill and decode replicas pair in KV groups, at one location, or over links between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from solvers.engine import EngineConfig, Role
from solvers.evaluate.incidents import Incident, What
from solvers.evaluate.load import Load
from solvers.evaluate.run import Policy, Record, Seen, Settings, Wish, run
from solvers.fleet import PoolKey
from solvers.pairing import Domain
from solvers.plan import Placement, Plan, PoolPlan
from solvers.planner import make_plan
from solvers.planner.bays.links import Route
from solvers.policies import make_policy
from solvers.policies.fixed import Fixed
from solvers.problem import KvLink, Problem
from solvers.refute import poisson_load, refuted_plan, replayed
from solvers.sizing import Unfit, replica_capacity
from solvers.verify import verify
from tests import fleets
from tests.test_links import SPLIT, uplink
from tests.test_pairing import two_classes

CHAT = "default/chat"
Sides = Counter[tuple[str, str]]


def ends(record: Record, what: str = "location") -> Sides:
    """How many requests went from which location, or GPU class, to which."""

    def part(replica: str) -> str:
        return replica.split("/")[3] if what == "class" else replica.partition("@")[2].partition("#")[0]

    return Counter((part(r.prefill_replica), part(r.replica)) for r in record.finished)


def load(problem: Problem, duration_s: float = 100.0) -> Load:
    return poisson_load(problem.demands, duration_s, 1)


def written(problem: Problem, rows: Sequence[tuple[Role, str, str, int, float]], served_per_s: float) -> Plan:
    """A plan with these (role, class, location, replicas, requests per second of one), whatever is best."""
    plan = make_plan(problem)
    placements: list[Placement] = []
    pools: dict[PoolKey, tuple[int, float]] = {}
    for role, gpu_class, location, replicas, rate in rows:
        pool = PoolKey(service=CHAT, role=role, gpu_class=gpu_class, config=EngineConfig())
        placements.append(Placement(pool=pool, location=location, replicas=replicas))
        count, carried = pools.get(pool, (0, 0.0))
        pools[pool] = count + replicas, carried + replicas * rate
    told = tuple(
        PoolPlan(
            pool=pool, replicas=n, demand_ratio=1.0, capacity_requests_per_s=rate, cap_watts=0.0, reserved_watts=0.0,
            planned_watts=0.0, cost_usd_per_hour=0.0,
        )
        for pool, (n, rate) in pools.items()
    )  # fmt: skip
    services = tuple(replace(row, served_requests_per_s=served_per_s) for row in plan.services)
    return replace(plan, placements=tuple(placements), pools=told, services=services)


@lru_cache
def racks(*links: KvLink, rate: float = 20.0, may_cross: bool = True) -> Problem:
    """Two racks of H100."""
    fleet = (*fleets.nodes("h100-sxm", 1, "rack-1"), *fleets.nodes("h100-sxm", 1, "rack-2"))
    served = replace(fleets.service("chat", "chat", roles=tuple(Role)), kv_may_cross=may_cross)
    problem = fleets.problem([(served, rate)], fleet, [fleets.profile("chat", "h100-sxm", 1, 8.0)])
    return replace(problem, policy=replace(problem.policy, kv_links=links))


H100 = "h100-sxm"
UNEVEN = (
    (Role.PREFILL, H100, "rack-1", 1, 24.0),
    (Role.PREFILL, H100, "rack-2", 1, 24.0),
    (Role.DECODE, H100, "rack-1", 1, 12.0),
    (Role.DECODE, H100, "rack-2", 2, 12.0),
)
"""Pairs at the racks carry 12 and 24 requests per second."""


def test_requests_are_decoded_in_the_group_in_which_they_are_prefilled() -> None:
    problem = two_classes(("a", "b"))
    rows = [(role, name, at, 2, 10.0) for role in SPLIT for name, at in ((H100, "rack-1"), ("l40s", "rack-2"))]
    record = run(problem, written(problem, rows, 6.0), load(problem), Fixed())
    found = ends(record, "class")
    assert found.keys() == {(H100, H100), ("l40s", "l40s")}
    assert abs(found[H100, H100] - found["l40s", "l40s"]) <= 1
    alike = two_classes(("a", "a"))
    assert len(ends(run(alike, written(alike, rows, 6.0), load(alike), Fixed()), "class")) > 2


def test_where_nothing_may_cross_requests_stay_at_a_location_in_proportion_to_its_pairs() -> None:
    problem = racks(may_cross=False)
    found = ends(run(problem, written(problem, UNEVEN, 20.0), load(problem), Fixed()))
    assert found.keys() == {("rack-1", "rack-1"), ("rack-2", "rack-2")}
    assert found["rack-2", "rack-2"] / found["rack-1", "rack-1"] == pytest.approx(2.0, rel=0.01)


def test_mixed_replicas_have_their_part() -> None:
    problem = racks(may_cross=False)
    plan = written(problem, [*UNEVEN, (Role.MIXED, H100, "rack-1", 3, 6.0)], 20.0)
    record = run(problem, plan, load(problem), Fixed())
    alone = sum(r.prefill_replica == r.replica for r in record.finished)
    assert alone / len(record.finished) == pytest.approx(18 / 54, abs=0.01)


@pytest.mark.parametrize(("served", "crossed"), [(20.0, 0.0), (30.0, 6.0)])
def test_only_what_pairs_on_one_side_cannot_carry_crosses_a_link(served: float, crossed: float) -> None:
    """Of 24 and 24 requests a second of prefill and 12, 12 and 12 of decode, 24 stay on their side."""
    problem = racks(uplink("rack-1"), uplink("rack-2"), rate=served)
    rows = [(Role.DECODE, H100, at, 1, 12.0) for at in ("rack-1", "rack-2", "rack-3")]
    rows += [(Role.PREFILL, H100, at, 1, 24.0) for at in ("rack-1", "rack-2")]
    found = ends(run(problem, written(problem, rows, served), load(problem, 50.0), Fixed()))
    far = sum(count for (giver, taker), count in found.items() if giver != taker)
    assert far / sum(found.values()) == pytest.approx(crossed / served, abs=0.005)
    assert {giver for giver, taker in found if giver != taker} == ({"rack-1", "rack-2"} if crossed else set())


def test_what_pairs_cross_adds_up_to_the_flows_of_every_side() -> None:
    sides = {
        (role, Domain(group=group, site=site)): rate
        for (role, group, site), rate in {
            (Role.PREFILL, "a", "x"): 5.0, (Role.DECODE, "a", "x"): 2.0, (Role.PREFILL, "a", "y"): 3.0,
            (Role.DECODE, "a", "y"): 1.0, (Role.DECODE, "a", ""): 4.0, (Role.PREFILL, "b", "x"): 1.0,
            (Role.DECODE, "b", "y"): 2.0,
        }.items()
    }  # fmt: skip
    route = Route(mixed_per_s=1.0, sides=sides, bytes_by_group={})
    for served in (2.0, 4.0, 6.5, 9.0):
        pairs, flows = route.pairs(served), route.flows(served)
        assert all(giver.group == taker.group for giver, taker in pairs)
        for (role, domain), rate in flows.items():
            if role is not Role.MIXED:
                end = 0 if role is Role.PREFILL else 1
                assert sum(v for pair, v in pairs.items() if pair[end] == domain) == pytest.approx(rate)
        assert sum(pairs.values()) + flows[Role.MIXED, Domain()] == pytest.approx(min(served, 9.0))


# ---------------------------------------------------------------- links


def one_role_each(profile: Any, role: Role, *args: Any, capacity_of: Any = replica_capacity, **how: Any) -> Any:
    """H100 prefills and L40S decodes, and nothing else."""
    able = role is {H100: Role.PREFILL, "l40s": Role.DECODE}[profile.key.gpu_class]
    return capacity_of(profile, role, *args, **how) if able else Unfit(reason="not here")


def decide(problem: Problem, *, previous: Plan | None = None, capacity_of: Any = replica_capacity) -> Plan:
    def said(*args: Any, **how: Any) -> Any:
        return one_role_each(*args, capacity_of=capacity_of, **how)

    return make_plan(problem, previous=previous, capacity_of=said)


def two_kinds(*links: KvLink) -> Problem:
    """A rack that only prefills and one that only decodes, 30 requests a second."""
    fleet = (*fleets.nodes(H100, 1, "rack-1"), *fleets.nodes("l40s", 2, "rack-2"))
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in (H100, "l40s")]
    problem = fleets.problem([(fleets.service("chat", "chat", roles=SPLIT), 30.0)], fleet, profiles)
    return replace(problem, policy=replace(problem.policy, kv_links=links))


@lru_cache
def needed_bytes_per_s() -> float:
    return decide(two_kinds(uplink("rack-1"))).links[0].outgoing_bytes_per_s


def test_a_plan_that_fills_a_link_is_refuted_and_uses_less_of_it_afterwards() -> None:
    tight = two_kinds(uplink("rack-1", bytes_per_s=1.02 * needed_bytes_per_s()))
    first = decide(tight)
    assert not first.is_short
    summary = replayed(tight, first, 1)
    assert summary is not None
    transfer, queue = (summary.services[CHAT].latencies_s[part][0.95].value for part in ("transfer", "queue"))
    assert transfer > 0.5 > queue
    found = refuted_plan(tight, decide=decide)
    assert found.kept
    assert found.factors == {}
    assert 0.55 <= found.links["up-rack-1"] < 1.0
    assert "links held below what they carry: up-rack-1 at 0." in found.plan.report.notes[-1]
    most = found.links["up-rack-1"] * tight.policy.kv_links[0].bytes_per_s
    assert found.plan.links[0].outgoing_bytes_per_s <= most * (1 + 1e-6)
    assert found.plan.services[0].served_requests_per_s < 30.0
    assert verify(found.plan, tight, capacity_of=one_role_each) == ()


def test_a_plan_that_leaves_a_link_room_is_not_refuted() -> None:
    found = refuted_plan(two_kinds(uplink("rack-1", bytes_per_s=2.0 * needed_bytes_per_s())), decide=decide)
    assert (found.rounds, found.kept, found.links) == (0, True, {})


def test_a_miss_that_the_links_are_not_behind_holds_the_roles_to_less() -> None:
    def hopeful(problem: Problem, *, previous: Plan | None = None, capacity_of: Any = replica_capacity) -> Plan:
        def said(*args: Any, **how: Any) -> Any:
            sized = capacity_of(*args, **how)
            return sized if isinstance(sized, Unfit) else replace(sized, requests_per_s=3.0 * sized.requests_per_s)

        return decide(problem, previous=previous, capacity_of=said)

    found = refuted_plan(two_kinds(uplink("rack-1", bytes_per_s=20.0 * needed_bytes_per_s())), decide=hopeful)
    assert found.rounds >= 1
    assert found.links == {}
    assert found.factors


# ---------------------------------------------------------------- what changes in mid-run


def test_a_rack_that_loses_its_decode_replicas_hands_its_prompts_over_the_link() -> None:
    problem = racks(uplink("rack-1"), uplink("rack-2"))
    plan = written(problem, UNEVEN, 20.0)
    pool = next(row.pool for row in plan.placements if row.pool.role is Role.DECODE)
    struck = Incident(at_s=50.0, what=What.DRAIN, pool=str(pool), location="rack-1", count=None)
    record = run(problem, plan, load(problem), Fixed(), Settings(incidents=(struck,)))
    assert sum(record.unfinished.values()) == 0
    later = [r for r in record.finished if r.arrival_s > 51.0]
    assert all("@rack-2#" in r.replica for r in later)
    assert not any("@rack-2#" in r.prefill_replica and "@rack-1#" in r.replica for r in record.finished)


def test_a_replica_takes_part_in_the_proportions_once_it_is_ready() -> None:
    problem = racks(may_cross=False)
    plan = written(problem, UNEVEN[:3], 12.0)
    pool = next(row.pool for row in plan.placements if row.pool.role is Role.DECODE)
    more = Incident(at_s=10.0, what=What.START, pool=str(pool), location="rack-2", count=2)
    record = run(problem, plan, load(problem, 300.0), Fixed(), Settings(incidents=(more,)))
    ready_s = 10.0 + next(iter(problem.profiles.values())).cold_start_s
    early, late = (
        ends(replace(record, finished=tuple(r for r in record.finished if (r.arrival_s > ready_s) is is_late)))
        for is_late in (False, True)
    )
    assert early.keys() == {("rack-1", "rack-1")}
    assert late["rack-2", "rack-2"] / late["rack-1", "rack-1"] == pytest.approx(2.0, rel=0.05)


class Watching:
    """Looks every minute and changes nothing."""

    name, period_s = "watching", 60.0

    def decide(self, seen: Seen) -> Wish:
        return Wish(counts={})


def test_more_than_was_planned_crosses_once_it_is_seen() -> None:
    """Pairs on one side carry 24 of the 34 requests a second that are asked where 20 were planned."""
    problem = racks(uplink("rack-1"), uplink("rack-2"), rate=34.0)
    rows = [(Role.DECODE, H100, at, 1, 12.0) for at in ("rack-1", "rack-2", "rack-3")]
    rows += [(Role.PREFILL, H100, at, 1, 24.0) for at in ("rack-1", "rack-2")]
    plan, asked = written(problem, rows, 20.0), load(problem, 180.0)
    part = {}
    policies: tuple[Policy, ...] = (Fixed(), Watching())
    for policy in policies:
        record = run(problem, plan, asked, policy)
        part[policy.name] = ends(replace(record, finished=tuple(r for r in record.finished if r.arrival_s > 60.0)))
    far = {name: sum(n for (x, y), n in found.items() if x != y) / sum(found.values()) for name, found in part.items()}
    assert far == {"fixed": 0.0, "watching": pytest.approx(10 / 34, abs=0.04)}


@pytest.mark.parametrize("name", ["hpa", "keda", "ours"])
def test_policies_that_change_the_fleet_keep_pairs_together(name: str) -> None:
    problem = racks(may_cross=False)
    plan = written(problem, UNEVEN, 20.0)
    record = run(problem, plan, load(problem), make_policy(name, problem, plan), Settings(patience_s=30.0))
    assert record.finished
    assert all(giver == taker for giver, taker in ends(record))
