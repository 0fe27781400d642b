"""Policies that the online placer is measured against, small and as published.

Each is ``choose(task) -> row or None`` over the same room, in numpy over all hosts at once. Random fit, best fit and
dot product score as the simulator released with Weng et al. (USENIX ATC 2023) does: CPU and GPU, each over the most
that a host can have. A part of a GPU comes from the tightest gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from solvers.packing.fragmentation import Floats, Ints, Mix, Task, UsableByOne
from solvers.packing.online import Host, OnlinePlacer, Room, Scores, options

MOST_CPU_MILLI, MOST_GPU_MILLI = 128000.0, 8000.0
Choice = tuple[int, int]
"""Row of the host, and the least gap to take GPUs from."""


def tightest(room: Room, task: Task, row: int) -> Choice:
    return row, max(task.gpu_milli, 1)


def scored(score: Callable[[Room, Task, Ints], Floats]) -> Callable[[Room, Task], Choice | None]:
    """A policy that takes the host with the largest score, the first one of equals."""

    def choose(room: Room, task: Task) -> Choice | None:
        rows = room.able(task, np.arange(len(room.hosts)))
        return tightest(room, task, int(rows[np.argmax(score(room, task, rows))])) if len(rows) else None

    return choose


def random_fit(rng: np.random.Generator) -> Callable[[Room, Task], Choice | None]:
    return scored(lambda room, task, rows: rng.random(len(rows)))


def _best_fit(room: Room, task: Task, rows: Ints) -> Floats:
    """Least is left over."""
    cpu = (room.cpu_milli[rows] - task.cpu_milli) / MOST_CPU_MILLI
    gpu = (room.gaps[rows].sum(axis=1) - task.total_milli) / MOST_GPU_MILLI
    return np.asarray(-(cpu + gpu) / 2)


def _dot_product(room: Room, task: Task, rows: Ints) -> Floats:
    """What is asked along what is free, small first: Tetris' alignment turned to packing, as released."""
    cpu = room.cpu_milli[rows] * task.cpu_milli / MOST_CPU_MILLI**2
    gpu = room.gaps[rows].sum(axis=1) * task.total_milli / MOST_GPU_MILLI**2
    return np.asarray(-(cpu + gpu))


best_fit = scored(_best_fit)
dot_product = scored(_dot_product)


class ScoredFgd:
    """Fragmentation gradient descent as released: a score of 0 to 100 by a sigmoid of the descent, ties by lot.

    The steepest descent itself, ties to the first host, is ``OnlinePlacer`` with ``UsableByOne``: it allocates less.
    Scores are kept from task to task as there.
    """

    def __init__(self, hosts: list[Host], expected: Mapping[Task, float], rng: np.random.Generator) -> None:
        self.placer = OnlinePlacer(hosts, expected, value=lambda mix: UsableByOne(mix=mix))
        self.rng = rng

    def choose(self, room: Room, task: Task) -> Choice | None:
        return _by_lot(self.placer.scores(task), task, self.rng)

    @property
    def room(self) -> Room:
        return self.placer.room


class PlainFgd:
    """The same, with every feasible host scored anew for every task, as published: numpy over hosts and kinds."""

    def __init__(self, hosts: list[Host], expected: Mapping[Task, float], rng: np.random.Generator) -> None:
        self.room = Room(hosts)
        self.value = UsableByOne(mix=Mix.of(expected, self.room.models))
        self.rng = rng

    def choose(self, room: Room, task: Task) -> Choice | None:
        rows = room.able(task, np.arange(len(room.hosts)))
        if not len(rows):
            return None
        before = np.zeros(len(room.hosts))
        before[rows] = self.value(room.states(rows))
        which, least, after = options(room, task, rows)
        loss = before[which] - self.value(after)
        best, gap = np.full(len(room.hosts), np.inf), np.zeros(len(room.hosts), dtype=np.int64)
        order = np.lexsort((least, loss, which))[::-1]  # the best option of a host is written last
        best[which[order]], gap[which[order]] = loss[order], least[order]
        return _by_lot(Scores(best, gap), task, self.rng)


def _by_lot(scores: Scores, task: Task, rng: np.random.Generator) -> Choice | None:
    able = np.flatnonzero(np.isfinite(scores.loss))
    if not len(able):
        return None
    descent = -(scores.loss[able] - task.total_milli)  # fall of fragmentation: free room falls by what is taken
    points = np.floor(100.0 / (1.0 + np.exp(-descent / 1000.0)))
    row = int(rng.choice(able[points == points.max()]))
    return row, int(scores.gap[row])
