"""The elector against a fake Lease with real rules, under a clock in hand."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta, timezone
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.client import AlreadyExists, Conflict, NotFound, Unreachable
from controller.election import Elector
from controller.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeApi:
    """One Lease, guarded by its resource version as the real one is."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.down = False
        self.version = 0

    def request(self, method: str, path: str, *, query: Any = None, body: Any = None) -> dict[str, Any]:
        if self.down:
            raise Unreachable(f"{method} {path}: refused")
        if method == "GET":
            if self.lease is None:
                raise NotFound(f"GET {path}", 404, "NotFound", "")
            return copy.deepcopy(self.lease)
        if method == "POST" and self.lease is not None:
            raise AlreadyExists(f"POST {path}", 409, "AlreadyExists", "")
        if method == "PUT" and body["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict(f"PUT {path}", 409, "Conflict", "")
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return copy.deepcopy(self.lease)

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        spec: dict[str, Any] = self.lease["spec"]
        return spec


def elector(api: FakeApi, clock: Clock, name: str, changes: list[bool] | None = None) -> Elector:
    told = changes if changes is not None else []
    return Elector(api, Settings(identity=name), told.append, clock=clock)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_takes_the_lease_and_the_second_waits(api: FakeApi, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    assert one.try_once()
    assert not two.try_once()
    assert (one.is_leader, two.is_leader, two.holder) == (True, False, "one")
    assert (api.spec["leaseTransitions"], api.spec["leaseDurationSeconds"]) == (0, 30)


def test_a_holder_that_renews_is_never_displaced(api: FakeApi, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    for _ in range(100):
        clock.now_s += 5.0
        assert one.try_once()
        assert not two.try_once()


def test_a_dead_holder_is_replaced_after_a_whole_duration_by_our_own_clock(api: FakeApi, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    one.try_once()
    clock.now_s += 500.0  # we never looked in between: the holder may have renewed a moment ago
    assert not two.try_once()
    clock.now_s += 29.0
    assert not two.try_once()
    clock.now_s += 1.5
    assert two.try_once()
    assert (api.spec["holderIdentity"], api.spec["leaseTransitions"]) == ("two", 1)


def test_a_leader_stops_by_itself_before_another_may_begin(api: FakeApi, clock: Clock) -> None:
    changes: list[bool] = []
    one = elector(api, clock, "one", changes)
    one.try_once()
    api.down = True
    clock.now_s += 19.9
    before = one.is_leader
    clock.now_s += 0.2
    assert (before, one.is_leader) == (True, False)
    assert not one.try_once()
    assert changes == [True, False]


def test_a_leader_that_gives_back_is_replaced_at_once(api: FakeApi, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    one.try_once()
    one.release()
    assert not one.is_leader
    assert two.try_once()
    one.release()  # not ours any more
    assert api.spec["holderIdentity"] == "two"


def test_of_two_who_see_it_free_one_wins(api: FakeApi, clock: Clock) -> None:
    one, two = elector(api, clock, "one"), elector(api, clock, "two")
    one.try_once()
    one.release()

    class Slow(FakeApi):
        """Between reading and writing of one, the other takes the lease."""

        def request(self, method: str, path: str, *, query: Any = None, body: Any = None) -> dict[str, Any]:
            if method == "PUT":
                assert two.try_once()
            return api.request(method, path, query=query, body=body)

    late = elector(Slow(), clock, "late")
    assert not late.try_once()
    assert api.spec["holderIdentity"] == "two"


def test_times_are_utc_whatever_the_local_zone(api: FakeApi, clock: Clock) -> None:
    tokyo = timezone(timedelta(hours=9))
    local = datetime(2026, 11, 20, 9, 30, 0, 123456, tzinfo=tokyo)
    Elector(api, Settings(identity="one"), clock=clock, wall=lambda: local).try_once()
    assert api.spec["renewTime"] == api.spec["acquireTime"] == "2026-11-20T00:30:00.123456Z"
    assert datetime.fromisoformat(api.spec["renewTime"]) == local.astimezone(UTC)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_there_are_never_two_leaders(data: st.DataObject) -> None:
    api, clock = FakeApi(), Clock()
    all_of_them = [elector(api, clock, name) for name in ("one", "two", "three")]
    for _ in range(data.draw(st.integers(1, 60))):
        clock.now_s += data.draw(st.floats(0.0, 20.0))
        api.down = data.draw(st.integers(0, 4)) == 0
        who = data.draw(st.sampled_from(all_of_them))
        if data.draw(st.integers(0, 9)) == 0:
            who.release()
        else:
            who.try_once()
        assert sum(each.is_leader for each in all_of_them) <= 1


def test_the_thread_takes_and_gives_back(api: FakeApi) -> None:
    led, lost = Event(), Event()
    brisk = Settings(identity="one", lease_duration_s=3.0, renew_deadline_s=2.0, retry_period_s=0.02)
    one = Elector(api, brisk, lambda leads: (led if leads else lost).set())
    one.start()
    assert led.wait(60.0)
    one.stop()
    assert lost.wait(60.0)
    assert api.spec["holderIdentity"] == ""
