"""A small client for a Kubernetes API server: plain JSON, no proxies, nothing from the environment."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
import yaml

Json = dict[str, Any]

FIELD_MANAGER = "simcluster"
_PARALLEL_REQUESTS = 8
# A server that is busy, or makes ready to serve a new kind, says when to come back (Retry-After).
_RETRY_WHEN_BUSY = urllib3.Retry(
    total=10,
    connect=0,
    read=0,
    other=0,
    redirect=0,
    allowed_methods=None,
    raise_on_status=False,
)
_TIMEOUT = urllib3.Timeout(connect=30.0, read=60.0)


class ApiError(RuntimeError):
    """The API server refused a request.

    Attributes
    ----------
    status : int
        The HTTP status.
    reason : str
        Kubernetes' word for it, such as ``NotFound`` or ``Invalid``.
    body : dict
        The whole answer, with the causes by field where there are any.
    """

    def __init__(self, method: str, path: str, status: int, body: Json) -> None:
        super().__init__(f"{method} {path}: {status} {body.get('reason', '')}: {body.get('message', '')}")
        self.status = status
        self.reason = str(body.get("reason", ""))
        self.body = body


class UnreachableError(ConnectionError):
    """The API server does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resource:
    plural: str
    namespaced: bool


class KubeApi:
    """Requests to one API server as one user, both taken from a kubeconfig; safe to share between threads.

    Parameters
    ----------
    kubeconfig : Path
        Its current context must authenticate by certificate or token.
    """

    def __init__(self, kubeconfig: Path) -> None:
        cluster, user = _current_context(kubeconfig)
        self.server: str = cluster["server"].rstrip("/")
        self._headers = {"Accept": "application/json"} | _bearer(user)
        self._pool = urllib3.PoolManager(
            maxsize=2 * _PARALLEL_REQUESTS, retries=False, timeout=_TIMEOUT, ssl_context=_tls(cluster, user)
        )
        self._resources: dict[tuple[str, str], _Resource] = {}

    def close(self) -> None:
        self._pool.clear()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Send one request and return the decoded answer.

        Raises
        ------
        ApiError
            If the server answers with a status of 400 or more.
        UnreachableError
            If it does not answer.
        """
        url = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = self._headers | ({"Content-Type": content_type} if body is not None else {})
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = self._pool.request(method, url, body=content, headers=headers, retries=_RETRY_WHEN_BUSY)
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{method} {url}: {error}") from error
        decoded = _decode(answer.data)
        if answer.status >= 400:
            raise ApiError(method, path, answer.status, decoded)
        return decoded

    def get(self, path: str) -> Json:
        return self.request("GET", path)

    def find(self, path: str) -> Json | None:
        """Return the object at a path, or None if there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list_all(self, path: str, *, label_selector: str = "", field_selector: str = "") -> list[Json]:
        """Return the items of a collection, such as ``/api/v1/nodes``."""
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: value for name, value in selectors.items() if value}
        items: list[Json] = self.request("GET", path, query=query)["items"]
        return items

    def watch(self, path: str, resource_version: str, *, timeout_s: int = 10) -> Iterator[Json]:
        """Yield the events of a collection after a version, until the server ends the watch.

        Raises
        ------
        ApiError
            If the server refuses, as with 410 when the version is too old: list again.
        UnreachableError
            If it does not answer, or the connection breaks.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(timeout_s)}
        url = f"{self.server}{path}?{urlencode(query | {'resourceVersion': resource_version})}"
        timeout = urllib3.Timeout(connect=30.0, read=timeout_s + 60.0)
        try:
            answer = self._pool.request("GET", url, headers=self._headers, preload_content=False, timeout=timeout)
            try:
                if answer.status >= 400:
                    raise ApiError("WATCH", path, answer.status, _decode(answer.data))
                yield from map(json.loads, _lines(answer.stream()))
            finally:
                answer.close()
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"WATCH {url}: {error}") from error

    def create(self, obj: Json) -> Json:
        return self.request("POST", self.collection_of(obj), obj)

    def apply(self, obj: Json, *, field_manager: str = FIELD_MANAGER) -> Json:
        """Create or change an object by server-side apply, taking over fields of other managers."""
        query = {"fieldManager": field_manager, "force": "true"}
        return self.request("PATCH", self.path_of(obj), obj, query=query, content_type="application/apply-patch+yaml")

    def merge(self, path: str, patch: Json) -> Json:
        """Change an object by a JSON merge patch."""
        return self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def put(self, path: str, body: Json) -> Json:
        return self.request("PUT", path, body)

    def delete(self, path: str, *, grace_s: int | None = None) -> bool:
        """Delete an object or a collection; say whether there was one."""
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self.request("DELETE", path, options)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def create_all(self, objs: Iterable[Json]) -> list[Json]:
        """Create many objects, several at a time; in the order given where their kinds need it, call it twice."""
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            return list(pool.map(self.create, objs))

    def delete_all(self, paths: Iterable[str], *, grace_s: int | None = None) -> None:
        """Delete many objects, several at a time; what is gone already is no error."""
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            list(pool.map(lambda path: self.delete(path, grace_s=grace_s), paths))

    def path_of(self, obj: Json) -> str:
        """Return the path of an object, from its apiVersion, kind, namespace (or ``default``) and name."""
        return f"{self.collection_of(obj)}/{quote(obj['metadata']['name'], safe='')}"

    def collection_of(self, obj: Json) -> str:
        """Return the path of the collection that an object belongs to."""
        resource = self._resource(obj["apiVersion"], obj["kind"])
        namespace = obj["metadata"].get("namespace", "default") if resource.namespaced else None
        return _base(obj["apiVersion"]) + (f"/namespaces/{namespace}" if namespace else "") + f"/{resource.plural}"

    def _resource(self, api_version: str, kind: str) -> _Resource:
        if (api_version, kind) not in self._resources:
            self._resources |= dict(self._discover(api_version))
        if (api_version, kind) not in self._resources:
            raise LookupError(
                f"the API server knows no {kind} in {api_version}; install its CustomResourceDefinition first"
            )
        return self._resources[api_version, kind]

    def _discover(self, api_version: str) -> Iterator[tuple[tuple[str, str], _Resource]]:
        known = self.find(_base(api_version)) or {}
        for entry in known.get("resources", ()):
            if "/" not in entry["name"]:  # not a subresource
                resource = _Resource(plural=entry["name"], namespaced=entry["namespaced"])
                yield (api_version, entry["kind"]), resource


def load_objects(text: str) -> list[Json]:
    """Parse YAML documents into objects; empty documents are left out and lists are unpacked."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    return [obj for document in documents for obj in document.get("items", [document])]


