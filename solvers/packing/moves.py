"""The choice of moves on arrays: host by host, exactly, and exactly a few hosts at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt

from solvers.highs import quiet_highs
from solvers.packing.items import Floats, Ints

NODE_LIMIT = 5000
WINDOW_HOSTS, MOST_WINDOWS, MOST_ROUNDS = 6, 40, 4
SEED = 7


@dataclass(eq=False)
class Scene:
    """Lives cut at the horizon (I,), sizes (I, R), host of each item, free room (H, R), worth (H,), cost of moves (I,).

    ``may`` (I, H) says which item may go where, ``on`` which items are on each host.
    """

    life: Floats
    size: Floats
    host: list[int]
    free: Floats
    worth: Floats
    cost: Floats
    may: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        self.on: list[list[int]] = [[] for _ in self.worth]
        for item, host in enumerate(self.host):
            self.on[host].append(item)

    def busy(self, items: Iterable[int]) -> float:
        return max((float(self.life[i]) for i in items), default=0.0)

    def pairs(self) -> list[tuple[int, int]]:
        """Every single move that is allowed and fits by itself."""
        fits = (self.size[:, None, :] <= self.free[None, :, :] + 1e-9).all(axis=2) & self.may
        return [(int(i), int(h)) for i, h in zip(*np.nonzero(fits), strict=True)]


def worth_after(scene: Scene, target: Mapping[int, int]) -> float:
    """Worth of busy hosts after the moves, and of the moves."""
    items = [[i for i in on if i not in target] for on in scene.on]
    for i, h in target.items():
        items[h].append(i)
    return float(
        sum(scene.worth[h] * scene.busy(on) for h, on in enumerate(items)) + sum(scene.cost[i] for i in target)
    )


def choose_greedily(scene: Scene, most_moves: int) -> dict[int, int]:
    """Again and again the change of one host that gains most per move: all its items, or the longest-lived of them.

    Hosts wait in order of what they gained when last looked at; one that still comes first is taken. A gain may also
    rise, where a receiver lives longer now: hosts without gain are looked at once more when none is left.
    """
    hands = _Hands(scene)
    queue = [(-np.inf, h) for h in range(len(scene.worth)) if scene.on[h]]
    has_changed = False
    while len(hands.target) < most_moves:
        if not queue:
            if not has_changed:
                break
            queue, has_changed = [(-np.inf, h) for h in range(len(scene.worth)) if scene.on[h]], False
        _, h = heapq.heappop(queue)
        best = hands.best_departure(h, most_moves - len(hands.target))
        if best is None:
            continue
        if queue and -best[0] > queue[0][0]:
            heapq.heappush(queue, (-best[0], h))
            continue
        hands.apply(h, best[1])
        has_changed = True
    return hands.target


class _Hands:
    """Moves chosen so far, and what they leave: room, busy times, and who gives and takes."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.target = scene, dict[int, int]()
        self.free, self.busy = scene.free.copy(), np.array([scene.busy(on) for on in scene.on])
        self.gives = np.zeros(len(scene.worth), bool)
        self.takes = np.zeros(len(scene.worth), bool)

    def best_departure(self, h: int, most: int) -> tuple[float, dict[int, int]] | None:
        """Gain per move and moves of the best change of a host, if any gains."""
        if self.gives[h] or self.takes[h]:
            return None
        found = [(gain / len(change), change) for gain, change in self._departures(h, most) if gain > 1e-9]
        return max(found, key=lambda each: each[0], default=None)

    def apply(self, h: int, change: Mapping[int, int]) -> None:
        self.target |= change
        self.gives[h] = True
        self.busy[h] = self.scene.busy(i for i in self.scene.on[h] if i not in change)
        for i, to in change.items():
            self.takes[to] = True
            self.free[to] -= self.scene.size[i]
            self.busy[to] = max(self.busy[to], self.scene.life[i])

    def _departures(self, h: int, most: int) -> Iterator[tuple[float, dict[int, int]]]:
        """Gain and moves of taking the longest-lived items off a host: one, two, and so on to all of them."""
        scene, room, until, change, paid = self.scene, self.free.copy(), self.busy.copy(), dict[int, int](), 0.0
        order = sorted(scene.on[h], key=lambda i: (-scene.life[i], i))
        for number, i in enumerate(order[:most]):
            to = self._receiver(i, room, until)
            if to is None:
                return
            paid += scene.worth[to] * max(0.0, scene.life[i] - until[to]) + scene.cost[i]
            room[to] -= scene.size[i]
            until[to] = max(until[to], scene.life[i])
            change[i] = to
            rest = float(scene.life[order[number + 1]]) if number + 1 < len(order) else 0.0
            yield float(scene.worth[h] * (self.busy[h] - rest) - paid), dict(change)

    def _receiver(self, item: int, room: Floats, until: Floats) -> int | None:
        """Where the item prolongs least, then where least is left over, then the first."""
        scene = self.scene
        able = np.flatnonzero((scene.size[item] <= room + 1e-9).all(axis=1) & scene.may[item] & ~self.gives)
        if not len(able):
            return None
        prolongs = scene.worth[able] * np.maximum(0.0, scene.life[item] - until[able])
        left = (room[able] - scene.size[item]).sum(axis=1)
        return int(able[np.lexsort((able, left, prolongs))[0]])


