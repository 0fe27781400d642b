"""Telemetry: the table of queries, zero and absent, ages, virtual time, and a Prometheus that fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.engine_telemetry import ENGINE_QUERIES, Sample
from controller.readings import Histogram, Readings, ServiceReading
from controller.settings import Settings
from controller.telemetry import (
    QUERIES,
    Prometheus,
    QueryFailed,
    ServiceTarget,
    Telemetry,
    TelemetryReader,
    keep_last_good,
    load_queries,
)
from solvers.errors import InvalidInput

CHAT = ServiceTarget(service="team-a/chat", namespace="team-a", inference_pool="chat-pool", model="org/chat-8b")
POOL = {"namespace": "team-a", "inference_pool": "chat-pool"}
MODEL = {"namespace": "team-a", "model_name": "org/chat-8b"}
Vectors = dict[str, list[Sample]]


def vector(*rows: tuple[Mapping[str, str], float]) -> list[Sample]:
    return [Sample(labels=labels, value=value) for labels, value in rows]


def buckets(labels: Mapping[str, str], rows: Mapping[str, float]) -> list[Sample]:
    return vector(*(({**labels, "le": le}, count) for le, count in rows.items()))


def gateway(requests_per_s: float = 4.0, as_of_s: float = 1000.0) -> Vectors:
    return {
        "gateway_requests_per_s": vector((POOL, requests_per_s)),
        "gateway_as_of_s": vector((POOL, as_of_s)),
        "gateway_queue": vector((POOL, 3.0)),
        "gateway_ttft": buckets(POOL, {"0.1": 1.0, "0.5": 3.0, "+Inf": 4.0}),
    }


def telemetry(vectors: Vectors, *, time_scale: float = 1.0, clock: Callable[[], float] = lambda: 1005.0) -> Telemetry:
    """A Prometheus that knows each query by its own name."""
    names = {name: name for name in QUERIES}
    return Telemetry(ask=lambda name: vectors.get(name, []), queries=names, time_scale=time_scale, clock=clock)


def read(vectors: Vectors, *, time_scale: float = 1.0) -> ServiceReading | None:
    return telemetry(vectors, time_scale=time_scale).read([CHAT]).services.get("team-a/chat")


def test_the_gateway_speaks_first() -> None:
    engine = {"engine_requests_per_s": vector((MODEL, 2.0)), "engine_as_of_s": vector((MODEL, 999.0))}
    reading = read({**gateway(), **engine})
    assert reading is not None
    assert (reading.source, reading.requests_per_s, reading.queue, reading.as_of_s) == ("Gateway", 4.0, 3.0, 1000.0)
    only_engine = read(engine)
    assert only_engine is not None
    assert (only_engine.source, only_engine.requests_per_s) == ("Engine", 2.0)


def test_zero_and_absent_differ() -> None:
    idle = read(gateway(requests_per_s=0.0))
    assert idle is not None
    assert idle.requests_per_s == 0.0
    assert read({}) is None
    assert read({"gateway_requests_per_s": vector((POOL, 1.0))}) is None, "a value of unknown age is no reading"


def test_rates_are_of_the_served_time_and_latencies_stay() -> None:
    reading = read(gateway(requests_per_s=80.0), time_scale=20.0)
    assert reading is not None
    assert reading.requests_per_s == 4.0
    assert reading.ttft_histogram is not None
    assert reading.ttft_histogram.quantile(0.75) == pytest.approx(0.5)


def test_age_is_judged_by_the_scrape_not_by_the_query() -> None:
    reading = read(gateway(as_of_s=1000.0))
    assert reading is not None
    assert reading.is_fresh(1045.0)
    assert not reading.is_fresh(1045.1)


def test_history_grows_only_with_new_scrapes() -> None:
    vectors = gateway(requests_per_s=1.0, as_of_s=1000.0)
    reader = telemetry(vectors)
    reader.read([CHAT])
    reader.read([CHAT])
    vectors.update(gateway(requests_per_s=2.0, as_of_s=1015.0))
    history = reader.read([CHAT]).services["team-a/chat"].history
    assert [(sample.time_s, sample.requests_per_s, sample.window_s) for sample in history] == [
        (1000.0, 1.0, 60.0),
        (1015.0, 2.0, 60.0),
    ]


def test_history_is_stretched_to_served_time_seen_from_now() -> None:
    (sample,) = telemetry(gateway(as_of_s=1000.0), time_scale=20.0).read([CHAT]).services["team-a/chat"].history
    assert (sample.time_s, sample.window_s) == (1005.0 - 5.0 * 20.0, 60.0 * 20.0)


def test_nodes_and_pods_are_read() -> None:
    readings = telemetry(
        {
            "node_draw_watts": vector(({"Hostname": "gpu-1"}, 3200.0), ({"Hostname": "gpu-2"}, 10.0)),
            "node_as_of_s": vector(({"Hostname": "gpu-1"}, 1001.0)),
            "pod_outstanding": vector(({"namespace": "team-a", "pod": "p"}, 7.0)),
        }
    ).read([])
    assert {name: (node.draw_watts, node.as_of_s) for name, node in readings.nodes.items()} == {
        "gpu-1": (3200.0, 1001.0)
    }
    assert readings.outstanding_requests == {"team-a/p": 7.0}


def test_a_failing_prometheus_ends_the_round_and_keeps_the_last_good_values_with_their_age() -> None:
    asked: list[str] = []

    def refuse(expression: str) -> list[Sample]:
        asked.append(expression)
        raise QueryFailed("refused")

    failed = Telemetry(ask=refuse, clock=lambda: 1060.0).read([CHAT])
    assert len(asked) == 1
    assert failed.services == {}
    assert "refused" in failed.faults[0]
    good = telemetry(gateway()).read([CHAT])
    kept = keep_last_good(good, failed)
    assert kept.services["team-a/chat"].as_of_s == 1000.0
    assert not kept.services["team-a/chat"].is_fresh(kept.taken_at_s)
    assert keep_last_good(Readings(taken_at_s=0.0), failed).services == {}


def test_an_unreachable_prometheus_is_named() -> None:
    prometheus = Prometheus("http://127.0.0.1:9", timeout_s=1.0)
    with pytest.raises(QueryFailed, match=r"127\.0\.0\.1:9/api/v1/query"):
        prometheus.query("up")
    prometheus.close()


def test_silence_counts_only_once_all_services_were_asked_about() -> None:
    reader = TelemetryReader(Settings(prometheus_url="http://127.0.0.1:9"))
    before = reader.has_read
    reader.read_once()
    reader.look_for([CHAT], 5.0)
    unasked = reader.has_read
    reader.read_once()
    assert (before, unasked, reader.has_read) == (False, False, True)
    assert "gateway_requests_per_s" in reader.latest.faults[0]
    reader.stop()
    assert TelemetryReader(Settings()).has_read, "without a Prometheus there is nobody to wait for"


def test_windows_are_filled_in() -> None:
    asked: list[str] = []

    def note(expression: str) -> list[Sample]:
        asked.append(expression)
        return []

    Telemetry(ask=note, rate_window_s=6.0).read([])
    text = "\n".join(asked)
    assert "WINDOW" not in text
    assert "LONG" not in text
    assert "rate(inference_objective_request_total[6s])" in text
    assert "rate(inference_objective_input_tokens_bucket[60s])" in text
    assert "rate(llm_d_epp_request_total[6s])" in text


def test_a_file_replaces_queries_and_unknown_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "queries.yaml"
    file.write_text("gateway_queue: sum(my_queue)\n")
    assert load_queries(str(file))["gateway_queue"] == "sum(my_queue)"
    file.write_text("gateway_qeue: sum(my_queue)\n")
    with pytest.raises(InvalidInput, match=r"gateway_qeue: is no query of ours; known are .*gateway_queue"):
        load_queries(str(file))
    with pytest.raises(InvalidInput, match="cannot read queries"):
        load_queries(str(tmp_path / "none.yaml"))


def test_a_histogram_answers_quantiles_and_shares() -> None:
    histogram = Histogram.from_cumulative({0.1: 1.0, 0.5: 3.0, math.inf: 4.0})
    assert histogram is not None
    assert histogram.weights == (1.0, 2.0, 1.0)
    assert histogram.quantile(0.5) == pytest.approx(0.3)
    assert histogram.quantile(0.99) == 0.5, "beyond the last edge only a lower bound is known"
    assert histogram.share_within(0.3) == pytest.approx(0.5)
    assert histogram.share_within(10.0) == pytest.approx(0.75)
    assert Histogram.from_cumulative({0.1: 0.0, math.inf: 0.0}) is None


@given(
    weights=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8).filter(lambda row: sum(row) > 1e-6),
    ratio=st.floats(0.01, 1.0),
)
def test_quantile_and_share_are_inverse(weights: list[float], ratio: float) -> None:
    histogram = Histogram(upper_bounds=tuple(float(i + 1) for i in range(len(weights))), weights=tuple(weights))
    value = histogram.quantile(ratio)
    assert histogram.share_within(value) >= ratio - 1e-6
    assert 0.0 <= value <= len(weights)


POD = {"namespace": "team-a", "pod": "chat-1"}
HELD = {"namespace": "monitoring", "pod": "exporter-7", "exported_namespace": "team-a", "exported_pod": "chat-1"}


def engines() -> Vectors:
    return {
        "engine_pod_as_of_s": vector((POD, 1000.0)),
        "engine_pod_running": vector((POD, 8.0)),
        "engine_pod_prompts_per_s": vector((POD, 40.0)),
        "engine_pod_itl_s": vector((POD, 0.02)),
        "engine_pod_gpu_watts": vector((HELD, 500.0)),
    }


def test_engines_are_asked_only_by_who_learns_and_once_a_window() -> None:
    now_s, asked = [1005.0], list[str]()
    vectors = {**gateway(), **engines()}

    def answer(name: str) -> list[Sample]:
        asked.append(name)
        return vectors.get(name, [])

    source = Telemetry(ask=answer, queries={name: name for name in QUERIES}, time_scale=10.0, clock=lambda: now_s[0])
    assert source.read([CHAT]).engines == {}
    assert not ENGINE_QUERIES.keys() & set(asked)
    source.asks_engines = True
    engine = source.read([CHAT]).engines["team-a/chat-1"]
    assert (engine.running, engine.prompts_per_s, engine.itl_s, engine.gpu_watts) == (8.0, 4.0, 0.02, 500.0)
    assert engine.prefill_s is None
    now_s[0] += 30.0
    source.read([CHAT])
    assert asked.count("engine_pod_running") == 1
    now_s[0] += 30.0
    source.read([CHAT])
    assert asked.count("engine_pod_running") == 2


def test_engines_that_cannot_be_asked_hide_no_demand() -> None:
    vectors = gateway()

    def answer(name: str) -> list[Sample]:
        if name in ENGINE_QUERIES:
            raise QueryFailed("no such series")
        return vectors.get(name, [])

    source = Telemetry(ask=answer, queries={name: name for name in QUERIES}, clock=lambda: 1005.0, asks_engines=True)
    readings = source.read([CHAT])
    assert readings.services["team-a/chat"].requests_per_s == 4.0
    assert (readings.faults, readings.engines) == ((), {})
    assert "no such series" in readings.engine_fault


def test_a_users_table_may_rename_the_rows_of_engines(tmp_path: Path) -> None:
    file = tmp_path / "queries.yaml"
    file.write_text("engine_pod_running: sum by (namespace, pod) (sglang:num_running_reqs)\n")
    assert load_queries(str(file))["engine_pod_running"].endswith("(sglang:num_running_reqs)")
