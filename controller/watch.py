"""kopf as the watch layer and nothing more: every decorator here, one delegating line each.

Nothing is written by a handler, no decision is made in one, and no kopf type leaves this module. kopf cancels foreign
tasks in its loop, so it gets a thread and a loop of its own; when it ends for any reason it is started again and
nothing in the cache is trusted until it was listed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any

import kopf

from controller.cache import Cache
from controller.client import Transport
from controller.kinds import KINDS, Kind

log = logging.getLogger("penstock.watch")

RESTART_PAUSE_S = 5.0
GOODBYE_S = 0.25  # connections over TLS close after their session; aiohttp's documentation says to wait for them


def make_registry(cache: Cache, transport: Transport) -> kopf.OperatorRegistry:
    """Register one handler per kind and the login; a registry per operator, nothing global."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(transport)

    for kind in KINDS:
        _watch(registry, cache, kind)
    return registry


def _watch(registry: kopf.OperatorRegistry, cache: Cache, kind: Kind) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"see-{kind.plural}")
    async def see(event: Mapping[str, Any], **_: Any) -> None:
        cache.see(kind.name, event["type"], event["object"])


def make_settings() -> kopf.OperatorSettings:
    """Configure kopf to watch, and to write and scan nothing."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.watching.server_timeout = 300
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = (0.5, 1, 2, 3, 5)
    settings.persistence.finalizer = "penstock.dev/unused"
    for kind in KINDS:
        if kind.selector:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings


def connection_info(transport: Transport) -> kopf.ConnectionInfo:
    """Hand kopf the connection that the client uses; it asks again when a token has expired."""
    known = transport.configuration
    scheme, _, token = transport.authorization().partition(" ")
    return kopf.ConnectionInfo(
        server=known.host,
        ca_path=known.ssl_ca_cert,
        insecure=not known.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=known.cert_file,
        private_key_path=known.key_file,
    )


class Watch:
    """The watches in their own thread.

    Start it when every kind could be listed, and again (``renew``) when a kind came back: kopf looks only once, at
    its start, which kinds exist.
    """

    def __init__(self, cache: Cache, transport: Transport) -> None:
        self._cache, self._transport = cache, transport
        self._stopping, self._round = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.restarts = 0

    @property
    def is_running(self) -> bool:
        """Say whether the thread was started and lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def renew(self) -> None:
        """Begin anew, looking again which kinds exist."""
        self._round.set()

    def stop(self) -> None:
        """Stop watching; waits for the thread."""
        self._stopping.set()
        self._round.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while True:
            try:
                asyncio.run(self._operate())
            except Exception as error:  # noqa: BLE001 - whatever ended the watches, they must be started again
                log.warning("the watches broke: %s", error)
            if not self._round.is_set():
                self._stopping.wait(RESTART_PAUSE_S)
            self._round.clear()
            if self._stopping.is_set():
                return
            self.restarts += 1
            self._cache.suspect_all()

    async def _operate(self) -> None:
        self._cache.begin_pass()
        try:
            await kopf.operator(
                registry=make_registry(self._cache, self._transport),
                settings=make_settings(),
                clusterwide=True,
                stop_flag=self._round,
            )
        finally:
            await asyncio.sleep(GOODBYE_S)
