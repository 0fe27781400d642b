"""Profiles from tables that others published: Splitwise's ``splitwise_perf_model.csv`` and Helix's layer times.

Each importer keeps the measured points beside the profile that it made, so that it can be said how well they come back.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.facts import GPU_FACTS, MODEL_FACTS
from controller.silicon import growing, smoothing
from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource, check_profile
from solvers.engine.curves import Floats, decode_step_s
from solvers.engine.prefill import prefill_together_s
from solvers.engine.roofline import chunk_for, draw_watts, transfer_bytes_per_s
from solvers.errors import InvalidInput

SPLITWISE_MODELS = {"llama2-70b": "meta-llama/Llama-2-70b", "bloom-176b": "bigscience/bloom"}
SPLITWISE_GPUS = {"a100-80gb": "a100-sxm", "h100-80gb": "h100-sxm"}
SPLITWISE_COLUMNS = ("model", "hardware", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time")
HELIX_MODELS = {"llama1_30b": "huggyllama/llama-30b", "llama2_70b": "meta-llama/Llama-2-70b"}
HELIX_GPUS = {"a100": "a100-sxm-40gb", "v100": "v100-sxm", "l4": "l4", "t4": "t4"}
HELIX_CONTEXT = 4096  # Helix's decode times know no context; a look-up beyond this says so
MOST_KNOTS = 64  # of an EngineProfile resource
SHORTEST_ROOM = 8192  # KV tokens where first principles find less than the measured prompts needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured time: of a prefill, or of a decode step where there is a context."""

    tokens: int
    batch: int
    context: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A profile and the measured points that it was made of."""

    profile: EngineProfile
    points: tuple[Point, ...]

    def errors(self, *, of_prefill: bool) -> Floats:
        """Signed relative errors of the profile's look-ups at its own points, batches of prompts included."""
        chosen = [point for point in self.points if (point.context is None) == of_prefill]
        return np.array([self._look_up(point) / point.seconds - 1.0 for point in chosen])

    def _look_up(self, point: Point) -> float:
        if point.context is None:
            return prefill_together_s(self.profile, point.tokens, batch=point.batch)
        return decode_step_s(self.profile, point.batch, point.context)


def left_out_errors(profile: EngineProfile) -> tuple[Floats, Floats]:
    """Signed errors of prefill and decode at every second knot, predicted from the others: what lines between cost."""
    prompts, batches = len(profile.prefill_tokens), len(profile.decode_batches)
    kept, held = (sorted({*range(0, count, 2), count - 1}) for count in (prompts, batches))
    alone, table = np.array(profile.prefill_s), np.array(profile.decode_step_s)
    prefill = np.interp(profile.prefill_tokens, np.array(profile.prefill_tokens)[kept], alone[kept]) / alone - 1.0
    own = np.array(profile.decode_batches)
    decode = np.array([np.interp(own, own[held], column[held]) / column - 1.0 for column in table.T])
    return np.delete(prefill, kept), np.delete(decode, held, axis=1).ravel()


def import_tables(path: Path) -> list[Imported]:
    """Read whichever is there: a Splitwise file, or a folder of Helix tables (``<model>/<gpu>/*_bs2time.csv``)."""
    found = list(_helix(path) if path.is_dir() else _splitwise(path))
    if not found:
        raise InvalidInput(str(path), "", "holds no known table", "name splitwise_perf_model.csv or Helix's folder")
    return found


# ---------------------------------------------------------------- Splitwise


def _splitwise(path: Path) -> Iterator[Imported]:
    rows: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for number, line in enumerate(_lines(path), start=2):
        lacking = [column for column in SPLITWISE_COLUMNS if not line.get(column)]
        if lacking:
            raise InvalidInput(
                f"{path}:{number}", lacking[0], "is missing", "use splitwise_perf_model.csv as published"
            )
        key = line["model"], line["hardware"], int(line["tensor_parallel"])
        rows.setdefault(key, []).append(
            {name: float(text) for name, text in line.items() if name not in ("model", "hardware")}
        )
    for (model, hardware, degree), measured in rows.items():
        yield _splitwise_profile(path.name, model, hardware, degree, measured)


