"""Facts of models and GPU classes that profiles start from: data sheets, and a model's own ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solvers.engine.roofline import GpuFacts, ModelFacts
from solvers.errors import InvalidInput

GIB = 1024**3
TB = 1e12

GPU_FACTS: Mapping[str, GpuFacts] = {
    # Vendor data sheets; dense peaks. Links one way. Network: one NIC of 400 Gb/s a GPU, A100 200, PCIe servers 100.
    # Half precision where there is no bf16 (V100, T4). Idle: what the vendor's tool shows with a loaded context at
    # rest, rounded; a meter corrects it.
    facts.name: facts
    for facts in (
        GpuFacts(
            name="a100-sxm",
            memory_bytes=80 * GIB,
            memory_bytes_per_s=2.039 * TB,
            bf16_flops_per_s=312 * TB,
            fp8_flops_per_s=None,
            link_bytes_per_s=300e9,
            network_bytes_per_s=25e9,
            idle_watts=60.0,
            max_watts=400.0,
        ),
        GpuFacts(
            name="h100-sxm",
            memory_bytes=80 * GIB,
            memory_bytes_per_s=3.35 * TB,
            bf16_flops_per_s=989 * TB,
            fp8_flops_per_s=1979 * TB,
            link_bytes_per_s=450e9,
            network_bytes_per_s=50e9,
            idle_watts=75.0,
            max_watts=700.0,
        ),
        GpuFacts(
            name="h200-sxm",
            memory_bytes=141e9,
            memory_bytes_per_s=4.8 * TB,
            bf16_flops_per_s=989 * TB,
            fp8_flops_per_s=1979 * TB,
            link_bytes_per_s=450e9,
            network_bytes_per_s=50e9,
            idle_watts=80.0,
            max_watts=700.0,
        ),
        GpuFacts(
            name="b200-sxm",
            memory_bytes=180 * GIB,
            memory_bytes_per_s=7.7 * TB,
            bf16_flops_per_s=2250 * TB,
            fp8_flops_per_s=4500 * TB,
            link_bytes_per_s=900e9,
            network_bytes_per_s=50e9,
            idle_watts=140.0,
            max_watts=1000.0,
        ),
        GpuFacts(
            name="l40s",
            memory_bytes=48e9,
            memory_bytes_per_s=0.864 * TB,
            bf16_flops_per_s=362 * TB,
            fp8_flops_per_s=733 * TB,
            link_bytes_per_s=32e9,
            network_bytes_per_s=12.5e9,
            idle_watts=35.0,
            max_watts=350.0,
        ),
        GpuFacts(
            name="l4",
            memory_bytes=24e9,
            memory_bytes_per_s=0.3 * TB,
            bf16_flops_per_s=121 * TB,
            fp8_flops_per_s=242 * TB,
            link_bytes_per_s=32e9,
            network_bytes_per_s=12.5e9,
            idle_watts=16.0,
            max_watts=72.0,
        ),
        GpuFacts(
            name="a100-sxm-40gb",
            memory_bytes=40 * GIB,
            memory_bytes_per_s=1.555 * TB,
            bf16_flops_per_s=312 * TB,
            fp8_flops_per_s=None,
            link_bytes_per_s=300e9,
            network_bytes_per_s=25e9,
            idle_watts=50.0,
            max_watts=400.0,
        ),
        GpuFacts(
            name="v100-sxm",
            memory_bytes=16 * GIB,
            memory_bytes_per_s=0.9 * TB,
            bf16_flops_per_s=125 * TB,
            fp8_flops_per_s=None,
            link_bytes_per_s=150e9,
            network_bytes_per_s=12.5e9,
            idle_watts=40.0,
            max_watts=300.0,
        ),
        GpuFacts(
            name="t4",
            memory_bytes=16 * GIB,
            memory_bytes_per_s=0.32 * TB,
            bf16_flops_per_s=65 * TB,
            fp8_flops_per_s=None,
            link_bytes_per_s=16e9,
            network_bytes_per_s=6.25e9,
            idle_watts=10.0,
            max_watts=70.0,
        ),
        GpuFacts(
            name="mi300x",
            memory_bytes=192e9,
            memory_bytes_per_s=5.3 * TB,
            bf16_flops_per_s=1307 * TB,
            fp8_flops_per_s=2615 * TB,
            link_bytes_per_s=448e9,
            network_bytes_per_s=50e9,
            idle_watts=140.0,
            max_watts=750.0,
        ),
        GpuFacts(
            name="mi325x",
            memory_bytes=256e9,
            memory_bytes_per_s=6.0 * TB,
            bf16_flops_per_s=1307 * TB,
            fp8_flops_per_s=2615 * TB,
            link_bytes_per_s=448e9,
            network_bytes_per_s=50e9,
            idle_watts=150.0,
            max_watts=1000.0,
        ),
        GpuFacts(
            name="mi355x",
            memory_bytes=288e9,
            memory_bytes_per_s=8.0 * TB,
            bf16_flops_per_s=2516 * TB,
            fp8_flops_per_s=5033 * TB,
            link_bytes_per_s=537e9,
            network_bytes_per_s=50e9,
            idle_watts=200.0,
            max_watts=1400.0,
        ),
        GpuFacts(
            name="gaudi3",
            memory_bytes=128e9,
            memory_bytes_per_s=3.7 * TB,
            bf16_flops_per_s=1835 * TB,
            fp8_flops_per_s=1835 * TB,
            link_bytes_per_s=525e9,
            network_bytes_per_s=75e9,
            idle_watts=150.0,
            max_watts=900.0,
        ),
    )
}

MODEL_FACTS: Mapping[str, ModelFacts] = {
    # From each model's published config.json.
    facts.name: facts
    for facts in (
        ModelFacts(
            name="meta-llama/Llama-3.1-8B",
            parameters=8.03e9,
            active_parameters=8.03e9,
            layers=32,
            hidden_size=4096,
            attention_width=4096,
            kv_values_per_token=2 * 32 * 1024,
        ),
        ModelFacts(
            name="meta-llama/Llama-3.1-70B",
            parameters=70.6e9,
            active_parameters=70.6e9,
            layers=80,
            hidden_size=8192,
            attention_width=8192,
            kv_values_per_token=2 * 80 * 1024,
        ),
        ModelFacts(
            name="meta-llama/Llama-2-70b",
            parameters=69.0e9,
            active_parameters=69.0e9,
            layers=80,
            hidden_size=8192,
            attention_width=8192,
            kv_values_per_token=2 * 80 * 1024,
        ),
        ModelFacts(
            name="huggyllama/llama-30b",
            parameters=32.5e9,
            active_parameters=32.5e9,
            layers=60,
            hidden_size=6656,
            attention_width=6656,
            kv_values_per_token=2 * 60 * 6656,
        ),
        ModelFacts(
            name="bigscience/bloom",
            parameters=176.2e9,
            active_parameters=176.2e9,
            layers=70,
            hidden_size=14336,
            attention_width=14336,
            kv_values_per_token=2 * 70 * 14336,
        ),
        ModelFacts(
            name="Qwen/Qwen3-30B-A3B",
            parameters=30.5e9,
            active_parameters=3.3e9,
            layers=48,
            hidden_size=2048,
            attention_width=4096,
            kv_values_per_token=2 * 48 * 512,
            experts=128,
            experts_per_token=8,
        ),
    )
}


def gpu_facts(gpu_class: str) -> GpuFacts:
    """Look a GPU class up by its name.

    Raises
    ------
    InvalidInput
        Listing the classes that are known.
    """
    if gpu_class not in GPU_FACTS:
        raise InvalidInput(
            f"GPU class {gpu_class}",
            "",
            "has no data sheet here",
            "use one of " + ", ".join(sorted(GPU_FACTS)) + ", or give its data sheet with --gpu-facts",
        )
    return GPU_FACTS[gpu_class]


GPU_FIELDS: Mapping[str, tuple[str, float]] = {
    # A user's field → ours and the factor to our unit.
    "memoryGigabytes": ("memory_bytes", 1e9),
    "memoryGigabytesPerSecond": ("memory_bytes_per_s", 1e9),
    "bf16Teraflops": ("bf16_flops_per_s", TB),
    "fp8Teraflops": ("fp8_flops_per_s", TB),
    "linkGigabytesPerSecond": ("link_bytes_per_s", 1e9),
    "networkGigabytesPerSecond": ("network_bytes_per_s", 1e9),
    "idleWatts": ("idle_watts", 1.0),
    "maxWatts": ("max_watts", 1.0),
    "linkIslandGpus": ("link_island_gpus", 1.0),
}
OPTIONAL_GPU_FIELDS = ("fp8Teraflops", "linkIslandGpus")


def read_gpu_facts(name: str, given: Mapping[str, Any]) -> GpuFacts:
    """Read a data sheet of any vendor: dense peaks, links one way, per GPU.

    Raises
    ------
    InvalidInput
        Naming the field that is missing, unknown or not above 0.
    """
    subject = f"facts of GPU class {name}"
    if unknown := sorted(set(given) - set(GPU_FIELDS)):
        raise InvalidInput(subject, unknown[0], "is not known", "use " + ", ".join(GPU_FIELDS))
    values: dict[str, Any] = {"name": name, "fp8_flops_per_s": None}
    for field, (ours, factor) in GPU_FIELDS.items():
        value = given.get(field)
        if value is None and field in OPTIONAL_GPU_FIELDS:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InvalidInput(subject, field, f"is {value!r}, not a number above 0", "take it from the data sheet")
        values[ours] = factor * value
    if values["idle_watts"] >= values["max_watts"]:
        raise InvalidInput(subject, "idleWatts", "is not below maxWatts", "take both from the data sheet")
    if "link_island_gpus" in values:
        values["link_island_gpus"] = max(1, int(values["link_island_gpus"]))
    return GpuFacts(**values)


def model_facts(name: str, config: Mapping[str, Any] | None = None) -> ModelFacts:
    """Facts of a model: from its ``config.json`` when given, else from the table of known models.

    Raises
    ------
    InvalidInput
        When the model is unknown and no config was given, or the config lacks a field.
    """
    if config is not None:
        return facts_of_config(name, config)
    if name not in MODEL_FACTS:
        raise InvalidInput(
            f"model {name}",
            "",
            "has no facts here",
            "give its config.json with --model-config, or use one of " + ", ".join(sorted(MODEL_FACTS)),
        )
    return MODEL_FACTS[name]


def facts_of_config(name: str, config: Mapping[str, Any]) -> ModelFacts:
    """Read a Hugging Face ``config.json``: plain, grouped-query and latent attention, dense and expert layers.

    Biases and norms are left out (below 0.1 % of the parameters).
    """
    config = config.get("text_config", config)

    def size(field: str, *default: int) -> int:
        value = config.get(field)
        if value is None and not default:
            raise InvalidInput(f"model {name} config.json", field, "is missing", "use the model's own config.json")
        return int(default[0] if value is None else value)

    layers, hidden, heads = size("num_hidden_layers"), size("hidden_size"), size("num_attention_heads")
    head_size = size("head_dim", hidden // heads)
    experts = size("num_experts", size("num_local_experts", size("n_routed_experts", 1)))
    picked = size("num_experts_per_tok", size("experts_per_token", 1)) if experts > 1 else 1
    expert_width = size("moe_intermediate_size", size("intermediate_size"))
    shared = size("n_shared_experts", 0) * 3 * hidden * expert_width
    expert = 3 * hidden * (expert_width if experts > 1 else size("intermediate_size"))
    latent = size("kv_lora_rank", 0) + size("qk_rope_head_dim", 0) if size("kv_lora_rank", 0) else 0
    kv_width = latent or 2 * size("num_key_value_heads", heads) * head_size
    attention = hidden * (2 * heads * head_size + kv_width)
    embeddings = (1 if config.get("tie_word_embeddings") else 2) * size("vocab_size") * hidden
    return ModelFacts(
        name=name,
        parameters=float(embeddings + layers * (attention + shared + experts * expert)),
        active_parameters=float(embeddings + layers * (attention + shared + picked * expert)),
        layers=layers,
        hidden_size=hidden,
        attention_width=heads * head_size,
        kv_values_per_token=layers * kv_width,
        experts=experts,
        experts_per_token=picked,
    )
