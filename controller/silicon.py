"""Engine profiles from the kernel tables of the ``aiconfigurator-core`` package (the extra ``silicon``).

The package holds measured kernel times of many GPUs and composes them into engine steps. It is imported only when a
profile is asked for, and only for models whose configuration it carries (for others it would go to the network).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from controller.facts import GPU_FACTS, facts_of_config
from controller.silicon_prefill import wide_tables
from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource, check_profile
from solvers.engine.curves import Floats
from solvers.engine.roofline import (
    BATCH_GRID,
    CONTEXT_GRID,
    PROMPT_GRID,
    GpuFacts,
    ModelFacts,
    cap_curves,
    chunk_for,
    draw_watts,
    transfer_bytes_per_s,
    within,
)
from solvers.errors import InvalidInput

PACKAGE = "aiconfigurator_core"
BACKENDS = ("vllm", "sglang", "trtllm")

PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "": {},  # as the checkpoint says: bf16 unless it is quantised
    "fp8": {"gemm_quant_mode": "fp8", "kvcache_quant_mode": "fp8"},
    "fp4": {"gemm_quant_mode": "nvfp4", "kvcache_quant_mode": "fp8"},
    "int4": {"gemm_quant_mode": "int4_wo"},  # weights only: arithmetic, keys and values stay in bf16
}
EXPERT_PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "fp8": {"moe_quant_mode": "fp8"},
    "fp4": {"moe_quant_mode": "nvfp4"},
    "int4": {"moe_quant_mode": "int4_wo"},
}

ATTENTION_MODES: tuple[Mapping[str, str], ...] = (
    {},
    {"fmha_quant_mode": "bfloat16"},
    {"fmha_quant_mode": "bfloat16", "kvcache_quant_mode": "bfloat16"},
)
"""Attention precisions tried in turn: the model's default, then bf16, which more tables hold, then its cache too."""

MEMORY_FRACTIONS = {"vllm": ("of_total", 0.9), "sglang": ("of_total", 0.86), "trtllm": ("of_free", 0.9)}  # defaults

IDLE_POWER_RATIO = 0.12  # of the limit, for a GPU whose data sheet is not in controller.facts

PREFILL_BATCH_TOKENS = 8192  # activations that the engine must leave room for


class NotInstalled(InvalidInput):
    """The package with the tables is not there."""


class NotCovered(InvalidInput):
    """The tables lack the model, the GPU class, the precision or the shape; a roofline may do."""


def silicon_profile(
    model: str,
    gpu_class: str,
    config: EngineConfig,
    *,
    chunk_tokens: int | None = None,
    cold_start_s: float = 120.0,
    is_wide: bool = False,
) -> EngineProfile:
    """Make the curves of one replica from measured kernels of the engine's own tables.

    Parameters
    ----------
    model : str
        As users name it; ``-Instruct`` and ``Meta-`` make no difference to speed and are ignored.
    gpu_class : str
        A system of the tables, dashes for underscores: ``h100-sxm``.
    config : EngineConfig
        ``engine`` chooses the tables (vllm, sglang, trtllm), ``variant`` the precision ("", fp8, fp4, int4).
    is_wide : bool
        Tabulate prefill behind cached prefixes and in batches as well.

    Raises
    ------
    NotCovered
        Naming what is covered.
    NotInstalled
        When the package is missing.

    Notes
    -----
    Matrix products take the fastest of the three engines' tables for the same shape: some tables carry launch
    overhead that a served model does not pay (one shape 11.2 ms against 0.5); on servers that were measured this took
    the median error of unseen models from 14.0 to 11.1 %. Both axes are made monotone; how much is in
    ``source_detail``. Watts are modelled, not measured.
    """
    tables = open_tables(model, gpu_class, config)
    key = ProfileKey(model=model, gpu_class=gpu_class, config=config)
    profile = _tabulated(tables, key, chunk_tokens=chunk_tokens, cold_start_s=cold_start_s, is_wide=is_wide)
    check_profile(profile)
    return profile


