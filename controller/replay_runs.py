"""Many replays at once through joblib: on local cores, or on a Dask or Ray cluster that the user names.

Every run is a ``Job``: a value that says everything, so that it gives the same numbers wherever and in whatever order
it runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import joblib

from controller.traces_spec import TraceSpec, load_of
from solvers.errors import InvalidInput
from solvers.evaluate import Settings, Summary, evaluate
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
    """Make the load and the policy anew and evaluate."""
    load = load_of(job.specs, job.problem.demands, job.factors, job.seed)
    policy = make_policy(job.policy, job.problem, job.plan)
    return evaluate(job.problem, job.plan, load, policy, job.settings)


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
    with ExitStack() as stack:
        if cluster is not None:
            stack.enter_context(_cluster(cluster, workers, stack))
        parallel = joblib.Parallel(n_jobs=-1 if cluster else workers, return_as="generator", pre_dispatch="all")
        return list(_shown(jobs, parallel(joblib.delayed(run_job)(job) for job in jobs)))


def _shown(jobs: Sequence[Job], summaries: Iterator[Summary]) -> Iterator[Summary]:
    for number, (job, summary) in enumerate(zip(jobs, summaries, strict=True), start=1):
        words = f"{job.policy}, {job.trace}, seed {job.seed}: {100 * summary.in_slo_ratio:.1f} % inside their SLOs"
        print(f"[{number}/{len(jobs)}] {words}", file=sys.stderr)
        yield summary


# ---------------------------------------------------------------- clusters


def _cluster(text: str, workers: int, stack: ExitStack) -> AbstractContextManager[Any]:
    name, _, address = text.partition("=")
    if name not in CLUSTERS:
        remedy = f"write {' or '.join(f'{known}=ADDRESS' for known in CLUSTERS)}"
        raise InvalidInput("--cluster", "", f"{text!r} is unknown", remedy)
    return CLUSTERS[name](address, workers, stack)


def _dask(address: str, workers: int, stack: ExitStack) -> AbstractContextManager[Any]:
    """Joblib over a Dask client; without an address a cluster of threads in this process, on loopback only."""
    distributed = _needed("distributed", "dask")
    if not address:
        local = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            host="127.0.0.1",
            protocol="tcp",
        )
        address = stack.enter_context(local)
    try:
        stack.enter_context(distributed.Client(address))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput("--cluster", "", f"cannot reach {address}: {said}", "give dask=tcp://HOST:PORT") from error
    config: AbstractContextManager[Any] = joblib.parallel_config(backend="dask")
    return config


def _ray(address: str, workers: int, stack: ExitStack) -> AbstractContextManager[Any]:
    ray = _needed("ray", "ray")
    _needed("ray.util.joblib", "ray").register_ray()
    ray.init(address=address or None, num_cpus=None if address else workers)
    stack.callback(ray.shutdown)
    config: AbstractContextManager[Any] = joblib.parallel_config(backend="ray")
    return config


def _needed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"pip install 'penstock[{package}]'" if package == "dask" else f"pip install {package}"
        raise InvalidInput("--cluster", "", f"needs {module}, which is not installed", remedy) from error


CLUSTERS: Mapping[str, Callable[[str, int, ExitStack], AbstractContextManager[Any]]] = {"dask": _dask, "ray": _ray}
