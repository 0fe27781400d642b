"""What a namespace may hold together, as rows that every stage shares: the model, the ledger of room, the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from solvers.fleet import GpuClass, PoolKey
from solvers.power import worst_watts
from solvers.problem import Problem

GPUS, POWER = "quota_gpus", "quota_power"
"""Names of the two limits."""

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaRow:
    """One number of one quota: ``most`` GPUs, or kW."""

    limit: str
    subject: str
    namespace: str
    gpu_class: str
    most: float

    def use(self, pool: PoolKey, gpu_classes: Mapping[str, GpuClass]) -> float:
        """What one replica of the pool takes of it; 0 where the quota does not count."""
        if pool.namespace != self.namespace or self.gpu_class not in ("", pool.gpu_class):
            return 0.0
        gpus = pool.config.gpus
        return float(gpus) if self.limit == GPUS else worst_watts(gpu_classes[pool.gpu_class], gpus) / 1000.0


def quota_rows(problem: Problem) -> tuple[QuotaRow, ...]:
    """Write the policy's quotas down as rows, sorted."""
    rows = []
    for quota in problem.policy.quotas:
        who = {"namespace": quota.namespace, "gpu_class": quota.gpu_class}
        subject = f"{quota.namespace} {quota.gpu_class}".strip()
        if quota.max_gpus is not None:
            rows.append(QuotaRow(limit=GPUS, subject=subject, most=float(quota.max_gpus), **who))
        if quota.max_watts is not None:
            rows.append(QuotaRow(limit=POWER, subject=subject, most=quota.max_watts / 1000.0, **who))
    return tuple(sorted(rows, key=lambda row: (row.limit, row.subject)))


@dataclass(slots=True, kw_only=True)
class QuotaLedger:
    """What is left of every quota as replicas are taken in; ``used`` runs along ``rows``."""

    rows: tuple[QuotaRow, ...]
    used: list[float]
    gpu_classes: Mapping[str, GpuClass]
    _uses: dict[PoolKey, tuple[tuple[int, float], ...]]

    @classmethod
    def of(cls, problem: Problem) -> QuotaLedger:
        rows = quota_rows(problem)
        return cls(rows=rows, used=[0.0] * len(rows), gpu_classes=problem.gpu_classes, _uses={})

    def copy(self) -> QuotaLedger:
        """The same ledger to try something in."""
        return replace(self, used=list(self.used))

    def uses(self, pool: PoolKey) -> tuple[tuple[int, float], ...]:
        """(row, what one replica takes) of every quota that counts the pool."""
        if pool not in self._uses:
            pairs = ((index, row.use(pool, self.gpu_classes)) for index, row in enumerate(self.rows))
            self._uses[pool] = tuple((index, use) for index, use in pairs if use > 0.0)
        return self._uses[pool]

    def room(self, pool: PoolKey, count: int) -> int:
        """Replicas of the pool, up to ``count``, that the quotas still allow."""
        for index, use in self.uses(pool):
            left = self.rows[index].most - self.used[index]
            count = min(count, max(0, int(left / use + ROUNDING * max(1.0, left / use))))
        return count

    def take(self, pool: PoolKey, count: int) -> None:
        for index, use in self.uses(pool):
            self.used[index] += count * use

    def tight(self, pool: PoolKey) -> list[tuple[QuotaRow, float]]:
        """Quotas that allow not one more replica of the pool, with what is used of them."""
        return [
            (self.rows[index], self.used[index])
            for index, use in self.uses(pool)
            if self.used[index] + use > self.rows[index].most * (1.0 + ROUNDING) + ROUNDING
        ]