def _tabulated(
    tables: Tables, key: ProfileKey, *, chunk_tokens: int | None, cold_start_s: float, is_wide: bool
) -> EngineProfile:
    """Read the tables at the points of our grids."""
    capacity = tables.kv_capacity_tokens()
    prompts, contexts = within(PROMPT_GRID, capacity), within(CONTEXT_GRID, capacity)
    raw_prefill = np.array([tables.prefill_s(tokens) for tokens in prompts])
    raw_decode = np.array([[tables.decode_s(batch, context) for context in contexts] for batch in BATCH_GRID])
    prefill, decode = growing(raw_prefill), growing(raw_decode)
    idle, prefill_watts, decode_watts = draw_watts(tables.gpu, BATCH_GRID)
    return EngineProfile(
        key=key,
        source=ProfileSource.SILICON,
        source_detail=tables.provenance() + smoothing((raw_prefill, prefill), (raw_decode, decode)),
        prefill_tokens=prompts,
        prefill_s=tuple(prefill.tolist()),
        decode_batches=BATCH_GRID,
        decode_contexts=contexts,
        decode_step_s=tuple(tuple(row) for row in decode.tolist()),
        kv_capacity_tokens=capacity,
        kv_bytes_per_token=tables.kv_bytes_per_token(),
        transfer_bytes_per_s=transfer_bytes_per_s(tables.gpu, key.config),
        prefill_chunk_tokens=chunk_tokens or chunk_for(prompts, prefill.tolist()),
        idle_watts_per_gpu=idle,
        prefill_watts_per_gpu=prefill_watts,
        decode_watts_per_gpu=decode_watts,
        cold_start_s=cold_start_s,
        **cap_curves(idle, tables.gpu.max_watts),
        **(wide_tables(tables.prefill_s, prompts, prefill, capacity) if is_wide else {}),
    )


def bundled_model(model: str) -> str | None:
    """Name of the model in the tables, None when they do not carry it."""
    names: frozenset[str] = frozenset(open_module("sdk.common").DefaultHFModels)
    if model in names:
        return model
    alike = sorted(name for name in names if _plain(name) == _plain(model))
    return alike[0] if alike else None


