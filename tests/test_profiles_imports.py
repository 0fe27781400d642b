"""Tables that others published become profiles that give their own points back, and say what was done to them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from controller import cli
from controller.profiles_imports import import_tables, left_out_errors
from controller.resources import parse_engine_profile
from solvers.engine import ProfileSource
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.engine.prefill import prefill_together_s
from solvers.errors import InvalidInput, OutOfRange

DATA = Path(os.environ.get("PENSTOCK_DATA") or Path(__file__).parents[2] / "shared" / "data") / "perf"

HEADER = (
    "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,e2e_time,"
    "tensor_parallel"
)


def splitwise(folder: Path, hardware: str = "a100-80gb") -> Path:
    """A small file of the published form: times in ms, two repeats of every point."""
    lines = [HEADER]
    for repeat in (0.99, 1.01):
        lines += [row(hardware, p, 1, repeat * 0.2 * p, repeat * (40 + p / 1000)) for p in (128, 512, 2048)]
        lines += [row(hardware, 512, b, repeat * 112.64 * b, repeat * (40.512 + b)) for b in (2, 8)]
    path = folder / "splitwise_perf_model.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(hardware: str, prompt: int, batch: int, prompt_ms: float, token_ms: float) -> str:
    power = "0,0" if hardware.startswith("h100") else "0.9,0.45"
    return f"llama2-70b,{hardware},{prompt},{batch},128,{power},{prompt_ms},{token_ms},0,8"


def helix(folder: Path, decode: str = "0,0\n2,1.0\n4,0.9\n8,1.5\n") -> Path:
    place = folder / "helix" / "llama2_70b" / "l4x2"
    place.mkdir(parents=True)
    (place / "prompt_bs2time.csv").write_text("0,0\n250,2\n500,4\n1000,9\n", encoding="utf-8")
    (place / "decode_bs2time.csv").write_text(decode, encoding="utf-8")
    return folder / "helix"


def test_a_splitwise_file_gives_its_medians_back(tmp_path: Path) -> None:
    (found,) = import_tables(splitwise(tmp_path))
    profile = found.profile
    assert (profile.key.model, profile.key.gpu_class, profile.key.config.label) == (
        "meta-llama/Llama-2-70b",
        "a100-sxm",
        "tp8",
    )
    assert profile.source is ProfileSource.MEASURED
    assert prefill_s(profile, 512) == pytest.approx(0.1024)
    assert decode_step_s(profile, 8, 512 + 64) == pytest.approx(0.048512)
    assert prefill_together_s(profile, 512, batch=8) == pytest.approx(8 * 0.1024)  # 8.8 measured: one after another
    assert (profile.prefill_watts_per_gpu, profile.decode_watts_per_gpu[0]) == (0.9 * 400, 0.45 * 400)
    for of_prefill in (True, False):
        assert np.median(np.abs(found.errors(of_prefill=of_prefill))) < 0.02


def test_power_that_was_not_measured_is_modelled_and_a_derived_file_says_so(tmp_path: Path) -> None:
    (found,) = import_tables(splitwise(tmp_path, "h100-80gb-pcap"))
    assert found.profile.key.config.label == "tp8-pcap"
    assert "1.30 times H100's, derived" in found.profile.source_detail
    assert 100 < found.profile.decode_watts_per_gpu[0] < 700


def test_layer_times_add_up_to_the_model_and_are_smoothed_aloud(tmp_path: Path) -> None:
    (found,) = import_tables(helix(tmp_path))
    profile = found.profile
    assert (profile.key.gpu_class, profile.key.config.tensor_parallel) == ("l4", 2)
    assert prefill_s(profile, 500) == pytest.approx(80 * 0.004)
    assert decode_step_s(profile, 4, 100) == pytest.approx(80 * 0.001)
    assert "raised to be monotone, by 11.1% at most" in profile.source_detail
    assert found.errors(of_prefill=False).tolist() == pytest.approx([0.0, 1.0 / 0.9 - 1.0, 0.0])
    with pytest.raises(OutOfRange, match="decode_contexts"):
        decode_step_s(profile, 4, 5000)


def test_what_lines_between_knots_cost_is_known(tmp_path: Path) -> None:
    (found,) = import_tables(helix(tmp_path, "2,1.0\n4,1.5\n8,2.0\n"))
    prefill, decode = left_out_errors(found.profile)
    assert prefill.tolist() == pytest.approx([(2 + 7 / 3) / 4 - 1])  # between 250 and 1,000 tokens
    assert decode.tolist() == pytest.approx([(1.0 + 1 / 3) / 1.5 - 1])


def test_the_command_prints_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(helix(tmp_path))
    assert cli.main(["profile", "import", "--from", path]) == 0
    profile = parse_engine_profile(yaml.safe_load(capsys.readouterr().out))
    assert profile.key.config.engine == "helix"
    assert cli.main(["profile", "import", "--from", path, "--gpu-class", "t4"]) == 1
    assert "no table holds what was asked for" in capsys.readouterr().err
    assert cli.main(["profile"]) == 1
    assert "give --model and --gpu-class" in capsys.readouterr().err


def test_files_that_do_not_fit_are_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no known table"):
        import_tables(tmp_path)
    with pytest.raises(InvalidInput, match=r"decode_bs2time.csv:2: is 'x'"):
        import_tables(helix(tmp_path, "2,1.0\nx\n"))
    path = splitwise(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("llama2-70b,a100-80gb,128", "llama2-70b,,128", 1), "utf-8")
    with pytest.raises(InvalidInput, match=r"splitwise_perf_model.csv:2 hardware: is missing"):
        import_tables(path)
    path.write_text(path.read_text(encoding="utf-8").replace("llama2-70b", "other", 100).replace(",,", ",b9,"), "utf-8")
    with pytest.raises(InvalidInput, match="has no facts here"):
        import_tables(path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "profiles", "most"), [("splitwise_perf_model.csv", 12, {True: 0.1, False: 0.02}), ("helix", 14, {})]
)
def test_the_published_tables_come_back(name: str, profiles: int, most: dict[bool, float]) -> None:
    """Splitwise's runs differ among themselves, and its prompt times fall in places; Helix's points are single."""
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there")
    found = import_tables(DATA / name)
    assert len(found) == profiles
    for each in found:
        for of_prefill in (True, False):
            median = float(np.median(np.abs(each.errors(of_prefill=of_prefill))))
            print(each.profile.key.model, each.profile.key.gpu_class, each.profile.key.config.label, of_prefill, median)
            assert median <= most.get(of_prefill, 1e-9)
