"""Ways of a large short fleet decided one after another, prices and ways found anew in between.

Where something is short the relaxed choice splits what no whole ways serve together, and ways found at its prices
seldom fit into what others leave. So services whose way is all but clear are decided first, and for the others ways are
looked for at the prices of what is left (a dive in branch and price, Sadykov et al. 2019). The last few are left open:
so few are planned together cell by cell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from solvers.deadline import DIVE_PRICED_UNTIL, DIVE_UNTIL
from solvers.errors import SolveFailed
from solvers.planner.model.relax import Solution
from solvers.planner.pools.cells import Floats
from solvers.planner.wide.wide import SPLIT, Wide

MOST_OPEN = 8  # services that are left open
LEAST_EVERY, PRICINGS = 4, 12  # services decided between two pricings, or so many of these
CHOICES = 60  # relaxed choices at most, of services beyond decided several at once
PARTS = 8000  # of the demand; no bound comes of these prices
MOST_REFUSED = 12  # ways taken back, because they left the others no way or only dear ones
RISE = 1.0  # of the gap asked, what a way that is decided may add to the relaxed choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Dived:
    """Replicas by cell of the services that were decided, (C,), and those that are still open."""

    replicas: Floats
    open: tuple[int, ...]


def dived(wide: Wide) -> Dived | None:
    """Decide all services but a few; None where what tiers are held at cannot be kept so, or time is nearly over.

    Where too many ways were taken back, more are left open.
    """
    part = replace(
        wide, kept=[*wide.kept], wanted=[*wide.wanted], branches=[], search=replace(wide.search, is_on=False)
    )
    coarse = [replace(stocks, parts=min(stocks.parts, PARTS)) for stocks in wide.stocks]
    every, at_once = (max(least, len(coarse) // share) for least, share in ((LEAST_EVERY, PRICINGS), (1, CHOICES)))
    decided: dict[int, int] = {}
    refused: set[int] = set()
    pricings, value, new, last = 0, np.inf, list[int](), None
    while True:
        among = _among(wide, decided, refused)
        relaxed = _relaxed(part, among)
        is_dear = relaxed is None or relaxed.value > value + RISE * wide.gap * abs(value)
        if (new and is_dear and len(refused) < MOST_REFUSED) or relaxed is None:
            if not decided or len(refused) >= MOST_REFUSED:
                return last
            for service in new or [*decided][-1:]:
                refused_way = decided.pop(service)
            refused.add(refused_way)
            new = []
            continue
        value, new = relaxed.value, []
        split = _split(wide, among, relaxed, decided)
        last = _written(wide, among, relaxed, split)
        if len(split) <= MOST_OPEN:
            return last
        if wide.crew.is_late(DIVE_UNTIL):
            return None
        if pricings <= len(decided) // every and not wide.crew.is_late(DIVE_PRICED_UNTIL):
            pricings += 1
            known = len(wide.table.ways)
            part.stocks = [replace(mine, demand_per_s=0.0) if s in decided else mine for s, mine in enumerate(coarse)]
            part.priced(part.choice_prices(relaxed))
            if len(wide.table.ways) > known:
                continue
        new = sorted(split, key=lambda s: (-split[s][0], s))[: min(at_once, len(split) - MOST_OPEN)]
        decided |= {service: split[service][1] for service in new}


def _relaxed(part: Wide, among: list[int]) -> Solution | None:
    """The relaxed choice; None where these ways cannot keep the limits together."""
    try:
        return part.relaxed(among)
    except SolveFailed:
        return None


def _among(wide: Wide, decided: Mapping[int, int], refused: Collection[int]) -> list[int]:
    """Ways that may be chosen still: of decided services those that were."""
    services = wide.table.service.tolist()
    return [w for w, s in enumerate(services) if w not in refused and decided.get(s, w) == w]


def _split(wide: Wide, among: list[int], relaxed: Solution, decided: Mapping[int, int]) -> dict[int, tuple[float, int]]:
    """The largest share of any way, and that way, of each service that is split."""
    found: dict[int, tuple[float, int]] = {}
    shares, services = relaxed.x, wide.table.service[among]
    for at in np.flatnonzero((shares > SPLIT) & (shares < 1.0 - SPLIT)).tolist():
        service = int(services[at])
        if service not in decided:
            found[service] = max(found.get(service, (0.0, -1)), (float(shares[at]), among[at]))
    return found


def _written(wide: Wide, among: list[int], relaxed: Solution, split: Mapping[int, tuple[float, int]]) -> Dived:
    services = wide.table.service
    whole = (way for way, share in zip(among, relaxed.x, strict=True) if share > 0.5)
    replicas = wide.table.replicas([way for way in whole if int(services[way]) not in split])
    return Dived(replicas=replicas, open=tuple(sorted(split)))
