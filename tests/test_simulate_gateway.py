"""The gateway of the simulation: requests wait for a replica, give up when that takes too long, and recover."""

from __future__ import annotations

import math
from typing import Any

import pytest

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.simulate import Fleet, replay
from solvers.simulate.tables import TICKS_PER_S, compile_profile
from solvers.workload import Slo, SloMetric
from tests.sim_brute import make_profile
from tests.sim_cases import ask, small_fleet, some_requests


def test_requests_wait_at_the_gateway_until_a_replica_is_ready() -> None:
    fleet = Fleet()
    fleet.add_replica("m0", "s", Role.MIXED, make_profile(), ready_at_s=30.0)
    fleet.submit(ask(at=5.0))
    fleet.advance(29.0)
    assert fleet.queued("s") == 1
    assert fleet.replica("m0").draw_watts == 75.0
    assert not fleet.replica("m0").is_ready
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert done.queue_s == pytest.approx(25.0)
    assert fleet.queued("s") == 0


def test_flow_control_keeps_the_backlog_at_the_gateway_in_order() -> None:
    fleet = Fleet(replica_queue_limit=3)
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    fleet.add_replica("d0", "s", Role.DECODE, make_profile())
    for i in range(40):
        fleet.submit(ask(f"r{i}", at=i * 1e-6))
    fleet.advance(0.05)
    assert (fleet.outstanding("p0"), fleet.queued("s")) == (3, 37)
    fleet.add_replica("p1", "s", Role.PREFILL, make_profile())
    assert (fleet.outstanding("p1"), fleet.queued("s")) == (3, 34)
    fleet.remove_replica("p0")
    assert fleet.queued("s") == 37
    fleet.advance(math.inf)
    finished = fleet.take_finished()
    assert [r.name for r in finished] == [f"r{i}" for i in (3, 4, 5, 0, 1, 2, *range(6, 40))]
    assert finished[-1].queue_s == pytest.approx(0.05 + 3.9, abs=1e-3)  # p1 was never idle


def test_without_a_backlog_flow_control_changes_nothing() -> None:
    def run(limit: int | None) -> Any:
        return replay(small_fleet(replica_queue_limit=limit), some_requests(rate=4.0))

    assert run(50) == run(None)


def one_at_a_time(patience_s: float | None) -> Fleet:
    """A replica that takes the next request when the prompt before it is computed."""
    fleet = Fleet(replica_queue_limit=1, gateway_patience_s=patience_s)
    fleet.add_replica("m0", "s", Role.MIXED, make_profile())
    return fleet


PROMPT_S = compile_profile(make_profile()).prefill(500) / TICKS_PER_S  # in one piece
TICK_S = 1 / TICKS_PER_S


@pytest.mark.parametrize(("patience_s", "is_served"), [(PROMPT_S, True), (PROMPT_S - TICK_S, False), (0.0, False)])
def test_patience_ends_at_its_very_tick_and_ties_go_to_serving(patience_s: float, is_served: bool) -> None:
    fleet = one_at_a_time(patience_s)
    fleet.submit(ask("first", prompt=500, output=2))
    fleet.submit(ask("second", prompt=500, output=2))
    fleet.advance(math.inf)
    assert [r.name for r in fleet.take_finished()] == ["first", "second"][: 1 + is_served]
    given_up = fleet.take_timed_out()
    assert [(r.name, r.at_s, r.waited_s) for r in given_up] == [("second", patience_s, patience_s)][is_served:]
    assert fleet.counts("s").get("timed_out", 0) == (not is_served)
    assert fleet.queued("s") == 0
    assert all(f"the {patience_s:g} s that the gateway lets a request wait" in r.reason for r in given_up)


def test_a_patience_that_nobody_exhausts_changes_nothing() -> None:
    requests = [ask(f"r{i}", at=i * 0.02, prompt=500, output=20) for i in range(30)]
    patient = replay(one_at_a_time(1000.0), requests)
    assert patient == replay(one_at_a_time(None), requests) == replay(one_at_a_time(math.inf), requests)
    assert patient.makespan_s < 10.0  # the clock does not wait for patience to end


def test_one_that_gives_up_lets_the_next_in_at_the_same_tick() -> None:
    fleet = Fleet(replica_queue_limit=1, gateway_patience_s=0.05)
    fleet.add_replica("small", "s", Role.MIXED, make_profile(kv_capacity_tokens=600))
    fleet.add_replica("large", "s", Role.MIXED, make_profile())
    for i, prompt in enumerate((3000, 4000, 500)):  # the second needs the large one and holds up the third
        fleet.submit(ask(f"r{i}", at=i * 0.001, prompt=prompt, output=2))
    fleet.advance(math.inf)
    finished = {r.name: r for r in fleet.take_finished()}
    assert [(r.name, r.at_s) for r in fleet.take_timed_out()] == [("r1", 0.051)]
    assert finished["r2"].replica == "small"
    assert finished["r2"].queue_s == pytest.approx(0.049, abs=TICK_S)


