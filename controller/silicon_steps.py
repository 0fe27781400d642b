"""Step times of a server from the silicon tables, operator by operator, for replays of a benchmark as it was run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from controller import silicon
from solvers.engine.closed_loop import UNLIMITED, StepCurves

BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
CONTEXTS = (256, 1024, 2048, 4096, 8192, 9216, 16384)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
ATTENTION_WORDS = ("attention", "mla")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to name a server to the tables: a bundled model, and options of ``EngineHandle.compile``."""

    model: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTables:
    """A server in the tables of its own engine, or of another where its own lack it, and beside those the others'.

    ``engine`` says whose tables they are.
    """

    engine: str
    candidate: Candidate
    own: Any
    others: tuple[Any, ...]


def open_server(candidates: Iterable[Candidate], system: str, engine: str) -> ServerTables:
    """Compile a server: the first candidate that an engine's tables hold, the own engine before the others.

    Raises
    ------
    NotCovered
        When no engine's tables hold any candidate.
    """
    ways = list(candidates)
    names = [engine, *(name for name in silicon.BACKENDS if name != engine)]
    opened = {name: found for name in names if (found := _first(ways, system, name)) is not None}
    if not opened:
        raise silicon.NotCovered(
            f"{ways[0].model} on {system}", "", f"none of {len(ways)} ways to name it is in any engine's tables", ""
        )
    own = next(iter(opened))
    others = tuple(handle for name, (_, handle) in opened.items() if name != own)
    return ServerTables(engine=own, candidate=opened[own][0], own=opened[own][1], others=others)


def step_curves(tables: ServerTables) -> StepCurves:
    """Tabulate the steps; matrix products take the fastest of the engines' tables for the same shape."""
    handles = (tables.own, *tables.others)
    decode = [[_fastest(handles, _decode, batch, context) for context in CONTEXTS] for batch in BATCHES]
    prefill = [_fastest(handles, _prefill, tokens) for tokens in STEP_TOKENS]
    return StepCurves(
        batches=np.array(BATCHES, float),
        contexts=np.array(CONTEXTS, float),
        decode_s=silicon.growing(np.array([[sum(part) for part in row] for row in decode])),
        decode_attention_s=silicon.growing(np.array([[part[1] for part in row] for row in decode])),
        step_tokens=np.array(STEP_TOKENS, float),
        dense_s=silicon.growing(np.array([part[0] for part in prefill])),
        prompt_attention_s=silicon.growing(np.array([part[1] for part in prefill])),
    )


def _first(ways: Sequence[Candidate], system: str, engine: str) -> tuple[Candidate, Any] | None:
    for way in ways:
        handle = silicon.compile_tables(way.model, system, engine, way.options)
        if not isinstance(handle, Exception):
            return way, handle
    return None


def _decode(handle: Any, batch: int, context: int) -> dict[str, float]:
    return silicon.by_name(handle.decode_step_per_op(batch, context, 2))


def _prefill(handle: Any, tokens: int) -> dict[str, float]:
    return silicon.by_name(handle.run_static_per_op(batch_size=1, isl=tokens, osl=1, mode="static_ctx")[0])


def _fastest(handles: Sequence[Any], operators: Callable[..., dict[str, float]], *at: int) -> tuple[float, float]:
    """Seconds of everything but attention, and of attention."""
    own, *others = (operators(handle, *at) for handle in handles)
    dense_ms = attention_ms = 0.0
    for name, own_ms in own.items():
        if any(word in name for word in ATTENTION_WORDS) and not silicon.is_matrix_product(name):
            attention_ms += own_ms
        elif silicon.is_matrix_product(name):
            dense_ms += min([own_ms, *(other[name] for other in others if other.get(name, 0.0) > 0.0)])
        else:
            dense_ms += own_ms
    return dense_ms / 1e3, attention_ms / 1e3


def kv_tokens(tables: ServerTables, system: str, kind: str, fraction: float) -> float:
    """Tokens of KV cache of one rank; without a limit where the package finds no room for what was served all the same.

    Parameters
    ----------
    kind, fraction : str, float
        ``of_total`` or ``of_free``, and the share of memory that the engine may use.
    """
    try:
        found = silicon.open_module("sdk").estimate_kv_cache(
            tables.candidate.model,
            system,
            tables.engine,
            backend_version="current",
            max_num_tokens=silicon.PREFILL_BATCH_TOKENS,
            max_batch_size=256,
            memory_fraction_kind=kind,
            memory_fraction_value=fraction,
            **tables.candidate.options,
        )
    except silicon.MISSES:
        return UNLIMITED
    return float(found["total_kv_size_tokens"])
