"""Change a problem as a WhatIf request asks; the request's wrong fields are named all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from controller import placement_pb2 as pb
from solvers.errors import PenstockError
from solvers.fleet import GpuClass, Node, PowerDomain
from solvers.problem import Problem
from solvers.workload import Demand

MAX_CHANGES = 1000  # of each kind in one request
MAX_REQUESTS_PER_S = 1e7
MAX_FACTOR_RATIO = 1000.0
MAX_WATTS = 1e10
MAX_USD_PER_HOUR = 1e5
MAX_NODES = 20_000  # added or taken away at one location
MAX_GPUS_PER_NODE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One wrong field of a request and what would be right."""

    field: str
    description: str


class BadRequest(PenstockError):
    """Fields of a request are wrong; ``violations`` names each."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))


class _Wrong:
    """Collects violations, so that a caller learns of all of them in one answer."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def say(self, field: str, description: str) -> None:
        self.violations.append(FieldViolation(field=field, description=description))

    def number(self, field: str, value: float, most: float) -> bool:
        """Claim that ``value`` is a number between 0 and ``most``."""
        fits = math.isfinite(value) and 0.0 <= value <= most
        if not fits:
            self.say(field, f"is {value:g}; must be between 0 and {most:g}")
        return fits

    def known(self, field: str, kind: str, name: str, names: Iterable[str]) -> bool:
        """Claim that ``name`` is one of ``names``."""
        listed = sorted(names)
        if name not in listed:
            some = ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
            self.say(field, f"no {kind} is called {name!r}; known: {some or 'none'}")
        return name in listed

    def once(self, field: str, key: object, seen: set[object]) -> bool:
        """Claim that ``key`` was not changed before in the same request."""
        if key in seen:
            self.say(field, "is changed twice; keep one of the changes")
        is_new = key not in seen
        seen.add(key)
        return is_new


def changed_problem(problem: Problem, request: pb.WhatIfRequest) -> Problem:
    """Build the problem that a request describes.

    Parameters
    ----------
    problem : Problem
        The one behind the plan in force.
    request : WhatIfRequest
        What is to be different.

    Returns
    -------
    Problem
        With the changes; what runs stays as it is.

    Raises
    ------
    BadRequest
        When fields name nothing that exists, are out of range, or contradict each other.
    """
    wrong = _Wrong()
    _check_lengths(request, wrong)
    changed = replace(
        problem,
        demands=_demands(problem, request.demands, wrong),
        domains=_budgets(problem, request.budgets, wrong),
        gpu_classes=_prices(problem, request.prices, wrong),
        nodes=_nodes(problem, request, wrong),
    )
    if wrong.violations:
        raise BadRequest(wrong.violations)
    return changed


def _check_lengths(request: pb.WhatIfRequest, wrong: _Wrong) -> None:
    for field in ("demands", "budgets", "nodes", "prices", "removed_nodes"):
        count = len(getattr(request, field))
        if count > MAX_CHANGES:
            wrong.say(field, f"has {count} entries; at most {MAX_CHANGES}")


def _demands(problem: Problem, changes: Sequence[pb.DemandChange], wrong: _Wrong) -> dict[str, Demand]:
    demands, seen = dict(problem.demands), set[object]()
    for i, change in enumerate(changes):
        field = f"demands[{i}]"
        if not wrong.known(f"{field}.service", "service", change.service, problem.demands):
            continue
        if wrong.once(f"{field}.service", change.service, seen):
            now = problem.demands[change.service]
            demands[change.service] = replace(
                now,
                requests_per_s=_new_rate(now.requests_per_s, change, field, wrong),
                source="WhatIf",
            )
    return demands


def _new_rate(now_per_s: float, change: pb.DemandChange, field: str, wrong: _Wrong) -> float:
    match change.WhichOneof("change"):
        case "requests_per_s":
            wrong.number(f"{field}.requests_per_s", change.requests_per_s, MAX_REQUESTS_PER_S)
            return change.requests_per_s
        case "factor_ratio":
            wrong.number(f"{field}.factor_ratio", change.factor_ratio, MAX_FACTOR_RATIO)
            return now_per_s * change.factor_ratio
        case _:
            wrong.say(field, "changes nothing; set requests_per_s or factor_ratio")
            return now_per_s


def _budgets(problem: Problem, changes: Sequence[pb.BudgetChange], wrong: _Wrong) -> dict[str, PowerDomain]:
    domains, seen = dict(problem.domains), set[object]()
    for i, change in enumerate(changes):
        field = f"budgets[{i}]"
        wrong.number(f"{field}.budget_watts", change.budget_watts, MAX_WATTS)
        is_known = wrong.known(f"{field}.domain", "power domain", change.domain, problem.domains)
        if is_known and wrong.once(f"{field}.domain", change.domain, seen):
            domains[change.domain] = replace(problem.domains[change.domain], budget_watts=change.budget_watts)
    return domains


