"""Branches of a bound: what of a certificate holds in one, and whether every plan lies in one or another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from solvers.certificate import Branch, Certificate

MOST_BRANCHES = 1000  # nobody needs more, and each takes seconds
ALL = 0.0, math.inf

Box = Mapping[str, tuple[float, float]]
"""By service what is left undone, at least and at most; any amount where nothing is said."""


def in_branch(shown: Certificate, branch: Branch) -> Certificate:
    """The prices of the branch as a certificate without any."""
    held = tuple(replace(tier, price_ratio=p) for tier, p in zip(shown.held, branch.held_ratios, strict=True))
    return replace(shown, rows=branch.rows, held=held, branches=(), usd_per_hour=branch.usd_per_hour)


def branch_faults(shown: Certificate, services: Sequence[str]) -> Iterator[str]:
    """Find branches that bound nothing, and plans that lie in none of them."""
    if len(shown.branches) > MOST_BRANCHES:
        yield f"{len(shown.branches)} branches, {MOST_BRANCHES} at most"
        return
    for index, branch in enumerate(shown.branches):
        name = f"branch {index + 1}"
        if not math.isfinite(branch.usd_per_hour) or branch.usd_per_hour < shown.usd_per_hour:
            yield f"{name} supports {branch.usd_per_hour:g} USD/h, the certificate {shown.usd_per_hour:g}"
        if len(branch.held_ratios) != len(shown.held):
            yield f"{name} has {len(branch.held_ratios)} prices of {len(shown.held)} held tiers"
        named = [row.service for row in branch.undone]
        for service in sorted({s for s in named if s not in services or named.count(s) > 1}):
            yield f"{name} speaks of {service}, which there is not, or twice"
    boxes = [_box(branch) for branch in shown.branches]
    if shown.branches and not _covers(boxes, {}):
        yield "some plans lie in none of the branches"


def _box(branch: Branch) -> dict[str, tuple[float, float]]:
    return {row.service: (row.least_usd_per_hour, row.most_usd_per_hour) for row in branch.undone}


def _covers(boxes: Sequence[Box], region: Box) -> bool:
    """Tell whether the boxes together hold the region: cut it where a box begins or ends, and look at each piece."""
    met = [box for box in boxes if all(_overlap(limits, region.get(name, ALL)) for name, limits in box.items())]
    for box in met:
        cuts = [(name, at) for name, limits in sorted(box.items()) for at in limits if _is_inside(at, region, name)]
        if not cuts:
            return True  # this one holds all of it
    if not met:
        return False
    name, at = next((n, at) for n, limits in sorted(met[0].items()) for at in limits if _is_inside(at, region, n))
    least, most = region.get(name, ALL)
    return _covers(met, {**region, name: (least, at)}) and _covers(met, {**region, name: (at, most)})


def _overlap(limits: tuple[float, float], region: tuple[float, float]) -> bool:
    return max(limits[0], region[0]) < min(limits[1], region[1])


def _is_inside(at: float, region: Box, name: str) -> bool:
    least, most = region.get(name, ALL)
    return least < at < most
