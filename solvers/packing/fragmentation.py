"""How much of a host's free GPU room the tasks to come can use: two values of a host's state, and what is lost.

A state is what a host has free: CPU, memory, and the free thousandths of each of its GPUs (its gaps). Both values are
expectations over the mix of tasks that is expected; both are computed for many states at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from solvers.errors import InvalidInput

WHOLE_MILLI = 1000
CPU_SLACK_RATIO = 1.5  # tuned on openb with seeds 0-3 (95.66 % of GPUs at 1, 95.94 at 1.5, 95.82 at 2), shown on others

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Task:
    """What one task asks of a host; equal tasks are of one kind.

    Attributes
    ----------
    cpu_milli, memory_mib : int
        Thousandths of a core and MiB.
    gpus : int
        GPUs of one host, 0 for a task without.
    gpu_milli : int
        Thousandths of each of them, 1000 for whole GPUs.
    models : tuple of str
        GPU models it may run on, sorted; empty for any.
    """

    cpu_milli: int
    memory_mib: int
    gpus: int = 0
    gpu_milli: int = WHOLE_MILLI
    models: tuple[str, ...] = ()

    @property
    def total_milli(self) -> int:
        """Thousandths of GPUs that it takes in all."""
        return self.gpus * self.gpu_milli

    def allows(self, model: str) -> bool:
        return not self.models or model in self.models


def check_task(task: Task, subject: str) -> None:
    """Raise ``InvalidInput`` when a task asks for less than nothing, or for more than a whole of a GPU."""
    for name in ("cpu_milli", "memory_mib", "gpus"):
        value = getattr(task, name)
        if not 0 <= value < 2**53:
            raise InvalidInput(subject, name, f"is {value!r}", "give a whole number of 0 or more")
    if task.gpus and not 1 <= task.gpu_milli <= WHOLE_MILLI:
        raise InvalidInput(
            subject, "gpu_milli", f"is {task.gpu_milli!r}", "ask for 1 to 1000 thousandths of each GPU, and more GPUs"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class States:
    """Free room of hosts. ``gaps`` are thousandths, (B, G); GPUs that are not there are gaps of 0."""

    cpu_milli: Floats
    memory_mib: Floats
    gaps: Ints
    model: Ints

    def free_milli(self) -> Floats:
        """Free thousandths of GPUs of each state, (B,)."""
        return np.asarray(self.gaps.sum(axis=1), float)


class Value(Protocol):
    """Expected thousandths of GPUs that tasks to come can use on each host, (B,)."""

    def __call__(self, states: States) -> Floats: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mix:
    """Kinds of tasks expected that need GPUs, as arrays over kinds ``t`` and over GPU sizes ``c`` that they share.

    ``weight[model, t]`` is the share of all expected tasks, 0 where the model is not allowed.
    """

    cpu_milli: Floats
    memory_mib: Floats
    gpus: Floats
    gpu_milli: Floats
    weight: Floats
    size_of: Ints
    per_gap: Floats

    @classmethod
    def of(cls, expected: Mapping[Task, float], models: Sequence[str]) -> Mix:
        """Count kinds by weight; ``models`` are the fleet's, in the order of ``States.model``.

        Raises
        ------
        InvalidInput
            If a weight is not positive and finite, or no kind needs a GPU: nothing could be told apart.
        """
        for task, weight in expected.items():
            check_task(task, "expected task")
            if not (np.isfinite(weight) and weight > 0):
                raise InvalidInput("expected task", "weight", f"is {weight!r}", "give how often it is seen")
        kinds = [task for task in sorted(expected) if task.gpus > 0]
        if not kinds:
            raise InvalidInput("expected tasks", "", "none needs a GPU", "give the tasks that the fleet is for")
        total = float(sum(expected[t] for t in sorted(expected)))
        shares = np.array([[expected[t] / total * t.allows(m) for t in kinds] for m in models])
        sizes = sorted({(t.gpus, t.gpu_milli) for t in kinds})
        return cls(
            cpu_milli=np.array([t.cpu_milli for t in kinds], float),
            memory_mib=np.array([t.memory_mib for t in kinds], float),
            gpus=np.array([t.gpus for t in kinds], float),
            gpu_milli=np.array([t.gpu_milli for t in kinds], float),
            weight=shares,
            size_of=np.array([sizes.index((t.gpus, t.gpu_milli)) for t in kinds]),
            per_gap=np.array([_tasks_per_gap(*size) for size in sizes]),
        )

    def weighted(self, amounts: Floats, states: States) -> Floats:
        """Expectation of ``amounts`` (B, T) over the mix that each state's model sees, (B,)."""
        if np.all(self.weight == self.weight[0]):
            return np.asarray(np.round(amounts @ self.weight[0], 6))
        return np.asarray(np.round(np.einsum("bt,bt->b", amounts, self.weight[states.model]), 6))

    def fits(self, states: States) -> npt.NDArray[np.bool_]:
        """Whether CPU and memory suffice for one task of each kind, (B, T)."""
        return (states.cpu_milli[:, None] >= self.cpu_milli) & (states.memory_mib[:, None] >= self.memory_mib)


