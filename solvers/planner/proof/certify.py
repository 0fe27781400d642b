"""Write down what a bound rests on, so that ``solvers.verify.bound`` can find it again without any of this code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solvers.certificate import (
    CEILING,
    GPUS,
    LINK_IN,
    LINK_OUT,
    POWER,
    POWER_WHOLE,
    RESOURCES,
    RESOURCES_WHOLE,
    Branch,
    Certificate,
    HeldTier,
    PricedRow,
    ServiceWeights,
    Undone,
)
from solvers.planner.bays.grouping import BayGroup, DomainGroup
from solvers.planner.bays.quotas import QuotaRow, quota_rows
from solvers.planner.menus.compose import shared_rows
from solvers.planner.model.limits_resources import resource_row, roomiest
from solvers.planner.model.relax import Arrays
from solvers.planner.pools.cells import Cells, Floats
from solvers.planner.pools.tally import Worth
from solvers.planner.proof.bound import dual_bound

UNSHOWN = frozenset({"pin", "locations", "hung", "share", "spot"})
"""Limits of which a certificate says nothing, though the relaxation prices them."""

LINK_LIMITS = (LINK_OUT, LINK_IN)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchPrices:
    """A branch: penalties that its plans have by service, its prices (R,), those of held tiers (T,), and its bound."""

    penalties: Mapping[int, tuple[float, float]]
    prices: Floats
    held_ratios: Floats
    usd_per_hour: float


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
        shown = self.shown and replace(self.shown, held=held)
        if shown and shown.branches:
            shown = _beside(shown, self.held)
            beyond = bound_usd_per_hour - shown.usd_per_hour
        bound = bound_usd_per_hour - beyond
        if self.held and bound <= self.free_usd_per_hour:
            bound, bound_usd_per_hour, shown = self.free_usd_per_hour, self.free_usd_per_hour, self.free
        return bound, shown and replace(shown, is_searched=bound_usd_per_hour > shown.usd_per_hour)


def _beside(shown: Certificate, held: tuple[HeldTier, ...]) -> Certificate:
    """The certificate of a plan that may leave more undone of held tiers than its branches were bounded beside."""
    before = [tier.lacking_usd_per_hour for tier in held]
    now = [tier.lacking_usd_per_hour for tier in shown.held]
    more = [max(0.0, mine - old) for mine, old in zip(now, before, strict=True)]
    branches = tuple(
        replace(b, usd_per_hour=b.usd_per_hour - sum(p * m for p, m in zip(b.held_ratios, more, strict=True)))
        for b in shown.branches
    )
    return replace(shown, branches=branches, usd_per_hour=min(branch.usd_per_hour for branch in branches))


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
    return replace(shown, rows=(*shown.rows, *_ceilings(arrays, duals), *_links(cells, _link_prices(arrays, duals))))


def _ceilings(arrays: Arrays, duals: Floats) -> Iterator[PricedRow]:
    for (limit, subject), dual in zip(arrays.rows, duals.tolist(), strict=True):
        if limit == CEILING and dual < 0.0:
            service, _, role = subject.rpartition(" ")
            yield PricedRow(limit=limit, places=(service,), role=role, usd_per_hour=-dual)


def _link_prices(arrays: Arrays, duals: Floats) -> Floats:
    """Of whole links by class, out and then in, (2 K,)."""
    rows = [row for row, (limit, _) in enumerate(arrays.rows) if limit == "link"]
    prices: Floats = np.maximum(0.0, -duals[rows])
    return prices


def _links(cells: Cells, prices: Floats) -> Iterator[PricedRow]:
    for row, price in enumerate(prices.tolist()):
        way, link = divmod(row, len(cells.grouping.links))
        if price > 0.0:
            yield PricedRow(limit=LINK_LIMITS[way], places=cells.grouping.links[link], usd_per_hour=price)


def certificate(cells: Cells, arrays: Arrays, prices: Floats, usd_per_hour: float) -> Certificate:
    """Name the prices of the shared rows and the weights of failing.

    Parameters
    ----------
    prices : (R,) float
        Of the rows ``shared_rows(arrays)``, then of links, at least 0.
    """
    rows = [arrays.rows[row] for row in shared_rows(arrays)]
    shown, places = prices[: len(rows)].tolist(), _Places.of(cells)
    named = zip(rows, _whole_watts(cells, rows), shown, strict=True)
    priced = [places.row(limit, subject, watts, price) for (limit, subject), watts, price in named if price > 0.0]
    return Certificate(
        usd_per_hour=usd_per_hour,
        rows=(*priced, *_links(cells, prices[len(rows) :])),
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


def in_branches(cells: Cells, arrays: Arrays, shown: Certificate, branches: Sequence[BranchPrices]) -> Certificate:
    """Show that every branch has a bound of its own, and that the least of these is the certificate's."""
    names = [service.name for service in cells.services]
    found = tuple(
        Branch(
            usd_per_hour=branch.usd_per_hour,
            undone=tuple(
                Undone(service=names[s], least_usd_per_hour=least, most_usd_per_hour=most)
                for s, (least, most) in sorted(branch.penalties.items())
            ),
            rows=certificate(cells, arrays, branch.prices, branch.usd_per_hour).rows,
            held_ratios=tuple(branch.held_ratios.tolist()),
        )
        for branch in branches
    )
    return replace(shown, usd_per_hour=min(branch.usd_per_hour for branch in found), branches=found)


def known_duals(cells: Cells, arrays: Arrays, known: Certificate) -> Floats:
    """What a certificate says of the shared rows, the mean over their places, as duals of all rows, (M,).

    Any prices bound the objective; those that an earlier bound of nearly the same problem was found at do so well.
    """
    said: dict[tuple[str, str, float, str], dict[str, float]] = {}
    for row in known.rows:
        said.setdefault(_kind(row), {}).update(dict.fromkeys(row.places, row.usd_per_hour))
    shared, places, duals = shared_rows(arrays), _Places.of(cells), np.zeros(len(arrays.rows))
    rows = [arrays.rows[row] for row in shared]
    for index, (limit, subject), watts in zip(shared, rows, _whole_watts(cells, rows), strict=True):
        at = places.row(limit, subject, watts, 0.0)
        there = said.get(_kind(at), {})
        duals[index] = -sum(there.get(place, 0.0) for place in at.places) / len(at.places)
    return duals


def _kind(row: PricedRow) -> tuple[str, str, float, str]:
    return row.limit, row.gpu_class, row.size, row.resource


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
        if limit == RESOURCES:
            return self._resource(subject, price)
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

    def _resource(self, subject: str, price: float) -> PricedRow:
        """In shares of the roomiest node, or in pods that ask for so much: ``limit_resources`` says which."""
        name, label, size = resource_row(subject, self.groups)
        group = self.groups[label]
        return PricedRow(
            limit=RESOURCES_WHOLE if size else RESOURCES,
            places=tuple(bay.location for bay in group.bays),
            gpu_class=group.gpu_class,
            resource=name,
            size=size or roomiest(group, name),
            usd_per_hour=price,
        )


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
