"""Routing of the simulation over mixed replicas and chains of a prefill and a decode replica at once."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from solvers.engine import EngineProfile, Role
from solvers.simulate import FinishedRequest, Fleet, SimRequest, replay
from solvers.simulate.tables import TICKS_PER_S, compile_profile
from tests.sim_brute import make_profile
from tests.sim_cases import ask, some_requests

OUTPUT_TOKENS = 256  # what routing supposes, so that the work it sees is the work there is


def slow_decode(times: float) -> EngineProfile:
    """An engine whose decode steps last longer, and nothing else."""
    profile = make_profile()
    return replace(profile, decode_step_s=tuple(tuple(times * s for s in row) for row in profile.decode_step_s))


def fleet_of(
    *, mixed: int, prefill: int = 0, decode: EngineProfile | None = None, ready_at_s: float = 0.0, **options: Any
) -> Fleet:
    """Mixed and prefill replicas alike, and perhaps one decode replica."""
    fleet = Fleet(**options)
    for i in range(mixed):
        fleet.add_replica(f"m{i}", "s", Role.MIXED, make_profile())
    for i in range(prefill):
        fleet.add_replica(f"p{i}", "s", Role.PREFILL, make_profile())
    if decode is not None:
        fleet.add_replica("d0", "s", Role.DECODE, decode, ready_at_s=ready_at_s)
    return fleet


def served(fleet: Fleet, requests: list[SimRequest]) -> dict[str, FinishedRequest]:
    result = replay(fleet, requests)
    assert len(result.finished) == len(requests)
    return {r.name: r for r in result.finished}


@pytest.mark.parametrize("gateway", [{}, {"replica_queue_limit": 3, "gateway_patience_s": 30.0}])
def test_a_chain_without_a_decode_side_gets_nothing(gateway: dict[str, Any]) -> None:
    requests = some_requests(rate=6.0)
    whole = replay(fleet_of(mixed=2, prefill=1, **gateway), requests)
    assert whole.finished == replay(fleet_of(mixed=2, **gateway), requests).finished
    assert len(whole.finished) == len(requests)


def test_a_chain_without_a_prefill_side_gets_nothing() -> None:
    requests = some_requests(rate=6.0)
    done = served(fleet_of(mixed=2, decode=make_profile()), requests)
    assert {r.replica for r in done.values()} == {"m0", "m1"}


def works_s(decode: EngineProfile) -> tuple[float, float, float]:
    """Seconds of a prompt, of a sequence on a mixed replica, and of one on the decode replica."""
    mine, other = compile_profile(make_profile()), compile_profile(decode)
    return tuple(w / TICKS_PER_S for w in (mine.prefill(1000), mine.sequence_work, other.sequence_work))  # type: ignore[return-value]


def proportional(mixed_s: float, chain_s: float) -> dict[str, float]:
    """Shares of two mixed replicas and a chain that are in proportion to one over their seconds for a request."""
    per_s = {"m0": 1 / mixed_s, "m1": 1 / mixed_s, "d0": 1 / chain_s}
    return {name: rate / sum(per_s.values()) for name, rate in per_s.items()}


def shares(fleet: Fleet, requests: list[SimRequest]) -> dict[str, float]:
    counts = Counter(r.replica for r in served(fleet, requests).values())
    return {name: count / len(requests) for name, count in counts.items()}


@pytest.mark.parametrize("slower", [0.5, 4.0, 12.0])
def test_a_burst_leaves_the_same_work_ahead_on_every_way(slower: float) -> None:
    """All at once, so that no work is done between: the works of the ways are equal to one request."""
    prompt_s, sequence_s, decode_s = works_s(slow_decode(slower))
    found = shares(
        fleet_of(mixed=2, prefill=1, decode=slow_decode(slower)),
        [ask(f"r{i}", output=OUTPUT_TOKENS) for i in range(300)],
    )
    assert found == pytest.approx(proportional(prompt_s + sequence_s, prompt_s + decode_s), abs=1.5 / 300)


@pytest.mark.parametrize("slower", [0.5, 1.0, 4.0])
def test_a_small_decode_side_ends_up_with_its_share_of_the_capacity(slower: float) -> None:
    """Under more than all can do; the work of a sequence is nominal, so within a few percent."""
    prompt_s, sequence_s, decode_s = works_s(slow_decode(slower))
    mixed_s, chain_s = prompt_s + sequence_s, max(prompt_s, decode_s)
    rate = 1.3 * (2 / mixed_s + 1 / chain_s)
    requests = [ask(f"r{i}", at=i / rate, output=OUTPUT_TOKENS) for i in range(2000)]
    found = shares(fleet_of(mixed=2, prefill=1, decode=slow_decode(slower), replica_queue_limit=5), requests)
    assert found == pytest.approx(proportional(mixed_s, chain_s), rel=0.1)


@pytest.mark.parametrize("slower", [1.0, 4.0, 12.0])
def test_a_chain_with_a_small_decode_side_keeps_no_prompt_waiting(slower: float) -> None:
    """At half of what the mixed replicas alone can do, none that goes by the chain waits long for its first token."""
    prompt_s, sequence_s, _ = works_s(make_profile())
    requests = [ask(f"r{i}", at=i * (prompt_s + sequence_s), output=OUTPUT_TOKENS) for i in range(500)]
    done = served(fleet_of(mixed=2, prefill=1, decode=slow_decode(slower)), requests)
    by_chain = [r for r in done.values() if r.replica == "d0"]
    assert 0 < len(by_chain) < 250
    assert max(r.queue_s + r.kv_transfer_s for r in by_chain) < 2 * prompt_s


def test_a_chain_takes_part_from_the_moment_its_decode_side_is_ready() -> None:
    requests = some_requests(400, rate=10.0)
    done = served(fleet_of(mixed=2, prefill=1, decode=make_profile(), ready_at_s=20.0), requests)
    early = {r.replica for r in done.values() if r.arrival_s < 20.0}
    later = Counter(r.replica for r in done.values() if r.arrival_s > 20.0)
    assert early == {"m0", "m1"}
    assert later["d0"] > max(later["m0"], later["m1"])
    assert max(r.ttft_s for r in done.values()) < 1.0


def test_an_idle_mixed_replica_goes_before_an_idle_chain_and_lower_ones_before_higher() -> None:
    fleet = fleet_of(mixed=2, prefill=1, decode=make_profile())
    done = served(fleet, [ask(f"r{i}", at=i * 1e-6, prompt=4000) for i in range(3)])
    ways = [(done[f"r{i}"].prefill_replica, done[f"r{i}"].replica) for i in range(3)]
    assert ways == [("m0", "m0"), ("m1", "m1"), ("p0", "d0")]


def test_work_bound_to_a_decode_replica_is_seen_before_it_gets_there() -> None:
    fleet = fleet_of(mixed=0, prefill=1, decode=make_profile())
    fleet.add_replica("d1", "s", Role.DECODE, make_profile())
    done = served(fleet, [ask(f"r{i}") for i in range(6)])
    assert [done[f"r{i}"].replica for i in range(6)] == ["d0", "d1"] * 3


@pytest.mark.parametrize("leave", [Fleet.drain_replica, Fleet.remove_replica])
def test_a_computed_prompt_goes_elsewhere_when_its_decode_replica_takes_no_more(leave: Any) -> None:
    fleet = fleet_of(mixed=0, prefill=1, decode=make_profile())
    fleet.add_replica("d1", "s", Role.DECODE, make_profile())
    fleet.submit(ask())
    fleet.advance(0.05)
    leave(fleet, "d0")
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert (done.prefill_replica, done.replica, done.reroutes) == ("p0", "d1", 0)


def test_prompts_bound_when_the_last_decode_replica_leaves_wait_for_the_next_and_new_ones_at_the_gateway() -> None:
    fleet = fleet_of(mixed=0, prefill=1, decode=make_profile(), gateway_patience_s=3.0)
    fleet.submit(ask("bound"))
    fleet.submit(ask("new", at=1.0))
    fleet.advance(0.05)
    fleet.drain_replica("d0")
    fleet.advance(3.9)
    assert (fleet.queued("s"), fleet.outstanding("d0"), fleet.replica("p0").waiting) == (1, 0, 0)
    fleet.advance(9.0)
    assert [r.name for r in fleet.take_timed_out()] == ["new"]
    fleet.add_replica("d1", "s", Role.DECODE, make_profile())
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert (done.name, done.replica) == ("bound", "d1")
    assert done.kv_transfer_s == pytest.approx(9.0 - 0.1 + 0.004)


def test_a_chain_is_full_when_its_decode_queue_is() -> None:
    """The decode replica holds one sequence and is full with two more; only those bound before still come."""
    fleet = Fleet(replica_queue_limit=2)
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    fleet.add_replica("d0", "s", Role.DECODE, make_profile(kv_capacity_tokens=1500))
    for i in range(20):
        fleet.submit(ask(f"r{i}", at=i * 0.15, output=450))
    fleet.advance(3.0)
    assert (fleet.replica("d0").running, fleet.replica("d0").waiting) == (1, 2)
    assert (fleet.outstanding("p0"), fleet.queued("s")) == (0, 17)
    fleet.advance(math.inf)
    finished = fleet.take_finished()
    assert [r.name for r in finished] == [f"r{i}" for i in range(20)]
    starts_s = [r.end_s - r.tpot_s * 449 for r in finished]  # decoding is never held up by what waits at the gateway
    assert all(later - done.end_s < 0.03 for done, later in zip(finished, starts_s[1:], strict=False))


def test_a_request_too_large_for_what_is_complete_holds_nobody_up() -> None:
    fleet = Fleet()
    fleet.add_replica("m0", "s", Role.MIXED, make_profile(kv_capacity_tokens=600))
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    for name, prompt in (("large", 3000), ("small", 500)):
        fleet.submit(ask(name, prompt=prompt))
    fleet.advance(math.inf)
    assert [r.name for r in fleet.take_rejected()] == ["large"]
    assert [r.name for r in fleet.take_finished()] == ["small"]
