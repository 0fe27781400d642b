"""Which power domains feed each node: direct members by labels, and every ancestor above them.

A domain that is in a cycle, or below one, or below a parent that does not exist, cannot prove that everything above
its nodes holds: they take no new replicas until it is mended. What is known of budgets is still kept to: only the
domains of a cycle are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from controller.resources import PowerDomainSpec
from controller.specs import READY, Fault
from solvers.fleet import PowerDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerGraph:
    """The graph without its cycles, and what hangs on a broken part.

    Attributes
    ----------
    domains : mapping of name to PowerDomain
        Without those in a cycle, sorted by name; parents that are not among them are left out too.
    of_node : mapping of node to tuple of str
        Domains that feed the node, ancestors included, sorted.
    unproven : mapping of node to str
        Nodes that a broken domain feeds, with its name.
    """

    domains: Mapping[str, PowerDomain]
    of_node: Mapping[str, tuple[str, ...]]
    unproven: Mapping[str, str]
    faults: tuple[Fault, ...]


def resolve(specs: Iterable[PowerDomainSpec], node_labels: Mapping[str, Mapping[str, str]]) -> PowerGraph:
    """Resolve the graph.

    Parameters
    ----------
    specs : iterable of PowerDomainSpec
        Domains with their parents and the labels of their direct members.
    node_labels : mapping of node to labels
        The nodes to resolve.
    """
    by_name = {spec.domain.name: spec for spec in sorted(specs, key=lambda spec: spec.domain.name)}
    parents = {name: spec.domain.parents for name, spec in by_name.items()}
    cycles = {name: cycle for name in by_name if (cycle := _cycle(name, parents))}
    broken = _broken(parents, cycles)
    feeds = {name: _closure(name, parents) for name in by_name}
    by_label = _by_first_label(by_name.values())
    members = {node: _direct(labels, by_label) for node, labels in sorted(node_labels.items())}
    reach = {node: sorted(set().union(*(feeds[domain] for domain in direct))) for node, direct in members.items()}
    return PowerGraph(
        domains={name: _without(cycles, spec.domain, by_name) for name, spec in by_name.items() if name not in cycles},
        of_node={node: tuple(d for d in domains if d not in cycles) for node, domains in reach.items()},
        unproven={node: bad[0] for node in reach if (bad := [d for d in reach[node] if d in broken])},
        faults=tuple(_fault(name, *broken[name], _count(name, reach)) for name in sorted(broken)),
    )


def _without(cycles: Container[str], domain: PowerDomain, known: Container[str]) -> PowerDomain:
    parents = tuple(parent for parent in domain.parents if parent in known and parent not in cycles)
    return domain if parents == domain.parents else replace(domain, parents=parents)


def _closure(name: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    """The domain and all above it that exist."""
    found, queue = {name}, [name]
    while queue:
        for parent in parents[queue.pop()]:
            if parent in parents and parent not in found:
                found.add(parent)
                queue.append(parent)
    return found


Label = tuple[str, str]


def _by_first_label(specs: Iterable[PowerDomainSpec]) -> dict[Label, list[PowerDomainSpec]]:
    """Index the selectors by one label each: a thousand racks times a thousand nodes are too many to try them all."""
    found: dict[Label, list[PowerDomainSpec]] = defaultdict(list)
    for spec in specs:
        if spec.node_selector:
            found[min(spec.node_selector.items())].append(spec)
    return found


def _direct(labels: Mapping[str, str], by_label: Mapping[Label, Sequence[PowerDomainSpec]]) -> list[str]:
    """Domains that the labels make a node a direct member of."""
    candidates = (spec for label in labels.items() for spec in by_label.get(label, ()))
    return [spec.domain.name for spec in candidates if spec.node_selector.items() <= labels.items()]


def _broken(parents: Mapping[str, Sequence[str]], cycles: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    """Domains that prove too little: name → (problem, remedy)."""
    broken: dict[str, tuple[str, str]] = {}
    for name in sorted(parents):
        unknown = [parent for parent in parents[name] if parent not in parents]
        if name in cycles:
            broken[name] = f"cycle {' → '.join(cycles[name])}", "remove one of these parents"
        elif unknown:
            broken[name] = f"there is no PowerDomain {', '.join(unknown)}", "create it or remove it from parents"
    for name in sorted(parents.keys() - broken.keys()):
        above = sorted((_closure(name, parents) - {name}) & broken.keys())
        if above:
            broken[name] = f"hangs below PowerDomain/{above[0]}, which is broken", f"mend PowerDomain/{above[0]}"
    return broken


def _cycle(start: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    """The shortest way from a domain up to itself, empty when there is none."""
    came_from: dict[str, str] = {}
    queue = [start]
    for name in queue:
        for parent in sorted(parents[name]):
            if parent == start:
                return _way(start, name, came_from)
            if parent in parents and parent not in came_from:
                came_from[parent] = name
                queue.append(parent)
    return []


def _way(start: str, last: str, came_from: Mapping[str, str]) -> list[str]:
    way = [last]
    while way[-1] != start:
        way.append(came_from[way[-1]])
    return [*reversed(way), start]


def _count(domain: str, reach: Mapping[str, Sequence[str]]) -> int:
    return sum(domain in domains for domains in reach.values())


def _fault(name: str, problem: str, remedy: str, nodes: int) -> Fault:
    effect = f"; no new replicas on its nodes ({nodes})" if nodes else ""
    return Fault(
        subject=f"PowerDomain/{name}", field="spec.parents", problem=problem + effect, remedy=remedy, condition=READY
    )