def bundled_config(model: str) -> Mapping[str, Any] | None:
    """``config.json`` of a model that the tables carry, None otherwise."""
    name = bundled_model(model)
    if name is None:
        return None
    file = importlib.resources.files(PACKAGE) / "model_configs" / f"{name.replace('/', '--')}_config.json"
    config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """One replica's compiled steps in the engine's own tables, and in the other engines' where they have them."""

    bundled: str
    system: str
    config: EngineConfig
    options: Mapping[str, Any]
    facts: ModelFacts
    gpu: GpuFacts
    own: Any
    others: Mapping[str, Any]

    def prefill_s(self, tokens: int, cached_tokens: int = 0, prompts: int = 1) -> float:
        """Time to prefill prompts together, each behind a cached prefix."""
        return self._fastest_s(lambda handle: _prefill_operators(handle, tokens, cached_tokens, prompts))

    def decode_s(self, batch: int, context: int) -> float:
        """Time of one decode step; data-parallel copies split the batch."""
        rows = max(1, -(-batch // self.config.data_parallel))
        return self._fastest_s(lambda handle: _decode_operators(handle, rows, context))

    def kv_capacity_tokens(self) -> int:
        """Tokens of KV cache in the whole replica."""
        return int(self._kv()["total_kv_size_tokens"]) * self.config.data_parallel

    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all ranks."""
        quantised = self.options.get("kvcache_quant_mode") == "fp8"
        return self.facts.kv_values_per_token * (1 if quantised else 2)

    def provenance(self) -> str:
        """Where the numbers came from, in one line."""
        rows = self.own.decode_step_per_op(32, 2048, 2)
        measured = sum(row[1] for row in rows if row[3] in ("silicon", "mixed"))
        version = importlib.metadata.version("aiconfigurator-core")
        modes = ", ".join(f"{key.removesuffix('_quant_mode')} {mode}" for key, mode in sorted(self._modes().items()))
        return (
            f"aiconfigurator-core {version}, {self.bundled} on {self.system}, {self.config.engine} tables, "
            f"{modes or 'checkpoint precision'}; matrix products from the fastest engine's table; "
            f"{measured / sum(row[1] for row in rows):.0%} of a step of 32 from measured kernels; watts modelled"
        )

    def _modes(self) -> dict[str, str]:
        return {key: str(mode) for key, mode in self.options.items() if key.endswith("_quant_mode")}

    def _fastest_s(self, operators: Callable[[Any], dict[str, float]]) -> float:
        """Sum of the own operators in seconds, matrix products replaced by the fastest table's."""
        own = operators(self.own)
        others = [operators(handle) for handle in self.others.values()]
        fastest = {
            name: min([own_ms, *(other[name] for other in others if other.get(name, 0.0) > 0.0)])
            for name, own_ms in own.items()
            if is_matrix_product(name)
        }
        return round(sum((own | fastest).values()) / 1e3, 6)

    def _kv(self) -> Mapping[str, Any]:
        kind, value = MEMORY_FRACTIONS[self.config.engine]
        with _as_not_covered(self.bundled, self.system, self.config):
            kv: Mapping[str, Any] = open_module("sdk").estimate_kv_cache(
                self.bundled,
                self.system,
                self.config.engine,
                backend_version="current",
                max_num_tokens=PREFILL_BATCH_TOKENS,
                max_batch_size=BATCH_GRID[-1],
                memory_fraction_kind=kind,
                memory_fraction_value=value,
                **self.options,
            )
        return kv


def is_matrix_product(operator: str) -> bool:
    """Whether an operator's table may be taken from another engine: the libraries that multiply are shared."""
    return "gemm" in operator and "router" not in operator


def _prefill_operators(handle: Any, tokens: int, cached_tokens: int = 0, prompts: int = 1) -> dict[str, float]:
    sizes = {"batch_size": prompts, "isl": cached_tokens + tokens, "prefix": cached_tokens}
    return by_name(handle.run_static_per_op(**sizes, osl=1, mode="static_ctx")[0])


def _decode_operators(handle: Any, rows: int, context: int) -> dict[str, float]:
    return by_name(handle.decode_step_per_op(rows, context, 2))


def by_name(rows: list[tuple[str, float, float, str]]) -> dict[str, float]:
    """Milliseconds of each operator."""
    total: dict[str, float] = {}
    for name, milliseconds, _energy, _source in rows:
        total[name] = total.get(name, 0.0) + milliseconds
    return total


def open_tables(model: str, gpu_class: str, config: EngineConfig) -> Tables:
    """Compile a replica in its own engine's tables, and in the others' where they have it."""
    bundled, system = _check_model(model, gpu_class), _check_system(gpu_class)
    if config.engine not in BACKENDS:
        raise NotCovered(f"engine {config.engine}", "", "has no kernel tables", f"use one of {', '.join(BACKENDS)}")
    if config.variant not in PRECISIONS:
        known = ", ".join(repr(variant) for variant in PRECISIONS)
        raise NotCovered(f"variant {config.variant}", "", "says no precision of the tables", f"use one of {known}")
    facts = facts_of_config(model, bundled_config(model) or {})
    own, options = _compile_first(bundled, system, config, facts)
    others = {name: compile_tables(bundled, system, name, options) for name in BACKENDS if name != config.engine}
    return Tables(
        bundled=bundled,
        system=system,
        config=config,
        options=options,
        facts=facts,
        gpu=GPU_FACTS.get(gpu_class) or _system_facts(gpu_class, system),
        own=own,
        others={name: handle for name, handle in others.items() if not isinstance(handle, Exception)},
    )


def _compile_first(bundled: str, system: str, config: EngineConfig, facts: ModelFacts) -> tuple[Any, Mapping[str, Any]]:
    """Compile with the first attention precision that the tables hold."""
    failures = []
    for attention in ATTENTION_MODES:
        options = {**_parallelism(config, facts), **_precision(bundled, system, config, facts), **attention}
        handle = compile_tables(bundled, system, config.engine, options)
        if not isinstance(handle, Exception):
            return handle, options
        failures.append(handle)
    raise _not_covered(bundled, system, config, failures[0])


def compile_tables(bundled: str, system: str, engine: str, options: Mapping[str, Any]) -> Any:
    """Compile and try both ends of the grid; the failure itself when the tables do not hold them."""
    try:
        handle = open_module("sdk").EngineHandle.compile(bundled, system, engine, **options)
        for tokens in (PROMPT_GRID[0], PROMPT_GRID[-1]):
            _prefill_operators(handle, tokens)
        for batch, context in ((BATCH_GRID[0], CONTEXT_GRID[0]), (BATCH_GRID[-1], CONTEXT_GRID[-1])):
            _decode_operators(handle, batch, context)
    except MISSES as missing:
        return missing
    return handle


MISSES = (ValueError, RuntimeError, AssertionError, KeyError, NotImplementedError)
"""What the package raises for shapes, precisions and GPUs that it does not cover."""


def _parallelism(config: EngineConfig, facts: ModelFacts) -> dict[str, int]:
    options = {
        "tp_size": config.tensor_parallel,
        "pp_size": config.pipeline_parallel,
        "attention_dp_size": config.data_parallel,
    }
    if facts.experts > 1:
        ranks = config.tensor_parallel * config.data_parallel
        options |= {"moe_ep_size": config.expert_parallel, "moe_tp_size": max(1, ranks // config.expert_parallel)}
    return options


def _precision(bundled: str, system: str, config: EngineConfig, facts: ModelFacts) -> dict[str, str]:
    options = dict(PRECISIONS[config.variant])
    if facts.experts > 1:
        options |= EXPERT_PRECISIONS.get(config.variant, {})
    if "gpt-oss" in bundled and system.startswith(("b", "gb")):
        options["moe_quant_mode"] = "w4a8_mxfp4_mxfp8"  # what Blackwell runs; the default is 2-4 times too slow there
    return options


def _check_model(model: str, gpu_class: str) -> str:
    bundled = bundled_model(model)
    if bundled is None:
        names = sorted(open_module("sdk.common").DefaultHFModels)
        raise NotCovered(
            f"profile {model} on {gpu_class}",
            "model",
            f"is not among the {len(names)} models of the silicon tables ({', '.join(names[:4])}, ...)",
            "use --source roofline with --model-config, or --csv",
        )
    return bundled


def _check_system(gpu_class: str) -> str:
    systems, system = sorted(open_module("sdk.common").SupportedSystems), gpu_class.replace("-", "_")
    if system not in systems:
        raise NotCovered(
            f"GPU class {gpu_class}",
            "",
            "has no silicon tables; they hold " + ", ".join(name.replace("_", "-") for name in systems),
            "name the class like one of these, or use --source roofline or --csv",
        )
    return system


def _system_facts(gpu_class: str, system: str) -> GpuFacts:
    """Facts of a GPU from the package's own description."""
    file = importlib.resources.files(PACKAGE) / "systems" / f"{system}.yaml"
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    gpu, node = described["gpu"], described["node"]
    return GpuFacts(
        name=gpu_class,
        memory_bytes=float(gpu["mem_capacity"]),
        memory_bytes_per_s=float(gpu["mem_bw"]),
        bf16_flops_per_s=float(gpu["bfloat16_tc_flops"]),
        fp8_flops_per_s=float(gpu["fp8_tc_flops"]) if gpu.get("fp8_tc_flops") else None,
        link_bytes_per_s=float(node["intra_node_bw"]),
        network_bytes_per_s=float(node["inter_node_bw"]),
        idle_watts=round(IDLE_POWER_RATIO * float(gpu["power"]), 0),
        max_watts=float(gpu["power"]),
        link_island_gpus=int(node.get("num_gpus_per_rack") or node["num_gpus_per_node"]),
    )


def growing(times: Floats) -> Floats:
    """Least table above ``times`` that decreases along no axis."""
    for axis in range(times.ndim):
        times = np.maximum.accumulate(times, axis=axis)
    return times


def smoothing(*tables: tuple[Floats, Floats]) -> str:
    """Say how many values were raised to keep the tables monotone, and by how much at most."""
    raised = np.concatenate([(grown / raw - 1.0).ravel() for raw, grown in tables])
    count = int((raised > 0).sum())
    return f"; {count} of {raised.size} values raised to be monotone, by {raised.max():.1%} at most" if count else ""


def _plain(name: str) -> str:
    return name.split("/")[-1].lower().removeprefix("meta-").removesuffix("-instruct")


def _not_covered(bundled: str, system: str, config: EngineConfig, cause: Exception) -> NotCovered:
    words = " ".join(str(cause).split())[:200] or type(cause).__name__
    return NotCovered(
        f"profile {bundled} on {system.replace('_', '-')}/{config.label}",
        "",
        f"is not in the {config.engine} tables: {words}",
        "try another precision or parallelism, --source roofline, or --csv",
    )


@contextmanager
def _as_not_covered(bundled: str, system: str, config: EngineConfig) -> Iterator[None]:
    try:
        yield
    except MISSES as cause:
        raise _not_covered(bundled, system, config, cause) from cause


def open_module(name: str) -> Any:
    """Import a part of the package, quietly: it reports every table that it opens at warning level."""
    try:
        module = importlib.import_module(f"{PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != PACKAGE:
            raise
        raise NotInstalled(
            "silicon tables", "", "the package that holds them is not installed", "pip install penstock[silicon]"
        ) from error
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    return module
