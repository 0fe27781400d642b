"""Each policy does what the thing it imitates is documented to do."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from controller.traces_spec import load_of, parse_trace_spec
from solvers.errors import InvalidInput
from solvers.evaluate import Seen, Settings, Summary, evaluate
from solvers.evaluate.fleet_state import Place
from solvers.evaluate.run import PlaceSeen, counts_of
from solvers.fleet import Snapshot
from solvers.policies import POLICIES, make_policy
from solvers.policies.hpa import QueueAutoscaler
from solvers.policies.keda import RatioAutoscaler
from solvers.policies.replan import mix_of
from solvers.policies.scaling import Autoscaler
from solvers.simulate import FinishedRequest
from tests.replay_world import small_case


def place() -> Place:
    return min(counts_of(small_case()[1]))


def seen(
    now_s: float, asked: int, *, ready: int, starting: int = 0, waiting: int = 0, queued: int = 0, rate: float = 20.0
) -> Seen:
    """One place of one service as a policy sees it."""
    stated, _ = small_case()
    return Seen(
        now_s=now_s,
        problem=stated,
        asked={place(): asked},
        places={place(): PlaceSeen(ready=ready, starting=starting, waiting=waiting, running=0)},
        queued={"default/chat": queued},
        loads={"default/chat": [(now_s, rate, 60.0)]},
        ended=(),
        snapshot=Snapshot(gpu_classes={}, nodes=(), domains={}, replicas=(), desired={}),
    )


def hpa(policy: QueueAutoscaler, view: Seen) -> int:
    return policy.decide(view).counts[place()]


# ---------------------------------------------------------------- HPA


def test_hpa_scales_by_the_ratio_of_queue_to_target() -> None:
    assert hpa(QueueAutoscaler(5.0), seen(15, 4, ready=4, waiting=40)) == 8
    assert hpa(QueueAutoscaler(5.0), seen(15, 4, ready=4, waiting=26)) == 6  # ceil(4 * 1.3)


def test_hpa_tolerates_a_tenth() -> None:
    assert hpa(QueueAutoscaler(5.0), seen(15, 4, ready=4, waiting=21)) == 4
    assert hpa(QueueAutoscaler(5.0), seen(15, 4, ready=4, waiting=18)) == 4


def test_hpa_counts_the_queue_of_the_gateway() -> None:
    assert hpa(QueueAutoscaler(5.0), seen(15, 4, ready=4, queued=40)) == 8


def test_hpa_counts_pods_that_start_as_empty_when_it_scales_up() -> None:
    assert hpa(QueueAutoscaler(5.0), seen(15, 8, ready=4, starting=4, waiting=40)) == 8  # 40 over 8 is the target


def test_hpa_grows_by_at_most_four_pods_or_double() -> None:
    assert hpa(QueueAutoscaler(5.0), seen(15, 2, ready=2, waiting=5000)) == 6
    assert hpa(QueueAutoscaler(5.0), seen(15, 20, ready=20, waiting=5000)) == 40


def test_hpa_shrinks_only_after_five_minutes_and_never_to_nothing() -> None:
    policy = QueueAutoscaler(5.0)
    assert hpa(policy, seen(0, 4, ready=4, waiting=20)) == 4
    assert hpa(policy, seen(15, 4, ready=4)) == 4
    assert hpa(policy, seen(300, 4, ready=4)) == 4
    assert hpa(policy, seen(301, 4, ready=4)) == 1
    assert hpa(policy, seen(700, 1, ready=1)) == 1


def test_hpa_without_metrics_changes_nothing() -> None:
    assert hpa(QueueAutoscaler(5.0), seen(15, 4, ready=0, starting=4, queued=900)) == 4


def test_an_autoscaler_keeps_its_bounds() -> None:
    assert Autoscaler(least=1, most=3).settle(0.0, 2, 9) == 3


# ---------------------------------------------------------------- KEDA


def test_keda_keeps_the_planned_ratio_of_replicas_to_load() -> None:
    _, plan = small_case()
    count = counts_of(plan)[place()]
    policy = RatioAutoscaler(plan)
    assert policy.decide(seen(15, count, ready=count, rate=20.0)).counts[place()] == count
    grown = policy.decide(seen(30, count, ready=count, rate=60.0)).counts[place()]
    assert grown == pytest.approx(3 * count, abs=1)


def test_keda_tolerates_a_tenth() -> None:
    _, plan = small_case()
    count = counts_of(plan)[place()]
    assert RatioAutoscaler(plan).decide(seen(15, count, ready=count, rate=21.5)).counts[place()] == count


# ---------------------------------------------------------------- planning ones


def finished(prompt: int, output: int) -> FinishedRequest:
    names = {"name": "", "service": "default/chat", "prefill_replica": "", "replica": ""}
    zeros: dict[str, Any] = dict.fromkeys(FinishedRequest.__dataclass_fields__, 0)
    return FinishedRequest(**(zeros | names | {"prompt_tokens": prompt, "output_tokens": output}))


def test_sizes_of_late_keep_their_mean_work() -> None:
    requests = [finished(100 + 37 * i % 3000, 1 + 11 * i % 400) for i in range(600)]
    mix = mix_of(requests)
    assert sum(b.weight_ratio for b in mix) == pytest.approx(1.0)
    for field in ("prompt_tokens", "output_tokens"):
        true = sum(getattr(r, field) for r in requests) / len(requests)
        assert sum(b.weight_ratio * getattr(b, field) for b in mix) == pytest.approx(true, rel=0.01)


@lru_cache
def surge(name: str) -> Summary:
    """Twice the planned load for six minutes."""
    stated, plan = small_case()
    load = load_of({"default/chat": parse_trace_spec("poisson:rate=40,duration=300")}, stated.demands, {}, 3)
    return evaluate(stated, plan, load, make_policy(name, stated, plan), Settings(patience_s=30.0))


@pytest.mark.parametrize("name", [n for n in POLICIES if n not in ("fixed", "watt-clamp")])
def test_every_policy_that_may_grow_does_better_than_none_in_a_surge(name: str) -> None:
    assert surge(name).starts > 0
    assert surge(name).in_slo_ratio > surge("fixed").in_slo_ratio


def test_ours_never_draws_more_than_is_usable() -> None:
    for name in ("ours", "watt-clamp", "greedy", "per-service"):
        assert all(domain.peak_watts <= domain.usable_watts for domain in surge(name).domains)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'luck' is unknown; use some of fixed, hpa"):
        make_policy("luck", *small_case())
