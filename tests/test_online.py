"""Tasks are placed one by one, never over what a host has, refused only when they fit nowhere, and let go again."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from solvers.errors import InvalidInput
from solvers.packing import Host, OnlinePlacer, Spot, Task, UsableByMany, UsableByOne
from solvers.packing.fragmentation import Mix, States
from tests import bench_openb
from tests.bench_openb import arrivals, run_seed
from tests.placement_baselines import PlainFgd, ScoredFgd

KINDS = [
    Task(cpu_milli=3000, memory_mib=4000, gpus=1, gpu_milli=810),
    Task(cpu_milli=2000, memory_mib=8000, gpus=1, gpu_milli=190),
    Task(cpu_milli=2000, memory_mib=2000, gpus=1, gpu_milli=470),
    Task(cpu_milli=11000, memory_mib=30000, gpus=1),
    Task(cpu_milli=18000, memory_mib=30000, gpus=1),
    Task(cpu_milli=16000, memory_mib=60000, gpus=2, models=("G2",)),
    Task(cpu_milli=40000, memory_mib=90000, gpus=8),
    Task(cpu_milli=4000, memory_mib=9000, gpus=2, gpu_milli=300),
    Task(cpu_milli=12000, memory_mib=9000),
]


def made_hosts(rng: np.random.Generator, count: int) -> list[Host]:
    sizes = [(8, 96000, 393216, "G2"), (2, 104000, 524288, "T4"), (4, 32000, 131072, "V100"), (1, 8000, 32768, "T4")]
    drawn = [sizes[int(rng.integers(len(sizes)))] for _ in range(count)]
    return [
        Host(name=f"n{i}", gpus=gpus, cpu_milli=cpu, memory_mib=memory, model=model)
        for i, (gpus, cpu, memory, model) in enumerate(drawn)
    ]


def made_tasks(rng: np.random.Generator, count: int) -> list[Task]:
    return [KINDS[int(rng.integers(len(KINDS)))] for _ in range(count)]


class Books:
    """What is free, kept apart from the placer."""

    def __init__(self, hosts: list[Host]) -> None:
        self.models = {h.name: h.model for h in hosts}
        self.cpu, self.memory = {h.name: h.cpu_milli for h in hosts}, {h.name: h.memory_mib for h in hosts}
        self.gaps = {h.name: [1000] * h.gpus for h in hosts}

    def fits(self, task: Task, host: str) -> bool:
        gaps = sum(gap >= task.gpu_milli for gap in self.gaps[host])
        enough = self.cpu[host] >= task.cpu_milli and self.memory[host] >= task.memory_mib
        return enough and (task.gpus == 0 or gaps >= task.gpus) and task.allows(self.models[host])

    def change(self, task: Task, spot: Spot, sign: int) -> None:
        self.cpu[spot.host] += sign * task.cpu_milli
        self.memory[spot.host] += sign * task.memory_mib
        for gpu in spot.gpus:
            self.gaps[spot.host][gpu] += sign * task.gpu_milli


@pytest.mark.parametrize("seed", range(8))
def test_no_host_is_overfull_and_what_fits_is_placed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hosts, tasks = made_hosts(rng, 6), made_tasks(rng, 150)
    placer, books = OnlinePlacer(hosts, Counter(tasks)), Books(hosts)
    refused = 0
    for number, task in enumerate(tasks):
        spot = placer.place(str(number), task)
        if spot is None:
            refused += 1
            assert not any(books.fits(task, host.name) for host in hosts)
        else:
            assert books.fits(task, spot.host)
            assert len(set(spot.gpus)) == task.gpus
            books.change(task, spot, -1)
            assert min([0, *books.gaps[spot.host]]) >= 0
        if rng.random() < 0.2 and placer.running:
            name = sorted(placer.running)[int(rng.integers(len(placer.running)))]
            books.change(*placer.running[name], +1)
            placer.release(name)
    assert refused > 0
    left = sum(sum(gaps) for gaps in books.gaps.values())
    assert placer.allocated_ratio() == pytest.approx(1 - left / (1000 * sum(h.gpus for h in hosts)))


@pytest.mark.parametrize("seed", range(4))
def test_scores_that_were_kept_are_those_computed_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hosts, tasks = made_hosts(rng, 8), made_tasks(rng, 60)
    kept = OnlinePlacer(hosts, Counter(KINDS))
    placed = [(str(n), task) for n, task in enumerate(tasks) if kept.place(str(n), task)]
    anew = OnlinePlacer(hosts, Counter(KINDS))
    for name, task in placed:
        anew.place_at(name, task, [h.name for h in hosts].index(kept.running[name][1].host))
    for kind in KINDS:
        np.testing.assert_allclose(kept.scores(kind).loss, anew.scores(kind).loss, atol=1e-5)


def test_everything_released_leaves_the_fleet_empty() -> None:
    rng = np.random.default_rng(3)
    hosts, tasks = made_hosts(rng, 5), made_tasks(rng, 40)
    placer = OnlinePlacer(hosts, Counter(tasks))
    first = [placer.place(str(n), task) for n, task in enumerate(tasks)]
    for name in list(placer.running):
        placer.release(name)
    assert placer.allocated_ratio() == 0.0
    assert [placer.place(str(n), task) for n, task in enumerate(tasks)] == first


def test_kinds_that_were_not_expected_are_placed_too() -> None:
    placer = OnlinePlacer(
        [Host(name="a", cpu_milli=9, memory_mib=9, gpus=1)], {Task(cpu_milli=1, memory_mib=1, gpus=1): 1}
    )
    assert placer.place("x", Task(cpu_milli=2, memory_mib=2, gpus=1, gpu_milli=7)) == Spot(host="a", gpus=(0,))


def state(cpu_milli: float, gaps: list[int]) -> States:
    return States(
        cpu_milli=np.array([cpu_milli]), memory_mib=np.array([1e9]), gaps=np.array([gaps]), model=np.array([0])
    )


MIX = Mix.of(
    {
        Task(cpu_milli=1000, memory_mib=0, gpus=1, gpu_milli=500): 1.0,
        Task(cpu_milli=4000, memory_mib=0, gpus=2): 1.0,
        Task(cpu_milli=1000, memory_mib=0): 2.0,
    },
    ("any",),
)


def test_what_one_task_can_use_is_as_by_hand() -> None:
    # a quarter of tasks uses gaps of 500 and more, a quarter needs two whole GPUs and their CPU, half needs no GPU
    value = UsableByOne(mix=MIX)
    assert value(state(8000, [400, 600, 1000]))[0] == pytest.approx(0.25 * 1600)
    assert value(state(8000, [400, 1000, 1000]))[0] == pytest.approx(0.25 * 2000 + 0.25 * 2000)
    assert value(state(2000, [400, 1000, 1000]))[0] == pytest.approx(0.25 * 2000)
    assert value(state(0, [1000, 1000, 1000]))[0] == 0.0


def test_what_many_tasks_can_use_is_bounded_by_the_cpu_beside_it() -> None:
    value = UsableByMany(mix=MIX, cpu_slack_ratio=1.0)
    assert value(state(8000, [400, 1000, 1000]))[0] == pytest.approx(0.25 * 2000 + 0.25 * 2000)
    assert value(state(4000, [0, 1000, 1000, 1000, 1000]))[0] == pytest.approx(0.25 * 2000 + 0.25 * 2000)
    assert value(state(2000, [0, 1000, 1000, 1000, 1000]))[0] == pytest.approx(0.25 * 1000)


@pytest.mark.parametrize("seed", range(3))
def test_fgd_with_scores_kept_decides_as_fgd_that_scores_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hosts, tasks = made_hosts(rng, 12), made_tasks(rng, 120)
    plain = PlainFgd(hosts, Counter(tasks), np.random.default_rng(7))
    kept = ScoredFgd(hosts, Counter(tasks), np.random.default_rng(7))
    for number, task in enumerate(tasks):
        choice = plain.choose(plain.room, task)
        assert kept.choose(kept.room, task) == choice
        if choice is not None:
            plain.room.take(choice[0], task, choice[1])
            kept.placer.place_at(str(number), task, choice[0])


def test_on_a_made_fleet_more_is_allocated_than_by_the_baselines() -> None:
    rng = np.random.default_rng(0)
    hosts, tasks = made_hosts(rng, 60), made_tasks(rng, 500)
    runs = [run for seed in range(3) for run in run_seed(hosts, tasks, seed, plain=False)]
    mean = {
        name: np.mean([run.allocated_ratio for run in runs if run.policy == name])
        for name in ("random fit", "best fit", "FGD, scores kept", "ours")
    }
    assert mean["ours"] > mean["FGD, scores kept"] > mean["random fit"]
    assert mean["ours"] > mean["best fit"]


def test_arrivals_ask_for_as_much_as_they_should() -> None:
    rng = np.random.default_rng(0)
    hosts = made_hosts(rng, 20)
    asked = sum(task.total_milli for task in arrivals(hosts, KINDS, 1))
    capacity = 1000 * sum(host.gpus for host in hosts)
    assert 1.3 * capacity <= asked <= 1.3 * capacity + 8000


GOOD = Host(name="a", cpu_milli=1, memory_mib=1, gpus=1)
ONE = Task(cpu_milli=1, memory_mib=1, gpus=1)


@pytest.mark.parametrize(
    ("hosts", "expected", "says"),
    [
        ([], {ONE: 1.0}, "has no hosts"),
        ([GOOD, GOOD], {ONE: 1.0}, "Host/a name: is given twice"),
        ([Host(name="b", cpu_milli=-1, memory_mib=1, gpus=1)], {ONE: 1.0}, "Host/b cpu_milli: is -1"),
        ([GOOD], {ONE: 0.0}, "weight: is 0.0"),
        ([GOOD], {ONE: float("nan")}, "weight: is nan"),
        ([GOOD], {Task(cpu_milli=1, memory_mib=1): 1.0}, "none needs a GPU"),
        ([GOOD], {Task(cpu_milli=1, memory_mib=1, gpus=1, gpu_milli=1001): 1.0}, "gpu_milli: is 1001"),
    ],
)
def test_what_makes_no_sense_is_named(hosts: list[Host], expected: dict[Task, float], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        OnlinePlacer(hosts, expected)


def test_a_name_runs_once() -> None:
    placer = OnlinePlacer([GOOD], {ONE: 1.0})
    assert placer.place("x", ONE) is not None
    with pytest.raises(InvalidInput, match="is running already"):
        placer.place("x", ONE)
    with pytest.raises(InvalidInput, match="is not running"):
        placer.release("y")


def test_the_benchmark_says_what_data_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench_openb"])
    with pytest.raises(SystemExit, match="set PENSTOCK_DATA"):
        bench_openb.main()


@pytest.mark.data
def test_on_openb_more_is_allocated_than_by_best_fit() -> None:
    folder = bench_openb.data_folder()
    if not (folder / bench_openb.NODES).exists():
        pytest.skip(f"{folder} holds no {bench_openb.NODES}")
    hosts, tasks = bench_openb.read_hosts(folder / bench_openb.NODES), bench_openb.read_tasks(folder / bench_openb.PODS)
    placer = OnlinePlacer(hosts, Counter(tasks))
    for number, task in enumerate(arrivals(hosts, tasks, 4)):
        placer.place(str(number), task)
    assert placer.allocated_ratio() > 0.954
