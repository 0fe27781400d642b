"""Three ways to get a control plane: built binaries, kind, or one that is already there.

Nodes and pods are simulated, and scraped, by our own KWOK and Prometheus whichever it is (see ``cluster.py``).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import urllib3

from tests.simcluster import components
from tests.simcluster.api import ApiError, KubeApi, UnreachableError
from tests.simcluster.assets import Assets
from tests.simcluster.components import ClusterConfig, Layout
from tests.simcluster.monitoring import answers_ok
from tests.simcluster.poll import wait_until
from tests.simcluster.process import Command, ProcessError, Supervisor

DRIVER_VARIABLE = "PENSTOCK_CLUSTER"
_KIND_CONFIG = Path(__file__).parents[2] / "deploy" / "kind" / "cluster.yaml"


class UnsupportedError(RuntimeError):
    """A driver cannot do what was asked of it."""

    def __init__(self, driver: str, operation: str, remedy: str = "use the `assets` driver, which can") -> None:
        super().__init__(f"the `{driver}` driver cannot {operation}; {remedy}")


class ControlPlane(ABC):
    """A Kubernetes API server with its storage, controllers and scheduler."""

    name: str
    kubeconfig: Path

    @property
    def components(self) -> tuple[str, ...]:
        """The parts that can be stopped and started one by one."""
        return ()

    @property
    def audit_log(self) -> Path:
        raise UnsupportedError(self.name, "show the API server's audit log")

    @abstractmethod
    def start(self) -> None:
        """Bring the control plane up; return when it is ready."""

    def stop_component(self, component: str, *, kill: bool = False) -> None:
        raise UnsupportedError(self.name, f"stop {component}")

    def start_component(self, component: str) -> None:
        raise UnsupportedError(self.name, f"start {component}")

    def close(self) -> None:
        """Leave nothing of ours behind; nothing to do for a control plane that was there before us."""
        return


class AssetsControlPlane(ControlPlane):
    """Our own launcher over the built binaries: four processes on loopback, ready in a few seconds."""

    name = "assets"

    def __init__(self, folder: Path, assets: Assets, supervisor: Supervisor, config: ClusterConfig) -> None:
        self.supervisor = supervisor
        self.config = config
        self.layout = components.make_layout(folder, assets)
        self.kubeconfig = self.layout.kubeconfig("admin", "penstock-test-admin", "system:masters")
        self.api = KubeApi(self.kubeconfig)
        self._pool = urllib3.PoolManager(
            retries=False, timeout=urllib3.Timeout(5.0), ca_certs=str(self.layout.authority.certificate_path)
        )
        self._probes = self._make_probes(self.layout)

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(self._probes)

    @property
    def audit_log(self) -> Path:
        if not self.config.audit:
            raise UnsupportedError(self.name, "show an audit log", "start the cluster with ClusterConfig(audit=True)")
        return self.layout.audit_log

    def start(self) -> None:
        for wave in self._waves(self.layout):
            for command in wave:
                self.supervisor.start(command)
            for command in wave:
                self._wait_ready(command.name)

    def stop_component(self, component: str, *, kill: bool = False) -> None:
        self.supervisor.stop(component, kill=kill)

    def start_component(self, component: str) -> None:
        self.supervisor.restart(component)
        self._wait_ready(component)

    def close(self) -> None:
        for name in reversed(self.components):
            if name in self.supervisor.names:
                self.supervisor.stop(name)
        self.api.close()
        self._pool.clear()

    def _waves(self, layout: Layout) -> tuple[tuple[Command, ...], ...]:
        """What starts together; the API server only where etcd answers, the rest only where the API server does."""
        return (
            (components.etcd(layout),),
            (components.kube_apiserver(layout, self.config),),
            (components.kube_controller_manager(layout, self.config), components.kube_scheduler(layout)),
        )

    def _make_probes(self, layout: Layout) -> Mapping[str, Callable[[], bool]]:
        manager = f"https://127.0.0.1:{layout.controller_manager_port}/healthz"
        scheduler = f"https://127.0.0.1:{layout.scheduler_port}/readyz"
        return {
            "etcd": lambda: answers_ok(self._pool, f"{layout.etcd_url}/health"),
            "kube-apiserver": lambda: is_api_ready(self.api),
            "kube-controller-manager": lambda: answers_ok(self._pool, manager),
            "kube-scheduler": lambda: answers_ok(self._pool, scheduler),
        }

    def _wait_ready(self, component: str) -> None:
        def is_ready() -> bool:
            self.supervisor.check()
            return self._probes[component]()

        def what() -> str:
            return f"{component} to be ready; the end of its log:\n{self.supervisor.log_tail(component)}"

        wait_until(is_ready, what, timeout_s=self.config.start_timeout_s)


class KindControlPlane(ControlPlane):
    """A cluster of kind, where Docker exists: it adds a real kubelet and container runtime beside the simulated nodes.

    It needs ``kind`` and ``docker`` on PATH. It has been written against kind's documentation and was never run on the
    machine where the rest of this folder was tested, which has no Docker daemon.
    """

    name = "kind"

    def __init__(self, folder: Path, config: ClusterConfig) -> None:
        if missing := [tool for tool in ("kind", "docker") if shutil.which(tool) is None]:
            raise UnsupportedError(self.name, f"run without {' and '.join(missing)}", "install it, or use `assets`")
        self.config = config
        self.kubeconfig = folder / "admin.kubeconfig"
        self._cluster = f"penstock-{secrets.token_hex(4)}"

    def start(self) -> None:
        # Paths in the config are relative to its folder.
        self._kind("create", "cluster", "--config", str(_KIND_CONFIG), "--wait", "180s", cwd=_KIND_CONFIG.parent)

    def close(self) -> None:
        self._kind("delete", "cluster")

    def _kind(self, *arguments: str, cwd: Path | None = None) -> None:
        command = ["kind", *arguments, "--name", self._cluster, "--kubeconfig", str(self.kubeconfig)]
        done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise ProcessError(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr}")


class ExistingControlPlane(ControlPlane):
    """Any cluster that ``KUBECONFIG`` names and that may be written to; objects made by a test are removed after it."""

    name = "existing"

    def __init__(self) -> None:
        path = os.environ.get("KUBECONFIG", "")
        if not path or not Path(path).is_file():
            raise UnsupportedError(self.name, f"read KUBECONFIG={path!r}", "set it to one file of a cluster for tests")
        self.kubeconfig = Path(path)

    def start(self) -> None:
        api = KubeApi(self.kubeconfig)
        try:
            wait_until(lambda: is_api_ready(api), f"{api.server} (from {self.kubeconfig}) to be ready")
        finally:
            api.close()


def make_control_plane(
    driver: str, folder: Path, assets: Assets, supervisor: Supervisor, config: ClusterConfig
) -> ControlPlane:
    """Return the control plane that a driver's name stands for, not yet started."""
    makers: dict[str, Callable[[], ControlPlane]] = {
        "assets": lambda: AssetsControlPlane(folder, assets, supervisor, config),
        "kind": lambda: KindControlPlane(folder, config),
        "existing": ExistingControlPlane,
    }
    if driver not in makers:
        raise ValueError(f"{DRIVER_VARIABLE}={driver!r} is not a driver; choose one of {', '.join(makers)}")
    return makers[driver]()


def is_api_ready(api: KubeApi) -> bool:
    """Say whether the API server answers and calls itself ready."""
    try:
        api.get("/readyz")
    except (ApiError, UnreachableError):
        return False
    return True
