"""The fleet twin: pods become engines, traffic becomes series that Prometheus reads, meters tell watts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from controller.records import (
    MODEL_LABEL,
    PodRecord,
)
from tests.simcluster.components import FAILED_LABEL
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_metrics import engine_metrics, gateway_metrics, gpu_metrics, label_text
from tests.simcluster.twin_stats import Bucketed
from tests.simcluster.twin_traffic import Traffic
from tests.twin_world import (
    MODEL,
    RACK,
    SERVICE,
    busy_twin,
    names,
    node,
    parse,
    pod,
    profile,
    run,
    steady,
    value,
    view,
)

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
    assert power["total"]["peak_watts"] >= power["total"]["draw_watts"] > 16 * 70.0
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
