"""Exported series and the health endpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from controller import metrics
from controller.health import HealthServer
from controller.metrics import Metrics
from solvers.errors import InvalidInput
from tests.fake_cluster import FakeCluster
from tests.test_loop import Bench


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(FakeCluster().install())
    made.cluster.serve(requests_per_s=6.0)
    yield made
    made.decider.stop()


def test_a_settled_fleet_is_exported_and_every_documented_series_exists(bench: Bench) -> None:
    report = bench.settle()
    found = samples(bench.metrics.render())
    assert report.decision is not None
    wanted = sum(row.replicas for row in report.decision.plan.pools)
    service = (("model", "chat"), ("namespace", "team-a"), ("role", "mixed"))
    assert found["penstock_desired_replicas", service] == wanted == found["penstock_ready_replicas", service]
    assert found["penstock_power_watts", (("domain", "rack-1"), ("kind", "budget"))] == 10_000
    assert found["penstock_plan_number", ()] == 1
    assert found["penstock_leader", ()] == 1
    documented = {
        line.split("{")[0].split()[0] for line in (metrics.__doc__ or "").splitlines() if line.startswith("penstock_")
    }
    exported = {name for name, _ in found}
    histograms = {name.removesuffix("_count") for name in exported if name.endswith("_count")}
    assert documented - exported - histograms == {"penstock_solver_solves_total"}  # no solve was told to these metrics
    undocumented = {name for name in exported if not name.endswith(("_bucket", "_sum", "_count", "_created"))}
    assert undocumented <= documented


def test_series_of_what_is_gone_end(bench: Bench) -> None:
    bench.settle()
    bench.cluster.remove("ServedModel", "team-a/chat")
    bench.turn()
    bench.settle()
    names = {labels for name, labels in samples(bench.metrics.render()) if name == "penstock_desired_replicas"}
    assert names == set()


def test_totals_kept_elsewhere_never_fall() -> None:
    exported = Metrics()
    for total in (2, 2, 5, 0):
        exported.count_up_to("watch_restarts", total)
    exported.solve_ended("planned", 0.5)
    found = samples(exported.render())
    assert found["penstock_watch_restarts_total", ()] == 5
    assert found["penstock_solver_solves_total", (("result", "planned"),)] == 1


def ask(port: int, path: str) -> tuple[int, bytes]:
    pool = urllib3.PoolManager(retries=False)
    answer = pool.request("GET", f"http://127.0.0.1:{port}{path}")
    pool.clear()
    return answer.status, answer.data


def test_health_readiness_and_metrics_are_served_on_loopback() -> None:
    wrong = {"healthy": "", "ready": "the cluster was not seen yet"}
    server = HealthServer(
        "127.0.0.1", 0, healthy=lambda: wrong["healthy"], ready=lambda: wrong["ready"], metrics=lambda: b"up 1\n"
    )
    server.start()
    try:
        assert ask(server.port, "/healthz") == (200, b"ok\n")
        assert ask(server.port, "/readyz") == (503, b"the cluster was not seen yet\n")
        assert ask(server.port, "/metrics?x=1") == (200, b"up 1\n")
        assert ask(server.port, "/other")[0] == 404
        with pytest.raises(InvalidInput, match="choose another --metrics-port"):
            HealthServer("127.0.0.1", server.port, healthy=str, ready=str, metrics=bytes)
    finally:
        server.stop()
