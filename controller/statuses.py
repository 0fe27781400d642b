"""What every object's status should say after a turn, and the writer that keeps it said without flooding.

``render_statuses`` is pure; ``StatusWriter`` applies what differs from what is there. Figures that drift with every
scrape are written at most every ``DRIFT_S``, everything else at once.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.client import Body, KubeClient
from controller.correction_status import render_corrections
from controller.demand import DemandView
from controller.kinds import KINDS, ObjectRecord
from controller.plan_bodies import plan_name
from controller.readings import ServiceReading
from controller.render import (
    APPLIED,
    PLAN_FEASIBLE,
    READY,
    SLOS_MET,
    TELEMETRY_FRESH,
    WITHIN_POWER_BUDGET,
    condition,
    render_engine_profile_status,
    render_fleet_plan_status,
    render_fleet_policy_status,
    render_gpu_class_status,
    render_power_domain_status,
    render_served_model_status,
)
from controller.resources import ServedModelSpec, parse_engine_profile, strictest
from controller.schema import API_VERSION, Mode
from controller.specs import Fault
from controller.turn import Report
from solvers.errors import PenstockError
from solvers.fleet import PoolKey, ReplicaState
from solvers.ledger import DomainBalance
from solvers.plan import Plan
from solvers.workload import Slo, SloMetric

DRIFT_S = 10.0
DRIFTING = frozenset(
    {
        "measuredWatts",
        "plannedWatts",
        "demandMilliRequestsPerSecond",
        "demandSource",
        "ttft",
        "itl",
        "usdPerHour",
        "why",
        "corrections",
    }
)
PATHS = {kind.name: kind.path for kind in KINDS}
Claim = tuple[bool | None, str, str]
"""Whether a condition holds (None: unknown), its reason, its message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOf:
    """The status that one object should have."""

    kind: str
    namespace: str
    name: str
    uid: str
    now: Mapping[str, Any]
    wanted: Body

    @property
    def path(self) -> str:
        """Where the object lives."""
        root, _, plural = PATHS[self.kind].rpartition("/")
        return (
            f"{root}/namespaces/{self.namespace}/{plural}/{self.name}"
            if self.namespace
            else f"{root}/{plural}/{self.name}"
        )


def render_statuses(report: Report, balances: Iterable[DomainBalance]) -> list[StatusOf]:
    """Say what the status of every object should be."""
    desk = _Desk(report)
    rows = {row.domain: row for row in balances}
    makers: Mapping[str, Callable[[ObjectRecord], Body | None]] = {
        "ServedModel": desk.served_model,
        "PowerDomain": lambda record: desk.power_domain(record, rows.get(record.name)),
        "GpuClass": desk.gpu_class,
        "EngineProfile": desk.engine_profile,
        "FleetPolicy": desk.fleet_policy,
    }
    found = []
    for kind, make in makers.items():
        for record in report.sight.view.objects.get(kind, {}).values():
            wanted = make(record)
            if wanted is not None:
                found.append(_status_of(kind, record, wanted))
    return [*found, *desk.fleet_plans()]


def _status_of(kind: str, record: ObjectRecord, wanted: Body) -> StatusOf:
    now = record.body.get("status") or {}
    return StatusOf(kind=kind, namespace=record.namespace, name=record.name, uid=record.uid, now=now, wanted=wanted)


