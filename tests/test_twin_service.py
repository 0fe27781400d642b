"""The fleet twin: what requests meet, how SLOs fare over windows, and where the traffic comes from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.traces import TraceRequest
from controller.traces_made import synthetic_trace
from solvers.errors import InvalidInput
from tests.simcluster.twin import parse_traffic
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_metrics import gateway_metrics
from tests.simcluster.twin_traffic import Traffic
from tests.twin_world import (
    SERVICE,
    SLOS,
    busy_twin,
    parse,
    pod,
    run,
    steady,
    value,
    view,
)

# ---------------------------------------------------------------- attainment


def test_windows_forget_and_the_whole_run_does_not() -> None:
    twin = TwinFleet([Traffic(SERVICE, steady(3000))])
    twin.apply(view())
    run(twin, 30.0)
    twin.apply(view(pod("a"), pod("b", on="n2")))  # a backlog of 150 late requests first
    run(twin, 300.0)
    state = twin.state()["services"][SERVICE]
    whole, window = state["whole_run"], state["windows"]["60s"]
    assert window["seconds"] == pytest.approx(60.0, abs=11.0)
    assert window["slos"][0]["within_ratio"] == 1.0
    assert whole["slos"][0]["within_ratio"] < 0.95
    assert not whole["slos"][0]["is_met"]
    assert whole["slos"][0]["value_s"] > 0.5 > window["slos"][0]["value_s"]
    assert whole["slos"][1]["within_ratio"] < window["slos"][1]["within_ratio"]  # prompts beside decode steps
    assert whole["in_slo_ratio"] < 1.0 == window["in_slo_ratio"]
    assert json.loads(json.dumps(state)) == state
    twin.reset()
    run(twin, 320.0)
    assert twin.state()["services"][SERVICE]["whole_run"]["in_slo_ratio"] == 1.0


def test_other_slos_begin_a_new_judgement() -> None:
    twin = busy_twin()
    harder = (replace(SLOS[0], limit_s=1e-4), SLOS[1])
    changed = view(pod("p", "prefill"), pod("d", "decode"), pod("m", on="n2"))
    service = replace(changed.services[SERVICE], slos=harder)
    twin.apply(replace(changed, services={SERVICE: service}))
    run(twin, 80.0)
    judged = twin.state()["services"][SERVICE]["whole_run"]
    assert judged["slos"][0]["limit_s"] == 1e-4
    assert judged["slos"][0]["within_ratio"] == 0.0
    assert judged["first_tokens"] == pytest.approx(100, abs=3)


def service_of(twin: TwinFleet) -> dict[str, Any]:
    state: dict[str, Any] = twin.state()["services"][SERVICE]
    return state


def test_requests_that_nobody_takes_are_given_up_after_thirty_seconds_and_miss_their_slos() -> None:
    twin = TwinFleet([Traffic(SERVICE, steady())])
    twin.apply(view())
    run(twin, 60.0)
    service, series = service_of(twin), parse(gateway_metrics(twin))
    assert (service["requests"], service["timed_out"], service["queued"]) == (301, 151, 150)
    assert service["outstanding"] == 150
    assert value(series, "inference_objective_request_error_total", error_code="ServiceUnavailable") == 151
    assert value(series, "inference_objective_request_error_total", error_code="ModelServerError") == 0
    assert value(series, "inference_objective_request_ttft_seconds_count") == 0  # there was no first token
    whole = service["whole_run"]
    assert (whole["timed_out"], whole["first_tokens"], whole["in_slo_ratio"]) == (151, 0, 0.0)
    assert whole["slos"][0]["within_ratio"] == 0.0
    assert whole["slos"][0]["value_s"] == pytest.approx(30.0, rel=0.01)
    assert whole["ttft_s"]["p50"] == pytest.approx(30.0, rel=0.01)
    twin.apply(view(pod("a"), pod("b", on="n2")))
    run(twin, 240.0)
    service = service_of(twin)
    whole, window = service["whole_run"], service["windows"]["60s"]
    assert service["timed_out"] == whole["timed_out"] < 175
    assert whole["in_slo_ratio"] < whole["finished"] / (whole["finished"] + whole["timed_out"])
    late = whole["timed_out"] / (whole["first_tokens"] + whole["timed_out"])
    assert whole["slos"][0]["within_ratio"] < 1 - late
    assert (window["timed_out"], window["in_slo_ratio"]) == (0, 1.0)


def test_too_large_requests_miss_their_slos_too() -> None:
    sizes = (TraceRequest(arrival_s=0.0, prompt_tokens=500, output_tokens=5),
             TraceRequest(arrival_s=1.0, prompt_tokens=200_000, output_tokens=5))  # fmt: skip
    twin = TwinFleet([Traffic(SERVICE, sizes)])
    twin.apply(view(pod("a")))
    run(twin, 99.5)
    service = service_of(twin)
    whole = service["whole_run"]
    assert (service["finished"], service["rejected"], service["outstanding"]) == (50, 50, 0)
    assert (whole["in_slo_ratio"], whole["slos"][0]["within_ratio"], whole["slos"][0]["is_met"]) == (0.5, 0.5, False)
    errors = parse(gateway_metrics(twin))
    assert value(errors, "inference_objective_request_error_total", error_code="ModelServerError") == 50


def test_windows_tell_arrivals_even_when_nobody_serves() -> None:
    flow = Traffic(SERVICE, steady(3000))
    flow.surge(3.0, start_s=300.0, duration_s=100.0)
    twin = TwinFleet([flow])
    twin.apply(view())
    run(twin, 200.0)
    window = service_of(twin)["windows"]["60s"]
    assert window["offered_requests_per_s"] == pytest.approx(5.0, rel=0.01)
    assert window["first_tokens"] == 0
    run(twin, 400.0)
    assert service_of(twin)["windows"]["60s"]["offered_requests_per_s"] == pytest.approx(15.0, rel=0.02)
    twin.reset()
    assert service_of(twin)["whole_run"]["offered_requests_per_s"] == 0.0


@pytest.mark.parametrize("patience_s", [30.0, math.inf])
def test_an_overload_is_over_soon_after_its_surge_only_when_the_gateway_gives_up(patience_s: float) -> None:
    flow = Traffic(SERVICE, steady(3000))
    flow.surge(20.0, start_s=60.0, duration_s=60.0)
    twin = TwinFleet([flow], patience_s=patience_s)
    twin.apply(view(pod("p", "prefill"), pod("d", "decode")))
    run(twin, 100.0)
    assert service_of(twin)["queued"] > 500
    run(twin, 270.0)
    service = service_of(twin)
    assert (service["timed_out"] > 1000) == (service["queued"] == 0) == (patience_s == 30.0)
    assert (service["windows"]["60s"]["in_slo_ratio"] > 0.99) == (patience_s == 30.0)


@pytest.mark.parametrize("patience_s", [30.0, math.inf])
def test_requests_without_a_decode_pod_wait_at_the_gateway_and_the_service_recovers(patience_s: float) -> None:
    """No prompt is computed that nobody could decode, except those that were on their way."""
    twin = TwinFleet([Traffic(SERVICE, steady(3000))], patience_s=patience_s)
    twin.apply(view(pod("p", "prefill"), pod("d", "decode")))
    run(twin, 40.0)
    twin.apply(view(pod("p", "prefill")))
    run(twin, 140.0)
    stuck = service_of(twin)
    assert twin.fleet.replica("uid-p").kv_usage_ratio < 0.01
    assert (stuck["timed_out"] > 0) == (patience_s == 30.0)
    assert stuck["queued"] == pytest.approx(150 if patience_s == 30.0 else 500, abs=3)  # 5 a second
    twin.apply(view(pod("p", "prefill"), pod("d2", "decode", on="n2")))
    run(twin, 400.0)
    service = service_of(twin)
    assert service["queued"] == 0
    assert service["timed_out"] == stuck["timed_out"]  # prefill is fast enough for those who still waited
    assert service["windows"]["60s"]["in_slo_ratio"] == 1.0
    assert service["finished"] + service["timed_out"] + service["outstanding"] == service["requests"]
    assert service["outstanding"] < 10


# ---------------------------------------------------------------- traffic


def arrivals(flow: Traffic, until_s: float, step_s: float = 0.7) -> list[float]:
    return [
        r.arrival_s for i in range(1, math.ceil(until_s / step_s) + 1) for r in flow.until(min(until_s, i * step_s))
    ]


def test_traffic_repeats_its_trace_for_ever() -> None:
    flow = Traffic(SERVICE, steady(10, per_s=5.0))
    assert arrivals(flow, 100.0) == pytest.approx([i / 5 for i in range(501)], abs=1e-9)


def test_traffic_is_scaled_to_the_asked_rate() -> None:
    flow = Traffic(SERVICE, synthetic_trace(1, 1800.0), requests_per_s=20.0, seed=4)
    assert flow.requests_per_s == pytest.approx(20.0, rel=0.03)
    assert len(arrivals(flow, 1800.0)) == pytest.approx(36_000, rel=0.03)


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0, 2.5])
def test_a_surge_multiplies_arrivals_while_it_lasts(factor: float) -> None:
    flow = Traffic(SERVICE, steady(6000, per_s=50.0), seed=2)
    flow.surge(factor, start_s=40.0, duration_s=40.0)
    times = arrivals(flow, 120.0)
    inside = sum(40.0 <= at < 82.0 for at in times) - 100 * (factor > 0)  # the copies jitter past the end
    assert len(times) == pytest.approx(50 * (80 + 40 * factor), rel=0.04)
    assert inside == pytest.approx(50 * 40 * factor, rel=0.06, abs=110)
    again = Traffic(SERVICE, steady(6000, per_s=50.0), seed=2)
    again.surge(factor, start_s=40.0, duration_s=40.0)
    assert arrivals(again, 120.0, step_s=5.0) == times  # however time is cut


def test_bad_traffic_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty trace"):
        Traffic(SERVICE, ())
    with pytest.raises(InvalidInput, match="surge of demo/chat"):
        Traffic(SERVICE, steady()).surge(-1.0, 0.0, 10.0)


@pytest.mark.parametrize("text", ["chat=synthetic", "demo/chat", "demo/chat=", "demo/chat=synthetic@fast"])
def test_a_traffic_argument_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--traffic"):
        parse_traffic(text, seed=1)


def test_a_traffic_argument_names_service_trace_and_rate(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,20\n1,10,20\n2,10,20\n")
    assert parse_traffic(f"demo/chat={file}", seed=1).requests_per_s == 1.0
    assert parse_traffic("demo/chat=synthetic@12", seed=1).requests_per_s == pytest.approx(12, rel=0.05)
