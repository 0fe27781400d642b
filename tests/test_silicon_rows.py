"""How measured rows are read: products of degrees, blank columns, repeats, and how each server was started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from solvers.engine.closed_loop import Case, CaseBook
from tests.silicon_rows import MeasuredRow, candidates, memory_fraction, read_rows
from tests.silicon_study import Found, Study, errors, quick_rows
from tests.test_closed_loop import curves

FIELDS = (
    "id,backend,backend_version,model_path,system,precision,isl,osl,concurrency,gemm_quant_mode,moe_quant_mode,"
    "batch_size,tp_size,pp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms"
)


def line(
    model: str = "deepseek-ai/DeepSeek-V3", engine: str = "trtllm", degrees: str = "64,1,1,8,8", **more: str
) -> str:
    clients, times = more.get("clients", "16"), more.get("times", "200.0,10.0")
    system, precision, shape = (
        more.get("system", "b200_sxm"),
        more.get("precision", "fp4"),
        more.get("shape", "1024,1024"),
    )
    name = more.get("name", "row_cfg1")
    return f"{name},{engine},,{model},{system},{precision},{shape},{clients},,,4,{degrees},{times}"


def read(folder: Path, *lines: str) -> list[MeasuredRow]:
    path = folder / "rows.csv"
    path.write_text("\n".join([FIELDS, *lines]) + "\n", encoding="utf-8")
    return read_rows(path)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ("64,1,1,8,8", (8, 1, 1, 8)),  # tensor, pipeline, data, experts' tensor, experts
        ("1,1,64,8,8", (1, 8, 1, 8)),
        ("16,1,1,4,4", (4, 1, 1, 4)),
        ("4,1,4,1,16", (1, 4, 1, 4)),
        ("8,1,1,8,1", (8, 1, 8, 1)),
        ("4,1,1,1,4", (4, 1, 1, 4)),
    ],
)
def test_published_degrees_are_products(tmp_path: Path, degrees: str, expected: tuple[int, int, int, int]) -> None:
    (row,) = read(tmp_path, line(degrees=degrees))
    key = row.key
    found = key.tensor_parallel, key.data_parallel, key.moe_tensor_parallel, key.moe_expert_parallel
    assert found == expected
    assert key.family == "DeepSeek"


def test_a_dense_model_has_no_experts_and_blank_clients_are_a_batch_for_each_rank(tmp_path: Path) -> None:
    text = line("Qwen/Qwen3-32B", "vllm", "2,1,,0,0", clients="", precision="", system="h100_sxm")
    (row,) = read(tmp_path, text)
    assert (row.key.moe_tensor_parallel, row.key.moe_expert_parallel, row.key.precision) == (1, 1, "bf16")
    assert row.load.clients == 4


def test_repeats_that_differ_in_trailing_digits_count_once(tmp_path: Path) -> None:
    rows = read(tmp_path, line(times="200.0000001,10.00000001"), line(times="200.0,10.0"), line(times="201.0,10.0"))
    assert [round(row.ttft_s, 4) for row in rows] == [0.2, 0.201]


def test_servers_are_started_as_their_launchers_say(tmp_path: Path) -> None:
    llama, seldom, ranks, own = read(
        tmp_path,
        line("meta-llama/Llama-3.1-70B", degrees="4,1,1,1,1", system="h200_sxm", precision="fp8"),
        line(engine="sglang", clients="32"),
        line(degrees="1,1,64,8,8", clients="256"),
        line("Qwen/Qwen3-32B", "sglang", "2,1,,1,1", precision="", system="h100_sxm"),
    )
    assert (llama.server.budget_tokens, llama.server.gather_steps, llama.server.gather_tokens) == (2068, 20, 1861)
    assert llama.server.whole_prompts
    assert (seldom.server.poll_steps, seldom.server.seats, seldom.server.prefill_alone) == (30, 256, True)
    assert (ranks.server.ranks, ranks.server.gather_requests, ranks.server.gather_steps) == (8, 8, 60)
    assert (own.server.poll_steps, own.load.least_ratio, llama.load.least_ratio) == (1, 1.0, 0.8)


def test_every_row_has_a_name_in_the_tables_and_a_share_of_memory(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        line(),
        line("openai/gpt-oss-120b", "vllm", "2,1,1,2,1"),
        line("MiniMaxAI/MiniMax-M2.5", "vllm", "8,1,1,8,1", precision="fp8"),
    )
    named = [next(candidates(row.key)) for row in rows]
    assert [way.model for way in named] == [
        "nvidia/DeepSeek-V3.1-NVFP4",
        "openai/gpt-oss-120b",
        "MiniMaxAI/MiniMax-M2.5",
    ]
    assert named[1].options["moe_quant_mode"] == "w4a8_mxfp4_mxfp8"
    assert memory_fraction(rows[0].key) == ("of_free", 0.8)
    assert memory_fraction(rows[2].key) == ("of_total", 0.95)


def test_errors_are_medians_and_percentiles_of_the_chosen_rows(tmp_path: Path) -> None:
    rows = read(tmp_path, *(line(times=f"{100 * n}.0,{10 * n}.0", clients=str(n)) for n in (1, 2, 4)))
    measured = np.array([(row.ttft_s, row.tpot_s) for row in rows])
    cases = [Case(curves=curves(), server=row.server, load=row.load) for row in rows]
    study = Study(rows=rows, book=CaseBook(cases), measured_s=measured, theirs_s=measured)
    found = Found(name="", fitted="", rows=np.arange(3), predicted_s=measured * [[1.1, 0.8], [1.1, 0.9], [2.0, 1.0]])
    every = errors(study, found)
    assert every is not None
    assert every.rows == 3
    assert [every.ttft_median, every.tpot_median] == pytest.approx([0.1, 0.1])
    assert every.ttft_p90 == pytest.approx(0.1 + 0.8 * 0.9)
    assert errors(study, found, lambda row: row.load.clients > 4) is None
    assert len(quick_rows(rows)) == 3
