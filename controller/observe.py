"""What was observed → one decision's whole input. Pure: the operator and ``plan -f`` share it.

A bad object becomes a fault that names it, and is left out; everything else goes on. What is left out is never scaled
down for it: replicas of a service that cannot be planned now (its ServedModel is wrong, no profile fits, nothing is
known of its load) count as foreign, so they keep their GPUs and watts, and no step of a rollout touches them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controller.demand import DemandView, view_demand
from controller.inventory import Inventory, Place, Records, is_ours, service_of, take_stock
from controller.power_graph import PowerGraph, resolve
from controller.readings import Readings
from controller.resources import FleetPolicySpec, ServedModelSpec
from controller.schema import Management, Mode
from controller.specs import PLAN_FEASIBLE, READY, TELEMETRY_FRESH, Fault, Specs
from solvers.engine import EngineProfile, Role
from solvers.fleet import GpuClass, ReplicaState, Snapshot
from solvers.problem import Problem
from solvers.sizing import MAX_POOL_REPLICAS, Unfit, replica_capacity
from solvers.workload import Demand, ServedModel

ALIVE = (ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One moment of the fleet, ready to decide on.

    Attributes
    ----------
    problem : Problem
        Services that can be planned, and what exists.
    snapshot : Snapshot
        The same fleet for the rollout, with the replicas of those services.
    policy : FleetPolicySpec
        The policy in force.
    served : mapping of ``namespace/name`` to ServedModelSpec
        The planned services.
    demands : mapping of ``namespace/name`` to DemandView
        Where each service's demand comes from, the ones without included.
    pinned : mapping of ``namespace/name`` to str
        Services whose replicas stay exactly as they are, and why.
    node_draw_watts : mapping of node to float W
        Fresh meters.
    faults : tuple of Fault
        Everything wrong, sorted.
    """

    problem: Problem
    snapshot: Snapshot
    policy: FleetPolicySpec
    served: Mapping[str, ServedModelSpec]
    demands: Mapping[str, DemandView]
    pinned: Mapping[str, str]
    node_draw_watts: Mapping[str, float]
    faults: tuple[Fault, ...]

    @property
    def tier_ranks(self) -> dict[str, int]:
        """Rank of every planned service's tier, for the rollout."""
        return {service.name: service.tier_rank for service in self.problem.services}

    @property
    def is_stale(self) -> bool:
        """True when telemetry counts for what runs and none of it is fresh: hold, decide nothing new."""
        measured = [view for view in self.demands.values() if view.reason != "Declared"]
        return bool(measured) and not any(view.is_fresh for view in measured)


def build_problem(
    specs: Specs,
    records: Records,
    readings: Readings,
    now_s: float,
    *,
    previous_demands: Mapping[str, Demand] | None = None,
    is_advice: bool = False,
) -> Observation:
    """Build the decision's input from what was observed.

    Parameters
    ----------
    specs : Specs
        Resources that are sound by themselves.
    records : Records
        Nodes, pods and Deployments; only nodes when a plan is made from files.
    readings : Readings
        Telemetry; empty when there is none.
    previous_demands : mapping of service to Demand, optional
        What the last decision was made for; kept where telemetry is silent.
    is_advice : bool
        Nothing will be acted upon, so services under Observe are planned too, and missing telemetry is no fault.
        Otherwise they are planned only while no service may act: a plan must not promise GPUs to pods that nobody
        will start.
    """
    classes = {gpu_class.name: gpu_class for gpu_class in specs.gpu_classes}
    graph = resolve(specs.power_domains, {node.name: node.labels for node in records.nodes})
    scene = _Scene(specs, classes, records, is_advice=is_advice)
    demands = _view_demands(scene.candidates(), scene, readings, now_s, previous_demands or {})
    services = scene.choose(demands)
    stock = _take_stock(specs, records, readings, now_s, graph=graph, services=frozenset(services))
    faults = (*specs.faults, *graph.faults, *stock.faults, *scene.faults)
    return Observation(
        problem=_problem(specs, services, demands, classes, graph, stock),
        snapshot=_snapshot(classes, graph, stock),
        policy=specs.policy,
        served={spec.model.name: spec for spec in specs.served_models if spec.model.name in services},
        demands=demands,
        pinned=scene.pinned,
        node_draw_watts=_fresh_draws(readings, specs.policy, now_s),
        faults=tuple(sorted(set(faults))),
    )


def _take_stock(
    specs: Specs, records: Records, readings: Readings, now_s: float, *, graph: PowerGraph, services: frozenset[str]
) -> Inventory:
    """Count what exists, in the resources that any service asks for."""
    asked = (name for spec in specs.served_models for request in spec.model.requests.values() for name in request)
    return take_stock(
        records,
        policy=specs.policy,
        gpu_classes={gpu_class.name: gpu_class for gpu_class in specs.gpu_classes},
        graph=graph,
        services=services,
        asked=frozenset(asked),
        readings=readings,
        now_s=now_s,
    )