@pytest.mark.parametrize("is_room", [True, False])
def test_one_that_begins_again_out_of_patience_is_served_only_at_once(is_room: bool) -> None:
    fleet = one_at_a_time(1.0)
    fleet.submit(ask("again", prompt=500, output=400))
    fleet.advance(2.0)
    fleet.add_replica("m1", "s", Role.MIXED, make_profile())
    if not is_room:
        for i in range(3):
            fleet.submit(ask(f"other{i}", at=2.0, prompt=4000, output=1))
    fleet.advance(2.0)
    fleet.remove_replica("m0")
    fleet.advance(2.0)
    assert [(r.name, r.waited_s) for r in fleet.take_timed_out()] == [("again", 2.0)][is_room:]
    assert fleet.counts("s")["rerouted"] == (1 if is_room else 2)
    fleet.advance(math.inf)
    assert ("again" in {r.name for r in fleet.take_finished()}) == is_room


def test_an_overload_ends_with_its_surge_when_the_gateway_gives_up() -> None:
    """Without patience the backlog of the surge makes every later request late, for ever so long."""
    requests = [ask(f"r{i}", at=i * 0.03, prompt=500, output=5) for i in range(2000)]
    requests += [ask(f"later{i}", at=60.0 + i * 0.2, prompt=500, output=5) for i in range(300)]
    ttft_s = {}
    for patience_s in (5.0, None):
        result = replay(one_at_a_time(patience_s), sorted(requests, key=lambda r: r.arrival_s))
        ttft_s[patience_s] = {r.name: r.ttft_s for r in result.finished}
        assert len(result.finished) + len(result.timed_out) == len(requests)
        assert result.unfinished == 0
    assert ttft_s[5.0]["later299"] < 0.5
    assert max(ttft_s[5.0].values()) <= 5.0 + 2 * PROMPT_S
    assert min(t for name, t in ttft_s[None].items() if name.startswith("later")) > 5.0


def test_shares_in_slo_count_what_was_not_served_as_misses() -> None:
    slos = {"s": (Slo(metric=SloMetric.TTFT, percentile_ratio=0.5, limit_s=0.2),)}
    requests = [ask(f"r{i}", prompt=500, output=2) for i in range(8)] + [ask("huge", prompt=200_000)]
    result = replay(one_at_a_time(2 * PROMPT_S), requests, slos=slos)
    service = result.services["s"]
    assert (service.finished, service.timed_out, service.rejected) == (2, 6, 1)
    assert [r.name for r in result.timed_out] == [f"r{i}" for i in range(2, 8)]
    (ttft,) = service.attained
    assert ttft.within_ratio == sum(r.ttft_s <= 0.2 for r in result.finished) / 9
    assert ttft.value_s == service.ttft_s[0.5] == pytest.approx(2 * PROMPT_S)  # the waits of those who gave up
    assert result.unfinished == 0


@pytest.mark.parametrize("patience_s", [-1.0, math.nan])
def test_a_patience_that_is_no_time_is_refused(patience_s: float) -> None:
    with pytest.raises(InvalidInput, match="gateway_patience_s"):
        Fleet(gateway_patience_s=patience_s)


@pytest.mark.parametrize("patience_s", [None, 3.0])
def test_requests_without_decode_replicas_wait_at_the_gateway_and_recover(patience_s: float | None) -> None:
    """Only prompts on their way when the last decode replica goes are computed; they move on when another comes."""
    fleet = Fleet(replica_queue_limit=2, gateway_patience_s=patience_s)
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    fleet.add_replica("d0", "s", Role.DECODE, make_profile())
    for i in range(200):
        fleet.submit(ask(f"r{i}", at=i * 0.2, output=5))
    fleet.advance(4.05)  # r20 is being computed
    fleet.remove_replica("d0")
    fleet.advance(20.05)
    assert [r.name for r in fleet.take_finished()] == [f"r{i}" for i in range(20)]
    held, waited = fleet.replica("p0"), fleet.queued("s")
    assert (held.kv_usage_ratio, held.waiting) == (1000 / 100_000, 0)
    assert waited == (15 if patience_s else 80)
    fleet.add_replica("d1", "s", Role.DECODE, make_profile())
    fleet.advance(math.inf)
    finished, given_up = fleet.take_finished(), fleet.take_timed_out()
    assert len(given_up) == (65 if patience_s else 0)
    assert fleet.counts("s")["finished"] + len(given_up) == 200
    assert (finished[0].name, finished[-1].name) == ("r20", "r199")
    assert fleet.replica("p0").kv_usage_ratio == 0.0
    assert finished[-1].ttft_s < 0.2


def test_a_request_waits_for_a_decode_replica_before_its_prompt_is_computed() -> None:
    fleet = Fleet()
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    fleet.submit(ask())
    fleet.advance(10.0)
    assert (fleet.queued("s"), fleet.replica("p0").prompt_tokens) == (1, 0)
    fleet.add_replica("d0", "s", Role.DECODE, make_profile())
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert done.queue_s == 10.0
    assert done.kv_transfer_s == pytest.approx(0.004)


def test_draining_the_only_fitting_replica_lets_the_next_in_at_once() -> None:
    fleet = Fleet(replica_queue_limit=1)
    fleet.add_replica("small", "s", Role.MIXED, make_profile(kv_capacity_tokens=600))
    fleet.add_replica("large", "s", Role.MIXED, make_profile())
    for i, prompt in enumerate((3000, 4000, 500)):  # the second needs the large one and holds up the third
        fleet.submit(ask(f"r{i}", prompt=prompt, output=2))
    fleet.advance(0.01)
    assert fleet.queued("s") == 2
    fleet.drain_replica("large")
    assert [r.name for r in fleet.take_rejected()] == ["r1"]
    assert (fleet.queued("s"), fleet.outstanding("small")) == (0, 1)
