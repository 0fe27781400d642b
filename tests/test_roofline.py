"""Profiles from first principles, checked by hand and by their shape."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.facts import GPU_FACTS, MODEL_FACTS, facts_of_config, gpu_facts, model_facts
from solvers.engine import EngineConfig, EngineProfile, ProfileSource, check_profile
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.engine.roofline import GpuFacts, ModelFacts, chunk_for, draw_watts, roofline_profile, within
from solvers.errors import InvalidInput

EIGHT = MODEL_FACTS["meta-llama/Llama-3.1-8B"]
SEVENTY = MODEL_FACTS["meta-llama/Llama-3.1-70B"]
EXPERTS = MODEL_FACTS["Qwen/Qwen3-30B-A3B"]
H100 = GPU_FACTS["h100-sxm"]


def make(model: ModelFacts, gpu: GpuFacts, degree: int = 1, variant: str = "") -> EngineProfile:
    return roofline_profile(model, gpu, EngineConfig(tensor_parallel=degree, variant=variant))


@pytest.mark.parametrize("gpu", GPU_FACTS.values(), ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("model", MODEL_FACTS.values(), ids=lambda model: model.name)
def test_every_known_pair_gives_a_sound_profile_at_eight_gpus(model: ModelFacts, gpu: GpuFacts) -> None:
    weights = model.parameters * (2 if gpu.fp8_flops_per_s is None else 1)
    variant = "" if gpu.fp8_flops_per_s is None else "fp8"
    if weights > 0.85 * 8 * gpu.memory_bytes - 8 * 3.5e9:
        with pytest.raises(InvalidInput, match="use more GPUs per replica"):
            make(model, gpu, 8, variant)
        return
    profile = make(model, gpu, 8, variant)
    check_profile(profile)
    assert profile.source is ProfileSource.ROOFLINE
    assert (profile.key.model, profile.key.gpu_class) == (model.name, gpu.name)


def test_one_sequence_waits_for_the_weights() -> None:
    """16.06 GB over 0.8 x 3.35 TB/s, and 2 ms of overhead."""
    cached = 256 * EIGHT.kv_values_per_token * 2
    expected = 0.002 + (8.03e9 * 2 + cached) / (0.8 * 3.35e12)
    assert decode_step_s(make(EIGHT, H100), 1, 256) == pytest.approx(expected, abs=1e-6)


def test_a_cap_slows_prefill_first_and_decode_only_below_what_it_draws() -> None:
    profile = make(EIGHT, H100)
    assert profile.cap_watts_per_gpu == (280.0, 385.0, 490.0, 595.0, 700.0)
    assert profile.decode_speed_ratio[1:] == (1.0, 1.0, 1.0, 1.0)
    assert profile.prefill_speed_ratio[0] == pytest.approx(((280 - 75) / (700 - 75)) ** 0.5, abs=1e-3)
    assert all(p <= d for p, d in zip(profile.prefill_speed_ratio, profile.decode_speed_ratio, strict=True))


def test_a_long_prompt_waits_for_the_arithmetic() -> None:
    """2 flops per parameter and token, half of the attention square, at 0.6 of 989 TFLOP/s."""
    flops = 2 * 8.03e9 * 8192 + 2 * 32 * 4096 * 8192**2
    assert prefill_s(make(EIGHT, H100), 8192) == pytest.approx(0.002 + flops / (0.6 * 989e12), rel=1e-4)


def test_room_for_keys_and_values_is_what_the_weights_leave() -> None:
    room = 0.9 * H100.memory_bytes - 3.5e9 - 8.03e9 * 2
    assert make(EIGHT, H100).kv_capacity_tokens == int(room / (65536 * 2))
    assert make(EIGHT, H100).kv_bytes_per_token == 131072


def test_more_gpus_and_fewer_bits_are_faster_but_not_in_proportion() -> None:
    one, four = (decode_step_s(make(SEVENTY, GPU_FACTS["b200-sxm"], degree), 8, 4096) for degree in (1, 4))
    assert one / 4 < four < one
    wide, narrow, narrower = (decode_step_s(make(SEVENTY, H100, 4, bits), 8, 4096) for bits in ("", "fp8", "fp4"))
    assert wide / 2 < narrow < wide
    assert narrower < narrow


def test_data_parallel_copies_split_the_batch_and_add_room() -> None:
    config = EngineConfig(data_parallel=2)
    single, double = make(EIGHT, H100), roofline_profile(EIGHT, H100, config)
    assert double.kv_capacity_tokens == 2 * single.kv_capacity_tokens
    assert decode_step_s(double, 64, 4096) == pytest.approx(decode_step_s(single, 32, 4096), abs=2e-6)


def test_a_step_reads_only_the_experts_that_its_tokens_pick() -> None:
    assert EXPERTS.touched_parameters(1) == pytest.approx(EXPERTS.active_parameters)
    assert EXPERTS.touched_parameters(10_000) == pytest.approx(EXPERTS.parameters)
    assert EIGHT.touched_parameters(1) == EIGHT.parameters


def test_weights_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidInput, match=r"h100-sxm/tp1: weights take 141 GB, 1 GPUs offer 74 GB"):
        make(SEVENTY, H100)


def test_fp8_on_a_gpu_without_it_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a100-sxm has no fp8 arithmetic"):
        make(EIGHT, GPU_FACTS["a100-sxm"], 1, "fp8")


def test_watts_rise_with_the_batch_and_stay_below_the_limit() -> None:
    idle, prefill, decode = draw_watts(H100, (1, 16, 256))
    assert (idle, prefill, decode) == (75.0, 504.0, (245.0, 315.0, 385.0))
    cold = replace(H100, idle_watts=300.0)
    assert draw_watts(cold, (1, 256))[2] == (300.0, 385.0)


def test_a_chunk_is_the_largest_that_a_step_can_bear() -> None:
    assert chunk_for((256, 512, 1024, 2048), (0.01, 0.02, 0.039, 0.08)) == 1024
    assert chunk_for((256, 512), (0.5, 0.9)) == 256


def test_a_grid_ends_where_the_memory_does_and_keeps_two_knots() -> None:
    assert within((128, 256, 512), 300) == (128, 256)
    assert within((256, 1024, 4096), 100) == (256, 1024)


def test_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(InvalidInput, match="GPU class v100: has no data sheet"):
        gpu_facts("v100")
    with pytest.raises(InvalidInput, match="--model-config"):
        model_facts("some/model")


DENSE = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


def test_the_facts_of_a_config_are_those_of_the_model_card() -> None:
    found = facts_of_config("meta-llama/Llama-3.1-8B", DENSE)
    assert found.parameters == pytest.approx(EIGHT.parameters, rel=0.001)
    assert replace(found, parameters=0.0, active_parameters=0.0) == replace(
        EIGHT, parameters=0.0, active_parameters=0.0
    )


def test_experts_and_latent_attention_are_read_from_a_config() -> None:
    config = DENSE | {"num_experts": 8, "num_experts_per_tok": 2, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    found = facts_of_config("some/experts", config)
    assert (found.experts, found.experts_per_token) == (8, 2)
    assert found.parameters > 3 * found.active_parameters
    assert found.kv_values_per_token == 32 * 576
    assert facts_of_config("wrapped", {"text_config": config}) == replace(found, name="wrapped")


def test_a_config_without_a_field_is_refused_by_its_name() -> None:
    without = {key: value for key, value in DENSE.items() if key != "hidden_size"}
    with pytest.raises(InvalidInput, match="hidden_size"):
        facts_of_config("some/model", without)


def test_a_replica_of_two_islands_waits_for_the_network_between_them() -> None:
    """Sixteen ranks on one link against two islands of eight: the second pays for the network, the first does not."""
    joined, parted = (replace(H100, link_island_gpus=island) for island in (72, 8))
    one, two, eight = make(SEVENTY, joined, 16), make(SEVENTY, parted, 16), make(SEVENTY, parted, 8)
    assert all(fast < slow for fast, slow in zip(one.prefill_s, two.prefill_s, strict=True))
    across_s = two.prefill_s[-1] - one.prefill_s[-1]
    moved_bytes = two.prefill_tokens[-1] * SEVENTY.hidden_size * 2.0
    over_network_s = 2.0 * SEVENTY.layers * (moved_bytes / 8.0) / (0.7 * H100.network_bytes_per_s)
    more_on_link_s = 2.0 * SEVENTY.layers * 2.0 * (15 / 16 - 7 / 8) * moved_bytes / (0.7 * H100.link_bytes_per_s)
    assert across_s == pytest.approx(over_network_s - more_on_link_s + 2.0 * SEVENTY.layers * 30e-6, rel=0.02)
    assert eight.decode_step_s == make(SEVENTY, H100, 8).decode_step_s
    assert two.decode_step_s[0][0] > one.decode_step_s[0][0]
