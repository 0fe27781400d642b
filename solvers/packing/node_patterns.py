r"""Replicas onto nodes by patterns: fillings of a node to which nothing can be added.

With :math:`x_{jp}` nodes of kind :math:`j` (a rack and what its nodes have free) filled by pattern :math:`p`, and
:math:`y_{rk}` replicas of kind :math:`k` in rack :math:`r`,

.. math:: \max \sum_{r,k} w_k y_{rk} \quad \text{s.t.} \quad
          y_{rk} \le \sum_{j \in r, p} a_{pk} x_{jp}, \quad \sum_p x_{jp} \le n_j, \quad \sum_r y_{rk} \le d_k, \\
          \sum_k u_k y_{rk} \le W_r, \quad y_{rk} \le s_k, \quad
          y_{rk} \le d_k v_{gr}\ (k \in g), \quad \sum_r v_{gr} \le 1

for watts :math:`u`, spread :math:`s`, and groups :math:`g` whose replicas hand their KV cache on inside one rack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import numpy.typing as npt

from solvers.highs import quiet_highs
from solvers.packing.items import Ints
from solvers.packing.rack_ledger import WATT_TOLERANCE, Scene, with_groups

MOST_COLUMNS = 20_000
MOST_STEPS = 400_000
NODE_LIMIT = 2000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stock:
    """Nodes of one section, class and free room, and the patterns that fill one: (P, K) replicas."""

    section: int
    nodes: list[int]
    patterns: Ints


def _sections(scene: Scene) -> list[list[int]]:
    """Racks alike in nodes and watts, together."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for rack in range(len(scene.racks)):
        nodes = np.flatnonzero(scene.rack_of == rack)
        inside = sorted((scene.nodes[n].gpu_class, *map(int, scene.free[n])) for n in nodes)
        alike.setdefault((float(scene.room_watts[rack]), *inside), []).append(rack)
    return list(alike.values())


def find_stocks(scene: Scene, sections: Sequence[Sequence[int]]) -> list[Stock] | None:
    """None when there are too many patterns."""
    section_of = {rack: s for s, racks in enumerate(sections) for rack in racks}
    alike: dict[tuple[int, str, tuple[int, ...]], list[int]] = {}
    for n, node in enumerate(scene.nodes):
        key = (section_of[int(scene.rack_of[n])], node.gpu_class, tuple(map(int, scene.free[n])))
        alike.setdefault(key, []).append(n)
    known: dict[tuple[str, tuple[int, ...]], Ints | None] = {}
    stocks, columns = [], 0
    for (section, gpu_class, free), members in sorted(alike.items()):
        if (gpu_class, free) not in known:
            known[gpu_class, free] = _patterns(scene, np.array(free), scene.able[:, members[0]])
        patterns = known[gpu_class, free]
        if patterns is None or (columns := columns + len(patterns)) > MOST_COLUMNS:
            return None
        stocks.append(Stock(section=section, nodes=members, patterns=patterns))
    return stocks


def _patterns(scene: Scene, free: Ints, able: npt.NDArray[np.bool_]) -> Ints | None:
    """Fillings of a node to which nothing can be added; None when there are too many."""
    found: list[Ints] = []
    kinds = [k for k in range(len(scene.kinds)) if able[k] and scene.demand[k] and (scene.size[k] <= free).all()]
    stack: list[tuple[int, Ints, Ints]] = [(0, free, np.zeros(len(scene.kinds), dtype=np.int64))]
    for _ in range(MOST_STEPS):
        if not stack:
            return np.array(found, dtype=np.int64).reshape(len(found), len(scene.kinds))
        at, room, content = stack.pop()
        if at == len(kinds):
            more = [k for k in kinds if content[k] < scene.demand[k] and (scene.size[k] <= room).all()]
            found += [] if more or not content.any() else [content]
            continue
        size = scene.size[kinds[at]]
        for count in range(_copies(size, room, int(scene.demand[kinds[at]])) + 1):
            filled = content.copy()
            filled[kinds[at]] = count
            stack.append((at + 1, room - count * size, filled))
    return None