def _splitwise_profile(
    name: str, model: str, hardware: str, degree: int, rows: Sequence[Mapping[str, float]]
) -> Imported:
    base = hardware.removesuffix("-pcap")
    is_capped = base != hardware
    if model not in SPLITWISE_MODELS or base not in SPLITWISE_GPUS:
        raise InvalidInput(name, "model", f"{model} on {hardware} has no facts here", "import the published file")
    prompts = _medians(rows, "prompt_size", "prompt_time", batch_size=1, token_size=128)
    batched = _medians(rows, "batch_size", "prompt_time", prompt_size=512, token_size=128)
    steps = _medians(rows, "batch_size", "token_time", prompt_size=512, token_size=128)
    by_prompt = _medians(rows, "prompt_size", "token_time", batch_size=1, token_size=128)
    contexts = [size + 64 for size in by_prompt]  # half of the 128 tokens that each run put out
    # What a context costs is measured for one sequence; a batch reads as many of them. Batches were measured at 512.
    alone = growing(np.array(list(by_prompt.values())))
    beyond = np.maximum(0.0, alone - alone[list(by_prompt).index(512)])
    raw = np.array([time + batch * beyond for batch, time in steps.items()])
    prefill, decode = growing(np.array(list(prompts.values()))), growing(raw)
    ratios = [min(count, max(1.0, time / batched[1])) for count, time in batched.items()]
    detail = (
        f"{name}: {model} on {hardware}, tensor parallel {degree}, {len(rows)} runs; a batch's context cost is that of "
        f"one sequence times the batch; batches of prompts never above one after another"
        + ("; pcap prompt times are 1.30 times H100's, derived" if is_capped else "")
        + smoothing((np.array(list(prompts.values())), prefill), (raw, decode))
    )
    profile = _finish(
        SPLITWISE_MODELS[model],
        SPLITWISE_GPUS[base],
        EngineConfig(tensor_parallel=degree, variant="pcap" if is_capped else ""),
        detail,
        (list(prompts), prefill),
        (list(steps), contexts, decode),
        batches=(list(batched)[1:], [[ratio] * len(prompts) for ratio in np.maximum.accumulate(ratios)[1:]]),
        watts=_splitwise_watts(rows, SPLITWISE_GPUS[base], list(steps)),
    )
    return Imported(profile=profile, points=tuple(_splitwise_points(rows)))


def _splitwise_points(rows: Sequence[Mapping[str, float]]) -> Iterator[Point]:
    for row in rows:
        tokens, batch, output = int(row["prompt_size"]), int(row["batch_size"]), row["token_size"]
        yield Point(tokens=tokens, batch=batch, context=None, seconds=row["prompt_time"] / 1e3)
        if output == 128:  # longer outputs only grow the context beyond the prompt's
            yield Point(tokens=tokens, batch=batch, context=tokens + output / 2, seconds=row["token_time"] / 1e3)


def _medians(rows: Sequence[Mapping[str, float]], of: str, value: str, **where: float) -> dict[int, float]:
    """Median seconds by one column, of the rows where others have a value; repeats differ."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if all(row[name] == wanted for name, wanted in where.items()):
            found.setdefault(int(row[of]), []).append(row[value] / 1e3)
    return {size: statistics.median(times) for size, times in sorted(found.items())}


def _splitwise_watts(
    rows: Sequence[Mapping[str, float]], gpu_class: str, batches: Sequence[int]
) -> tuple[float, float, tuple[float, ...]]:
    """Watts from fractions of the limit: mean draw while decoding, the peak while prefilling; modelled where 0."""
    facts = GPU_FACTS[gpu_class]
    idle, prefill, decode = draw_watts(facts, batches)
    peaks = [row["peak_power"] for row in rows if row["peak_power"] > 0 and row["prompt_size"] >= 2048]
    means = {
        batch: [row["average_power"] for row in rows if row["batch_size"] == batch and row["average_power"] > 0]
        for batch in batches
    }
    if not peaks or not means[batches[0]]:
        return idle, prefill, decode
    shares, known = [], 0.0
    for batch in batches:
        known = max(known, statistics.median(means[batch])) if means[batch] else known
        shares.append(max(idle, min(1.0, known) * facts.max_watts))
    return idle, max(idle, min(1.0, statistics.median(peaks)) * facts.max_watts), tuple(shares)


# ---------------------------------------------------------------- Helix


def _helix(folder: Path) -> Iterator[Imported]:
    for path in sorted(folder.glob("**/prompt_bs2time.csv")):
        model, gpu = path.parent.parent.name, path.parent.name
        base, _, count = gpu.partition("x")
        if model in HELIX_MODELS and base in HELIX_GPUS:
            yield _helix_profile(path.parent, HELIX_MODELS[model], HELIX_GPUS[base], int(count or 1))


def _helix_profile(folder: Path, model: str, gpu_class: str, gpus: int) -> Imported:
    """All layers one after another; one layer's time is what was measured."""
    layers = MODEL_FACTS[model].layers
    prompts, batches = (_layer_s(folder / f"{phase}_bs2time.csv", layers) for phase in ("prompt", "decode"))
    raw_prefill, raw_decode = np.array(list(prompts.values())), np.array([[time] for time in batches.values()])
    prefill, decode = growing(raw_prefill), growing(raw_decode)
    detail = (
        f"Helix layer times of {folder.parent.name} on {folder.name}, times {layers} layers; decode times know no "
        f"context: all up to {HELIX_CONTEXT} tokens" + smoothing((raw_prefill, prefill), (raw_decode, decode))
    )
    kept, held = (_thin(list(knots)) for knots in (prompts, batches))
    profile = _finish(
        model,
        gpu_class,
        EngineConfig(tensor_parallel=gpus, engine="helix"),
        detail,
        ([list(prompts)[i] for i in kept], prefill[kept]),
        ([list(batches)[i] for i in held], [HELIX_CONTEXT], decode[held]),
    )
    points = [Point(tokens=n, batch=1, context=None, seconds=time) for n, time in prompts.items()]
    points += [Point(tokens=1, batch=n, context=1.0, seconds=time) for n, time in batches.items()]
    return Imported(profile=profile, points=tuple(points))


