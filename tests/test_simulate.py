"""The simulation against its step-by-step truth, and what it promises to callers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.engine import Role, curves
from solvers.errors import InvalidInput
from solvers.simulate import Fleet, itl_limits, replay
from solvers.simulate.results import GapHistogram
from solvers.simulate.tables import TICKS_PER_S, Polygon, compile_profile, to_ticks
from solvers.workload import Slo, SloMetric
from tests.sim_brute import make_profile
from tests.sim_cases import ask, small_fleet, some_requests
from tests.sim_oracle import compare, token_times

FLEETS = 300  # `make bench-sim-oracle` does thousands


def test_every_token_time_equals_the_step_by_step_truth_to_the_picosecond() -> None:
    seen: Counter[str] = Counter()
    for seed in range(FLEETS):
        seen += compare(seed)
    least = {"tokens": 100_000, "cached": 30_000, "late_gaps": 10_000, "timed_out": 200, "caps": 150, "clients": 50}
    least |= {"preemptions": 80, "reroutes": 100, "rejected": 30, "late": 10}  # late ones gave up after a failure
    assert {what: seen[what] for what in least if seen[what] < least[what]} == {}


def test_the_parts_of_ttft_are_those_of_the_profile_and_add_up() -> None:
    profile = make_profile()
    fleet = small_fleet()
    fleet.submit(ask(prompt=1000, output=3))
    fleet.submit(ask("later", prompt=1000, output=3))
    fleet.advance(math.inf)
    first, second = fleet.take_finished()
    assert first.queue_s == 0.0
    assert first.prefill_s == pytest.approx(0.1)
    assert first.kv_transfer_s == pytest.approx(1000 * 100_000 / 25e9)
    assert first.first_step_s == pytest.approx(curves.decode_step_s(profile, 1, 1000), rel=1e-6)
    assert second.queue_s == pytest.approx(0.1)
    for done in (first, second):
        parts = done.queue_s + done.prefill_s + done.kv_transfer_s + done.first_step_s
        assert done.ttft_s == pytest.approx(parts, rel=1e-12)


def test_a_mixed_replica_yields_the_first_token_with_the_last_piece_of_the_prompt() -> None:
    fleet = Fleet()
    fleet.add_replica("m0", "s", Role.MIXED, make_profile())
    fleet.submit(ask(prompt=1300, output=1))
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert done.ttft_s == pytest.approx(curves.prefill_s(make_profile(), 1300), rel=1e-6)
    assert (done.first_step_s, done.tpot_s) == (0.0, 0.0)


def test_tables_agree_with_the_lookups_of_the_planner() -> None:
    profile = make_profile()
    tables = compile_profile(profile)
    for tokens in (1, 99, 100, 101, 555, 1000, 3999, 4000):
        assert tables.prefill(tokens) / TICKS_PER_S == pytest.approx(curves.prefill_s(profile, tokens), rel=1e-6)
    for batch in (1, 2, 4, 7, 16, 40, 64):
        for context in (1, 255, 256, 300, 1024, 2000, 4096):
            here = tables.row(batch).at(batch * context) / TICKS_PER_S
            assert here == pytest.approx(curves.decode_step_s(profile, batch, context), rel=1e-4)


def test_tables_extend_by_the_last_slope_and_the_result_counts_it() -> None:
    tables = compile_profile(make_profile())
    assert tables.prefill(5000) / TICKS_PER_S == pytest.approx(0.5 + 1000 * 0.4 / 3000, rel=1e-6)
    fleet = small_fleet()
    result = replay(fleet, [ask(prompt=5000, output=5)])
    assert (result.extrapolated_prompts, result.extrapolated_steps) == (1, 5)
    assert replay(small_fleet(), [ask(prompt=3000, output=5)]).extrapolated_steps == 0


def test_pieces_of_a_prompt_add_up_to_the_whole() -> None:
    tables = compile_profile(make_profile())
    for prompt in (40, 513, 3333):
        parts = [tables.piece(done, min(512, prompt - done)) for done in range(0, prompt, 512)]
        assert sum(parts) == tables.prefill(prompt)


@pytest.mark.parametrize("gateway", [{}, {"replica_queue_limit": 2, "gateway_patience_s": 0.3}])
def test_cutting_an_advance_in_pieces_changes_nothing(gateway: dict[str, Any]) -> None:
    def run(cuts: int, *, settling: bool) -> tuple[Any, ...]:
        fleet = small_fleet(itl_limits_s={"s": 0.0125}, **gateway)
        fleet.add_replica("m0", "s", Role.MIXED, make_profile())
        for request in some_requests(rate=30.0 if gateway else 8.0):
            fleet.submit(request)
        for cut in range(1, cuts + 1):
            fleet.advance(60.0 * cut / cuts)
            if settling:
                fleet.settle()
        fleet.settle()
        gaps = fleet.gaps("s")
        counts = {bucket: count for bucket, count in gaps.counts.items() if count}
        refused = fleet.take_timed_out(), fleet.take_rejected()
        return fleet.take_finished(), counts, gaps.late, fleet.energy_joules(), fleet.counts("s"), refused

    once = run(1, settling=False)
    assert once[2] > 0
    assert (once[4].get("timed_out", 0) > 10) == bool(gateway)
    assert run(100, settling=False) == once
    assert run(977, settling=True) == once


def test_two_runs_of_the_same_trace_are_equal() -> None:
    results = [replay(small_fleet(), some_requests()) for _ in range(2)]
    assert results[0] == results[1]


def test_at_equal_times_an_arrival_joins_before_the_boundary() -> None:
    fleet = Fleet()
    fleet.add_replica("m0", "s", Role.MIXED, make_profile())
    prefill = compile_profile(make_profile()).prefill(400) / TICKS_PER_S
    fleet.submit(ask("first", prompt=400, output=50))
    fleet.submit(ask("second", at=prefill, prompt=300, output=1))
    fleet.advance(math.inf)
    second = next(r for r in fleet.take_finished() if r.name == "second")
    assert second.queue_s == 0.0  # the boundary at that very tick already admits it


def test_equal_replicas_are_taken_in_the_order_they_came_and_then_by_work() -> None:
    fleet = Fleet()
    for i in range(3):
        fleet.add_replica(f"m{i}", "s", Role.MIXED, make_profile())
    for i in range(4):
        fleet.submit(ask(f"r{i}", prompt=1000 - i, output=500))
    fleet.advance(0.001)
    assert [fleet.outstanding(f"m{i}") for i in range(3)] == [1, 1, 2]  # the fourth joins the least work
    fleet.advance(math.inf)
    taken = {r.name: r.replica for r in fleet.take_finished()}
    assert [taken[f"r{i}"] for i in range(4)] == ["m0", "m1", "m2", "m2"]


def test_unlike_replicas_share_in_proportion_to_what_they_can_do() -> None:
    slow, fast = make_profile(), make_profile(prefill_s=(0.005, 0.025, 0.125))
    fleet = Fleet()
    fleet.add_replica("slow", "s", Role.PREFILL, slow)
    fleet.add_replica("fast", "s", Role.PREFILL, fast)
    fleet.add_replica("d", "s", Role.DECODE, make_profile())
    result = replay(fleet, [ask(f"r{i}", at=0.0, output=1) for i in range(500)])
    at_fast = sum(r.prefill_replica == "fast" for r in result.finished)
    assert at_fast == pytest.approx(400, abs=1)  # four times as fast, four fifths of the work


def test_a_request_larger_than_the_kv_room_is_rejected_by_name_and_blocks_nobody() -> None:
    result = replay(small_fleet(), [ask("huge", prompt=99_990, output=11), ask("small", at=0.1)])
    assert [r.name for r in result.finished] == ["small"]
    (rejected,) = result.rejected
    assert (rejected.name, rejected.service) == ("huge", "s")
    assert "99,990 prompt and 11 output tokens" in rejected.reason
    assert "100,000" in rejected.reason
    assert result.unfinished == 0


def test_a_request_goes_to_the_replica_with_room_for_it() -> None:
    fleet = Fleet()
    fleet.add_replica("small", "s", Role.MIXED, make_profile(kv_capacity_tokens=2000))
    fleet.add_replica("large", "s", Role.MIXED, make_profile())
    result = replay(fleet, [ask("long", prompt=3000), ask("short")])
    assert {r.name: r.replica for r in result.finished} == {"long": "large", "short": "small"}


def test_a_draining_replica_finishes_what_it_holds_and_gets_nothing_new() -> None:
    fleet = Fleet()
    for name in ("m0", "m1"):
        fleet.add_replica(name, "s", Role.MIXED, make_profile())
    for i in range(4):
        fleet.submit(ask(f"r{i}", output=300))
    fleet.advance(0.05)
    held = fleet.outstanding("m0")
    fleet.drain_replica("m0")
    for i in range(4, 8):
        fleet.submit(ask(f"r{i}", at=0.1))
    fleet.advance(math.inf)
    finished = fleet.take_finished()
    assert sum(r.replica == "m0" for r in finished) == held > 0
    assert len(finished) == 8
    assert fleet.outstanding("m0") == 0
    assert fleet.remove_replica("m0") == 0


def test_the_requests_of_a_failed_replica_begin_again_and_are_counted() -> None:
    fleet = Fleet()
    for name in ("m0", "m1"):
        fleet.add_replica(name, "s", Role.MIXED, make_profile())
    for i in range(6):
        fleet.submit(ask(f"r{i}", output=200))
    fleet.advance(1.0)
    lost = fleet.remove_replica("m0")
    assert lost == 3
    fleet.advance(math.inf)
    finished = {r.name: r for r in fleet.take_finished()}
    assert len(finished) == 6
    assert sum(r.reroutes for r in finished.values()) == fleet.counts("s")["rerouted"] == 3
    again = [r for r in finished.values() if r.reroutes]
    assert all(r.ttft_s > 1.0 and r.replica == "m1" for r in again)


def test_services_do_not_share_replicas() -> None:
    fleet = Fleet()
    fleet.add_replica("a0", "a", Role.MIXED, make_profile())
    fleet.add_replica("b0", "b", Role.MIXED, make_profile())
    result = replay(fleet, [ask(f"r{i}", service="ab"[i % 2]) for i in range(20)])
    assert all(r.replica == f"{r.service}0" for r in result.finished)
    assert [s.finished for s in result.services.values()] == [10, 10]


def test_idle_and_busy_watts_are_those_of_the_profile() -> None:
    fleet = small_fleet()
    fleet.advance(10.0)
    assert fleet.energy_joules() == pytest.approx(2 * 75.0 * 10.0)
    fleet.submit(ask(at=10.0, output=400))
    fleet.advance(10.05)
    assert fleet.replica("p0").draw_watts == 600.0
    fleet.advance(10.5)
    assert (fleet.replica("p0").draw_watts, fleet.replica("d0").draw_watts) == (75.0, 200.0)
    fleet.settle()
    view = fleet.replica("d0")
    assert view.running == 1
    assert 0 < view.output_tokens < 400
    assert view.kv_usage_ratio == pytest.approx((1000 + view.output_tokens) / 100_000)


def test_kv_shortage_preempts_and_everything_still_finishes() -> None:
    fleet = Fleet()
    fleet.add_replica("m0", "s", Role.MIXED, make_profile(kv_capacity_tokens=3000))
    result = replay(fleet, [ask(f"r{i}", prompt=400, output=500) for i in range(12)])
    assert len(result.finished) == 12
    assert sum(r.preemptions for r in result.finished) > 0
    gaps = fleet.gaps("s")
    assert gaps.count == 12 * 499  # a gap across a preemption is one gap


def test_late_gaps_are_counted_exactly_by_gap_and_by_request() -> None:
    limit = 0.0122
    fleet = Fleet(itl_limits_s={"s": limit})
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    fleet.add_replica("d0", "s", Role.DECODE, make_profile(kv_capacity_tokens=4000))
    fleet.add_replica("m0", "s", Role.MIXED, make_profile(kv_capacity_tokens=4000))
    with token_times() as times:
        result = replay(fleet, some_requests(150, rate=20.0))
    late = {f"r{i}": sum(b - a > to_ticks(limit) for a, b in pairwise(made)) for (i, _), made in times.items()}
    assert {r.name: r.late_gaps for r in result.finished} == late
    assert fleet.gaps("s").late == sum(late.values()) > 0
    assert fleet.gaps("s").count == sum(len(made) - 1 for made in times.values())
    assert sum(r.preemptions for r in result.finished) > 0


def test_results_say_percentiles_attainment_and_goodput() -> None:
    slos = {
        "s": (
            Slo(metric=SloMetric.TTFT, percentile_ratio=0.9, limit_s=0.3),
            Slo(metric=SloMetric.ITL, percentile_ratio=0.95, limit_s=0.0115),
        )
    }
    fleet = small_fleet(itl_limits_s=itl_limits(slos))
    result = replay(fleet, some_requests(), slos=slos)
    service = result.services["s"]
    ttft, itl = service.attained
    times = sorted(r.ttft_s for r in result.finished)
    assert ttft.value_s == times[math.ceil(0.9 * len(times)) - 1] == service.ttft_s[0.9]
    assert ttft.within_ratio == pytest.approx(sum(t <= 0.3 for t in times) / len(times))
    assert ttft.is_met == (ttft.value_s <= 0.3)
    assert itl.is_met == (itl.within_ratio >= 0.95)
    good = [r for r in result.finished if r.ttft_s <= 0.3 and r.late_gaps <= 0.05 * (r.output_tokens - 1) + 1e-9]
    assert 0 < len(good) < len(times)
    assert service.goodput_requests_per_s == pytest.approx(len(good) / result.makespan_s)


def test_a_replay_that_stops_early_counts_what_is_unserved() -> None:
    result = replay(small_fleet(), [ask("now"), ask("then", at=99.0)], until_s=50.0)
    assert (len(result.finished), result.unfinished) == (1, 1)


@given(
    step=st.integers(1, 10**11),
    growth=st.integers(0, 10**9),
    steps=st.integers(1, 400),
    sequences=st.integers(1, 9),
    fresh=st.integers(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_a_run_counts_as_its_steps_do(step: int, growth: int, steps: int, sequences: int, fresh: int) -> None:
    run, one_by_one = GapHistogram(), GapHistogram()
    run.add_run(step, growth, steps, sequences, fresh)
    for i in range(steps):
        one_by_one.add(step + i * growth, sequences - (fresh if i == 0 else 0))
    assert run.count == one_by_one.count
    if run.count:
        for ratio in (0.1, 0.5, 0.9, 0.99):  # a tick beside a bucket's edge may fall on either side
            assert run.quantile_s(ratio) == pytest.approx(one_by_one.quantile_s(ratio), rel=0.0101)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60), st.sampled_from([0.01, 0.5, 0.9, 0.95, 1.0]))
def test_gap_percentiles_are_right_within_one_percent(values: list[float], ratio: float) -> None:
    gaps = GapHistogram()
    for value in values:
        gaps.add(to_ticks(value))
    exact = float(np.quantile(values, ratio, method="inverted_cdf"))
    assert gaps.quantile_s(ratio) == pytest.approx(exact, rel=0.0051)


def test_gap_histograms_subtract_and_share() -> None:
    early = GapHistogram()
    early.add(to_ticks(0.010), 5)
    late = GapHistogram(early.counts, early.late)
    late.add(to_ticks(0.050), 15)
    since = late.minus(early)
    assert since.count == 15
    assert since.quantile_s(0.5) == pytest.approx(0.050, rel=0.005)
    assert late.within_ratio(0.030) == pytest.approx(0.25)
    assert math.isnan(GapHistogram().quantile_s(0.5))
    assert GapHistogram().within_ratio(1.0) == 1.0


def test_a_polygon_is_flat_before_the_first_knot_and_continuous() -> None:
    line = Polygon((10, 20, 40), (1e6, 3e6, 3.5e6))
    assert [line.at(x) for x in (0, 9, 10, 15, 20, 30, 40, 60)] == [
        1_000_000, 1_000_000, 1_000_000, 2_000_000, 3_000_000, 3_250_000, 3_500_000, 4_000_000,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prefill_s": (0.1,)}, "prefill_tokens"),
        ({"decode_batches": (4, 4, 16, 64)}, "decode_batches"),
        ({"decode_contexts": (1, 2)}, "decode_contexts"),
        ({"kv_capacity_tokens": 0}, "kv_capacity_tokens"),
        ({"decode_watts_per_gpu": (1.0,)}, "decode_batches"),
    ],
)
def test_a_profile_that_is_no_table_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field) as refused:
        Fleet().add_replica("r", "s", Role.MIXED, replace(make_profile(), **changes))
    assert refused.value.field == field


def test_misuse_is_refused_with_the_name() -> None:
    fleet = small_fleet()
    fleet.advance(5.0)
    with pytest.raises(InvalidInput, match=r"request/late: arrives at 1.0 s"):
        fleet.submit(ask("late", at=1.0))
    with pytest.raises(InvalidInput, match="request/empty"):
        fleet.submit(ask("empty", at=6.0, prompt=0))
    with pytest.raises(InvalidInput, match="replica/p0: exists already"):
        fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    with pytest.raises(InvalidInput, match="replica/nobody: does not exist"):
        fleet.remove_replica("nobody")


def test_first_tokens_are_reported_once_when_asked_for() -> None:
    fleet = Fleet(record_first_tokens=True)
    fleet.add_replica("p0", "s", Role.PREFILL, make_profile())
    fleet.add_replica("d0", "s", Role.DECODE, make_profile())
    fleet.submit(ask(output=500))
    fleet.advance(1.0)
    (first,) = fleet.take_first_tokens()
    assert first.replica_id == "p0"
    assert first.engine_ttft_s == pytest.approx(0.1)
    assert first.ttft_s > first.engine_ttft_s
    fleet.advance(math.inf)
    assert fleet.take_first_tokens() == []
    assert fleet.take_finished()[0].ttft_s == first.ttft_s
