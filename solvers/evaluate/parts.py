"""Replays of plans that split services by size: every part is a service of its own, and requests go by their prompts.

A replay keeps the cut of the plan that it begins with, whatever is decided on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solvers.errors import InvalidInput
from solvers.evaluate.load import Load
from solvers.plan import Plan
from solvers.planner.splits.splitting import Cuts, cuts_of, part_name, split, split_plan
from solvers.problem import Problem
from solvers.simulate import Workload
from solvers.sizes import SizeRange


def in_parts(problem: Problem, plan: Plan, load: Load) -> tuple[Problem, Plan, Load]:
    """Open problem, plan and load into plain services; as they are where nothing is split.

    Raises
    ------
    InvalidInput
        For clients of a service that is split: they take requests of all sizes in turn.
    """
    cuts = cuts_of(plan)
    if not cuts and not any(service.splits_by_size for service in problem.services):
        return problem, plan, load
    parted = split(problem, cuts)
    plain = replace(parted, services=tuple(replace(s, splits_by_size=False) for s in parted.services))
    return plain, split_plan(plan, cuts), _routed(load, cuts)


def _routed(load: Load, cuts: Cuts) -> Load:
    for group in load.clients:
        for name in sorted(set(group.workload.services) & set(cuts)):
            remedy = "replay arrivals, or a plan that does not split it"
            raise InvalidInput(f"ServedModel/{name}", "clients", "wait for answers of a service split by size", remedy)
    return replace(load, workload=_by_prompt(load.workload, cuts)) if len(load.workload) else load


def _by_prompt(workload: Workload, cuts: Cuts) -> Workload:
    """Give every request the index of its part."""
    names: list[str] = []
    owner = np.array(workload.service)
    for index, service in enumerate(workload.services):
        mine = workload.service == index
        ranges = cuts.get(service, ())
        owner[mine] = len(names) + _range_of(workload.prompt_tokens[mine], ranges)
        names += [part_name(service, sizes) for sizes in ranges] or [service]
    return replace(workload, services=tuple(names), service=owner)


def _range_of(prompt_tokens: np.ndarray, ranges: Sequence[SizeRange]) -> np.ndarray:
    """Which of the ranges holds each prompt; 0 where there is none."""
    starts = np.array([sizes.least for sizes in ranges[1:]], dtype=np.int64)
    found: np.ndarray = np.searchsorted(starts, prompt_tokens, side="right")
    return found
