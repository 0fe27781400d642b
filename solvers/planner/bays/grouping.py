"""Bays (the nodes of one class at one location) and their grouping: what is interchangeable is counted once.

Grouping is colour refinement over the graph of bays and power domains. It ends in an equitable partition: every bay
of one colour holds the same free GPUs and charges the same number of domains of each colour. Averaging a solution over
the members of each colour keeps every limit, so the linear relaxation over groups is worth exactly what it is worth
over bays, and the integer model over groups bounds the one over bays from below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from solvers.derived import derived
from solvers.fleet import ANYWHERE, Node
from solvers.planner.bays.reclaim import OWNED, Reclaims, Terms
from solvers.planner.bays.shelves import Shelf, Wants
from solvers.power import base_watts, ceiling_watts, charged_domains, nodes_by_domain
from solvers.problem import Problem
from solvers.spans import node_sizes, nodes_taken, whole_nodes

LOCATION = "location "  # of no power domain's name, so that both can be vertices of one graph
LINK = "link "  # likewise
WATT_TOLERANCE = 1e-3  # far below the draw of one GPU; sums of a million watts round at 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bay:
    """The nodes of one GPU class at one location; replicas inside are packed by the scheduler.

    Attributes
    ----------
    free : tuple of int
        GPUs that our replicas may hold on each node, descending, zeros left out.
    charged : tuple of str
        Limiting power domains that any node of the bay draws from.
    node_gpus : int
        GPUs of a whole node of the class.
    islands : tuple of int
        Whole nodes on each island of two or more, descending: what replicas larger than a node stand on.
    shelf : Shelf or None
        The nodes one by one, where something beside GPUs may run out.
    """

    location: str
    gpu_class: str
    free: tuple[int, ...]
    charged: tuple[str, ...]
    node_gpus: int
    islands: tuple[int, ...] = ()
    shelf: Shelf | None = None
    terms: Terms = OWNED

    @property
    def key(self) -> tuple[str, str]:
        return self.location, self.gpu_class

    def slots(self, gpus: int) -> int:
        """Replicas of so many GPUs that fit when nothing else is there."""
        if gpus > self.node_gpus:
            span = nodes_taken(gpus, self.node_gpus)
            return sum(whole // span for whole in self.islands)
        return sum(free // gpus for free in self.free)


@dataclass(frozen=True, slots=True, kw_only=True)
class BayGroup:
    """Interchangeable bays, members sorted."""

    gpu_class: str
    bays: tuple[Bay, ...]

    def slots(self, gpus: int) -> int:
        return len(self.bays) * self.bays[0].slots(gpus)

    @property
    def label(self) -> str:
        first = self.bays[0]
        more = f"+{len(self.bays) - 1}" if len(self.bays) > 1 else ""
        return f"{first.location}{more}/{self.gpu_class}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainGroup:
    """Interchangeable power domains. ``room_watts`` is what replicas may add to idle draw in each member."""

    domains: tuple[str, ...]
    room_watts: float

    @property
    def label(self) -> str:
        return self.domains[0] + (f"+{len(self.domains) - 1}" if len(self.domains) > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """The fleet as the model sees it.

    Attributes
    ----------
    charges : mapping of (group, domain group) to int
        Domains of the domain group that one replica in a bay of the group charges.
    class_charges : mapping of (gpu class, domain group) to int
        The same for a replica that may land on any node of its class.
    sites : tuple of int
        Locations in each class of interchangeable locations; empty where no service spreads.
    group_site : tuple of int
        The class of locations that each group lies in: every location of it has as many bays of the group.
    links : tuple of tuple of str
        Names of the links in each class of interchangeable links.
    group_link : tuple of int
        The class of links that each group hangs on, -1 for none.
    """

    groups: tuple[BayGroup, ...]
    domain_groups: tuple[DomainGroup, ...]
    charges: Mapping[tuple[int, int], int]
    class_charges: Mapping[tuple[str, int], int]
    sites: tuple[int, ...] = ()
    group_site: tuple[int, ...] = ()
    links: tuple[tuple[str, ...], ...] = ()
    group_link: tuple[int, ...] = ()

    def counted(self) -> Callable[[int, int], int]:
        """Replicas of so many GPUs that fit in a group, by (group, GPUs), each counted once."""
        return cache(lambda group, gpus: self.groups[group].slots(gpus))


def limited_bays(problem: Problem) -> tuple[Bay, ...]:
    """Bays with the domains that can bind; looked for once for each problem."""
    return derived(problem, _limited_bays)


def _limited_bays(problem: Problem) -> tuple[Bay, ...]:
    return find_bays(problem, domain_rooms(problem))


def find_bays(problem: Problem, limiting: Collection[str]) -> tuple[Bay, ...]:
    """Split the nodes with free GPUs into bays, sorted by location and class."""
    members: dict[tuple[str, str], list[Node]] = {}
    reclaims, sizes = Reclaims.of(problem), node_sizes(problem.nodes)
    wants = Wants.of(problem, sizes)
    for node in sorted(problem.nodes, key=lambda n: n.name):
        members.setdefault((node.location, node.gpu_class), []).append(node)
    return tuple(
        Bay(
            location=location,
            gpu_class=gpu_class,
            free=tuple(sorted((n.gpus_usable for n in nodes if n.gpus_usable > 0), reverse=True)),
            charged=tuple(sorted({d for n in nodes for d in n.domains if d in limiting})),
            node_gpus=sizes[gpu_class],
            islands=whole_nodes(nodes, problem.gpu_classes[gpu_class], sizes[gpu_class]),
            shelf=wants.shelf(problem, nodes, sizes[gpu_class]),
            terms=reclaims.terms.get((location, gpu_class), OWNED),
        )
        for (location, gpu_class), nodes in sorted(members.items())
        if any(n.gpus_usable > 0 for n in nodes)
    )


def domain_rooms(problem: Problem) -> dict[str, float]:
    """Watts that replicas may add in each domain that can bind; domains that even full GPUs cannot fill are left out.

    A budget below the idle draw of its GPUs leaves no room (0), never less: switching GPUs off is not ours to do.
    """
    return dict(derived(problem, _domain_rooms))


def _domain_rooms(problem: Problem) -> dict[str, float]:
    rooms = {}
    for name, nodes in nodes_by_domain(problem.nodes).items():
        domain = problem.domains.get(name)
        if domain is None or ceiling_watts(nodes, problem.gpu_classes) <= domain.usable_watts + WATT_TOLERANCE:
            continue
        rooms[name] = max(0.0, domain.usable_watts - base_watts(nodes, problem.gpu_classes))
    return rooms


def group_bays(
    problem: Problem, sizes: Mapping[str, Collection[int]], *, split_running: bool = True, one_by_one: bool = False
) -> Grouping:
    """Group bays and power domains that no limit can tell apart.

    Parameters
    ----------
    sizes : mapping of gpu class to collection of int
        Group sizes (GPUs of one replica) that may be placed on the class.
    split_running : bool
        Tell bays apart by what runs there. Without it the churn of a group is counted in sum, which is a lower bound.
    one_by_one : bool
        Leave every bay in a group of its own.
    """
    rooms = domain_rooms(problem)
    bays = [bay for bay in limited_bays(problem) if sizes.get(bay.gpu_class)]
    running = _running_by_bay(problem) if split_running else {}
    marks = _marks(problem, {bay.location for bay in bays})
    seeds: list[tuple[object, ...]] = [
        (bay.key,) if one_by_one else _seed(bay, sizes[bay.gpu_class], running.get(bay.key, ()), marks[bay.location])
        for bay in bays
    ]
    locations = _spread_over(problem, bays)
    links = _links(problem)
    hangs_on = {at: LINK + link.name for link in problem.policy.kv_links for at in link.locations if links}
    touched = [(*bay.charged, *_vertices(bay.location, locations, hangs_on)) for bay in bays]
    bay_colours, colours = _refine(touched, seeds, {**_domain_seeds(problem, rooms), **locations, **links})
    grouping = _collect(problem, bays, rooms, bay_colours, {d: colours[d] for d in rooms})
    if links:
        grouping = _with_links(grouping, links, hangs_on, colours)
    return _with_sites(grouping, locations, colours) if locations else grouping


def _seed(bay: Bay, sizes: Collection[int], running: object, marks: object) -> tuple[object, ...]:
    """What tells a bay from another, whatever it hangs on."""
    slots = tuple(bay.slots(size) for size in sorted(sizes))
    return bay.gpu_class, slots, running, marks, bay.terms, bay.shelf and bay.shelf.outline


def _vertices(at: str, locations: Mapping[str, object], hangs_on: Mapping[str, str]) -> Iterator[str]:
    """Vertices that a bay at a location touches beside its power domains."""
    if LOCATION + at in locations:
        yield LOCATION + at
    if at in hangs_on:
        yield hangs_on[at]


def _with_sites(grouping: Grouping, locations: Collection[str], colours: Mapping[str, int]) -> Grouping:
    """Say of every group which class of locations it lies in, and how many there are of each."""
    order = sorted({colours[location] for location in locations})
    members = [sum(colours[location] == colour for location in locations) for colour in order]
    sites = [order.index(colours[LOCATION + group.bays[0].location]) for group in grouping.groups]
    return replace(grouping, sites=tuple(members), group_site=tuple(sites))


def _spread_over(problem: Problem, bays: list[Bay]) -> dict[str, object]:
    """Locations as vertices of their own, where what a location holds of all classes matters."""
    if not any(service.is_spread or service.pairs_locally for service in problem.services):
        return {}
    return {LOCATION + location: (LOCATION,) for location in sorted({bay.location for bay in bays})}


def _links(problem: Problem) -> dict[str, object]:
    """Links as vertices of their own, where services may cross them."""
    if not any(service.has_pairs and service.kv_may_cross for service in problem.services):
        return {}
    links = sorted(problem.policy.kv_links, key=lambda link: link.name)
    return {LINK + link.name: (LINK, link.bytes_per_s, link.usd_per_terabyte) for link in links}


def _with_links(
    grouping: Grouping, links: Mapping[str, object], hangs_on: Mapping[str, str], colours: Mapping[str, int]
) -> Grouping:
    """Say which classes of links there are, and which one each group of bays hangs on."""
    order = sorted({colours[link] for link in links})
    members = [tuple(link.removeprefix(LINK) for link in links if colours[link] == colour) for colour in order]
    at = (hangs_on.get(group.bays[0].location) for group in grouping.groups)
    of_group = tuple(-1 if link is None else order.index(colours[link]) for link in at)
    return replace(grouping, links=tuple(members), group_link=of_group)


def _marks(problem: Problem, locations: Collection[str]) -> dict[str, tuple[object, ...]]:
    """What services say of locations by name: those that may use it, of those that may not use all; and pins."""
    picky = sorted((s.name, s.locations) for s in problem.services if s.locations)
    pinned = {pin.location for s in problem.services for pin in s.pins}
    return {
        at: (tuple(name for name, able in picky if at in able), at if at in pinned else "") for at in sorted(locations)
    }


def _running_by_bay(problem: Problem) -> dict[tuple[str, str], tuple[object, ...]]:
    held: dict[tuple[str, str], list[object]] = {}
    for (pool, location), count in sorted(problem.running.items()):
        if count and location != ANYWHERE:
            held.setdefault((location, pool.gpu_class), []).append((str(pool), count))
    return {key: tuple(values) for key, values in held.items()}


def _domain_seeds(problem: Problem, rooms: Mapping[str, float]) -> dict[str, object]:
    """What tells a domain apart by itself: its room and the classes that reach it from anywhere."""
    reach = {g: set(charged_domains(problem.nodes, g, ANYWHERE)) for g in sorted(problem.gpu_classes)}
    return {
        d: (round(room / WATT_TOLERANCE), tuple(g for g, domains in reach.items() if d in domains))
        for d, room in sorted(rooms.items())
    }


def _refine(
    touched: list[tuple[str, ...]], bay_seeds: list[tuple[object, ...]], seeds: Mapping[str, object]
) -> tuple[list[int], dict[str, int]]:
    """Refine colours until neither side splits any more; returns a colour per bay and per domain (or location).

    Parameters
    ----------
    touched : list of tuple of str
        Domains and locations that each bay hangs on.
    """
    members: dict[str, list[int]] = {d: [] for d in seeds}
    for index, domains in enumerate(touched):
        for domain in domains:
            members[domain].append(index)
    bay_colours = _ranks(bay_seeds)
    domain_colours = dict(zip(seeds, _ranks(list(seeds.values())), strict=True))
    while True:
        parts = len(set(bay_colours)), len(set(domain_colours.values()))
        domain_colours = dict(
            zip(
                seeds,
                _ranks([(domain_colours[d], tuple(sorted(bay_colours[i] for i in members[d]))) for d in seeds]),
                strict=True,
            )
        )
        bay_colours = _ranks(
            [(bay_colours[i], tuple(sorted(domain_colours[d] for d in near))) for i, near in enumerate(touched)]
        )
        if parts == (len(set(bay_colours)), len(set(domain_colours.values()))):
            return bay_colours, domain_colours


def _ranks(values: Iterable[object]) -> list[int]:
    """Number the distinct values in order of first appearance, which is sorted order of the members."""
    seen: dict[object, int] = {}
    return [seen.setdefault(value, len(seen)) for value in values]


def _collect(
    problem: Problem,
    bays: list[Bay],
    rooms: Mapping[str, float],
    bay_colours: list[int],
    domain_colours: Mapping[str, int],
) -> Grouping:
    by_bay: dict[int, list[Bay]] = {}
    for bay, colour in zip(bays, bay_colours, strict=True):
        by_bay.setdefault(colour, []).append(bay)
    by_domain: dict[int, list[str]] = {}
    for domain, colour in domain_colours.items():
        by_domain.setdefault(colour, []).append(domain)
    groups = tuple(BayGroup(gpu_class=b[0].gpu_class, bays=tuple(b)) for b in by_bay.values())
    order = {colour: index for index, colour in enumerate(by_domain)}
    classes = sorted({g.gpu_class for g in groups})
    return Grouping(
        groups=groups,
        domain_groups=tuple(DomainGroup(domains=tuple(d), room_watts=rooms[d[0]]) for d in by_domain.values()),
        charges=Counter((i, order[domain_colours[d]]) for i, g in enumerate(groups) for d in g.bays[0].charged),
        class_charges=Counter(
            (g, order[domain_colours[d]])
            for g in classes
            for d in charged_domains(problem.nodes, g, ANYWHERE)
            if d in domain_colours
        ),
    )
