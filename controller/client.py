"""The one writer, and the reader beside it: raw JSON over the Kubernetes client's configuration and connections.

Typed models cost many times the processor time of raw JSON at 10,000 pods, so only configuration, authentication and
TLS come from the ``kubernetes`` package. Every write passes one guard: not leader, or past the renew deadline, means
no write.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from controller.settings import Settings
from solvers.errors import InvalidInput, PenstockError

Body = dict[str, Any]
T = TypeVar("T")

MANAGER = "penstock"
SCALE_MANAGER = "penstock-scale"
PAGE = 1000
RETRIED = frozenset({429, 500, 502, 503, 504})
APPLY, MERGE_PATCH, JSON = "application/apply-patch+yaml", "application/merge-patch+json", "application/json"


class ApiError(PenstockError):
    """The API server refused: which request, which status, and its own words."""

    def __init__(self, request: str, status: int, reason: str, message: str, details: Body | None = None) -> None:
        self.request, self.status, self.reason, self.message = request, status, reason, message
        self.details = details or {}
        super().__init__(f"{request}: {status} {reason}: {message}")


class NotFound(ApiError):
    """404: the object, or its whole kind, is not there."""


class Forbidden(ApiError):
    """401 or 403: our role lacks a verb."""


class Conflict(ApiError):
    """409: another manager owns the field, or somebody else wrote first."""


class AlreadyExists(Conflict):
    """409 on create."""


class ReplicasOwnedByOther(Conflict):
    """409 on ``/scale``: ``manager`` owns the replicas, and we yield."""

    @property
    def manager(self) -> str:
        """Name of the field manager that took the replicas."""
        texts = (str(cause.get("message", "")) for cause in self.details.get("causes", ()))
        quoted = (text.split('"')[1] for text in texts if text.count('"') >= 2)
        return next(quoted, "another manager")


class Expired(ApiError):
    """410: the continuation of a list is too old; list again."""


class Rejected(ApiError):
    """400 or 422: the API server finds the object invalid."""


class Unreachable(PenstockError):
    """The API server did not answer, or only with errors of its own, until the deadline."""


class NotLeader(PenstockError):
    """A write was asked for by a process that does not hold the Lease (any more)."""


ERRORS: Mapping[int, type[ApiError]] = {
    400: Rejected,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Expired,
    422: Rejected,
}


def load_configuration(kubeconfig: str = "") -> Configuration:
    """Load where the API server is and who we are; proxies of the environment are ignored on purpose.

    Raises
    ------
    InvalidInput
        When neither a kubeconfig nor a service account can be used.
    """
    configuration = Configuration(proxy="")
    try:
        if not kubeconfig:
            try:
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            except ConfigException:
                load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            load_kube_config(config_file=kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise InvalidInput(kubeconfig or "kubeconfig", "", str(error), "pass --kubeconfig FILE") from error
    return configuration


class Transport:
    """One pool of connections to the API server, with retries; knows nothing of leadership.

    Retried are 429, 5xx and broken connections, with backoff and jitter, until ``patience_s`` has passed. Every
    request that we make may be repeated: creates answer AlreadyExists the second time.
    """

    def __init__(self, configuration: Configuration, *, timeout_s: float = 10.0, parallelism: int = 16) -> None:
        configuration.connection_pool_maxsize = parallelism + 4
        configuration.retries = urllib3.Retry(0, redirect=0)  # ours below: they know 429 and a deadline
        self.configuration, self.timeout_s, self.parallelism = configuration, timeout_s, parallelism
        self._pool = RESTClientObject(configuration).pool_manager
        self._closing = threading.Event()

    @classmethod
    def from_settings(cls, settings: Settings) -> Transport:
        """Connect as the settings say."""
        configuration = load_configuration(settings.kubeconfig)
        return cls(configuration, timeout_s=settings.request_timeout_s, parallelism=settings.write_parallelism)

    def close(self) -> None:
        """Give up waits between retries and drop the connections."""
        self._closing.set()
        self._pool.clear()

    def authorization(self) -> str:
        """Read the ``Authorization`` header; the configuration's hook reads a rotated token file again."""
        return self.configuration.get_api_key_with_prefix("BearerToken") or ""

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object | None = None,
        content_type: str = JSON,
        patience_s: float = 0.0,
        guard: Callable[[], None] | None = None,
    ) -> Body:
        """Send one request, repeat it while that may help, return the JSON answer.

        ``guard`` runs before every attempt and may raise: leadership can end between two of them.

        Raises
        ------
        ApiError
            One of its named kinds, when the server refuses.
        Unreachable
            When nobody answered, or only with retryable errors, for ``patience_s``.
        """
        give_up, pause_s = time.monotonic() + patience_s, 0.1
        while True:
            if guard:
                guard()
            outcome, wait_s = self._attempt(method, path, query, body, content_type)
            if not isinstance(outcome, Unreachable):
                return outcome
            wait_s = max(wait_s, pause_s * random.uniform(0.5, 1.5))
            if time.monotonic() + wait_s > give_up or self._closing.wait(wait_s):
                raise outcome
            pause_s = min(2 * pause_s, 5.0)

    def _attempt(
        self, method: str, path: str, query: Mapping[str, str] | None, body: object | None, content_type: str
    ) -> tuple[Body | Unreachable, float]:
        """Try once: the answer, or why to try again and how long the server asks to wait."""
        url = self.configuration.host.rstrip("/") + path + ("?" + urlencode(query) if query else "")
        headers = {"Accept": "application/json", "User-Agent": "penstock"}
        if body is not None:
            headers["Content-Type"] = content_type
        if token := self.authorization():
            headers["Authorization"] = token
        what = f"{method} {path}"
        try:
            answer = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body, separators=(",", ":")).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=min(5.0, self.timeout_s), read=self.timeout_s),
            )
        except urllib3.exceptions.HTTPError as error:
            return Unreachable(f"{what}: {error}"), 0.0
        if answer.status in RETRIED:
            detail = answer.data[:200].decode(errors="replace").strip()
            return Unreachable(f"{what}: {answer.status} {detail}"), _retry_after_s(answer.headers)
        return _decode(what, answer), 0.0


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), 30.0) if text.isdigit() else 0.0


