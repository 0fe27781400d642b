"""From readings to demand, and the mix of request sizes from two marginals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.demand import DemandView, mix_of, view_demand
from controller.readings import Histogram, LoadSample, Readings, ServiceReading
from controller.resources import parse_fleet_policy, parse_served_model
from solvers.workload import Demand, SizeBucket
from tests.observed import DECLARED, NOW_S, policy, served

POLICY = parse_fleet_policy(policy(headroom={"capacityPercent": 0, "demandPercentile": 50}))
PROMPTS = Histogram(upper_bounds=(100.0, 1000.0, 4000.0), weights=(0.0, 80.0, 20.0))
OUTPUTS = Histogram(upper_bounds=(50.0, 400.0), weights=(50.0, 50.0))
LAST = Demand(
    service="demo/chat", requests_per_s=9.0, mix=(SizeBucket(prompt_tokens=7, output_tokens=8, weight_ratio=1.0),)
)


def view(
    reading: ServiceReading | None = None,
    *,
    source: str = "Gateway",
    declared: bool = False,
    previous: Demand | None = None,
    is_running: bool = True,
    is_advice: bool = False,
    percent: int = 0,
) -> DemandView:
    spec = served(demand={"source": source, **({"declared": DECLARED} if declared else {})})
    rules = parse_fleet_policy(policy(headroom={"capacityPercent": percent, "demandPercentile": 50}))
    readings = Readings(taken_at_s=NOW_S, services={} if reading is None else {"demo/chat": reading})
    return view_demand(
        parse_served_model(spec, POLICY),
        readings,
        rules,
        now_s=NOW_S,
        previous=previous,
        is_running=is_running,
        is_advice=is_advice,
    )


def reading(age_s: float = 5.0, source: str = "Gateway", **fields: object) -> ServiceReading:
    history = tuple(
        LoadSample(time_s=NOW_S - age_s - t, requests_per_s=6.0, window_s=60.0) for t in (240.0, 120.0, 0.0)
    )
    values = {
        "service": "demo/chat",
        "source": source,
        "requests_per_s": 6.0,
        "prompt_histogram": PROMPTS,
        "output_histogram": OUTPUTS,
        "history": history,
        "as_of_s": NOW_S - age_s,
        **fields,
    }
    return ServiceReading(**values)  # type: ignore[arg-type]


def requests_per_s(seen: DemandView) -> float:
    assert seen.demand is not None
    return seen.demand.requests_per_s


def test_a_fresh_reading_is_forecast_and_says_how_sizes_were_joined() -> None:
    seen = view(reading())
    assert seen.demand is not None
    assert requests_per_s(seen) == pytest.approx(6.0)
    assert seen.demand.source == "Gateway; prompt and output sizes taken as independent"
    assert (seen.is_fresh, seen.reason) == (True, "Gateway")


def test_engine_readings_are_told_apart() -> None:
    assert view(reading(source="Engine")).reason == "EngineOnly"


def test_headroom_and_the_queue_come_on_top() -> None:
    assert requests_per_s(view(reading(), percent=50)) == pytest.approx(9.0)
    assert requests_per_s(view(reading(queue=120.0))) == pytest.approx(8.0)


def test_a_long_queue_asks_for_half_as_much_again_at_most() -> None:
    assert requests_per_s(view(reading(queue=180.0))) == pytest.approx(9.0)
    assert requests_per_s(view(reading(queue=30_000.0))) == pytest.approx(9.0)


def test_whoever_waits_is_a_demand_even_when_nobody_arrives() -> None:
    calm = (LoadSample(time_s=NOW_S, requests_per_s=0.0, window_s=60.0),)
    assert requests_per_s(view(reading(requests_per_s=0.0, history=calm, queue=40.0))) == pytest.approx(1.0 / 60.0)


def test_a_declared_demand_that_stands_in_for_telemetry_gets_the_headroom_of_a_measured_one() -> None:
    acting = view(None, declared=True, is_running=False, percent=50)
    assert requests_per_s(acting) == pytest.approx(6.0)
    assert acting.demand is not None
    assert acting.demand.source == "Declared"
    assert "with headroom" in acting.message


def test_advice_plans_what_is_declared() -> None:
    assert requests_per_s(view(None, declared=True, is_running=False, is_advice=True, percent=50)) == 4.0


def test_series_that_have_only_just_begun_do_not_lower_the_demand() -> None:
    """A rate over a window that began inside it is too low; five minutes later a low rate is a low load."""
    begun = tuple(LoadSample(time_s=NOW_S - t, requests_per_s=6.0, window_s=60.0) for t in (240.0, 0.0))
    settled = tuple(LoadSample(time_s=NOW_S - t, requests_per_s=6.0, window_s=60.0) for t in (400.0, 200.0, 0.0))
    young = view(reading(history=begun), previous=LAST)
    assert requests_per_s(young) == pytest.approx(9.0)
    assert young.demand is not None
    assert young.demand.mix == LAST.mix  # output sizes are seen at the end, of short requests first
    assert requests_per_s(view(reading(history=settled), previous=LAST)) == pytest.approx(6.0)


def test_no_load_is_a_demand_of_zero_not_an_absent_one() -> None:
    calm = tuple(LoadSample(time_s=NOW_S - t, requests_per_s=0.0, window_s=60.0) for t in (400.0, 0.0))
    assert requests_per_s(view(reading(requests_per_s=0.0, history=calm))) == 0.0


def test_declared_demand_is_taken_as_it_is() -> None:
    seen = view(reading(), source="Declared", declared=True, percent=50)
    assert requests_per_s(seen) == 4.0


@pytest.mark.parametrize(
    ("previous", "declared", "is_running", "wanted", "reason"),
    [
        (LAST, True, True, 9.0, "Held"),
        (LAST, False, False, 9.0, "Held"),
        (None, True, False, 4.0, "Declared"),
        (None, True, True, None, "Absent"),
        (None, False, False, None, "Absent"),
    ],
)
@pytest.mark.parametrize("seen", [None, reading(age_s=300.0)])
def test_without_a_fresh_reading(
    seen: ServiceReading | None,
    previous: Demand | None,
    declared: bool,
    is_running: bool,
    wanted: float | None,
    reason: str,
) -> None:
    found = view(seen, previous=previous, declared=declared, is_running=is_running)
    assert (found.demand.requests_per_s if found.demand else None) == wanted
    assert (found.is_fresh, found.reason) == (False, reason)


def test_sizes_come_from_the_last_demand_then_from_the_declaration_when_none_were_observed() -> None:
    blind = reading(output_histogram=None)
    last, declared = view(blind, previous=LAST).demand, view(blind, declared=True).demand
    assert last is not None
    assert declared is not None
    assert (last.mix, last.source) == (LAST.mix, "Gateway; sizes as last known")
    assert declared.mix[0].prompt_tokens == 1000
    assert view(blind).demand is None


def test_a_mix_of_two_marginals_by_hand() -> None:
    mix = mix_of(PROMPTS, OUTPUTS)
    # Bands 0-0.5: uniform 100-662.5; 0.5-0.9: (707.5 + 797.5 + 887.5 + 977.5 + 1900) / 5; 0.9-1: uniform 2500-4000.
    assert [bucket.prompt_tokens for bucket in mix] == [380, 380, 1100, 1100, 3200, 3200]
    assert [bucket.weight_ratio for bucket in mix] == pytest.approx([0.35, 0.15, 0.28, 0.12, 0.07, 0.03])
    # Bands 0-0.7: (7 + 21 + 35 + 49 + 141) / 5; 0.7-1: uniform 190-400, two digits of 295.
    assert {bucket.output_tokens for bucket in mix} == {51, 300}


BOUNDS = (16.0, 128.0, 1024.0, 8192.0, float("inf"))


@given(
    st.lists(st.floats(0.0, 100.0), min_size=5, max_size=5).filter(lambda w: sum(w[:4]) > 0.1),
    st.lists(st.floats(0.0, 100.0), min_size=5, max_size=5).filter(lambda w: sum(w[:4]) > 0.1),
)
def test_any_mix_has_few_positive_sizes_and_weighs_one(prompts: list[float], outputs: list[float]) -> None:
    mix = mix_of(
        Histogram(upper_bounds=BOUNDS, weights=tuple(prompts)), Histogram(upper_bounds=BOUNDS, weights=tuple(outputs))
    )
    assert 1 <= len(mix) <= 6
    assert sum(bucket.weight_ratio for bucket in mix) == pytest.approx(1.0)
    assert all(bucket.prompt_tokens >= 1 and bucket.output_tokens >= 1 for bucket in mix)
    assert list(mix) == sorted(mix)
