"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP, on loopback unless told otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from controller.metrics import CONTENT_TYPE
from solvers.errors import InvalidInput

Probe = Callable[[], str]
"""Empty when all is well, else what is wrong."""


class HealthServer:
    """Serves in threads of its own.

    Parameters
    ----------
    healthy, ready : Probe
        A process that is not healthy should be restarted; one that is not ready may not be asked yet.
    metrics : callable
        The exposition text.
    """

    def __init__(self, bind: str, port: int, *, healthy: Probe, ready: Probe, metrics: Callable[[], bytes]) -> None:
        pages: Mapping[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
            "/healthz": lambda: _answer(healthy()),
            "/readyz": lambda: _answer(ready()),
            "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE, metrics()),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 10.0  # a client that sends nothing must not keep a thread

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                status, kind, content = page() if page else (HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
                """Probes come every few seconds; they are no news."""

        try:
            self._server = ThreadingHTTPServer((bind, port), Handler)
        except OSError as error:
            raise InvalidInput("metrics", f"bind {bind}:{port}", str(error), "choose another --metrics-port") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="health", daemon=True
        )

    @property
    def port(self) -> int:
        """The port in use."""
        return self._server.server_port

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _answer(problem: str) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
    return status, "text/plain; charset=utf-8", (problem or "ok").encode() + b"\n"
