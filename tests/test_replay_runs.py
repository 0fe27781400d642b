"""Many replays give the same numbers here, in processes and on a Dask cluster; the report stands alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from joblib import parallel_config
from joblib.parallel import ThreadingBackend, register_parallel_backend

from controller.cli import main

MINIMAL = Path(__file__).parents[1] / "deploy/samples/minimal"
WORDS = ("replay", "-f", str(MINIMAL), "--trace", "poisson:rate=3,duration=40")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([*WORDS, *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_processes_change_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    alone = said(capsys, "--seeds", 3, "--policy", "fixed,hpa", "-o", "json")
    together = said(capsys, "--seeds", 3, "--policy", "fixed,hpa", "-o", "json", "--jobs", 2)
    assert together == alone
    data = json.loads(alone[1])
    assert [(run["policy"], run["seed"]) for run in data["runs"]] == [
        (p, s) for p in ("fixed", "hpa") for s in (1, 2, 3)
    ]
    assert [group["seeds"] for group in data["comparison"]] == [3, 3]
    assert len({run["gpuSeconds"] for run in data["runs"]}) > 1
    assert [line.partition("]")[0] for line in alone[2].splitlines()] == [f"[{i}/6" for i in range(1, 7)]


@pytest.mark.filterwarnings("ignore")  # of the cluster's own making and closing
def test_a_dask_cluster_changes_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed")
    alone = said(capsys, "--seeds", 2, "-o", "json")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, host="127.0.0.1", protocol="tcp"
    ) as cluster:
        there = said(capsys, "--seeds", 2, "-o", "json", "--cluster", f"dask={cluster.scheduler_address}")
    assert there[:2] == alone[:2]


def test_several_traces_and_plans_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--trace", "gamma:rate=3,cv=2,duration=40")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["fixed", "poisson:rate=3,duration=40", "planned"],
        ["fixed", "gamma:rate=3,cv=2,duration=40", "planned"],
    ]


def test_a_report_is_one_page_with_plots_and_the_same_every_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    first, second = tmp_path / "one.html", tmp_path / "two.html"
    for path in (first, second):
        assert said(capsys, "--policy", "fixed,keda", "--report", path)[0] == 0
    page = first.read_text()
    assert page == second.read_text()
    assert page.count("<svg") == page.count("</svg>") >= 11
    assert not re.search(r"<script|<link|src=|@import", page)
    for words in ("Time to first token, default/chat", "TTFT (ms)", "SLO p95: 500 ms", "USD per hour", "time (s)"):
        assert words in page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--policy", "luck"), "--policy: 'luck' is unknown; use some of fixed, hpa, keda"),
        (("--policy", ","), "--policy: ',' is unknown"),
        (("--seeds", 0), "--seeds: is 0; give 1 or more"),
        (("--jobs", -1), "--jobs: is -1"),
        (("--window", 0), "--window: is 0.0"),
        (("--patience", -1), "--patience: is -1.0"),
        (("--cluster", "slurm"), "--cluster: 'slurm' is unknown; write dask=ADDRESS or ray=ADDRESS"),
        (("--report", "nowhere/r.html"), "--report: cannot be written"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], options: tuple[object, ...], says: str
) -> None:
    code, out, err = said(capsys, *options)
    assert (code, out) == (1, "")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("cluster", ["ray", "ray=127.0.0.1:1", "ray://127.0.0.1:1"])
def test_ray_is_asked_for_by_each_of_its_addresses_and_named_when_it_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    code, _, err = said(capsys, "--cluster", cluster)
    assert code == 1
    assert "--cluster: needs ray, which is not installed; pip install ray" in err


class ListsOnly(ThreadingBackend):  # type: ignore[misc]
    """A backend of joblib that, as Ray's, gives all answers at once."""

    supports_return_generator = False


def test_a_backend_that_cannot_stream_gives_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    register_parallel_backend("lists", ListsOnly)
    words = ("--seeds", 2, "--jobs", 2, "-o", "json")
    with parallel_config(backend="lists"):
        one = said(capsys, *words)
    assert one[:2] == said(capsys, *words)[:2]
