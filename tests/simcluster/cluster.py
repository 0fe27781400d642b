"""`SimCluster`: a Kubernetes cluster with simulated GPU nodes, for tests, benchmarks and the demo.

>>> with SimCluster.start() as cluster:                                      # doctest: +SKIP
...     cluster.add_nodes([GpuNode(name="gpu-0", gpu_product="NVIDIA-H100-80GB-HBM3", rack="r1")])
...     cluster.create([gpu_deployment("engine", replicas=2, gpus=4, cold_start_s=5.0)])
...     print(cluster.kubectl("get", "pods"))
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.simcluster import components
from tests.simcluster.api import ApiError, Json, KubeApi, load_objects
from tests.simcluster.assets import Assets, find_assets
from tests.simcluster.components import FAILED_LABEL, SIMULATED_LABEL, ClusterConfig
from tests.simcluster.drivers import DRIVER_VARIABLE, ControlPlane, is_api_ready, make_control_plane
from tests.simcluster.monitoring import Monitoring, ScrapeJob
from tests.simcluster.nodes import GpuNode, is_ready
from tests.simcluster.pki import write_kubeconfig
from tests.simcluster.poll import PATIENCE_S, wait_until
from tests.simcluster.process import Listener, Supervisor, free_ports, minimal_environment
from tests.simcluster.reset import reset, take_baseline

_OWN_COMPONENTS = ("kwok", "prometheus")  # ours whoever provides the control plane
_API_CLIENTS = ("kube-controller-manager", "kube-scheduler", "kwok")
_SEEN_ANNOTATION = "penstock.dev/sim-seen"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


def _temporary_folder(cleanup: ExitStack) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="penstock-simcluster-"))
    cleanup.callback(shutil.rmtree, folder)
    return folder


class SimCluster:
    """A running cluster; make one with `start`, and close it or use it as a context manager.

    Attributes
    ----------
    kubeconfig : Path
        Of an administrator.
    api : KubeApi
        A client as that administrator.
    config : ClusterConfig
    folder : Path
        Everything that the cluster writes; removed at the end unless the caller gave it.
    """

    def __init__(
        self,
        config: ClusterConfig,
        folder: Path,
        assets: Assets,
        supervisor: Supervisor,
        control_plane: ControlPlane,
        cleanup: ExitStack,
    ) -> None:
        self.config = config
        self.folder = folder
        self.kubeconfig = control_plane.kubeconfig
        self.api = KubeApi(self.kubeconfig)
        self._assets = assets
        self._supervisor = supervisor
        self._control_plane = control_plane
        self._cleanup = cleanup
        self._monitoring: Monitoring | None = None
        self._had_outage = False
        cleanup.callback(self.api.close)

    @classmethod
    def start(
        cls, config: ClusterConfig | None = None, *, driver: str | None = None, folder: Path | None = None
    ) -> Self:
        """Bring a cluster up and return when it takes work.

        Parameters
        ----------
        config : ClusterConfig, optional
        driver : str, optional
            ``assets``, ``kind`` or ``existing``; by default what ``PENSTOCK_CLUSTER`` says, else ``assets``.
        folder : Path, optional
            Where to keep data and logs; by default a temporary folder that `close` removes.

        Raises
        ------
        AssetsError
            If the binaries have not been built; the message says how.
        ProcessError
            If a component ends at once; the message holds the end of its log.
        """
        config = config or ClusterConfig()
        driver = driver or os.environ.get(DRIVER_VARIABLE) or "assets"
        assets = find_assets()
        with ExitStack() as cleanup:
            base = folder or _temporary_folder(cleanup)
            supervisor = Supervisor(base / "logs")
            cleanup.callback(supervisor.close)
            control_plane = make_control_plane(driver, base, assets, supervisor, config)
            cleanup.callback(control_plane.close)
            control_plane.start()
            cluster = cls(config, base, assets, supervisor, control_plane, cleanup)
            cluster._bring_up()
            cluster._cleanup = cleanup.pop_all()
        return cluster

    def _bring_up(self) -> None:
        if self.config.prometheus:
            self._start_prometheus()
        self._supervisor.start(components.kwok(self.folder, self._assets, self.kubeconfig, self.config))
        self._cleanup.callback(self._supervisor.stop, "kwok")
        # Pods are refused before the controllers have made this account.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_until(lambda: self.api.find(account), "the default service account", timeout_s=self.config.start_timeout_s)
        self._baseline = take_baseline(self.api)
        self.wait_ready()

    def close(self) -> None:
        """Stop every process that was started, the last first, and remove the temporary folder; twice does no harm."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Nodes

    def add_nodes(self, nodes: Iterable[GpuNode], *, wait: bool = True, timeout_s: float = PATIENCE_S) -> None:
        """Create GPU nodes and, unless told otherwise, wait until they are Ready."""
        wanted = list(nodes)
        self.api.create_all(node.manifest() for node in wanted)
        if wait:
            self._wait_nodes({node.name for node in wanted}, ready=True, timeout_s=timeout_s)

    def fail_node(self, name: str, *, wait: bool = True) -> None:
        """Let a node die: its heartbeats stop and its pods no longer change.

        After ``config.node_grace_s`` the node controller calls it NotReady, and after ``config.not_ready_toleration_s``
        more it deletes the node's pods, which stay Terminating as long as the node is dead and there.
        """
        self._merge_node(name, {"metadata": {"labels": {FAILED_LABEL: "true"}}})
        if wait:
            self._wait_nodes({name}, ready=False, timeout_s=self.config.node_grace_s + PATIENCE_S)

    def recover_node(self, name: str, *, wait: bool = True) -> None:
        """Bring a dead node back: heartbeats go on, and its pods start, stop or become Ready again."""
        self._merge_node(name, {"metadata": {"labels": {FAILED_LABEL: None}}})
        if wait:
            self._wait_nodes({name}, ready=True, timeout_s=self.config.node_grace_s + PATIENCE_S)

    def delete_node(self, name: str) -> None:
        """Remove a node for good; its pods are collected by the controllers after 40 to 60 s."""
        if not self.api.delete(f"/api/v1/nodes/{name}"):
            raise LookupError(f"no node {name!r} to delete; `kubectl get nodes` shows which there are")

    # Components and faults

    @property
    def components(self) -> tuple[str, ...]:
        """What `stop_component` and `start_component` take."""
        own = [name for name in _OWN_COMPONENTS if name in self._supervisor.names]
        return (*self._control_plane.components, *own)

    def stop_component(self, name: str, *, kill: bool = False) -> None:
        """Stop a component, such as ``kube-apiserver``, ``etcd`` or ``prometheus``; its ports and data stay its own.

        Raises
        ------
        UnsupportedError
            If the driver cannot do that.
        """
        if name in _OWN_COMPONENTS:
            return self._supervisor.stop(name, kill=kill)
        self._control_plane.stop_component(name, kill=kill)
        self._had_outage |= name in ("etcd", "kube-apiserver")
        return None

    def start_component(self, name: str) -> None:
        """Start a stopped component again and wait until it is ready.

        After an outage of the API server its clients, the controllers and KWOK among them, wait up to 30 s before they
        try again, and nodes may be NotReady until then: as in any cluster. Where that does not matter, `reconnect`.
        """
        if name not in _OWN_COMPONENTS:
            return self._control_plane.start_component(name)
        if name == "kwok":
            self._release_leases()
        self._supervisor.restart(name)
        if name == "kwok":
            self._show_pods()
        return self._wait_prometheus() if name == "prometheus" else None

    def reconnect(self) -> None:
        """Restart the controllers, the scheduler and KWOK, so that they need not wait after an outage."""
        for name in [name for name in _API_CLIENTS if name in self.components]:
            self.stop_component(name, kill=True)
            self.start_component(name)
        self._had_outage = False

    def _release_leases(self) -> None:
        """Let a new KWOK take the nodes over at once, not when the leases of the former one end."""
        nodes = self.api.list_all("/api/v1/nodes", label_selector=f"{SIMULATED_LABEL}=true")
        self.api.delete_all(f"{_LEASES}/{node['metadata']['name']}" for node in nodes)

    def _show_pods(self) -> None:
        """Let a new KWOK see its nodes' pods once it holds their leases.

        It looks at the pods of a node when it takes the node over, passes by those of nodes whose lease it does not yet
        see itself hold, and looks at no pod again that nobody changes.
        """
        nodes = self.api.list_all("/api/v1/nodes", label_selector=f"{SIMULATED_LABEL}=true,!{FAILED_LABEL}")
        names = {node["metadata"]["name"] for node in nodes}
        wait_until(lambda: names <= {lease["metadata"]["name"] for lease in self.api.list_all(_LEASES)}, "node leases")
        seen = {"metadata": {"annotations": {_SEEN_ANNOTATION: str(self.pids()["kwok"])}}}
        for pod in self.api.list_all("/api/v1/pods"):
            if pod["spec"].get("nodeName") in names:
                self._merge_pod(pod, seen)

    def _merge_pod(self, pod: Json, patch: Json) -> None:
        """Change a pod, unless it is gone meanwhile."""
        meta = pod["metadata"]
        try:
            self.api.merge(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}", patch)
        except ApiError as error:
            if error.status != 404:
                raise

    def wait_ready(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the API server is ready and every simulated node that was not failed is Ready.

        Raises
        ------
        ProcessError
            If a component has ended by itself.
        DeadlineError
            If something is not ready in time.
        """
        wait_until(self._is_up, "the API server to be ready", timeout_s=timeout_s)
        self._wait_nodes(set(), ready=True, timeout_s=timeout_s)

    def reset(self) -> None:
        """Start what was stopped, and delete every object that came after the start of the cluster."""
        for name in self.components:
            if name not in self.pids():
                self.start_component(name)
        if self._had_outage:
            self.reconnect()
        wait_until(self._is_up, "the API server to be ready")
        reset(self.api, self._baseline, force=self._control_plane.name == "assets")
        if self._monitoring is not None:
            self.set_scrape_jobs(())

    def pids(self) -> dict[str, int]:
        """Return the process id of each component that runs as a process of ours."""
        return self._supervisor.pids()

    def listening_addresses(self) -> list[Listener]:
        """Return every TCP socket on which a process of ours accepts connections."""
        return self._supervisor.listeners()

    def memory_bytes(self) -> dict[str, int]:
        """Return the resident memory of each process of ours."""
        return self._supervisor.memory_bytes()

    def cpu_s(self) -> dict[str, float]:
        """Return the processor seconds that each process of ours has used."""
        return self._supervisor.cpu_s()

    def log_tail(self, component: str, lines: int = 20) -> str:
        """Return the end of a component's log."""
        return self._supervisor.log_tail(component, lines)

    # Objects

    def create(self, objs: Iterable[Json]) -> list[Json]:
        """Create objects, several at a time."""
        return self.api.create_all(objs)

    def apply(self, source: str | Path | Iterable[Json]) -> list[Json]:
        """Apply YAML text, a YAML file or objects, one after the other, by server-side apply."""
        text = source.read_text() if isinstance(source, Path) else source
        return [self.api.apply(obj) for obj in (load_objects(text) if isinstance(text, str) else text)]

    def pods(self, namespace: str = "default", **selectors: str) -> list[Json]:
        """Return the pods of a namespace; ``selectors`` as for `KubeApi.list_all`."""
        return self.api.list_all(f"/api/v1/namespaces/{namespace}/pods", **selectors)

    def create_namespace(self, name: str) -> None:
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda: self.api.find(account), f"the default service account of namespace {name}")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as the administrator and return what it prints; it raises with kubectl's own message."""
        return self._run_tool("kubectl", arguments, stdin)

    def helm(self, *arguments: str) -> str:
        """Run Helm as the administrator and return what it prints."""
        return self._run_tool("helm", arguments, None)

    def _run_tool(self, tool: str, arguments: Iterable[str], stdin: str | None) -> str:
        environment = dict(minimal_environment(self.folder, (("KUBECONFIG", str(self.kubeconfig)),)))
        command = [str(self._assets[tool]), *arguments]
        done = subprocess.run(command, env=environment, input=stdin, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{tool} {' '.join(command[1:])} failed: {done.stderr.strip()}")
        return done.stdout

    # Identities and audit

    def mint_token(self, namespace: str, service_account: str, *, duration_s: int = 3600) -> str:
        """Return a token of a service account, as a pod of it would be given."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        answer = self.api.request("POST", path, {"spec": {"expirationSeconds": duration_s}})
        token: str = answer["status"]["token"]
        return token

    def kubeconfig_for(self, namespace: str, service_account: str, *, duration_s: int = 3600) -> Path:
        """Write a kubeconfig that acts as a service account, with no more rights than that."""
        token = self.mint_token(namespace, service_account, duration_s=duration_s)
        ca = self.api.get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt")["data"]["ca.crt"]
        path = self.folder / f"{namespace}-{service_account}.kubeconfig"
        return write_kubeconfig(path, self.api.server, ca.encode(), {"token": token})

    def audit_events(self) -> Iterator[dict[str, Any]]:
        """Yield the API server's audit events so far; needs ``ClusterConfig(audit=True)``."""
        with self._control_plane.audit_log.open() as log:
            for line in log:
                if line.endswith("\n"):  # the last one may still be being written
                    yield json.loads(line)

    # Prometheus

    @property
    def monitoring(self) -> Monitoring:
        """The Prometheus server's client."""
        if self._monitoring is None:
            raise LookupError("this cluster has no Prometheus; start it with ClusterConfig(prometheus=True)")
        return self._monitoring

    @property
    def prometheus_url(self) -> str:
        return self.monitoring.url

    def set_scrape_jobs(self, jobs: Iterable[ScrapeJob]) -> None:
        """Scrape these from now on, and nothing else; a stopped Prometheus does so once it is started."""
        self.monitoring.write(jobs)
        if "prometheus" in self.pids():
            self.monitoring.reload()

    def _start_prometheus(self) -> None:
        (port,) = free_ports(1)
        self._monitoring = Monitoring(self.folder / "prometheus.yaml", port)
        self._cleanup.callback(self._monitoring.close)
        self._supervisor.start(components.prometheus(self.folder, self._assets, self._monitoring.config_file, port))

    def _wait_prometheus(self) -> None:
        wait_until(self.monitoring.is_ready, "Prometheus to be ready", timeout_s=self.config.start_timeout_s)

    # Waiting

    def _is_up(self) -> bool:
        self._supervisor.check()
        return is_api_ready(self.api) and (self._monitoring is None or self._monitoring.is_ready())

    def _merge_node(self, name: str, patch: Json) -> None:
        self.api.merge(f"/api/v1/nodes/{name}", patch)

    def _wait_nodes(self, names: set[str], *, ready: bool, timeout_s: float) -> None:
        """Wait until the named nodes (all that were not failed, if none is named) are Ready or not."""

        def late() -> list[str]:
            selector = f"{SIMULATED_LABEL}=true" + ("" if names else f",!{FAILED_LABEL}")
            nodes = self.api.list_all("/api/v1/nodes", label_selector=selector)
            seen = {node["metadata"]["name"]: is_ready(node) for node in nodes}
            return sorted(name for name in (names or seen) if seen.get(name) is not ready)

        def what() -> str:
            return f"nodes {', '.join(late()[:5])} to be {'Ready' if ready else 'NotReady'}"

        wait_until(lambda: not late(), what, timeout_s=timeout_s, interval_s=0.1)
