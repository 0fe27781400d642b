"""The gRPC server: the Placement service over anything that has plans, with health and reflection.

It lives in a thread with an event loop of its own, so that neither the operator's loop nor a long solve ever blocks
it: solves and reviews run in threads, plans arrive by a callback.
"""

# ruff: noqa: N802, the calls are named as in the .proto

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from controller import placement_pb2 as pb
from controller import placement_pb2_grpc
from controller.api_convert import difference_message, explanation_message, plan_message
from controller.auth import Listen, Post, TokenGate, TokenInterceptor, check_listen
from controller.explain_apart import explained_apart
from controller.tls import server_credentials
from controller.what_if import BadRequest, FieldViolation, changed_problem
from controller.worker import with_time_limit
from solvers.apart import WorkLost
from solvers.errors import InvalidInput, SolveFailed
from solvers.explain import Explanation, explain
from solvers.plan import Plan
from solvers.problem import Problem

log = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "penstock.placement.v1alpha1.Placement"
MAX_REQUEST_BYTES = 1024 * 1024  # a WhatIf that changes everything in a large fleet has about 200 KiB
MAX_RESPONSE_BYTES = 16 * 1024 * 1024  # 10,000 replicas on 1,000 nodes: 0.2 MiB the plan, 0.8 MiB what differs
MAX_CALLS = 256  # at once, over all callers
MAX_WATCHERS = 64
MAX_SOLVES = 2  # questions solved at once; each is a solver of its own on the processor
MAX_EXPLANATIONS = 2  # worked out at once; they take processor time of this process
HELD_PLANS = 20  # recent plans that can be asked for by number
DEFAULT_SOLVE_S = 30.0  # for a caller without a deadline
LONGEST_SOLVE_S = 120.0
ANSWER_S = 0.2  # kept from the deadline for rendering and sending the answer

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a share of somebody else's calls
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class PlanTurn(Protocol):
    """A decision with what it was decided on; never changes once handed out.

    ``number`` is that of its FleetPlan, 0 while there is none; watchers are sent numbered ones only.
    """

    @property
    def plan(self) -> Plan: ...
    @property
    def problem(self) -> Problem: ...
    @property
    def number(self) -> int: ...


