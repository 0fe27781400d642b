"""Reject links that mean nothing: without bandwidth, two of them at a location, traffic without a place."""

from __future__ import annotations

import math

from solvers.errors import InvalidInput
from solvers.problem import Problem
from solvers.workload import PlacementMode

SUBJECT = "FleetPolicy/default"
LEAST_BYTES_PER_S = 1.0
MOST_USD_PER_TERABYTE = 1e12


def check_links(problem: Problem) -> None:
    """Raise on the first link that cannot be planned with.

    Raises
    ------
    InvalidInput
        Names the link, its field, the number and the remedy.
    """
    held: dict[str, str] = {}
    names: set[str] = set()
    for index, link in enumerate(problem.policy.kv_links):
        field = f"kvLinks[{index}]"
        if link.name in names:
            raise InvalidInput(SUBJECT, f"{field}.name", f"{link.name} is given twice", "give each link its own name")
        names.add(link.name)
        if not LEAST_BYTES_PER_S <= link.bytes_per_s < math.inf:
            rate = "give a rate above 0, a byte a second at least"
            raise InvalidInput(SUBJECT, f"{field}.bytesPerSecond", f"is {link.bytes_per_s!r}", rate)
        if not 0.0 <= link.usd_per_terabyte <= MOST_USD_PER_TERABYTE:
            price = f"is {link.usd_per_terabyte!r}"
            remedy = f"give a price between 0 and {MOST_USD_PER_TERABYTE:g}"
            raise InvalidInput(SUBJECT, f"{field}.usdPerTerabyte", price, remedy)
        for location in link.locations:
            if location in held:
                where = f"{location} hangs on {held[location]} already"
                raise InvalidInput(SUBJECT, f"{field}.locations", where, "name each location in one link")
            held[location] = link.name
    for service in problem.services if names else ():
        if service.has_pairs and service.placement is PlacementMode.CLASS:
            remedy = "set placement Location, or allow the role mixed alone"
            placed = "is Class, which leaves open which links its keys and values cross"
            raise InvalidInput(f"ServedModel/{service.name}", "placement", placed, remedy)
