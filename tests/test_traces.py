"""Trace files are read to the digit, bad lines are named, made traces have the shape they promise."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from controller.traces import TraceRequest, load_trace
from controller.traces_made import scale_trace, synthetic_trace
from solvers.errors import InvalidInput

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:51.2225670,879,0
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 40160, "output_length": 6, "hash_ids": [0, 1]}
{"timestamp": 1000, "input_length": 100, "output_length": 4, "hash_ids": []}

{"timestamp": 4500, "input_length": 7, "output_length": 1}
"""
PLAIN = "arrival_s,prompt_tokens,output_tokens\n0.5,10,20\n2,30,40\n"


def request(arrival_s: float, prompt_tokens: int, output_tokens: int, *block_ids: int) -> TraceRequest:
    return TraceRequest(
        arrival_s=arrival_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens, block_ids=block_ids
    )


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE, (request(0.0, 374, 44), request(4.314579, 396, 109), request(4.541977, 879, 1))),
        (MOONCAKE, (request(0.0, 100, 4), request(0.0, 40160, 6, 0, 1), request(3.5, 7, 1))),
        (PLAIN, (request(0.0, 10, 20), request(1.5, 30, 40))),
    ],
)
def test_each_format_is_told_by_its_first_line(tmp_path: Path, text: str, expected: tuple[TraceRequest, ...]) -> None:
    assert load_trace(write(tmp_path, text)) == expected


def test_later_azure_files_with_a_time_zone_are_read_too(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:00.017335+00:00,2399,6\n"
    trace = load_trace(write(tmp_path, AZURE.splitlines()[0] + "\n" + rows))
    assert [r.arrival_s for r in trace] == pytest.approx([0.0, 0.007405], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "where", "field", "says"),
    [
        (AZURE + "yesterday,1,2\n", "trace.csv:5", "TIMESTAMP", "'yesterday' is no time"),
        (AZURE + "2023-13-16 18:15:46.68,1,2\n", "trace.csv:5", "TIMESTAMP", "calendar"),
        (AZURE + "2023-11-16 18:15:46.68,many,2\n", "trace.csv:5", "ContextTokens", "'many' is no whole number"),
        (AZURE + "2023-11-16 18:15:46.68,0,2\n", "trace.csv:5", "ContextTokens", "at least one token"),
        (AZURE + "2023-11-16 18:15:46.68,1,-2\n", "trace.csv:5", "GeneratedTokens", "negative"),
        (PLAIN + "1,999999999,2\n", "trace.csv:4", "prompt_tokens", "more than the 100,000,000 tokens"),
        (AZURE + "2023-11-16 18:15:46.68,1\n", "trace.csv:5", "", "2 fields instead of 3"),
        (PLAIN + "inf,1,2\n", "trace.csv:4", "arrival_s", "'inf' is no time"),
        (PLAIN + "soon,1,2\n", "trace.csv:4", "arrival_s", "'soon' is no number"),
        (MOONCAKE + "{oops\n", "trace.csv:5", "", "is no JSON"),
        (MOONCAKE + '{"timestamp": 1}\n', "trace.csv:5", "input_length", "is missing"),
        (
            MOONCAKE + '{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": ["a"]}\n',
            "trace.csv:5",
            "hash_ids",
            "no list of whole numbers",
        ),
        (
            MOONCAKE + '{"timestamp": 1, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}\n',
            "trace.csv:5",
            "hash_ids",
            "names 2 blocks of 512 tokens for a prompt of 512",
        ),
        (
            MOONCAKE + '{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": [9223372036854775808]}\n',
            "trace.csv:5",
            "hash_ids",
            "is beyond 64 bits",
        ),
        (MOONCAKE + "[1]\n", "trace.csv:5", "", "no JSON object"),
        (PLAIN + "1e300,1,2\n", "trace.csv", "", "holds requests 1e+300 s apart"),
        ("a,b,c\n1,2,3\n", "trace.csv:1", "", "no known format"),
        (PLAIN.splitlines()[0] + "\n", "trace.csv", "", "holds no requests"),
    ],
)
def test_a_malformed_line_is_named_with_its_field(tmp_path: Path, text: str, where: str, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load_trace(write(tmp_path, text))
    assert (refused.value.subject, refused.value.field) == (where, field)
    assert says in refused.value.problem
    assert refused.value.remedy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.csv: cannot be read"):
        load_trace(tmp_path / "nowhere.csv")


@pytest.fixture(scope="module")
def ten_hours() -> tuple[TraceRequest, ...]:
    return synthetic_trace(1, 36_000.0)


def test_a_synthetic_trace_has_the_asked_rate_and_percentiles(ten_hours: tuple[TraceRequest, ...]) -> None:
    trace = ten_hours
    prompts = np.array([r.prompt_tokens for r in trace])
    outputs = np.array([r.output_tokens for r in trace])
    assert len(trace) / 36_000 == pytest.approx(5.5, rel=0.1)  # the rate itself wanders
    assert np.percentile(prompts, [50, 99]) == pytest.approx([1020, 4142], rel=0.03)
    assert np.percentile(outputs, [50, 99]) == pytest.approx([129, 601], rel=0.03)
    arrivals = [r.arrival_s for r in trace]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] < 36_000


