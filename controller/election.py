"""Who writes: one leader by a ``coordination.k8s.io`` Lease.

The elector has its own thread and its own connection, so nothing that the loop waits for can cost us the Lease.
Judgement uses local, monotonic time only: a holder is dead when its Lease has not changed for a whole duration by our
clock; we lead until ``renew_deadline_s`` after the start of our last successful renewal, and write nothing later.
Times inside the Lease are UTC and for human eyes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from controller.client import AlreadyExists, ApiError, Body, Conflict, NotFound, Unreachable
from controller.settings import Settings

log = logging.getLogger("penstock.election")

JITTER_RATIO = 0.2


class Requester(Protocol):
    """What the elector needs of a connection."""

    def request(self, method: str, path: str, *, query: Any = ..., body: Any = ...) -> Body:
        """Send one request; see ``client.Transport``."""


@dataclass(slots=True)
class _Seen:
    """The Lease as last changed, and when we saw that by our clock."""

    version: str = ""
    at_s: float = 0.0


class Elector:
    """Takes, keeps and gives back the Lease.

    Parameters
    ----------
    on_change : callable
        Called with True on winning and False on losing; from the elector's thread.
    """

    def __init__(
        self,
        requester: Requester,
        settings: Settings,
        on_change: Callable[[bool], None] = lambda leads: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._requester, self._settings, self._on_change = requester, settings, on_change
        self._clock, self._wall = clock, wall
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._seen, self._leads_until_s, self._led = _Seen(), float("-inf"), False
        self._holder = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elector", daemon=True)

    @property
    def is_leader(self) -> bool:
        """Say whether we may write now."""
        return self._clock() < self._leads_until_s

    @property
    def holder(self) -> str:
        """Name who holds the Lease as far as we know."""
        return self._holder

    def start(self) -> None:
        """Begin to try, in an own thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and give the Lease back, so that another may take it at once."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * self._settings.request_timeout_s)
        self.release()

    def try_once(self) -> bool:
        """Renew the Lease, or take it when it is free or its holder is dead; say whether we lead."""
        began_s = self._clock()
        try:
            held = self._attempt()
        except (ApiError, Unreachable) as error:  # may be over in a moment; the deadline decides what it means
            log.warning("cannot renew or take the lease: %s", error)
            held = False
        if held:
            self._leads_until_s = began_s + self._settings.renew_deadline_s
        self._notice()
        return held

    def release(self) -> None:
        """Leave the Lease without a holder, if it is ours."""
        if not self.is_leader:
            return
        self._leads_until_s = float("-inf")
        try:
            lease = self._requester.request("GET", f"{self._path}/{self._settings.lease_name}")
            if lease["spec"].get("holderIdentity") == self._settings.identity:
                self._put(lease, holder="", duration_s=1)
        except (ApiError, Unreachable) as error:
            log.warning("cannot give the lease back: %s", error)
        self._notice()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.try_once()
            pause_s = self._settings.retry_period_s * (1.0 + random.uniform(0.0, JITTER_RATIO))
            self._stopping.wait(min(pause_s, max(0.05, self._leads_until_s - self._clock())) if self._led else pause_s)

    def _attempt(self) -> bool:
        try:
            lease = self._requester.request("GET", f"{self._path}/{self._settings.lease_name}")
        except NotFound:
            return self._create()
        version, spec = str(lease["metadata"]["resourceVersion"]), lease.get("spec") or {}
        if version != self._seen.version:
            self._seen = _Seen(version, self._clock())
        self._holder = spec.get("holderIdentity") or ""
        if self._holder not in ("", self._settings.identity) and not self._is_dead(spec):
            return False
        return self._put(lease, holder=self._settings.identity, duration_s=round(self._settings.lease_duration_s))

    def _is_dead(self, spec: Body) -> bool:
        duration_s = float(spec.get("leaseDurationSeconds") or self._settings.lease_duration_s)
        return self._clock() - self._seen.at_s >= duration_s

    def _create(self) -> bool:
        now = self._now()
        body: Body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._settings.lease_name, "namespace": self._settings.namespace},
            "spec": {
                "holderIdentity": self._settings.identity,
                "leaseDurationSeconds": max(1, round(self._settings.lease_duration_s)),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }
        try:
            self._remember(self._requester.request("POST", self._path, body=body))
        except AlreadyExists:
            return False
        return True

    def _put(self, lease: Body, *, holder: str, duration_s: int) -> bool:
        """Write the Lease back; the resource version in it makes the API server refuse if anybody was faster."""
        spec = dict(lease.get("spec") or {})
        now = self._now()
        if holder and spec.get("holderIdentity") != holder:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = now
        spec.update(holderIdentity=holder, leaseDurationSeconds=max(1, duration_s), renewTime=now)
        try:
            path = f"{self._path}/{self._settings.lease_name}"
            self._remember(self._requester.request("PUT", path, body={**lease, "spec": spec}))
        except Conflict:
            return False
        return True

    def _remember(self, lease: Body) -> None:
        self._seen = _Seen(str(lease["metadata"]["resourceVersion"]), self._clock())
        self._holder = lease["spec"].get("holderIdentity") or ""

    def _notice(self) -> None:
        leads = self.is_leader
        if leads != self._led:
            self._led = leads
            log.info("%s leads" if leads else "%s no longer leads", self._settings.identity)
            self._on_change(leads)

    def _now(self) -> str:
        return self._wall().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