def _copies(size: Ints, room: Ints, most: int) -> int:
    asked = size > 0
    return min(most, int((room[asked] // size[asked]).min())) if asked.any() else most


def solve_by_patterns(scene: Scene) -> tuple[Ints, float] | None:
    """Placing by node patterns, and the most worth that any placing has; None when there are too many patterns.

    Where the patterns of every rack are too many, racks that are alike share theirs. Their limits then hold in sum,
    which bounds the worth as well; the placing follows the patterns as far as each rack's own limits let it.
    """
    for sections in ([[rack] for rack in range(len(scene.racks))], _sections(scene)):
        stocks = find_stocks(scene, sections)
        if stocks is not None:
            return _solved(scene, sections, stocks)
    return None


def _solved(scene: Scene, sections: Sequence[Sequence[int]], stocks: Sequence[Stock]) -> tuple[Ints, float] | None:
    highs = quiet_highs(mip_max_nodes=NODE_LIMIT, mip_rel_gap=0.0)
    columns = _add_columns(scene, sections, stocks, highs)
    for most, row in _rows(scene, sections, stocks, columns):
        index, values = np.array(list(row), np.int32), np.array(list(row.values()), float)
        highs.addRow(-highspy.kHighsInf, most, len(index), index, values)
    highs.changeObjectiveSense(highspy.ObjSense.kMaximize)
    highs.run()
    info = highs.getInfo()
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    amounts = np.round(np.array(highs.getSolution().col_value)).astype(np.int64)
    is_single = all(len(racks) == 1 for racks in sections)
    placed = _read_out(scene, stocks, columns, amounts) if is_single else _followed(scene, stocks, columns, amounts)
    return (placed, float(info.mip_dual_bound)) if _is_sound(scene, placed) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Where each variable starts: y (section-major), v (group-major), x of every stock."""

    kinds: int
    sections: int
    chosen_from: int
    filled_from: tuple[int, ...]

    def placed(self, section: int, kind: int) -> int:
        return section * self.kinds + kind

    def chosen(self, group: int, section: int) -> int:
        return self.chosen_from + group * self.sections + section


def _add_columns(scene: Scene, sections: Sequence[Sequence[int]], stocks: Sequence[Stock], highs: Any) -> _Columns:
    uppers: list[float] = []
    costs: list[float] = []
    for racks in sections:
        uppers += [float(len(racks) * scene.most_per_rack(k)) for k in range(len(scene.kinds))]
        costs += [float(w) for w in scene.weight]
    chosen_from = len(uppers)
    uppers += [1.0] * (len(scene.groups) * len(sections))
    filled_from = []
    for stock in stocks:
        filled_from.append(len(uppers))
        uppers += [float(len(stock.nodes))] * len(stock.patterns)
    costs += [0.0] * (len(uppers) - len(costs))
    for column, (cost, upper) in enumerate(zip(costs, uppers, strict=True)):
        highs.addCol(cost, 0.0, upper, 0, np.empty(0, np.int32), np.empty(0))
        highs.changeColIntegrality(column, highspy.HighsVarType.kInteger)
    return _Columns(
        kinds=len(scene.kinds), sections=len(sections), chosen_from=chosen_from, filled_from=tuple(filled_from)
    )


def _rows(
    scene: Scene, sections: Sequence[Sequence[int]], stocks: Sequence[Stock], at: _Columns
) -> Iterator[tuple[float, dict[int, float]]]:
    """Limits as (most, column to factor)."""
    held: dict[int, dict[int, float]] = {}
    for first, stock in zip(at.filled_from, stocks, strict=True):
        yield float(len(stock.nodes)), dict.fromkeys(range(first, first + len(stock.patterns)), 1.0)
        for p, k in zip(*np.nonzero(stock.patterns), strict=True):
            held.setdefault(at.placed(stock.section, int(k)), {})[first + int(p)] = -float(stock.patterns[p, k])
    for s, racks in enumerate(sections):
        for k in range(len(scene.kinds)):
            yield 0.0, {at.placed(s, k): 1.0, **held.get(at.placed(s, k), {})}
        watts = {at.placed(s, k): kind.watts for k, kind in enumerate(scene.kinds) if kind.watts > 0.0}
        if watts and np.isfinite(scene.room_watts[racks[0]]):
            yield float(scene.room_watts[list(racks)].sum()), watts
    for k in range(len(scene.kinds)):
        yield float(scene.demand[k]), {at.placed(s, k): 1.0 for s in range(len(sections))}
    for g, group in enumerate(scene.groups):
        yield 1.0, {at.chosen(g, s): 1.0 for s in range(len(sections))}
        for s in range(len(sections)):
            for k in group:
                yield 0.0, {at.placed(s, k): 1.0, at.chosen(g, s): -float(scene.demand[k])}


def _followed(scene: Scene, stocks: Sequence[Stock], at: _Columns, amounts: Ints) -> Ints:
    """Groups by themselves, then node after node by the patterns, in the rack with most watts left; then best fit."""
    ledger = with_groups(scene)
    for first, stock in zip(at.filled_from, stocks, strict=True):
        untouched = [n for n in stock.nodes if (ledger.free[n] == scene.free[n]).all()]
        for p, pattern in enumerate(stock.patterns):
            for _ in range(min(int(amounts[first + p]), len(untouched))):
                node = max(untouched, key=lambda n: (ledger.watts[scene.rack_of[n]], -n))
                untouched.remove(node)
                for kind in scene.ungrouped:
                    ledger.take_at(kind, node, int(pattern[kind]))
    ledger.take_all(scene.ungrouped)
    return ledger.placed


def _read_out(scene: Scene, stocks: Sequence[Stock], at: _Columns, amounts: Ints) -> Ints:
    """Replicas by (kind, node): patterns hold at least what is placed in their rack."""
    placed = np.zeros((len(scene.kinds), len(scene.nodes)), dtype=np.int64)
    wanted = amounts[: at.sections * at.kinds].reshape(at.sections, at.kinds).copy()
    for first, stock in zip(at.filled_from, stocks, strict=True):
        nodes = iter(stock.nodes)
        for p, pattern in enumerate(stock.patterns):
            for _ in range(int(amounts[first + p])):
                here = np.minimum(pattern, wanted[stock.section])
                wanted[stock.section] -= here
                placed[:, next(nodes)] = here
    return placed


def _is_sound(scene: Scene, placed: Ints) -> bool:
    """Whether every limit holds, in plain arithmetic."""
    in_rack = np.array([placed[:, scene.rack_of == r].sum(axis=1) for r in range(len(scene.racks))])  # (R, K)
    watts = in_rack @ np.array([kind.watts for kind in scene.kinds])
    spread = np.array([scene.most_per_rack(k) for k in range(len(scene.kinds))])
    together = all((in_rack[:, group].sum(axis=1) > 0).sum() <= 1 for group in scene.groups)
    fits = (placed.T @ scene.size <= scene.free).all() and (placed[~scene.able] == 0).all()
    asked = (placed.sum(axis=1) <= scene.demand).all() and (in_rack <= spread).all()
    return bool(fits and asked and together and (watts <= scene.room_watts + WATT_TOLERANCE).all())
