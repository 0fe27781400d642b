r"""Replicas that ask for more than GPUs onto nodes: CPU, memory, network ports, watts and spread per rack, KV locality.

Best fit by decreasing size comes first. Where all sizes in GPUs divide one another and nothing else binds, it places
everything that can be placed (see ``planner/nodes.py``). When something is left over, node patterns decide: with
:math:`x_{jp}` nodes of kind :math:`j` (a rack and what its nodes have free) filled by pattern :math:`p`, and
:math:`y_{rk}` replicas of kind :math:`k` in rack :math:`r`,

.. math:: \max \sum_{r,k} w_k y_{rk} \quad \text{s.t.} \quad
          y_{rk} \le \sum_{j \in r, p} a_{pk} x_{jp}, \quad \sum_p x_{jp} \le n_j, \quad \sum_r y_{rk} \le d_k, \\
          \sum_k u_k y_{rk} \le W_r, \quad y_{rk} \le s_k, \quad
          y_{rk} \le d_k v_{gr}\ (k \in g), \quad \sum_r v_{gr} \le 1

for watts :math:`u`, spread :math:`s`, and groups :math:`g` whose replicas hand their KV cache on inside one rack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import highspy
import numpy as np

from solvers.errors import InvalidInput
from solvers.packing.highs import quiet_highs
from solvers.packing.items import Floats, Ints

MOST_COLUMNS = 20_000
NODE_LIMIT = 2000
WATT_TOLERANCE = 1e-6
RESOURCES = ("gpus", "cpu_milli", "memory_mib", "nics")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRoom:
    """What is free on a node, in whole units."""

    name: str
    rack: str
    gpu_class: str
    gpus: int
    cpu_milli: int = 0
    memory_mib: int = 0
    nics: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """Replicas alike, and how many are wanted.

    Attributes
    ----------
    gpus, cpu_milli, memory_mib, nics : int
        Of one replica, on one node.
    watts : float
        What one adds to its rack's draw.
    most_per_rack : int or None
        Spread: no more than so many in one rack.
    kv_group : str
        Kinds of one group stay in one rack together; empty for none.
    weight : float
        Worth of one when not all can be placed.
    """

    name: str
    gpu_class: str
    count: int
    gpus: int
    cpu_milli: int = 0
    memory_mib: int = 0
    nics: int = 0
    watts: float = 0.0
    most_per_rack: int | None = None
    kv_group: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Where replicas go.

    ``on_node`` has rows (kind, node, replicas), sorted. ``left`` counts what found no place, by kind; no other placing
    leaves less than ``least_left_worth`` behind, which is 0 where nothing is known.
    """

    on_node: tuple[tuple[str, str, int], ...]
    left: Mapping[str, int]
    left_worth: float
    least_left_worth: float

    @property
    def is_proved(self) -> bool:
        return self.left_worth <= self.least_left_worth + 1e-6 * max(1.0, self.left_worth)


class _Scene:
    """Arrays over nodes, kinds and racks, each sorted by name; kinds by falling size."""

    def __init__(
        self, nodes: Sequence[NodeRoom], kinds: Sequence[ReplicaKind], rack_watts: Mapping[str, float]
    ) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.name)
        self.kinds = sorted(kinds, key=lambda kind: (-kind.gpus, -kind.cpu_milli, -kind.memory_mib, kind.name))
        self.racks = sorted({node.rack for node in nodes})
        self.free = np.array([_vector(node) for node in self.nodes], dtype=np.int64).reshape(len(nodes), len(RESOURCES))
        self.size = np.array([_vector(kind) for kind in self.kinds], dtype=np.int64).reshape(len(kinds), len(RESOURCES))
        self.rack_of = np.array([self.racks.index(node.rack) for node in self.nodes], dtype=np.int64)
        self.room_watts = np.array([rack_watts.get(rack, np.inf) for rack in self.racks], float)
        self.able = np.array([[n.gpu_class == k.gpu_class for n in self.nodes] for k in self.kinds], bool)
        self.demand = np.array([kind.count for kind in self.kinds], dtype=np.int64)
        self.weight = np.array([kind.weight for kind in self.kinds], float)
        groups = sorted({kind.kv_group for kind in kinds} - {""})
        self.groups = [[k for k, kind in enumerate(self.kinds) if kind.kv_group == group] for group in groups]

    def most_per_rack(self, kind: int) -> int:
        most = self.kinds[kind].most_per_rack
        return self.kinds[kind].count if most is None else min(most, self.kinds[kind].count)

    def worth(self, placed: Ints) -> float:
        """Worth of what is placed, from (K, N) replicas."""
        return float(self.weight @ placed.sum(axis=1)) if placed.size else 0.0


