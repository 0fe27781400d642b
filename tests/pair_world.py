"""Large fleets where it matters which prefill replica hands keys and values to which decode replica, drawn by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from solvers.engine import Role
from solvers.fleet import Node
from solvers.pairing import Pairing
from solvers.planner.bays.links import TERABYTE, Links
from solvers.problem import KvLink, Problem
from tests import synthetic

SPLIT = (Role.PREFILL, Role.DECODE)
ROOMS = 4
EVERY = 3  # one service in so many has pairs that matter
BOUNDED = 0.1  # of all keys and values, what the links together carry out
COSTLY = 0.1  # of what the fleet costs, all keys and values over a link


def room_of(node: Node, rooms: int) -> str:
    """Rows in turn: a room has some of the designs."""
    return f"room-{int(node.location.split('-')[1]) % rooms}"


def with_rooms(problem: Problem, rooms: int = ROOMS) -> Problem:
    """Make each room a location of its own, with one budget."""
    nodes = tuple(
        replace(node, location=room_of(node, rooms), domains=(room_of(node, rooms), "site")) for node in problem.nodes
    )
    moved = replace(problem, nodes=nodes)
    return replace(moved, domains=synthetic.domains(moved, synthetic.POWER_RATIO))


def some_split(problem: Problem, *, may_cross: bool = True) -> Problem:
    """Let one service in three have prefill and decode replicas only."""
    services = tuple(
        replace(s, roles=SPLIT, kv_may_cross=may_cross) if i % EVERY == 0 else s for i, s in enumerate(problem.services)
    )
    return replace(problem, services=services)


def free(problem: Problem) -> Problem:
    """Racks as locations, and all may cross."""
    return some_split(problem)


def in_rooms(problem: Problem) -> Problem:
    """Rooms as locations that keys and values may not leave."""
    return some_split(with_rooms(problem), may_cross=False)


def in_racks(problem: Problem) -> Problem:
    """Racks as locations that keys and values may not leave."""
    return some_split(problem, may_cross=False)


def by_fabric(problem: Problem) -> Problem:
    """Every class of GPU with a fabric of its own."""
    classes = {name: replace(kind, kv_fabric=name) for name, kind in problem.gpu_classes.items()}
    return some_split(replace(problem, gpu_classes=classes))


def linked(problem: Problem, *, ratio: float, usd_ratio: float) -> Problem:
    """A link for each room of racks, carrying so much of all keys and values, priced by what the fleet costs."""
    problem = some_split(problem)
    racks: dict[str, set[str]] = {}
    for node in problem.nodes:
        racks.setdefault(room_of(node, ROOMS), set()).add(node.location)
    links = [KvLink(name=f"up-{room}", locations=tuple(sorted(at)), bytes_per_s=1.0) for room, at in racks.items()]
    asked = replace(problem, policy=replace(problem.policy, kv_links=tuple(links)))
    known = Links.of(asked, Pairing.of(asked))
    most = {name: max(size for (s, _), size in known.bytes_of.items() if s == name) for name in split_names(problem)}
    total = sum(problem.demands[name].requests_per_s * size for name, size in most.items())
    fleet = sum(n.gpus_usable * problem.gpu_classes[n.gpu_class].price_usd_per_hour for n in problem.nodes)
    usd = usd_ratio * synthetic.LOAD * fleet / (total * 3600.0 / TERABYTE)
    links = [replace(link, bytes_per_s=ratio * total / len(links), usd_per_terabyte=usd) for link in links]
    return replace(problem, policy=replace(problem.policy, kv_links=tuple(links)))


def split_names(problem: Problem) -> list[str]:
    return [s.name for i, s in enumerate(problem.services) if i % EVERY == 0]


def bounded(problem: Problem) -> Problem:
    """Links that carry a tenth of all keys and values."""
    return linked(problem, ratio=BOUNDED, usd_ratio=0.0)


def priced(problem: Problem) -> Problem:
    """Links that carry everything each, at a price."""
    return linked(problem, ratio=float(ROOMS), usd_ratio=COSTLY)


WORLDS: Mapping[str, Callable[[Problem], Problem]] = {
    "free": free,
    "rooms": in_rooms,
    "racks": in_racks,
    "fabrics": by_fabric,
    "bounded": bounded,
    "priced": priced,
}
