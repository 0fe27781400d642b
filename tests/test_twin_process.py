"""The fleet twin as a process: its clock, its pages and orders, and a real control plane."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from controller.readings import EngineReading
from controller.records import (
    GPU_CLASS_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
)
from controller.telemetry import Prometheus, Telemetry
from tests.resource_cases import crd_bodies
from tests.simcluster.cluster import SimCluster
from tests.simcluster.kinds import install_kinds
from tests.simcluster.monitoring import ScrapeJob
from tests.simcluster.nodes import GpuNode, gpu_pod
from tests.simcluster.poll import wait_until
from tests.simcluster.twin import Twin, VirtualClock, main, make_parser
from tests.simcluster.twin_traffic import Traffic
from tests.simcluster.twin_watch import ClusterWatch
from tests.twin_world import (
    SERVICE,
    names,
    parse,
    pod,
    steady,
    view,
)

ROOT = Path(__file__).parents[1]

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
    connection = http.client.HTTPConnection(urlsplit(twin.url).netloc, timeout=60)
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


def test_engines_ordered_to_be_slow_are_slow(running_twin: Twin) -> None:
    assert ask(running_twin, "/control", {"slowness": 1.5, "start": True})[0] == 200
    wait_until(lambda: state_of(running_twin)["services"][SERVICE]["finished"] > 20, "requests to be served")
    assert running_twin.fleet.slowness_ratio == 1.5


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{oops", "Expecting"),
        ("[]", "no JSON object"),
        ({}, "asks for nothing"),
        ({"explode": True}, "explode"),
        ({"slowness": "much"}, 'send {"slowness": 1.2}'),
        ({"slowness": 0}, "give a number above 0"),
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


@pytest.mark.parametrize(("text", "patience_s"), [("12.5", 12.5), ("inf", math.inf)])
def test_the_gateways_patience_is_an_option(text: str, patience_s: float) -> None:
    assert make_parser().parse_args(["--kubeconfig", "k"]).patience_s == 30.0
    assert make_parser().parse_args(["--kubeconfig", "k", "--patience-s", text]).patience_s == patience_s


@pytest.mark.parametrize("text", ["-1", "nan", "long"])
def test_a_patience_that_is_no_time_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--kubeconfig", "k", "--patience-s", text])
    assert "--patience-s" in capsys.readouterr().err


# ---------------------------------------------------------------- on a real control plane


def labelled_pod(name: str) -> dict[str, Any]:
    made = gpu_pod(name, gpus=1, namespace="demo")
    made["metadata"]["labels"] = dict(pod(name).labels) | {
        MANAGED_BY_LABEL: MANAGED_BY,
        MODEL_LABEL: "chat-8b",
        GPU_CLASS_LABEL: "h100-sxm",
    }
    return made


def fully_read(telemetry: Telemetry) -> list[EngineReading]:
    """Engines of which every row has an answer."""
    engines = telemetry.read([]).engines.values()
    return [e for e in engines if None not in (e.ttft_s, e.prefill_s, e.itl_s, e.gpu_watts) and e.prompts_per_s > 0]


def test_a_pod_that_becomes_ready_appears_in_prometheus(simcluster: SimCluster) -> None:
    install_kinds(simcluster.api, crd_bodies())
    simcluster.create_namespace("demo")
    samples = ROOT / "deploy/samples/demo"
    for file in (*sorted(samples.glob("[gs]*.yaml")), samples / "profiles-llama-3.1-8b.yaml"):
        simcluster.apply(file)
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
        prometheus = Prometheus(monitoring.url)
        telemetry = Telemetry(ask=prometheus.query, rate_window_s=5.0, time_scale=20.0, asks_engines=True)
        (engine,) = wait_until(lambda: fully_read(telemetry), "every row of the engine")
        prometheus.close()
        assert 0.5 < engine.prompts_per_s < 20.0, "steady traffic of five requests per virtual second"
        assert 0.0 < (engine.prefill_s or 0.0) <= (engine.ttft_s or 0.0)
        assert engine.running == pytest.approx(engine.output_tokens_per_s * (engine.itl_s or 0.0), rel=1.0)
        assert 70.0 < (engine.gpu_watts or 0.0) < 700.0
        monitoring.wait_for('DCGM_FI_DEV_POWER_USAGE{Hostname="n1", exported_pod="engine-0"} > 100')
        assert state_of(twin)["faults"] == []
        simcluster.fail_node("n1", wait=False)
        wait_until(lambda: state_of(twin)["replicas"] == {}, "the twin to lose the pod of the dead node")
        simcluster.recover_node("n1")
        wait_until(lambda: state_of(twin)["replicas"] != {}, "the pod to serve again")
        simcluster.api.delete("/api/v1/namespaces/demo/pods/engine-0", grace_s=0)
        monitoring.wait_for('absent(vllm:num_requests_running{pod="engine-0"})')
    watch.stop()
