"""``penstock profile --explain``: every number has an origin, and it is the right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from controller import cli
from controller.profiles import ProfileRequest, Source, make_profile
from controller.profiles_explain import Explanation, explain
from controller.silicon import silicon_profile
from solvers.engine import EngineConfig
from solvers.engine.curves import decode_step_s

EIGHT, GPU = "meta-llama/Llama-3.1-8B", "a100-sxm"
ASK = ["profile", "--model", EIGHT, "--gpu-class", GPU, "--explain"]


def explained(source: Source, csv_path: Path | None = None, kv: int | None = None, variants: str = "") -> Explanation:
    request = ProfileRequest(
        model=EIGHT,
        gpu_class=GPU,
        config=EngineConfig(),
        source=source,
        csv_path=csv_path,
        kv_capacity_tokens=kv,
        variants=variants,
    )
    return explain(request, make_profile(request))


def origin(found: Explanation, field: str) -> str:
    return next(each.origin for each in found.origins if each.field == field)


def test_operators_add_up_to_the_step_of_the_profile() -> None:
    found = explained(Source.SILICON)
    step_ms = sum(each.milliseconds for each in found.operators if each.step == "decode 32 x 2048")
    profile = silicon_profile(EIGHT, GPU, EngineConfig())
    between = decode_step_s(profile, 32, 2048)  # on a line between two knots of the context
    assert step_ms / 1e3 == pytest.approx(between, rel=0.05)
    assert {each.origin for each in found.operators} <= {
        "measured kernels",
        "measured kernels and an estimate together",
        "estimated from bandwidth and arithmetic",
    }
    assert "kernel tables" in origin(found, "decode")


def test_a_roofline_and_measurements_name_their_own_origins(tmp_path: Path) -> None:
    assert "first principles on GPU facts" in origin(explained(Source.ROOFLINE), "prefill")
    path = tmp_path / "mine.csv"
    path.write_text("phase,size,context,seconds\nprefill,128,,0.01\ndecode,1,256,0.008\n", encoding="utf-8")
    found = explained(Source.CSV, path, kv=123_456)
    assert origin(found, "decode").startswith("the measurements named in the detail")
    assert found.detail.startswith("mine.csv, 2 points")
    assert origin(found, "KV room") == "given with --kv-capacity-tokens"
    assert found.operators == ()


def test_a_variant_is_named_after_what_it_was_derived_from() -> None:
    found = explained(Source.ROOFLINE, variants="kv:8")
    assert origin(found, "variant") == "formulas of solvers.engine.variants on the above"
    assert found.detail.startswith("keys and values in 8 bits, were 16; derived from first principles")


def test_the_command_explains_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--source", "roofline", "--tensor-parallel", "1,2"]
    assert cli.main([*ASK, *source, "-o", "table"]) == 0
    text = capsys.readouterr().out
    assert "FIELD             VALUE" in text
    assert "llama-3.1-8b-a100-sxm-tp2: Roofline" in text
    assert cli.main([*ASK, *source, "-o", "json"]) == 0
    from_json = json.loads(capsys.readouterr().out)
    assert cli.main([*ASK, *source, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == from_json
    assert [each["name"] for each in from_json] == ["llama-3.1-8b-a100-sxm-tp1", "llama-3.1-8b-a100-sxm-tp2"]
