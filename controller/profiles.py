"""Engine profiles from wherever numbers can be had: a user's measurements, the silicon tables, first principles.

``make_profile`` tries what was asked for; ``source`` and ``source_detail`` of the profile say what it became.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from controller import silicon
from controller.facts import gpu_facts, model_facts
from controller.profiles_variants import Facts, make_variant
from solvers.calibration_served import as_served
from solvers.engine import EngineConfig, EngineProfile, ProfileSource, check_profile
from solvers.engine.roofline import CHUNK_SIZES, GpuFacts, chunk_for, draw_watts, roofline_profile
from solvers.errors import InvalidInput

BATCHED_TOKENS = {"sglang": 16384}
DEFAULT_BATCHED_TOKENS = 8192  # vLLM and TensorRT-LLM
CSV_COLUMNS = ("phase", "size", "context", "seconds")


class Source(StrEnum):
    """What a profile is made from; ``AUTO`` takes the best that covers it."""

    AUTO = "auto"
    CSV = "csv"
    SILICON = "silicon"
    ROOFLINE = "roofline"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """One profile wanted.

    Attributes
    ----------
    model_config : mapping, optional
        The model's ``config.json``, for a roofline of a model that is not known here.
    gpu : GpuFacts, optional
        Data sheet of the GPU class, in place of one that is known here.
    csv_path : Path, optional
        Measurements; ``AUTO`` prefers them.
    chunk_tokens, kv_capacity_tokens : int, optional
        Override what would be derived.
    is_wide : bool
        Tabulate prefill behind cached prefixes and in batches, where the source knows them.
    is_as_served : bool
        Add to kernel tables what serving cost on measured servers of the engine.
    variants : str
        Variants to apply, as ``kv:8+hit:0.5``.
    """

    model: str
    gpu_class: str
    config: EngineConfig
    source: Source = Source.AUTO
    csv_path: Path | None = None
    gpu: GpuFacts | None = None
    model_config: Mapping[str, Any] | None = None
    chunk_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    cold_start_s: float = 120.0
    is_wide: bool = False
    is_as_served: bool = False
    variants: str = ""


def make_profile(request: ProfileRequest) -> EngineProfile:
    """Make one profile from the asked source.

    Raises
    ------
    InvalidInput
        When the source does not cover the request; the message names what it covers and what else to try.
    """
    source = request.source
    if source is Source.AUTO:
        source = Source.CSV if request.csv_path else Source.SILICON
    profile = {Source.CSV: _from_csv, Source.SILICON: _from_silicon, Source.ROOFLINE: _from_roofline}[source](request)
    if request.is_as_served and profile.source is ProfileSource.SILICON:
        profile = as_served(profile, batched_tokens(request.config.engine))
    if request.kv_capacity_tokens is not None:
        profile = replace(profile, kv_capacity_tokens=request.kv_capacity_tokens)
    check_profile(profile)
    return make_variant(profile, request.variants, lambda: _facts(request)) if request.variants else profile


def batched_tokens(engine: str) -> int:
    """Tokens of one step by an engine's default on a large GPU."""
    return BATCHED_TOKENS.get(engine, DEFAULT_BATCHED_TOKENS)


def _facts(request: ProfileRequest) -> Facts:
    config = request.model_config or _bundled_config(request.model)
    return Facts(model=model_facts(request.model, config), gpu=request.gpu or gpu_facts(request.gpu_class))


def _from_silicon(request: ProfileRequest) -> EngineProfile:
    """Profile from the tables; under ``AUTO`` a roofline where they do not cover the request."""
    try:
        return silicon.silicon_profile(
            request.model,
            request.gpu_class,
            request.config,
            chunk_tokens=request.chunk_tokens,
            cold_start_s=request.cold_start_s,
            is_wide=request.is_wide,
        )
    except (silicon.NotCovered, silicon.NotInstalled) as missing:
        if request.source is not Source.AUTO:
            raise
        return _instead_of_silicon(request, missing)


def _instead_of_silicon(request: ProfileRequest, missing: InvalidInput) -> EngineProfile:
    try:
        profile = _from_roofline(request)
    except InvalidInput as unknown:
        raise InvalidInput(missing.subject, missing.field, missing.problem, f"nor a roofline: {unknown}") from unknown
    return replace(profile, source_detail=f"{profile.source_detail}; silicon tables: {missing.problem}"[:500])


def _from_roofline(request: ProfileRequest) -> EngineProfile:
    return roofline_profile(
        model_facts(request.model, request.model_config or _bundled_config(request.model)),
        request.gpu or gpu_facts(request.gpu_class),
        request.config,
        chunk_tokens=request.chunk_tokens,
        cold_start_s=request.cold_start_s,
    )


def _bundled_config(model: str) -> Mapping[str, Any] | None:
    """Configuration that comes with the silicon tables, where they are installed."""
    try:
        return silicon.bundled_config(model)
    except silicon.NotInstalled:
        return None


def _from_csv(request: ProfileRequest) -> EngineProfile:
    if request.csv_path is None:
        raise InvalidInput("profile", "csv", "no file was given", "name the measurements with --csv FILE")
    gpu = request.gpu or gpu_facts(request.gpu_class)
    return csv_profile(request.csv_path, _from_roofline(request), gpu, chunk_tokens=request.chunk_tokens)


