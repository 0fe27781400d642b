"""What ``--trace`` says: a file, a folder of ServeGen clients, or a made load, as a workload for one service.

A made load is ``KIND:NAME=VALUE,…``; what it leaves out comes from the demand that is planned for:

- ``poisson:rate=5,prompt=800,output=150,duration=600``
- ``gamma:rate=5,cv=3``: bursts, the more the larger the coefficient of variation of the gaps
- ``closed:clients=32,think=0,requests=3200``: so many clients, each asking again when its last request was answered
- ``servegen:path=DIR,start=337800,duration=1200``: clients of a recording, sizes from ``prompt`` and ``output``

``prompt`` and ``output`` are tokens: one number, or ``P50/P99`` of a lognormal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from controller.traces import BLOCK_TOKENS, MOST_TOKENS, Trace, load_trace
from controller.traces_made import (
    Floats,
    Size,
    drawn_sizes,
    gamma_arrivals_s,
    made_trace,
    poisson_arrivals_s,
    scale_trace,
    synthetic_trace,
)
from controller.traces_servegen import busiest_start_s, servegen_arrivals_s
from solvers.errors import InvalidInput
from solvers.evaluate.load import Load
from solvers.simulate.arrivals import Clients, Workload
from solvers.workload import Demand

DURATION_S = 600.0
CLIENTS = 16
REQUESTS_EACH = 50  # of one closed-loop client, when their number is not given

NUMBERS: Mapping[str, tuple[str, ...]] = {
    "poisson": ("rate", "duration"),
    "gamma": ("rate", "cv", "duration"),
    "closed": ("clients", "think", "requests"),
    "servegen": ("start", "duration"),
}
SIZES = ("prompt", "output")
NONE = np.zeros(0, dtype=np.int64)
ALLOWS_ZERO = frozenset({"think", "start"})
MOST: Mapping[str, float] = {
    "requests": 1e7,
    "clients": 1e6,
    "cv": 100.0,
    **dict.fromkeys(SIZES, MOST_TOKENS),
}
"""Of what is made; beyond, a number is a slip of the hand, and memory would end before the load is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpec:
    """What one ``--trace`` asks.

    Attributes
    ----------
    kind : str
        ``file``, ``synthetic``, or a kind of made load.
    path : Path or None
        Of a file or a folder of clients.
    numbers : mapping of name to float
        Given numbers by name.
    prompt, output : Size or None
        Given sizes; without them those of the planned demand.
    """

    kind: str
    path: Path | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    prompt: Size | None = None
    output: Size | None = None

    @property
    def scales_to_demand(self) -> bool:
        """True when the trace has a load of its own that is multiplied up to the planned one."""
        return self.kind in {"file", "synthetic"}


def parse_trace_spec(text: str) -> TraceSpec:
    """Read the value of ``--trace``.

    Raises
    ------
    InvalidInput
        Naming the unknown kind, name or value and what is known.

    Examples
    --------
    >>> parse_trace_spec("poisson:rate=5,prompt=800").numbers
    {'rate': 5.0}
    """
    kind, colon, rest = text.partition(":")
    if not colon and kind in NUMBERS and kind != "servegen":
        colon, rest = ":", ""
    if not colon or kind not in NUMBERS:
        return _of_path(Path(text))
    words = dict(_word(kind, word) for word in rest.split(",") if word)
    where = words.pop("path", None)
    if (kind == "servegen") != (where is not None):
        problem = "needs path=" if kind == "servegen" else "knows no path"
        raise InvalidInput("--trace", kind, problem, "write servegen:path=DIR for a folder of clients")
    return TraceSpec(
        kind=kind,
        path=Path(where) if where else None,
        numbers={name: _number(name, value) for name, value in words.items() if name not in SIZES},
        prompt=_size("prompt", words.get("prompt")),
        output=_size("output", words.get("output")),
    )


def _of_path(path: Path) -> TraceSpec:
    if not path.exists():
        known = ", ".join(f"{kind}:…" for kind in NUMBERS)
        raise InvalidInput(str(path), "", "cannot be read: no such file or folder", f"name a trace, or write {known}")
    return TraceSpec(kind="servegen" if path.is_dir() else "file", path=path)


