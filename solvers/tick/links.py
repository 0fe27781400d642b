"""What links between locations leave of what a tick's caps could serve."""

from __future__ import annotations

import numpy as np

from solvers.capping.cells import CapCells, Floats
from solvers.fleet import PoolKey
from solvers.planner.bays.links import Links


def over_links(
    links: Links, cells: CapCells, carried: Floats, served: Floats, shares: Floats
) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Serve no more than the links carry, pairs on one side of them first.

    Parameters
    ----------
    carried : (C,) float
        Requests/s that each cell carries.
    served, shares : (S,) and (P,) float
        Without any link.

    Returns
    -------
    served, shares, notes
    """
    if not links.order:
        return served, shares, ()
    by_service: dict[str, dict[tuple[PoolKey, str], float]] = {name: {} for name in links.order}
    for (pool, at), rate in zip(cells.places, carried.tolist(), strict=True):
        if pool.service in by_service:
            by_service[pool.service][pool, at] = rate
    routes = {name: links.route(name, mine) for name, mine in by_service.items()}
    before = dict(zip(cells.services, served.tolist(), strict=True))
    after, notes = links.allowed(routes, before), list[str]()
    share_of = dict(zip(cells.pools, shares.tolist(), strict=True))
    for name, route in routes.items():
        share_of |= links.shares(route, by_service[name], after[name])
        if after[name] < before[name]:
            notes.append(f"kvLinks: {name} serves {before[name] - after[name]:g} requests/s less than it could")
    kept = np.array([after[name] for name in cells.services])
    return kept, np.array([share_of[pool] for pool in cells.pools]), tuple(notes)
