"""The fleet twin itself: pods of a cluster become simulated replicas, traffic is routed over them in virtual time.

No clock and no threads here: the caller says up to which virtual second to go and shows the cluster as it is then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from controller.records import (
    CONFIG_LABEL,
    GPU_CLASS_LABEL,
    MODEL_LABEL,
    ROLE_LABEL,
    PodRecord,
)
from solvers.engine import EngineProfile, Role
from solvers.errors import InvalidInput
from solvers.simulate import Fleet, itl_limits
from solvers.simulate.results import GapHistogram
from tests.simcluster.components import FAILED_LABEL
from tests.simcluster.twin_power import PowerMeters
from tests.simcluster.twin_stats import ENGINE_TOKEN_EDGES, TTFT_EDGES_S, Bucketed, ServiceStats
from tests.simcluster.twin_traffic import Traffic
from tests.simcluster.twin_watch import ClusterView, TwinService

GATEWAY_PATIENCE_S = 30.0  # virtual; by then a client without a token has gone away
GATEWAY_QUEUE_LIMIT = 5  # an engine with so many waiting counts as saturated, as the gateway's default says
POOL_LABELS = (MODEL_LABEL, ROLE_LABEL, GPU_CLASS_LABEL, CONFIG_LABEL)
WINDOWS_S = (60.0, 300.0)
OUTCOMES = ("finished", "rejected", "timed_out")


class PodStats:
    """What one engine counts of the requests that it served."""

    def __init__(self) -> None:
        self.ttft = Bucketed(TTFT_EDGES_S)
        self.prefill = Bucketed(TTFT_EDGES_S)
        self.prompt_tokens = Bucketed(ENGINE_TOKEN_EDGES)
        self.output_tokens = Bucketed(ENGINE_TOKEN_EDGES)


class TwinFleet:
    """Replicas by pod uid, services by ``namespace/name``, meters by node.

    Parameters
    ----------
    traffic : iterable of Traffic
        Arrivals; a service without any still shows up with zeros.
    group_labels : tuple of str
        Node labels whose sums of watts are kept.
    patience_s : float
        The gateway gives a request up that it could not send to an engine for so long; ``inf`` never does.
    slowness_ratio : float
        Engines take so many times what their EngineProfile says, prompts and tokens alike.
    """

    def __init__(
        self,
        traffic: Iterable[Traffic] = (),
        *,
        group_labels: tuple[str, ...] = (),
        patience_s: float = GATEWAY_PATIENCE_S,
        slowness_ratio: float = 1.0,
    ) -> None:
        self.slowness_ratio = slowness_ratio
        self.fleet = Fleet(
            record_first_tokens=True, replica_queue_limit=GATEWAY_QUEUE_LIMIT, gateway_patience_s=patience_s
        )
        self.view = ClusterView()
        self.traffic = {flow.service: flow for flow in traffic}
        self.stats: dict[str, ServiceStats] = {}
        self.pods: dict[str, PodStats] = {}  # uid → counts of a pod that serves or drains
        self.meters = PowerMeters(group_labels)
        self._faults: dict[str, str] = {}
        self._dead: set[str] = set()

    # ------------------------------------------------------------------ time

    def advance(self, until_s: float) -> None:
        """Let requests arrive and be served up to a virtual second, and count what happened."""
        for service, flow in self.traffic.items():
            arrived = flow.until(until_s)
            self._stats_of(service).offer(len(arrived))
            for request in arrived:
                self.fleet.submit(request)
        self.fleet.advance(until_s)
        self._count()
        for service, stats in self.stats.items():
            if stats.is_due(until_s):
                stats.snapshot(until_s, self.fleet.gaps(service), max(WINDOWS_S))

    def measure(self) -> None:
        """Read the power meters if a sample is due."""
        if self.meters.is_due(self.fleet.now_s):
            self.fleet.settle()
            self.meters.sample(self.fleet, self.view, self.dead_nodes())

    def reset(self) -> None:
        """Let whole-run figures and peaks begin now; Prometheus' counters go on."""
        for service, stats in self.stats.items():
            stats.reset(self.fleet.now_s, self.fleet.gaps(service))
        self.meters.reset_peaks()

    def _stats_of(self, service: str) -> ServiceStats:
        known = self.view.services.get(service)
        stats = self.stats.get(service)
        if stats is None:
            stats = self.stats[service] = ServiceStats()
        if known is not None and known.slos != stats.slos:
            self.fleet.set_itl_limit(service, itl_limits({service: known.slos}).get(service))
            stats.judge_by(known.slos, self.fleet.now_s, self.fleet.gaps(service))
        return stats

    def _count(self) -> None:
        for first in self.fleet.take_first_tokens():
            self._stats_of(first.service).first_token(first.ttft_s)
            if pod := self.pods.get(first.replica_id):
                pod.ttft.observe(first.engine_ttft_s)
        for done in self.fleet.take_finished():
            self._stats_of(done.service).finish(done)
            if pod := self.pods.get(done.prefill_replica):
                pod.prefill.observe(done.prefill_s)
            if pod := self.pods.get(done.replica):
                pod.prompt_tokens.observe(done.prompt_tokens)
                pod.output_tokens.observe(done.output_tokens)
        for refused in self.fleet.take_rejected():
            self._stats_of(refused.service).reject()
        for given_up in self.fleet.take_timed_out():
            self._stats_of(given_up.service).time_out(given_up)

    # ------------------------------------------------------------------ the cluster

    def apply(self, view: ClusterView) -> None:
        """Follow the cluster: Ready pods serve, leaving ones drain, lost ones fail with what they hold."""
        self.view = view
        self._dead = {n.name for n in view.nodes.values() if not n.is_ready or FAILED_LABEL in n.labels}
        for service in view.services:
            self._stats_of(service)
        for uid in self.fleet.replica_ids():
            pod = view.pods.get(uid)
            if pod is None or not self._is_alive(pod) or not (pod.is_ready or pod.is_leaving):
                self._lose(uid)
            elif pod.is_leaving and not self.fleet.replica(uid).is_draining:
                self.fleet.drain_replica(uid)
        self._faults = {uid: fault for uid, fault in self._faults.items() if uid in view.pods}
        serving = [(pod.created_at_s, pod.name, uid) for uid, pod in view.pods.items() if self._may_serve(pod)]
        for _, _, uid in sorted(serving):
            if uid not in self.pods:
                self._begin(uid, view.pods[uid])

    def _is_alive(self, pod: PodRecord) -> bool:
        return pod.node in self.view.nodes and pod.node not in self.dead_nodes()

    def _may_serve(self, pod: PodRecord) -> bool:
        return pod.is_ready and not pod.is_leaving and self._is_alive(pod)

    def dead_nodes(self) -> set[str]:
        """Nodes that cannot serve: dead by the cluster's own switch before anyone notices, or no longer Ready."""
        return self._dead

    @property
    def faults(self) -> tuple[str, ...]:
        """Pods and objects that the twin cannot follow, and why."""
        return (*self.view.faults, *(self._faults[uid] for uid in sorted(self._faults)))

    def _begin(self, uid: str, pod: PodRecord) -> None:
        try:
            role, service, profile = self._describe(pod)
            self._stats_of(service)
            self.fleet.add_replica(uid, service, role, slowed(profile, self.slowness_ratio))
        except InvalidInput as fault:
            self._faults[uid] = str(fault)
            return
        self._faults.pop(uid, None)
        self.pods[uid] = PodStats()

    def _lose(self, uid: str) -> None:
        self.fleet.remove_replica(uid)
        self.pods.pop(uid, None)

    def _describe(self, pod: PodRecord) -> tuple[Role, str, EngineProfile]:
        subject = f"Pod/{pod.namespace}/{pod.name}"
        missing = [
            label for label in (MODEL_LABEL, ROLE_LABEL, GPU_CLASS_LABEL, CONFIG_LABEL) if label not in pod.labels
        ]
        if missing:
            raise InvalidInput(subject, "metadata.labels", f"lacks {', '.join(missing)}", "label it as a pool's pod")
        service = f"{pod.namespace}/{pod.labels[MODEL_LABEL]}"
        known = self.view.services.get(service)
        if known is None:
            raise InvalidInput(subject, MODEL_LABEL, f"names no ServedModel {service}", "create it")
        key = (known.model, pod.labels[GPU_CLASS_LABEL], pod.labels[CONFIG_LABEL])
        for profile in self.view.profiles.values():
            if (profile.key.model, profile.key.gpu_class, profile.key.config.label) == key:
                return _role(subject, pod.labels[ROLE_LABEL]), service, profile
        raise InvalidInput(subject, "", f"has no EngineProfile for {' on '.join(key[:2])}/{key[2]}", "create it")

    def slow_down(self, ratio: float) -> None:
        """Let engines take so many times what their profiles say from now on; they start anew for it."""
        if not 0.0 < ratio < float("inf"):
            raise InvalidInput("engines", "slowness", f"is {ratio}", "give a number above 0")
        self.slowness_ratio = ratio
        for uid in self.fleet.replica_ids():
            self._lose(uid)
        self.apply(self.view)

    # ------------------------------------------------------------------ answers

    def service(self, name: str) -> TwinService:
        """A service as the cluster describes it, or as little as its traffic tells."""
        found = self.view.services.get(name)
        pool = name.partition("/")[2]
        return found or TwinService(name=name, model=pool, inference_pool=pool)

    def gaps(self, service: str) -> GapHistogram:
        """Token gaps of a service so far."""
        return self.fleet.gaps(service)

    def state(self) -> dict[str, Any]:
        """Everything for people and tests, ready for JSON."""
        return {
            "virtual_s": round(self.fleet.now_s, 3),
            "services": {name: self._service_state(name) for name in sorted(self.stats)},
            "replicas": self._replica_counts(),
            "power": self.meters.state(),
            "dead_nodes": sorted(self.dead_nodes()),
            "faults": list(self.faults),
        }

    def _service_state(self, name: str) -> dict[str, Any]:
        counts, stats, now_s = self.fleet.counts(name), self.stats[name], self.fleet.now_s
        gaps, limit_s = self.fleet.gaps(name), self.fleet.itl_limits_s.get(name)
        ended = sum(counts.get(outcome, 0) for outcome in OUTCOMES)
        return {
            "requests": counts.get("submitted", 0),
            **{outcome: counts.get(outcome, 0) for outcome in OUTCOMES},
            "rerouted": counts.get("rerouted", 0),
            "queued": self.fleet.queued(name),
            "outstanding": counts.get("submitted", 0) - ended,
            "output_tokens": counts.get("output_tokens", 0),
            "whole_run": stats.whole_run(now_s, gaps, limit_s),
            "windows": {f"{w:g}s": stats.window(now_s, gaps, limit_s, w) for w in WINDOWS_S},
        }

    def _replica_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for uid in self.fleet.replica_ids():
            pod = self.view.pods[uid]
            key = "/".join((pod.namespace, *(pod.labels[label] for label in POOL_LABELS)))
            counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items()))


def slowed(profile: EngineProfile, ratio: float) -> EngineProfile:
    """The same engine when everything takes so many times as long; its watts stay."""
    return replace(
        profile,
        prefill_s=tuple(ratio * time for time in profile.prefill_s),
        decode_step_s=tuple(tuple(ratio * time for time in row) for row in profile.decode_step_s),
    )


def _role(subject: str, text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        known = ", ".join(Role)
        raise InvalidInput(subject, ROLE_LABEL, f"{text!r} is no role", f"use one of {known}") from None