class _Desk:
    """The report, indexed as the statuses need it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sight, self._observation = report.sight, report.sight.observation
        self._plan: Plan | None = report.decision.plan if report.decision else None
        self._plan_name = plan_name(report.decision.number) if report.decision and report.decision.number else ""
        self._faults: dict[tuple[str, str], list[Fault]] = defaultdict(list)
        for fault in self._observation.faults:
            self._faults[fault.subject, fault.condition].append(fault)
        self._models = {spec.model.name: spec for spec in self._sight.specs.served_models}
        snapshot = self._observation.snapshot
        self._ready = Counter(r.pool for r in snapshot.replicas if r.state is ReplicaState.READY)
        self._asked: Counter[PoolKey] = Counter()
        for (pool, _), count in snapshot.desired.items():
            self._asked[pool] += count
        self._want = {row.pool: row.replicas for row in (self._plan.pools if self._plan else ())}

    def served_model(self, record: ObjectRecord) -> Body:
        service = f"{record.namespace}/{record.name}"
        spec = self._models.get(service)
        claims: dict[str, Claim] = {READY: self._served_ready(service)}
        if spec is None:
            return {"observedGeneration": record.generation, "conditions": self._conditions(record, claims)}
        reading = self._sight.readings.services.get(service)
        if reading is not None and not reading.is_fresh(
            self._sight.now_s, self._observation.policy.telemetry_max_age_s
        ):
            reading = None
        observed = _observed(spec, reading)
        view = self._observation.demands.get(service)
        claims[TELEMETRY_FRESH] = _fresh(view)
        claims[PLAN_FEASIBLE] = self._feasible(service)
        claims[SLOS_MET] = _slos_met(spec, observed)
        claims[APPLIED] = self._applied(spec)
        decision = self._report.decision
        return render_served_model_status(
            spec,
            plan=self._plan,
            plan_name=self._plan_name,
            ready=self._ready,
            observed=observed,
            demand=decision.problem.demands.get(service) if decision else None,
            conditions=self._conditions(record, claims),
        )

    def power_domain(self, record: ObjectRecord, row: DomainBalance | None) -> Body:
        domain = self._observation.snapshot.domains.get(record.name)
        claims: dict[str, Claim] = {READY: self._sound(f"PowerDomain/{record.name}", "Resolved", "its place is known")}
        if domain is None or row is None:
            claims[WITHIN_POWER_BUDGET] = (None, "NotResolved", "the domain is left out, so nothing is known of it")
            return {"observedGeneration": record.generation, "conditions": self._conditions(record, claims)}
        claims[WITHIN_POWER_BUDGET] = _within(row)
        return render_power_domain_status(
            domain,
            nodes=sum(record.name in node.domains for node in self._observation.snapshot.nodes),
            reserved_watts=row.reserved_watts,
            planned_watts=row.planned_watts if self._plan else None,
            measured_watts=row.measured_watts,
            generation=record.generation,
            conditions=self._conditions(record, claims),
        )

    def gpu_class(self, record: ObjectRecord) -> Body:
        nodes = [node for node in self._observation.snapshot.nodes if node.gpu_class == record.name]
        sound = self._sound(f"GpuClass/{record.name}", "Known", f"{len(nodes)} managed nodes are of this class")
        return render_gpu_class_status(
            nodes=len(nodes),
            gpus_total=sum(node.gpus_total for node in nodes),
            gpus_used=self._gpus_used(record.name),
            generation=record.generation,
            conditions=self._conditions(record, {READY: sound}),
        )

    def engine_profile(self, record: ObjectRecord) -> Body | None:
        sound = self._sound(f"EngineProfile/{record.name}", "Read", "the curves are usable")
        conditions = self._conditions(record, {READY: sound})
        if not sound[0]:
            return {"observedGeneration": record.generation, "conditions": conditions}
        known, status = self._sight.corrections, record.body.get("status", {})
        learns = bool(known.beliefs or status.get("corrections"))
        if status.get("observedGeneration") == record.generation and not learns:
            return None  # nothing in it changes but with its spec
        key = parse_engine_profile(record.body).key
        return render_engine_profile_status(
            key.config,
            generation=record.generation,
            conditions=conditions,
            corrections=render_corrections(known, key, record.generation),
        )

    def fleet_policy(self, record: ObjectRecord) -> Body:
        report, snapshot = self._report, self._observation.snapshot
        sound = self._sound(f"FleetPolicy/{record.name}", "InForce", "the policy is in force")
        if record.name != "default" and self._faults.get((f"FleetPolicy/{record.name}", READY)):
            return {"observedGeneration": record.generation, "conditions": self._conditions(record, {READY: sound})}
        claims: dict[str, Claim] = {
            READY: sound,
            TELEMETRY_FRESH: self._fleet_fresh(),
            PLAN_FEASIBLE: self._fleet_feasible(),
            APPLIED: (False, "Held", "; ".join(report.holds)) if report.holds else (True, "Acting", "steps are taken"),
        }
        return render_fleet_policy_status(
            active_plan=self._plan_name or None,
            leader=report.holder,
            nodes=len(snapshot.nodes),
            gpus_total=sum(node.gpus_total for node in snapshot.nodes),
            gpus_used=self._gpus_used(None),
            usd_per_hour=self._plan.report.cost_usd_per_hour if self._plan else None,
            generation=record.generation,
            conditions=self._conditions(record, claims),
        )

    def fleet_plans(self) -> Iterable[StatusOf]:
        """Say of the plan in force how far it is carried out, and of all others that they are superseded."""
        current = self._report.decision.number if self._report.decision else 0
        for record in self._sight.view.plans.values():
            if not current or record.part > 1:
                continue
            wanted = self._fleet_plan(record.number == current)
            yield StatusOf(kind="FleetPlan", namespace="", name=record.name, uid=record.uid, now={}, wanted=wanted)

    def _fleet_plan(self, is_current: bool) -> Body:
        if not is_current:
            return {"state": "Superseded"}
        holds, modes = "; ".join(self._report.holds), self._observation.policy.modes
        is_advice = strictest(modes.replicas, modes.placement) is not Mode.ACT
        state = "Advised" if is_advice else "Held" if holds else "Active"
        return render_fleet_plan_status(
            state,
            holds or "it is carried out step by step",
            ready=sum(min(self._ready[pool], want) for pool, want in self._want.items()),
            wanted=sum(self._want.values()),
            whys=self._plan.whys if self._plan else (),
            conditions=(),
        )

    def _gpus_used(self, gpu_class: str | None) -> int:
        replicas = self._observation.snapshot.replicas
        return sum(r.pool.config.gpus for r in replicas if r.node and gpu_class in (None, r.pool.gpu_class))

    def _sound(self, subject: str, reason: str, message: str) -> Claim:
        if faults := self._faults.get((subject, READY)):
            return False, "Invalid", "; ".join(str(fault) for fault in faults)
        return True, reason, message

    def _served_ready(self, service: str) -> Claim:
        sound = self._sound(f"ServedModel/{service}", "Serving", "")
        if not sound[0]:
            return sound
        pinned = self._observation.pinned.get(service)
        if pinned:
            return False, "Pinned", f"its replicas stay as they are: {pinned}"
        if self._plan is None or service not in {row.service for row in self._plan.services}:
            return None, "NoPlan", "no plan covers the service yet"
        want = sum(count for pool, count in self._want.items() if pool.service == service)
        ready = sum(min(self._ready[p], count) for p, count in self._want.items() if p.service == service)
        is_ready = ready >= want
        return is_ready, "Serving" if is_ready else "RollingOut", f"{ready} of {want} planned replicas are Ready"

    def _feasible(self, service: str) -> Claim:
        if faults := self._faults.get((f"ServedModel/{service}", PLAN_FEASIBLE)):
            return False, "NothingFits", "; ".join(str(fault) for fault in faults)
        row = next((row for row in (self._plan.services if self._plan else ()) if row.service == service), None)
        if row is None:
            return None, "NoPlan", self._report.solve_fault or "no plan covers the service yet"
        if row.unserved_requests_per_s > 1e-6 * max(1.0, row.demand_requests_per_s):
            short = f"{row.unserved_requests_per_s:.2f} of {row.demand_requests_per_s:.2f} requests/s are unserved: "
            return False, "Short", short + "; ".join(row.short_because)
        return True, "Planned", f"{row.served_requests_per_s:.2f} requests/s are served inside the SLOs"

    def _fleet_fresh(self) -> Claim:
        stale = [name for name, view in self._observation.demands.items() if not view.is_fresh]
        said = "; ".join(self._sight.readings.faults)
        if not stale:
            return True, "Fresh", "the demand of every service is known"
        return False, "Held", f"no fresh demand of {', '.join(stale)}" + (f"; {said}" if said else "")

    def _fleet_feasible(self) -> Claim:
        if self._plan is None:
            return None, "NoPlan", self._report.solve_fault or "there is no plan yet"
        if self._report.solve_fault:
            return None, "SolveFailed", f"{self._plan_name or 'the last plan'} stays: {self._report.solve_fault}"
        short = [row.service for row in self._plan.services if row.unserved_requests_per_s > 1e-6]
        if short:
            return False, "Short", f"not all demand of {', '.join(short)} can be served"
        return True, str(self._plan.report.status), f"{self._plan_name or 'the plan'} serves all demand"

    def _applied(self, spec: ServedModelSpec) -> Claim:
        service = spec.model.name
        failed = [o for o in self._report.outcomes if o.pool.service == service and not o.is_done]
        if failed:
            return False, failed[0].reason, "; ".join(outcome.message for outcome in failed)
        if strictest(spec.modes.replicas, spec.modes.placement) is not Mode.ACT:
            return False, "AdviceOnly", "the mode keeps Penstock from writing workloads"
        if self._report.holds:
            return False, "Held", "; ".join(self._report.holds)
        pools = {pool for pool in (*self._want, *self._asked) if pool.service == service}
        if all(self._asked[pool] == self._want.get(pool, 0) for pool in pools):
            return True, "Applied", "the workloads ask for what the plan wants"
        return False, "RollingOut", "the workloads are brought to the plan step by step"

    def _conditions(self, record: ObjectRecord, claims: Mapping[str, Claim]) -> list[Body]:
        previous = (record.body.get("status") or {}).get("conditions") or ()
        return [
            condition(
                name, holds, reason, message, generation=record.generation, now_s=self._sight.now_s, previous=previous
            )
            for name, (holds, reason, message) in claims.items()
        ]


def _observed(spec: ServedModelSpec, reading: ServiceReading | None) -> dict[Slo, float]:
    if reading is None:
        return {}
    histograms = {SloMetric.TTFT: reading.ttft_histogram, SloMetric.ITL: reading.itl_histogram}
    found = ((slo, histograms[slo.metric]) for slo in spec.model.slos)
    return {slo: histogram.quantile(slo.percentile_ratio) for slo, histogram in found if histogram is not None}


def _fresh(view: DemandView | None) -> Claim:
    if view is None:
        return None, "NotAsked", "no demand is looked for while the service is not planned"
    return view.is_fresh, view.reason, view.message


def _slos_met(spec: ServedModelSpec, observed: Mapping[Slo, float]) -> Claim:
    if not observed:
        return None, "NoObservations", "no latencies were observed"
    broken = [slo for slo, value_s in observed.items() if value_s > slo.limit_s]
    if not broken:
        return True, "Met", "observed latencies are inside the SLOs"
    return False, "Missed", "; ".join(_miss(slo, observed[slo]) for slo in broken)


def _miss(slo: Slo, observed_s: float) -> str:
    at = f"{slo.metric} at {slo.percentile_ratio:.1%}"
    return f"{at} is {observed_s * 1e3:.0f} ms, allowed {slo.limit_s * 1e3:.0f} ms"


def _within(row: DomainBalance) -> Claim:
    numbers = f"{row.reserved_watts:.0f} W are reserved of {row.usable_watts:.0f} W usable"
    if row.is_over:
        return False, "OverBudget", numbers
    if row.measured_watts is not None and row.measured_watts > row.usable_watts:
        return False, "MeasuredOverBudget", f"{row.measured_watts:.0f} W are drawn of {row.usable_watts:.0f} W usable"
    return True, "WithinBudget", numbers


class StatusWriter:
    """Applies statuses that differ from what was written, or from what is there after a change of leader."""

    def __init__(self, client: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._written: dict[str, tuple[Mapping[str, Any], float]] = {}

    def write(self, statuses: Iterable[StatusOf]) -> tuple[str, ...]:
        """Write what is due; return what went wrong."""
        every = list(statuses)
        for gone in self._written.keys() - {status.uid for status in every}:
            del self._written[gone]
        due = [status for status in every if self._is_due(status)]
        return tuple(filter(None, self._client.in_parallel(self._job(status) for status in due)))

    def _is_due(self, status: StatusOf) -> bool:
        before, written_s = self._written.get(status.uid, (status.now, float("-inf")))
        if before == status.wanted:
            return False
        return _sharp(before) != _sharp(status.wanted) or self._clock() - written_s >= DRIFT_S

    def _job(self, status: StatusOf) -> Callable[[], str | None]:
        metadata = {"name": status.name, **({"namespace": status.namespace} if status.namespace else {})}
        body = {
            "apiVersion": API_VERSION,
            "kind": status.kind,
            "metadata": metadata,
            "status": status.wanted,
        }

        def job() -> str | None:
            try:
                self._client.apply_status(status.path, body)
            except PenstockError as error:
                return f"status of {status.kind}/{status.name}: {error}"
            self._written[status.uid] = (status.wanted, self._clock())
            return None

        return job


def _sharp(status: Mapping[str, Any]) -> dict[str, Any]:
    """The part whose change is news: not what drifts, nor words of conditions; of corrections what planning uses."""
    kept = {name: value for name, value in status.items() if name not in DRIFTING}
    claims = [(c["type"], c["status"], c["reason"]) for c in status.get("conditions") or ()]
    planned = [(row["phase"], row.get("plannedPermille")) for row in status.get("corrections") or ()]
    return {**kept, "conditions": claims, "planned": planned}
