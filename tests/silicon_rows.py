"""The measured servers of ``silicon_train.csv``: how each was started, and how it is named to the silicon tables.

Two families of rows: InferenceX runs (Llama, DeepSeek, gpt-oss, MiniMax) and NVIDIA's own (Qwen3-32B, five gpt-oss).
The launch settings of the first are in its public repository (SemiAnalysisAI/InferenceX, ``benchmarks/*.sh``); they are
facts about each server and nothing here is fitted. What a row's engine version did differently is not known.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.silicon_steps import Candidate
from solvers.engine.closed_loop import Load, Server

FAMILIES: Mapping[str, str] = {"DeepSeek-V3": "DeepSeek", "DeepSeek-R1": "DeepSeek"}
DENSE = frozenset({"Llama-3.1-70B", "Qwen3-32B"})
ATTENTION: tuple[Mapping[str, str], ...] = (
    {},
    {"fmha_quant_mode": "bfloat16"},
    {"fmha_quant_mode": "bfloat16", "kvcache_quant_mode": "bfloat16"},
)


Launcher = Callable[["ServerKey", int, int, int], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ServerKey:
    """What rows of one server share."""

    family: str
    system: str
    engine: str
    precision: str
    tensor_parallel: int
    data_parallel: int
    moe_tensor_parallel: int
    moe_expert_parallel: int

    @property
    def gpus(self) -> int:
        """GPUs of the server."""
        return self.tensor_parallel * self.data_parallel

    @property
    def leaf(self) -> tuple[str, str, str, str]:
        """Engine, system, precision and model: what a user measures once."""
        return self.engine, self.system, self.precision, self.family


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRow:
    """One measurement."""

    key: ServerKey
    load: Load
    server: Server
    ttft_s: float
    tpot_s: float

    @property
    def shape(self) -> tuple[int, int]:
        """Nominal prompt and output tokens."""
        return self.load.prompt_tokens, self.load.output_tokens


def read_rows(path: Path) -> list[MeasuredRow]:
    """Rows of the file, repeats of one measurement once."""
    seen: dict[tuple[object, ...], MeasuredRow] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            row = _row(line)
            # The two spellings of one measurement differ in trailing digits.
            mark = (
                row.key.family,
                row.key.system,
                row.key.engine,
                row.load.clients,
                *row.shape,
                round(row.ttft_s, 6),
                round(row.tpot_s, 7),
            )
            seen.setdefault(mark, row)
    return list(seen.values())


def _row(line: Mapping[str, str]) -> MeasuredRow:
    key = _key(line)
    prompt, output = int(float(line["isl"])), int(float(line["osl"]))
    clients = int(_number(line["concurrency"]) or _number(line["batch_size"]) * key.data_parallel)
    is_published = _is_published(line)
    spread = 0.8 if is_published or key.engine != "sglang" else 1.0
    return MeasuredRow(
        key=key,
        load=Load(clients=clients, prompt_tokens=prompt, output_tokens=output, least_ratio=spread),
        server=_server(key, prompt, output, clients, is_published),
        ttft_s=float(line["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(line["silicon_tpot_ms"]) / 1e3,
    )


def _number(text: str) -> float:
    return float(text) if text else 0.0


def _is_published(line: Mapping[str, str]) -> bool:
    """Whether InferenceX ran the row: NVIDIA's own carry the model's name twice."""
    return "Qwen" not in line["model_path"] and "_openai_gpt_oss" not in line["id"]


def _key(line: Mapping[str, str]) -> ServerKey:
    name = line["model_path"].split("/")[-1]
    family = FAMILIES.get(name, name)
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    degrees = [max(1, int(_number(line[column]))) for column in names]
    tensor, data, moe_tensor, moe_expert = (_published if _is_published(line) else _plain)(*degrees)
    if family in DENSE:
        moe_tensor, moe_expert = 1, 1
    elif moe_tensor * moe_expert != tensor * data:
        moe_tensor, moe_expert = tensor * data, 1
    return ServerKey(
        family=family,
        system=line["system"],
        engine=line["backend"],
        precision=line["precision"] or "bf16",
        tensor_parallel=tensor,
        data_parallel=data,
        moe_tensor_parallel=moe_tensor,
        moe_expert_parallel=moe_expert,
    )


def _plain(*degrees: int) -> tuple[int, int, int, int]:
    tensor, data, moe_tensor, moe_expert = degrees
    return tensor, data, moe_tensor, moe_expert


def _published(tensor: int, data: int, moe_tensor: int, moe_expert: int) -> tuple[int, int, int, int]:
    """Degrees as they were: published columns hold products (tp64 with moe_tp8 and moe_ep8 is EP8 on eight GPUs)."""
    if moe_tensor == moe_expert > 1 and tensor * data == moe_tensor**2:
        return (moe_expert, 1, 1, moe_expert) if tensor > 1 else (1, moe_expert, 1, moe_expert)
    if tensor == data > 1:
        return 1, data, 1, data
    return tensor, data, moe_tensor, moe_expert


def _server(key: ServerKey, prompt: int, output: int, clients: int, is_published: bool) -> Server:
    """Launch settings: the engine's defaults, and what the launcher of a published run sets."""
    settings: dict[str, Any] = {"ranks": key.data_parallel, "budget_tokens": 8192}
    if key.engine == "sglang":
        settings |= {"prefill_alone": True, "budget_tokens": 16384}
    if key.engine == "trtllm":
        settings |= {"whole_prompts": True}
    if is_published:
        settings |= LAUNCHERS.get((key.family, key.engine), _no_change)(key, prompt, output, clients)
    return Server(**settings)


