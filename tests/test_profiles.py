"""Profiles from tables, measurements and the roofline, the command that prints them, and the committed samples."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller import cli, silicon
from controller.profile_command import add_arguments, requests
from controller.profiles import ProfileRequest, Source, make_profile
from controller.resources import parse_engine_profile
from solvers.calibration_served import planned_correction, served_correction
from solvers.engine import EngineConfig, EngineProfile, ProfileSource, check_profile
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.errors import InvalidInput

DEMO = Path(__file__).parents[1] / "deploy" / "samples" / "demo"
EIGHT = "meta-llama/Llama-3.1-8B"
REGENERATED = "a100-sxm"  # the class whose samples are made again: its tables are the quickest to open

MEASURED = """phase,size,context,seconds
prefill,128,,0.010
prefill,1024,,0.030
prefill,1024,,0.050
prefill,1024,,0.032
prefill,8192,,0.300

decode,1,256,0.008
decode,1,4096,0.009
decode,64,256,0.012
decode,64,4096,0.030
"""


def ask(model: str = EIGHT, gpu_class: str = "a100-sxm", **changes: Any) -> ProfileRequest:
    degree, variant = changes.pop("tensor_parallel", 1), changes.pop("variant", "")
    engine = changes.pop("engine", "vllm")
    config = EngineConfig(tensor_parallel=degree, variant=variant, engine=engine)
    return ProfileRequest(model=model, gpu_class=gpu_class, config=config, **changes)


def write(folder: Path, text: str) -> Path:
    path = folder / "measured.csv"
    path.write_text(text, encoding="utf-8")
    return path


# --- measurements -----------------------------------------------------------------------------------------------


def test_measurements_become_the_curves_and_repeats_their_median(tmp_path: Path) -> None:
    profile = make_profile(ask(csv_path=write(tmp_path, MEASURED)))
    assert profile.source is ProfileSource.MEASURED
    assert profile.source_detail.startswith("measured.csv, 7 points")
    assert prefill_s(profile, 1024) == 0.032
    assert decode_step_s(profile, 64, 4096) == 0.030
    assert profile.decode_batches == (1, 64)
    assert len(profile.decode_watts_per_gpu) == 2
    assert profile.kv_bytes_per_token == 131072  # not in the measurements: from the facts of the model


def test_measurements_that_fall_are_raised_and_it_is_said(tmp_path: Path) -> None:
    falling = MEASURED.replace("decode,64,256,0.012", "decode,64,256,0.004")
    profile = make_profile(ask(csv_path=write(tmp_path, falling)))
    assert decode_step_s(profile, 64, 256) == 0.008
    assert "1 of 7 values raised to be monotone, by 100.0% at most" in profile.source_detail


@pytest.mark.parametrize(
    ("old", "new", "place", "field", "words"),
    [
        ("phase,size", "kind,size", ":1", "", "header is"),
        ("prefill,128,,0.010", "prefil,128,,0.010", ":2", "phase", "'prefil'"),
        ("prefill,128,,0.010", "prefill,128,0.010", ":2", "", "has 3 fields"),
        ("prefill,128,,0.010", "prefill,12.5,,0.010", ":2", "size", "'12.5', not a whole number above 0"),
        ("prefill,128,,0.010", "prefill,128,7,0.010", ":2", "context", "leave it empty"),
        ("prefill,128,,0.010", "prefill,128,,-1", ":2", "seconds", "'-1', not a number above 0"),
        ("prefill,128,,0.010", "prefill,128,,nan", ":2", "seconds", "'nan'"),
        ("decode,1,4096,0.009", "decode,1,,0.009", ":9", "context", "not a whole number"),
        ("decode,1,4096,0.009", "", "", "decode", "no time for batch 1 at context 4096"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(
    tmp_path: Path, old: str, new: str, place: str, field: str, words: str
) -> None:
    path = write(tmp_path, MEASURED.replace(old, new))
    with pytest.raises(InvalidInput) as refused:
        make_profile(ask(csv_path=path))
    assert refused.value.subject == f"{path}{place}"
    assert refused.value.field == field
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"), [("", "header is"), ("phase,size,context,seconds\nprefill,1,,1\n", "no decode rows")]
)
def test_a_file_without_measurements_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        make_profile(ask(csv_path=write(tmp_path, text)))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.csv: cannot be read"):
        make_profile(ask(csv_path=tmp_path / "none.csv"))
    with pytest.raises(InvalidInput, match="name the measurements with --csv"):
        make_profile(ask(source=Source.CSV))


# --- the silicon tables -----------------------------------------------------------------------------------------


def test_the_tables_give_a_sound_profile_that_says_where_it_came_from() -> None:
    profile = make_profile(ask(source=Source.SILICON))
    check_profile(profile)
    assert profile.source is ProfileSource.SILICON
    assert "Meta-Llama-3.1-8B on a100_sxm, vllm tables" in profile.source_detail
    assert profile.kv_bytes_per_token == 131072
    assert 300_000 < profile.kv_capacity_tokens < 480_000  # 80 GiB less 16 GB of weights, at 128 KiB a token


def test_names_of_one_model_lead_to_the_same_tables() -> None:
    names = (EIGHT, "meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct")
    assert {silicon.bundled_model(name) for name in names} == {"meta-llama/Meta-Llama-3.1-8B"}
    assert silicon.bundled_model("nobody/nothing") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nobody/nothing"}, "is not among the"),
        ({"gpu_class": "v100"}, "they hold a100-pcie, a100-sxm"),
        ({"engine": "other"}, "use one of vllm, sglang, trtllm"),
        ({"variant": "int3"}, "says no precision"),
        ({"variant": "fp8"}, "is not in the vllm tables"),
        ({"tensor_parallel": 3}, "is not in the vllm tables"),
        ({"model": "meta-llama/Llama-3.1-70B"}, "no KV budget"),
    ],
)
def test_what_the_tables_lack_is_said_with_a_way_out(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(silicon.NotCovered) as refused:
        make_profile(ask(source=Source.SILICON, **changes))
    assert words in str(refused.value)
    assert refused.value.remedy


def test_without_the_package_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == silicon.PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, silicon.PACKAGE, None)
    with pytest.raises(silicon.NotInstalled, match=r"pip install penstock\[silicon\]"):
        make_profile(ask(source=Source.SILICON))
    assert make_profile(ask(source=Source.AUTO)).source is ProfileSource.ROOFLINE


def test_where_the_tables_end_a_roofline_stands_in_and_says_why() -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    profile = make_profile(ask(model="nobody/nothing", model_config=config | {"vocab_size": 1000}))
    assert profile.source is ProfileSource.ROOFLINE
    assert "silicon tables: is not among" in profile.source_detail


def test_when_nothing_covers_a_request_both_reasons_are_given() -> None:
    with pytest.raises(InvalidInput, match=r"is not among the .* nor a roofline: model nobody/nothing"):
        make_profile(ask(model="nobody/nothing"))


def test_a_table_that_falls_is_raised_least() -> None:
    table = np.array([[3.0, 2.0], [1.0, 4.0]])
    assert silicon.growing(table).tolist() == [[3.0, 3.0], [3.0, 4.0]]
    assert silicon.smoothing((table, table)) == ""


def test_what_a_user_measured_overrides_the_estimate() -> None:
    profile = make_profile(ask(source=Source.ROOFLINE, kv_capacity_tokens=1234, chunk_tokens=77, cold_start_s=9.0))
    assert (profile.kv_capacity_tokens, profile.prefill_chunk_tokens, profile.cold_start_s) == (1234, 77, 9.0)
    with pytest.raises(InvalidInput, match="kv_capacity_tokens"):
        make_profile(ask(source=Source.ROOFLINE, kv_capacity_tokens=-1))


# --- the command ------------------------------------------------------------------------------------------------

ROOFLINE = [
    "profile",
    "--model",
    EIGHT,
    "--gpu-class",
    "h100-sxm,l40s",
    "--tensor-parallel",
    "1,2",
    "--source",
    "roofline",
]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main([*ROOFLINE, *words]) == 0
    return capsys.readouterr().out


def test_the_command_prints_manifests_that_read_back_to_the_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    bodies = list(yaml.safe_load_all(printed(capsys)))
    expected = [
        make_profile(ask(gpu_class=gpu_class, tensor_parallel=degree, source=Source.ROOFLINE))
        for gpu_class in ("h100-sxm", "l40s")
        for degree in (1, 2)
    ]
    assert [parse_engine_profile(body) for body in bodies] == expected


def test_yaml_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    as_yaml, as_json = printed(capsys), printed(capsys, "-o", "json")
    assert json.loads(as_json)["items"] == list(yaml.safe_load_all(as_yaml))


def test_the_table_has_a_row_for_each_profile_and_a_dash_beyond_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "-o", "table", "--kv-capacity-tokens", "5000").splitlines()
    assert lines[0].split()[:2] == ["NAME", "SOURCE"]
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["llama-3.1-8b-h100-sxm-tp1", "Roofline", "5000"],
        ["llama-3.1-8b-h100-sxm-tp2", "Roofline", "5000"],
    ]


def test_the_file_begins_with_the_command_that_makes_it(capsys: pytest.CaptureFixture[str]) -> None:
    first = printed(capsys, "--chunk-tokens", "256", "--skip-unfit")
    words = shlex.split(first.splitlines()[0].removeprefix("# Made by: penstock "))
    assert cli.main(words) == 0
    assert capsys.readouterr().out == first


def test_what_does_not_fit_fails_or_is_left_out_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "--model", "meta-llama/Llama-3.1-70B", "--gpu-class", "h100-sxm", "--source", "roofline"]
    assert cli.main([*words, "--tensor-parallel", "1,4"]) == 1
    assert "weights take 141 GB" in capsys.readouterr().err
    assert cli.main([*words, "--tensor-parallel", "1,4", "--skip-unfit"]) == 0
    shown = capsys.readouterr()
    assert "left out h100-sxm/tp1" in shown.err
    assert [body["metadata"]["name"] for body in yaml.safe_load_all(shown.out)] == ["llama-3.1-70b-h100-sxm-tp4"]
    assert cli.main([*words, "--tensor-parallel", "1", "--skip-unfit"]) == 1


@pytest.mark.parametrize("text", ["[1, 2]", "{", None])
def test_a_config_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert cli.main([*ROOFLINE, "--model-config", str(path)]) == 1
    assert "config.json" in capsys.readouterr().err


# --- the samples ------------------------------------------------------------------------------------------------


def samples() -> dict[Path, list[dict[str, Any]]]:
    files = sorted(DEMO.glob("profiles-*.yaml"))
    return {path: list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) for path in files}


def asked_in_header(path: Path) -> list[ProfileRequest]:
    header = path.read_text(encoding="utf-8").splitlines()[0]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return list(requests(parser.parse_args(shlex.split(header.removeprefix("# Made by: penstock profile ")))))


def test_the_samples_cover_three_models_on_five_classes() -> None:
    profiles = [parse_engine_profile(body) for bodies in samples().values() for body in bodies]
    covered = {(profile.key.model, profile.key.gpu_class) for profile in profiles}
    classes = {"a100-sxm", "b200-sxm", "h100-sxm", "h200-sxm", "l40s"}
    models = {EIGHT, "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-30B-A3B"}
    assert covered == {(model, gpu_class) for model in models for gpu_class in classes}
    for profile in profiles:
        check_profile(profile)


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.stem)
def test_a_sample_holds_what_its_header_asks_for(path: Path) -> None:
    asked = {(request.model, request.gpu_class, request.config) for request in asked_in_header(path)}
    held = {(p.key.model, p.key.gpu_class, p.key.config) for p in map(parse_engine_profile, samples()[path])}
    assert held <= asked
    assert len(asked - held) <= 1  # the one that the command left out, as it does not fit


@pytest.mark.parametrize("path", [path for path in samples() if "fp8" not in path.stem], ids=lambda path: path.stem)
def test_samples_made_again_are_the_same(path: Path) -> None:
    committed = {p.key: p for p in map(parse_engine_profile, samples()[path])}
    again = [make_profile(request) for request in asked_in_header(path) if request.gpu_class == REGENERATED]
    assert again
    for profile in again:
        assert_alike(profile, committed[profile.key])


def assert_alike(made: EngineProfile, committed: EngineProfile) -> None:
    """Equal but for a microsecond of rounding, which may differ between processors."""
    assert np.allclose(made.prefill_s, committed.prefill_s, rtol=0, atol=2e-6)
    assert np.allclose(made.decode_step_s, committed.decode_step_s, rtol=0, atol=2e-6)
    for field in ("prefill_tokens", "decode_batches", "decode_contexts", "kv_capacity_tokens", "source_detail"):
        assert getattr(made, field) == getattr(committed, field)
    assert made.decode_watts_per_gpu == committed.decode_watts_per_gpu


def test_prefixes_and_batches_are_tabulated_when_asked_for_and_variants_start_from_them() -> None:
    wide = make_profile(ask(source=Source.SILICON, is_wide=True))
    check_profile(wide)
    assert wide.prefill_batches == (2, 4, 8)
    assert wide.prefill_batch_ratio[0][0] < 1.8 < wide.prefill_batch_ratio[0][-1]  # short prompts share the weights
    assert wide.prefill_cached_tokens[0] == 1024
    cached = make_profile(ask(source=Source.SILICON, is_wide=True, variants="hit:0.5"))
    assert cached.key.config.label == "tp1-hit50"
    assert prefill_s(cached, 8192) < 0.65 * prefill_s(wide, 8192)


def test_what_serving_costs_is_added_to_kernel_tables_when_asked_for() -> None:
    plain, served = (make_profile(ask(source=Source.SILICON, is_as_served=flag)) for flag in (False, True))
    assert served.source is ProfileSource.SILICON
    assert served.source_detail.startswith("as served: decode x1.11 + 0.1 ms, prefill x1.1")
    assert prefill_s(served, 1024) == pytest.approx(1.135 * prefill_s(plain, 1024) + 0.0189 + 0.002, abs=2e-6)
    assert decode_step_s(served, 8, 4096) == pytest.approx(1.11 * decode_step_s(plain, 8, 4096) + 1e-4, abs=2e-6)
    roofline = ask(source=Source.ROOFLINE, is_as_served=True)
    assert make_profile(roofline).prefill_s == make_profile(ask(source=Source.ROOFLINE)).prefill_s


def test_serving_is_never_planned_faster_than_the_kernels() -> None:
    for engine in ("vllm", "sglang", "trtllm", "another"):
        change = planned_correction(engine)
        assert min(change.decode_ratio, change.prefill_ratio) >= 1.0
        assert change.front_end_s == served_correction(engine).front_end_s


def test_the_command_adds_what_serving_costs_unless_kernels_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "--model", EIGHT, "--gpu-class", "a100-sxm", "--source", "silicon", "-o", "json"]

    def prefill(*more: str) -> tuple[str, int]:
        assert cli.main([*words, *more]) == 0
        [spec] = [body["spec"] for body in _bodies(capsys.readouterr().out)]
        return spec["sourceDetail"], spec["prefill"]["microseconds"][0]

    served, kernels = prefill(), prefill("--kernels-only")
    assert served[0].startswith("as served")
    assert not kernels[0].startswith("as served")
    assert served[1] > kernels[1] + 20_000  # a step's overhead and the front end
    assert prefill("--as-served") == served
    assert cli.main([*words, "--as-served", "--kernels-only"]) == 1
    assert "--as-served: is the opposite of --kernels-only" in capsys.readouterr().err


def _bodies(text: str) -> list[dict[str, Any]]:
    found = json.loads(text)
    bodies: list[dict[str, Any]] = found if isinstance(found, list) else found.get("items", [found])
    return bodies


@pytest.mark.parametrize(
    ("model", "gpu_class", "changes"),
    [
        (EIGHT, "a100-sxm", {"variant": "int4", "engine": "trtllm"}),
        ("meta-llama/Llama-3.1-70B", "h200-sxm", {"variant": "fp8", "tensor_parallel": 2, "pipeline_parallel": 2}),
        ("Qwen/Qwen3-30B-A3B", "h100-sxm", {"variant": "fp8", "tensor_parallel": 2, "expert_parallel": 2}),
        ("deepseek-ai/DeepSeek-R1", "h200-sxm", {"engine": "sglang", "data_parallel": 8, "expert_parallel": 8}),
    ],
    ids=["dense int4", "pipelined fp8", "experts fp8", "latent attention, attention copies"],
)
def test_the_tables_hold_many_kinds_of_servers(model: str, gpu_class: str, changes: dict[str, Any]) -> None:
    request = ProfileRequest(model=model, gpu_class=gpu_class, config=EngineConfig(**changes), source=Source.SILICON)
    profile = make_profile(request)
    assert profile.source is ProfileSource.SILICON
    assert decode_step_s(profile, 64, 4096) > decode_step_s(profile, 1, 256)
    if model == "deepseek-ai/DeepSeek-R1":
        assert profile.kv_bytes_per_token == 61 * (512 + 64) * 2  # one latent vector and one position key a layer


SHEET = """
memoryGigabytes: 96
memoryGigabytesPerSecond: 2400
bf16Teraflops: 600
linkGigabytesPerSecond: 200
networkGigabytesPerSecond: 25
idleWatts: 90
maxWatts: 600
"""


def of_another_vendor(folder: Path, text: str) -> list[str]:
    path = folder / "gpu.yaml"
    path.write_text(text, encoding="utf-8")
    return ["profile", "--model", EIGHT, "--gpu-class", "accelerator-1", "--gpu-facts", str(path)]


def test_a_gpu_of_any_vendor_enters_by_its_data_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(of_another_vendor(tmp_path, SHEET)) == 0
    profile = parse_engine_profile(yaml.safe_load(capsys.readouterr().out))
    assert (profile.source, profile.key.gpu_class) == (ProfileSource.ROOFLINE, "accelerator-1")
    weights_s = 8.03e9 * 2 / (0.8 * 2400e9)
    assert weights_s < decode_step_s(profile, 1, 256) < weights_s + 0.003
    assert profile.idle_watts_per_gpu == 90


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("idleWatts: 90", "", "idleWatts: is None, not a number above 0"),
        ("idleWatts: 90", "idleWatts: 700", "idleWatts: is not below maxWatts"),
        ("bf16Teraflops: 600", "bf16Teraflops: fast", "bf16Teraflops: is 'fast'"),
        ("bf16Teraflops", "teraflops", "teraflops: is not known"),
        (SHEET, "- a list", "holds no fields"),
    ],
)
def test_a_data_sheet_that_lacks_something_is_refused_by_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    assert cli.main(of_another_vendor(tmp_path, SHEET.replace(old, new))) == 1
    assert words in capsys.readouterr().err
