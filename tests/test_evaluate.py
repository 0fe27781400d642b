"""A run of a plan under a policy: its accounts add up, windows change nothing, and it agrees with a plain replay."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from controller.traces_spec import load_of, parse_trace_spec
from solvers.errors import InvalidInput
from solvers.evaluate import Load, Settings, Summary, Wish, evaluate
from solvers.evaluate.run import Seen, counts_of
from solvers.plan import Plan
from solvers.policies.fixed import Fixed
from solvers.problem import Problem
from solvers.simulate import Fleet, SimRequest, itl_limits, replay
from tests.replay_world import RATE, small_case


@lru_cache
def case() -> tuple[Problem, Plan, Load]:
    """One service on a small fleet, its plan, and five minutes of Poisson arrivals at the planned mix."""
    stated, plan = small_case()
    load = load_of({"default/chat": parse_trace_spec("poisson:duration=300")}, stated.demands, {}, 3)
    return stated, plan, load


def evaluated(**settings: Any) -> Summary:
    return evaluate(*case(), Fixed(), Settings(**settings))


class Once:
    """Asks for other counts at its first decision."""

    name, period_s = "once", 60.0

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.seen: list[Seen] = []

    def decide(self, seen: Seen) -> Wish:
        self.seen.append(seen)
        first = self.seen[0].asked
        return Wish(counts={place: self.factor * count for place, count in first.items()})


def test_a_fixed_plan_is_served_as_a_plain_replay_serves_it() -> None:
    stated, plan, load = case()
    slos = {s.name: s.slos for s in stated.services}
    fleet = Fleet(itl_limits_s=itl_limits(slos))
    profiles = {(key.gpu_class, key.config): profile for key, profile in stated.profiles.items()}
    for (pool, location), count in sorted(counts_of(plan).items()):
        for i in range(count):
            profile = profiles[pool.gpu_class, pool.config]
            fleet.add_replica(f"{pool}@{location}#{i}", pool.service, pool.role, profile)
    rows = zip(load.workload.arrival_s, load.workload.prompt_tokens, load.workload.output_tokens, strict=True)
    requests = [
        SimRequest(name=str(i), service="default/chat", arrival_s=float(at), prompt_tokens=int(p), output_tokens=int(o))
        for i, (at, p, o) in enumerate(rows)
    ]
    plain, summary = replay(fleet, requests, slos=slos), evaluated()
    one, other = plain.services["default/chat"], summary.services["default/chat"]
    assert {r: e.value for r, e in other.latencies_s["ttft"].items()} == one.ttft_s
    assert other.latencies_s["itl"][0.95].value == one.itl_s[0.95]
    assert [kept.within_ratio.value for kept in other.slos] == pytest.approx([k.within_ratio for k in one.attained])
    assert other.goodput_requests_per_s.value == pytest.approx(one.goodput_requests_per_s)
    assert summary.end_s == plain.makespan_s
    assert summary.energy_joules == pytest.approx(plain.energy_joules)


def test_windows_and_pools_add_up_to_the_run() -> None:
    summary = evaluated(window_s=20.0)
    chat = summary.services["default/chat"]
    assert sum(window.requests for window in summary.windows) == chat.submitted == chat.finished
    assert sum(p.joules for p in summary.pools) == pytest.approx(summary.energy_joules)
    assert sum(p.output_tokens for p in summary.pools) == chat.output_tokens
    watts = sum(w.watts * (w.end_s - w.start_s) for w in summary.windows)
    assert watts == pytest.approx(summary.energy_joules)
    gpu_s = sum(count * pool.config.gpus for (pool, _), count in counts_of(case()[1]).items()) * summary.end_s
    assert summary.gpu_s == pytest.approx(gpu_s)
    parts = chat.latencies_s
    assert parts["queue"][0.5].value + parts["prefill"][0.5].value <= parts["ttft"][0.99].value


def test_the_length_of_the_windows_changes_no_latency() -> None:
    coarse, fine = evaluated(window_s=100.0), evaluated(window_s=7.0)
    for name in ("ttft", "tpot", "end_to_end"):
        values = [s.services["default/chat"].latencies_s[name][0.99].value for s in (coarse, fine)]
        assert values[0] == values[1]
    assert coarse.energy_joules == pytest.approx(fine.energy_joules)


def test_the_same_run_gives_the_same_numbers() -> None:
    assert repr(evaluated()) == repr(evaluated())


def test_what_a_policy_asks_for_starts_cold_and_costs_from_then_on() -> None:
    stated, plan, load = case()
    policy = Once(2)
    summary = evaluate(stated, plan, load, policy)
    planned = sum(counts_of(plan).values())
    cold_s = max(p.cold_start_s for p in stated.profiles.values())
    assert summary.starts == planned
    seen_ready = [sum(p.ready for p in seen.places.values()) for seen in policy.seen]
    assert seen_ready[0] == planned
    assert seen_ready[1] == planned  # a minute after the first decision none is Ready yet
    assert policy.seen[1].now_s < 60.0 + cold_s
    assert max(seen_ready) == 2 * planned
    fixed = evaluate(stated, plan, load, Fixed())
    assert summary.gpu_s > 1.5 * fixed.gpu_s


def test_a_stopped_replica_serves_what_it_holds() -> None:
    stated, plan, load = case()
    policy = Once(0)
    summary = evaluate(stated, plan, load, policy, Settings(patience_s=30.0))
    chat = summary.services["default/chat"]
    arrived = int((load.workload.arrival_s <= 60.0).sum())
    assert 0.99 * arrived < chat.finished <= arrived  # prompts whose decode side left with them begin again
    assert chat.timed_out == chat.submitted - chat.finished
    assert chat.unfinished == 0
    assert not summary.is_met


def test_nodes_bound_what_can_start() -> None:
    stated, plan, load = case()
    policy = Once(1000)
    summary = evaluate(stated, plan, load, policy)
    gpus = sum(node.gpus_usable for node in stated.nodes)
    assert max(window.gpus for window in summary.windows) <= gpus


def test_a_policy_sees_the_load_of_the_past_only() -> None:
    policy = Once(1)
    evaluate(*case(), policy)
    last = max((seen for seen in policy.seen if seen.now_s < 300.0), key=lambda seen: seen.now_s)
    loads = last.loads["default/chat"]
    assert loads[-1][0] == last.now_s
    assert len(loads) == 4
    assert [rate for _, rate, _ in loads] == pytest.approx([RATE] * len(loads), rel=0.35)


def test_an_overload_is_refuted_beyond_the_runs_scatter() -> None:
    stated, plan, _ = case()
    load = load_of({"default/chat": parse_trace_spec("poisson:rate=200,duration=120")}, stated.demands, {}, 3)
    kept = {k.slo.metric: k for k in evaluate(stated, plan, load, Fixed()).services["default/chat"].slos}
    assert any(k.is_refuted for k in kept.values())
    assert not any(k.is_refuted for k in evaluated().services["default/chat"].slos)


def test_what_cannot_be_run_is_refused() -> None:
    stated, plan, load = case()
    with pytest.raises(InvalidInput, match="are none"):
        evaluate(stated, plan, load_of({}, {}, {}, 1), Fixed())
    with pytest.raises(InvalidInput, match="which the folder lacks"):
        evaluate(replace(stated, services=(), demands={}), plan, load, Fixed())
    with pytest.raises(InvalidInput, match="window"):
        evaluate(stated, plan, load, Fixed(), Settings(window_s=0.0))
    late = replace(load, workload=replace(load.workload, arrival_s=load.workload.arrival_s + 5e6))
    with pytest.raises(InvalidInput, match="the simulation's clock ends at"):
        evaluate(stated, plan, late, Fixed())


def test_times_beyond_the_simulations_clock_are_never() -> None:
    stated, plan, load = case()
    far, never = (evaluate(stated, plan, load, Fixed(), Settings(patience_s=much)) for much in (1e300, math.inf))
    assert far == never
    assert evaluate(stated, plan, load, Fixed(), Settings(until_s=1e300)) == evaluate(stated, plan, load, Fixed())


def test_without_any_replica_nothing_is_served_and_the_run_ends() -> None:
    stated, plan, load = case()
    summary = evaluate(stated, replace(plan, placements=()), load, Fixed())
    assert summary.services["default/chat"].unfinished == load.requests
    assert math.isnan(summary.services["default/chat"].latencies_s["ttft"][0.5].value)


def test_clients_keep_as_many_requests_in_flight_as_there_are() -> None:
    stated, plan, _ = case()
    load = load_of({"default/chat": parse_trace_spec("closed:clients=6,requests=300")}, stated.demands, {}, 3)
    summary = evaluate(stated, plan, load, Fixed())
    chat = summary.services["default/chat"]
    assert (chat.submitted, chat.finished) == (300, 300)
    in_flight = sum(w.requests for w in summary.windows) / summary.end_s * chat.latencies_s["end_to_end"][0.5].value
    assert 0.4 * 6 < in_flight < 2.5 * 6  # Little's law with a median for the mean


def test_shared_prefixes_are_computed_once(tmp_path: Path) -> None:
    stated, plan, _ = case()
    row = '{{"timestamp": {}, "input_length": 4096, "output_length": 4, "hash_ids": {}}}\n'
    alike, apart = tmp_path / "alike.jsonl", tmp_path / "apart.jsonl"
    alike.write_text("".join(row.format(1000 * i, list(range(8))) for i in range(30)))
    apart.write_text("".join(row.format(1000 * i, list(range(8 * i, 8 * i + 8))) for i in range(30)))
    computed = []
    for path in (alike, apart):
        load = load_of({"default/chat": parse_trace_spec(str(path))}, stated.demands, {"default/chat": 1.0}, 3)
        pools = evaluate(stated, plan, load, Fixed()).pools
        computed.append(sum(pool.prompt_tokens for pool in pools))
        assert sum(pool.prompt_tokens + pool.cached_tokens for pool in pools) == 30 * 4096
    assert computed[1] == 30 * 4096
    assert computed[0] < 0.5 * computed[1]
