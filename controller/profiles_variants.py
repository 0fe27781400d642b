"""Variants as the command line names them: ``hit:0.5``, ``spec:3:0.7:0.1``, several joined by ``+``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from solvers.engine import EngineProfile
from solvers.engine.roofline import MEMORY_EFFICIENCY, GpuFacts, ModelFacts, precision_of
from solvers.engine.variants import (
    covered_ratio,
    with_chunk,
    with_kv_bits,
    with_offload,
    with_prefix_hits,
    with_speculation,
    with_weight_bits,
)
from solvers.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a variant may need beside the profile."""

    model: ModelFacts
    gpu: GpuFacts


Make = Callable[[EngineProfile, list[float], Callable[[], Facts]], EngineProfile]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    form: str
    numbers: int
    make: Make


def _weights(profile: EngineProfile, numbers: list[float], facts: Callable[[], Facts]) -> EngineProfile:
    known, config = facts(), profile.key.config
    precision, ways = precision_of(config), config.tensor_parallel * config.data_parallel
    return with_weight_bits(
        profile,
        numbers[0],
        from_bits=8 * precision.weight_bytes,
        weight_bytes=known.model.parameters * precision.weight_bytes * config.data_parallel,
        memory_bytes_per_s=MEMORY_EFFICIENCY * known.gpu.memory_bytes_per_s * ways,
    )


def _kv(profile: EngineProfile, numbers: list[float], _facts: Callable[[], Facts]) -> EngineProfile:
    return with_kv_bits(profile, int(numbers[0]), from_bits=8 * precision_of(profile.key.config).kv_bytes)


def _pool(profile: EngineProfile, numbers: list[float], _facts: Callable[[], Facts]) -> EngineProfile:
    hit_ratio, gigabytes, gigabytes_per_s, tokens = numbers
    if min(gigabytes, tokens) <= 0:
        problem = f"is {gigabytes:g} GB for {tokens:g} tokens"
        raise InvalidInput("variant pool", "pool size", problem, "give both above 0")
    covered = covered_ratio(1e9 * gigabytes, tokens, profile.kv_bytes_per_token)
    return with_offload(profile, hit_ratio, pool_bytes_per_s=1e9 * gigabytes_per_s, covered_ratio=covered)


VARIANTS: Mapping[str, _Variant] = {
    "chunk": _Variant(form="chunk:TOKENS", numbers=1, make=lambda profile, n, _: with_chunk(profile, int(n[0]))),
    "weights": _Variant(form="weights:BITS", numbers=1, make=_weights),
    "kv": _Variant(form="kv:BITS", numbers=1, make=_kv),
    "hit": _Variant(form="hit:RATIO", numbers=1, make=lambda profile, n, _: with_prefix_hits(profile, n[0])),
    "pool": _Variant(form="pool:RATIO:GIGABYTES:GIGABYTES_PER_SECOND:PREFIX_TOKENS_IN_USE", numbers=4, make=_pool),
    "spec": _Variant(
        form="spec:DRAFT_TOKENS:ACCEPTANCE:DRAFT_COST",
        numbers=3,
        make=lambda profile, n, _: with_speculation(profile, int(n[0]), acceptance_ratio=n[1], draft_cost_ratio=n[2]),
    ),
}
FORMS = ", ".join(variant.form for variant in VARIANTS.values())


def make_variant(profile: EngineProfile, words: str, facts: Callable[[], Facts]) -> EngineProfile:
    """Apply the named variants one after the other; facts are asked for only where one needs them.

    Raises
    ------
    InvalidInput
        When a word is no variant, its numbers are missing, or they are out of range.
    """
    for word in words.split("+"):
        name, *texts = word.split(":")
        variant = VARIANTS.get(name)
        if variant is None or len(texts) != variant.numbers:
            raise InvalidInput(f"variant {word}", "", "is not known in this form", f"use {FORMS}")
        profile = variant.make(profile, [_number(word, text) for text in texts], facts)
    return profile


def _number(word: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInput(f"variant {word}", "", f"{text!r} is no number", f"use {FORMS}") from error
