"""Engine configurations and the check that every profile passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.engine import EngineConfig, check_profile
from solvers.errors import InvalidInput
from tests.profile_maker import make_profile

CAPPED = make_profile(
    cap_watts_per_gpu=(300.0, 500.0, 700.0), prefill_speed_ratio=(0.6, 0.85, 1.0), decode_speed_ratio=(0.9, 1.0, 1.0)
)
degrees = st.integers(1, 64)
configs = st.builds(
    EngineConfig,
    tensor_parallel=degrees,
    pipeline_parallel=degrees,
    expert_parallel=degrees,
    data_parallel=degrees,
    variant=st.sampled_from(["", "fp8", "fp4", "bf16-marlin", "v1.2"]),
)


@given(configs)
def test_a_label_reads_back_to_the_configuration(config: EngineConfig) -> None:
    assert EngineConfig.from_label(config.label, config.engine) == config


@pytest.mark.parametrize(
    ("config", "label", "gpus"),
    [
        (EngineConfig(), "tp1", 1),
        (EngineConfig(tensor_parallel=8, expert_parallel=8, variant="fp8"), "tp8-ep8-fp8", 8),
        (EngineConfig(tensor_parallel=4, pipeline_parallel=2, data_parallel=2), "tp4-pp2-dp2", 16),
    ],
)
def test_labels_name_what_differs_and_experts_cost_no_gpus(config: EngineConfig, label: str, gpus: int) -> None:
    assert (config.label, config.gpus) == (label, gpus)


@pytest.mark.parametrize("label", ["", "two", "pp2", "tp", "tp2-", "tp2_fp8"])
def test_a_label_that_says_no_configuration_is_refused_by_name(label: str) -> None:
    with pytest.raises(InvalidInput, match="no engine configuration"):
        EngineConfig.from_label(label)


def test_a_smooth_profile_passes_with_and_without_caps() -> None:
    check_profile(make_profile())
    check_profile(CAPPED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prefill_tokens", ()),
        ("prefill_tokens", (128, 128, 8192, 32768)),
        ("prefill_s", (0.1, 0.2)),
        ("prefill_s", (0.1, 0.3, 0.2, 0.4)),
        ("prefill_s", (0.0, 0.3, 0.4, 0.5)),
        ("prefill_s", (0.1, 0.3, float("nan"), 0.5)),
        ("decode_batches", (8, 1, 64, 256)),
        ("decode_contexts", (0, 4096, 32768)),
        ("decode_step_s", ((0.01, 0.02, 0.03),) * 3),
        ("decode_step_s", ((0.01, 0.02),) * 4),
        ("decode_step_s", ((0.02, 0.02, 0.03), (0.01, 0.02, 0.03), (0.02, 0.02, 0.03), (0.02, 0.02, 0.03))),
        ("decode_step_s", ((0.02, 0.01, 0.03),) * 4),
        ("kv_capacity_tokens", 0),
        ("kv_bytes_per_token", -1),
        ("transfer_bytes_per_s", 0.0),
        ("prefill_chunk_tokens", 0),
        ("idle_watts_per_gpu", 300.0),
        ("idle_watts_per_gpu", -1.0),
        ("decode_watts_per_gpu", (250.0,)),
        ("cold_start_s", -1.0),
        ("cap_watts_per_gpu", (500.0, 300.0, 700.0)),
        ("cap_watts_per_gpu", (75.0, 300.0, 700.0)),
        ("prefill_speed_ratio", (0.8, 1.0)),
        ("prefill_speed_ratio", (0.8, 0.9, 0.99)),
        ("prefill_speed_ratio", (0.9, 0.8, 1.0)),
        ("prefill_speed_ratio", (0.5, 0.6, 1.0)),
        ("decode_speed_ratio", ()),
        ("decode_speed_ratio", (0.0, 0.9, 1.0)),
    ],
)
def test_a_broken_profile_is_refused_at_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_profile(replace(CAPPED, **{field: value}))
    assert refused.value.field == field
    assert "h100-sxm/tp1" in str(refused.value)
