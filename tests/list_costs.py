"""What it costs to list a cluster's nodes and pods: with typed models, as raw JSON, and reduced to our records.

``python -m tests.list_costs KUBECONFIG METHOD MEASURE`` takes one measure of one method; ``compare`` takes them all,
each in a process of its own, because memory is only comparable between fresh ones.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from controller.cache import Cache
from controller.client import KubeClient, Transport, load_configuration
from controller.kinds import KINDS
from controller.settings import Settings

LISTED = ("Node", "Pod")
PAGE = 1000
MEBIBYTE = 1 << 20


def list_typed(kubeconfig: str) -> list[object]:
    """With the models of the ``kubernetes`` package, in pages as ours."""
    from kubernetes.client import ApiClient, CoreV1Api

    api = CoreV1Api(ApiClient(load_configuration(kubeconfig)))
    return [*_pages(api.list_node), *_pages(api.list_pod_for_all_namespaces)]


def _pages(read: Callable[..., object]) -> Iterator[object]:
    following: str | None = ""
    while following is not None:
        page = read(limit=PAGE, _continue=following)
        yield from page.items  # type: ignore[attr-defined]
        following = page.metadata._continue or None  # type: ignore[attr-defined]


def list_raw(kubeconfig: str) -> list[object]:
    """As decoded JSON, whole bodies."""
    client, paths = _client(kubeconfig), [kind.path for kind in KINDS if kind.name in LISTED]
    return [body for path in paths for items, _ in client.list_pages(path) for body in items]


def list_reduced(kubeconfig: str) -> list[object]:
    """As the operator does: each page is reduced to records at once."""
    client, cache = _client(kubeconfig), Cache(kinds=[kind for kind in KINDS if kind.name in LISTED])
    for name in LISTED:
        cache.list_again(name, client)
    view = cache.view()
    return [cache, *view.nodes.values(), *view.pods.values()]


def _client(kubeconfig: str) -> KubeClient:
    return KubeClient(Transport.from_settings(Settings(kubeconfig=kubeconfig)), lambda: False)


METHODS: Mapping[str, Callable[[str], list[object]]] = {
    "typed": list_typed,
    "raw": list_raw,
    "reduced": list_reduced,
}


def time_list(method: str, kubeconfig: str) -> dict[str, float]:
    """List once: objects, wall and processor seconds, and by how much the process grew at the most."""
    before_bytes, began_s, began_cpu_s = _status_bytes("VmRSS"), time.monotonic(), time.process_time()
    kept = METHODS[method](kubeconfig)
    return {
        "objects": len(kept),
        "wall_s": time.monotonic() - began_s,
        "cpu_s": time.process_time() - began_cpu_s,
        "peak_mebibytes": (_status_bytes("VmHWM") - before_bytes) / MEBIBYTE,
    }


def weigh_list(method: str, kubeconfig: str) -> dict[str, float]:
    """List once with every allocation traced, which is slow: what the kept objects weigh."""
    METHODS[method](kubeconfig)  # imports and caches are not what is weighed
    tracemalloc.start()
    kept = METHODS[method](kubeconfig)
    gc.collect()
    return {"objects": len(kept), "kept_mebibytes": tracemalloc.get_traced_memory()[0] / MEBIBYTE}


MEASURES = {"time": time_list, "weigh": weigh_list}


def compare(kubeconfig: Path) -> dict[str, dict[str, float]]:
    """Take every measure of every method, each in a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        for measure in MEASURES:
            command = [sys.executable, "-m", "tests.list_costs", str(kubeconfig), method, measure]
            answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            found.setdefault(method, {}).update(answer)
    return found


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:")) * 1024


if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[3]](sys.argv[2], sys.argv[1])))
