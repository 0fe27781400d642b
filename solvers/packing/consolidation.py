r"""Moves that free whole hosts, within a budget: long-lived items beside long-lived ones.

A host is busy until the last of its items ends. With the items' expected remaining lives :math:`l_i`, cut at a horizon
:math:`T`, a placement keeps host :math:`h` for :math:`b_h = \max_{i \text{ on } h} \min(l_i, T)` seconds. Moves are
chosen that make

.. math:: \sum_h w_h b_h + \sum_{i \text{ moved}} m_i

least. A host that is emptied counts nothing; a short-lived item that is left alone with other short-lived ones frees
its host soon; a long-lived one goes to where others live long, because there it costs nothing.

A host gives items or takes items, never both. So every move fits into room that is free now, and they may be carried
out in any order, or in part, each with its new replica up before the old one stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.errors import InvalidInput
from solvers.packing.moves import Scene, choose_exactly, choose_greedily, improve_by_windows, worth_after

SMALL = 300
"""Possible moves up to which the choice is made as a whole-number program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A host to consolidate: its capacity in each resource, and the worth of one second of it."""

    name: str
    capacity: tuple[float, ...]
    worth_per_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An item that runs on a host.

    Attributes
    ----------
    size : tuple of float
        In each resource.
    remaining_s : float
        Expected remaining life, infinite for one that stays.
    move_worth : float
        What moving it costs, in the unit of ``worth_per_s`` times seconds; infinite for one that must not move.
    allowed : tuple of str
        Hosts it may go to; empty for any.
    """

    name: str
    host: str
    size: tuple[float, ...]
    remaining_s: float
    move_worth: float = 0.0
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Move:
    tenant: str
    from_host: str
    to_host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidation:
    """Moves, hosts that are empty after them and were not before, and the worth of busy hosts before and after.

    ``lower_bound`` is one on ``worth_after`` for any choice of moves within the budget; it rests on HiGHS, and is 0
    where the fleet was too large for it.
    """

    moves: tuple[Move, ...]
    freed: tuple[str, ...]
    worth_before: float
    worth_after: float
    lower_bound: float

    @property
    def is_proved(self) -> bool:
        return self.worth_after - self.lower_bound <= 1e-6 * max(1.0, abs(self.worth_after))


def consolidate(
    sites: Sequence[Site], tenants: Sequence[Tenant], *, most_moves: int, horizon_s: float
) -> Consolidation:
    """Choose moves that make busy hosts worth least within the horizon, the moves' own cost included.

    Parameters
    ----------
    most_moves : int
        Budget of moves.
    horizon_s : float
        How far ahead a free host counts.

    Returns
    -------
    Consolidation
        Best moves found; for fleets of up to ``SMALL`` possible moves proved, beyond greedy and then improved a few
        hosts at a time.

    Raises
    ------
    InvalidInput
        Names, sizes or numbers make no sense, or a host holds more than it can; the error names it.
    """
    scene = read_scene(sites, tenants, most_moves, horizon_s)
    names = [site.name for site in sites]
    before = worth_after(scene, {})
    target = choose_greedily(scene, most_moves)
    bound = 0.0
    pairs = scene.pairs()
    if most_moves == 0 or not pairs:
        bound = before
    elif len(pairs) <= SMALL:
        found, bound = choose_exactly(scene, pairs, most_moves)
        target = min((target, found), key=lambda each: (worth_after(scene, each), len(each)))
    else:
        target = improve_by_windows(scene, target, most_moves)
    left = [[i for i in items if i not in target] for items in scene.on]
    into = set(target.values())
    return Consolidation(
        moves=tuple(
            sorted(
                Move(tenant=tenants[i].name, from_host=names[scene.host[i]], to_host=names[h])
                for i, h in target.items()
            )
        ),
        freed=tuple(sorted(names[h] for h, items in enumerate(scene.on) if items and not left[h] and h not in into)),
        worth_before=before,
        worth_after=worth_after(scene, target),
        lower_bound=min(bound, worth_after(scene, target)),
    )


def _move(tenant: Tenant, to_host: str) -> Move:
    return Move(tenant=tenant.name, from_host=tenant.host, to_host=to_host)


def read_scene(sites: Sequence[Site], tenants: Sequence[Tenant], most_moves: int, horizon_s: float) -> Scene:
    if most_moves < 0:
        raise InvalidInput("consolidation", "most_moves", f"is {most_moves}", "give 0 or more")
    if not (np.isfinite(horizon_s) and horizon_s > 0):
        raise InvalidInput("consolidation", "horizon_s", f"is {horizon_s}", "give seconds above 0")
    row = {site.name: h for h, site in enumerate(sites)}
    for kind, names in (("host", [s.name for s in sites]), ("tenant", [t.name for t in tenants])):
        if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
            raise InvalidInput(f"{kind} {twice[0]}", "name", "is given twice", "give every one a name of its own")
    resources = len(sites[0].capacity) if sites else 0
    for site in sites:
        _check_vector(f"host {site.name}", "capacity", site.capacity, resources)
        if not (np.isfinite(site.worth_per_s) and site.worth_per_s >= 0):
            raise InvalidInput(f"host {site.name}", "worth_per_s", f"is {site.worth_per_s}", "give 0 or more")
    for tenant in tenants:
        _check_tenant(tenant, row, resources)
    scene = Scene(
        life=np.array([min(t.remaining_s, horizon_s) for t in tenants], float),
        size=np.array([t.size for t in tenants], float).reshape(len(tenants), resources),
        host=[row[t.host] for t in tenants],
        free=np.array([s.capacity for s in sites], float).reshape(len(sites), resources),
        worth=np.array([s.worth_per_s for s in sites], float),
        cost=np.array([t.move_worth for t in tenants], float),
        may=np.array([_allowed(t, row) for t in tenants], bool).reshape(len(tenants), len(sites)),
    )
    for i, h in enumerate(scene.host):
        scene.free[h] -= scene.size[i]
    for h, free in enumerate(scene.free):
        if (free < -1e-6).any():
            raise InvalidInput(f"host {sites[h].name}", "", f"holds {(-free).max():g} more than it can", "check sizes")
    return scene


def _allowed(tenant: Tenant, row: Mapping[str, int]) -> list[bool]:
    """Hosts that the tenant may go to, by its own wish."""
    may_move = np.isfinite(tenant.move_worth)
    return [may_move and name != tenant.host and (not tenant.allowed or name in tenant.allowed) for name in row]


def _check_tenant(tenant: Tenant, row: Mapping[str, int], resources: int) -> None:
    subject = f"tenant {tenant.name}"
    if tenant.host not in row:
        raise InvalidInput(subject, "host", f"{tenant.host!r} is not among the hosts", "give the host it runs on")
    _check_vector(subject, "size", tenant.size, resources)
    for name in ("remaining_s", "move_worth"):
        if not getattr(tenant, name) >= 0:
            raise InvalidInput(subject, name, f"is {getattr(tenant, name)}", "give 0 or more")


def _check_vector(subject: str, name: str, vector: Sequence[float], resources: int) -> None:
    if len(vector) != resources:
        raise InvalidInput(subject, name, f"has {len(vector)} resources, not {resources}", "give all the same ones")
    for value in vector:
        if not (np.isfinite(value) and value >= 0):
            raise InvalidInput(subject, name, f"is {value}", "give finite numbers of 0 or more")
