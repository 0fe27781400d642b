"""Prometheus → readings in base units, each with the time it was true.

``QUERIES`` is the one place where vendors' names live: our name → PromQL. Gateway series have two names, those of
the Gateway API inference extension and the newer ones of the llm-d endpoint picker that replace them. A file of the
user's may replace any entry. The rows of ``ENGINE_QUERIES`` say how fast each engine is: they are asked once a window,
only while corrections are learnt, and when they fail nothing else does.

Served time may run faster than real time (simulations): Prometheus counts per real second, so rates are divided by
``time_scale``. Latencies and sizes are not rates and stay as they are.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
import yaml

from controller.engine_telemetry import ENGINE_QUERIES, Sample, engines_of
from controller.readings import EngineReading, Histogram, LoadSample, NodeReading, Readings, ServiceReading
from controller.settings import Settings
from solvers.errors import InvalidInput, PenstockError

log = logging.getLogger("penstock.telemetry")

REQUESTS = ("inference_objective_request_total", "llm_d_epp_request_total")
TTFT = ("inference_objective_request_ttft_seconds", "llm_d_epp_request_ttft_seconds")
PROMPT = ("inference_objective_input_tokens", "llm_d_epp_request_input_tokens")
OUTPUT = ("inference_objective_output_tokens", "llm_d_epp_request_output_tokens")
QUEUES = ("inference_extension_flow_control_queue_size", "llm_d_epp_flow_control_queue_size")
BY_POOL, BY_MODEL = "namespace, inference_pool", "namespace, model_name"
MIX_WINDOWS = 10  # sizes of requests change slowly; a longer window keeps a quiet service's mix steady
HISTORY = 720  # load samples kept a service: an hour at one every 5 s
LARGEST_WATTS = 1e6  # unsupported DCGM fields read as huge integers


class QueryFailed(PenstockError):
    """Prometheus did not answer, or not with a vector."""


def _either(template: str, names: Iterable[str]) -> str:
    """The first of several names for one thing that has any series."""
    return " or ".join(template.replace("NAME", name) for name in names)


def _histogram(by: str, name: str, window: str) -> str:
    return f"sum by ({by}, le) (rate({name}_bucket[{window}]))"


QUERIES: Mapping[str, str] = {
    "gateway_requests_per_s": _either(f"sum by ({BY_POOL}) (rate(NAME[WINDOW]))", REQUESTS),
    "gateway_as_of_s": _either(f"min by ({BY_POOL}) (timestamp(NAME))", REQUESTS),
    "gateway_queue": _either(f"sum by ({BY_POOL}) (NAME)", QUEUES),
    "gateway_ttft": _either(_histogram(BY_POOL, "NAME", "WINDOW"), TTFT),
    "gateway_prompt": _either(_histogram(BY_POOL, "NAME", "LONG"), PROMPT),
    "gateway_output": _either(_histogram(BY_POOL, "NAME", "LONG"), OUTPUT),
    "engine_requests_per_s": f"sum by ({BY_MODEL}) (rate(vllm:time_to_first_token_seconds_count[WINDOW]))",
    "engine_as_of_s": f"min by ({BY_MODEL}) (timestamp(vllm:num_requests_running))",
    "engine_ttft": _histogram(BY_MODEL, "vllm:time_to_first_token_seconds", "WINDOW"),
    "engine_itl": _histogram(BY_MODEL, "vllm:inter_token_latency_seconds", "WINDOW"),
    "engine_prompt": _histogram(BY_MODEL, "vllm:request_prompt_tokens", "LONG"),
    "engine_output": _histogram(BY_MODEL, "vllm:request_generation_tokens", "LONG"),
    "pod_outstanding": "sum by (namespace, pod) (vllm:num_requests_running + vllm:num_requests_waiting)",
    "node_draw_watts": f"sum by (Hostname) (DCGM_FI_DEV_POWER_USAGE < {LARGEST_WATTS:g})",
    "node_as_of_s": "min by (Hostname) (timestamp(DCGM_FI_DEV_POWER_USAGE))",
    **ENGINE_QUERIES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTarget:
    """How a service is called in the series: by its inference pool at the gateway, by its model on the engines."""

    service: str
    namespace: str
    inference_pool: str
    model: str


def load_queries(file: str = "") -> dict[str, str]:
    """Read the table, with the entries of a user's YAML file in place of ours.

    Raises
    ------
    InvalidInput
        When the file is unreadable or names an unknown query.
    """
    if not file:
        return dict(QUERIES)
    try:
        given = yaml.safe_load(Path(file).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInput(file, "", f"cannot read queries: {error}") from error
    if unknown := sorted(set(given) - set(QUERIES)):
        raise InvalidInput(file, unknown[0], "is no query of ours", "known are " + ", ".join(sorted(QUERIES)))
    return {**QUERIES, **given}


class Prometheus:
    """The instant-query API of one server, without proxies of the environment."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self._url = url.rstrip("/") + "/api/v1/query"
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(timeout_s), maxsize=2)

    def query(self, expression: str) -> list[Sample]:
        """Evaluate now.

        Raises
        ------
        QueryFailed
            With the server's own words.
        """
        try:
            answer = self._pool.request("POST", self._url, fields={"query": expression}, encode_multipart=False)
            body: Any = json.loads(answer.data)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise QueryFailed(f"{self._url}: {error}") from error
        if body.get("status") != "success" or body["data"]["resultType"] != "vector":
            raise QueryFailed(f"{self._url}: {body.get('error', 'the answer is no vector')}; query: {expression}")
        samples = (Sample(labels=row["metric"], value=float(row["value"][1])) for row in body["data"]["result"])
        return [sample for sample in samples if not math.isnan(sample.value)]

    def close(self) -> None:
        """Drop the connections."""
        self._pool.clear()


