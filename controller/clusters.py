"""A Dask or Ray cluster that the user names, as the place where joblib does its work.

Ray is large and therefore no extra of the project. Penstock was run on Ray 2.60 with Python 3.11: on a local one, on
one joined by its address and through a Ray client (``ray://``), each with the same bytes as without. ``ray start``
listens on every interface of its machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import joblib

from solvers.errors import InvalidInput


@contextmanager
def on_cluster(text: str, workers: int) -> Iterator[None]:
    """Let joblib work on a cluster inside the ``with`` block.

    Parameters
    ----------
    text : str
        ``dask`` or ``ray`` for a local one with so many workers, ``dask=ADDRESS``, ``ray=ADDRESS`` or
        ``ray://HOST:PORT`` for one that runs.

    Raises
    ------
    InvalidInput
        When the cluster is unknown, cannot be reached, or its package is not installed.
    """
    with ExitStack() as stack:
        stack.enter_context(_cluster(text, workers, stack))
        yield


def _cluster(text: str, workers: int, stack: ExitStack) -> AbstractContextManager[Any]:
    name, _, address = ("ray", "=", text) if text.startswith("ray://") else text.partition("=")
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
    """Joblib over Ray; without an address a cluster in this machine's processes, on loopback only."""
    ray = _needed("ray", "ray")
    _needed("ray.util.joblib", "ray").register_ray()
    if address:
        _join_ray(ray, address)
    else:
        ray.init(num_cpus=workers, include_dashboard=False, _node_ip_address="127.0.0.1")
    stack.callback(ray.shutdown)
    config: AbstractContextManager[Any] = joblib.parallel_config(backend="ray")
    return config


def _join_ray(ray: Any, address: str) -> None:
    try:
        ray.init(address=address)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput("--cluster", "", f"cannot reach {address}: {said}", "give ray://HOST:PORT") from error


def _needed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"pip install 'penstock[{package}]'" if package == "dask" else f"pip install {package}"
        raise InvalidInput("--cluster", "", f"needs {module}, which is not installed", remedy) from error


CLUSTERS: Mapping[str, Callable[[str, int, ExitStack], AbstractContextManager[Any]]] = {"dask": _dask, "ray": _ray}
