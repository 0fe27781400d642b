"""One feed that holds what must be served and one and a half large replicas."""

from __future__ import annotations

from solvers.engine import Role
from solvers.problem import Problem
from tests import fleets


def at_one_feed() -> Problem:
    """Watts for what must be served and one and a half large replicas: relaxed, as much as one and a half serve."""
    small = fleets.service("small", "small", rank=0, roles=(Role.MIXED,))
    large = fleets.service("large", "large", rank=1, roles=(Role.MIXED,))
    fleet = fleets.nodes("h100-sxm", 8, "rack-1")
    replica_watts = 700.0 + 150.0 - 70.0
    watts = 64 * 70.0 + (10 + 1.5 * 8) * replica_watts
    profiles = [fleets.profile("small", "h100-sxm", 1, 8.0), fleets.profile("large", "h100-sxm", 8, 70.0)]
    return fleets.problem([(small, 14.0), (large, 40.0)], fleet, profiles, budgets={"site": watts})
