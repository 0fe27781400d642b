"""Demand far beyond what a fleet could ever carry, brought within reach of the solver's arithmetic and said in full.

A solver works to about six digits. Where a service asks for 10⁹ requests/s of a fleet that carries ten, serving them
would be lost in its rounding, and in the gap that it stops at. So what is planned for is capped at a multiple of what
could be carried; the rest is unserved in every plan, and is added to demand, penalties, objective and bound afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from solvers.plan import Plan, ServicePlan, SolveStatus
from solvers.planner.placing.desk import Desk
from solvers.planner.pools.cells import PROMPT_ROLES, TOKEN_ROLES
from solvers.problem import Problem

FAR_BEYOND = 10.0
"""Times what the whole fleet could carry for a service; beyond, more demand changes no decision.

Every solve stops at a gap relative to its objective. Penalties of what nobody could ever serve are part of that, and at
a hundred times the reach the gap would be as large as all that can be served.
"""

PLANNED_FOR = 3.0
"""Times what the whole fleet could carry, for which a service that asks for more than ``FAR_BEYOND`` is planned."""

RELIEF_NOTE = f"relief serves {PLANNED_FOR:g} times what every GPU together could carry, not all that is asked"

GPU_REQUESTS_PER_S = 5.0
"""Demand below this for every GPU of the fleet needs no closer look."""


def is_far_beyond(problem: Problem) -> bool:
    """Tell whether some service may ask for more than arithmetic can tell from everything."""
    most = GPU_REQUESTS_PER_S * max(1, sum(_gpus(problem).values()))
    return any(demand.requests_per_s > most for demand in problem.demands.values())


def within_reach(desk: Desk) -> Problem:
    """The same problem, where no service asks for more than ``FAR_BEYOND`` times what all GPUs could carry for it."""
    problem, gpus = desk.problem, _gpus(desk.problem)
    demands = dict(problem.demands)
    for service in problem.services:
        reach = max(1.0, _reach_per_s(desk, service.name, gpus))
        asked = demands[service.name]
        if asked.requests_per_s > FAR_BEYOND * reach:
            demands[service.name] = replace(asked, requests_per_s=PLANNED_FOR * reach)
    return problem if demands == problem.demands else replace(problem, demands=demands)


def _gpus(problem: Problem) -> dict[str, int]:
    gpus: dict[str, int] = {}
    for node in problem.nodes:
        gpus[node.gpu_class] = gpus.get(node.gpu_class, 0) + node.gpus_usable
    return gpus


def _reach_per_s(desk: Desk, service: str, gpus: Mapping[str, int]) -> float:
    """The most that a chain could carry if it had every GPU to itself; the lesser chain counts."""
    chains = []
    for roles in (PROMPT_ROLES, TOKEN_ROLES):
        best: dict[str, float] = {}
        for option in desk.options.of(service):
            if option.pool.role in roles:
                rate = option.steps[-1].capacity_requests_per_s / option.gpus
                best[option.pool.gpu_class] = max(best.get(option.pool.gpu_class, 0.0), rate)
        chains.append(sum(gpus.get(name, 0) * rate for name, rate in best.items()))
    return min(chains)


def said_in_full(desk: Desk, plan: Plan, asked: Problem) -> Plan:
    """The plan of what is within reach, as the plan of what is asked.

    Parameters
    ----------
    desk : Desk
        Of the problem that was planned; its penalties price the rest.
    """
    extra: dict[str, float] = {}
    for name, demand in desk.problem.demands.items():
        beyond = asked.demands[name].requests_per_s - demand.requests_per_s
        if beyond > 0.0:
            extra[name] = desk.penalties.of_unserved(name, 1.0) * beyond / demand.requests_per_s
    services = tuple(_in_full(row, asked, extra.get(row.service, 0.0)) for row in plan.services)
    report, more = plan.report, sum(extra.values())
    value, bound = report.objective_usd_per_hour + more, report.bound_usd_per_hour + more
    gap = (value - bound) / max(abs(value), 1e-9)
    status = SolveStatus.OPTIMAL if gap <= asked.policy.relative_gap + 1e-9 else SolveStatus.FEASIBLE
    notes = (*report.notes, RELIEF_NOTE) if plan.relief else report.notes
    report = replace(
        report, objective_usd_per_hour=value, bound_usd_per_hour=bound, gap_ratio=gap, status=status, notes=notes
    )
    return replace(plan, services=services, report=report, certificate=None)  # its prices are of less demand


def _in_full(row: ServicePlan, asked: Problem, extra: float) -> ServicePlan:
    demand = asked.demands[row.service].requests_per_s
    penalty = row.penalty_usd_per_hour + extra
    return replace(row, demand_requests_per_s=demand, penalty_usd_per_hour=penalty)