def test_a_synthetic_trace_is_as_bursty_as_the_public_one(ten_hours: tuple[TraceRequest, ...]) -> None:
    def dispersion(trace: tuple[TraceRequest, ...]) -> float:
        counts = np.histogram([r.arrival_s for r in trace], bins=np.arange(0, trace[-1].arrival_s, 60))[0]
        return float(counts.var() / counts.mean())

    assert 8 < dispersion(ten_hours) < 32  # 16 in the Azure conversation trace
    assert dispersion(synthetic_trace(2, 7_200.0, load_variation_ratio=0.0)) < 1.5


def test_equal_seeds_make_equal_traces() -> None:
    assert synthetic_trace(3, 600.0) == synthetic_trace(3, 600.0) != synthetic_trace(4, 600.0)


@pytest.mark.parametrize(("duration_s", "rate"), [(0.0, 1.0), (10.0, 0.0)])
def test_an_empty_synthetic_trace_is_refused(duration_s: float, rate: float) -> None:
    with pytest.raises(InvalidInput, match="synthetic trace"):
        synthetic_trace(1, duration_s, requests_per_s=rate)


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0, 3.7])
def test_scaling_multiplies_the_load_and_keeps_span_and_sizes(factor: float) -> None:
    trace = synthetic_trace(5, 3600.0)
    scaled = scale_trace(trace, factor, seed=9)
    assert len(scaled) == pytest.approx(factor * len(trace), rel=0.02)
    assert scaled[-1].arrival_s <= trace[-1].arrival_s * 1.01
    sizes = {(r.prompt_tokens, r.output_tokens) for r in trace}
    assert {(r.prompt_tokens, r.output_tokens) for r in scaled} <= sizes
    assert scaled == scale_trace(trace, factor, seed=9)
    arrivals = [r.arrival_s for r in scaled]
    assert arrivals == sorted(arrivals)


def test_scaling_by_two_holds_the_original() -> None:
    trace = synthetic_trace(5, 600.0)
    assert set(trace) <= set(scale_trace(trace, 2.0, seed=1))


def test_scaling_by_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be scaled by 0"):
        scale_trace(synthetic_trace(1, 10.0), 0, seed=1)


@pytest.mark.data
def test_the_public_traces_have_their_known_sizes() -> None:
    """Checked where the data lies beside the checkout; the formats above are checked everywhere."""
    folder = Path(os.environ.get("PENSTOCK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "traces"
    known = {
        "AzureLLMInferenceTrace_conv.csv": (19_366, 1020, 4142),
        "AzureLLMInferenceTrace_code.csv": (8_819, 1469, 7436),
    }
    for name, (count, p50, p99) in known.items():
        if not (folder / name).exists():
            print(f"{name} is not here; nothing to compare with")
            continue
        trace = load_trace(folder / name)
        prompts = [r.prompt_tokens for r in trace]
        assert len(trace) == count
        assert np.percentile(prompts, [50, 99]) == pytest.approx([p50, p99], abs=1)
