"""The cache: reduction, order of events, lists of its own, and no ghosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.cache import Cache
from controller.client import Expired, KubeClient
from controller.kinds import (
    KINDS,
    deployment_record,
    node_record,
    object_record,
    plan_record,
    pod_record,
    replicas_manager,
)
from controller.records import MANAGED_BY, MANAGED_BY_LABEL, PodRecord

OURS = {MANAGED_BY_LABEL: MANAGED_BY}
POD_KIND = next(kind for kind in KINDS if kind.name == "Pod")


def pod(name: str, version: int, *, ready: bool = True, **extra: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "team-a",
        "name": name,
        "uid": extra.pop("uid", f"uid-{name}"),
        "labels": extra.pop("labels", OURS),
        "resourceVersion": str(version),
        "creationTimestamp": "2026-11-20T12:00:00Z",
        "managedFields": [{"manager": "somebody"}],
        **extra,
    }
    return {
        "metadata": metadata,
        "spec": {
            "nodeName": "gpu-1",
            "containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "4", "cpu": "8"}}}],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


class FakeServer(KubeClient):
    """Lists what it is told to, page by page."""

    def __init__(self) -> None:
        self.version = 0
        self.bodies: dict[str, dict[str, Any]] = {}
        self.lists = 0
        self.expire_once = False

    def put(self, name: str, **extra: Any) -> dict[str, Any]:
        self.version += 1
        self.bodies[name] = pod(name, self.version, **extra)
        return self.bodies[name]

    def remove(self, name: str) -> dict[str, Any]:
        self.version += 1
        gone = self.bodies.pop(name)
        return {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}

    def list_pages(self, path: str, selector: str = "") -> Iterator[tuple[list[dict[str, Any]], str]]:
        self.lists += 1
        every = list(self.bodies.values())
        yield every[:2], str(self.version)
        if self.expire_once:
            self.expire_once = False
            raise Expired("GET /api/v1/pods", 410, "Expired", "too old")
        yield every[2:], str(self.version)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_cache() -> tuple[Cache, FakeServer, Clock, list[str]]:
    clock, changes = Clock(), list[str]()
    return Cache(changes.append, kinds=[POD_KIND], relist_s=60.0, clock=clock), FakeServer(), clock, changes


def names(cache: Cache) -> list[str]:
    return [record.name for record in cache.view().pods.values()]


def test_a_new_cache_is_not_settled_until_it_was_listed() -> None:
    cache, server, _, _ = make_cache()
    server.put("a")
    assert not cache.is_settled()
    cache.refresh(server)
    assert cache.is_settled()
    assert names(cache) == ["a"]


def test_what_vanished_while_the_watch_was_blind_leaves_no_ghost() -> None:
    cache, server, clock, _ = make_cache()
    for name in ("a", "b", "c"):
        cache.see("Pod", "ADDED", server.put(name))
    cache.refresh(server)
    server.remove("a")  # nobody told us
    server.remove("c")
    cache.see("Pod", None, server.bodies["b"])  # the watch begins anew
    assert names(cache) == ["a", "b", "c"]
    assert not cache.is_settled(), "nobody may act between such an event and our list"
    clock.now_s += 1.0
    cache.refresh(server)
    assert cache.is_settled()
    assert names(cache) == ["b"]


def test_the_first_pass_of_a_watch_unsettles_nothing_and_one_list_at_its_end_drops_ghosts() -> None:
    cache, server, clock, changes = make_cache()
    for name in "abc":
        server.put(name)
    cache.refresh(server)
    cache.begin_pass()
    changes.clear()
    server.remove("a")  # between our list and the watch's own: nobody tells
    for name in "bc":
        clock.now_s += 2.0
        cache.see("Pod", None, server.bodies[name])
        assert cache.is_settled()
        assert (cache.due(), changes) == ((), []), "what our list holds already is no news"
    clock.now_s += 5.0
    cache.refresh(server)
    assert (server.lists, names(cache)) == (2, ["b", "c"])
    cache.see("Pod", None, server.put("d"))
    assert not cache.is_settled(), "the pass is over: this is a watch that begins anew"


def test_an_object_that_comes_twice_without_a_type_says_that_the_watch_was_blind() -> None:
    cache, server, _, _ = make_cache()
    server.put("a")
    cache.refresh(server)
    cache.begin_pass()
    cache.see("Pod", None, server.bodies["a"])
    assert cache.is_settled()
    cache.see("Pod", None, server.bodies["a"])
    assert not cache.is_settled()


def test_a_pass_over_nothing_ends_with_the_first_typed_event() -> None:
    cache, server, _, _ = make_cache()
    cache.refresh(server)
    cache.begin_pass()
    cache.see("Pod", "ADDED", server.put("a"))
    server.remove("a")
    cache.see("Pod", None, server.put("b"))
    assert not cache.is_settled()


def test_a_long_first_pass_does_not_age_our_list() -> None:
    cache, server, clock, _ = make_cache()
    for number in range(20):
        server.put(str(number))
    cache.refresh(server)
    cache.begin_pass()
    for number in range(20):
        clock.now_s += 4.0
        cache.see("Pod", None, server.bodies[str(number)])
        cache.refresh(server)
        assert cache.is_settled()
    assert server.lists == 6, "every 15 s or so while the pass goes on"


def test_news_in_the_first_pass_are_taken_in() -> None:
    cache, server, _, changes = make_cache()
    server.put("a")
    cache.refresh(server)
    cache.begin_pass()
    changes.clear()
    cache.see("Pod", None, server.put("b"))
    assert (names(cache), changes) == (["a", "b"], ["Pod"])


def test_watches_that_were_interrupted_are_distrusted_until_a_list_and_then_pass_again() -> None:
    cache, server, _, _ = make_cache()
    server.put("a")
    cache.refresh(server)
    cache.suspect_all()
    cache.begin_pass()
    cache.see("Pod", None, server.bodies["a"])
    assert not cache.is_settled()
    cache.refresh(server)
    assert cache.is_settled()


def test_our_own_write_is_known_at_once_and_wakes_nobody() -> None:
    cache, server, _, changes = make_cache()
    cache.wrote("Pod", server.put("a"))
    assert (names(cache), changes) == (["a"], [])


def test_a_list_waits_until_the_events_of_a_relist_are_quiet() -> None:
    cache, server, clock, _ = make_cache()
    cache.refresh(server)
    cache.see("Pod", None, server.put("a"))
    assert cache.due() == ()
    clock.now_s += 0.5
    assert cache.due() == ("Pod",)


def test_an_event_during_our_list_keeps_the_cache_unsettled() -> None:
    cache, server, _, _ = make_cache()

    class Interrupted(FakeServer):
        def list_pages(self, path: str, selector: str = "") -> Iterator[tuple[list[dict[str, Any]], str]]:
            yield from super().list_pages(path, selector)
            cache.see("Pod", None, server.put("late"))

    cache.refresh(Interrupted())
    assert not cache.is_settled()


def test_every_kind_is_listed_again_after_the_relist_period() -> None:
    cache, server, clock, _ = make_cache()
    cache.refresh(server)
    server.put("unseen")
    clock.now_s += 59.0
    cache.refresh(server)
    assert (server.lists, names(cache)) == (1, [])
    clock.now_s += 2.0
    cache.refresh(server)
    assert (server.lists, names(cache)) == (2, ["unseen"])


def test_a_list_that_expires_half_way_begins_again() -> None:
    cache, server, _, _ = make_cache()
    for name in "abcd":
        server.put(name)
    server.expire_once = True
    cache.refresh(server)
    assert (server.lists, names(cache)) == (2, ["a", "b", "c", "d"])


def test_newer_than_the_list_stays() -> None:
    cache, server, _, _ = make_cache()
    server.put("a")
    old = list(server.list_pages(""))
    newer = server.put("b")

    class Slow(FakeServer):
        def list_pages(self, path: str, selector: str = "") -> Iterator[tuple[list[dict[str, Any]], str]]:
            cache.see("Pod", "ADDED", newer)  # arrives while an older list is under way
            yield from old

    cache.refresh(Slow())
    assert names(cache) == ["a", "b"]


def test_deleted_during_a_list_is_not_resurrected_by_it() -> None:
    cache, server, _, _ = make_cache()
    cache.see("Pod", "ADDED", server.put("a"))
    old = list(server.list_pages(""))
    gone = server.remove("a")

    class Slow(FakeServer):
        def list_pages(self, path: str, selector: str = "") -> Iterator[tuple[list[dict[str, Any]], str]]:
            cache.see("Pod", "DELETED", gone)
            yield from old

    cache.refresh(Slow())
    assert names(cache) == []


def test_the_end_of_an_older_object_of_the_same_name_is_ignored() -> None:
    cache, server, _, _ = make_cache()
    cache.see("Pod", "ADDED", server.put("a", uid="first"))
    gone = server.remove("a")
    cache.see("Pod", "ADDED", server.put("a", uid="second"))
    cache.see("Pod", "DELETED", gone)  # deliveries of different objects may overtake each other
    assert [record.uid for record in cache.view().pods.values()] == ["second"]


def test_storage_that_went_back_in_time_starts_the_cache_over() -> None:
    cache, server, clock, _ = make_cache()
    for name in "abc":
        server.put(name)
    cache.refresh(server)
    restored = FakeServer()
    restored.put("z")
    clock.now_s += 61.0
    cache.refresh(restored)
    assert names(cache) == ["z"]


def test_only_changes_that_mean_something_wake_the_loop() -> None:
    cache, server, _, changes = make_cache()
    cache.see("Pod", "ADDED", server.put("a"))
    cache.see("Pod", "MODIFIED", server.put("a"))  # a new version, nothing else
    assert changes == ["Pod"]
    cache.see("Pod", "MODIFIED", server.put("a", ready=False))
    assert changes == ["Pod", "Pod"]
    cache.see("Pod", "MODIFIED", server.put("a", labels={}, annotations={}))
    cache.see("Pod", "DELETED", server.remove("a"))
    assert changes == ["Pod"] * 4


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_loss_and_delay_of_events_heals_with_the_next_list(data: st.DataObject) -> None:
    cache, server, clock, _ = make_cache()
    delayed: list[tuple[str, dict[str, Any]]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        name = data.draw(st.sampled_from("abcd"))
        removes = name in server.bodies and data.draw(st.booleans())
        event = ("DELETED", server.remove(name)) if removes else ("MODIFIED", server.put(name))
        fate = data.draw(st.sampled_from(["seen", "lost", "late"]))
        if fate == "seen":
            cache.see("Pod", *event)
        elif fate == "late":
            delayed.append(event)
        if data.draw(st.integers(0, 5)) == 0:
            clock.now_s += 61.0
            cache.refresh(server)
    for event in data.draw(st.permutations(delayed)):
        cache.see("Pod", *event)
    clock.now_s += 61.0
    cache.refresh(server)
    expected = {f"team-a/{name}": body["metadata"]["resourceVersion"] for name, body in server.bodies.items()}
    assert {key: record.resource_version for key, record in cache.view().pods.items()} == expected


def test_waiting_for_a_claim_ends_when_it_comes_true_or_time_is_up() -> None:
    cache, server, _, _ = make_cache()
    cache.see("Pod", "ADDED", server.put("a"))
    assert cache.wait_for(lambda: cache.pod("team-a/a") is not None, timeout_s=0.0)
    assert not cache.wait_for(lambda: cache.pod("team-a/b") is not None, timeout_s=0.0)


def test_pods_are_kept_when_ours_or_asking_for_gpus_and_dropped_when_finished() -> None:
    kept = pod_record(pod("a", 1))
    assert isinstance(kept, PodRecord)
    assert (kept.requests, kept.is_ready, kept.node) == ({"nvidia.com/gpu": 4}, True, "gpu-1")
    assert pod_record(pod("a", 1, labels={})) is not None, "a foreign pod with GPUs"
    plain = pod("a", 1, labels={})
    plain["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}}
    minor = pod_record(plain)
    assert isinstance(minor, PodRecord)
    assert (minor.labels, minor.requests, minor.host) == ({}, {}, {"cpu": 1000}), "it takes cores of its node"
    del plain["spec"]["nodeName"]
    assert pod_record(plain) is None
    finished = pod("a", 1)
    finished["status"]["phase"] = "Succeeded"
    assert pod_record(finished) is None


def test_init_containers_count_where_they_ask_for_more_and_sidecars_beside() -> None:
    body = pod("a", 1)
    gpus = {"limits": {"nvidia.com/gpu": "6"}}
    body["spec"]["initContainers"] = [{"resources": gpus}]
    assert (pod_record(body) or kept_nothing()).requests == {"nvidia.com/gpu": 6}
    body["spec"]["initContainers"] = [{"resources": gpus, "restartPolicy": "Always"}]
    assert (pod_record(body) or kept_nothing()).requests == {"nvidia.com/gpu": 10}


def kept_nothing() -> PodRecord:
    raise AssertionError("the pod was dropped")


def test_a_node_is_reduced_to_resources_readiness_and_taints() -> None:
    record = node_record(
        {
            "metadata": {"name": "gpu-1", "labels": {"rack": "r1"}, "resourceVersion": "5"},
            "spec": {"unschedulable": True, "taints": [{"key": "node.kubernetes.io/out-of-service"}]},
            "status": {
                "capacity": {"cpu": "64", "nvidia.com/gpu": "8", "vendor.example/ports": "1k"},
                "allocatable": {"nvidia.com/gpu": "7"},
                "conditions": [{"type": "Ready", "status": "Unknown"}],
            },
        }
    )
    assert record.capacity == {"nvidia.com/gpu": 8, "vendor.example/ports": 1000}
    assert record.allocatable == {"nvidia.com/gpu": 7}
    assert (record.is_ready, record.is_cordoned, record.is_out_of_service) == (False, True, True)


def test_the_owner_of_replicas_is_another_manager_before_ours() -> None:
    def owns(manager: str, *fields: str) -> dict[str, Any]:
        return {"manager": manager, "fieldsV1": {"f:spec": {name: {} for name in fields}}}

    assert replicas_manager([owns("penstock", "f:template"), owns("penstock-scale", "f:replicas")]) == "penstock-scale"
    both = [owns("penstock-scale", "f:replicas"), owns("kube-controller-manager", "f:replicas")]
    assert replicas_manager(both) == "kube-controller-manager"
    half_made = [owns("penstock-scale", "f:replicas"), owns("penstock", "f:replicas")]
    assert replicas_manager(half_made) == "penstock"
    assert replicas_manager([]) == ""


def test_deployments_objects_and_plans_are_reduced() -> None:
    metadata = {"namespace": "n", "name": "d", "uid": "u", "resourceVersion": "3", "generation": 2, "managedFields": []}
    deployment = deployment_record({"metadata": metadata, "spec": {"replicas": 0}, "status": {"readyReplicas": 1}})
    assert (deployment.replicas, deployment.ready_replicas, deployment.generation) == (0, 1, 2)
    kept = object_record({"metadata": metadata, "spec": {"tier": "x"}, "kind": "ServedModel"})
    assert "managedFields" not in kept.body["metadata"]
    assert kept.body["spec"] == {"tier": "x"}
    plan = plan_record({"metadata": metadata, "spec": {"number": 7, "part": 2, "parts": 3, "decisionHash": "ab"}})
    assert (plan.number, plan.part, plan.parts, plan.decision_hash) == (7, 2, 3, "ab")
