"""What the losses that would touch one service are predicted to cost: the service itself, its GPUs, its watts."""

from __future__ import annotations

from collections.abc import Iterator

from solvers.errors import InvalidInput
from solvers.explain.changes import Change, RemoveGpus, RemoveService, RemoveWatts, changed
from solvers.explain.predict import Predictor
from solvers.explain.shadow import Loss
from solvers.fleet import ANYWHERE
from solvers.planner.splits.splitting import whole_name
from solvers.power import charged_domains

MOST_PLACES = 3
MOST_FEEDS = 3


def losses(predictor: Predictor, service: str) -> tuple[Loss, ...]:
    """Predict losing the service, a GPU where most of it runs, and a kilowatt of the fullest feeds there.

    Of a part of a service that is split by size: losing all of the service, and what that part uses.
    """
    found = []
    for change in _changes(predictor, service):
        try:
            changed(predictor.problem, change)
        except InvalidInput:
            continue  # a feed of less than a kilowatt, a location without a usable GPU: nothing to lose
        told = predictor.after(change)
        found.append(
            Loss(
                change=str(change),
                low_usd_per_hour=told.low_usd_per_hour,
                expected_usd_per_hour=told.expected_usd_per_hour,
                high_usd_per_hour=told.high_usd_per_hour,
                short=told.short,
                keeps_cuts=told.keeps_cuts,
            )
        )
    return tuple(found)


def _changes(predictor: Predictor, service: str) -> Iterator[Change]:
    yield RemoveService(service=whole_name(service)[0])
    rows = [row for row in predictor.opened.plan.placements if row.pool.service == service and row.location != ANYWHERE]
    held: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (row.pool.gpu_class, row.location)
        held[key] = held.get(key, 0) + row.replicas * row.pool.config.gpus
    places = sorted(held, key=lambda key: (-held[key], key))[:MOST_PLACES]
    yield from (RemoveGpus(gpu_class=gpu_class, location=location) for gpu_class, location in places)
    feeds = {d for gpu_class, at in places for d in charged_domains(predictor.problem.nodes, gpu_class, at)}
    yield from (RemoveWatts(domain=domain) for domain in _fullest(predictor, feeds)[:MOST_FEEDS])


def _fullest(predictor: Predictor, feeds: set[str]) -> list[str]:
    """Domains by the watts that the plan leaves in them."""
    reserved = {row.domain: row.reserved_watts for row in predictor.plan.domains}
    known = [name for name in feeds if name in predictor.problem.domains]
    return sorted(known, key=lambda d: (predictor.problem.domains[d].usable_watts - reserved.get(d, 0.0), d))
