"""The command line of every component: one function each, from where things lie to a ``Command``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.simcluster.assets import Assets
from tests.simcluster.pki import Authority, KeyPair, certificate_user, write_kubeconfig, write_signing_key
from tests.simcluster.poll import PATIENCE_S
from tests.simcluster.process import Command, free_ports, minimal_environment

HERE = Path(__file__).parent
STAGES = tuple(sorted((HERE / "stages").glob("*.yaml")))
SIMULATED_LABEL = "penstock.dev/simulated"
FAILED_LABEL = "penstock.dev/sim-failed"

_SERVICE_CIDR = "10.96.0.0/16"
_POD_CIDR = "127.32.0.0/16"  # answers on loopback, so that one process can serve each pod on its own address
# They refuse endpoints on loopback addresses, and would fill the log with that.
_CONTROLLERS = "*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """What may differ from one simulated cluster to the next.

    Parameters
    ----------
    node_grace_s : int, s
        A node is NotReady after this long without a heartbeat. Kubernetes says 40 (heartbeats every 10); shorter
        makes tests quicker and renews leases more often (every quarter of ``node_lease_s``).
    not_ready_toleration_s : int, s
        Pods leave a NotReady node after this long. Kubernetes says 300. Longer than two nodes that are lost together
        can be seen to be lost apart, so that nothing moves where all are lost.
    audit : bool
        Keep the API server's audit log (who asked for what), see `SimCluster.audit_events`.
    prometheus : bool
        Run a Prometheus server.
    start_timeout_s : float, s
        How long each component has to become ready.
    """

    node_grace_s: int = 10
    not_ready_toleration_s: int = 10
    audit: bool = False
    prometheus: bool = True
    start_timeout_s: float = PATIENCE_S

    @property
    def node_lease_s(self) -> int:
        """KWOK renews a lease at a quarter of its length: three heartbeats fit into the grace period."""
        return max(4, self.node_grace_s * 4 // 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where one control plane keeps its files, and its ports."""

    folder: Path
    assets: Assets
    authority: Authority
    server: KeyPair
    signing_key: Path
    signing_public: Path
    etcd_port: int
    etcd_peer_port: int
    apiserver_port: int
    controller_manager_port: int
    scheduler_port: int

    @property
    def etcd_url(self) -> str:
        return f"http://127.0.0.1:{self.etcd_port}"

    @property
    def apiserver_url(self) -> str:
        return f"https://127.0.0.1:{self.apiserver_port}"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def kubeconfig(self, name: str, user: str, *groups: str) -> Path:
        """Write a kubeconfig for a user with a certificate of its own."""
        pair = self.authority.client(user, *groups)
        path = self.folder / f"{name}.kubeconfig"
        return write_kubeconfig(path, self.apiserver_url, self.authority.certificate_pem, certificate_user(pair))


def make_layout(folder: Path, assets: Assets) -> Layout:
    """Make keys and certificates and choose free ports for one control plane."""
    authority = Authority(folder / "pki")
    signing_key, signing_public = write_signing_key(folder / "pki")
    etcd, peer, apiserver, manager, scheduler = free_ports(5)
    return Layout(
        folder=folder,
        assets=assets,
        authority=authority,
        server=authority.server("simcluster-server"),
        signing_key=signing_key,
        signing_public=signing_public,
        etcd_port=etcd,
        etcd_peer_port=peer,
        apiserver_port=apiserver,
        controller_manager_port=manager,
        scheduler_port=scheduler,
    )


def etcd(layout: Layout) -> Command:
    peer_url = f"http://127.0.0.1:{layout.etcd_peer_port}"
    flags = {
        "name": "default",
        "data-dir": layout.folder / "etcd",
        "listen-client-urls": layout.etcd_url,
        "advertise-client-urls": layout.etcd_url,
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": f"default={peer_url}",
        "unsafe-no-fsync": "true",  # with fsync, thousands of pods take minutes; the data dies with the cluster anyway
        "quota-backend-bytes": 8 * 1024**3,
        "log-level": "warn",
    }
    return _command(layout, "etcd", flags)


def kube_apiserver(layout: Layout, config: ClusterConfig) -> Command:
    audit = {"audit-policy-file": HERE / "config" / "audit-policy.yaml", "audit-log-path": layout.audit_log}
    flags = {
        "etcd-servers": layout.etcd_url,
        "bind-address": "127.0.0.1",
        "secure-port": layout.apiserver_port,
        "advertise-address": "127.0.0.1",
        "endpoint-reconciler-type": "none",  # the default one refuses a loopback address
        "service-cluster-ip-range": _SERVICE_CIDR,
        "tls-cert-file": layout.server.certificate_path,
        "tls-private-key-file": layout.server.key_path,
        "client-ca-file": layout.authority.certificate_path,
        "authorization-mode": "Node,RBAC",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": layout.signing_public,
        "service-account-signing-key-file": layout.signing_key,
        "allow-privileged": "true",
        "default-not-ready-toleration-seconds": config.not_ready_toleration_s,
        "default-unreachable-toleration-seconds": config.not_ready_toleration_s,
        "max-requests-inflight": 1000,
        "max-mutating-requests-inflight": 500,
        "profiling": "false",
        **(audit if config.audit else {}),
    }
    return _command(layout, "kube-apiserver", flags)


