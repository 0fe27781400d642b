"""The cheapest GPU for each service, one service at a time.

Imitates what a cost-per-token table leads to: for every service, in order of tier, the GPU class and engine
configuration that carry its whole demand for the least money, as many replicas as the demand needs; when they run out,
the next cheapest. Differs from a person with a spreadsheet in its favour: counts come from the exact sizing, prefill
and decode are sized to each other, and places go to the feeds with most watts left.
"""

from __future__ import annotations

from solvers.baselines.stage import Stage
from solvers.plan import Plan
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity

NAME = "greedy"


def greedy(problem: Problem, *, capacity_of: CapacityOf = replica_capacity) -> Plan:
    """Take the cheapest way of every service, then the next cheapest for what had no room.

    Raises
    ------
    InvalidInput
        The problem itself is malformed.
    """
    stage = Stage.of(problem, capacity_of)
    for service in stage.services:
        ways = stage.ways(service)
        for way in ways:
            missing = stage.missing_per_s(service)
            if missing <= 0.0:
                break
            stage.place_way(service, way, missing)
        stage.keep_floor(service, ways)
    return stage.write(NAME)
