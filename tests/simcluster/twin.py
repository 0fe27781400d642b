"""The fleet twin: one process that stands in for gateway, engines and GPUs of a simulated cluster.

It watches a cluster's pods, turns the Ready ones that carry Penstock's labels into simulated replicas, sends each
service's trace over them in virtual time, and serves what gateway, engines and GPU exporters would on loopback:

    /gateway/metrics  /engines/metrics  /dcgm/metrics   Prometheus text
    /state                                              JSON: attained SLOs, queues, replicas, watts and their peaks
    /control (POST)                                     {"start": true}, {"stop": true}, {"reset": true},
                                                        {"surge": {"service": "ns/name", "factor": 3, "duration_s": 60}}
                                                        {"slowness": 1.2}, times what engines' profiles say

The clock stands at 0 until it is started. Surge times are virtual seconds; without ``start_s`` it begins now.

    python -m tests.simcluster.twin --kubeconfig FILE --traffic demo/chat-8b=synthetic@20 --time-scale 20 --start
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from controller.traces import load_trace
from controller.traces_made import synthetic_trace
from solvers.errors import InvalidInput, PenstockError
from tests.simcluster.twin_fleet import GATEWAY_PATIENCE_S, TwinFleet
from tests.simcluster.twin_metrics import engine_metrics, gateway_metrics, gpu_metrics
from tests.simcluster.twin_server import JSON, TEXT, TwinServer
from tests.simcluster.twin_traffic import Traffic
from tests.simcluster.twin_watch import ClusterView, ClusterWatch

PERIOD_S = 0.1
SYNTHETIC = "synthetic"
SYNTHETIC_HOUR_S = 3600.0
GROUP_LABELS = ("topology.penstock.dev/rack", "topology.penstock.dev/row")


class VirtualClock:
    """Virtual seconds: ``time_scale`` times the real ones that it ran. Stands still until started."""

    def __init__(self, time_scale: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.time_scale, self._clock = time_scale, clock
        self._ran_s, self._since_s = 0.0, float("nan")
        self.is_running = False

    def start(self) -> None:
        if not self.is_running:
            self._since_s, self.is_running = self._clock(), True

    def stop(self) -> None:
        self._ran_s, self.is_running = self.now_s() / self.time_scale, False

    def now_s(self) -> float:
        return self.time_scale * (self._ran_s + (self._clock() - self._since_s if self.is_running else 0.0))


class Twin:
    """Runs a ``TwinFleet`` by the clock beside its HTTP server.

    Parameters
    ----------
    source : callable
        Gives the present ``ClusterView``, such as a ``ClusterWatch``.
    traffic : sequence of Traffic
    time_scale : float
        Virtual seconds in a real one.
    port : int
        To serve on; 0 takes a free one.
    group_labels : sequence of str
        Node labels whose watts are added up, with their peaks.
    patience_s : float
        Virtual seconds after which the gateway gives up on a request that no engine could take.
    """

    def __init__(
        self,
        source: Callable[[], ClusterView],
        traffic: Sequence[Traffic] = (),
        *,
        time_scale: float = 1.0,
        port: int = 0,
        group_labels: Sequence[str] = GROUP_LABELS,
        patience_s: float = GATEWAY_PATIENCE_S,
    ) -> None:
        self.fleet = TwinFleet(traffic, group_labels=tuple(group_labels), patience_s=patience_s)
        self.clock = VirtualClock(time_scale)
        self._source, self._lock = source, threading.Lock()
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        pages = {
            "/gateway/metrics": (TEXT, lambda: self._page(gateway_metrics)),
            "/engines/metrics": (TEXT, lambda: self._page(engine_metrics)),
            "/dcgm/metrics": (TEXT, lambda: self._page(gpu_metrics)),
            "/state": (JSON, lambda: json.dumps(self.state())),
        }
        self._server = TwinServer(pages, self.order, port)
        self._thread = threading.Thread(target=self._run, name="twin steps", daemon=True)

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> None:
        """Follow the cluster and serve; the virtual clock waits for its own start."""
        self.step()
        self._server.start()
        self._thread.start()

    def stop(self) -> None:
        """End both threads."""
        self._stopping.set()
        self._thread.join(timeout=10.0)
        self._server.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def step(self) -> None:
        """Go on to the present: requests, then the cluster's changes, then the meters."""
        with self._lock:
            self.fleet.advance(self.clock.now_s())
            self.fleet.apply(self._source())
            self.fleet.measure()

    def state(self) -> dict[str, Any]:
        """What ``/state`` says."""
        with self._lock:
            self.fleet.fleet.settle()
            running = {"is_running": self.clock.is_running, "time_scale": self.clock.time_scale}
            return running | {"failure": repr(self._failure) if self._failure else None} | self.fleet.state()

    def order(self, body: dict[str, Any]) -> dict[str, Any]:
        """Do what ``/control`` asks."""
        orders = {
            "start": self._start,
            "stop": self._stop,
            "reset": self._reset,
            "surge": self._surge,
            "slowness": self._slow,
        }
        unknown = sorted(set(body) - set(orders))
        if unknown or not body:
            asked = ", ".join(unknown) or "nothing"
            raise InvalidInput("order", "", f"asks for {asked}", f"use {', '.join(orders)}")
        with self._lock:
            for name, argument in body.items():
                if argument is not False:
                    orders[name](argument)
            return {"virtual_s": self.clock.now_s(), "is_running": self.clock.is_running}

    def _start(self, _: object) -> None:
        self.clock.start()

    def _stop(self, _: object) -> None:
        self.clock.stop()

    def _reset(self, _: object) -> None:
        self.fleet.reset()

    def _surge(self, asked: object) -> None:
        values = asked if isinstance(asked, dict) else {}
        try:
            service = str(values["service"])
            factor, duration_s = float(values["factor"]), float(values["duration_s"])
            start_s = float(values.get("start_s", self.clock.now_s()))
        except (KeyError, TypeError, ValueError) as wrong:
            remedy = '{"service": "ns/name", "factor": 3, "duration_s": 60}'
            raise InvalidInput("order", "surge", f"is not understood ({wrong!r})", f"send {remedy}") from wrong
        if service not in self.fleet.traffic:
            known = ", ".join(sorted(self.fleet.traffic)) or "none"
            raise InvalidInput("order", "surge.service", f"{service} has no traffic here", f"use one of: {known}")
        self.fleet.traffic[service].surge(factor, start_s, duration_s)

    def _slow(self, asked: object) -> None:
        if isinstance(asked, bool) or not isinstance(asked, int | float):
            raise InvalidInput("order", "slowness", f"is {asked!r}", 'send {"slowness": 1.2}')
        self.fleet.slow_down(float(asked))

    def _page(self, make: Callable[[TwinFleet], str]) -> str:
        with self._lock:
            return make(self.fleet)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(PERIOD_S):
                self.step()
        except BaseException as error:
            self._failure = error  # /state tells; the last counts stay
            raise