def _layer_s(path: Path, layers: int) -> dict[int, float]:
    """Seconds of all layers by tokens or batch; the row of zero is left out."""
    found: dict[int, float] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            size, milliseconds = (float(field) for field in line.split(","))
        except ValueError as error:
            raise InvalidInput(f"{path}:{number}", "", f"is {line!r}", "write size,milliseconds") from error
        if size > 0:
            found[int(size)] = layers * milliseconds / 1e3
    return dict(sorted(found.items()))


def _thin(knots: Sequence[int]) -> list[int]:
    """Places of at most as many knots as a resource holds, both ends kept."""
    if len(knots) <= MOST_KNOTS:
        return list(range(len(knots)))
    return sorted({round(place) for place in np.linspace(0, len(knots) - 1, MOST_KNOTS)})


# ---------------------------------------------------------------- both


def _finish(
    model: str,
    gpu_class: str,
    config: EngineConfig,
    detail: str,
    prefill: tuple[Sequence[int], Floats],
    decode: tuple[Sequence[int], Sequence[int], Floats],
    *,
    batches: tuple[Sequence[int], Sequence[Sequence[float]]] = ((), ()),
    watts: tuple[float, float, tuple[float, ...]] | None = None,
) -> EngineProfile:
    """Make the profile; KV room, link and, where they were not measured, watts come from facts."""
    facts, gpu, (prompts, prefill_s) = MODEL_FACTS[model], GPU_FACTS[gpu_class], prefill
    idle, prefill_watts, decode_watts = watts or draw_watts(gpu, decode[0])
    room = 0.95 * config.gpus * gpu.memory_bytes - 2 * facts.parameters
    profile = EngineProfile(
        key=ProfileKey(model=model, gpu_class=gpu_class, config=config),
        source=ProfileSource.MEASURED,
        source_detail=(detail + "; KV room and link from facts")[:500],
        prefill_tokens=tuple(prompts),
        prefill_s=tuple(prefill_s.tolist()),
        decode_batches=tuple(decode[0]),
        decode_contexts=tuple(decode[1]),
        decode_step_s=tuple(tuple(row) for row in decode[2].tolist()),
        kv_capacity_tokens=max(SHORTEST_ROOM, int(room / (2 * facts.kv_values_per_token))),
        kv_bytes_per_token=2 * facts.kv_values_per_token,
        transfer_bytes_per_s=transfer_bytes_per_s(gpu, config),
        prefill_chunk_tokens=chunk_for(prompts, prefill_s.tolist()),
        idle_watts_per_gpu=idle,
        prefill_watts_per_gpu=prefill_watts,
        decode_watts_per_gpu=decode_watts,
        prefill_batches=tuple(batches[0]),
        prefill_batch_ratio=tuple(tuple(row) for row in batches[1]),
    )
    check_profile(profile)
    return profile


def _lines(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(_text(path).splitlines())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), "", f"cannot be read: {error}", "name a file in UTF-8") from error
