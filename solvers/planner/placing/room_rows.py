"""Limits (6) to (8) for single bays and domains: the rows of small models that give replicas their places anew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from solvers.planner.bays.grouping import Bay
from solvers.planner.bays.nodes import Room
from solvers.planner.model.limits import MOST_SLOTS, WHOLE
from solvers.spans import groups_taken

KILO = 1e3

Row = tuple[Mapping[int, float], float]
"""Entries by column, and the most that they may come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """A column that counts replicas of so many GPUs and watts in a bay."""

    column: int
    bay: Bay
    gpus: int
    watts: float


def group_rows(stands: Iterable[Stand], room: Room) -> Iterator[Row]:
    """As ``limits.limit_gpus``, bay by bay in the order of their first stands, less what stays there."""
    by_bay: dict[tuple[str, str], list[Stand]] = {}
    for stand in stands:
        by_bay.setdefault(stand.bay.key, []).append(stand)
    for key, here in by_bay.items():
        bay, held = here[0].bay, {gpus: count for gpus, count in room.held.get(key, {}).items() if count}
        for size in sorted({stand.gpus for stand in here} | held.keys()):
            taken = {s.column: float(groups_taken(s.gpus, size, bay.node_gpus)) for s in here if s.gpus >= size}
            used = sum(n * groups_taken(gpus, size, bay.node_gpus) for gpus, n in held.items() if gpus >= size)
            if taken:
                yield taken, float(bay.slots(size) - used)


def watt_rows(stands: Iterable[Stand], room: Room, *, are_whole: bool) -> Iterator[Row]:
    """As ``limits.limit_power``, domain by domain, less what else draws there.

    With ``are_whole`` also as ``limits.limit_power_whole``: in a single domain whole counts that keep (7) keep these
    rows too, which cut off some that are not whole.
    """
    drawing: dict[str, list[Stand]] = {}
    for stand in stands:
        for domain in stand.bay.charged if stand.watts > 0.0 else ():
            drawing.setdefault(domain, []).append(stand)
    for domain, there in sorted(drawing.items()):
        free_watts = max(0.0, room.free_watts[domain])
        yield {stand.column: stand.watts / KILO for stand in there}, free_watts / KILO
        yield from _whole_rows(there, free_watts) if are_whole else ()


def _whole_rows(there: Sequence[Stand], free_watts: float) -> Iterator[Row]:
    for watts in sorted({stand.watts for stand in there}):
        if (most := math.floor(free_watts / watts + WHOLE)) <= MOST_SLOTS:
            larger = (stand for stand in there if stand.watts >= watts)
            yield {stand.column: float(math.floor(stand.watts / watts + WHOLE)) for stand in larger}, float(most)
