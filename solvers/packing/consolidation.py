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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
import numpy.typing as npt

from solvers.errors import InvalidInput
from solvers.packing.items import Floats
from solvers.packing.pricing import quiet_highs

SMALL = 300
"""Possible moves up to which the choice is made as a whole-number program."""
NODE_LIMIT = 5000


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


@dataclass(slots=True, eq=False)
class Scene:
    """Arrays: lives cut at the horizon (I,), sizes (I, R), host of each item (I,), free room (H, R), worth (H,)."""

    names: tuple[str, ...]
    tenants: tuple[Tenant, ...]
    life: Floats
    size: Floats
    host: list[int]
    free: Floats
    worth: Floats
    cost: Floats
    may: npt.NDArray[np.bool_]
    on: list[list[int]] = field(default_factory=list)

    def busy(self, items: Iterable[int]) -> float:
        return max((float(self.life[i]) for i in items), default=0.0)

    def pairs(self) -> list[tuple[int, int]]:
        """Every single move that is allowed and fits by itself."""
        fits = (self.size[:, None, :] <= self.free[None, :, :] + 1e-9).all(axis=2) & self.may
        return [(int(i), int(h)) for i, h in zip(*np.nonzero(fits), strict=True)]


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
        Best moves found; proved for fleets of up to ``SMALL`` possible moves, greedy beyond.

    Raises
    ------
    InvalidInput
        Names, sizes or numbers make no sense, or a host holds more than it can; the error names it.
    """
    scene = read_scene(sites, tenants, most_moves, horizon_s)
    before = worth_after(scene, {})
    target = choose_greedily(scene, most_moves)
    bound = 0.0
    pairs = scene.pairs()
    if most_moves == 0 or not pairs:
        bound = before
    elif len(pairs) <= SMALL:
        found, bound = _exact(scene, pairs, most_moves, horizon_s)
        target = min((target, found), key=lambda each: (worth_after(scene, each), len(each)))
    left = [[i for i in items if i not in target] for items in scene.on]
    into = set(target.values())
    return Consolidation(
        moves=tuple(sorted(_move(scene, i, h) for i, h in target.items())),
        freed=tuple(
            sorted(scene.names[h] for h, items in enumerate(scene.on) if items and not left[h] and h not in into)
        ),
        worth_before=before,
        worth_after=worth_after(scene, target),
        lower_bound=min(bound, worth_after(scene, target)),
    )


def _move(scene: Scene, item: int, to: int) -> Move:
    return Move(tenant=scene.tenants[item].name, from_host=scene.names[scene.host[item]], to_host=scene.names[to])


def worth_after(scene: Scene, target: Mapping[int, int]) -> float:
    """Worth of busy hosts after the moves, and of the moves."""
    items = [[i for i in on if i not in target] for on in scene.on]
    for i, h in target.items():
        items[h].append(i)
    return float(
        sum(scene.worth[h] * scene.busy(on) for h, on in enumerate(items)) + sum(scene.cost[i] for i in target)
    )


def choose_greedily(scene: Scene, most_moves: int) -> dict[int, int]:
    """Again and again the change of one host that gains most per move: all its items, or the longest-lived of them."""
    target: dict[int, int] = {}
    free, busy = scene.free.copy(), np.array([scene.busy(on) for on in scene.on])
    gives: set[int] = set()
    takes: set[int] = set()
    while len(target) < most_moves:
        best: tuple[float, int, dict[int, int]] | None = None
        for h in range(len(scene.names)):
            if h in takes or h in gives:
                continue
            for gain, change in _departures(scene, h, free, busy, gives, most_moves - len(target)):
                if gain > 1e-9 and (best is None or gain / len(change) > best[0] + 1e-12):
                    best = (gain / len(change), h, change)
        if best is None:
            break
        _, h, change = best
        target |= change
        gives.add(h)
        busy[h] = scene.busy(i for i in scene.on[h] if i not in change)
        for i, to in change.items():
            takes.add(to)
            free[to] -= scene.size[i]
            busy[to] = max(busy[to], scene.life[i])
    return target


def _departures(
    scene: Scene, h: int, free: Floats, busy: Floats, gives: set[int], most: int
) -> Iterator[tuple[float, dict[int, int]]]:
    """Gain and moves of taking the longest-lived items off a host: one, two, and so on to all of them."""
    room, until, change, paid = free.copy(), busy.copy(), {}, 0.0
    order = sorted(scene.on[h], key=lambda i: (-scene.life[i], i))
    for number, i in enumerate(order[:most]):
        to = _receiver(scene, i, h, room, until, gives)
        if to is None:
            return
        paid += scene.worth[to] * max(0.0, scene.life[i] - until[to]) + scene.cost[i]
        room[to] -= scene.size[i]
        until[to] = max(until[to], scene.life[i])
        change[i] = to
        rest = float(scene.life[order[number + 1]]) if number + 1 < len(order) else 0.0
        yield float(scene.worth[h] * (busy[h] - rest) - paid), dict(change)


def _receiver(scene: Scene, item: int, h: int, room: Floats, until: Floats, gives: set[int]) -> int | None:
    """Where the item prolongs least, then where least is left over, then by name."""
    able = np.flatnonzero((scene.size[item] <= room + 1e-9).all(axis=1) & scene.may[item])
    able = able[[int(to) not in gives for to in able]] if len(able) else able
    if not len(able):
        return None
    prolongs = scene.worth[able] * np.maximum(0.0, scene.life[item] - until[able])
    left = (room[able] - scene.size[item]).sum(axis=1)
    return int(able[np.lexsort((able, left, prolongs))[0]])


def _exact(
    scene: Scene, pairs: list[tuple[int, int]], most_moves: int, horizon_s: float
) -> tuple[dict[int, int], float]:
    """State the choice as a whole-number program: moves y, takers z, busy times b; HiGHS with a node limit."""
    highs, hosts = quiet_highs(mip_max_nodes=NODE_LIMIT, mip_rel_gap=0.0), len(scene.names)
    for i, _ in pairs:
        highs.addCol(float(scene.cost[i]), 0.0, 1.0, 0, np.empty(0, np.int32), np.empty(0))
    for _ in range(hosts):
        highs.addCol(0.0, 0.0, 1.0, 0, np.empty(0, np.int32), np.empty(0))
    for h in range(hosts):
        highs.addCol(float(scene.worth[h]), 0.0, horizon_s, 0, np.empty(0, np.int32), np.empty(0))
    for column in range(len(pairs) + hosts):
        highs.changeColIntegrality(column, highspy.HighsVarType.kInteger)
    for lower, upper, row in _rows(scene, pairs, most_moves):
        index, values = np.array(list(row), np.int32), np.array(list(row.values()), float)
        highs.addRow(lower, upper, len(index), index, values)
    highs.run()
    info = highs.getInfo()
    bound = float(info.mip_dual_bound) if np.isfinite(info.mip_dual_bound) else 0.0
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return {}, bound
    chosen = np.array(highs.getSolution().col_value)[: len(pairs)] > 0.5
    found = {i: h for (i, h), is_chosen in zip(pairs, chosen, strict=True) if is_chosen}
    return (found if _is_sound(scene, found, most_moves) else {}), bound


def _rows(
    scene: Scene, pairs: list[tuple[int, int]], most_moves: int
) -> Iterator[tuple[float, float, dict[int, float]]]:
    """Limits as (least, most, column to factor)."""
    hosts, never = len(scene.names), highspy.kHighsInf

    def takes(h: int) -> int:
        return len(pairs) + h

    def busy(h: int) -> int:
        return len(pairs) + hosts + h

    of: dict[int, list[int]] = {}
    to: dict[int, list[int]] = {}
    for column, (i, h) in enumerate(pairs):
        of.setdefault(i, []).append(column)
        to.setdefault(h, []).append(column)
        yield 0.0, never, {busy(h): 1.0, column: -float(scene.life[i])}
    yield -never, float(most_moves), dict.fromkeys(range(len(pairs)), 1.0)
    for i, columns in of.items():
        yield -never, 1.0, {**dict.fromkeys(columns, 1.0), takes(scene.host[i]): 1.0}
    for h, columns in to.items():
        for r, room in enumerate(scene.free[h]):
            sizes = {c: float(scene.size[pairs[c][0], r]) for c in columns if scene.size[pairs[c][0], r] > 0.0}
            yield -never, 1e-9 * max(1.0, float(room)), {**sizes, takes(h): -float(room)}
        yield -never, 0.0, {**dict.fromkeys(columns, 1.0), takes(h): -float(len(columns))}
    for i in range(len(scene.life)):
        stays = {c: float(scene.life[i]) for c in of.get(i, ())}
        yield float(scene.life[i]), never, {busy(scene.host[i]): 1.0, **stays}


def _is_sound(scene: Scene, found: Mapping[int, int], most_moves: int) -> bool:
    """Whether moves keep the budget, fit the room that is free now, and no host both gives and takes."""
    free = scene.free.copy()
    for i, h in found.items():
        free[h] -= scene.size[i]
    gives, takes = {scene.host[i] for i in found}, set(found.values())
    return len(found) <= most_moves and not gives & takes and bool((free >= -1e-6).all())


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
        names=tuple(row),
        tenants=tuple(tenants),
        life=np.array([min(t.remaining_s, horizon_s) for t in tenants], float),
        size=np.array([t.size for t in tenants], float).reshape(len(tenants), resources),
        host=[row[t.host] for t in tenants],
        free=np.array([s.capacity for s in sites], float).reshape(len(sites), resources),
        worth=np.array([s.worth_per_s for s in sites], float),
        cost=np.array([t.move_worth for t in tenants], float),
        may=np.array([_allowed(t, row) for t in tenants], bool).reshape(len(tenants), len(sites)),
        on=[[] for _ in sites],
    )
    for i, h in enumerate(scene.host):
        scene.on[h].append(i)
        scene.free[h] -= scene.size[i]
    for h, free in enumerate(scene.free):
        if (free < -1e-6).any():
            raise InvalidInput(f"host {scene.names[h]}", "", f"holds {(-free).max():g} more than it can", "check sizes")
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