class _Scene:
    """Sorts the services: planned, pinned, or not planned at all; collects why."""

    def __init__(self, specs: Specs, classes: Mapping[str, GpuClass], records: Records, *, is_advice: bool) -> None:
        self.specs, self._classes, self.is_advice = specs, classes, is_advice
        self.running = Counter(service_of(pod) for pod in records.pods if is_ours(pod.labels))
        self.faults: list[Fault] = []
        self.pinned: dict[str, str] = dict.fromkeys(specs.refused, "its ServedModel is refused")
        self._profiles: dict[str, list[EngineProfile]] = {}
        for profile in sorted(specs.engine_profiles, key=lambda profile: profile.key):
            self._profiles.setdefault(profile.key.model, []).append(profile)

    def candidates(self) -> list[ServedModelSpec]:
        """Services that may be planned as far as their specs go."""
        specs = self.specs.served_models
        acting = [s for s in specs if s.management is not Management.OBSERVE and s.modes.replicas is Mode.ACT]
        watched = [] if self.is_advice or not acting else [s for s in specs if s.management is Management.OBSERVE]
        self.pinned |= {spec.model.name: "it is only observed, while other services are acted on" for spec in watched}
        return [spec for spec in specs if spec not in watched and not self._is_refused(spec)]

    def _is_refused(self, spec: ServedModelSpec) -> bool:
        if spec.modes.replicas is Mode.OFF:
            self.pinned[spec.model.name] = "its replicas are in mode Off"
            return True
        unknown = [name for name in spec.model.gpu_classes if name not in self._classes]
        if unknown:
            known = ", ".join(sorted(self._classes)) or "none"
            names = ", ".join(unknown)
            remedy = f"create it or use one of {known}"
            self._fault(spec, "spec.gpuClasses", f"there is no GpuClass {names}", remedy)
        if unknown and len(unknown) == len(spec.model.gpu_classes):
            self.pinned[spec.model.name] = "it allows no GpuClass that exists"
            return True
        return self._has_no_profile(spec)

    def _has_no_profile(self, spec: ServedModelSpec) -> bool:
        model = spec.model.model
        known = self._profiles.get(model, [])
        if any(self._allows(spec.model, profile) for profile in known):
            return False
        if known:
            have = ", ".join(f"{p.key.gpu_class}/{p.key.config.label}" for p in known[:8])
            problem = f"{model} has no EngineProfile on any GpuClass and configuration allowed, only {have}"
        else:
            problem = f"{model} has no EngineProfile"
        remedy = f"make one: penstock profile --model {model} --gpu-class NAME"
        self._fault(spec, "spec.model", problem, remedy)
        self.pinned[spec.model.name] = "no EngineProfile for it"
        return True

    def _allows(self, service: ServedModel, profile: EngineProfile) -> bool:
        return profile.key.gpu_class in self._classes and service.allows(profile.key.gpu_class, profile.key.config)

    def choose(self, demands: Mapping[str, DemandView]) -> tuple[str, ...]:
        """Services with a demand that some profile can serve; the others keep what runs."""
        return tuple(s.model.name for s in self.specs.served_models if self._is_plannable(s, demands))

    def _is_plannable(self, spec: ServedModelSpec, demands: Mapping[str, DemandView]) -> bool:
        view = demands.get(spec.model.name)
        if view is None:
            return False
        if not view.is_fresh and (view.demand is None or not self.is_advice):
            remedy = "" if view.demand else "check spec.demand.inferencePool, or declare a demand"
            self._fault(spec, "spec.demand", view.message, remedy, TELEMETRY_FRESH)
        if view.demand is None:
            self.pinned[spec.model.name] = view.message
            return False
        reasons = self._unfit(spec.model, view.demand)
        if reasons is not None and spec.model.splits_by_size:  # what serves every size alone is not asked of one pool
            alone = (self._unfit(spec.model, replace(view.demand, mix=(bucket,))) for bucket in view.demand.mix)
            reasons = next((reason for reason in alone if reason is not None), None)
        if reasons is not None:
            remedy = "relax the SLO, allow another GpuClass or configuration, or add an EngineProfile"
            self._fault(spec, "spec.slos", f"no profile fits: {reasons}", remedy, PLAN_FEASIBLE)
            self.pinned[spec.model.name] = "no profile keeps its SLOs"
        return reasons is None

    def _unfit(self, service: ServedModel, demand: Demand) -> str | None:
        """Why no role chain can be served by any profile, None when one can.

        The most memory is tried first, as the likeliest, and a pool so large that no larger one carries more.
        """
        reasons: list[str] = []
        served: set[Role] = set()
        profiles = [profile for profile in self._profiles.get(service.model, []) if self._allows(service, profile)]
        for profile in sorted(profiles, key=self._size, reverse=True):
            for role in sorted(set(service.roles) - served):
                answer = replica_capacity(profile, role, demand.mix, service.slos, pool_replicas=MAX_POOL_REPLICAS)
                if isinstance(answer, Unfit):
                    reasons.append(f"{role}: {answer.reason}")
                else:
                    served.add(role)
            if Role.MIXED in served or {Role.PREFILL, Role.DECODE} <= served:
                return None
        shown = list(dict.fromkeys(reasons))
        return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more like these" if len(shown) > 3 else "")

    def _size(self, profile: EngineProfile) -> tuple[int, str, str]:
        gpus = profile.key.config.gpus
        return self._classes[profile.key.gpu_class].memory_bytes * gpus, profile.key.gpu_class, profile.key.config.label

    def _fault(self, spec: ServedModelSpec, path: str, problem: str, remedy: str, condition: str = READY) -> None:
        subject = f"ServedModel/{spec.model.name}"
        self.faults.append(Fault(subject=subject, field=path, problem=problem, remedy=remedy, condition=condition))