def kube_controller_manager(layout: Layout, config: ClusterConfig) -> Command:
    # One identity with all rights: a token per controller would only slow the start.
    kubeconfig = layout.kubeconfig("controller-manager", "system:kube-controller-manager", "system:masters")
    flags = {
        "kubeconfig": kubeconfig,
        **_serving(layout, layout.controller_manager_port),
        "leader-elect": "false",
        "controllers": _CONTROLLERS,
        "root-ca-file": layout.authority.certificate_path,
        "service-account-private-key-file": layout.signing_key,
        "node-monitor-period": "1s",
        "node-monitor-grace-period": f"{config.node_grace_s}s",
        "node-eviction-rate": 10,  # the default, one node in ten seconds, is for zones of thousands
        "concurrent-deployment-syncs": 20,
        "concurrent-replicaset-syncs": 20,
        "concurrent-namespace-syncs": 20,
        "kube-api-qps": 500,
        "kube-api-burst": 1000,
        "profiling": "false",
    }
    return _command(layout, "kube-controller-manager", flags)


def kube_scheduler(layout: Layout) -> Command:
    kubeconfig = layout.kubeconfig("scheduler", "system:kube-scheduler")
    document = yaml.safe_load((HERE / "config" / "scheduler.yaml").read_text())
    document["clientConnection"]["kubeconfig"] = str(kubeconfig)
    path = layout.folder / "scheduler.yaml"
    path.write_text(yaml.safe_dump(document))
    return _command(layout, "kube-scheduler", {"config": path, **_serving(layout, layout.scheduler_port)})


def kwok(folder: Path, assets: Assets, kubeconfig: Path, config: ClusterConfig) -> Command:
    """Run KWOK over the nodes that carry our label, as long as they are not marked failed.

    Without ``--node-ip`` KWOK knows no address for the pods of a node that it does not manage: the stages rely on it.
    It serves nothing, so it needs no port.
    """
    flags = {
        "kubeconfig": kubeconfig,
        "manage-nodes-with-label-selector": f"{SIMULATED_LABEL}=true,!{FAILED_LABEL}",
        "cidr": _POD_CIDR,
        "node-lease-duration-seconds": config.node_lease_s,
        "v": "WARN",  # else a line for every pod and heartbeat
    }
    options = folder / "kwok.yaml"
    options.write_text(yaml.safe_dump(_KWOK_OPTIONS))
    configs = [f"--config={path}" for path in (options, *STAGES)]
    return Command(
        name="kwok",
        arguments=(str(assets["kwok"]), *_flags(flags), *configs),
        environment=minimal_environment(folder, (("KWOK_WORKDIR", str(folder / "kwok")),)),
    )


_KWOK_OPTIONS = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    "options": {
        "podPlayStageParallelism": 16,
        "nodePlayStageParallelism": 8,
        "nodeLeaseParallelism": 8,
        "podsOnNodeSyncParallelism": 4,
    },
}


def prometheus(folder: Path, assets: Assets, config_file: Path, port: int) -> Command:
    flags = {
        "config.file": config_file,
        "storage.tsdb.path": folder / "prometheus",
        "storage.tsdb.retention.time": "6h",
        "web.listen-address": f"127.0.0.1:{port}",
        "web.enable-lifecycle": None,
        "scrape.discovery-reload-interval": "200ms",  # how soon new targets are scraped; 5 s else
        "log.level": "warn",
    }
    return Command(
        name="prometheus",
        arguments=(str(assets["prometheus"]), *_flags(flags)),
        environment=minimal_environment(folder),
    )


def _serving(layout: Layout, port: int) -> dict[str, object]:
    return {
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "tls-cert-file": layout.server.certificate_path,
        "tls-private-key-file": layout.server.key_path,
    }


def _command(layout: Layout, name: str, flags: dict[str, object]) -> Command:
    return Command(
        name=name,
        arguments=(str(layout.assets[name]), *_flags(flags)),
        environment=minimal_environment(layout.folder),
    )


def _flags(flags: dict[str, object]) -> Iterable[str]:
    return (f"--{name}" if value is None else f"--{name}={value}" for name, value in flags.items())