def _tasks_per_gap(gpus: int, milli: int) -> Floats:
    """Tasks that a gap of 0 to 1000 thousandths has room for, fractions too; GPUs of a group count once."""
    gap = np.arange(WHOLE_MILLI + 1)
    return np.where(gap >= milli, gap / milli if gpus == 1 else 1.0 / gpus, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UsableByOne:
    r"""GPU room that one task of the mix could use: what fragmentation gradient descent keeps large.

    .. math:: U(s) = \sum_t p_t \, [t \text{ fits } s] \sum_{g:\, r_g \ge m_t} r_g

    Source: Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient
    Descent", USENIX ATC 2023, section 3; what is not usable is their fragmentation measure.
    """

    mix: Mix

    def __call__(self, states: States) -> Floats:
        sizes = self.mix.per_gap > 0.0  # (C, 1001)
        room = _over_gaps(sizes * np.arange(WHOLE_MILLI + 1.0), states.gaps)
        able = _over_gaps(self.mix.per_gap, states.gaps) >= 1.0 - 1e-9
        return self.mix.weighted((room * able)[:, self.mix.size_of] * self.mix.fits(states), states)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UsableByMany:
    r"""GPU room that a run of tasks of one kind could use, each kind with its share of the mix.

    .. math:: U(s) = \sum_t p_t \, k_t m_t \, [t \text{ fits } s] \,
              \min\Bigl(\sum_{g:\, r_g \ge m_t} \frac{r_g}{k_t m_t},\ \max\bigl(1, \beta\,\tfrac{c}{c_t}\bigr)\Bigr)

    CPU left over is worth something only while GPUs are left that need it, and GPUs only as far as the CPU beside them
    reaches; ``β`` says how much further it reaches because kinds that need less of it come along too.
    """

    mix: Mix
    cpu_slack_ratio: float = CPU_SLACK_RATIO

    def __call__(self, states: States) -> Floats:
        mix = self.mix
        tasks = _over_gaps(mix.per_gap, states.gaps)[:, mix.size_of]
        by_cpu = self.cpu_slack_ratio * states.cpu_milli[:, None] / np.maximum(mix.cpu_milli, 1e-3)
        able = (tasks >= 1.0 - 1e-9) & mix.fits(states)
        run = np.minimum(tasks, np.maximum(by_cpu, 1.0))
        return mix.weighted(run * able * (mix.gpus * mix.gpu_milli), states)


def _over_gaps(table: Floats, gaps: Ints) -> Floats:
    """Sum a function of the gap, (C, 1001), over the gaps of each state, (B, G) to (B, C)."""
    by_gap: Any = table.T[gaps]
    return np.asarray(by_gap.sum(axis=1))
