"""Events: counted instead of repeated, and never a flood."""

from __future__ import annotations

from typing import Any

import pytest

from controller.client import AlreadyExists, Body, KubeClient, NotFound, NotLeader
from controller.events import BURST, Recorder, Subject

MODEL = Subject(api_version="penstock.dev/v1alpha1", kind="ServedModel", namespace="team-a", name="chat", uid="u")
POLICY = Subject(api_version="penstock.dev/v1alpha1", kind="FleetPolicy", name="default", uid="p")


class FakeClient(KubeClient):
    """Keeps Events by path; refuses as told."""

    def __init__(self) -> None:
        self.events: dict[str, Body] = {}
        self.creates = self.merges = 0
        self.error: Exception | None = None

    def create(self, path: str, body: Body) -> Body:
        self.creates += 1
        if self.error:
            raise self.error
        key = f"{path}/{body['metadata']['name']}"
        if key in self.events:
            raise AlreadyExists("POST", 409, "AlreadyExists", "")
        self.events[key] = body
        return body

    def merge(self, path: str, body: Body) -> Body:
        self.merges += 1
        if path not in self.events:
            raise NotFound("PATCH", 404, "NotFound", "")
        self.events[path] = {**self.events[path], **body}
        return body


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def world() -> tuple[Recorder, FakeClient, Clock]:
    client, clock = FakeClient(), Clock()
    return Recorder(client, clock=clock), client, clock


World = tuple[Recorder, FakeClient, Clock]


def only(client: FakeClient) -> dict[str, Any]:
    (event,) = client.events.values()
    return event


def test_the_same_news_is_told_once_and_counted_later(world: World) -> None:
    recorder, client, clock = world
    assert recorder.tell(MODEL, "Scaled", "from 1 to 2")
    assert not recorder.tell(MODEL, "Scaled", "from 1 to 2")
    clock.now_s += 601.0
    assert recorder.tell(MODEL, "Scaled", "from 1 to 2")
    assert (client.creates, client.merges) == (1, 1)
    assert (only(client)["count"], only(client)["reason"], only(client)["type"]) == (3, "Scaled", "Normal")
    assert only(client)["firstTimestamp"] < only(client)["lastTimestamp"]


def test_other_news_with_the_same_reason_updates_the_one_event(world: World) -> None:
    recorder, client, _ = world
    recorder.tell(MODEL, "Scaled", "from 1 to 2")
    recorder.tell(MODEL, "Scaled", "from 2 to 3", is_warning=True)
    assert (only(client)["message"], only(client)["type"]) == ("from 2 to 3", "Warning")


def test_a_flood_is_cut_off_and_refills_slowly(world: World) -> None:
    recorder, client, clock = world
    told = [recorder.tell(MODEL, f"Reason{i}", "x") for i in range(100)]
    assert sum(told) == BURST == len(client.events)
    assert recorder.dropped == 75
    clock.now_s += 10.0
    assert [recorder.tell(MODEL, f"Later{i}", "x") for i in range(3)] == [True, True, False]


def test_cluster_scoped_objects_have_their_events_in_the_home_namespace(world: World) -> None:
    recorder, client, _ = world
    recorder.tell(POLICY, "Held", "telemetry is stale")
    (path,) = client.events
    assert path.startswith("/api/v1/namespaces/default/events/default.")
    assert "namespace" not in only(client)["involvedObject"]


def test_an_event_of_an_earlier_leader_is_taken_over_and_an_expired_one_made_anew(world: World) -> None:
    recorder, client, clock = world
    recorder.tell(MODEL, "Scaled", "old")
    successor = Recorder(client, clock=clock)
    assert successor.tell(MODEL, "Scaled", "new")
    assert only(client)["message"] == "new"
    client.events.clear()
    assert successor.tell(MODEL, "Scaled", "newer")
    assert only(client)["message"] == "newer"


def test_a_refused_event_breaks_nothing(world: World) -> None:
    recorder, client, _ = world
    client.error = NotLeader("POST: refused")
    assert recorder.tell(MODEL, "Scaled", "x")
    assert client.events == {}