def parse_traffic(text: str, seed: int) -> Traffic:
    """Read ``namespace/name=TRACE[@REQUESTS_PER_S]``; TRACE is a file or ``synthetic``.

    Raises
    ------
    InvalidInput
        When the text is not of that form or the file is wrong.
    """
    service, equals, rest = text.partition("=")
    source, at, rate = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if not equals or "/" not in service or not source:
        raise InvalidInput("--traffic", "", f"{text!r} is not understood", "write namespace/name=FILE@20")
    try:
        requests_per_s = float(rate) if at else None
    except ValueError:
        raise InvalidInput("--traffic", service, f"{rate!r} is no rate", "write requests per second after @") from None
    trace = synthetic_trace(seed, SYNTHETIC_HOUR_S) if source == SYNTHETIC else load_trace(source)
    return Traffic(service, trace, requests_per_s=requests_per_s, seed=seed)


def make_parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.simcluster.twin",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kubeconfig", type=Path, required=True, help="cluster to follow")
    parser.add_argument(
        "--traffic",
        action="append",
        default=[],
        metavar="NS/NAME=TRACE[@RATE]",
        help="requests of one service: a trace file or `synthetic`, scaled to RATE requests per virtual second",
    )
    parser.add_argument("--seed", type=int, default=1, help="of synthetic traces and scaling (default %(default)s)")
    parser.add_argument("--time-scale", type=float, default=1.0, help="virtual seconds per real one (default 1)")
    parser.add_argument("--port", type=int, default=0, help="on loopback; 0 takes a free one (default)")
    parser.add_argument(
        "--group-label", action="append", default=[], metavar="LABEL", help="node label to add up watts by"
    )
    parser.add_argument(
        "--patience-s",
        type=_patience,
        default=GATEWAY_PATIENCE_S,
        metavar="SECONDS",
        help="virtual seconds after which the gateway gives up on a request; inf never does (default %(default)g)",
    )
    parser.add_argument("--start", action="store_true", help="start the virtual clock at once")
    return parser


def _patience(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is no time at or above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; prints one line of JSON with the URL when it serves."""
    args = make_parser().parse_args(arguments)
    try:
        traffic = [parse_traffic(text, args.seed + i) for i, text in enumerate(args.traffic)]
    except PenstockError as error:
        print(error, file=sys.stderr)
        return 1
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    watch = ClusterWatch(args.kubeconfig)
    watch.start()
    with Twin(
        watch,
        traffic,
        time_scale=args.time_scale,
        port=args.port,
        group_labels=args.group_label or GROUP_LABELS,
        patience_s=args.patience_s,
    ) as twin:
        if args.start:
            twin.clock.start()
        print(json.dumps({"url": twin.url}), flush=True)
        stopped.wait()
    watch.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
