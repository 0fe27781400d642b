"""The fleet twin: pods become engines, traffic becomes series that Prometheus reads, meters tell watts."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.records import (
    CONFIG_LABEL,
    GPU_CLASS_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    ROLE_LABEL,
    NodeRecord,
    PodRecord,
)
from controller.traces import Trace, TraceRequest, synthetic_trace
from solvers.engine import EngineConfig, EngineProfile, ProfileKey
from solvers.errors import InvalidInput
from solvers.fleet import GpuClass
from solvers.workload import Slo, SloMetric
from tests.sim_brute import make_profile
from tests.simcluster.cluster import SimCluster
from tests.simcluster.components import FAILED_LABEL
from tests.simcluster.monitoring import ScrapeJob
from tests.simcluster.nodes import GpuNode, gpu_pod
from tests.simcluster.poll import wait_until
from tests.simcluster.twin import Twin, VirtualClock, main, make_parser, parse_traffic
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_metrics import engine_metrics, gateway_metrics, gpu_metrics, label_text
from tests.simcluster.twin_stats import Bucketed
from tests.simcluster.twin_traffic import Traffic
from tests.simcluster.twin_watch import ClusterView, ClusterWatch, TwinService

ROOT = Path(__file__).parents[1]
MODEL, SERVICE, RACK = "meta-llama/Llama-3.1-8B", "demo/chat", "topology.penstock.dev/rack"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def gpu_class(name: str = "h100", idle_watts: float = 70.0) -> GpuClass:
    return GpuClass(
        name=name,
        resource_name="nvidia.com/gpu",
        node_selector={"product": name},
        memory_bytes=80 << 30,
        link_island_gpus=8,
        idle_watts=idle_watts,
        min_cap_watts=200.0,
        max_cap_watts=700.0,
        host_share_watts=100.0,
        price_usd_per_hour=2.0,
    )


def profile(gpu: str = "h100", config: str = "tp1", **changes: Any) -> EngineProfile:
    key = ProfileKey(model=MODEL, gpu_class=gpu, config=EngineConfig.from_label(config))
    return replace(make_profile(), key=key, **changes)


def node(
    name: str, *, gpu: str = "h100", rack: str = "r1", ready: bool = True, labels: Mapping[str, str] | None = None
) -> NodeRecord:
    gpus = {"nvidia.com/gpu": 8}
    return NodeRecord(
        name=name,
        labels={"product": gpu, RACK: rack, **(labels or {})},
        capacity=gpus,
        allocatable=gpus,
        is_ready=ready,
        is_cordoned=False,
        is_out_of_service=False,
    )


def pod(name: str, role: str = "mixed", *, on: str | None = "n1", gpu: str = "h100", **changes: Any) -> PodRecord:
    made = PodRecord(
        namespace="demo",
        name=name,
        uid=f"uid-{name}",
        labels={MODEL_LABEL: "chat", ROLE_LABEL: role, GPU_CLASS_LABEL: gpu, CONFIG_LABEL: "tp1"},
        node=on,
        phase="Running",
        is_ready=True,
        is_leaving=False,
        requests={"nvidia.com/gpu": 1},
        created_at_s=0.0,
    )
    return replace(made, **changes)


SLOS = (
    Slo(metric=SloMetric.TTFT, percentile_ratio=0.95, limit_s=0.5),
    Slo(metric=SloMetric.ITL, percentile_ratio=0.95, limit_s=0.02),
)


def view(*pods: PodRecord, nodes: tuple[NodeRecord, ...] = (), profiles: tuple[EngineProfile, ...] = ()) -> ClusterView:
    return ClusterView(
        pods={p.uid: p for p in pods},
        nodes={n.name: n for n in nodes or (node("n1"), node("n2", rack="r2"))},
        services={SERVICE: TwinService(name=SERVICE, model=MODEL, inference_pool="chat-pool", slos=SLOS)},
        profiles={str(i): p for i, p in enumerate(profiles or (profile(), profile("l40s")))},
        gpu_classes={"h100": gpu_class(), "l40s": gpu_class("l40s", 35.0)},
    )


def steady(count: int = 600, per_s: float = 5.0) -> Trace:
    return tuple(TraceRequest(arrival_s=i / per_s, prompt_tokens=500, output_tokens=50) for i in range(count))


def run(twin: TwinFleet, until_s: float, step_s: float = 2.0) -> None:
    start_s = twin.fleet.now_s
    for i in range(1, math.ceil((until_s - start_s) / step_s) + 1):
        twin.advance(min(until_s, start_s + i * step_s))
        twin.measure()


def busy_twin(*pods: PodRecord, **options: Any) -> TwinFleet:
    twin = TwinFleet([Traffic(SERVICE, steady())], **options)
    twin.apply(view(*(pods or (pod("p", "prefill"), pod("d", "decode"), pod("m", on="n2")))))
    run(twin, 60.0)
    return twin


def parse(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    found = [v for (n, have), v in series.items() if n == name and labels.items() <= dict(have).items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


# ---------------------------------------------------------------- series


def test_gateway_series_have_the_real_names_and_agree_with_the_state() -> None:
    twin = busy_twin()
    series, state = parse(gateway_metrics(twin)), twin.state()["services"][SERVICE]
    labels = {"namespace": "demo", "inference_pool": "chat-pool", "model_name": MODEL}
    assert value(series, "inference_objective_request_total", **labels) == state["requests"] == 301
    assert value(series, "inference_extension_flow_control_queue_size", **labels) == 0
    for name, count in (
        ("inference_objective_request_ttft_seconds", state["whole_run"]["first_tokens"]),
        ("inference_objective_input_tokens", state["finished"]),
        ("inference_objective_output_tokens", state["finished"]),
    ):
        assert value(series, f"{name}_count", **labels) == count > 250
        assert value(series, f"{name}_bucket", le="+Inf", **labels) == count
    assert value(series, "inference_objective_input_tokens_bucket", le="512", **labels) == state["finished"]
    assert value(series, "inference_objective_input_tokens_bucket", le="256", **labels) == 0


def test_a_service_without_requests_shows_zeros_not_nothing() -> None:
    twin = TwinFleet()
    twin.apply(view())
    assert value(parse(gateway_metrics(twin)), "inference_objective_request_total", namespace="demo") == 0
    assert engine_metrics(twin) == gpu_metrics(twin) == ""


def test_engine_series_have_vllms_names_for_each_serving_pod() -> None:
    twin = busy_twin()
    twin.fleet.settle()
    series = parse(engine_metrics(twin))
    assert {
        "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket", "vllm:request_prompt_tokens_bucket",
        "vllm:request_generation_tokens_bucket",
    } <= names(series)  # fmt: skip
    for name in ("p", "d", "m"):
        view_of = twin.fleet.replica(f"uid-{name}")
        labels = {"namespace": "demo", "pod": name, "model_name": MODEL}
        assert value(series, "vllm:generation_tokens_total", **labels) == view_of.output_tokens
        assert value(series, "vllm:inter_token_latency_seconds_count", **labels) == view_of.gaps.count
        assert value(series, "vllm:kv_cache_usage_perc", **labels) == pytest.approx(view_of.kv_usage_ratio)
    assert value(series, "vllm:generation_tokens_total", pod="p") == 0
    assert value(series, "vllm:time_to_first_token_seconds_count", pod="d") == 0  # prompts are not computed there
    firsts = sum(value(series, "vllm:time_to_first_token_seconds_count", pod=name) for name in ("p", "d", "m"))
    assert firsts == twin.state()["services"][SERVICE]["whole_run"]["first_tokens"]


def test_a_histogram_series_is_cumulative_and_ends_in_its_count() -> None:
    series = parse(engine_metrics(busy_twin()))
    buckets = sorted(
        (float(dict(labels)["le"]), count)
        for (name, labels), count in series.items()
        if name == "vllm:inter_token_latency_seconds_bucket" and ("pod", "d") in labels
    )
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == (math.inf, value(series, "vllm:inter_token_latency_seconds_count", pod="d"))
    mean = value(series, "vllm:inter_token_latency_seconds_sum", pod="d") / counts[-1]
    assert 0.01 < mean < 0.02  # the profile's steps


def test_every_gpu_of_every_node_is_metered_idle_ones_at_idle_watts() -> None:
    twin = busy_twin()
    series = parse(gpu_metrics(twin))
    watts = {labels: w for (name, labels), w in series.items() if name == "DCGM_FI_DEV_POWER_USAGE"}
    assert len(watts) == 16
    held = {dict(labels)["exported_pod"]: w for labels, w in watts.items() if "exported_pod" in dict(labels)}
    assert set(held) == {"p", "d", "m"}
    assert sorted(watts.values())[: 16 - 3] == [70.0] * 13
    assert all(75.0 < draw < 600.0 for draw in held.values())
    assert value(series, "DCGM_FI_DEV_GPU_UTIL", exported_pod="p") > 0
    assert value(series, "DCGM_FI_DEV_POWER_USAGE", Hostname="n2", gpu="0", modelName="h100", exported_pod="m") > 75


def test_label_values_are_escaped() -> None:
    assert label_text({"a": 'say "hi"\n\\'}) == r'a="say \"hi\"\n\\"'


def test_bucketed_counts_a_value_on_an_edge_below_it() -> None:
    histogram = Bucketed((1.0, 2.0))
    for seen in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(seen)
    assert histogram.cumulative() == [2, 3, 4]
    assert histogram.total == 12.0


# ---------------------------------------------------------------- power


def test_node_watts_are_the_sum_of_gpus_and_host_shares_and_peaks_stay() -> None:
    twin = busy_twin(group_labels=(RACK,))
    power = twin.state()["power"]
    gpus = {n: sum(r.draw_watts for r in twin.meters.gpus if r.node == n) for n in ("n1", "n2")}
    assert power["nodes"]["n1"]["draw_watts"] == pytest.approx(gpus["n1"] + 2 * 100.0, abs=0.1)
    assert power["nodes"]["n2"]["draw_watts"] == pytest.approx(gpus["n2"] + 100.0, abs=0.1)
    assert power["groups"][RACK]["r2"] == power["nodes"]["n2"]
    assert power["total"]["draw_watts"] == pytest.approx(sum(n["draw_watts"] for n in power["nodes"].values()), abs=0.2)
    assert power["total"]["peak_watts"] > power["total"]["draw_watts"]
    twin.apply(view())
    run(twin, 62.0)
    after = twin.state()["power"]
    assert after["total"]["draw_watts"] == 16 * 70.0
    assert after["total"]["peak_watts"] == power["total"]["peak_watts"]
    twin.reset()
    assert twin.state()["power"]["total"]["peak_watts"] == 16 * 70.0


def test_metered_energy_is_what_the_replicas_drew_and_the_idle_rest() -> None:
    twin = TwinFleet([Traffic(SERVICE, steady())])
    twin.apply(view(pod("p", "prefill"), pod("d", "decode"), pod("m", on="n2")))
    twin.measure()
    run(twin, 60.0)
    expected = twin.fleet.energy_joules() + 60.0 * (13 * 70.0 + 3 * 100.0)
    assert twin.state()["power"]["energy_joules"] == pytest.approx(expected, rel=1e-6)


def test_pods_keep_their_gpus_and_a_new_one_takes_the_lowest_free() -> None:
    twin = TwinFleet()

    def held() -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for reading in twin.meters.gpus:
            if reading.holder:
                found.setdefault(reading.holder.name, []).append(reading.gpu)
        return found

    two = {"nvidia.com/gpu": 2}
    twin.apply(view(pod("a", requests=two), pod("b", requests=two, created_at_s=1.0)))
    twin.measure()
    assert held() == {"a": [0, 1], "b": [2, 3]}
    twin.apply(view(pod("b", requests=two, created_at_s=1.0), pod("c", requests=two, is_ready=False, created_at_s=2.0)))
    twin.measure()
    assert held() == {"b": [2, 3], "c": [0, 1]}


# ---------------------------------------------------------------- following the cluster


def test_only_ready_pods_of_living_nodes_serve() -> None:
    twin = TwinFleet()
    twin.apply(
        view(
            pod("ok"),
            pod("cold", is_ready=False),
            pod("going", is_leaving=True),
            pod("lost", on="gone"),
            pod("dead", on="n3"),
            pod("dying", on="n4"),
            nodes=(node("n1"), node("n3", ready=False), node("n4", labels={FAILED_LABEL: "true"})),
        )
    )
    assert twin.fleet.replica_ids() == ("uid-ok",)
    assert twin.state()["dead_nodes"] == ["n3", "n4"]
    assert twin.state()["replicas"] == {"demo/chat/mixed/h100/tp1": 1}


def test_a_leaving_pod_drains_and_a_deleted_one_gives_back_its_requests() -> None:
    twin = TwinFleet([Traffic(SERVICE, steady())])
    twin.apply(view(pod("a"), pod("b")))
    run(twin, 20.0)
    twin.apply(view(pod("a", is_leaving=True), pod("b")))
    run(twin, 40.0)
    assert twin.fleet.outstanding("uid-a") == 0
    twin.apply(view(pod("b")))
    assert twin.fleet.replica_ids() == ("uid-b",)
    assert twin.fleet.counts(SERVICE).get("rerouted", 0) == 0
    assert 'pod="a"' not in engine_metrics(twin)


def test_a_dead_node_fails_its_pods_at_once_and_its_exporter_is_gone() -> None:
    twin = TwinFleet([Traffic(SERVICE, steady())])
    twin.apply(view(pod("a"), pod("b", on="n2")))
    run(twin, 20.1)
    held = twin.fleet.outstanding("uid-a")
    dead = (node("n1", labels={FAILED_LABEL: "true"}), node("n2", rack="r2"))
    twin.apply(view(pod("a"), pod("b", on="n2"), nodes=dead))
    twin.measure()
    run(twin, 40.0)
    assert held > 0
    assert twin.state()["services"][SERVICE]["rerouted"] == held
    assert twin.state()["power"]["nodes"]["n1"]["draw_watts"] == 0.0
    assert {labels for (_, labels) in parse(gpu_metrics(twin)) if ("Hostname", "n1") in labels} == set()
    twin.apply(view(pod("a"), pod("b", on="n2")))
    assert set(twin.fleet.replica_ids()) == {"uid-a", "uid-b"}  # the node came back


def test_requests_wait_at_the_gateway_while_no_pod_is_ready() -> None:
    twin = TwinFleet([Traffic(SERVICE, steady())])
    twin.apply(view(pod("a", is_ready=False)))
    run(twin, 10.0)
    assert twin.state()["services"][SERVICE]["queued"] == 51
    assert value(parse(gateway_metrics(twin)), "inference_extension_flow_control_queue_size") == 51
    twin.apply(view(pod("a")))
    run(twin, 60.0)
    assert twin.state()["services"][SERVICE]["queued"] == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (pod("x", gpu="b200"), f"Pod/demo/x: has no EngineProfile for {MODEL} on b200/tp1"),
        (pod("x", "critic"), "'critic' is no role; use one of prefill, decode, mixed"),
        (replace(pod("x"), labels={MODEL_LABEL: "chat"}), "lacks penstock.dev/role"),
        (replace(pod("x"), labels=dict(pod("x").labels) | {MODEL_LABEL: "other"}), "names no ServedModel demo/other"),
    ],
)
def test_a_pod_that_cannot_be_followed_is_named_and_hinders_nobody(wrong: PodRecord, says: str) -> None:
    twin = TwinFleet()
    twin.apply(view(wrong, pod("fine")))
    assert twin.fleet.replica_ids() == ("uid-fine",)
    (fault,) = twin.state()["faults"]
    assert says in fault
    twin.apply(view(pod("fine")))
    assert twin.state()["faults"] == []


def test_unlike_pools_of_a_role_share_in_proportion_to_capacity() -> None:
    slow = profile("l40s", prefill_s=(0.06, 0.3, 1.5))
    fast_prefill = (pod("fast", "prefill"), pod("slow", "prefill", gpu="l40s", on="n2"), pod("d", "decode"))
    sizes = steady()[0]
    bursts = tuple(replace(sizes, arrival_s=float(i // 4)) for i in range(200))  # four at once, every second
    twin = TwinFleet([Traffic(SERVICE, bursts)])
    twin.apply(view(*fast_prefill, profiles=(profile(), slow)))
    run(twin, 40.0)
    counts = {name: twin.pods[f"uid-{name}"].ttft.cumulative()[-1] for name in ("fast", "slow")}
    assert counts == {"fast": 3 * 40, "slow": 40}  # three times as fast, three times as many


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


# ---------------------------------------------------------------- the process


class HandClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_virtual_clock_runs_only_between_start_and_stop() -> None:
    hand = HandClock()
    clock = VirtualClock(20.0, hand)
    hand.now_s += 5
    assert clock.now_s() == 0.0
    clock.start()
    hand.now_s += 2
    clock.start()
    assert clock.now_s() == 40.0
    clock.stop()
    hand.now_s += 9
    assert clock.now_s() == 40.0
    clock.start()
    hand.now_s += 1
    assert clock.now_s() == 60.0


@pytest.fixture
def running_twin() -> Iterator[Twin]:
    with Twin(lambda: view(pod("a")), [Traffic(SERVICE, steady(per_s=50.0))], time_scale=50.0) as twin:
        yield twin


def ask(twin: Twin, path: str, body: Any = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(twin.url).netloc, timeout=10)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, body if isinstance(body, str) else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def state_of(twin: Twin) -> dict[str, Any]:
    status, text = ask(twin, "/state")
    assert status == 200
    return dict(json.loads(text))


def test_a_running_twin_waits_for_its_start_and_then_serves_pages(running_twin: Twin) -> None:
    assert urlsplit(running_twin.url).hostname == "127.0.0.1"
    assert state_of(running_twin)["virtual_s"] == 0.0
    assert ask(running_twin, "/control", {"start": True})[0] == 200
    wait_until(lambda: state_of(running_twin)["services"][SERVICE]["finished"] > 20, "requests to be served")
    for path, name in (
        ("/gateway/metrics", "inference_objective_request_total"),
        ("/engines/metrics", "vllm:num_requests_running"),
        ("/dcgm/metrics", "DCGM_FI_DEV_POWER_USAGE"),
    ):
        status, text = ask(running_twin, path)
        assert status == 200
        assert name in names(parse(text))
    ask(running_twin, "/control", {"stop": True})
    stopped = state_of(running_twin)
    assert not stopped["is_running"]
    assert stopped["failure"] is None


def test_a_surge_ordered_over_http_is_seen_at_the_gateway(running_twin: Twin) -> None:
    order = {"surge": {"service": SERVICE, "factor": 10, "start_s": 0, "duration_s": 1000}}
    assert ask(running_twin, "/control", order)[0] == 200
    ask(running_twin, "/control", {"start": True})
    wait_until(lambda: state_of(running_twin)["virtual_s"] > 10, "ten virtual seconds")
    state = state_of(running_twin)
    assert state["services"][SERVICE]["requests"] > 5 * 50 * state["virtual_s"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{oops", "Expecting"),
        ("[]", "no JSON object"),
        ({}, "asks for nothing"),
        ({"explode": True}, "explode"),
        ({"surge": {"service": "demo/chat"}}, "factor"),
        ({"surge": {"service": "demo/other", "factor": 2, "duration_s": 5}}, "demo/other has no traffic"),
        ({"surge": {"service": "demo/chat", "factor": 2, "duration_s": 0}}, "for 0.0 s"),
    ],
)
def test_an_order_that_is_wrong_is_refused_with_the_reason(running_twin: Twin, body: Any, says: str) -> None:
    status, text = ask(running_twin, "/control", body)
    assert status == 400
    assert says in json.loads(text)["error"]


def test_unknown_paths_say_what_there_is(running_twin: Twin) -> None:
    status, text = ask(running_twin, "/metrics")
    assert status == 404
    assert "/gateway/metrics" in text
    assert ask(running_twin, "/elsewhere", {})[0] == 404


def test_the_command_explains_itself_and_refuses_bad_traffic(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/control" in make_parser().format_help()
    assert main(["--kubeconfig", "nowhere", "--traffic", "nonsense"]) == 1
    assert "'nonsense' is not understood" in capsys.readouterr().err


# ---------------------------------------------------------------- on a real control plane


def labelled_pod(name: str) -> dict[str, Any]:
    made = gpu_pod(name, gpus=1, namespace="demo")
    made["metadata"]["labels"] = dict(pod(name).labels) | {
        MANAGED_BY_LABEL: MANAGED_BY,
        MODEL_LABEL: "chat-8b",
        GPU_CLASS_LABEL: "h100-sxm",
    }
    return made


def test_a_pod_that_becomes_ready_appears_in_prometheus(simcluster: SimCluster) -> None:
    for folder, pattern in (("deploy/crds", "*.yaml"), ("deploy/samples/demo", "[gs]*.yaml")):
        if pattern.startswith("["):
            simcluster.create_namespace("demo")
        for file in sorted((ROOT / folder).glob(pattern)):
            simcluster.apply(file)
    simcluster.apply(ROOT / "deploy/samples/demo/profiles-llama-3.1-8b.yaml")
    simcluster.add_nodes([GpuNode(name="n1", gpu_product="NVIDIA-H100-80GB-HBM3", rack="r1")])
    watch = ClusterWatch(simcluster.kubeconfig)
    watch.start()
    service = "demo/chat-8b"
    with Twin(watch, [Traffic(service, steady())], time_scale=20.0) as twin:
        twin.clock.start()
        simcluster.set_scrape_jobs(
            ScrapeJob(name=name, url=f"{twin.url}/{name}/metrics", honor_labels=True)
            for name in ("gateway", "engines", "dcgm")
        )
        monitoring = simcluster.monitoring
        monitoring.wait_for('count(DCGM_FI_DEV_POWER_USAGE{Hostname="n1"}) == 8')
        simcluster.create([labelled_pod("engine-0")])
        monitoring.wait_for('vllm:generation_tokens_total{namespace="demo", pod="engine-0"} > 0')
        monitoring.wait_for('inference_objective_request_total{inference_pool="chat-8b"} > 0')
        monitoring.wait_for('DCGM_FI_DEV_POWER_USAGE{Hostname="n1", exported_pod="engine-0"} > 100')
        assert state_of(twin)["faults"] == []
        simcluster.fail_node("n1", wait=False)
        wait_until(lambda: state_of(twin)["replicas"] == {}, "the twin to lose the pod of the dead node")
        simcluster.recover_node("n1")
        wait_until(lambda: state_of(twin)["replicas"] != {}, "the pod to serve again")
        simcluster.api.delete("/api/v1/namespaces/demo/pods/engine-0", grace_s=0)
        monitoring.wait_for('absent(vllm:num_requests_running{pod="engine-0"})')
    watch.stop()
