"""What serving costs beyond the kernels, by engine: corrections fitted to measured servers of many models.

Kernel tables know no scheduler, no API server, no sampling and no detokeniser; a time to first token from them alone
is about half of the measured one. The numbers below were fitted at once: prefill and front end on all rows, a decode
step's on each engine's rows. A model that was left out of the fit came out with a median error of 10 % in time per
output token and 20 % in time to first token, against 13 % and 45 % from the tables alone.

Source: ``make bench-profiles`` on 1,774 rows of ``silicon_sample.csv`` of aiconfigurator-core 0.12.0 (H100, H200, B200;
vLLM 0.12-0.19, SGLang 0.5, TensorRT-LLM 1.0-1.3; Llama, Qwen, gpt-oss, MiniMax, DeepSeek), the part for calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from solvers.calibration import UNSEEN
from solvers.calibration_profile import corrected
from solvers.engine import EngineProfile
from solvers.engine.closed_loop import Correction

_ALL = Correction(prefill_ratio=1.135, prefill_overhead_s=0.0189, front_end_s=0.002)

SERVED: Mapping[str, Correction] = {
    "vllm": replace(_ALL, decode_ratio=1.110, decode_overhead_s=0.0001),
    "sglang": replace(_ALL, decode_ratio=1.102, decode_overhead_s=0.0006),
    "trtllm": replace(_ALL, decode_ratio=0.911, decode_overhead_s=0.0002),
}
"""By engine; to be fitted again when tables or engines change: a data test holds them against a new fit."""


def served_correction(engine: str) -> Correction:
    """Correction of an engine; small costs that every server pays for one that was not measured."""
    return SERVED.get(engine, UNSEEN)


def planned_correction(engine: str) -> Correction:
    """Correction of an engine without what would make it faster than its kernels: a plan must not hope for that."""
    found = served_correction(engine)
    return replace(found, decode_ratio=max(1.0, found.decode_ratio), prefill_ratio=max(1.0, found.prefill_ratio))


def as_served(profile: EngineProfile, budget_tokens: int) -> EngineProfile:
    """Add what serving costs to a profile from kernel tables; its source stays what it was.

    Parameters
    ----------
    budget_tokens : int
        Prompt tokens of one step: a longer prompt pays the step's overhead more than once.
    """
    change = planned_correction(profile.key.config.engine)
    words = (
        f"as served: decode x{change.decode_ratio:.2f} + {1e3 * change.decode_overhead_s:.1f} ms, prefill"
        f" x{change.prefill_ratio:.2f} + {1e3 * change.prefill_overhead_s:.0f} ms a step; "
    )
    changed = corrected(profile, change, budget_tokens)
    return replace(changed, source=profile.source, source_detail=(words + profile.source_detail)[:500])
