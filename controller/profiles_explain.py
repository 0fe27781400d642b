"""``penstock profile --explain``: where each number of a profile came from, and what a step is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from controller import silicon
from controller.facts import GPU_FACTS
from controller.profiles import ProfileRequest
from controller.render import profile_name
from controller.tables import render_table
from solvers.calibration_served import planned_correction
from solvers.engine import EngineProfile, ProfileSource
from solvers.engine.roofline import (
    CHUNK_BUDGET_S,
    COMPUTE_EFFICIENCY,
    DECODE_POWER_GROWTH_RATIO,
    DECODE_POWER_RATIO,
    LINK_EFFICIENCY,
    MEMORY_EFFICIENCY,
    MEMORY_USE_RATIO,
    NETWORK_EFFICIENCY,
    PREFILL_POWER_RATIO,
    STEP_OVERHEAD_S,
)

SHOWN_BATCH, SHOWN_CONTEXT, SHOWN_PROMPT = 32, 2048, 2048
TABLE_WORDS = {
    "silicon": "measured kernels",
    "mixed": "measured kernels and an estimate together",
    "empirical": "estimated from bandwidth and arithmetic",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One field of a profile: what it is here, and where that came from."""

    field: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One part of a step: its time, whose table it came from, and whether kernels were measured."""

    step: str
    name: str
    milliseconds: float
    engine: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that is known about where a profile came from."""

    name: str
    source: str
    detail: str
    origins: tuple[Origin, ...]
    operators: tuple[Operator, ...]


def explain(request: ProfileRequest, profile: EngineProfile) -> Explanation:
    """Say where each number of a profile came from; tables are opened again for the parts of a step."""
    is_silicon = profile.source is ProfileSource.SILICON
    return Explanation(
        name=profile_name(profile),
        source=str(profile.source),
        detail=profile.source_detail,
        origins=tuple(_origins(request, profile)),
        operators=tuple(_operators(request)) if is_silicon else (),
    )


def _origins(request: ProfileRequest, profile: EngineProfile) -> Iterator[Origin]:
    times, room = TIMES[profile.source], ROOMS[profile.source]
    given = {"kv": request.kv_capacity_tokens is not None, "chunk": request.chunk_tokens is not None}
    last = profile.prefill_tokens[-1]
    yield Origin(field="prefill", value=f"{len(profile.prefill_tokens)} prompts up to {last} tokens", origin=times)
    batches, contexts = profile.decode_batches[-1], profile.decode_contexts[-1]
    yield Origin(field="decode", value=f"batches up to {batches}, contexts up to {contexts}", origin=times)
    if request.is_as_served and profile.source is ProfileSource.SILICON:
        change = planned_correction(request.config.engine)
        words = f"decode x{change.decode_ratio:.2f}, prefill x{change.prefill_ratio:.2f} and overheads"
        yield Origin(field="serving", value=words, origin="fitted to public measurements: solvers.calibration_served")
    yield Origin(field="prefix and batch", value=_wide(profile), origin=times if _is_wide(profile) else DERIVED)
    capacity = f"{profile.kv_capacity_tokens} tokens"
    yield Origin(field="KV room", value=capacity, origin="given with --kv-capacity-tokens" if given["kv"] else room)
    yield Origin(field="KV bytes", value=f"{profile.kv_bytes_per_token} a token", origin="the model's config.json")
    link = f"GPU facts: {NETWORK_EFFICIENCY:.0%} of the network's rate for each tensor-parallel rank"
    yield Origin(field="KV bandwidth", value=f"{profile.transfer_bytes_per_s / 1e9:.1f} GB/s", origin=link)
    rule = f"largest usual chunk that prefills within {1e3 * CHUNK_BUDGET_S:.0f} ms"
    chunk = "given with --chunk-tokens" if given["chunk"] else rule
    yield Origin(field="chunk", value=f"{profile.prefill_chunk_tokens} tokens", origin=chunk)
    yield from _power_origins(request, profile)
    yield Origin(field="cold start", value=f"{profile.cold_start_s:g} s", origin="--cold-start-seconds; not measured")
    if request.variants:
        yield Origin(field="variant", value=request.variants, origin="formulas of solvers.engine.variants on the above")


