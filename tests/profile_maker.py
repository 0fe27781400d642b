"""A small smooth profile for tests of look-ups, queueing and sizing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from solvers.engine import EngineConfig, EngineProfile, ProfileKey, ProfileSource

PROMPTS = (128, 1024, 8192, 32768)
BATCHES = (1, 8, 64, 256)
CONTEXTS = (256, 4096, 32768)


def make_profile(**changes: Any) -> EngineProfile:
    """Curves of about an 8B model on one large GPU: 25 us a prompt token, a 6 ms step and 60 ns a cached token."""
    profile = EngineProfile(
        key=ProfileKey(model="some/model", gpu_class="h100-sxm", config=EngineConfig()),
        source=ProfileSource.ROOFLINE,
        source_detail="made for a test",
        prefill_tokens=PROMPTS,
        prefill_s=tuple(0.004 + 25e-6 * tokens for tokens in PROMPTS),
        decode_batches=BATCHES,
        decode_contexts=CONTEXTS,
        decode_step_s=tuple(tuple(0.006 + 20e-6 * b + 60e-9 * b * c for c in CONTEXTS) for b in BATCHES),
        kv_capacity_tokens=400_000,
        kv_bytes_per_token=131_072,
        transfer_bytes_per_s=35e9,
        prefill_chunk_tokens=512,
        idle_watts_per_gpu=75.0,
        prefill_watts_per_gpu=500.0,
        decode_watts_per_gpu=(250.0, 290.0, 340.0, 380.0),
    )
    return replace(profile, **changes)