def _prices(problem: Problem, changes: Sequence[pb.PriceChange], wrong: _Wrong) -> dict[str, GpuClass]:
    classes, seen = dict(problem.gpu_classes), set[object]()
    for i, change in enumerate(changes):
        field = f"prices[{i}]"
        wrong.number(f"{field}.price_usd_per_hour", change.price_usd_per_hour, MAX_USD_PER_HOUR)
        is_known = wrong.known(f"{field}.gpu_class", "GPU class", change.gpu_class, problem.gpu_classes)
        if is_known and wrong.once(f"{field}.gpu_class", change.gpu_class, seen):
            price = change.price_usd_per_hour
            classes[change.gpu_class] = replace(problem.gpu_classes[change.gpu_class], price_usd_per_hour=price)
    return classes


def _nodes(problem: Problem, request: pb.WhatIfRequest, wrong: _Wrong) -> tuple[Node, ...]:
    names = {node.name for node in problem.nodes}
    for i, name in enumerate(request.removed_nodes):
        wrong.known(f"removed_nodes[{i}]", "node", name, names)
    gone = set(request.removed_nodes)
    nodes = [node for node in problem.nodes if node.name not in gone]
    seen: set[object] = set()
    for i, change in enumerate(request.nodes):
        field = f"nodes[{i}]"
        is_known = wrong.known(f"{field}.gpu_class", "GPU class", change.gpu_class, problem.gpu_classes)
        if is_known and wrong.once(field, (change.gpu_class, change.location), seen):
            nodes = _with_change(problem, nodes, change, field, wrong)
    return tuple(sorted(nodes, key=lambda node: node.name))


def _with_change(problem: Problem, nodes: list[Node], change: pb.NodesChange, field: str, wrong: _Wrong) -> list[Node]:
    if change.nodes == 0 or abs(change.nodes) > MAX_NODES:
        wrong.say(f"{field}.nodes", f"is {change.nodes}; must be between 1 and {MAX_NODES}, or as many below 0")
        return nodes
    if change.nodes < 0:
        return _without_last(nodes, change, field, wrong)
    return nodes + _added(problem, nodes, change, field, wrong)


def _without_last(nodes: list[Node], change: pb.NodesChange, field: str, wrong: _Wrong) -> list[Node]:
    there = sorted(n.name for n in nodes if (n.gpu_class, n.location) == (change.gpu_class, change.location))
    if len(there) < -change.nodes:
        where = f"{change.gpu_class} at {change.location!r}"
        wrong.say(f"{field}.nodes", f"takes {-change.nodes} away of {len(there)} nodes of {where}; take fewer")
    gone = set(there[change.nodes :])
    return [node for node in nodes if node.name not in gone]


def _added(problem: Problem, nodes: list[Node], change: pb.NodesChange, field: str, wrong: _Wrong) -> list[Node]:
    gpus = _gpus_per_node(nodes, change, field, wrong)
    domains = _feeding(problem, nodes, change, field, wrong)
    stem = f"what-if-{change.gpu_class}-{change.location}"
    return [
        Node(
            name=f"{stem}-{i}",
            gpu_class=change.gpu_class,
            location=change.location,
            gpus_total=gpus,
            gpus_usable=gpus,
            domains=domains,
        )
        for i in range(change.nodes)
    ]


def _gpus_per_node(nodes: Sequence[Node], change: pb.NodesChange, field: str, wrong: _Wrong) -> int:
    if change.gpus_per_node:
        if not 1 <= change.gpus_per_node <= MAX_GPUS_PER_NODE:
            wrong.say(f"{field}.gpus_per_node", f"is {change.gpus_per_node}; at most {MAX_GPUS_PER_NODE}, 1 or more")
        return change.gpus_per_node
    alike = [node for node in nodes if node.gpu_class == change.gpu_class]
    like = _first(alike, lambda node: node.location == change.location) or _first(alike, lambda _: True)
    if like is None:
        wrong.say(f"{field}.gpus_per_node", f"must be set: the fleet has no node of {change.gpu_class} to be like")
        return 0
    return like.gpus_total


def _feeding(
    problem: Problem, nodes: Sequence[Node], change: pb.NodesChange, field: str, wrong: _Wrong
) -> tuple[str, ...]:
    if change.domains:
        listed = enumerate(change.domains)
        are_known = [wrong.known(f"{field}.domains[{i}]", "power domain", d, problem.domains) for i, d in listed]
        return with_ancestors(change.domains, problem.domains) if all(are_known) else ()
    neighbour = _first(nodes, lambda node: node.location == change.location)
    if neighbour is None:
        wrong.say(f"{field}.domains", f"must be set: no node is at {change.location!r} to share its feeds with")
        return ()
    return neighbour.domains


def with_ancestors(names: Iterable[str], domains: Mapping[str, PowerDomain]) -> tuple[str, ...]:
    """Close a set of power domains under their parents, sorted; unknown parents are left out."""
    closed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in closed and name in domains:
            closed.add(name)
            waiting += domains[name].parents
    return tuple(sorted(closed))


def _first(nodes: Sequence[Node], is_wanted: Callable[[Node], bool]) -> Node | None:
    return next((node for node in sorted(nodes, key=lambda n: n.name) if is_wanted(node)), None)
