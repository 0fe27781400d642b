"""The twin's HTTP side: pages to scrape, its state as JSON, and a few orders, on loopback only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from solvers.errors import InvalidInput

TEXT, JSON = "text/plain; version=0.0.4; charset=utf-8", "application/json"

Pages = Mapping[str, tuple[str, Callable[[], str]]]
Order = Callable[[dict[str, Any]], dict[str, Any]]


class TwinServer:
    """Serves pages by path, and ``POST /control`` to ``order``.

    Parameters
    ----------
    pages : mapping of path to (content type, maker)
    order : callable
        Takes the decoded body, returns the answer; ``InvalidInput`` becomes a 400 with its text.
    port : int
        0 takes a free one.
    """

    def __init__(self, pages: Pages, order: Order, port: int = 0) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(pages, order))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="twin serves", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what is being asked, then close."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5.0)


def _handler(pages: Pages, order: Order) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30.0  # an idle scraper's connection may go; it makes a new one

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path not in pages:
                known = ", ".join([*pages, "/control (POST)"])
                self._answer(HTTPStatus.NOT_FOUND, TEXT, f"no {path} here; there are {known}\n")
                return
            kind, make = pages[path]
            self._answer(HTTPStatus.OK, kind, make())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path != "/control":
                self._answer(HTTPStatus.NOT_FOUND, TEXT, "orders go to /control\n")
                return
            try:
                decoded = json.loads(body or b"{}")
                if not isinstance(decoded, dict):
                    raise InvalidInput("order", "", "is no JSON object", 'send one like {"start": true}')
                self._answer(HTTPStatus.OK, JSON, json.dumps(order(decoded)))
            except (InvalidInput, ValueError) as wrong:
                self._answer(HTTPStatus.BAD_REQUEST, JSON, json.dumps({"error": str(wrong)}))

        def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            """Keep quiet: a scrape a second is no news."""

    return Handler