def _word(kind: str, word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    known = (*NUMBERS[kind], *SIZES, *(("path",) if kind == "servegen" else ()))
    if name not in known or not value:
        raise InvalidInput("--trace", kind, f"cannot read {word!r}", f"write NAME=VALUE with {', '.join(known)}")
    return name, value


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value < float("inf") or (value == 0.0 and name not in ALLOWS_ZERO):
        raise InvalidInput("--trace", name, f"is {text!r}", "give a number above 0")
    if value > MOST.get(name, float("inf")):
        raise InvalidInput("--trace", name, f"is {text!r}", f"give at most {MOST[name]:,.0f}")
    return value


def _size(name: str, text: str | None) -> Size | None:
    if text is None:
        return None
    p50, _, p99 = text.partition("/")
    median = _number(name, p50)
    most = _number(name, p99) if p99 else median
    if most < median:
        raise InvalidInput("--trace", name, f"has a P99 of {most:g} below its P50 of {median:g}", "write P50/P99")
    return Size(p50_tokens=median, p99_tokens=most)


# ---------------------------------------------------------------- from a spec to requests


def trace_for(spec: TraceSpec, demand: Demand | None, seed: int) -> Trace:
    """Make or read the requests of a spec; for clients, those that they take in turn.

    Parameters
    ----------
    demand : Demand, optional
        Of the service: what the spec leaves out comes from it.
    seed : int
        Of arrivals and sizes; equal seeds, equal traces.
    """
    if spec.path is not None and spec.kind == "file":
        return load_trace(spec.path)
    if spec.kind == "synthetic":
        return synthetic_trace(seed, DURATION_S)
    rng = np.random.default_rng(seed)
    arrivals_s = ARRIVALS[spec.kind](spec, demand, rng, seed)
    if not len(arrivals_s):
        raise InvalidInput("--trace", spec.kind, "makes no request", "give a higher rate= or a longer duration=")
    mix = demand.mix if demand else ()
    return made_trace(arrivals_s, drawn_sizes(rng, len(arrivals_s), mix, spec.prompt, spec.output))


def _rate(spec: TraceSpec, demand: Demand | None) -> float:
    rate = spec.numbers.get("rate", demand.requests_per_s if demand else 0.0)
    if not rate > 0.0:
        raise InvalidInput("--trace", "rate", "is neither given nor planned", "give rate=REQUESTS_PER_S")
    _check_count("rate", rate * _duration_s(spec))
    return rate


def _check_count(field: str, requests: float, words: str = "") -> None:
    if requests > MOST["requests"]:
        problem = f"makes about {requests:.3g} requests{words}"
        raise InvalidInput("--trace", field, problem, f"make at most {MOST['requests']:,.0f}")


def _duration_s(spec: TraceSpec) -> float:
    return spec.numbers.get("duration", DURATION_S)


def _poisson(spec: TraceSpec, demand: Demand | None, rng: np.random.Generator, seed: int) -> Floats:
    return poisson_arrivals_s(rng, _rate(spec, demand), _duration_s(spec))


def _gamma(spec: TraceSpec, demand: Demand | None, rng: np.random.Generator, seed: int) -> Floats:
    return gamma_arrivals_s(rng, _rate(spec, demand), spec.numbers.get("cv", 2.0), _duration_s(spec))


def _closed(spec: TraceSpec, demand: Demand | None, rng: np.random.Generator, seed: int) -> Floats:
    """Rows that the clients take in turn."""
    count = spec.numbers.get("requests", REQUESTS_EACH * spec.numbers.get("clients", CLIENTS))
    _check_count("clients", count)
    return np.zeros(int(count))


def _servegen(spec: TraceSpec, demand: Demand | None, rng: np.random.Generator, seed: int) -> Floats:
    folder, duration_s = spec.path or Path(), _duration_s(spec)
    start_s = spec.numbers.get("start")
    if start_s is None:
        start_s = busiest_start_s(folder, duration_s)
    return servegen_arrivals_s(folder, start_s=start_s, duration_s=duration_s, seed=seed)


Arrivals = Callable[[TraceSpec, Demand | None, np.random.Generator, int], Floats]
ARRIVALS: Mapping[str, Arrivals] = {
    "poisson": _poisson, "gamma": _gamma, "closed": _closed, "servegen": _servegen,
}  # fmt: skip


def load_of(
    specs: Mapping[str, TraceSpec], demands: Mapping[str, Demand], factors: Mapping[str, float], seed: int
) -> Load:
    """Make the load of several services.

    Parameters
    ----------
    specs : mapping of service to TraceSpec
    factors : mapping of service to float
        Multiplies the requests of a service; a service without one takes its trace up to the planned load when the
        trace has a load of its own, and as it is otherwise.
    seed : int
        Each service draws from a seed of its own.

    Raises
    ------
    InvalidInput
        When a factor is given for clients, whose load is their number.
    """
    traces: dict[str, Trace] = {}
    clients: list[Clients] = []
    for index, (service, spec) in enumerate(sorted(specs.items())):
        demand = demands.get(service)
        trace = trace_for(spec, demand, seed + index)
        if spec.kind == "closed":
            if service in factors:
                raise InvalidInput("--factor", "", f"is given for {service}, whose clients are counted", "set clients=")
            clients.append(_clients(spec, service, trace))
            continue
        factor = factors.get(service, _factor(spec, demand, trace))
        _check_count(f"of {service}", factor * len(trace), f", {factor:.3g} times its own")
        traces[service] = scale_trace(trace, factor, seed + index) if factor > 0 else ()
    return Load(workload=workload_of(traces), clients=tuple(clients))


def _factor(spec: TraceSpec, demand: Demand | None, trace: Trace) -> float:
    """Up to the planned load; a trace without duration stays as it is."""
    if demand is None or not spec.scales_to_demand:
        return 1.0
    span_s = trace[-1].arrival_s
    return demand.requests_per_s * span_s / len(trace) if span_s > 0 else float(demand.requests_per_s > 0)


def _clients(spec: TraceSpec, service: str, trace: Trace) -> Clients:
    return Clients(
        count=int(spec.numbers.get("clients", CLIENTS)),
        workload=workload_of({service: trace}),
        think_s=spec.numbers.get("think", 0.0),
    )


def workload_of(traces: Mapping[str, Trace]) -> Workload:
    """Put traces by service together; requests are named ``SERVICE#NUMBER``."""
    services = tuple(sorted(traces))
    rows = [(i, number, r) for i, name in enumerate(services) for number, r in enumerate(traces[name])]
    has_blocks = any(request.block_ids for _, _, request in rows)
    return Workload(
        services=services,
        arrival_s=np.array([r.arrival_s for _, _, r in rows], dtype=np.float64),
        service=np.array([i for i, _, _ in rows], dtype=np.int64),
        prompt_tokens=np.array([r.prompt_tokens for _, _, r in rows], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for _, _, r in rows], dtype=np.int64),
        names=tuple(f"{services[i]}#{number}" for i, number, _ in rows),
        block_tokens=BLOCK_TOKENS if has_blocks else 0,
        block_starts=np.cumsum([0, *(len(r.block_ids) for _, _, r in rows)], dtype=np.int64) if has_blocks else NONE,
        block_ids=np.array([block for _, _, r in rows for block in r.block_ids], dtype=np.int64),
    )
