"""``penstock profile calibrate``: files of benchmarks in, a calibrated profile and its errors out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller import cli
from controller.profiles_benchmarks import read_benchmarks
from controller.resources import parse_engine_profile
from solvers.engine import ProfileSource
from solvers.errors import InvalidInput

CSV = """concurrency,isl,osl,ttft_ms,tpot_ms
4,1024,128,60,9.5
16,1024,128,110,11
32,4096,128,420,19
64,1024,256,,14
"""
VLLM: dict[str, Any] = {
    "max_concurrency": 8,
    "request_rate": "inf",
    "completed": 40,
    "total_input_tokens": 40 * 900,
    "total_output_tokens": 40 * 90,
    "mean_ttft_ms": 80.0,
    "mean_tpot_ms": 10.0,
}
ASK = ["profile", "calibrate", "--model", "meta-llama/Llama-3.1-8B", "--gpu-class", "h100-sxm", "--source", "roofline"]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_of_other_harnesses_are_known(tmp_path: Path) -> None:
    ours = read_benchmarks([write(tmp_path, "a.csv", CSV)], 0.8)
    other = CSV.replace("concurrency,isl,osl", "clients,input_len,prompt", 1).replace("prompt,", "output_tokens,", 1)
    assert read_benchmarks([write(tmp_path, "b.csv", other)], 0.8) == ours
    assert (ours.rows[0].load.clients, ours.rows[0].load.least_ratio, ours.rows[0].ttft_s) == (4, 0.8, 0.06)
    assert ours.rows[3].ttft_s is None
    assert ours.rounds == 10


def test_a_saved_result_of_vllm_bench_is_read(tmp_path: Path) -> None:
    found = read_benchmarks([write(tmp_path, "a.json", json.dumps([VLLM, VLLM]))], 0.8)
    assert len(found.rows) == 2
    assert found.rounds == 5
    assert found.rows[0].load.prompt_tokens == 1000  # the mean of lengths between 800 and 1000 is 900
    assert (found.rows[0].load.output_tokens, found.rows[0].tpot_s) == (100, 0.01)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("concurrency", "load", "clients: has no column"),
        ("ttft_ms,tpot_ms", "x,y", "neither ttft_ms nor tpot_ms"),
        ("16,1024", "0,1024", ":3 concurrency: is '0', not a number above 0"),
        ("110,11", "nan,11", ":3 ttft_ms: is 'nan'"),
        (",14", ",", ":5 ttft_ms: has no measured time"),
    ],
)
def test_a_bad_csv_is_named_by_line_and_field(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_benchmarks([write(tmp_path, "a.csv", CSV.replace(old, new, 1))], 1.0)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"request_rate": 5.0}, "was run at request rate 5.0"),
        ({"max_concurrency": None}, "concurrency None"),
        ({"completed": 0}, "completed: is '0'"),
        ({"mean_ttft_ms": "x"}, "mean_ttft_ms: is 'x'"),
    ],
)
def test_a_result_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_benchmarks([write(tmp_path, "a.json", json.dumps(VLLM | changes))], 1.0)
    assert words in str(refused.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, text, words in (("a.json", "{", "is no JSON"), ("b.json", "[1]", "is no JSON object")):
        with pytest.raises(InvalidInput, match=words):
            read_benchmarks([write(tmp_path, name, text)], 1.0)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_benchmarks([tmp_path / "none.csv"], 1.0)


def test_the_command_prints_a_profile_that_can_be_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "mine.csv", CSV)
    assert cli.main([*ASK, "--from", str(path)]) == 0
    text = capsys.readouterr().out
    assert "# each row predicted from the others: TPOT off by" in text
    profile = parse_engine_profile(yaml.safe_load(text))
    assert profile.source is ProfileSource.MEASURED
    assert profile.source_detail.startswith("4 benchmarks of mine.csv")


def test_the_command_prints_errors_for_programs_and_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "mine.csv", CSV)
    assert cli.main([*ASK, "--from", str(path), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    errors = found["errors"]
    assert errors["after"]["tpot_median"] < errors["before"]["tpot_median"]
    assert len(found["rows"]) == 4
    assert found["engineProfile"]["kind"] == "EngineProfile"
    assert cli.main([*ASK, "--from", str(path), "-o", "table"]) == 0
    assert "CLIENTS  PROMPT  OUTPUT" in capsys.readouterr().out


def test_what_cannot_be_calibrated_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, "mine.csv", CSV))
    for more, words in (
        ([], "no measurements were given"),
        (["--from", path, "--tensor-parallel", "1,2"], "2 profiles were asked for"),
        (["--from", path, "--least-ratio", "0"], "give a share above 0, up to 1"),
    ):
        assert cli.main([*ASK, *more]) == 1
        assert words in capsys.readouterr().err
