"""Who may ask the gRPC server: loopback, client certificates, bearer tokens.

===================  =======================================================================================
listens on           asks of a caller
===================  =======================================================================================
loopback             nothing, unless more is configured (reach it by ``kubectl port-forward``)
anything else        TLS, and a certificate signed by ``client_ca_file``, or a bearer token, or both
===================  =======================================================================================

A token is proved by TokenReview for our audience, and its holder needs the verb on ``fleetplans.penstock.dev``
that ``PERMISSIONS`` names, by SubjectAccessReview. ``fleetplans/whatif`` exists for such rules only: to allow a
question about a plan must not allow to create one.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
import urllib3

from controller.client import Transport
from controller.settings import Settings
from solvers.errors import InvalidInput, PenstockError

log = logging.getLogger(__name__)

T = TypeVar("T")

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
HOLD_S = 60.0  # an answer of a review is used for so long; a revoked token works at most so much longer
REVIEW_PATIENCE_S = 3.0  # a caller waits meanwhile
MAX_HELD = 4096  # answers held at once
MAX_TOKEN_BYTES = 16 * 1024  # service-account tokens have about 1 KiB
OPEN_METHODS = "/grpc.health.v1.Health/"  # probes carry no credentials, and learn nothing but up or down

Post = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""POST a review to a path of the API server and return the answer; blocks, raises when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the gRPC server listens and what it asks of callers. Port 0 means any free one."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    token_audience: str = ""

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def listen_from(settings: Settings) -> Listen:
    """Read the gRPC part of the process's settings."""

    def path(text: str) -> Path | None:
        return Path(text) if text else None

    return Listen(
        host=settings.grpc_bind,
        port=settings.grpc_port,
        certificate_file=path(settings.grpc_certificate),
        key_file=path(settings.grpc_key),
        client_ca_file=path(settings.grpc_client_ca),
        token_audience=settings.grpc_token_audience,
    )


