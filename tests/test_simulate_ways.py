"""Ways of the simulation: which prefill replicas hand prompts to which decode replicas, and over which links."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.simulate import FinishedRequest, Fleet, SimRequest, replay
from tests.sim_brute import make_profile
from tests.sim_cases import ask, some_requests

KV_BYTES = 100_000.0  # a token of ``make_profile``
OWN_S = 0.004  # that a thousand tokens take of a replica's own link
NEAR = (("x", "x"), ("y", "y"))
FAR = (("x", "y"), ("y", "x"))


def chains(domains: str = "xy", mixed: int = 0, crossing: float | None = None, **options: Any) -> Fleet:
    """A chain in each domain, ways inside each, and between them where something crosses."""
    fleet = Fleet(**options)
    for domain in domains:
        fleet.add_replica(f"p-{domain}", "s", Role.PREFILL, make_profile(), domain=domain)
        fleet.add_replica(f"d-{domain}", "s", Role.DECODE, make_profile(), domain=domain)
    for i in range(mixed):
        fleet.add_replica(f"m{i}", "s", Role.MIXED, make_profile())
    for domain in domains:
        fleet.add_way("s", domain, domain)
    if crossing:
        for domain in domains:
            fleet.add_crossing(f"up-{domain}", crossing)
        for x, y in FAR:
            fleet.add_way("s", x, y, out=f"up-{x}", into=f"up-{y}", bytes_per_token=KV_BYTES)
    return fleet


def served(fleet: Fleet, requests: list[SimRequest]) -> dict[str, FinishedRequest]:
    result = replay(fleet, requests)
    assert len(result.finished) == len(requests)
    return {r.name: r for r in result.finished}


def ways(done: dict[str, FinishedRequest]) -> Counter[str]:
    return Counter(f"{r.prefill_replica} {r.replica}" for r in done.values())


def test_requests_stay_inside_their_domains_and_take_turns_by_the_shares() -> None:
    fleet = chains(mixed=1)
    fleet.share_out("s", 1.0, {("x", "x"): 3.0, ("y", "y"): 4.0})
    assert ways(served(fleet, some_requests(400))) == {"m0 m0": 50, "p-x d-x": 150, "p-y d-y": 200}


def test_turns_come_evenly_and_not_in_a_row() -> None:
    fleet = chains()
    fleet.share_out("s", 0.0, {("x", "x"): 0.5, ("y", "y"): 0.5})
    done = served(fleet, [ask(f"r{i}", at=i * 1.0) for i in range(10)])
    assert [done[f"r{i}"].replica for i in range(10)] == ["d-x", "d-y"] * 5


def test_what_was_closed_for_a_time_does_not_catch_up() -> None:
    fleet = chains(domains="x")
    fleet.add_way("s", "y", "y")
    fleet.share_out("s", 0.0, {("x", "x"): 1.0, ("y", "y"): 1.0})
    for i in range(400):
        fleet.submit(ask(f"r{i}", at=i * 0.1, prompt=100, output=2))
    fleet.advance(19.95)
    fleet.add_replica("p-y", "s", Role.PREFILL, make_profile(), domain="y")
    fleet.add_replica("d-y", "s", Role.DECODE, make_profile(), domain="y")
    fleet.advance(math.inf)
    later = ways({r.name: r for r in fleet.take_finished() if r.arrival_s > 20.0})
    assert abs(later["p-x d-x"] - later["p-y d-y"]) <= 1


def test_without_shares_the_first_open_way_is_taken() -> None:
    fleet = chains(crossing=1e9)
    fleet.advance(1.0)
    fleet.drain_replica("d-x")
    assert ways(served(fleet, [ask(f"r{i}", at=1.0 + i) for i in range(5)])) == {"p-y d-y": 5}
    fleet.drain_replica("p-y")
    assert ways(served(fleet, [ask(f"q{i}", at=20.0 + i) for i in range(5)])) == {"p-x d-y": 5}


@pytest.mark.parametrize("crossing", [1e9, 1e12])
def test_a_transfer_takes_as_long_as_the_slowest_of_its_links(crossing: float) -> None:
    fleet = chains(crossing=crossing)
    fleet.share_out("s", 0.0, {("x", "y"): 1.0})
    done = served(fleet, [ask()])["r"]
    assert (done.prefill_replica, done.replica) == ("p-x", "d-y")
    assert done.kv_transfer_s == pytest.approx(max(OWN_S, 1000 * KV_BYTES / crossing))
    near = chains(crossing=crossing)
    near.share_out("s", 0.0, {("x", "x"): 1.0})
    assert served(near, [ask()])["r"].kv_transfer_s == pytest.approx(OWN_S)


def test_transfers_share_a_link_one_way_and_not_with_those_of_the_other_way() -> None:
    seconds = {}
    for name, ways_taken in {"one way": (FAR[0],), "each way": FAR}.items():
        fleet = chains(crossing=1e9)
        if name == "one way":
            fleet.add_replica("p-x2", "s", Role.PREFILL, make_profile(), domain="x")
        fleet.share_out("s", 0.0, dict.fromkeys(ways_taken, 1.0))
        done = served(fleet, [ask("a"), ask("b")])
        seconds[name] = [done[k].kv_transfer_s for k in "ab"]
    assert seconds["one way"] == pytest.approx([0.2, 0.2])
    assert seconds["each way"] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("lost", ["p-x", "d-y"])
def test_a_transfer_that_is_cut_off_begins_again_and_leaves_its_links_to_others(lost: str) -> None:
    fleet = chains(crossing=1e9)
    fleet.share_out("s", 0.0, {("x", "y"): 1.0})
    fleet.submit(ask())
    fleet.advance(0.15)
    assert (fleet.outstanding("p-x"), fleet.outstanding("d-y")) == (1, 1)
    assert fleet.remove_replica(lost) == 1
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert done.reroutes == 1
    assert f"{done.prefill_replica} {done.replica}" == ("p-y d-y" if lost == "p-x" else "p-x d-x")
    assert done.kv_transfer_s == pytest.approx(OWN_S)
    fleet.submit(ask("next", at=10.0))
    assert [fleet.outstanding(name) for name in fleet.replica_ids()] == [0, 0, 0]


def test_a_computed_prompt_goes_on_only_where_it_can_be_read() -> None:
    fleet = chains(crossing=1e9)
    fleet.share_out("s", 0.0, {("x", "x"): 1.0})
    fleet.submit(ask())
    fleet.advance(0.05)
    fleet.drain_replica("d-x")
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert (done.prefill_replica, done.replica) == ("p-x", "d-y")
    assert done.kv_transfer_s == pytest.approx(0.1)


def test_a_computed_prompt_that_none_can_read_waits_for_one_that_can() -> None:
    fleet = chains()
    fleet.share_out("s", 0.0, {("x", "x"): 1.0})
    fleet.submit(ask())
    fleet.advance(0.05)
    fleet.drain_replica("d-x")
    fleet.add_replica("d-y2", "s", Role.DECODE, make_profile(), ready_at_s=1.0, domain="y")
    fleet.advance(5.0)
    assert fleet.take_finished() == []
    fleet.add_replica("d-x2", "s", Role.DECODE, make_profile(), domain="x")
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert (done.prefill_replica, done.replica) == ("p-x", "d-x2")


def test_a_domain_that_no_way_leaves_serves_nobody_and_refuses_nobody() -> None:
    fleet = Fleet(gateway_patience_s=1.0)
    fleet.add_replica("p", "s", Role.PREFILL, make_profile(kv_capacity_tokens=10), domain="x")
    fleet.add_replica("d", "s", Role.DECODE, make_profile(), domain="x")
    fleet.submit(ask())
    fleet.advance(2.0)
    assert len(fleet.take_timed_out()) == 1


def test_a_request_too_large_for_both_sides_of_every_way_is_refused() -> None:
    fleet = Fleet()
    for domain, sizes in (("x", (600, 5000)), ("y", (5000, 600))):
        for role, size in zip((Role.PREFILL, Role.DECODE), sizes, strict=True):
            fleet.add_replica(f"{role}-{domain}", "s", role, make_profile(kv_capacity_tokens=size), domain=domain)
        fleet.add_way("s", domain, domain)
    result = replay(fleet, [ask("large", prompt=1000), ask("small", prompt=500)])
    assert [r.name for r in result.rejected] == ["large"]
    assert "the largest holds 5,000 tokens" in result.rejected[0].reason
    assert [r.name for r in result.finished] == ["small"]


def test_a_wrong_way_or_share_is_named() -> None:
    fleet = chains(crossing=1e9)
    with pytest.raises(InvalidInput, match="way/s/x-x: exists already"):
        fleet.add_way("s", "x", "x")
    with pytest.raises(InvalidInput, match="names no crossing: 'root'"):
        fleet.add_way("s", "x", "z", out="root")
    with pytest.raises(InvalidInput, match="link/up-x: exists already"):
        fleet.add_crossing("up-x", 1e9)
    with pytest.raises(InvalidInput, match="carries 0"):
        fleet.add_crossing("up-z", 0.0)
    with pytest.raises(InvalidInput, match="way/s/x-z: is not declared"):
        fleet.share_out("s", 0.0, {("x", "z"): 1.0})
    with pytest.raises(InvalidInput, match=r"has a share of -1\.0"):
        fleet.share_out("s", 0.0, {("x", "x"): -1.0})