class PlanSource(Protocol):
    """What the server asks of whoever decides. All three are called from threads of the server."""

    def latest(self) -> PlanTurn | None:
        """Return the turn in force, None before the first."""

    def subscribe(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call back with each new turn, from any thread, until the returned function is called."""

    def what_if(self, problem: Problem, deadline_s: float) -> Plan:
        """Solve within ``deadline_s`` seconds; raise TimeoutError or SolveFailed when that does not work."""


class PlacementService(placement_pb2_grpc.PlacementServicer):
    """The four calls. Everything but the solves themselves happens in the server's event loop."""

    def __init__(self, source: PlanSource, threads: Executor) -> None:
        self._source, self._threads = source, threads
        self._held: dict[int, PlanTurn] = {}
        self._newest: PlanTurn | None = None
        self._news: set[asyncio.Event] = set()
        self._solves = Slots(what="questions", most=MAX_SOLVES)
        self._explanations = Slots(what="explanations", most=MAX_EXPLANATIONS)
        self._is_stopping = False

    def learn(self, news: PlanTurn | None = None) -> None:
        """Hold a turn for those who ask by number, and take in the one in force.

        That is always the source's own word: news from other threads may overtake each other.
        """
        turn = self._source.latest()
        self._held |= {each.number: each for each in (news, turn) if each is not None and each.number}
        while len(self._held) > HELD_PLANS:
            del self._held[min(self._held)]
        if turn is not None:
            self._newest = turn
            self._wake()

    def stop(self) -> None:
        """Send the watchers away, so that they need not be cut off."""
        self._is_stopping = True
        self._wake()

    def _wake(self) -> None:
        for news in self._news:
            news.set()

    async def GetPlan(self, request: pb.GetPlanRequest, context: Context) -> pb.GetPlanResponse:
        turn = await self._turn(request.number, context)
        return pb.GetPlanResponse(plan=plan_message(turn.plan, turn.number))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        turn = await self._turn(request.number, context)
        names = sorted(service.service for service in turn.plan.services)
        if request.service not in names:
            problem = f"plan {turn.number} knows no service {request.service!r}; known: {', '.join(names) or 'none'}"
            await context.abort(grpc.StatusCode.NOT_FOUND, problem)
        if request.with_prices or request.with_losses:
            why = await self._priced(turn, request, context)
        else:
            asked = turn.plan, turn.problem, request.service
            why = await (await self._begun(self._explanations, context, explain, *asked))
        return explanation_message(why, turn.plan, turn.number)

    async def _priced(self, turn: PlanTurn, request: pb.ExplainRequest, context: Context) -> Explanation:
        """Explain with prices: in a process of its own, no longer than the caller waits."""
        left_s = solve_time_s(context.time_remaining())
        asked = (turn.plan, turn.problem, request.service, request.with_losses, left_s)
        work = await self._begun(self._explanations, context, explained_apart, *asked)
        try:
            return await asyncio.wait_for(asyncio.shield(work), left_s + ANSWER_S / 2.0)
        except (TimeoutError, WorkLost):
            late = f"no prices within {left_s:.1f} s; allow a longer deadline or ask without prices and losses"
            return await _aborted(context, grpc.StatusCode.DEADLINE_EXCEEDED, late)
        except SolveFailed as error:
            return await _aborted(context, grpc.StatusCode.INTERNAL, f"nothing could be priced: {error}")

    async def WhatIf(self, request: pb.WhatIfRequest, context: Context) -> pb.WhatIfResponse:
        turn = await self._turn(0, context)
        try:
            problem = changed_problem(turn.problem, request)
            plan = await self._solved(problem, context)
        except BadRequest as bad:
            await abort_bad_request(context, bad)
        return pb.WhatIfResponse(
            plan=plan_message(plan, number=0),
            base_number=turn.number,
            difference=difference_message(turn.plan, plan),
        )

    async def WatchPlans(self, request: pb.WatchPlansRequest, context: Context) -> AsyncIterator[pb.WatchPlansResponse]:
        if len(self._news) >= MAX_WATCHERS:
            problem = f"{MAX_WATCHERS} readers watch already; try again later or ask with GetPlan"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        sent, news = request.after_number, asyncio.Event()
        self._news.add(news)
        try:
            while not self._is_stopping:
                news.clear()
                if self._newest is not None and self._newest.number > sent:
                    sent = self._newest.number
                    yield pb.WatchPlansResponse(plan=plan_message(self._newest.plan, sent))
                else:
                    await news.wait()
        finally:
            self._news.discard(news)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping; connect again")

    async def _turn(self, number: int, context: Context) -> PlanTurn:
        """Find a turn by number, 0 for the one in force."""
        self.learn()
        if self._newest is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "there is no plan yet; try again in a moment")
        if number == 0:
            return self._newest
        if number not in self._held:
            held = ", ".join(map(str, sorted(self._held))) or "none"
            problem = f"plan {number} is not held here, only {held}; older ones are FleetPlan objects"
            await context.abort(grpc.StatusCode.NOT_FOUND, problem)
        return self._held[number]

    async def _solved(self, problem: Problem, context: Context) -> Plan:
        """Solve in a thread, no longer than the caller waits.

        A solve whose caller went away runs on to its own deadline in its worker, and holds its slot until then.
        """
        left_s = solve_time_s(context.time_remaining())
        limited = with_time_limit(problem, left_s)
        solve = await self._begun(self._solves, context, self._source.what_if, limited, left_s)
        try:
            return await asyncio.wait_for(asyncio.shield(solve), left_s)
        except TimeoutError:
            late = f"no answer within {left_s:.1f} s; allow a longer deadline or ask for fewer changes"
            return await _aborted(context, grpc.StatusCode.DEADLINE_EXCEEDED, late)
        except InvalidInput as error:
            raise BadRequest([FieldViolation(field="", description=str(error))]) from error
        except SolveFailed as error:
            return await _aborted(context, grpc.StatusCode.INTERNAL, f"the solver gave no plan: {error}")

    async def _begun(
        self, slots: Slots, context: Context, function: Callable[..., T], *arguments: Any
    ) -> asyncio.Future[T]:
        """Begin work in a thread, unless as much of its kind is going on already."""
        if slots.taken >= slots.most:
            problem = f"{slots.most} {slots.what} are being worked out; try again when one of them is done"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        work = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        slots.taken += 1
        work.add_done_callback(slots.give_back)
        return work


@dataclass(slots=True, kw_only=True)
class Slots:
    """How much work of one kind goes on, and may go on at once."""

    what: str
    most: int
    taken: int = 0

    def give_back(self, work: asyncio.Future[Any]) -> None:
        """Count the end of some work; its error may have nobody left to read it."""
        self.taken -= 1
        if not work.cancelled() and (error := work.exception()) is not None:
            log.info("one of the %s ended without an answer: %s", self.what, error)


def solve_time_s(remaining_s: float | None) -> float:
    """Seconds that a solve may take when its caller still waits ``remaining_s`` (None: has no deadline)."""
    if remaining_s is None:
        return DEFAULT_SOLVE_S
    return min(max(0.0, remaining_s - ANSWER_S), LONGEST_SOLVE_S)


