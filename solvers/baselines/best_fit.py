"""Plain Kubernetes: each deployment on the GPU class its user picked, counts by an autoscaler, nodes by best fit.

Imitates

- the HorizontalPodAutoscaler (Kubernetes documentation, "Algorithm details"): replicas rise until each one's load is
  at its target, here the load at which its SLOs hold in a pool of that size;
- the scheduler with NodeResourcesFit scored by MostAllocated (documentation, "Resource Bin Packing"), pods in order of
  their PriorityClass: each goes to the node with the fewest free GPUs that holds it, and those of a service that
  must be spread evenly over locations, as topologySpreadConstraints ask.

Differs from them: mixed replicas wherever the service allows them, as engines run by default; and a replica that a
power domain has no watts for stays pending. Kubernetes knows nothing of watts and would have started it.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from solvers.baselines.deployments import deployments
from solvers.baselines.stage import Stage
from solvers.fleet import ANYWHERE, Node
from solvers.plan import Plan
from solvers.planner.pools.options import PoolOption
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity
from solvers.workload import ServedModel

NAME = "best_fit"


def best_fit(problem: Problem, *, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Scale every deployment by its load and put its replicas on the fullest nodes that hold them.

    Raises
    ------
    InvalidInput
        The problem itself is malformed.
    """
    stage = Stage.of(problem, capacity_of)
    scheduler = _Scheduler.of(problem)
    for deployment in deployments(stage, lambda way: len(way) == 1):
        for option, count in zip(deployment.way, deployment.replicas, strict=True):
            if deployment.service.is_spread:
                stage.place(deployment.service, option, count)
            else:
                scheduler.schedule(stage, deployment.service, option, count)
    return stage.write(NAME)


@dataclass(slots=True, kw_only=True)
class _Scheduler:
    """Nodes of every class by the GPUs they have free; names inside a level are sorted."""

    levels: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem) -> _Scheduler:
        made = cls()
        for node in sorted(problem.nodes, key=lambda n: n.name):
            made.nodes[node.name] = node
            made.levels.setdefault(node.gpu_class, {}).setdefault(node.gpus_usable, []).append(node.name)
        return made

    def schedule(self, stage: Stage, service: ServedModel, option: PoolOption, count: int) -> None:
        """Bind up to so many pods, one by one; the rest stays pending."""
        refused = {node.location for node in self.nodes.values() if not service.allows_location(node.location)}
        for _ in range(min(count, stage.spare_in_role(service, option.pool.role))):
            if not self._bind(stage, option, refused):
                return

    def _bind(self, stage: Stage, option: PoolOption, refused: set[str]) -> bool:
        """Put one pod on the fullest node that holds it, where its feeds have watts; locations without are noted."""
        levels = self.levels.get(option.pool.gpu_class, {})
        for free in sorted(level for level, names in levels.items() if level >= option.gpus and names):
            for node in (self.nodes[name] for name in levels[free]):
                if node.location in refused:
                    continue
                where = ANYWHERE if option.is_anywhere else node.location
                bay = stage.room.bays[node.location, node.gpu_class]
                if stage.room.take(option.pool, where, 1, bay):
                    levels[free].remove(node.name)
                    insort(levels.setdefault(free - option.gpus, []), node.name)
                    stage.add(option.pool, where, 1)
                    return True
                refused.add(node.location)
        return False