Key = tuple[str, str]
Vectors = Mapping[str, list[Sample]]


@dataclass(slots=True)
class Telemetry:
    """Reads everything in one go; ``ask`` is ``Prometheus.query`` or a fake of it."""

    ask: Callable[[str], list[Sample]]
    queries: Mapping[str, str] = field(default_factory=lambda: dict(QUERIES))
    rate_window_s: float = 60.0
    time_scale: float = 1.0
    clock: Callable[[], float] = time.time
    asks_engines: bool = False
    _history: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    _engines: Mapping[str, EngineReading] = field(default_factory=dict)
    _engine_fault: str = ""
    _engines_at_s: float = float("-inf")

    def read(self, targets: Iterable[ServiceTarget]) -> Readings:
        """Query and assemble; what cannot be read is absent and named in ``faults``, never guessed."""
        now_s = self.clock()
        vectors, faults = self._ask_all()
        if self.asks_engines and not faults and now_s - self._engines_at_s >= self.rate_window_s:
            self._ask_engines(now_s)
        services = {}
        for target in targets:
            if reading := self._service(target, vectors, now_s):
                services[target.service] = reading
        return Readings(
            taken_at_s=now_s,
            services=services,
            nodes=_nodes(vectors),
            outstanding_requests=_by(vectors.get("pod_outstanding", []), "namespace", "pod"),
            engines=self._engines if self.asks_engines else {},
            engine_fault=self._engine_fault if self.asks_engines else "",
            faults=tuple(faults),
        )

    def _ask_all(self) -> tuple[Vectors, list[str]]:
        """Ask every query; one that finds no server ends the round, as the others would wait in vain."""
        vectors: dict[str, list[Sample]] = {}
        for name, template in self.queries.items():
            if name in ENGINE_QUERIES:
                continue
            try:
                vectors[name] = self.ask(self._expression(template))
            except QueryFailed as error:
                return {}, [f"{name}: {error}"]
        return vectors, []

    def _ask_engines(self, now_s: float) -> None:
        """Ask how fast each engine is; a failure drops what was known, which speaks of a past window."""
        vectors: dict[str, list[Sample]] = {}
        self._engines_at_s, self._engines, self._engine_fault = now_s, {}, ""
        try:
            for name in ENGINE_QUERIES:
                vectors[name] = self.ask(self._expression(self.queries[name]))
        except QueryFailed as error:
            self._engine_fault = f"{name}: {error}"
            return
        self._engines = engines_of(vectors, self.time_scale)

    def _expression(self, template: str) -> str:
        window_s, long_s = max(1, round(self.rate_window_s)), max(1, round(MIX_WINDOWS * self.rate_window_s))
        return template.replace("WINDOW", f"{window_s}s").replace("LONG", f"{long_s}s")

    def _service(self, target: ServiceTarget, vectors: Vectors, now_s: float) -> ServiceReading | None:
        """Prefer the gateway: engines see completions only, which saturate and hide demand."""
        gateway, engine = (target.namespace, target.inference_pool), (target.namespace, target.model)
        for prefix, source, key, labels in (
            ("gateway", "Gateway", gateway, ("namespace", "inference_pool")),
            ("engine", "Engine", engine, ("namespace", "model_name")),
        ):
            rate = _value(vectors, f"{prefix}_requests_per_s", labels, key)
            as_of_s = _value(vectors, f"{prefix}_as_of_s", labels, key)
            if rate is None or as_of_s is None:
                continue
            requests_per_s = rate / self.time_scale
            return ServiceReading(
                service=target.service,
                source=source,
                requests_per_s=requests_per_s,
                queue=_value(vectors, "gateway_queue", ("namespace", "inference_pool"), gateway),
                ttft_histogram=_buckets(vectors, f"{prefix}_ttft", labels, key),
                itl_histogram=_buckets(vectors, "engine_itl", ("namespace", "model_name"), engine),
                prompt_histogram=_buckets(vectors, f"{prefix}_prompt", labels, key),
                output_histogram=_buckets(vectors, f"{prefix}_output", labels, key),
                history=self._remember(target.service, now_s, requests_per_s, as_of_s),
                as_of_s=as_of_s,
            )
        return None

    def _remember(self, service: str, now_s: float, requests_per_s: float, as_of_s: float) -> tuple[LoadSample, ...]:
        """Add to the service's load history; nothing is added while no newer sample was scraped.

        Forecasts think in served time: ages and windows are stretched by the time scale, seen from now.
        """
        history = self._history.setdefault(service, deque(maxlen=HISTORY))
        if not history or as_of_s > history[-1][0]:
            history.append((as_of_s, requests_per_s))
        window_s = self.rate_window_s * self.time_scale
        return tuple(
            LoadSample(time_s=now_s - (now_s - at_s) * self.time_scale, requests_per_s=rate, window_s=window_s)
            for at_s, rate in history
        )


