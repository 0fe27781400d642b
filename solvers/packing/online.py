"""Tasks onto hosts one by one as they come, without moving any: keep what the tasks to come can use.

Every task goes where the expected use of the host's free GPUs falls least (ties: the first host). The score of a kind
of task on a host changes only when the host does, so scores are kept, and only those of hosts that changed since the
kind was last seen are computed again, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.errors import InvalidInput
from solvers.packing.fragmentation import (
    WHOLE_MILLI,
    Floats,
    Ints,
    Mix,
    States,
    Task,
    UsableByMany,
    UsableByOne,
    Value,
    check_task,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a host has in all."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a task runs: the host, and the indices of its GPUs."""

    host: str
    gpus: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Scores:
    """Loss of one kind of task on every host (infinite where it does not fit), and the gap it would take from."""

    loss: Floats
    gap: Ints
    seen_at: int = -1


class Room:
    """What hosts have free. Gaps of a host are kept in rising order, with the index of the GPU of each."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        _check_hosts(hosts)
        widest = max(max(host.gpus for host in hosts), 1)
        self.hosts = tuple(hosts)
        self.models = tuple(sorted({host.model for host in hosts}))
        self.cpu_milli = np.array([host.cpu_milli for host in hosts], float)
        self.memory_mib = np.array([host.memory_mib for host in hosts], float)
        self.gpu_of = np.tile(np.arange(widest), (len(hosts), 1))
        self.gaps = np.array([[WHOLE_MILLI * (g < host.gpus) for g in range(widest)] for host in hosts], dtype=np.int64)
        self.model = np.array([self.models.index(host.model) for host in hosts])
        self.capacity_milli = WHOLE_MILLI * sum(host.gpus for host in hosts)
        for row in range(len(hosts)):
            self._sort(row)

    def states(self, rows: Ints) -> States:
        return States(
            cpu_milli=self.cpu_milli[rows],
            memory_mib=self.memory_mib[rows],
            gaps=self.gaps[rows],
            model=self.model[rows],
        )

    def able(self, task: Task, rows: Ints) -> Ints:
        """Those of the rows on which the task fits."""
        fits = (self.cpu_milli[rows] >= task.cpu_milli) & (self.memory_mib[rows] >= task.memory_mib)
        if task.gpus:
            fits &= (self.gaps[rows] >= task.gpu_milli).sum(axis=1) >= task.gpus
        if task.models:
            fits &= np.isin(self.model[rows], [m for m, name in enumerate(self.models) if name in task.models])
        return np.asarray(rows[fits])

    def take(self, row: int, task: Task, gap: int) -> Spot:
        """Take the task in; ``gap`` is the least gap that it may use."""
        where = np.flatnonzero(self.gaps[row] >= gap)[: task.gpus]
        gpus = tuple(sorted(int(g) for g in self.gpu_of[row][where]))
        self._change(row, task, gpus, -1)
        return Spot(host=self.hosts[row].name, gpus=gpus)

    def give_back(self, row: int, task: Task, gpus: tuple[int, ...]) -> None:
        self._change(row, task, gpus, +1)

    def _change(self, row: int, task: Task, gpus: tuple[int, ...], sign: int) -> None:
        self.cpu_milli[row] += sign * task.cpu_milli
        self.memory_mib[row] += sign * task.memory_mib
        self.gaps[row] += sign * task.gpu_milli * np.isin(self.gpu_of[row], gpus)
        self._sort(row)

    def _sort(self, row: int) -> None:
        order = np.lexsort((self.gpu_of[row], self.gaps[row]))
        self.gaps[row], self.gpu_of[row] = self.gaps[row][order], self.gpu_of[row][order]


def _check_hosts(hosts: Sequence[Host]) -> None:
    if not hosts:
        raise InvalidInput("fleet", "", "has no hosts", "give at least one")
    names = [host.name for host in hosts]
    if len(set(names)) < len(names):
        twice = min(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"Host/{twice}", "name", "is given twice", "give every host a name of its own")
    for host in hosts:
        for field in ("cpu_milli", "memory_mib", "gpus"):
            value = getattr(host, field)
            if not 0 <= value < 2**53:
                raise InvalidInput(f"Host/{host.name}", field, f"is {value!r}", "give a whole number of 0 or more")


class OnlinePlacer:
    """Place tasks one by one on the hosts, and let them go again.

    Parameters
    ----------
    hosts : sequence of Host
    expected : mapping of Task to float
        How often each kind is seen, in any unit: a count over the last weeks will do. Kinds that are not in it may
        still come.
    value : callable, optional
        From the mix to a value of states; ``UsableByMany`` by default, ``UsableByOne`` for fragmentation gradient
        descent.

    Raises
    ------
    InvalidInput
        Hosts or kinds make no sense; the error names them.
    """

    def __init__(
        self, hosts: Sequence[Host], expected: Mapping[Task, float], *, value: Callable[[Mix], Value] | None = None
    ) -> None:
        self.room = Room(hosts)
        mix = Mix.of(expected, self.room.models)
        self._value: Value = value(mix) if value else UsableByMany(mix=mix)
        self._by_one = UsableByOne(mix=mix)
        self._row = {host.name: row for row, host in enumerate(hosts)}
        self._now = self._value(self.room.states(np.arange(len(hosts))))
        self._changed_at = np.zeros(len(hosts), dtype=np.int64)
        self._clock = 0
        self._scores: dict[Task, Scores] = {}
        self._running: dict[str, tuple[Task, Spot]] = {}

    @property
    def running(self) -> Mapping[str, tuple[Task, Spot]]:
        """Tasks that were placed and not released, by name."""
        return self._running

    def place(self, name: str, task: Task) -> Spot | None:
        """Give the task its place; None when it fits nowhere.

        Raises
        ------
        InvalidInput
            The task makes no sense, or one of that name is running.
        """
        check_task(task, f"Task/{name}")
        if name in self._running:
            raise InvalidInput(f"Task/{name}", "", "is running already", "release it first, or give it another name")
        scores = self.scores(task)
        row = int(np.argmin(scores.loss))
        if not np.isfinite(scores.loss[row]):
            return None
        return self._take(name, task, row, int(scores.gap[row]))

    def place_at(self, name: str, task: Task, row: int) -> Spot:
        """Give the task its best place on one host, on which it must fit."""
        return self._take(name, task, row, int(self.scores(task).gap[row]))

    def release(self, name: str) -> None:
        """Let a running task go."""
        if name not in self._running:
            raise InvalidInput(f"Task/{name}", "", "is not running", "release what was placed, once")
        task, spot = self._running.pop(name)
        row = self._row[spot.host]
        self.room.give_back(row, task, spot.gpus)
        self._touch(row)

    def allocated_ratio(self) -> float:
        """Share of the fleet's GPU room that running tasks hold, 0-1."""
        return 1.0 - float(self.room.gaps.sum()) / max(self.room.capacity_milli, 1)

    def fragmented_ratio(self) -> float:
        """Share of the fleet's GPU room that is free and of no use to the next task, expected over the mix, 0-1."""
        states = self.room.states(np.arange(len(self.room.hosts)))
        lost = states.free_milli() - self._by_one(states)
        return float(lost.sum()) / max(self.room.capacity_milli, 1)

    def scores(self, task: Task) -> Scores:
        """Loss of value on every host for a task of this kind."""
        rows = len(self.room.hosts)
        scores = self._scores.setdefault(task, Scores(np.full(rows, np.inf), np.zeros(rows, dtype=np.int64)))
        stale = np.flatnonzero(self._changed_at > scores.seen_at)
        if len(stale):
            self._renew(scores, task, stale)
        scores.seen_at = self._clock
        return scores

    def _take(self, name: str, task: Task, row: int, gap: int) -> Spot:
        spot = self.room.take(row, task, gap)
        self._running[name] = (task, spot)
        self._touch(row)
        return spot

    def _touch(self, row: int) -> None:
        self._clock += 1
        self._changed_at[row] = self._clock
        self._now[row] = self._value(self.room.states(np.array([row])))[0]

    def _renew(self, scores: Scores, task: Task, stale: Ints) -> None:
        scores.loss[stale] = np.inf
        rows = self.room.able(task, stale)
        if not len(rows):
            return
        which, least, after = options(self.room, task, rows)
        loss = self._now[which] - self._value(after)
        order = np.lexsort((least, loss, which))  # the best option of each host first
        best = order[np.r_[True, which[order][1:] != which[order][:-1]]]
        scores.loss[which[best]], scores.gap[which[best]] = loss[best], least[best]


def options(room: Room, task: Task, rows: Ints) -> tuple[Ints, Ints, States]:
    """Every different way of taking the task in: host, least gap it uses, state after.

    A part of one GPU may come from any gap; tasks of several GPUs take the tightest gaps that suffice.
    """
    gaps = room.gaps[rows]
    if task.gpus == 1:
        first = np.c_[np.ones(len(rows), bool), gaps[:, 1:] != gaps[:, :-1]]  # equal gaps are one option
        host, at = np.nonzero((gaps >= task.gpu_milli) & first)
        gaps = gaps[host]
        least = gaps[np.arange(len(host)), at]
        gaps[np.arange(len(host)), at] -= task.gpu_milli
        rows = rows[host]
    else:
        enough = gaps >= max(task.gpu_milli, 1)
        taken = enough & (np.cumsum(enough, axis=1) <= task.gpus)
        least = np.full(len(rows), task.gpu_milli)
        gaps = gaps - task.gpu_milli * taken
    after = States(
        cpu_milli=room.cpu_milli[rows] - task.cpu_milli,
        memory_mib=room.memory_mib[rows] - task.memory_mib,
        gaps=gaps,
        model=room.model[rows],
    )
    return rows, least, after
