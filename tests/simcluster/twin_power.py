"""What the GPUs of the cluster draw, as their meters would say: means over the last sample, by GPU, node and domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.records import NodeRecord, PodRecord
from solvers.fleet import GpuClass
from solvers.simulate import Fleet
from tests.simcluster.twin_watch import ClusterView

SAMPLE_S = 1.0  # a GPU's own reading is a mean over about a second


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU as its exporter shows it; ``holder`` is the pod that has it."""

    node: str
    gpu: int
    model_name: str
    draw_watts: float
    utilisation_ratio: float
    holder: PodRecord | None = None


@dataclass(slots=True, kw_only=True)
class _Meter:
    """Last reading of one replica's totals, and the mean since the one before."""

    energy_joules: float
    busy_s: float
    at_s: float
    draw_watts: float
    utilisation_ratio: float = 0.0


@dataclass(slots=True, kw_only=True)
class Peak:
    """A draw now and its highest so far."""

    draw_watts: float = 0.0
    peak_watts: float = 0.0

    def set(self, watts: float) -> None:
        self.draw_watts, self.peak_watts = watts, max(self.peak_watts, watts)


@dataclass(slots=True)
class PowerMeters:
    """Reads the replicas' energy and spreads it over GPUs and nodes.

    A node draws what its GPUs draw plus the host's share for each GPU that a pod of ours holds; a dead node draws
    nothing. ``group_labels`` are node labels (rack, row) whose sums are kept with their peaks.
    """

    group_labels: tuple[str, ...] = ()
    nodes: dict[str, Peak] = field(default_factory=dict)
    groups: dict[str, dict[str, Peak]] = field(default_factory=dict)
    total: Peak = field(default_factory=Peak)
    energy_joules: float = 0.0
    gpus: tuple[GpuReading, ...] = ()
    _meters: dict[str, _Meter] = field(default_factory=dict)
    _slots: dict[str, tuple[int, ...]] = field(default_factory=dict)  # pod uid → GPUs of its node
    _sampled_s: float = 0.0

    def is_due(self, now_s: float) -> bool:
        """True when a sample's time has passed, or nothing runs yet."""
        return now_s == 0.0 or now_s - self._sampled_s >= SAMPLE_S

    def sample(self, fleet: Fleet, view: ClusterView, dead: set[str]) -> None:
        """Read every meter; ``fleet`` has a replica by pod uid where one serves."""
        now_s = fleet.now_s
        self._read_replicas(fleet, now_s)
        self._assign(view)
        self.gpus = tuple(self._readings(view, dead))
        self._add_up(view, dead, now_s)
        self._sampled_s = now_s

    def reset_peaks(self) -> None:
        """Forget the peaks and the energy."""
        for peak in (self.total, *self.nodes.values(), *(p for by in self.groups.values() for p in by.values())):
            peak.peak_watts = peak.draw_watts
        self.energy_joules = 0.0

    def state(self) -> dict[str, Any]:
        """Everything, ready for JSON."""

        def row(peak: Peak) -> dict[str, float]:
            return {"draw_watts": round(peak.draw_watts, 1), "peak_watts": round(peak.peak_watts, 1)}

        return {
            "total": row(self.total),
            "groups": {label: {v: row(p) for v, p in sorted(by.items())} for label, by in self.groups.items()},
            "nodes": {name: row(peak) for name, peak in sorted(self.nodes.items())},
            "energy_joules": round(self.energy_joules, 1),
        }

    def _read_replicas(self, fleet: Fleet, now_s: float) -> None:
        present = set(fleet.replica_ids())
        for gone in [uid for uid in self._meters if uid not in present]:
            del self._meters[gone]
        for uid in present:
            view = fleet.replica(uid)
            before = self._meters.get(uid)
            meter = _Meter(energy_joules=view.energy_joules, busy_s=view.busy_s, at_s=now_s, draw_watts=view.draw_watts)
            if before is not None and now_s > before.at_s:
                meter.draw_watts = (view.energy_joules - before.energy_joules) / (now_s - before.at_s)
                meter.utilisation_ratio = min(1.0, (view.busy_s - before.busy_s) / (now_s - before.at_s))
            self._meters[uid] = meter

    def _assign(self, view: ClusterView) -> None:
        """Give every bound pod the lowest free GPUs of its node; it keeps them."""
        self._slots = {uid: slots for uid, slots in self._slots.items() if uid in view.pods}
        taken: dict[str, set[int]] = {}
        for uid, slots in self._slots.items():
            taken.setdefault(view.pods[uid].node or "", set()).update(slots)
        for uid, pod in sorted(view.pods.items(), key=lambda item: (item[1].created_at_s, item[0])):
            if pod.node is None or uid in self._slots:
                continue
            used = taken.setdefault(pod.node, set())
            free = (gpu for gpu in range(sum(pod.requests.values()) + len(used)) if gpu not in used)
            self._slots[uid] = tuple(gpu for gpu, _ in zip(free, range(sum(pod.requests.values())), strict=False))
            used.update(self._slots[uid])

    def _readings(self, view: ClusterView, dead: set[str]) -> Iterable[GpuReading]:
        holders = {(view.pods[u].node, gpu): u for u, slots in self._slots.items() for gpu in slots}
        for node in view.nodes.values():
            gpu_class = class_of(node, view.gpu_classes)
            if gpu_class is None or node.name in dead:
                continue
            for gpu in range(node.capacity.get(gpu_class.resource_name, 0)):
                uid = holders.get((node.name, gpu))
                meter = self._meters.get(uid) if uid else None
                held = len(self._slots[uid]) if uid else 1
                yield GpuReading(
                    node=node.name,
                    gpu=gpu,
                    model_name=gpu_class.name,
                    draw_watts=meter.draw_watts / held if meter else gpu_class.idle_watts,
                    utilisation_ratio=meter.utilisation_ratio if meter else 0.0,
                    holder=view.pods[uid] if uid else None,
                )

    def _add_up(self, view: ClusterView, dead: set[str], now_s: float) -> None:
        watts = {name: 0.0 for name, node in view.nodes.items() if class_of(node, view.gpu_classes)}
        for reading in self.gpus:
            gpu_class = view.gpu_classes[reading.model_name]
            watts[reading.node] += reading.draw_watts + (gpu_class.host_share_watts if reading.holder else 0.0)
        self.nodes = {name: self.nodes.get(name, Peak()) for name in watts}
        for name, draw in watts.items():
            self.nodes[name].set(draw)
        for label in self.group_labels:
            sums: dict[str, float] = dict.fromkeys(self.groups.get(label, {}), 0.0)
            for name, draw in watts.items():
                value = view.nodes[name].labels.get(label)
                if value is not None:
                    sums[value] = sums.get(value, 0.0) + draw
            peaks = self.groups.setdefault(label, {})
            for value, draw in sums.items():
                peaks.setdefault(value, Peak()).set(draw)
        self.total.set(sum(watts.values()))
        self.energy_joules += self.total.draw_watts * (now_s - self._sampled_s)


def class_of(node: NodeRecord, gpu_classes: Mapping[str, GpuClass]) -> GpuClass | None:
    """GPU class whose selector the node's labels match; None when the node has no GPUs of a known class."""
    for gpu_class in gpu_classes.values():
        if gpu_class.node_selector.items() <= node.labels.items() and node.capacity.get(gpu_class.resource_name):
            return gpu_class
    return None