def _decode(what: str, answer: urllib3.BaseHTTPResponse) -> Body:
    try:
        body: Body = json.loads(answer.data) if answer.data else {}
    except ValueError:
        body = {"message": answer.data[:200].decode(errors="replace")}
    if answer.status < HTTPStatus.BAD_REQUEST:
        return body
    reason = str(body.get("reason", ""))
    kind = AlreadyExists if reason == "AlreadyExists" else ERRORS.get(answer.status, ApiError)
    raise kind(what, answer.status, reason, str(body.get("message", "")), body.get("details"))


class KubeClient:
    """Reads freely; writes only while ``may_write`` says so."""

    def __init__(self, transport: Transport, may_write: Callable[[], bool], *, patience_s: float = 5.0) -> None:
        self._transport, self._may_write, self._patience_s = transport, may_write, patience_s

    def get(self, path: str) -> Body:
        """Read one object."""
        return self._transport.request("GET", path, patience_s=self._patience_s)

    def list_pages(self, path: str, selector: str = "") -> Iterator[tuple[list[Body], str]]:
        """Yield pages of (items, resource version of the list), consistent with each other.

        Raises
        ------
        Expired
            When the list changed too much between two pages; begin again.
        """
        query = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = self._transport.request("GET", path, query=query, patience_s=self._patience_s)
            metadata = page.get("metadata", {})
            yield page.get("items") or [], str(metadata.get("resourceVersion", ""))
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    def apply(self, path: str, body: Body, *, manager: str = MANAGER, force: bool = True) -> Body:
        """Server-side apply; ``force`` is right only for objects that are ours."""
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return self._write("PATCH", path, body, APPLY, query)

    def apply_status(self, path: str, body: Body) -> Body:
        """Server-side apply of the status."""
        return self.apply(path + "/status", body)

    def scale(self, path: str, replicas: int, *, force: bool = False) -> Body:
        """Ask for so many replicas; ``force`` only takes them from our own manager that created the workload.

        Raises
        ------
        ReplicasOwnedByOther
            When another manager owns them.
        """
        namespace, name = path.split("/")[-3], path.split("/")[-1]
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas},
        }
        try:
            return self.apply(path + "/scale", body, manager=SCALE_MANAGER, force=force)
        except Conflict as error:
            raise ReplicasOwnedByOther(
                error.request, error.status, error.reason, error.message, error.details
            ) from error

    def create(self, path: str, body: Body) -> Body:
        """Create an object in the collection ``path``."""
        return self._write("POST", path, body, JSON, {"fieldManager": MANAGER})

    def merge(self, path: str, body: Body) -> Body:
        """Merge-patch a few fields of an object that is not ours alone."""
        return self._write("PATCH", path, body, MERGE_PATCH, {"fieldManager": MANAGER})

    def delete(self, path: str, *, uid: str = "") -> Body:
        """Delete an object, only the one with this ``uid`` when given."""
        options: Body = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            options["preconditions"] = {"uid": uid}
        return self._write("DELETE", path, options, JSON, {})

    def in_parallel(self, jobs: Iterable[Callable[[], T]]) -> list[T]:
        """Run write jobs at most ``write_parallelism`` at a time; results in the order of the jobs."""
        every = list(jobs)
        if len(every) <= 1:
            return [job() for job in every]
        with ThreadPoolExecutor(max_workers=min(len(every), self._transport.parallelism)) as pool:
            return [future.result() for future in [pool.submit(job) for job in every]]

    def _write(self, method: str, path: str, body: object, content_type: str, query: Mapping[str, str]) -> Body:
        def guard() -> None:
            if not self._may_write():
                raise NotLeader(f"{method} {path}: refused, this process does not hold the Lease")

        return self._transport.request(
            method,
            path,
            query=query,
            body=body,
            content_type=content_type,
            patience_s=self._patience_s,
            guard=guard,
        )