def choose_exactly(scene: Scene, pairs: list[tuple[int, int]], most_moves: int) -> tuple[dict[int, int], float]:
    """State the choice as a whole-number program: moves y, takers z, busy times b; HiGHS with a node limit.

    Returns the moves found, none when there are none, and a bound on the worth after any.
    """
    highs, hosts = quiet_highs(mip_max_nodes=NODE_LIMIT, mip_rel_gap=0.0), len(scene.worth)
    for i, _ in pairs:
        highs.addCol(float(scene.cost[i]), 0.0, 1.0, 0, np.empty(0, np.int32), np.empty(0))
    for _ in range(hosts):
        highs.addCol(0.0, 0.0, 1.0, 0, np.empty(0, np.int32), np.empty(0))
    for h in range(hosts):
        highs.addCol(float(scene.worth[h]), 0.0, highspy.kHighsInf, 0, np.empty(0, np.int32), np.empty(0))
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
    return (found if is_sound(scene, found, most_moves) else {}), bound


def _rows(
    scene: Scene, pairs: list[tuple[int, int]], most_moves: int
) -> Iterator[tuple[float, float, dict[int, float]]]:
    """Limits as (least, most, column to factor)."""
    hosts, never = len(scene.worth), highspy.kHighsInf

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


def is_sound(scene: Scene, found: Mapping[int, int], most_moves: int) -> bool:
    """Whether moves keep the budget, fit the room that is free now, and no host both gives and takes."""
    free = scene.free.copy()
    for i, h in found.items():
        free[h] -= scene.size[i]
    gives, takes = {scene.host[i] for i in found}, set(found.values())
    return len(found) <= most_moves and not gives & takes and bool((free >= -1e-6).all())


def improve_by_windows(scene: Scene, target: dict[int, int], most_moves: int) -> dict[int, int]:
    """Choose anew, exactly, among a few hosts at a time, what goes on elsewhere left as it is."""
    rng = np.random.default_rng(SEED)
    busy = np.array([h for h, on in enumerate(scene.on) if on], dtype=np.int64)
    for _ in range(MOST_ROUNDS):
        was = target
        for giver in rng.permutation(sorted({scene.host[i] for i in target}))[:MOST_WINDOWS]:
            around = {int(giver), *(target[i] for i in scene.on[giver] if i in target)}
            others = [int(h) for h in rng.permutation(busy) if int(h) not in around]
            hosts = [*sorted(around), *others][: max(WINDOW_HOSTS, len(around))]
            target = _renewed(scene, target, np.sort(hosts), most_moves)
        if target == was:
            break
    return target


def _renewed(scene: Scene, target: dict[int, int], hosts: Ints, most_moves: int) -> dict[int, int]:
    """The moves with those inside the window chosen anew, where that is worth less."""
    inside = set(map(int, hosts))
    frozen = {i: h for i, h in target.items() if not (scene.host[i] in inside and h in inside)}
    window, items = _window(scene, frozen, hosts)
    at = {int(h): number for number, h in enumerate(hosts)}
    before = {n: at[target[i]] for n, i in enumerate(items) if i in target and i not in frozen}
    pairs, budget = window.pairs(), most_moves - len(frozen)
    if not pairs or budget <= 0:
        return target
    found, _ = choose_exactly(window, pairs, budget)
    if worth_after(window, found) >= worth_after(window, before) - 1e-9:
        return target
    return frozen | {items[n]: int(hosts[h]) for n, h in found.items()}


def _window(scene: Scene, frozen: Mapping[int, int], hosts: Ints) -> tuple[Scene, list[int]]:
    """Some hosts by themselves, after the moves across their edge; who gave may not take, and the other way round."""
    at = {int(h): number for number, h in enumerate(hosts)}
    stays = [(i, at[h]) for h in at for i in scene.on[h] if i not in frozen]
    arrives = [(i, at[h]) for i, h in frozen.items() if h in at]
    gave = [at[scene.host[i]] for i in frozen if scene.host[i] in at]
    items = [i for i, _ in (*stays, *arrives)]
    host = [h for _, h in (*stays, *arrives)]
    may, free = scene.may[items][:, hosts], scene.free[hosts].copy()
    may[:, gave] = False
    may[np.isin(host, [h for _, h in arrives])] = False
    for i, h in arrives:
        free[h] -= scene.size[i]
    window = Scene(
        life=scene.life[items],
        size=scene.size[items],
        host=host,
        free=free,
        worth=scene.worth[hosts],
        cost=scene.cost[items],
        may=may,
    )
    return window, items
