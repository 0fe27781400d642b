"""Whole workloads, prefix caches, links, caps, clients and policies of the simulation, one at a time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.engine import EngineProfile, Role
from solvers.engine.prefill import prefill_together_s
from solvers.errors import InvalidInput, OutOfRange
from solvers.simulate import Clients, Fleet, Routing, SimRequest, Workload, replay, serve
from solvers.simulate.gaps import RUN, count_gaps, count_of, exact_quantiles, late_ratio
from solvers.simulate.kernel.records import FINISHED
from solvers.simulate.prefixes import build_tree
from solvers.simulate.results import GapHistogram
from solvers.simulate.tables import TICKS_PER_S, compile_profile
from solvers.workload import Slo, SloMetric
from tests.sim_brute import make_profile
from tests.sim_cases import as_workload, ask, random_case, simulated, some_requests

BLOCK = 100


def shared(prompts: list[tuple[float, list[int]]], tail: int = 1, output: int = 2) -> Workload:
    """Requests of (arrival, block ids), each with a few tokens more than its blocks."""
    sizes = [BLOCK * len(ids) + tail for _, ids in prompts]
    asked = [
        SimRequest(name=str(i), service="s", arrival_s=at, prompt_tokens=size, output_tokens=output)
        for i, ((at, _), size) in enumerate(zip(prompts, sizes, strict=True))
    ]
    return as_workload(asked, [ids for _, ids in prompts], BLOCK)


def one_mixed(**changes: Any) -> Fleet:
    fleet = Fleet(record_runs=True)
    fleet.add_replica("m", "s", Role.MIXED, make_profile(**changes))
    return fleet


# ---------------------------------------------------------------- prefix caches


def test_a_cached_prefix_shortens_prefill_to_what_the_curve_says() -> None:
    outcome = serve(one_mixed(), shared([(0.0, [1, 2, 3]), (1.0, [1, 2, 3]), (2.0, [1, 2, 9]), (3.0, [4])]))
    assert outcome.served.cached_tokens.tolist() == [0, 300, 200, 0]
    tables = compile_profile(make_profile())
    expected = [tables.prefill(301), tables.prefill(1), tables.behind_prefix(200, 101)]
    assert (outcome.served.prefill_s[:3] * TICKS_PER_S).round().tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("is_measured", [False, True])
def test_prefill_behind_a_prefix_is_what_the_engine_model_says(is_measured: bool) -> None:
    changes = {"prefill_cached_tokens": (512, 2048), "prefill_cached_ratio": ((1.2, 1.1, 1.1), (1.6, 1.4, 1.3))}
    profile = make_profile(**(changes if is_measured else {}))
    tables = compile_profile(profile)
    for cached in (0, 100, 512, 1000, 2048):
        for new in (50, 100, 700, 1500):
            expected = prefill_together_s(profile, new, cached_tokens=cached)
            # times between prefixes are linear in both forms; slopes are whole ticks a token
            assert tables.behind_prefix(cached, new) / TICKS_PER_S == pytest.approx(expected, rel=1e-6)


def test_the_block_of_the_last_token_is_computed_again() -> None:
    outcome = serve(one_mixed(), shared([(0.0, [1, 2]), (1.0, [1, 2])], tail=0))
    assert outcome.served.cached_tokens.tolist() == [0, BLOCK]


def test_the_oldest_unused_prefix_is_evicted_from_its_end() -> None:
    asked = [(0.0, [1, 2, 3]), (1.0, [7, 8, 9]), (2.0, [20, 21, 22]), (3.0, [7, 8, 9]), (4.0, [1, 2, 3])]
    outcome = serve(one_mixed(kv_capacity_tokens=7 * BLOCK + 10), shared(asked))
    assert outcome.served.cached_tokens.tolist() == [0, 0, 0, 300, 100]  # the first lost two of its three blocks


def test_two_that_compute_the_same_prefix_at_once_keep_it_once() -> None:
    fleet = one_mixed(prefill_chunk_tokens=4000)
    fleet.submit_workload(shared([(0.0, [1, 2, 3]), (0.0, [1, 2, 3])], output=1000))
    fleet.advance(1.0)
    fleet.settle()
    view = fleet.replica("m")
    held = 3 * BLOCK + 2 * 1 + view.output_tokens
    assert view.kv_usage_ratio == pytest.approx(held / 100_000)


def test_prefix_caching_can_be_switched_off_and_more_blocks_later_are_refused() -> None:
    asked = shared([(0.0, [1, 2]), (1.0, [1, 2])])
    fleet = Fleet(prefix_caching=False, record_runs=True)
    fleet.add_replica("m", "s", Role.MIXED, make_profile())
    assert serve(fleet, asked).served.cached_tokens.sum() == 0
    other = one_mixed()
    other.submit_workload(asked)
    with pytest.raises(InvalidInput, match="all requests that share blocks at once"):
        other.submit_workload(asked)


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_nodes_of_the_tree_are_stretches_of_the_very_same_requests(ids: list[list[int]]) -> None:
    tree = build_tree(shared([(0.0, some) for some in ids]))
    users: dict[tuple[int, ...], set[int]] = {}
    for i, some in enumerate(ids):
        for depth in range(1, len(some) + 1):
            users.setdefault(tuple(some[:depth]), set()).add(i)
    assert int(tree.length.sum()) == len(users)
    assert len(tree.parent) == len({(frozenset(who)) for who in users.values()})
    for i, some in enumerate(ids):
        blocks, node = 0, int(tree.path[i])
        assert node < 0 or tree.start[node] + tree.length[node] == len(some)
        while node >= 0:
            blocks, node = blocks + int(tree.length[node]), int(tree.parent[node])
        assert blocks == len(some)


# ---------------------------------------------------------------- policies


def policy_shares(routing: Routing, weights: tuple[float, float], requests: Workload) -> Counter[str]:
    fleet = Fleet(routing={"s": routing}, record_runs=True)
    for i, weight in enumerate(weights):
        fleet.add_replica(f"m{i}", "s", Role.MIXED, make_profile(), weight=weight)
    outcome = serve(fleet, requests)
    return Counter(outcome.replicas[r] for r in outcome.served.replica.tolist())


def test_weighted_routing_shares_by_weight_whatever_the_load() -> None:
    found = policy_shares(Routing.WEIGHTED, (3.0, 1.0), as_workload(some_requests(400, rate=5.0)))
    assert found == {"m0": 300, "m1": 100}


def test_least_loaded_counts_requests_and_least_work_what_they_ask() -> None:
    asked = [ask("long", prompt=4000, output=3000), *(ask(f"r{i}", at=0.6 + i * 1e-3, prompt=10) for i in range(10))]
    fleet = {routing: policy_shares(routing, (1.0, 1.0), as_workload(asked)) for routing in Routing}
    assert fleet[Routing.LEAST_LOADED] == {"m0": 6, "m1": 5}
    assert fleet[Routing.LEAST_WORK]["m0"] >= 5


def test_prefix_aware_routing_sends_alike_prompts_to_where_their_prefix_is() -> None:
    prompts = [(i * 1.0, [10 * (i % 4) + k for k in range(8)]) for i in range(200)]
    hits = {}
    for routing in (Routing.LEAST_WORK, Routing.PREFIX_AWARE):
        fleet = Fleet(routing={"s": routing}, record_runs=True)
        for i in range(4):
            fleet.add_replica(f"m{i}", "s", Role.MIXED, make_profile(kv_capacity_tokens=12 * BLOCK))
        hits[routing] = float(serve(fleet, shared(prompts)).served.cached_tokens.mean())
    assert hits[Routing.PREFIX_AWARE] > 0.95 * 8 * BLOCK
    assert hits[Routing.LEAST_WORK] < 0.5 * hits[Routing.PREFIX_AWARE]


def test_the_router_sees_what_a_run_under_way_has_pushed_out_of_the_cache() -> None:
    """The second grows for hundreds of steps in one run; half-way its tokens have taken the room of the prefix."""
    profile = make_profile(
        kv_capacity_tokens=1000,
        prefill_s=(0.2, 1.0, 5.0),
        decode_step_s=((0.001,) * 3, (0.002,) * 3, (0.003,) * 3, (0.004,) * 3),
    )
    prefix = [1, 2, 3, 4, 5]
    requests = [
        ask("brings the prefix", prompt=501, output=1),
        ask("goes to the other", at=1.0, prompt=600, output=1),
        ask("grows", at=2.0, prompt=301, output=690),
    ]
    went = {}
    for at in (2.5, 3.03):
        asked = [*requests, ask("again", at=at, prompt=501, output=1)]
        fleet = Fleet(routing={"s": Routing.PREFIX_AWARE}, record_runs=True)
        for i in range(2):
            fleet.add_replica(f"m{i}", "s", Role.MIXED, profile)
        outcome = serve(fleet, as_workload(asked, [prefix, [], [], prefix], BLOCK))
        went[at] = dict(zip(outcome.served.row.tolist(), outcome.served.replica.tolist(), strict=True))
    assert went == {2.5: {0: 0, 1: 1, 2: 0, 3: 0}, 3.03: {0: 0, 1: 1, 2: 0, 3: 1}}


# ---------------------------------------------------------------- links


def test_transfers_share_a_named_link_equally_and_own_links_take_turns() -> None:
    ends = {}
    for name in ("spine", None):
        fleet = Fleet(record_runs=True)
        fleet.add_link("spine", 1e9)
        for i in range(2):
            fleet.add_replica(f"p{i}", "s", Role.PREFILL, make_profile(transfer_bytes_per_s=1e9), link=name)
        fleet.add_replica("d", "s", Role.DECODE, make_profile())
        outcome = serve(fleet, as_workload([ask("a", prompt=1000), ask("b", prompt=1000)]))
        ends[name] = outcome.served.kv_transfer_s.tolist()
    assert ends[None] == pytest.approx([0.1, 0.1])
    assert ends["spine"] == pytest.approx([0.2, 0.2])


def test_a_link_has_one_name_and_some_bandwidth_and_is_declared_first() -> None:
    fleet = Fleet()
    fleet.add_link("spine", 1e9)
    with pytest.raises(InvalidInput, match="exists already"):
        fleet.add_link("spine", 2e9)
    with pytest.raises(InvalidInput, match="carries 0"):
        fleet.add_link("leaf", 0.0)
    with pytest.raises(InvalidInput, match="names no link: 'root'"):
        fleet.add_replica("p", "s", Role.PREFILL, make_profile(), link="root")
    with pytest.raises(InvalidInput, match=r"has weight 0\.0"):
        fleet.add_replica("p", "s", Role.PREFILL, make_profile(), weight=0.0)


# ---------------------------------------------------------------- caps


def cappable() -> EngineProfile:
    """At 300 W prefill runs at half its speed and decoding at four fifths."""
    return make_profile(cap_watts_per_gpu=(300.0, 700.0), prefill_speed_ratio=(0.5, 1.0), decode_speed_ratio=(0.8, 1.0))


def test_a_cap_stretches_the_rest_of_the_step_under_way_and_all_that_follow() -> None:
    fleet = Fleet(record_runs=True)
    fleet.add_replica("p", "s", Role.PREFILL, cappable())
    fleet.add_replica("d", "s", Role.DECODE, cappable())
    fleet.submit(ask(prompt=1000, output=5))
    fleet.advance(0.04)
    fleet.set_cap("p", 300.0)
    assert fleet.replica("p").draw_watts == 300.0
    fleet.set_cap("d", 300.0)
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert done.prefill_s == pytest.approx(0.04 + 0.06 / 0.5)
    free = replay_alone(make_profile()).tpot_s
    assert done.tpot_s == pytest.approx(free / 0.8, rel=1e-4)


def replay_alone(profile: EngineProfile) -> Any:
    fleet = Fleet()
    fleet.add_replica("p", "s", Role.PREFILL, profile)
    fleet.add_replica("d", "s", Role.DECODE, profile)
    return replay(fleet, [ask(prompt=1000, output=5)]).finished[0]


def test_a_cap_put_on_and_lifted_within_a_step_leaves_its_rest_as_it_was() -> None:
    fleet = Fleet()
    fleet.add_replica("m", "s", Role.MIXED, cappable())
    fleet.submit(ask(prompt=500, output=1))
    whole = compile_profile(cappable()).prefill(500) / TICKS_PER_S
    fleet.advance(0.01)
    fleet.set_cap("m", 300.0)
    fleet.advance(0.03)  # 20 ms at half speed do 10 ms of work
    fleet.set_cap("m", None)
    fleet.advance(math.inf)
    (done,) = fleet.take_finished()
    assert done.ttft_s == pytest.approx(whole + 0.01, abs=1e-9)


def test_a_cap_lower_than_any_known_is_refused() -> None:
    fleet = Fleet()
    fleet.add_replica("m", "s", Role.MIXED, cappable(), cap_watts=500.0)
    with pytest.raises(OutOfRange, match="200 W is below the lowest cap known"):
        fleet.set_cap("m", 200.0)


# ---------------------------------------------------------------- clients


def test_clients_keep_their_number_in_flight_and_obey_littles_law() -> None:
    rng = np.random.default_rng(4)
    asked = [ask(f"r{i}", prompt=int(rng.integers(10, 2000)), output=int(rng.integers(1, 60))) for i in range(400)]
    fleet = one_mixed()
    count, think_s = 7, 0.02
    outcome = serve(fleet, clients=[Clients(count=count, workload=as_workload(asked), start_s=1.0, think_s=think_s)])
    served = outcome.served
    assert len(served.row) == 400
    assert served.arrival_s.min() == 1.0
    changes = sorted([(at, 1) for at in served.arrival_s] + [(at, -1) for at in served.end_s])
    assert max(np.cumsum([step for _, step in changes])) == count
    span = outcome.makespan_s - 1.0
    in_cycles = float((served.end_to_end_s + think_s).sum())
    longest = float(served.end_to_end_s.max()) + think_s
    assert count * (span - longest) <= in_cycles <= count * (span + think_s)  # X * (R + Z) = N, but for the ends


def test_no_clients_are_refused() -> None:
    with pytest.raises(InvalidInput, match="are 0 that think"):
        Fleet().add_clients(Clients(count=0, workload=as_workload([ask()])))


# ---------------------------------------------------------------- order and cuts


def test_at_equal_times_arrivals_come_before_links_links_before_boundaries_and_giving_up_last() -> None:
    """A prompt lands at the very tick at which the decode replica's step ends, and joins the next one."""
    profile = make_profile()
    step = compile_profile(profile).row(1).at(1000)
    fleet = Fleet()
    fleet.add_link("spine", 100_000 * TICKS_PER_S / (step // 10))  # ten tokens take one decode step
    fleet.add_replica("p", "s", Role.PREFILL, profile, link="spine")
    fleet.add_replica("d", "s", Role.DECODE, profile)
    fleet.submit(ask("first", prompt=1000, output=400))
    fleet.advance(math.inf)
    (alone,) = fleet.take_finished()
    assert alone.kv_transfer_s == pytest.approx(100 * step / TICKS_PER_S, rel=1e-9)
    assert alone.queue_s == 0.0  # the boundary at the tick of the arrival sees it


class Peeking(Fleet):
    """Looks at the clock many more times, and settles each time."""

    def advance(self, until_s: float) -> None:
        for at in np.linspace(self.now_s, min(until_s, self.now_s + 5.0), 50)[1:-1]:
            super().advance(float(at))
            self.settle()
        super().advance(until_s)


@pytest.mark.parametrize("seed", [3, 5, 10, 20, 26])
def test_cutting_time_changes_nothing_with_everything_in_it(seed: int) -> None:
    whole, pieces = simulated(random_case(seed)), simulated(random_case(seed), kind=Peeking)
    assert pieces.take_rows(FINISHED).tobytes() == whole.take_rows(FINISHED).tobytes()
    assert pieces.meters().tobytes() == whole.meters().tobytes()


def test_memory_is_given_back_while_a_long_trace_goes_by() -> None:
    fleet = Fleet()
    fleet.add_replica("m", "s", Role.MIXED, make_profile())
    sizes = []
    for start in range(30):
        for i in range(1000):
            fleet.submit(ask(f"{start}-{i}", at=start * 100 + i * 0.05, prompt=20, output=2))
        fleet.advance((start + 1) * 100.0)
        assert len(fleet.take_finished()) == 1000
        sizes.append(fleet.requests_in_memory)
    assert max(sizes) < 6000


# ---------------------------------------------------------------- exact percentiles


def test_percentiles_of_gaps_are_those_of_all_gaps_one_by_one() -> None:
    rng = np.random.default_rng(1)
    runs = np.zeros(300, RUN)
    runs["step"], runs["steps"] = rng.integers(1, 10**11, 300), rng.integers(1, 40, 300)
    runs["growth"] = rng.integers(0, 10**9, 300) * rng.integers(0, 2, 300)
    runs["batch"] = rng.integers(1, 9, 300)
    runs["fresh"] = rng.integers(0, runs["batch"] + 1)
    each = [
        step + i * growth
        for _, step, growth, _, steps, batch, fresh in runs.tolist()
        for i in range(steps)
        for _ in range(batch - fresh if i == 0 else batch)
    ]
    assert count_of(runs) == len(each)
    ratios = (0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
    exact = np.quantile(np.array(each), ratios, method="inverted_cdf")
    assert list(exact_quantiles(runs, ratios).values()) == exact.tolist()
    limit = int(exact[1])
    assert late_ratio(runs, limit) == pytest.approx(sum(gap > limit for gap in each) / len(each), rel=1e-12)
    assert exact_quantiles(runs[:0], ratios) == {}


def test_many_rows_fall_into_the_buckets_of_single_ones() -> None:
    rng = np.random.default_rng(2)
    runs = np.zeros(500, RUN)
    runs["step"], runs["steps"] = rng.integers(10**9, 10**11, 500), rng.integers(1, 90, 500)
    runs["growth"], runs["batch"] = rng.integers(0, 10**8, 500), rng.integers(1, 9, 500)
    runs["fresh"], runs["replica"] = rng.integers(0, 2, 500), rng.integers(0, 3, 500)
    at_once = [GapHistogram() for _ in range(3)]
    one_by_one = [GapHistogram() for _ in range(3)]
    count_gaps(runs, at_once)
    for i in range(len(runs)):
        count_gaps(runs[i : i + 1], one_by_one)
    for some, other in zip(at_once, one_by_one, strict=True):
        assert some.count == other.count
        for ratio in (0.1, 0.5, 0.9, 0.99):  # a tick beside a bucket's edge may fall on either side
            assert some.quantile_s(ratio) == pytest.approx(other.quantile_s(ratio), rel=0.0101)


def test_an_outcome_says_what_the_objects_say() -> None:
    requests = some_requests(300, rate=20.0)
    slos = {
        "s": (
            Slo(metric=SloMetric.TTFT, percentile_ratio=0.9, limit_s=0.3),
            Slo(metric=SloMetric.ITL, percentile_ratio=0.95, limit_s=0.0115),
        )
    }

    def fleet() -> Fleet:
        made = Fleet(itl_limits_s={"s": 0.0115}, record_runs=True)
        made.add_replica("m0", "s", Role.MIXED, make_profile(kv_capacity_tokens=9000))
        made.add_replica("m1", "s", Role.MIXED, make_profile(kv_capacity_tokens=9000))
        return made

    outcome, result = serve(fleet(), as_workload(requests)), replay(fleet(), requests, slos=slos)
    service = result.services["s"]
    assert outcome.quantiles_s("ttft_s", "s") == service.ttft_s
    assert outcome.served.ttft_s.tolist() == [r.ttft_s for r in result.finished]
    assert outcome.served.queue_s.tolist() == [r.queue_s for r in result.finished]
    assert outcome.goodput_requests_per_s("s", slos["s"]) == service.goodput_requests_per_s
    assert [outcome.within_ratio("s", slo) for slo in slos["s"]] == pytest.approx(
        [kept.within_ratio for kept in service.attained], rel=1e-12
    )
    for ratio, value in outcome.itl_quantiles_s("s").items():
        assert value == pytest.approx(service.itl_s[ratio], rel=0.006)
    assert float(outcome.joules.sum()) == pytest.approx(result.energy_joules)
    assert (outcome.unfinished, outcome.makespan_s) == (0, result.makespan_s)
    assert outcome.served.preemptions.sum() > 0


def test_a_workload_may_come_in_any_order_and_not_before_now() -> None:
    requests = some_requests(50)
    order = np.random.default_rng(0).permutation(len(requests))
    workload = as_workload(requests)
    names = ("arrival_s", "service", "prompt_tokens", "output_tokens")
    mixed_up = replace(workload, **{name: getattr(workload, name)[order] for name in names}, names=())
    ends = [serve(one_mixed(), some).served.end_s.tolist() for some in (workload, mixed_up)]
    assert ends[0] == ends[1]
    fleet = one_mixed()
    fleet.advance(5.0)
    with pytest.raises(InvalidInput, match=r"begin at or after 5\.0 s"):
        fleet.submit_workload(workload)
