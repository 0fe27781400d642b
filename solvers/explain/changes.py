"""Changes to a problem that one may ask about: what would it cost without this GPU, these watts, this service?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from solvers.errors import InvalidInput
from solvers.fleet import Node
from solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveGpus:
    """So many GPUs of one node fail: replicas may not hold them any more; their idle draw stays.

    The node of the class at the location that has most GPUs to give loses them, the last by name among equals.
    """

    gpu_class: str
    location: str
    gpus: int = 1

    def __str__(self) -> str:
        return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} {self.gpu_class} at {self.location} less"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveWatts:
    """The budget of a power domain is cut."""

    domain: str
    watts: float = 1000.0

    def __str__(self) -> str:
        return f"{self.watts / 1000.0:g} kW at {self.domain} less"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveService:
    """A service goes, and what it held is free."""

    service: str

    def __str__(self) -> str:
        return f"without {self.service}"


Change = RemoveGpus | RemoveWatts | RemoveService


def changed(problem: Problem, change: Change) -> Problem:
    """Apply a change.

    Raises
    ------
    InvalidInput
        It names what is not there, or takes more than there is.
    """
    return _APPLY[type(change)](problem, change)


def is_loss(change: Change) -> bool:
    """True when every plan for the changed problem would do for the one before."""
    return not isinstance(change, RemoveService)


def _without_gpus(problem: Problem, change: RemoveGpus) -> Problem:
    nodes = [n for n in problem.nodes if n.gpu_class == change.gpu_class and n.location == change.location]
    most = max((node.gpus_usable for node in nodes), default=0)
    where = f"{change.gpu_class} at {change.location}"
    if not 0 < change.gpus <= most:
        raise InvalidInput("change", "gpus", f"takes {change.gpus} of {most} GPUs of a node, {where}", "take fewer")
    name = max(node.name for node in nodes if node.gpus_usable == most)

    def less(node: Node) -> Node:
        return replace(node, gpus_usable=node.gpus_usable - change.gpus) if node.name == name else node

    return replace(problem, nodes=tuple(map(less, problem.nodes)))


def _without_watts(problem: Problem, change: RemoveWatts) -> Problem:
    domain = problem.domains.get(change.domain)
    if domain is None or not 0.0 < change.watts <= domain.budget_watts:
        held = "no such power domain" if domain is None else f"its budget is {domain.budget_watts:,.0f} W"
        raise InvalidInput(
            f"PowerDomain/{change.domain}", "", f"cannot lose {change.watts:,.0f} W: {held}", "take less"
        )
    cut = replace(domain, budget_watts=domain.budget_watts - change.watts)
    return replace(problem, domains={**problem.domains, change.domain: cut})


def _without_service(problem: Problem, change: RemoveService) -> Problem:
    if change.service not in problem.demands or all(s.name != change.service for s in problem.services):
        known = ", ".join(sorted(s.name for s in problem.services)) or "none"
        raise InvalidInput(f"ServedModel/{change.service}", "", "is not planned", f"planned are: {known}")
    return replace(
        problem,
        services=tuple(s for s in problem.services if s.name != change.service),
        demands={name: demand for name, demand in problem.demands.items() if name != change.service},
    )


_APPLY: Mapping[type[Any], Callable[[Problem, Any], Problem]] = MappingProxyType({
    RemoveGpus: _without_gpus,
    RemoveWatts: _without_watts,
    RemoveService: _without_service,
})  # fmt: skip