def _vector(item: NodeRoom | ReplicaKind) -> list[int]:
    return [getattr(item, resource) for resource in RESOURCES]


def place_replicas(
    nodes: Sequence[NodeRoom], kinds: Sequence[ReplicaKind], *, rack_watts: Mapping[str, float] | None = None
) -> Placing:
    """Place as much as fits, by worth, and say what is left.

    Parameters
    ----------
    rack_watts : mapping of str to float, optional
        Watts that each rack can still take; racks that are not in it are not limited.

    Returns
    -------
    Placing
        Proved when nothing is left, or when the node patterns were few enough to be solved over.

    Raises
    ------
    InvalidInput
        Names are given twice, or numbers make no sense; the error names the node or kind.
    """
    _check(nodes, kinds, rack_watts or {})
    scene = _Scene(nodes, kinds, rack_watts or {})
    wanted = float(scene.weight @ scene.demand)
    placed, least_left = _best_fit(scene), 0.0
    if wanted - scene.worth(placed) > 1e-9 and (solved := _by_patterns(scene)) is not None:
        found, most = solved
        placed = max((placed, found), key=scene.worth)
        least_left = max(0.0, wanted - most)
    left = {kind.name: int(n) for kind, n in zip(scene.kinds, scene.demand - placed.sum(axis=1), strict=True) if n}
    rows = [
        (scene.kinds[k].name, scene.nodes[n].name, int(placed[k, n])) for k, n in zip(*np.nonzero(placed), strict=True)
    ]
    left_worth = max(0.0, wanted - scene.worth(placed))
    return Placing(
        on_node=tuple(sorted(rows)),
        left=dict(sorted(left.items())),
        left_worth=left_worth,
        least_left_worth=min(least_left, left_worth),
    )


class _Ledger:
    """What is free while replicas are placed one by one."""

    def __init__(self, scene: _Scene) -> None:
        self.scene = scene
        self.free, self.watts = scene.free.copy(), scene.room_watts.copy()
        self.placed = np.zeros((len(scene.kinds), len(scene.nodes)), dtype=np.int64)
        self.in_rack = np.zeros((len(scene.kinds), len(scene.racks)), dtype=np.int64)

    def copy(self) -> _Ledger:
        other = _Ledger(self.scene)
        other.free, other.watts = self.free.copy(), self.watts.copy()
        other.placed, other.in_rack = self.placed.copy(), self.in_rack.copy()
        return other

    def take(self, kind: int, only_rack: int | None = None) -> bool:
        """Place one replica: fewest GPUs left over, then the rack with most watts left, then least left over."""
        scene, size, watts = self.scene, self.scene.size[kind], self.scene.kinds[kind].watts
        racks = (self.watts >= watts - WATT_TOLERANCE) & (self.in_rack[kind] < scene.most_per_rack(kind))
        if only_rack is not None:
            racks &= np.arange(len(racks)) == only_rack
        able = np.flatnonzero((self.free >= size).all(axis=1) & scene.able[kind] & racks[scene.rack_of])
        if not len(able):
            return False
        left = self.free[able] - size
        share = (left[:, 1:] / np.maximum(scene.free[able][:, 1:], 1)).sum(axis=1)
        node = int(able[np.lexsort((able, share, -self.watts[scene.rack_of[able]], left[:, 0]))[0]])
        self.free[node] -= size
        self.watts[scene.rack_of[node]] -= watts
        self.placed[kind, node] += 1
        self.in_rack[kind, scene.rack_of[node]] += 1
        return True

    def take_all(self, kinds: Sequence[int], only_rack: int | None = None) -> None:
        for kind in kinds:
            for _ in range(int(self.scene.demand[kind])):
                if not self.take(kind, only_rack):
                    break


def _best_fit(scene: _Scene) -> Ints:
    """Groups first, each in the rack that takes most of it and has least left then; the rest by falling size."""
    ledger = _Ledger(scene)
    for group in sorted(scene.groups, key=lambda kinds: -int(scene.demand[kinds] @ scene.size[kinds, 0])):
        tried = [ledger.copy() for _ in scene.racks]
        for rack, each in enumerate(tried):
            each.take_all(group, rack)
        ledger = max(
            tried,
            key=lambda each: (scene.worth(each.placed), -_open_racks(each)),
            default=ledger,
        )
    grouped = {kind for group in scene.groups for kind in group}
    ledger.take_all([kind for kind in range(len(scene.kinds)) if kind not in grouped])
    return ledger.placed