async def abort_bad_request(context: Context, bad: BadRequest) -> NoReturn:
    """End a call with INVALID_ARGUMENT and google.rpc.BadRequest in its trailing metadata."""
    row = error_details_pb2.BadRequest.FieldViolation
    rows = [row(field=violation.field, description=violation.description) for violation in bad.violations]
    code = grpc.StatusCode.INVALID_ARGUMENT
    status = status_pb2.Status(code=code.value[0], message=str(bad))
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=rows))
    await _aborted(context, code, status.message, rpc_status.to_status(status).trailing_metadata)


async def _aborted(context: Any, code: grpc.StatusCode, message: str, trailing: Any = ()) -> NoReturn:
    await context.abort(code, message, trailing)
    raise AssertionError("abort returns never")


class ApiServer:
    """Runs the service in a thread of its own.

    Parameters
    ----------
    source : PlanSource
        Who decides.
    listen : Listen
        Where, and what callers must show.
    post : Post, optional
        Sends reviews to the API server; needed when ``listen`` names a token audience.
    """

    def __init__(self, source: PlanSource, listen: Listen, post: Post | None = None) -> None:
        check_listen(listen)
        if listen.token_audience and post is None:
            raise InvalidInput("gRPC", "token audience", "tokens cannot be reviewed without an API server")
        self._source, self._listen, self._post = source, listen, post
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked: asyncio.Event | None = None
        self._grace_s = 5.0

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        return self._started.result(timeout=0)

    def start(self, timeout_s: float = 10.0) -> int:
        """Listen; returns the port.

        Raises
        ------
        InvalidInput
            When the address is taken or the certificate cannot be used.
        """
        self._thread.start()
        return self._started.result(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """Answer what was asked, at most ``grace_s`` long, and end the thread."""
        self._grace_s = grace_s
        if self._loop is not None and self._stop_asked is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop_asked.set)
        self._thread.join(grace_s + 5.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._started.done():
                log.exception("the gRPC server ended")
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop_asked = asyncio.get_running_loop(), asyncio.Event()
        solving = ThreadPoolExecutor(MAX_SOLVES + MAX_EXPLANATIONS, "grpc-solve")
        asking = ThreadPoolExecutor(4, "grpc-auth")
        try:
            await self._serve_with(solving, asking, self._stop_asked)
        finally:
            for threads in (solving, asking):
                threads.shutdown(wait=False, cancel_futures=True)

    async def _serve_with(self, solving: Executor, asking: Executor, stop_asked: asyncio.Event) -> None:
        interceptors = self._interceptors(asking)
        server = grpc.aio.server(interceptors=interceptors, options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        service, checkup = PlacementService(self._source, solving), health.aio.HealthServicer()  # type: ignore[attr-defined]
        await _register(server, service, checkup)
        port = _bound(server, self._listen)
        await server.start()
        unsubscribe = self._source.subscribe(lambda turn: self._tell(service, turn))
        service.learn()
        self._started.set_result(port)
        await stop_asked.wait()
        unsubscribe()
        await checkup.enter_graceful_shutdown()
        service.stop()
        await server.stop(self._grace_s)

    def _interceptors(self, asking: Executor) -> tuple[TokenInterceptor, ...]:
        if not self._listen.token_audience or self._post is None:
            return ()
        return (TokenInterceptor(TokenGate(self._post, self._listen.token_audience), asking),)

    def _tell(self, service: PlacementService, turn: PlanTurn) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(service.learn, turn)


def serve(source: PlanSource, listen: Listen, post: Post | None = None) -> ApiServer:
    """Start a server over ``source``; stop it with its ``stop``.

    Raises
    ------
    InvalidInput
        When it would be open to anybody, the address is taken, or a certificate cannot be used.
    """
    server = ApiServer(source, listen, post)
    port = server.start()
    log.info("gRPC listens on %s", replace(listen, port=port).address)
    return server


async def _register(server: grpc.aio.Server, service: PlacementService, checkup: Any) -> None:
    placement_pb2_grpc.add_PlacementServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(checkup, server)
    await checkup.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _bound(server: grpc.aio.Server, listen: Listen) -> int:
    credentials = server_credentials(listen)
    try:
        if credentials is None:
            return server.add_insecure_port(listen.address)
        return server.add_secure_port(listen.address, credentials)
    except RuntimeError as error:
        remedy = "choose another address or port"
        raise InvalidInput("gRPC", f"bind {listen.address}", str(error), remedy) from error