def _value(vectors: Vectors, name: str, labels: tuple[str, str], key: Key) -> float | None:
    return next((s.value for s in vectors.get(name, ()) if _key(s, labels) == key), None)


def _buckets(vectors: Vectors, name: str, labels: tuple[str, str], key: Key) -> Histogram | None:
    rows = {float(s.labels["le"]): s.value for s in vectors.get(name, ()) if _key(s, labels) == key}
    return Histogram.from_cumulative(rows)


def _key(sample: Sample, labels: tuple[str, str]) -> Key:
    return sample.labels.get(labels[0], ""), sample.labels.get(labels[1], "")


def _by(samples: Iterable[Sample], first: str, second: str) -> dict[str, float]:
    return {"/".join(_key(sample, (first, second))): sample.value for sample in samples}


def _nodes(vectors: Vectors) -> dict[str, NodeReading]:
    ages = {sample.labels.get("Hostname", ""): sample.value for sample in vectors.get("node_as_of_s", ())}
    draws = {sample.labels.get("Hostname", ""): sample.value for sample in vectors.get("node_draw_watts", ())}
    return {
        node: NodeReading(node=node, draw_watts=watts, as_of_s=ages[node])
        for node, watts in sorted(draws.items())
        if node in ages
    }


class TelemetryReader:
    """Reads in a thread of its own: a Prometheus that hangs must not hold up the loop.

    The loop says whom to ask about (``look_for``) and takes ``latest``; ages tell it what an old answer is worth.
    """

    def __init__(self, settings: Settings) -> None:
        self._prometheus = Prometheus(settings.prometheus_url) if settings.prometheus_url else None
        self._period_s = 5.0
        self._targets: tuple[ServiceTarget, ...] = ()
        self._answered: tuple[ServiceTarget, ...] | None = None
        self._latest = Readings(taken_at_s=0.0)
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._telemetry: Telemetry | None = None
        if self._prometheus is not None:
            self._telemetry = Telemetry(
                ask=self._prometheus.query,
                queries=load_queries(settings.queries_file),
                rate_window_s=settings.rate_window_s,
                time_scale=settings.time_scale,
            )

    def look_for(self, targets: Iterable[ServiceTarget], period_s: float, *, asks_engines: bool = False) -> None:
        """Say which services to ask about, how often, and whether to ask engines; new ones are asked about at once."""
        wanted, self._period_s = tuple(targets), period_s
        if self._telemetry is not None:
            self._telemetry.asks_engines = asks_engines
        if wanted != self._targets:
            self._targets = wanted
            self._wake.set()

    @property
    def has_read(self) -> bool:
        """True once there was an answer or a failure about all services, or nobody to ask.

        Silence before that means nothing.
        """
        return self._telemetry is None or self._answered == self._targets

    @property
    def latest(self) -> Readings:
        """The last readings; those of an unreachable Prometheus are the last good ones with its fault."""
        return self._latest

    def start(self) -> None:
        """Begin to read, if there is a Prometheus."""
        if self._telemetry is not None:
            self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        if self._prometheus is not None:
            self._prometheus.close()

    def read_once(self) -> Readings:
        """Read now and remember it."""
        targets = self._targets
        if self._telemetry is not None:
            taken = self._telemetry.read(targets)
            self._latest = keep_last_good(self._latest, taken) if taken.faults else taken
        self._answered = targets
        return self._latest

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            self.read_once()
            self._wake.wait(self._period_s)


def keep_last_good(last: Readings, failed: Readings) -> Readings:
    """Keep what was read before, with its age, beside the fault that hides anything newer."""
    if failed.faults != last.faults:
        log.warning("telemetry: %s", "; ".join(failed.faults))
    return Readings(
        taken_at_s=failed.taken_at_s,
        services=last.services,
        nodes=last.nodes,
        outstanding_requests=last.outstanding_requests,
        engines=last.engines,
        engine_fault=last.engine_fault,
        faults=failed.faults,
    )