def _base(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)


def _decode(content: bytes) -> Json:
    try:
        decoded = json.loads(content)
    except ValueError:  # health checks and some refusals are plain text
        return {"message": content.decode(errors="replace")}
    return decoded if isinstance(decoded, dict) else {"message": str(decoded)}


def _current_context(path: Path) -> tuple[Json, Json]:
    document = yaml.safe_load(path.read_text())
    contexts = {entry["name"]: entry["context"] for entry in document["contexts"]}
    context = contexts[document["current-context"]]
    clusters = {entry["name"]: entry["cluster"] for entry in document["clusters"]}
    users = {entry["name"]: entry["user"] for entry in document["users"]}
    return clusters[context["cluster"]], users[context["user"]]


def _bearer(user: Json) -> dict[str, str]:
    if "token" in user:
        return {"Authorization": f"Bearer {user['token']}"}
    if "client-certificate-data" in user or "client-certificate" in user:
        return {}
    raise LookupError(
        f"this kubeconfig authenticates by {', '.join(user) or 'nothing'}; use one with a client certificate or a token"
    )


def _tls(cluster: Json, user: Json) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=_content(cluster, "certificate-authority").decode() or None)
    certificate, key = _content(user, "client-certificate"), _content(user, "client-key")
    if certificate:
        with tempfile.NamedTemporaryFile(suffix=".pem") as both:  # the ssl module reads files only
            both.write(certificate + key)
            both.flush()
            context.load_cert_chain(both.name)
    return context


def _content(section: Json, name: str) -> bytes:
    if data := section.get(f"{name}-data"):
        return base64.b64decode(data)
    return Path(section[name]).read_bytes() if name in section else b""
