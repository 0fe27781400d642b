"""Write down what a bound rests on, so that ``solvers.verify.bound`` can find it again without any of this code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from solvers.certificate import (
    CEILING,
    GPUS,
    POWER,
    POWER_WHOLE,
    QUOTA_GPUS,
    QUOTA_POWER,
    Certificate,
    HeldTier,
    PricedRow,
    ServiceWeights,
)
from solvers.planner.bound import dual_bound
from solvers.planner.cells import Cells, Floats
from solvers.planner.compose import shared_rows
from solvers.planner.grouping import BayGroup, DomainGroup
from solvers.planner.quotas import QuotaRow, quota_rows
from solvers.planner.relax import Arrays
from solvers.planner.tally import Worth

SHOWN = frozenset({GPUS, POWER, POWER_WHOLE, QUOTA_GPUS, QUOTA_POWER})
"""Limits whose prices are shown; a bound that others priced too may not be found again."""

UNSHOWN = frozenset({"pin", "locations", "hung", "share", "spot", "pairs", "flow", "crossing", "link", "resources"})
"""Limits of which a certificate says nothing, though the relaxation prices them."""


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What a search's bound rests on; ``free`` and ``free_usd_per_hour`` are true whatever the tiers lack."""

    shown: Certificate | None = None
    held: tuple[HeldTier, ...] = ()
    free: Certificate | None = None
    free_usd_per_hour: float = 0.0

    def hold(self, free_usd_per_hour: float, held: tuple[HeldTier, ...]) -> None:
        """Say that from now on the bound is of plans that leave no tier more short than these."""
        if not self.held:
            self.free, self.free_usd_per_hour = self.shown, free_usd_per_hour
        self.held = held

    def of(self, worth: Worth, bound_usd_per_hour: float) -> tuple[float, Certificate | None]:
        """The bound of the plans that leave no held tier more short than this one does, and its evidence."""
        prices = np.array([tier.price_ratio for tier in self.held])
        held, beyond = held_tiers(worth, prices), 0.0
        for tier, mine in zip(self.held, held, strict=True):
            beyond += tier.price_ratio * max(0.0, mine.lacking_usd_per_hour - tier.lacking_usd_per_hour)
        bound, shown = bound_usd_per_hour - beyond, self.shown and replace(self.shown, held=held)
        if self.held and bound <= self.free_usd_per_hour:
            bound, bound_usd_per_hour, shown = self.free_usd_per_hour, self.free_usd_per_hour, self.free
        return bound, shown and replace(shown, is_searched=bound_usd_per_hour > shown.usd_per_hour)


def held_tiers(worth: Worth, prices: Floats) -> tuple[HeldTier, ...]:
    """What a plan leaves undone in each of the tiers that have a price, from the top."""
    lacking = sorted(worth.lacking_usd_by_tier.items())[: len(prices)]
    return tuple(
        HeldTier(tier_rank=rank, lacking_usd_per_hour=lacks, price_ratio=price)
        for (rank, lacks), price in zip(lacking, prices.tolist(), strict=True)
    )


def best_certificate(cells: Cells, arrays: Arrays, duals: Floats, prices: Floats, usd_per_hour: float) -> Certificate:
    """Name the prices that say most: those of ways, or the relaxation's, which knows ceilings.

    Parameters
    ----------
    duals : (rows,) float
        Prices of the relaxed model's rows.
    prices : (R,) float
        Of the rows ``shared_rows(arrays)``, then of links; with them no plan costs less than ``usd_per_hour``.

    Notes
    -----
    Rows that no certificate shows count for nothing: what the bound owes to them is told as found by search.
    """
    known = np.array([limit not in UNSHOWN for limit, _ in arrays.rows], dtype=bool)
    relaxed = dual_bound(arrays, np.where(known, duals, 0.0))
    if not relaxed > usd_per_hour:
        return certificate(cells, arrays, prices, usd_per_hour)
    shown = certificate(cells, arrays, np.maximum(0.0, -duals[shared_rows(arrays)]), relaxed)
    return replace(shown, rows=(*shown.rows, *_ceilings(arrays, duals)))


def _ceilings(arrays: Arrays, duals: Floats) -> Iterator[PricedRow]:
    for (limit, subject), dual in zip(arrays.rows, duals.tolist(), strict=True):
        if limit == CEILING and dual < 0.0:
            service, _, role = subject.rpartition(" ")
            yield PricedRow(limit=limit, places=(service,), role=role, usd_per_hour=-dual)


