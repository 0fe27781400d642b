"""Watts three ways: reserved (worst case of all that exists or is asked for), planned, measured.

Reserved is the only one that safety rests on. It never counts less than the fleet could draw: a replica on a node is
charged to the domains of that node, one without a node (pending, or asked for and not seen yet) to every domain that
feeds a node where it could land, one that is leaving as long as it exists, one on a lost node as long as the node may
still be powered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from solvers.fleet import ANYWHERE, Node, PoolKey, Replica, ReplicaState, Snapshot
from solvers.plan import Plan
from solvers.power import base_watts, ceiling_watts, extra_watts, nodes_by_domain
from solvers.spans import node_sizes, nodes_taken

SLACK_WATTS = 1e-3  # rounding of sums of floats; far below what any replica draws


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainBalance:
    """One power domain, counted three ways.

    Attributes
    ----------
    usable_watts : float
        Budget less headroom less the domain's fixed draw.
    reserved_watts, planned_watts : float
        Idle GPUs included, fixed draw not.
    measured_watts : float or None
        Sum of the meters of its nodes; None when one of them has no reading ("zero" and "absent" differ).
    """

    domain: str
    budget_watts: float
    usable_watts: float
    reserved_watts: float
    planned_watts: float
    measured_watts: float | None

    @property
    def is_over(self) -> bool:
        """True when the worst case of what exists or is asked for exceeds what may be used."""
        return self.reserved_watts > self.usable_watts + SLACK_WATTS


class WattBook:
    """A working account of reserved watts: replicas are charged to it and released from it one by one."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._classes = snapshot.gpu_classes
        nodes = tuple(_with_lost_replicas(snapshot))
        members = nodes_by_domain(nodes)
        self._ceiling = {domain: ceiling_watts(inside, self._classes) for domain, inside in members.items()}
        self._charged = {domain: base_watts(inside, self._classes) for domain, inside in members.items()}
        self._of_node = {node.name: node.domains for node in nodes}
        self._sizes = node_sizes(nodes)
        self._of_place = _domains_by_place(nodes)

    def domains_of(self, replica: Replica) -> tuple[str, ...]:
        """Domains that the replica draws from, or could when it has no known node yet; sorted."""
        known = [name for name in replica.nodes if name in self._of_node]
        of_nodes = (self._of_node[name] for name in known)
        if len(known) == nodes_taken(replica.pool.config.gpus, self._sizes.get(replica.pool.gpu_class, 0)):
            return next(of_nodes) if len(known) == 1 else tuple(sorted({d for domains in of_nodes for d in domains}))
        somewhere = self.domains_at(replica.pool, replica.location)
        return tuple(sorted({d for domains in (*of_nodes, somewhere) for d in domains})) if known else somewhere

    def domains_at(self, pool: PoolKey, location: str) -> tuple[str, ...]:
        """Domains of any node where a new replica could land, sorted."""
        return self._of_place.get((pool.gpu_class, location), ())

    def extra_watts(self, pool: PoolKey) -> float:
        """Watts that one replica adds at the class's highest cap."""
        return extra_watts(self._classes[pool.gpu_class], pool.config)

    def charge(self, replica: Replica, sign: int = 1) -> None:
        """Add one replica (or release it with ``sign`` −1); a lost one is in its node's held watts already."""
        if replica.state is ReplicaState.LOST and replica.node in self._of_node:
            return
        for domain in self.domains_of(replica):
            self._charged[domain] += sign * self.extra_watts(replica.pool)

    def reserved_watts(self, domain: str) -> float:
        """Worst case of one domain, never more than all of its GPUs at their highest cap."""
        return min(self._charged[domain], self._ceiling[domain])

    def after_watts(self, domain: str, more_watts: float) -> float:
        """Worst case of one domain after a further charge."""
        return min(self._charged[domain] + more_watts, self._ceiling[domain])

    def reserved(self) -> dict[str, float]:
        """Worst case by domain, sorted."""
        return {domain: self.reserved_watts(domain) for domain in self._charged}


def _with_lost_replicas(snapshot: Snapshot) -> Iterator[Node]:
    """Nodes whose held watts cover at least the replicas lost on them, whoever built the snapshot."""
    lost: dict[str, float] = defaultdict(float)
    for replica in snapshot.replicas:
        if replica.state is ReplicaState.LOST:
            for name in replica.nodes:
                lost[name] += extra_watts(snapshot.gpu_classes[replica.pool.gpu_class], replica.pool.config)
    for node in snapshot.nodes:
        held_watts = max(node.held_watts, lost[node.name])
        yield node if held_watts == node.held_watts else replace(node, held_watts=held_watts)


def _domains_by_place(nodes: Iterable[Node]) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for node in nodes:
        for location in {node.location, ANYWHERE}:
            found[node.gpu_class, location].update(node.domains)
    return {place: tuple(sorted(domains)) for place, domains in found.items()}


def unseen_replicas(snapshot: Snapshot) -> list[Replica]:
    """One nameless pending replica for each that is asked for and not seen yet, sorted by pool and location.

    A lost replica does not count as seen: its controller may replace it at any moment, while it still draws.
    """
    is_seen = {ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY}
    seen = Counter((r.pool, r.location) for r in snapshot.replicas if r.state in is_seen)
    return [
        Replica(name="", pool=pool, location=location, node=None, state=ReplicaState.PENDING)
        for (pool, location), count in sorted(snapshot.desired.items())
        for _ in range(count - seen[pool, location])
    ]


def reserved_now_watts(snapshot: Snapshot) -> dict[str, float]:
    """Sum the worst case of every power domain right now.

    Every replica counts, in whatever state; so does each one that a workload asks for and that was not seen yet.

    Returns
    -------
    dict of domain to float, W
        Sorted; idle GPUs included, the domain's fixed draw not (see ``PowerDomain.usable_watts``).
    """
    book = WattBook(snapshot)
    for replica in (*snapshot.replicas, *unseen_replicas(snapshot)):
        book.charge(replica)
    return book.reserved()


def measured_watts(snapshot: Snapshot, node_draw_watts: Mapping[str, float]) -> dict[str, float | None]:
    """Sum the meters of every domain's nodes; None where a node has no reading."""
    return {
        domain: None
        if any(node.name not in node_draw_watts for node in inside)
        else sum(node_draw_watts[node.name] for node in inside)
        for domain, inside in nodes_by_domain(snapshot.nodes).items()
    }


def balance(
    snapshot: Snapshot, plan: Plan | None = None, node_draw_watts: Mapping[str, float] | None = None
) -> tuple[DomainBalance, ...]:
    """Set the three counts beside each domain's budget, sorted by domain; domains without nodes draw nothing."""
    reserved = reserved_now_watts(snapshot)
    planned = {row.domain: row.planned_watts for row in plan.domains} if plan else {}
    measured = measured_watts(snapshot, node_draw_watts or {})
    return tuple(
        DomainBalance(
            domain=name,
            budget_watts=domain.budget_watts,
            usable_watts=domain.usable_watts,
            reserved_watts=reserved.get(name, 0.0),
            planned_watts=planned.get(name, 0.0),
            measured_watts=measured.get(name),
        )
        for name, domain in sorted(snapshot.domains.items())
    )