def _power_origins(request: ProfileRequest, profile: EngineProfile) -> Iterator[Origin]:
    facts = request.gpu or GPU_FACTS.get(profile.key.gpu_class)
    sheet = "the data sheet" if facts else "the tables' own description of the GPU"
    limit = f"{facts.max_watts:g} W" if facts else "its limit"
    yield Origin(
        field="idle watts", value=f"{profile.idle_watts_per_gpu:g} a GPU", origin=f"{sheet}; a meter corrects it"
    )
    prefill = f"modelled: {PREFILL_POWER_RATIO:.0%} of {limit}"
    yield Origin(field="prefill watts", value=f"{profile.prefill_watts_per_gpu:g} a GPU", origin=prefill)
    low, high = profile.decode_watts_per_gpu[0], profile.decode_watts_per_gpu[-1]
    share = f"{DECODE_POWER_RATIO:.0%}, growing by {DECODE_POWER_GROWTH_RATIO:.0%} to the largest batch"
    yield Origin(field="decode watts", value=f"{low:g} to {high:g} a GPU", origin=f"modelled: {share}, of {limit}")
    caps = profile.cap_watts_per_gpu
    words = f"{caps[0]:g} to {caps[-1]:g} W" if caps else "none"
    yield Origin(field="speed under caps", value=words, origin="modelled: solvers.engine.roofline.cap_curves")


def _is_wide(profile: EngineProfile) -> bool:
    return bool(profile.prefill_cached_tokens or profile.prefill_batches)


def _wide(profile: EngineProfile) -> str:
    if not _is_wide(profile):
        return "no tables"
    return f"prefixes {list(profile.prefill_cached_tokens)}, batches {list(profile.prefill_batches)}"


DERIVED = "derived: a prefix as the prompt's continuation, prompts of a batch one after another"
SHEETS = (
    f"first principles on GPU facts and config.json: {COMPUTE_EFFICIENCY:.0%} of peak arithmetic, "
    f"{MEMORY_EFFICIENCY:.0%} of memory bandwidth, {LINK_EFFICIENCY:.0%} of links, {1e3 * STEP_OVERHEAD_S:g} ms a step"
)
TIMES: Mapping[ProfileSource, str] = {
    ProfileSource.MEASURED: "the measurements named in the detail; linear between the points",
    ProfileSource.SILICON: "kernel tables, operator by operator (below); matrix products from the fastest engine's",
    ProfileSource.ROOFLINE: SHEETS,
}
WEIGHTS = f"{MEMORY_USE_RATIO:.0%} of GPU memory less weights and run time, by first principles"
ROOMS: Mapping[ProfileSource, str] = {
    ProfileSource.MEASURED: WEIGHTS,
    ProfileSource.SILICON: "estimate_kv_cache of aiconfigurator-core at the engine's default share of memory",
    ProfileSource.ROOFLINE: WEIGHTS,
}


def _operators(request: ProfileRequest) -> Iterator[Operator]:
    """Parts of a decode step and of a prefill, with the engine whose table is the fastest where that counts."""
    tables = silicon.open_tables(request.model, request.gpu_class, request.config)
    handles = {request.config.engine: tables.own, **tables.others}
    rows = max(1, SHOWN_BATCH // request.config.data_parallel)
    steps: Mapping[str, Callable[[Any], list[Any]]] = {
        f"decode {SHOWN_BATCH} x {SHOWN_CONTEXT}": lambda h: h.decode_step_per_op(rows, SHOWN_CONTEXT, 2),
        f"prefill {SHOWN_PROMPT}": lambda h: h.run_static_per_op(
            batch_size=1, isl=SHOWN_PROMPT, osl=1, mode="static_ctx"
        )[0],
    }
    for step, of in steps.items():
        found = {engine: {row[0]: row for row in of(handle)} for engine, handle in handles.items()}
        for name, row in found[request.config.engine].items():
            if row[1] > 0:
                yield _operator(step, name, {engine: rows[name] for engine, rows in found.items() if name in rows})


def _operator(step: str, name: str, by_engine: Mapping[str, Any]) -> Operator:
    own = next(iter(by_engine))
    known = {engine: row for engine, row in by_engine.items() if row[1] > 0}
    chosen = min(known, key=lambda engine: known[engine][1]) if silicon.is_matrix_product(name) else own
    _, milliseconds, _, origin = by_engine[chosen]
    return Operator(
        step=step, name=name, milliseconds=milliseconds, engine=chosen, origin=TABLE_WORDS.get(origin, origin)
    )


def to_text(found: Sequence[Explanation], output: str) -> str:
    """Print explanations: a table for people, JSON or YAML for programs."""
    data = [asdict(each) for each in found]
    if output == "json":
        return json.dumps(data, indent=1) + "\n"
    if output == "yaml":
        plain = json.loads(json.dumps(data))
        return yaml.safe_dump(plain, sort_keys=False, width=118)
    return "\n".join(_table(each) for each in found)


def _table(found: Explanation) -> str:
    origins = render_table(("FIELD", "VALUE", "FROM"), [(o.field, o.value, o.origin) for o in found.origins])
    lines = [f"{found.name}: {found.source}", found.detail, "", origins]
    if found.operators:
        rows = [(o.step, o.name, o.milliseconds, o.engine, o.origin) for o in found.operators]
        lines += ["", render_table(("STEP", "OPERATOR", "MS", "TABLE", "FROM"), rows)]
    return "\n".join(lines) + "\n"
