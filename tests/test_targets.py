"""Generated Deployments: their bodies, and the order and ownership of the writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cache import Cache
from controller.client import Body, Forbidden, KubeClient, NotFound, ReplicasOwnedByOther, Unreachable
from controller.inventory import Place, place_of
from controller.kinds import deployment_record
from controller.records import MANAGED_BY, MANAGED_BY_LABEL, POOL_LABEL
from controller.resources import parse_fleet_policy, parse_gpu_class, parse_served_model
from controller.targets import LEAVING_COST, DeploymentTargets
from controller.workloads import Blueprints, deployment_body, pool_labels, workload_name
from solvers.engine import EngineConfig, Role
from solvers.fleet import ANYWHERE, PoolKey
from solvers.rollout import Scale

T = TypeVar("T")

API = "penstock.dev/v1alpha1"
POLICY = parse_fleet_policy(
    {
        "apiVersion": API,
        "kind": "FleetPolicy",
        "metadata": {"name": "default"},
        "spec": {"locationLabel": "example.com/rack", "managedNodes": {"penstock.dev/managed": "true"}},
    }
)
L40S = parse_gpu_class(
    {
        "apiVersion": API,
        "kind": "GpuClass",
        "metadata": {"name": "l40s"},
        "spec": {
            "resourceName": "nvidia.com/gpu",
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
            "memoryMebibytes": 46068,
            "power": {"idleWatts": 40, "minCapWatts": 100, "maxCapWatts": 350},
            "priceMilliUsdPerHour": 800,
        },
    }
)
POOL = PoolKey(service="team-a/chat", role=Role.MIXED, gpu_class="l40s", config=EngineConfig(tensor_parallel=2))
PLACE = (POOL, "rack-1")
NAME = workload_name(*PLACE)
PATH = f"/apis/apps/v1/namespaces/team-a/deployments/{NAME}"


def served_model(**spec: Any) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": "chat"}, "annotations": {"note": "mine"}},
        "spec": {
            "nodeSelector": {"zone": "a"},
            "containers": [
                {
                    "name": "engine",
                    "image": "engine:1",
                    "args": ["--tensor-parallel-size=$(PENSTOCK_TENSOR_PARALLEL)"],
                    "env": [{"name": "MINE", "value": "1"}],
                    "resources": {"limits": {"cpu": "8"}},
                },
                {"name": "sidecar", "image": "sidecar:1"},
            ],
        },
    }
    return {
        "apiVersion": API,
        "kind": "ServedModel",
        "metadata": {"namespace": "team-a", "name": "chat", "uid": "the-uid", "generation": 1},
        "spec": {
            "model": "org/chat",
            "tier": "standard",
            "slos": [{"metric": "TTFT", "percentile": 95, "milliseconds": 500}],
            "demand": {"source": "Gateway", "inferencePool": "chat"},
            "management": "Generate",
            "template": template,
            **spec,
        },
    }


def blueprints(**spec: Any) -> Blueprints:
    model = parse_served_model(served_model(**spec), POLICY)
    return Blueprints(services={"team-a/chat": model}, gpu_classes={"l40s": L40S}, policy=POLICY)


def read_back(namespace: str, labels: dict[str, str]) -> Place:
    return place_of(
        deployment_record({"metadata": {"namespace": namespace, "name": "d", "uid": "u", "labels": labels}})
    )


def body(place: Place = PLACE, **spec: Any) -> Body:
    return blueprints(**spec).body(*place)


def test_the_template_holds_class_location_gpus_and_the_users_own_words() -> None:
    pod = body()["spec"]["template"]
    assert pod["spec"]["nodeSelector"] == {
        "zone": "a",
        "penstock.dev/managed": "true",
        "nvidia.com/gpu.product": "NVIDIA-L40S",
        "example.com/rack": "rack-1",
    }
    engine, sidecar = pod["spec"]["containers"]
    assert engine["resources"]["limits"] == {"cpu": "8", "nvidia.com/gpu": "2"}
    variables = {entry["name"]: entry["value"] for entry in engine["env"]}
    assert (variables["PENSTOCK_TENSOR_PARALLEL"], variables["MINE"]) == ("2", "1")
    assert sidecar == {"name": "sidecar", "image": "sidecar:1"}
    assert pod["metadata"]["labels"]["app"] == "chat"
    assert pod["metadata"]["annotations"] == {"note": "mine"}


def test_counts_are_in_nobodys_template_and_updates_do_not_surge() -> None:
    made = body()
    assert "replicas" not in made["spec"]
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert "ownerReferences" not in made["metadata"], "removing the ServedModel must leave pods serving"
    (owner,) = body(deletionPolicy="Delete")["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("ServedModel", "the-uid")


def test_class_placement_pins_no_location_and_labels_say_so() -> None:
    made = body((POOL, ANYWHERE))
    assert "example.com/rack" not in made["spec"]["template"]["spec"]["nodeSelector"]
    assert read_back("team-a", made["metadata"]["labels"]) == (POOL, ANYWHERE)


def test_the_hash_changes_with_the_template_and_with_nothing_else() -> None:
    def digest(**spec: Any) -> str:
        annotations: dict[str, str] = body(**spec)["metadata"]["annotations"]
        return annotations["penstock.dev/template-hash"]

    assert digest() == digest(replicas={"min": 3, "max": 9})
    other = served_model()["spec"]["template"]
    other["spec"]["containers"][0]["image"] = "engine:2"
    assert digest() != digest(template=other)


words = st.sampled_from(["a", "chat", "chat-8b", "x" * 63, "chat-8b-l40s", "very-long-name-of-a-team-or-model-01"])
places = st.tuples(
    st.builds(
        PoolKey,
        service=st.tuples(words, words).map("/".join),
        role=st.sampled_from(Role),
        gpu_class=words,
        config=st.builds(
            EngineConfig, tensor_parallel=st.sampled_from([1, 2, 8]), variant=st.sampled_from(["", "fp8"])
        ),
    ),
    st.sampled_from([ANYWHERE, "rack-1", "Row_7.b", "r" * 63]),
)


@given(place=places)
def test_labels_read_back_and_names_are_valid(place: Place) -> None:
    namespace = place[0].service.partition("/")[0]
    assert read_back(namespace, pool_labels(*place)) == place
    name = workload_name(*place)
    assert len(name) <= 46
    assert name.replace("-", "a").isalnum()
    assert name == name.lower()
    assert name[0] != "-"
    assert all(len(value) <= 63 for value in pool_labels(*place).values())


@given(first=places, second=places)
def test_different_places_have_different_names(first: Place, second: Place) -> None:
    assert (first == second) == (workload_name(*first) == workload_name(*second))


class FakeClient(KubeClient):
    """Notes writes, in order; raises what it is told to."""

    def __init__(self, cache: Cache, *, blind: bool = False) -> None:
        self.cache, self.blind = cache, blind
        self.writes: list[tuple[Any, ...]] = []
        self.errors: dict[str, Exception] = {}

    def apply(self, path: str, body: Body, *, manager: str = "penstock", force: bool = True) -> Body:
        self._note("apply", path, body["spec"].get("replicas"))
        return deployment(0, made=body, manager="penstock", version=20)

    def scale(self, path: str, replicas: int, *, force: bool = False) -> Body:
        self._note("take" if force else "scale", path, replicas)
        return {"metadata": {"resourceVersion": "30"}, "spec": {"replicas": replicas}}

    def merge(self, path: str, body: Body) -> Body:
        self._note("merge", path, body["metadata"]["annotations"])
        if not self.blind:
            name = path.rpartition("/")[2]
            self.cache.see("Pod", "MODIFIED", pod(name, 50, annotations=body["metadata"]["annotations"]))
        return {}

    def in_parallel(self, jobs: Iterable[Callable[[], T]]) -> list[T]:
        return [job() for job in jobs]

    def _note(self, verb: str, path: str, what: Any) -> None:
        self.writes.append((verb, path, what))
        if error := self.errors.get(verb):
            raise error


def pod(name: str, version: int, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team-a",
            "name": name,
            "uid": name,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, POOL_LABEL: NAME},
            "annotations": annotations or {},
            "resourceVersion": str(version),
        },
        "spec": {"containers": []},
        "status": {"phase": "Running"},
    }


def deployment(
    replicas: int, *, manager: str = "penstock-scale", made: Body | None = None, version: int = 9
) -> dict[str, Any]:
    made = made or body()
    managed = [{"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    metadata = {**made["metadata"], "uid": "d", "resourceVersion": str(version), "managedFields": managed}
    return {**made, "metadata": metadata, "spec": {**made["spec"], "replicas": replicas}}


def step(before: int, after: int, *leaving: str) -> Scale:
    return Scale(
        pool=POOL, location="rack-1", from_replicas=before, to_replicas=after, leaving=leaving, reason="as planned"
    )


@pytest.fixture
def cache() -> Cache:
    made = Cache()
    for name in ("a", "b", "c"):
        made.see("Pod", "ADDED", pod(name, 5))
    return made


def targets(client: FakeClient) -> DeploymentTargets:
    return DeploymentTargets(client, client.cache, pause=lambda _: None)


def test_creation_never_starts_a_pod_by_default(cache: Cache) -> None:
    client = FakeClient(cache)
    (outcome,) = targets(client).apply([step(0, 2)], blueprints())
    assert outcome.is_done
    assert client.writes == [("apply", PATH, 0), ("take", PATH, 2)]


def test_a_known_workload_is_only_scaled(cache: Cache) -> None:
    cache.see("Deployment", "ADDED", deployment(2))
    client = FakeClient(cache)
    targets(client).apply([step(2, 3)], blueprints())
    assert client.writes == [("scale", PATH, 3)]


def test_an_interrupted_creation_is_finished_by_the_next_raise(cache: Cache) -> None:
    cache.see("Deployment", "ADDED", deployment(0, manager="penstock"))
    client = FakeClient(cache)
    assert targets(client).renew_templates(blueprints(), 8) == ()
    targets(client).apply([step(0, 1)], blueprints())
    assert client.writes == [("take", PATH, 1)]


def test_a_template_changed_before_the_first_scale_keeps_the_zero(cache: Cache) -> None:
    cache.see("Deployment", "ADDED", deployment(0, manager="penstock"))
    client = FakeClient(cache)
    other = served_model()["spec"]["template"]
    other["spec"]["containers"][0]["image"] = "engine:2"
    targets(client).renew_templates(blueprints(template=other), 8)
    assert client.writes == [("apply", PATH, 0)]


def test_the_cache_counts_what_was_asked_for_before_the_watch_tells(cache: Cache) -> None:
    client = FakeClient(cache)
    targets(client).apply([step(0, 2)], blueprints())
    (record,) = cache.view().deployments.values()
    assert (record.replicas, record.replicas_manager, record.name) == (2, "penstock-scale", NAME)
    cache.see("Deployment", "MODIFIED", deployment(0, manager="penstock", version=20))  # the watch is late
    assert cache.view().deployments[f"team-a/{NAME}"].replicas == 2


def test_a_write_whose_answer_was_lost_leaves_the_cache_unsettled(cache: Cache) -> None:
    class Empty(FakeClient):
        def list_pages(self, path: str, selector: str = "") -> Iterator[tuple[list[Body], str]]:
            yield [], "1"

    client = Empty(cache)
    cache.refresh(client)
    cache.see("Deployment", "ADDED", deployment(1))
    client.errors["scale"] = Unreachable("PATCH: timed out")
    (outcome,) = targets(client).apply([step(1, 2)], blueprints())
    assert (outcome.is_done, outcome.reason) == (False, "Unreachable")
    assert not cache.is_settled(), "nobody may act before a list says what became of it"


def test_few_workloads_roll_at_a_time(cache: Cache) -> None:
    for rack in ("rack-1", "rack-2", "rack-3"):
        cache.see("Deployment", "ADDED", deployment(1, made=body((POOL, rack))))
    other = served_model()["spec"]["template"]
    other["spec"]["containers"][0]["image"] = "engine:2"
    client = FakeClient(cache)
    assert len(targets(client).renew_templates(blueprints(template=other), 2)) == 2


def test_replicas_that_another_manager_owns_are_not_even_tried(cache: Cache) -> None:
    cache.see("Deployment", "ADDED", deployment(3, manager="kube-controller-manager"))
    client = FakeClient(cache)
    (outcome,) = targets(client).apply([step(3, 1, "a", "b")], blueprints())
    assert (outcome.is_done, outcome.reason) == (False, "ReplicasOwnedByOther")
    assert "kube-controller-manager owns the replicas" in outcome.message
    assert client.writes == [], "no pod may be marked for leaving"


def test_a_changed_template_is_applied_and_an_equal_one_is_not(cache: Cache) -> None:
    cache.see("Deployment", "ADDED", deployment(2))
    client = FakeClient(cache)
    assert targets(client).renew_templates(blueprints(), 8) == ()
    other = served_model()["spec"]["template"]
    other["spec"]["containers"][0]["image"] = "engine:2"
    targets(client).renew_templates(blueprints(template=other), 8)
    assert client.writes == [("apply", PATH, None)]


def test_a_workload_whose_service_is_gone_is_left_alone(cache: Cache) -> None:
    cache.see("Deployment", "ADDED", deployment(2, made=body(deletionPolicy="Delete")))
    client = FakeClient(cache)
    assert targets(client).renew_templates(replace(blueprints(), services={}), 8) == ()
    assert client.writes == []


def test_who_leaves_is_marked_and_seen_before_the_count_falls(cache: Cache) -> None:
    client = FakeClient(cache)
    (outcome,) = targets(client).apply([step(3, 1, "b", "a")], blueprints())
    assert outcome.is_done
    *marks, lowered = client.writes
    costs = {path.rpartition("/")[2]: what for _, path, what in marks}
    cost = "controller.kubernetes.io/pod-deletion-cost"
    assert costs == {"b": {cost: str(LEAVING_COST)}, "a": {cost: str(LEAVING_COST + 1)}}
    assert lowered == ("scale", PATH, 1)


def test_marks_of_an_abandoned_step_are_taken_back(cache: Cache) -> None:
    cost = "controller.kubernetes.io/pod-deletion-cost"
    cache.see("Pod", "MODIFIED", pod("c", 6, annotations={cost: str(LEAVING_COST)}))
    client = FakeClient(cache)
    targets(client).apply([step(3, 2, "a")], blueprints())
    assert ("merge", "/api/v1/namespaces/team-a/pods/c", {cost: "0"}) in client.writes


def test_a_mark_that_nobody_saw_keeps_the_count(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.targets.OBSERVE_S", 0.01)
    client = FakeClient(cache, blind=True)
    (outcome,) = targets(client).apply([step(3, 2, "b")], blueprints())
    assert not outcome.is_done
    assert "team-a/b was not seen" in outcome.message
    assert "scale" not in {write[0] for write in client.writes}


def test_a_pod_that_left_by_itself_needs_no_mark(cache: Cache) -> None:
    client = FakeClient(cache)
    client.errors["merge"] = NotFound("PATCH", 404, "NotFound", "")
    (outcome,) = targets(client).apply([step(3, 2, "gone")], blueprints())
    assert outcome.is_done


def test_replicas_taken_by_another_manager_are_yielded_and_said(cache: Cache) -> None:
    cache.see("Deployment", "ADDED", deployment(2))
    client = FakeClient(cache)
    cause = {"message": 'conflict with "kube-controller-manager" with subresource "scale"'}
    client.errors["scale"] = ReplicasOwnedByOther("PATCH", 409, "Conflict", "", {"causes": [cause]})
    (outcome,) = targets(client).apply([step(2, 3)], blueprints())
    assert (outcome.is_done, outcome.reason) == (False, "ReplicasOwnedByOther")
    assert "kube-controller-manager owns the replicas" in outcome.message


def test_one_failing_action_does_not_stop_the_others(cache: Cache) -> None:
    client = FakeClient(cache)
    client.errors["apply"] = Forbidden("PATCH", 403, "Forbidden", "no")
    up, down = targets(client).apply([step(3, 2, "a"), replace(step(0, 1), location="rack-2")], blueprints())
    assert (up.is_done, down.is_done, down.reason) == (True, False, "Forbidden")


def test_a_deployment_body_is_a_pure_function() -> None:
    model = parse_served_model(served_model(), POLICY)
    assert deployment_body(POOL, "rack-1", model, L40S, POLICY) == deployment_body(POOL, "rack-1", model, L40S, POLICY)
