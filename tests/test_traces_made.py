"""Made loads have the rate, burstiness and sizes they promise; specs and client files are read or refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from controller.traces import load_trace
from controller.traces_made import gamma_arrivals_s, poisson_arrivals_s, renewal_window_s
from controller.traces_servegen import busiest_start_s, client_files, load_client, servegen_arrivals_s
from controller.traces_spec import load_of, parse_trace_spec, trace_for, workload_of
from solvers.errors import InvalidInput
from solvers.workload import Demand, SizeBucket

CLIENT = "0,0,0,,0,0\n600,0.5,1.5,Gamma,0.44,0.04\n1200,2.0,3.0,Weibull,0.4,0.01\n1800,0,0,,0,0\n"
MIX = (
    SizeBucket(prompt_tokens=100, output_tokens=10, weight_ratio=3.0),
    SizeBucket(prompt_tokens=4000, output_tokens=200, weight_ratio=1.0),
)
DEMAND = Demand(service="a/b", requests_per_s=4.0, mix=MIX)


def spread_of_gaps(times: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_arrivals_have_their_rate_and_variation(cv: float) -> None:
    times = gamma_arrivals_s(np.random.default_rng(1), 20.0, cv, 2_000.0)
    count, deviation = 40_000, cv * np.sqrt(40_000)  # of a renewal count, asymptotically
    assert abs(len(times) - count) < 5 * deviation
    assert spread_of_gaps(times) == pytest.approx(cv, rel=0.1)
    assert bool((np.diff(times) >= 0).all())
    assert 0 <= times[0] < times[-1] < 2_000


def test_poisson_arrivals_have_exponential_gaps() -> None:
    times = poisson_arrivals_s(np.random.default_rng(1), 20.0, 1_000.0)
    assert abs(len(times) - 20_000) < 5 * np.sqrt(20_000)
    assert spread_of_gaps(times) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("family", ["Gamma", "Weibull"])
def test_a_window_holds_as_many_as_asked_in_bursts(family: str) -> None:
    times = renewal_window_s(np.random.default_rng(2), family, 0.3, 500, 600.0)
    assert len(times) == 500
    assert 0.0 <= times[0] <= times[-1] <= 600.0
    assert spread_of_gaps(times) > 1.3  # 1 were Poisson


# ---------------------------------------------------------------- ServeGen


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    (tmp_path / "chunk-0-trace.csv").write_text(CLIENT)
    (tmp_path / "chunk-1-trace.csv").write_text("0,1.0,1.0,Gamma,1.0,0.5\n600,0,0,,0,0\n")
    return tmp_path


def test_clients_ask_as_often_as_their_windows_say(clients: Path) -> None:
    everything = servegen_arrivals_s(clients, start_s=0.0, duration_s=2400.0, seed=1)
    assert len(everything) == 600 + 300 + 1200
    middle = servegen_arrivals_s(clients, start_s=600.0, duration_s=600.0, seed=1)
    assert len(middle) == 300
    inside = everything[(everything >= 600) & (everything < 1200)] - 600
    assert middle.tolist() == inside.tolist()  # a part of the recording is that part
    assert busiest_start_s(clients, 600.0) == 1200.0


def test_each_client_draws_its_own_bursts(clients: Path) -> None:
    before = servegen_arrivals_s(clients, start_s=0.0, duration_s=2400.0, seed=1)
    (clients / "chunk-2-trace.csv").write_text("0,0,0,,0,0\n")
    assert servegen_arrivals_s(clients, start_s=0.0, duration_s=2400.0, seed=1).tolist() == before.tolist()
    assert servegen_arrivals_s(clients, start_s=0.0, duration_s=2400.0, seed=2).tolist() != before.tolist()


@pytest.mark.parametrize(
    ("line", "field", "says"),
    [
        ("2400,1,1,Gamma,1", "", "has 5 fields instead of 6"),
        ("noon,1,1,Gamma,1,1", "start_s", "'noon' is no number"),
        ("600,1,1,Gamma,1,1", "start_s", "does not come after"),
        ("2400,-1,1,Gamma,1,1", "requests_per_s", "'-1' is no number of 0 or more"),
        ("2400,1,1,Cauchy,1,1", "family", "'Cauchy' is no known family"),
        ("2400,1,1,Gamma,0,1", "shape", "is not above 0"),
    ],
)
def test_a_bad_line_of_a_client_is_named(clients: Path, line: str, field: str, says: str) -> None:
    file = clients / "chunk-0-trace.csv"
    file.write_text(CLIENT + line + "\n")
    with pytest.raises(InvalidInput) as refused:
        load_client(file)
    assert (refused.value.subject, refused.value.field) == ("chunk-0-trace.csv:5", field)
    assert says in refused.value.problem


def test_a_folder_without_clients_and_a_silent_span_are_refused(clients: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no client asks anything"):
        servegen_arrivals_s(clients, start_s=9000.0, duration_s=600.0, seed=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no client files"):
        servegen_arrivals_s(tmp_path / "empty", start_s=0.0, duration_s=600.0, seed=1)


# ---------------------------------------------------------------- specs


def test_a_spec_takes_what_it_leaves_out_from_the_demand() -> None:
    trace = trace_for(parse_trace_spec("poisson:duration=1000"), DEMAND, seed=1)
    assert abs(len(trace) - 4000) < 5 * np.sqrt(4000)
    assert {(r.prompt_tokens, r.output_tokens) for r in trace} == {(100, 10), (4000, 200)}
    assert sum(r.prompt_tokens == 100 for r in trace) / len(trace) == pytest.approx(0.75, abs=0.05)
    assert trace == trace_for(parse_trace_spec("poisson:duration=1000"), DEMAND, seed=1)
    assert trace != trace_for(parse_trace_spec("poisson:duration=1000"), DEMAND, seed=2)


def test_sizes_are_a_number_or_two_percentiles() -> None:
    trace = trace_for(parse_trace_spec("gamma:rate=50,cv=2,prompt=1000/4000,output=7,duration=400"), None, seed=1)
    prompts = [r.prompt_tokens for r in trace]
    assert np.percentile(prompts, [50, 99]) == pytest.approx([1000, 4000], rel=0.06)
    assert {r.output_tokens for r in trace} == {7}


def test_clients_are_counted_and_take_rows_in_turn() -> None:
    load = load_of({"a/b": parse_trace_spec("closed:clients=8,think=0.5,requests=30")}, {"a/b": DEMAND}, {}, 1)
    (group,) = load.clients
    assert (group.count, group.think_s, len(group.workload), len(load.workload)) == (8, 0.5, 30, 0)
    assert load.services == ("a/b",)


def test_blocks_of_a_trace_reach_the_workload(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text(
        '{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [7, 8]}\n'
        '{"timestamp": 9, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]}\n'
    )
    load = load_of({"a/b": parse_trace_spec(str(file))}, {}, {}, 1)
    workload = load.workload
    assert workload.block_tokens == 512
    assert workload.block_starts.tolist() == [0, 2, 4]
    assert workload.block_ids.tolist() == [7, 8, 7, 9]
    assert workload.names == ("a/b#0", "a/b#1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("poisson:speed=5", "cannot read 'speed=5'; write NAME=VALUE with rate, duration, prompt, output"),
        ("poisson:rate", "cannot read 'rate'"),
        ("poisson:rate=fast", "rate: is 'fast'"),
        ("gamma:cv=0", "cv: is '0'"),
        ("gamma:cv=nan", "cv: is 'nan'"),
        ("poisson:path=x", "cannot read 'path=x'"),
        ("servegen:start=0", "needs path="),
        ("nowhere.csv", "nowhere.csv: cannot be read"),
    ],
)
def test_a_bad_spec_is_told(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_trace_spec(text)
    assert says in str(refused.value)


def test_a_spec_without_rate_or_sizes_needs_a_plan() -> None:
    with pytest.raises(InvalidInput, match="rate: is neither given nor planned"):
        trace_for(parse_trace_spec("poisson:prompt=5,output=5"), None, seed=1)
    with pytest.raises(InvalidInput, match="says no request sizes"):
        trace_for(parse_trace_spec("poisson:rate=5,prompt=5"), None, seed=1)


def test_more_requests_than_memory_holds_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(InvalidInput, match=r"rate: makes about 6e\+14 requests; make at most 10,000,000"):
        trace_for(parse_trace_spec("poisson:rate=1e12,prompt=5,output=5"), None, seed=1)
    with pytest.raises(InvalidInput, match=r"clients: makes about 5e\+07 requests"):
        trace_for(parse_trace_spec("closed:clients=1000000,prompt=5,output=5"), None, seed=1)
    spec = {"a/chat": parse_trace_spec("poisson:rate=5,prompt=5,output=5")}
    with pytest.raises(InvalidInput, match=r"of a/chat: makes about .* requests, 1e\+09 times its own; make at most"):
        load_of(spec, {}, {"a/chat": 1e9}, seed=1)


@pytest.mark.data
def test_the_public_clients_and_blocks_are_read() -> None:
    """Checked where the data lies beside the checkout; the formats above are checked everywhere."""
    folder = Path(os.environ.get("PENSTOCK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "traces"
    if not (folder / "servegen" / "m-small").is_dir() or not (folder / "mooncake_synthetic.jsonl").exists():
        print("the traces are not here; nothing to compare with")
        return
    windows = [window for file in client_files(folder / "servegen" / "m-small") for window in load_client(file)]
    start_s = busiest_start_s(folder / "servegen" / "m-small", 600.0)
    expected = sum(600.0 * w.requests_per_s for w in windows if w.start_s == start_s)
    arrivals = servegen_arrivals_s(folder / "servegen" / "m-small", start_s=start_s, duration_s=600.0, seed=1)
    assert abs(len(arrivals) - expected) <= len(client_files(folder / "servegen" / "m-small"))
    trace = load_trace(folder / "mooncake_synthetic.jsonl")
    assert len(trace) == 3_993
    assert all(len(r.block_ids) == -(-r.prompt_tokens // 512) for r in trace)
    workload = workload_of({"a/b": trace})
    assert int(workload.block_starts[-1]) == len(workload.block_ids) == sum(len(r.block_ids) for r in trace)
