"""What of a turn is worth an Event, and about which object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controller.events import Recorder, Subject
from controller.kinds import ObjectRecord
from controller.plan_bodies import plan_name
from controller.schema import API_VERSION
from controller.turn import Report
from solvers.ledger import DomainBalance

News = tuple[Subject, str, str, bool]
"""Object, reason, message, whether it is a warning."""


def tell_news(recorder: Recorder, report: Report, balances: Iterable[DomainBalance]) -> None:
    """Write the Events of a turn; the recorder drops what is no news."""
    for subject, reason, message, is_warning in (
        *_of_policy(report),
        *_of_services(report),
        *_of_domains(report, balances),
        *_of_faults(report),
        *_of_profiles(report),
    ):
        recorder.tell(subject, reason, message, is_warning=is_warning)


def _of_policy(report: Report) -> Iterator[News]:
    policy = _subject(report, "FleetPolicy", "default")
    if policy is None:
        return
    if report.decision is not None and report.decision.number:
        plan = report.decision.plan
        replicas = sum(row.replicas for row in plan.pools)
        words = f"{replicas} replicas, {plan.report.cost_usd_per_hour:.2f} USD/h, {plan.report.status}"
        yield policy, "Planned", f"{plan_name(report.decision.number)}: {words}", False
    if report.holds:
        yield policy, "Held", "; ".join(report.holds), bool(report.violations)
    if report.solve_fault:
        yield policy, "SolveFailed", f"the last good plan stays: {report.solve_fault}", True
    if report.sight.readings.faults:
        yield policy, "TelemetryFailed", "; ".join(report.sight.readings.faults), True
    if report.sight.readings.engine_fault:
        yield policy, "EnginesNotRead", f"nothing is learnt: {report.sight.readings.engine_fault}", True


def _of_services(report: Report) -> Iterator[News]:
    for outcome in report.outcomes:
        model = _subject(report, "ServedModel", outcome.pool.service)
        if model is not None:
            reason = "Scaled" if outcome.is_done else outcome.reason
            yield model, reason, outcome.message, not outcome.is_done
    for row in report.decision.plan.services if report.decision else ():
        model = _subject(report, "ServedModel", row.service)
        if model is not None and row.short_because:
            yield model, "Short", "; ".join(row.short_because), True


def _of_domains(report: Report, balances: Iterable[DomainBalance]) -> Iterator[News]:
    for row in balances:
        domain = _subject(report, "PowerDomain", row.domain)
        if domain is not None and row.is_over:
            message = f"{row.reserved_watts:.0f} W are reserved of {row.usable_watts:.0f} W usable"
            yield domain, "OverBudget", message, True


def _of_faults(report: Report) -> Iterator[News]:
    for fault in report.sight.observation.faults:
        kind, _, name = fault.subject.partition("/")
        subject = _subject(report, kind, name)
        if subject is not None:
            yield subject, "Invalid", str(fault), True


def _of_profiles(report: Report) -> Iterator[News]:
    for name, reason, message, is_warning in report.sight.corrections.notices:
        profile = _subject(report, "EngineProfile", name)
        if profile is not None:
            yield profile, reason, message, is_warning


def _subject(report: Report, kind: str, key: str) -> Subject | None:
    """The object as an Event names it; None for one that is not there (any more)."""
    view = report.sight.view
    if kind == "Node":
        return Subject(api_version="v1", kind="Node", name=key, uid=key) if key in view.nodes else None
    record: ObjectRecord | None = view.objects.get(kind, {}).get(key)
    if record is None:
        return None
    return Subject(api_version=API_VERSION, kind=kind, namespace=record.namespace, name=record.name, uid=record.uid)