def check_listen(listen: Listen) -> None:
    """Refuse to listen where anybody could ask.

    Raises
    ------
    InvalidInput
        Beyond loopback without TLS or without a proof of who calls; with half of a key pair; with a client CA but
        no certificate of our own.
    """
    has_tls = bool(listen.certificate_file and listen.key_file)
    if bool(listen.certificate_file) != bool(listen.key_file):
        raise InvalidInput("gRPC", "certificate and key", "one is given without the other", "give both files")
    if listen.client_ca_file and not has_tls:
        raise InvalidInput("gRPC", "client CA", "needs TLS", "give a certificate and a key too")
    if listen.is_loopback:
        return
    if not has_tls:
        remedy = "give a certificate and a key, or listen on 127.0.0.1"
        raise InvalidInput("gRPC", f"bind {listen.host}", "is beyond loopback and would be in clear text", remedy)
    if not (listen.client_ca_file or listen.token_audience):
        remedy = "give a client CA or a token audience, or listen on 127.0.0.1"
        raise InvalidInput("gRPC", f"bind {listen.host}", "is beyond loopback and anybody could ask", remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A verb on ``fleetplans.penstock.dev``, or on a subresource of it."""

    verb: str
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} fleetplans{'/' if self.subresource else ''}{self.subresource}.penstock.dev"


_SERVICE = "/penstock.placement.v1alpha1.Placement/"
PERMISSIONS: Mapping[str, Permission] = {
    _SERVICE + "GetPlan": Permission(verb="get"),
    _SERVICE + "Explain": Permission(verb="get"),
    _SERVICE + "WatchPlans": Permission(verb="watch"),
    _SERVICE + "WhatIf": Permission(verb="create", subresource="whatif"),
}


class Refused(PenstockError):
    """A caller may not; ``code`` says in which way."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code = code
        super().__init__(message)


class TokenGate:
    """Proves bearer tokens and what their holders may do; answers are held for a minute, by the token's hash.

    Safe to use from several threads.

    Parameters
    ----------
    post : Post
        Sends a review to the API server.
    audience : str
        The audience that a token must be meant for.
    clock : callable, s
        Monotonic.
    """

    def __init__(self, post: Post, audience: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._post, self._audience = post, audience
        self._users = _Held[Mapping[str, Any] | None](clock)
        self._grants = _Held[bool](clock)

    def check(self, token: str, permission: Permission | None) -> None:
        """Let a token's holder pass, or not; without a ``permission`` only who it is matters.

        Raises
        ------
        Refused
            UNAUTHENTICATED, PERMISSION_DENIED, or UNAVAILABLE when the API server cannot be asked.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"the bearer token is longer than {MAX_TOKEN_BYTES} bytes")
        key = hashlib.sha256(token.encode()).hexdigest()
        user = self._users.get(key, lambda: self._user_of(token))
        if user is None:
            problem = f"the bearer token is not valid for audience {self._audience!r}"
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, problem)
        if permission and not self._grants.get((key, permission), lambda: self._is_granted(user, permission)):
            problem = f"{user.get('username', '')} may not {permission}; grant it with an RBAC rule"
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, problem)

    def _user_of(self, token: str) -> Mapping[str, Any] | None:
        status = self._review(TOKEN_REVIEWS, "TokenReview", {"token": token, "audiences": [self._audience]})
        # An authenticator that knows no audiences returns none: the token may then be meant for anybody.
        is_ours = status.get("authenticated", False) and self._audience in status.get("audiences", ())
        return status["user"] if is_ours else None

    def _is_granted(self, user: Mapping[str, Any], permission: Permission) -> bool:
        attributes = {"group": "penstock.dev", "resource": "fleetplans", "verb": permission.verb}
        if permission.subresource:
            attributes["subresource"] = permission.subresource
        spec = {key: user[key] for key in ("uid", "groups", "extra") if key in user}
        spec |= {"user": user.get("username", ""), "resourceAttributes": attributes}
        status = self._review(ACCESS_REVIEWS, "SubjectAccessReview", spec)
        return bool(status.get("allowed", False)) and not status.get("denied", False)

    def _review(self, path: str, kind: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        group = path.removeprefix("/apis/").rpartition("/")[0]
        try:
            answer = self._post(path, {"apiVersion": group, "kind": kind, "spec": spec})
        except (PenstockError, OSError, urllib3.exceptions.HTTPError) as error:
            log.warning("cannot check a caller by %s: %s", kind, error)
            problem = f"callers cannot be checked now: the API server did not answer a {kind}; try again"
            raise Refused(grpc.StatusCode.UNAVAILABLE, problem) from error
        status: Mapping[str, Any] = answer.get("status", {})
        return status


class _Held(Generic[T]):
    """Answers by key, each for ``HOLD_S``; the least recently asked goes when there are ``MAX_HELD``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._answers: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()

    def get(self, key: Hashable, ask: Callable[[], T]) -> T:
        """Return what is held for the key, else ask (outside the lock: others need not wait) and hold it."""
        with self._lock:
            until_s, answer = self._answers.get(key, (float("-inf"), None))
            if self._clock() < until_s:
                self._answers.move_to_end(key)
                return answer  # type: ignore[return-value]
        fresh = ask()
        with self._lock:
            self._answers[key] = (self._clock() + HOLD_S, fresh)
            self._answers.move_to_end(key)
            if len(self._answers) > MAX_HELD:
                self._answers.popitem(last=False)
        return fresh


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets a call through to its handler once the gate has let its token pass."""

    def __init__(self, gate: TokenGate, executor: Executor) -> None:
        self._gate, self._executor = gate, executor

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(OPEN_METHODS):
            return handler
        return _guarded(handler, lambda context: self._check(method, context))

    async def _check(self, method: str, context: Any) -> None:
        try:
            token = bearer_token(context.invocation_metadata())
            permission = PERMISSIONS.get(method)
            await asyncio.get_running_loop().run_in_executor(self._executor, self._gate.check, token, permission)
        except Refused as refused:
            await context.abort(refused.code, str(refused))


def bearer_token(metadata: Any) -> str:
    """Find the token in a call's metadata.

    Raises
    ------
    Refused
        UNAUTHENTICATED when there is none.
    """
    headers = [str(value) for key, value in metadata or () if key == "authorization"]
    scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "send one header 'authorization: Bearer TOKEN'")
    return token.strip()


def _guarded(handler: Any, check: Callable[[Any], Awaitable[None]]) -> Any:
    """Wrap a handler of any of the four shapes with a check before it."""
    inner = handler.unary_unary or handler.stream_unary or handler.unary_stream or handler.stream_stream

    async def one(request: Any, context: Any) -> Any:
        await check(context)
        return await inner(request, context)

    async def many(request: Any, context: Any) -> AsyncIterator[Any]:
        await check(context)
        async for answer in inner(request, context):
            yield answer

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(many if handler.response_streaming else one, handler.request_deserializer, handler.response_serializer)


def review_by(transport: Transport) -> Post:
    """Send reviews over the operator's own connection; they are questions, so leadership does not matter."""
    return lambda path, body: transport.request("POST", path, body=body, patience_s=REVIEW_PATIENCE_S)
