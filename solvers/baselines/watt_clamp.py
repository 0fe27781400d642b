"""Every deployment by itself, its replicas from its load, then clamped to its own budget of watts.

Imitates the planner of NVIDIA Dynamo (documentation of its planner, "SLA-based" scaling): prefill and decode replicas
are what the expected load needs by the profiled throughput with the latencies kept, and when both together pass the
deployment's budget, they are scaled down in proportion, one of each at least. There the budget counts GPUs, in its
power-aware form watts at the GPUs' power limit; neither knows of other deployments, of racks or of tiers.

Differs from it: the watts of the fleet are shared out beforehand in proportion to what each deployment asks (there a
person writes the number), no smoothing over time, and when racks refuse replicas, both
roles shrink to what fits.
"""

from __future__ import annotations

from solvers.baselines.deployments import Deployment, deployments
from solvers.baselines.stage import Stage
from solvers.engine import EngineConfig
from solvers.plan import Plan
from solvers.planner.bays.grouping import domain_rooms
from solvers.power import extra_watts, nodes_by_domain
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity

NAME = "watt_clamp"


def watt_clamp(problem: Problem, *, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Size every deployment by its load and clamp it to its share of the fleet's watts.

    Raises
    ------
    InvalidInput
        The problem itself is malformed.
    """
    stage = Stage.of(problem, capacity_of)
    asked = deployments(stage, lambda way: len(way) > 1)
    total = sum(deployment.watts for deployment in asked)
    ratio = min(1.0, fleet_watts(problem) / total) if total > 0.0 else 1.0
    for deployment in asked:
        sizes = zip(deployment.way, _clamped(deployment, ratio * deployment.watts), strict=True)
        rate = min(stage.carried(option, count) for option, count in sizes)
        stage.place_way(deployment.service, deployment.way, min(rate, stage.missing_per_s(deployment.service)))
        stage.keep_floor(deployment.service, [deployment.way])
    return stage.write(NAME)


def fleet_watts(problem: Problem) -> float:
    """Watts that replicas may add to the idle draw, by the widest feed that limits each node.

    Nodes that no feed limits count with all their usable GPUs at the highest cap.
    """
    rooms = domain_rooms(problem)
    width = {name: len(nodes) for name, nodes in nodes_by_domain(problem.nodes).items()}
    widest, unlimited = set(), 0.0
    for node in problem.nodes:
        limiting = [domain for domain in node.domains if domain in rooms]
        if limiting:
            widest.add(min(limiting, key=lambda d: (-width[d], rooms[d], d)))
        else:
            unlimited += node.gpus_usable * extra_watts(problem.gpu_classes[node.gpu_class], EngineConfig())
    return unlimited + sum(rooms[domain] for domain in sorted(widest))


def _clamped(deployment: Deployment, budget_watts: float) -> list[int]:
    """Scale the first role in proportion and give the last what remains of the budget; one of each at least."""
    if deployment.watts <= budget_watts or deployment.watts <= 0.0:
        return list(deployment.replicas)
    scale, left, found = budget_watts / deployment.watts, budget_watts, list[int]()
    for option, count in zip(deployment.way[:-1], deployment.replicas[:-1], strict=True):
        found.append(max(min(1, count), int(count * scale)))
        left -= found[-1] * option.reserved_watts
    last, count = deployment.way[-1], deployment.replicas[-1]
    fits = int(max(0.0, left) // last.reserved_watts) if last.reserved_watts > 0.0 else count
    return [*found, max(min(1, count), min(count, fits))]
