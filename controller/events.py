"""Kubernetes Events, sparingly: one object per (thing, reason), counted up, and never more than a bucket allows.

An Event tells a human what changed; statuses say what is. So the same news twice within ``REPEAT_S`` is only counted,
and at most ``BURST`` go out at once.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from controller.client import AlreadyExists, Body, KubeClient, NotFound
from controller.render import timestamp
from solvers.errors import PenstockError

log = logging.getLogger("penstock.events")

REPEAT_S = 600.0
BURST = 25  # what client-go's recorder allows
REFILL_PER_S = 0.2
KEPT = 2000  # keys remembered; the oldest are forgotten first


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The object that an Event speaks of."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(slots=True)
class _Told:
    message: str
    count: int
    first_s: float
    written_s: float


class Recorder:
    """Writes Events through the one client; a standby writes none.

    Parameters
    ----------
    home : str
        Namespace of Events about cluster-scoped objects.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        home: str = "default",
        component: str = "penstock",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._home, self._component, self._clock = client, home, component, clock
        self._told: dict[str, _Told] = {}
        self._tokens, self._refilled_s = float(BURST), clock()
        self.dropped = 0

    def tell(self, subject: Subject, reason: str, message: str, *, is_warning: bool = False) -> bool:
        """Write or count up an Event; say whether something was written."""
        now_s = self._clock()
        key = f"{subject.kind}/{subject.namespace}/{subject.name}/{reason}"
        told = self._told.pop(key, None) or _Told("", 0, now_s, float("-inf"))
        self._told[key] = told
        while len(self._told) > KEPT:
            del self._told[next(iter(self._told))]
        told.count += 1
        if told.message == message and now_s - told.written_s < REPEAT_S:
            return False
        if not self._take(now_s):
            self.dropped += 1
            return False
        told.message, told.written_s = message, now_s
        self._write(subject, reason, told, is_warning)
        return True

    def _take(self, now_s: float) -> bool:
        self._tokens = min(BURST, self._tokens + (now_s - self._refilled_s) * REFILL_PER_S)
        self._refilled_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _write(self, subject: Subject, reason: str, told: _Told, is_warning: bool) -> None:
        body = self._body(subject, reason, told, is_warning)
        collection = f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        news = {field: body[field] for field in ("message", "count", "lastTimestamp", "type")}
        try:
            if told.count > 1:
                try:
                    self._client.merge(f"{collection}/{body['metadata']['name']}", news)
                except NotFound:  # Events expire after an hour
                    self._client.create(collection, body)
            else:
                self._create_or_update(collection, body, news)
        except PenstockError as error:
            log.info("no Event %s for %s/%s: %s", reason, subject.kind, subject.name, error)

    def _create_or_update(self, collection: str, body: Body, news: Body) -> None:
        try:
            self._client.create(collection, body)
        except AlreadyExists:  # told by an earlier leader
            self._client.merge(f"{collection}/{body['metadata']['name']}", news)

    def _body(self, subject: Subject, reason: str, told: _Told, is_warning: bool) -> Body:
        namespace = subject.namespace or self._home
        tail = hashlib.sha256(f"{subject.kind}/{subject.uid}/{reason}".encode()).hexdigest()[:10]
        involved = {"apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name, "uid": subject.uid}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{subject.name[:200]}.{tail}", "namespace": namespace},
            "involvedObject": involved | ({"namespace": subject.namespace} if subject.namespace else {}),
            "reason": reason,
            "message": told.message[:1024],
            "type": "Warning" if is_warning else "Normal",
            "count": told.count,
            "firstTimestamp": timestamp(told.first_s),
            "lastTimestamp": timestamp(told.written_s),
            "source": {"component": self._component},
        }