def _open_racks(ledger: _Ledger) -> int:
    """Racks in use: a group goes beside others before it opens a rack."""
    return int((ledger.in_rack.sum(axis=0) > 0).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stock:
    """Nodes of one rack, class and free room, and the patterns that fill one: (P, K) replicas."""

    rack: int
    nodes: list[int]
    patterns: Ints


def _stocks(scene: _Scene) -> list[_Stock] | None:
    """None when there are too many patterns."""
    alike: dict[tuple[int, str, tuple[int, ...]], list[int]] = {}
    for n, node in enumerate(scene.nodes):
        alike.setdefault((int(scene.rack_of[n]), node.gpu_class, tuple(map(int, scene.free[n]))), []).append(n)
    known: dict[tuple[str, tuple[int, ...]], Ints | None] = {}
    stocks, columns = [], 0
    for (rack, gpu_class, free), members in sorted(alike.items()):
        if (gpu_class, free) not in known:
            known[gpu_class, free] = _patterns(scene, np.array(free), scene.able[:, members[0]])
        patterns = known[gpu_class, free]
        if patterns is None or (columns := columns + len(patterns)) > MOST_COLUMNS:
            return None
        stocks.append(_Stock(rack=rack, nodes=members, patterns=patterns))
    return stocks


def _patterns(scene: _Scene, free: Ints, able: Floats | Ints) -> Ints | None:
    """Fillings of a node to which nothing can be added; None when there are too many."""
    found: list[Ints] = []
    kinds = [k for k in range(len(scene.kinds)) if able[k] and scene.demand[k] and (scene.size[k] <= free).all()]
    stack: list[tuple[int, Ints, Ints]] = [(0, free, np.zeros(len(scene.kinds), dtype=np.int64))]
    while stack:
        at, room, content = stack.pop()
        if at == len(kinds):
            more = [k for k in kinds if content[k] < scene.demand[k] and (scene.size[k] <= room).all()]
            found += [] if more or not content.any() else [content]
            if len(found) > MOST_COLUMNS:
                return None
            continue
        size = scene.size[kinds[at]]
        for count in range(_copies(size, room, int(scene.demand[kinds[at]])) + 1):
            filled = content.copy()
            filled[kinds[at]] = count
            stack.append((at + 1, room - count * size, filled))
    return np.array(found, dtype=np.int64).reshape(len(found), len(scene.kinds))


def _copies(size: Ints, room: Ints, most: int) -> int:
    asked = size > 0
    return min(most, int((room[asked] // size[asked]).min())) if asked.any() else most


def _by_patterns(scene: _Scene) -> tuple[Ints, float] | None:
    """Placing by node patterns, and the most worth that any placing has; None when it could not be solved."""
    stocks = _stocks(scene)
    if stocks is None:
        return None
    highs = quiet_highs(mip_max_nodes=NODE_LIMIT, mip_rel_gap=0.0)
    columns = _add_columns(scene, stocks, highs)
    for most, row in _rows(scene, stocks, columns):
        index, values = np.array(list(row), np.int32), np.array(list(row.values()), float)
        highs.addRow(-highspy.kHighsInf, most, len(index), index, values)
    highs.changeObjectiveSense(highspy.ObjSense.kMaximize)
    highs.run()
    info = highs.getInfo()
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    amounts = np.round(np.array(highs.getSolution().col_value)).astype(np.int64)
    placed = _read_out(scene, stocks, columns, amounts)
    return (placed, float(info.mip_dual_bound)) if _is_sound(scene, placed) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Where each variable starts: y (rack-major), v (group-major), x of every stock."""

    kinds: int
    racks: int
    chosen_from: int
    filled_from: tuple[int, ...]

    def placed(self, rack: int, kind: int) -> int:
        return rack * self.kinds + kind

    def chosen(self, group: int, rack: int) -> int:
        return self.chosen_from + group * self.racks + rack


def _add_columns(scene: _Scene, stocks: Sequence[_Stock], highs: object) -> _Columns:
    uppers: list[float] = []
    costs: list[float] = []
    for _ in scene.racks:
        uppers += [float(scene.most_per_rack(k)) for k in range(len(scene.kinds))]
        costs += [float(w) for w in scene.weight]
    chosen_from = len(uppers)
    uppers += [1.0] * (len(scene.groups) * len(scene.racks))
    filled_from = []
    for stock in stocks:
        filled_from.append(len(uppers))
        uppers += [float(len(stock.nodes))] * len(stock.patterns)
    costs += [0.0] * (len(uppers) - len(costs))
    for column, (cost, upper) in enumerate(zip(costs, uppers, strict=True)):
        highs.addCol(cost, 0.0, upper, 0, np.empty(0, np.int32), np.empty(0))  # type: ignore[attr-defined]
        highs.changeColIntegrality(column, highspy.HighsVarType.kInteger)  # type: ignore[attr-defined]
    return _Columns(
        kinds=len(scene.kinds), racks=len(scene.racks), chosen_from=chosen_from, filled_from=tuple(filled_from)
    )


def _rows(scene: _Scene, stocks: Sequence[_Stock], at: _Columns) -> Iterator[tuple[float, dict[int, float]]]:
    """Limits as (most, column to factor)."""
    held: dict[int, dict[int, float]] = {}
    for first, stock in zip(at.filled_from, stocks, strict=True):
        yield float(len(stock.nodes)), dict.fromkeys(range(first, first + len(stock.patterns)), 1.0)
        for p, k in zip(*np.nonzero(stock.patterns), strict=True):
            held.setdefault(at.placed(stock.rack, int(k)), {})[first + int(p)] = -float(stock.patterns[p, k])
    for rack in range(len(scene.racks)):
        for k in range(len(scene.kinds)):
            yield 0.0, {at.placed(rack, k): 1.0, **held.get(at.placed(rack, k), {})}
        watts = {at.placed(rack, k): kind.watts for k, kind in enumerate(scene.kinds) if kind.watts > 0.0}
        if watts and np.isfinite(scene.room_watts[rack]):
            yield float(scene.room_watts[rack]), watts
    for k in range(len(scene.kinds)):
        yield float(scene.demand[k]), {at.placed(rack, k): 1.0 for rack in range(len(scene.racks))}
    for g, group in enumerate(scene.groups):
        yield 1.0, {at.chosen(g, rack): 1.0 for rack in range(len(scene.racks))}
        for rack in range(len(scene.racks)):
            for k in group:
                yield 0.0, {at.placed(rack, k): 1.0, at.chosen(g, rack): -float(scene.demand[k])}


def _read_out(scene: _Scene, stocks: Sequence[_Stock], at: _Columns, amounts: Ints) -> Ints:
    """Replicas by (kind, node): patterns hold at least what is placed in their rack."""
    placed = np.zeros((len(scene.kinds), len(scene.nodes)), dtype=np.int64)
    wanted = amounts[: len(scene.racks) * at.kinds].reshape(len(scene.racks), at.kinds).copy()
    for first, stock in zip(at.filled_from, stocks, strict=True):
        nodes = iter(stock.nodes)
        for p, pattern in enumerate(stock.patterns):
            for _ in range(int(amounts[first + p])):
                here = np.minimum(pattern, wanted[stock.rack])
                wanted[stock.rack] -= here
                placed[:, next(nodes)] = here
    return placed


def _is_sound(scene: _Scene, placed: Ints) -> bool:
    """Whether every limit holds, in plain arithmetic."""
    in_rack = np.array([placed[:, scene.rack_of == r].sum(axis=1) for r in range(len(scene.racks))])  # (R, K)
    watts = in_rack @ np.array([kind.watts for kind in scene.kinds])
    spread = np.array([scene.most_per_rack(k) for k in range(len(scene.kinds))])
    together = all((in_rack[:, group].sum(axis=1) > 0).sum() <= 1 for group in scene.groups)
    fits = (placed.T @ scene.size <= scene.free).all() and (placed[~scene.able] == 0).all()
    asked = (placed.sum(axis=1) <= scene.demand).all() and (in_rack <= spread).all()
    return bool(fits and asked and together and (watts <= scene.room_watts + WATT_TOLERANCE).all())


def _check(nodes: Sequence[NodeRoom], kinds: Sequence[ReplicaKind], rack_watts: Mapping[str, float]) -> None:
    for label, items in (("Node", nodes), ("replicas", kinds)):
        names = [item.name for item in items]
        if len(set(names)) < len(names):
            twice = min(name for name in names if names.count(name) > 1)
            raise InvalidInput(f"{label}/{twice}", "name", "is given twice", "give every one a name of its own")
        for item in items:
            for field in fields(item):
                value = getattr(item, field.name)
                if isinstance(value, int | float) and not (np.isfinite(value) and value >= 0):
                    raise InvalidInput(f"{label}/{item.name}", field.name, f"is {value}", "give 0 or more")
    for rack, watts in rack_watts.items():
        if not watts >= 0:
            raise InvalidInput(f"rack {rack}", "watts", f"are {watts}", "give 0 or more")