def _no_change(_key: ServerKey, _prompt: int, _output: int, _clients: int) -> dict[str, Any]:
    return {}


def _llama_trtllm(key: ServerKey, prompt: int, output: int, _clients: int) -> dict[str, Any]:
    """The step's budget is the longest request; short ones are gathered below eight GPUs."""
    longest = prompt + output + (20 if prompt == output else 200)
    budget = 16384 if (key.system, key.precision) == ("b200_sxm", "fp8") else longest
    settings: dict[str, Any] = {"budget_tokens": budget}
    if prompt == output == 1024 and key.tensor_parallel < 8:
        settings |= {"gather_steps": 20, "gather_tokens": int(0.9 * budget)}
    return settings


def _deepseek_trtllm(key: ServerKey, prompt: int, output: int, clients: int) -> dict[str, Any]:
    """The budget holds one prompt beside the batch; attention ranks wait for one another."""
    budget = max(8192, (clients + prompt + 127) // 64 * 64)
    settings: dict[str, Any] = {"budget_tokens": budget}
    if key.data_parallel > 1:
        settings |= {"gather_steps": 60, "gather_requests": key.data_parallel}
    elif (key.system, key.precision, prompt, output) == ("b200_sxm", "fp8", 1024, 1024) and 64 <= clients < 256:
        settings |= {"gather_steps": 40, "gather_tokens": int(0.8 * budget)}
    return settings


def _gpt_oss_trtllm(key: ServerKey, _prompt: int, _output: int, clients: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"budget_tokens": 20000, "seats": clients if key.system == "h200_sxm" else 512}
    if key.data_parallel > 1:
        settings |= {"gather_steps": 50, "gather_requests": key.data_parallel}
    return settings


def _deepseek_sglang(key: ServerKey, _prompt: int, _output: int, clients: int) -> dict[str, Any]:
    """On B200 the scheduler looks at its arrivals every 10 or 30 decode steps, and seats are few in fp8."""
    if key.system == "h200_sxm":
        return {"budget_tokens": 32768, "seats": 256}
    poll = 30 if clients >= 16 else 10
    if key.precision == "fp4":
        return {"budget_tokens": 16384, "seats": 256, "poll_steps": poll}
    if key.gpus == 4:
        return {"budget_tokens": 8192, "seats": 32, "poll_steps": 10}
    return {"budget_tokens": 32768, "seats": max(128, clients), "poll_steps": poll}


def _minimax_vllm(key: ServerKey, _prompt: int, _output: int, clients: int) -> dict[str, Any]:
    if key.system == "h200_sxm":
        return {"budget_tokens": 16384 if clients <= 32 else 32768, "seats": 512}
    return {"seats": 256} if key.system == "h100_sxm" else {}


LAUNCHERS: Mapping[tuple[str, str], Launcher] = {
    ("Llama-3.1-70B", "trtllm"): _llama_trtllm,
    ("DeepSeek", "trtllm"): _deepseek_trtllm,
    ("gpt-oss-120b", "trtllm"): _gpt_oss_trtllm,
    ("DeepSeek", "sglang"): _deepseek_sglang,
    ("MiniMax-M2.5", "vllm"): _minimax_vllm,
}


def candidates(key: ServerKey) -> Iterator[Candidate]:
    """Ways to name a server to the tables, best first."""
    parallel = {
        "tp_size": key.tensor_parallel,
        "attention_dp_size": key.data_parallel,
        "moe_tp_size": key.moe_tensor_parallel,
        "moe_ep_size": key.moe_expert_parallel,
    }
    degrees = [parallel]
    if key.family in ("MiniMax-M2.5", "gpt-oss-120b"):
        # Eight ways do not divide MiniMax's fp8 blocks, and TensorRT-LLM's tables hold gpt-oss by experts only: the
        # engine's own kernels, shared out in another way, say more than another engine's.
        degrees.append(parallel | {"moe_tp_size": 1, "moe_ep_size": key.gpus})
    for model, options in _models(key):
        for ways in degrees:
            for attention in ATTENTION:
                yield Candidate(model=model, options={**ways, **options, **attention})


def _models(key: ServerKey) -> list[tuple[str, Mapping[str, str]]]:
    fp4 = {"gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4"}
    fp8_kv = {"kvcache_quant_mode": "fp8"}
    if key.family == "gpt-oss-120b":
        # Blackwell runs the kernels with fp8 activations; the default is 2-4 times too slow there.
        modes = ["w4a8_mxfp4_mxfp8"] if key.system == "b200_sxm" else ["", "w4a16_mxfp4", "w4a16_mxfp4_cutlass"]
        return [("openai/gpt-oss-120b", {"moe_quant_mode": mode} if mode else {}) for mode in modes]
    by_name: Mapping[tuple[str, str], list[tuple[str, Mapping[str, str]]]] = {
        ("DeepSeek", "fp4"): [("nvidia/DeepSeek-V3.1-NVFP4", {}), ("deepseek-ai/DeepSeek-R1", fp4)],
        ("DeepSeek", "fp8"): [("deepseek-ai/DeepSeek-R1", {})],
        ("Llama-3.1-70B", "fp8"): [("meta-llama/Meta-Llama-3.1-70B", {"gemm_quant_mode": "fp8", **fp8_kv})],
        ("Llama-3.1-70B", "fp4"): [("meta-llama/Meta-Llama-3.1-70B", {"gemm_quant_mode": "nvfp4", **fp8_kv})],
        ("Qwen3-32B", "bf16"): [("Qwen/Qwen3-32B", {})],
        ("Qwen3-32B", "fp8"): [
            ("Qwen/Qwen3-32B", {"gemm_quant_mode": "fp8"}),
            ("Qwen/Qwen3-32B-FP8-Static-PerTensor", {}),
            ("Qwen/Qwen3-32B-FP8", {}),
        ],
        ("MiniMax-M2.5", "fp4"): [("nvidia/MiniMax-M2.5-NVFP4", {})],
        ("MiniMax-M2.5", "fp8"): [("MiniMaxAI/MiniMax-M2.5", {})],
    }
    return by_name[key.family, key.precision]


def memory_fraction(key: ServerKey) -> tuple[str, float]:
    """Share of the memory that the engine may use, as it was started: of all of it, or of what the weights leave."""
    if key.engine == "vllm":
        return "of_total", 0.95 if key.family == "MiniMax-M2.5" else 0.9
    if key.engine == "sglang":
        return "of_total", 0.85
    return "of_free", 0.9 if key.family in DENSE else 0.8
