"""Many replays at once through joblib: on local cores, or on a Dask or Ray cluster that the user names.

Every run is a ``Job``: a value that says everything, so that it gives the same numbers wherever and in whatever order
it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import joblib

from controller.clusters import on_cluster
from controller.traces_spec import TraceSpec, load_of
from solvers.evaluate import Settings, Summary, evaluate, in_parts
from solvers.plan import Plan
from solvers.policies import make_policy
from solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run. ``trace`` and ``plan_name`` are what tables call it by."""

    problem: Problem
    plan: Plan
    plan_name: str
    specs: Mapping[str, TraceSpec]
    trace: str
    factors: Mapping[str, float]
    policy: str
    seed: int
    settings: Settings


def run_job(job: Job) -> Summary:
    """Make the load and the policy anew and evaluate; random failures are of the job's seed too."""
    load = load_of(job.specs, job.problem.demands, job.factors, job.seed)
    problem, plan, load = in_parts(job.problem, job.plan, load)
    policy = make_policy(job.policy, problem, plan)
    settings, failures = job.settings, job.settings.failures
    if failures is not None:
        settings = replace(settings, failures=replace(failures, seed=job.seed))
    return evaluate(problem, plan, load, policy, settings)


def run_jobs(jobs: Sequence[Job], workers: int, cluster: str | None = None) -> list[Summary]:
    """Run all, in the order of ``jobs`` whatever ends first; progress goes to standard error when there are several.

    Parameters
    ----------
    workers : int
        Processes on this machine; 1 runs them here, one by one.
    cluster : str, optional
        ``dask`` or ``ray`` for a local one, ``dask=ADDRESS`` or ``ray=ADDRESS`` for one that runs already.

    Raises
    ------
    InvalidInput
        When the cluster is unknown or its package is not installed.
    """
    if len(jobs) == 1 and cluster is None:
        return [run_job(jobs[0])]
    with on_cluster(cluster, workers) if cluster is not None else nullcontext():
        streams = joblib.parallel.get_active_backend()[0].supports_return_generator  # Ray's backend does not
        return_as = "generator" if streams else "list"
        parallel = joblib.Parallel(n_jobs=-1 if cluster else workers, return_as=return_as, pre_dispatch="all")
        return list(_shown(jobs, parallel(joblib.delayed(run_job)(job) for job in jobs)))


def _shown(jobs: Sequence[Job], summaries: Iterable[Summary]) -> Iterator[Summary]:
    for number, (job, summary) in enumerate(zip(jobs, summaries, strict=True), start=1):
        words = f"{job.policy}, {job.trace}, seed {job.seed}: {100 * summary.in_slo_ratio:.1f} % inside their SLOs"
        print(f"[{number}/{len(jobs)}] {words}", file=sys.stderr)
        yield summary