def certificate(cells: Cells, arrays: Arrays, prices: Floats, usd_per_hour: float) -> Certificate:
    """Name the prices of the shared rows and the weights of failing.

    Parameters
    ----------
    prices : (R,) float
        Of the rows ``shared_rows(arrays)``, then of links, at least 0.

    Notes
    -----
    Nothing is said of resources beside GPUs and of links, and who pairs with whom is not known to the check: where
    these have a price or cost something, or a service pairs in groups or at locations, nothing of the bound is certain
    to be found again.
    """
    rows = [arrays.rows[row] for row in shared_rows(arrays)]
    shown, places = prices[: len(rows)].tolist(), _Places.of(cells)
    named = zip(rows, _whole_watts(cells, rows), shown, strict=True)
    is_unsaid = any(price > 0.0 and limit not in SHOWN for (limit, _), price in zip(rows, shown, strict=True))
    is_certain = not (is_unsaid or _is_crossing_paid(cells, prices[len(rows) :]) or cells.pairing.parted)
    priced = [
        places.row(limit, subject, watts, price)
        for (limit, subject), watts, price in named
        if price > 0.0 and limit in SHOWN
    ]
    return Certificate(
        usd_per_hour=usd_per_hour if is_certain else 0.0,
        rows=tuple(priced),
        weights=tuple(
            ServiceWeights(
                service=service.name,
                unserved_usd_per_hour=float(cells.penalty_usd_per_hour[s]),
                floor_usd_per_hour=float(cells.floor_usd_per_hour[s]),
                fair_ratio=float(cells.fair_ratio[s]),
            )
            for s, service in enumerate(cells.services)
        ),
    )


def _is_crossing_paid(cells: Cells, of_links: Floats) -> bool:
    """True where links cost something, or are full."""
    links = cells.links.links.values() if cells.links.order else ()
    return bool(of_links.any()) or any(link.usd_per_terabyte > 0.0 for link in links)


def known_duals(cells: Cells, arrays: Arrays, known: Certificate) -> Floats:
    """What a certificate says of the shared rows, the mean over their places, as duals of all rows, (M,).

    Any prices bound the objective; those that an earlier bound of nearly the same problem was found at do so well.
    """
    said: dict[tuple[str, str, float], dict[str, float]] = {}
    for row in known.rows:
        said.setdefault((row.limit, row.gpu_class, row.size), {}).update(dict.fromkeys(row.places, row.usd_per_hour))
    shared, places, duals = shared_rows(arrays), _Places.of(cells), np.zeros(len(arrays.rows))
    rows = [arrays.rows[row] for row in shared]
    for index, (limit, subject), watts in zip(shared, rows, _whole_watts(cells, rows), strict=True):
        if limit in SHOWN:
            at = places.row(limit, subject, watts, 0.0)
            there = said.get((at.limit, at.gpu_class, at.size), {})
            duals[index] = -sum(there.get(place, 0.0) for place in at.places) / len(at.places)
    return duals


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Places and quotas by the labels that the rows of the model have."""

    groups: Mapping[str, BayGroup]
    domains: Mapping[str, DomainGroup]
    quotas: Mapping[tuple[str, str], QuotaRow]

    @classmethod
    def of(cls, cells: Cells) -> _Places:
        return cls(
            groups={group.label: group for group in cells.grouping.groups},
            domains={domain.label: domain for domain in cells.grouping.domain_groups},
            quotas={(row.limit, row.subject): row for row in quota_rows(cells.problem)},
        )

    def row(self, limit: str, subject: str, watts: float, price: float) -> PricedRow:
        if limit == GPUS:
            label, _, size = subject.rpartition(" x")
            group = self.groups[label]
            places, gpu_class, amount = tuple(bay.location for bay in group.bays), group.gpu_class, float(size)
        elif limit in (POWER, POWER_WHOLE):
            label = subject.rpartition(" by ")[0] if limit == POWER_WHOLE else subject
            places, gpu_class, amount = self.domains[label].domains, "", watts
        else:
            quota = self.quotas[limit, subject]
            places, gpu_class, amount = (quota.namespace,), quota.gpu_class, 0.0
        return PricedRow(limit=limit, places=places, gpu_class=gpu_class, size=amount, usd_per_hour=price)


def _whole_watts(cells: Cells, rows: list[tuple[str, str]]) -> Iterator[float]:
    """Watts of the replica that each row counts in, exact; its subject says them rounded. 0 for other rows."""
    sizes: dict[str, list[float]] = {}
    for watts in sorted({option.reserved_watts for option in cells.pools}):
        sizes.setdefault(f"{watts:.0f} W", []).append(watts)
    taken: dict[str, int] = {}
    for limit, subject in rows:
        if limit != POWER_WHOLE:
            yield 0.0
            continue
        alike = sizes[subject.rpartition(" by ")[2]]
        yield alike[min(taken.get(subject, 0), len(alike) - 1)]
        taken[subject] = taken.get(subject, 0) + 1
