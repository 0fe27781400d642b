"""``penstock run``: puts the parts together, starts their threads, turns the loop, and stops in order."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

from controller.api import ApiServer, serve
from controller.auth import listen_from, review_by
from controller.cache import Cache
from controller.client import KubeClient, Transport
from controller.cycle import Cycle
from controller.decide import Decider
from controller.election import Elector
from controller.health import HealthServer
from controller.metrics import Metrics
from controller.settings import Settings
from controller.specs import parse_specs
from controller.telemetry import TelemetryReader
from controller.turn import Turn
from controller.watch import Watch
from controller.worker import SolverWorker, plan_solver, usable_workers
from solvers.plan import Plan
from solvers.problem import Problem

log = logging.getLogger("penstock")

LEAST_GAP_S, LONGEST_GAP_S = 0.25, 1.0  # between the beginnings of turns; from the end of one to the next
LONGEST_TURN_S = 300.0  # a loop that has not turned for so long hangs


class Operator:
    """One replica of the operator; also what the gRPC server asks for plans.

    ``start`` returns at once and the loop turns in a thread; ``run`` turns it in the calling thread until stopped.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self.cache = Cache(lambda kind: self._wake.set(), relist_s=settings.relist_s)
        self._transports = [Transport.from_settings(settings) for _ in range(2)]
        self.elector = Elector(self._transports[1], settings, lambda leads: self._wake.set())
        self.client = KubeClient(self._transports[0], lambda: self.elector.is_leader)
        self.watch = Watch(self.cache, self._transports[0])
        self.telemetry = TelemetryReader(settings)
        solver = partial(
            plan_solver,
            workers=usable_workers(settings.solver_workers),
            deadline_s=settings.solver_deadline_s,
        )
        self.worker, self._what_if_worker = (
            SolverWorker(memory_bytes=settings.solver_memory_bytes, solver=solver) for _ in range(2)
        )
        self._decider = Decider(self.worker, deadline_s=settings.solver_deadline_s, on_done=self._solved)
        self.cycle = Cycle(
            settings,
            client=self.client,
            cache=self.cache,
            watch=self.watch,
            elector=self.elector,
            telemetry=self.telemetry,
            decider=self._decider,
            metrics=self.metrics,
            publish=self._publish,
        )
        self._subscribers: list[Callable[[Turn], None]] = []
        self._health = HealthServer(
            settings.metrics_bind,
            settings.metrics_port,
            healthy=self.unhealthy_because,
            ready=self.unready_because,
            metrics=self.metrics.render,
        )
        self._api: ApiServer | None = None
        self._last_turn_s = time.monotonic()
        self._thread = threading.Thread(target=self._turn_for_ever, name="loop", daemon=True)

    # What readers ask

    def latest(self) -> Turn | None:
        """The plan in force with the fleet as last seen, None before the first plan."""
        return self.cycle.latest

    def subscribe(self, callback: Callable[[Turn], None]) -> Callable[[], None]:
        """Call back, from the loop's thread, with each new decision; returns how to end that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def what_if(self, problem: Problem, deadline_s: float) -> Plan:
        """Solve another problem without touching anything, in a process of its own."""
        return self._what_if_worker.solve(problem, deadline_s=deadline_s)

    def unhealthy_because(self) -> str:
        """Empty while the loop turns."""
        silent_s = time.monotonic() - self._last_turn_s
        return f"no turn for {silent_s:.0f} s" if silent_s > LONGEST_TURN_S else ""

    def unready_because(self) -> str:
        """Empty when the cluster was seen at least once; a standby is ready too."""
        return self.cycle.unseen_because

    @property
    def metrics_port(self) -> int:
        """Port of /metrics, /healthz and /readyz."""
        return self._health.port

    @property
    def grpc_port(self) -> int | None:
        """Port of the gRPC server, None when there is none."""
        return self._api.port if self._api is not None else None

    # Life

    def start(self) -> None:
        """Start everything and turn the loop in a thread."""
        self._start_parts()
        self._thread.start()

    def run(self) -> None:
        """Start everything and turn the loop here, until ``ask_to_stop``."""
        self._start_parts()
        self._turn_for_ever()

    def ask_to_stop(self) -> None:
        """Let the loop end after its turn; safe in a signal handler."""
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """Stop everything; the Lease is given back once nothing writes any more. Workloads keep serving."""
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join()
        if self._api is not None:
            self._api.stop()
        self.elector.stop()
        self.watch.stop()
        self.telemetry.stop()
        self._decider.stop()
        self.worker.stop()
        self._what_if_worker.stop()
        self._health.stop()
        for transport in self._transports:
            transport.close()

    def _start_parts(self) -> None:
        self._health.start()
        if self.settings.grpc_port:
            self._api = serve(self, listen_from(self.settings), review_by(self._transports[1]))
        self.telemetry.start()
        self.elector.start()

    def _turn_for_ever(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            began_s = time.monotonic()
            tick_s = self._one_turn(began_s)
            self._last_turn_s = time.monotonic()
            took_s = self._last_turn_s - began_s
            self._wake.wait(max(0.0, tick_s - took_s))
            # A burst of events is one turn, and turns leave time to the watches.
            pause_s = min(max(LEAST_GAP_S - took_s, took_s), LONGEST_GAP_S)
            self._stopping.wait(max(0.0, self._last_turn_s + pause_s - time.monotonic()))

    def _one_turn(self, began_s: float) -> float:
        """Take a turn; one that breaks is counted and the next one tries again. Returns the pause between turns."""
        try:
            report = self.cycle.turn()
        except Exception:
            log.exception("a turn broke; the next one begins anew")
            self.metrics.turn_ended(None, (), "failed", time.monotonic() - began_s, time.time())
            return self.cycle.tick_s(parse_specs({}))
        return self.cycle.pause_s(report.sight)

    def _solved(self, result: str, took_s: float) -> None:
        self.metrics.solve_ended(result, took_s)
        self.metrics.count_up_to("solver_restarts", self.worker.restarts)
        self._wake.set()

    def _publish(self, turn: Turn) -> None:
        for callback in tuple(self._subscribers):
            callback(turn)


def run(settings: Settings) -> int:
    """Run the operator until SIGTERM or SIGINT; returns the exit code."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.log_level.upper() != "DEBUG":
        logging.getLogger("kopf").setLevel(logging.CRITICAL)  # each retry of each watch; we say what it means
    operator = Operator(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        operator.ask_to_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    log.info("%s starts", settings.identity)
    try:
        operator.run()
    finally:
        operator.stop()
    log.info("%s stopped", settings.identity)
    return 0
