"""The client wrapper against a scripted server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes.client import Configuration

from controller.client import (
    AlreadyExists,
    Conflict,
    Expired,
    Forbidden,
    KubeClient,
    NotFound,
    NotLeader,
    Rejected,
    ReplicasOwnedByOther,
    Transport,
    Unreachable,
    load_configuration,
)
from solvers.errors import InvalidInput

Answer = tuple[int, dict[str, Any], dict[str, str]]


@dataclass
class Script:
    """Answers to give in order (the last one again and again), and the requests that came."""

    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    url: str = ""

    def say(self, status: int, body: dict[str, Any] | None = None, **headers: str) -> Script:
        self.answers.append((status, body or {}, headers))
        return self


def serve(script: Script) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = json.loads(self.rfile.read(length)) if length else None
            script.requests.append((self.command, self.path, dict(self.headers), content))
            status, body, headers = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    server = serve(made)
    yield made
    server.shutdown()
    server.server_close()


def client(script: Script, *, leader: bool = True, patience_s: float = 5.0) -> KubeClient:
    return KubeClient(transport(script), lambda: leader, patience_s=patience_s)


def transport(script: Script) -> Transport:
    return Transport(Configuration(host=script.url, proxy=""), timeout_s=30.0)


def status(code: int, reason: str, message: str = "no", **details: Any) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


def test_a_standby_reads_but_never_writes(script: Script) -> None:
    script.say(200, {"metadata": {"name": "a"}})
    standby = client(script, leader=False)
    assert standby.get("/api/v1/nodes/a")["metadata"]["name"] == "a"
    writes: list[Callable[[], object]] = [
        lambda: standby.apply("/x", {}),
        lambda: standby.scale("/apis/apps/v1/namespaces/n/deployments/d", 1),
        lambda: standby.create("/x", {}),
        lambda: standby.merge("/x", {}),
        lambda: standby.delete("/x"),
    ]
    for write in writes:
        with pytest.raises(NotLeader, match="does not hold the Lease"):
            write()
    assert [request[0] for request in script.requests] == ["GET"]


def test_leadership_lost_between_two_attempts_ends_the_write(script: Script) -> None:
    script.say(503)
    leads = iter([True, False])
    with pytest.raises(NotLeader):
        KubeClient(transport(script), lambda: next(leads)).merge("/x", {})
    assert len(script.requests) == 1


def test_overload_and_server_errors_are_tried_again(script: Script) -> None:
    script.say(429, Retry_After="0").say(503).say(200, {"ok": True})
    assert client(script).merge("/x", {"a": 1}) == {"ok": True}
    assert [request[3] for request in script.requests] == [{"a": 1}] * 3


def test_a_server_that_stays_down_is_unreachable_and_named(script: Script) -> None:
    script.say(503, {"message": "starting"})
    with pytest.raises(Unreachable, match=r"GET /api/v1/pods: 503 .*starting"):
        client(script, patience_s=0.0).get("/api/v1/pods")
    with pytest.raises(Unreachable, match="GET /x"):
        KubeClient(Transport(Configuration(host="http://127.0.0.1:9", proxy="")), lambda: True, patience_s=0).get("/x")


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (404, "NotFound", NotFound),
        (403, "Forbidden", Forbidden),
        (401, "Unauthorized", Forbidden),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (410, "Expired", Expired),
        (422, "Invalid", Rejected),
    ],
)
def test_refusals_have_names_and_are_not_repeated(script: Script, code: int, reason: str, kind: type) -> None:
    script.say(*status(code, reason, "because"))
    with pytest.raises(kind, match=f"POST /x: {code} {reason}: because"):
        client(script).create("/x", {})
    assert len(script.requests) == 1


def test_scale_is_not_forced_and_a_conflict_names_the_manager(script: Script) -> None:
    cause = {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "horizontal" using v1',
        "field": ".spec.replicas",
    }
    script.say(*status(409, "Conflict", causes=[cause]))
    with pytest.raises(ReplicasOwnedByOther) as caught:
        client(script).scale("/apis/apps/v1/namespaces/n/deployments/d", 3)
    assert caught.value.manager == "horizontal"
    method, path, headers, body = script.requests[0]
    assert (method, path) == (
        "PATCH",
        "/apis/apps/v1/namespaces/n/deployments/d/scale?fieldManager=penstock-scale&force=false",
    )
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert (body["metadata"], body["spec"]) == ({"name": "d", "namespace": "n"}, {"replicas": 3})


def test_pages_of_a_list_carry_the_continuation_and_the_selector(script: Script) -> None:
    script.say(200, {"items": [{"n": 1}], "metadata": {"resourceVersion": "7", "continue": "next"}})
    script.say(200, {"items": [{"n": 2}], "metadata": {"resourceVersion": "7"}})
    pages = list(client(script).list_pages("/api/v1/pods", "a=b"))
    assert pages == [([{"n": 1}], "7"), ([{"n": 2}], "7")]
    assert [request[1] for request in script.requests] == [
        "/api/v1/pods?limit=1000&labelSelector=a%3Db",
        "/api/v1/pods?limit=1000&labelSelector=a%3Db&continue=next",
    ]


def test_a_rotated_token_is_sent(script: Script) -> None:
    script.say(200)
    tokens = iter(["bearer one", "bearer two"])
    configuration = Configuration(host=script.url, proxy="")

    def read_again(known: Configuration) -> None:
        known.api_key["BearerToken"] = next(tokens)

    configuration.refresh_api_key_hook = read_again  # type: ignore[assignment]
    reader = KubeClient(Transport(configuration), lambda: False)
    reader.get("/a")
    reader.get("/b")
    assert [request[2]["Authorization"] for request in script.requests] == ["bearer one", "bearer two"]


def test_parallel_jobs_keep_their_order(script: Script) -> None:
    def job(number: int) -> Callable[[], int]:
        return lambda: number * number

    assert client(script).in_parallel(map(job, range(40))) == [number * number for number in range(40)]


def test_a_missing_kubeconfig_names_the_file_and_the_flag() -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml.*--kubeconfig"):
        load_configuration("nowhere.yaml")