def csv_profile(path: Path, beside: EngineProfile, gpu: GpuFacts, *, chunk_tokens: int | None = None) -> EngineProfile:
    """Read measured curves; what a stopwatch does not give (KV room, watts, link) comes from ``beside``.

    Parameters
    ----------
    path : Path
        Columns ``phase,size,context,seconds``. ``prefill`` rows: ``size`` is the prompt's tokens, ``context`` empty.
        ``decode`` rows: ``size`` is the batch, ``context`` its mean tokens; every batch at every context. Repeats of a
        point become their median.
    beside : EngineProfile
        Supplies the key and everything that is not a time.
    gpu : GpuFacts
        Supplies what a GPU draws.

    Raises
    ------
    InvalidInput
        Naming file, line and field of the first line that cannot be read, or the point that is missing.
    """
    points = _read_points(path)
    prefill = {size: seconds for (phase, size, _), seconds in points.items() if phase == "prefill"}
    decode = {(size, context): seconds for (phase, size, context), seconds in points.items() if phase == "decode"}
    for phase, rows in (("prefill", prefill), ("decode", decode)):
        if not rows:
            raise InvalidInput(str(path), "phase", f"has no {phase} rows", f"measure at least one {phase} point")
    prompts = sorted(prefill)
    batches, contexts = sorted({batch for batch, _ in decode}), sorted({context for _, context in decode})
    prefill_s = np.array([prefill[tokens] for tokens in prompts])
    decode_s = np.array([[_point(path, decode, b, c) for c in contexts] for b in batches])
    grown = silicon.growing(prefill_s), silicon.growing(decode_s)
    idle, prefill_watts, decode_watts = draw_watts(gpu, batches)
    return replace(
        beside,
        source=ProfileSource.MEASURED,
        source_detail=f"{path.name}, {len(points)} points"
        + silicon.smoothing((prefill_s, grown[0]), (decode_s, grown[1])),
        prefill_tokens=tuple(prompts),
        prefill_s=tuple(grown[0].tolist()),
        decode_batches=tuple(batches),
        decode_contexts=tuple(contexts),
        decode_step_s=tuple(tuple(row) for row in grown[1].tolist()),
        prefill_chunk_tokens=chunk_tokens or chunk_for(CHUNK_SIZES, _at_chunks(prompts, grown[0].tolist())),
        idle_watts_per_gpu=idle,
        prefill_watts_per_gpu=prefill_watts,
        decode_watts_per_gpu=decode_watts,
    )


def _at_chunks(prompts: list[int], prefill_s: list[float]) -> list[float]:
    """Prefill times at the usual chunk sizes; beyond the measurements in proportion to the last."""
    inside = np.interp(CHUNK_SIZES, prompts, prefill_s)
    return [float(t) * max(1.0, size / prompts[-1]) for size, t in zip(CHUNK_SIZES, inside, strict=True)]


def _point(path: Path, decode: Mapping[tuple[int, int], float], batch: int, context: int) -> float:
    if (batch, context) not in decode:
        raise InvalidInput(
            str(path),
            "decode",
            f"has no time for batch {batch} at context {context}",
            "measure every batch at every context, or leave that batch out",
        )
    return decode[batch, context]


def _read_points(path: Path) -> dict[tuple[str, int, int], float]:
    """Median seconds by (phase, size, context)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), "", f"cannot be read: {error}", "name a CSV file in UTF-8") from error
    header = tuple(field.strip() for field in lines[0].split(",")) if lines else ()
    if header != CSV_COLUMNS:
        raise InvalidInput(f"{path}:1", "", f"header is {','.join(header)!r}", f"make it {','.join(CSV_COLUMNS)}")
    seen: dict[tuple[str, int, int], list[float]] = {}
    for number, row in enumerate(csv.reader(lines[1:]), start=2):
        if row:
            key, seconds = _read_row(f"{path}:{number}", row)
            seen.setdefault(key, []).append(seconds)
    return {key: max(1e-6, round(statistics.median(times), 6)) for key, times in sorted(seen.items())}


def _read_row(line: str, row: list[str]) -> tuple[tuple[str, int, int], float]:
    if len(row) != len(CSV_COLUMNS):
        raise InvalidInput(line, "", f"has {len(row)} fields", f"give {len(CSV_COLUMNS)}: {','.join(CSV_COLUMNS)}")
    phase, size, context, seconds = (field.strip() for field in row)
    if phase not in ("prefill", "decode"):
        raise InvalidInput(line, "phase", f"is {phase!r}", "write prefill or decode")
    if phase == "prefill" and context:
        raise InvalidInput(line, "context", f"is {context!r} on a prefill row", "leave it empty")
    whole = _number(line, "context", context, int) if phase == "decode" else 0
    return (phase, int(_number(line, "size", size, int)), int(whole)), _number(line, "seconds", seconds, float)


def _number(line: str, field: str, text: str, kind: type[int] | type[float]) -> float:
    """Read one number that must be finite and above zero."""
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        words = "a whole number" if kind is int else "a number"
        raise InvalidInput(line, field, f"is {text!r}, not {words} above 0", "correct or remove the line")
    return value