def _view_demands(
    specs: Iterable[ServedModelSpec],
    scene: _Scene,
    readings: Readings,
    now_s: float,
    previous: Mapping[str, Demand],
) -> dict[str, DemandView]:
    return {
        spec.model.name: view_demand(
            spec,
            readings,
            scene.specs.policy,
            now_s=now_s,
            previous=previous.get(spec.model.name),
            is_running=scene.running[spec.model.name] > 0,
            is_advice=scene.is_advice,
        )
        for spec in specs
    }


def _problem(
    specs: Specs,
    services: tuple[str, ...],
    demands: Mapping[str, DemandView],
    classes: Mapping[str, GpuClass],
    graph: PowerGraph,
    stock: Inventory,
) -> Problem:
    planned = sorted((s for s in specs.served_models if s.model.name in services), key=lambda spec: spec.model.name)
    return Problem(
        services=tuple(_as_planned(spec, classes) for spec in planned),
        demands={name: demand for name in services if (demand := demands[name].demand) is not None},
        gpu_classes=dict(sorted(classes.items())),
        nodes=stock.nodes,
        domains=graph.domains,
        profiles={p.key: p for p in specs.engine_profiles if p.key.gpu_class in classes},
        running=_running(stock),
        policy=specs.policy.policy,
    )


def _as_planned(spec: ServedModelSpec, classes: Mapping[str, GpuClass]) -> ServedModel:
    """The service with the classes that exist; what we make ourselves is a Deployment, one pod a replica."""
    is_made = spec.management is Management.GENERATE and spec.modes.replicas is Mode.ACT
    known = tuple(name for name in spec.model.gpu_classes if name in classes)
    asked = {role: _beside_gpus(requests, classes) for role, requests in spec.model.requests.items()}
    return replace(spec.model, gpu_classes=known, is_one_pod=is_made, requests=asked)


def _beside_gpus(requests: Mapping[str, int], classes: Mapping[str, GpuClass]) -> dict[str, int]:
    gpus = {gpu_class.resource_name for gpu_class in classes.values()}
    return {name: amount for name, amount in requests.items() if name not in gpus}


def _running(stock: Inventory) -> dict[Place, int]:
    """Replicas that serve or will, by place: what is asked for, less those lost on a dead node."""
    alive = Counter((r.pool, r.location) for r in stock.replicas if r.state in ALIVE)
    lost = Counter((r.pool, r.location) for r in stock.replicas if r.state is ReplicaState.LOST)
    counts = {
        place: min(asked, max(alive[place], asked - lost[place])) for place, asked in sorted(stock.desired.items())
    }
    return {place: count for place, count in counts.items() if count > 0}


def _snapshot(classes: Mapping[str, GpuClass], graph: PowerGraph, stock: Inventory) -> Snapshot:
    return Snapshot(
        gpu_classes=dict(sorted(classes.items())),
        nodes=stock.nodes,
        domains=graph.domains,
        replicas=stock.replicas,
        desired=stock.desired,
    )


def _fresh_draws(readings: Readings, policy: FleetPolicySpec, now_s: float) -> dict[str, float]:
    fresh = (r for r in readings.nodes.values() if r.is_fresh(now_s, policy.telemetry_max_age_s))
    return {reading.node: reading.draw_watts for reading in sorted(fresh, key=lambda reading: reading.node)}
