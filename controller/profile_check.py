"""An EngineProfile held against what every look-up in it assumes, in the words of its spec.

The schema says it too, for what is written now; objects that were stored before a rule was there have not met it. One
of them would stop every decision of the fleet, so it is refused here, one object by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from solvers.engine import EngineProfile, check_profile
from solvers.errors import InvalidInput

FIELDS: Mapping[str, str] = {
    "prefill_tokens": "prefill.promptTokens",
    "prefill_s": "prefill.microseconds",
    "prefill_cached_tokens": "prefill.cachedTokens",
    "prefill_cached_ratio": "prefill.cachedPermille",
    "prefill_batches": "prefill.batches",
    "prefill_batch_ratio": "prefill.batchPermille",
    "decode_batches": "decode.batches",
    "decode_contexts": "decode.contextTokens",
    "decode_step_s": "decode.stepMicroseconds",
    "prefill_watts_per_gpu": "power.prefillWatts",
    "decode_watts_per_gpu": "power.decodeWatts",
    "idle_watts_per_gpu": "power.idleWatts",
    "cap_watts_per_gpu": "power.capWatts",
    "prefill_speed_ratio": "power.prefillSpeedPermille",
    "decode_speed_ratio": "power.decodeSpeedPermille",
    "kv_capacity_tokens": "kvCapacityTokens",
    "kv_bytes_per_token": "kvBytesPerToken",
    "transfer_bytes_per_s": "transferBytesPerSecond",
    "prefill_chunk_tokens": "prefillChunkTokens",
    "cold_start_s": "coldStartSeconds",
}
"""Our names of what a profile holds, and where its spec has it."""


def checked(profile: EngineProfile, subject: str) -> EngineProfile:
    """Give back a sound profile.

    Raises
    ------
    InvalidInput
        Naming the object and the first field of its spec that is wrong.
    """
    try:
        check_profile(profile)
    except InvalidInput as error:
        raise InvalidInput(subject, f"spec.{FIELDS[error.field]}", error.problem, error.remedy) from None
    return profile
