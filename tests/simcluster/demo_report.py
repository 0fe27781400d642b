"""What the demo prints: a line while it runs, and the summary at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.tables import MISSING, Cell, render_table
from tests.simcluster.demo_script import Incident, Script
from tests.simcluster.demo_watch import DomainNow, Sample

GRACE_S = 90.0  # virtual; a cut budget is kept once the pods that leave have drained: until then it is not judged
MOMENTS = 8  # of the pools' history
WINDOW = "60s"  # of the twin, over which the live table and the incidents are told


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A demo that has ended.

    Attributes
    ----------
    final_services : mapping of service to the twin's description of the whole run
        Empty after a crash: what the last sample says counts then.
    plans : int, optional
        FleetPlans decided; None when nobody could be asked.
    crashed : str
        Why it could not go on, empty when it reached its end.
    """

    script: Script
    samples: Sequence[Sample]
    final_services: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plans: int | None = None
    crashed: str = ""


def live_header(services: Sequence[str]) -> str:
    """Head of the live table: a group of columns for each service, then the fleet's."""
    groups = "".join(f" | {_short(name):<32}" for name in services)
    units = "".join(f" | {'req/s':>6} {'TTFT':>7} {'ITL':>6} {'in SLO':>7}   " for _ in services)
    fleet = f" | {'pods':>4} {'GPUs':>4} {'kW':>6} {'USD/h':>7}"
    return f"{'':>7}{groups} | fleet\n{'time':>7}{units}{fleet}"


def live_line(sample: Sample, services: Sequence[str]) -> str:
    """One line of the live table; latencies in ms at the SLO's percentile over the last window."""
    cells = "".join(f" | {_service_cell(sample.services.get(name, {}))}" for name in services)
    top = max((domain.drawn_watts for domain in sample.domains), default=0.0)
    fleet = f" | {sample.pods:>4} {sum(sample.gpus.values()):>4} {top / 1000:>6.1f} {sample.usd_per_hour:>7.2f}"
    return f"{sample.at_s:>5.0f} s{cells}{fleet}"


def _service_cell(service: Any) -> str:
    window = service.get("windows", {}).get(WINDOW, {})
    rate = window.get("offered_requests_per_s", 0.0)
    values = {slo["metric"]: slo["value_s"] for slo in window.get("slos", ())}
    ttft, itl = (f"{1000 * v:.0f}" if (v := values.get(metric)) is not None else "-" for metric in ("TTFT", "ITL"))
    within = window.get("in_slo_ratio")
    share = "-" if within is None else f"{100 * within:.1f} %"
    return f"{rate:>6.1f} {ttft:>7} {itl:>6} {share:>7}   "


def summary(run: Run) -> str:
    """Everything a reader wants to know of a run."""
    return "\n\n".join(_sections(run))


def _sections(run: Run) -> Iterator[str]:
    if run.samples:
        yield from _figures(run)
    if run.crashed:
        yield f"CRASHED\n  {run.crashed}"


def _figures(run: Run) -> Iterator[str]:
    yield "Services over the whole run\n" + render_table(
        ("SERVICE", "SLO", "LIMIT MS", "ATTAINED MS", "WITHIN %", "MET", "REQUESTS", "UNSERVED", "IN SLO %"),
        _service_rows(run),
    )
    yield "Power\n" + render_table(
        ("DOMAIN", "BUDGET W", "LEAST BUDGET W", "FIXED W", "PEAK RESERVED W", "PEAK MEASURED W", "OVER"),
        _power_rows(run),
    )
    yield "Ready replicas over time, by GPU class\n" + _pools_table(run)
    costs = [sample.usd_per_hour for sample in run.samples]
    plans = "" if run.plans is None else f"; {run.plans} plans decided"
    yield f"Cost: {sum(costs) / len(costs):.2f} USD/h on average, {max(costs):.2f} at most{plans}"
    yield "Incidents\n" + "\n".join(_incident_lines(run))
    if faults := exceeded(run):
        yield "BUDGETS EXCEEDED\n" + "\n".join(f"  {fault}" for fault in faults)


def _service_rows(run: Run) -> Iterator[tuple[Cell, ...]]:
    for name, service in sorted((run.final_services or run.samples[-1].services).items()):
        whole = service["whole_run"]
        unserved = whole["rejected"] + whole["timed_out"]
        for slo in whole["slos"]:
            yield (
                name,
                f"{slo['metric']} p{100 * slo['percentile']:g}",
                round(1000 * slo["limit_s"]),
                _scaled(slo["value_s"], 1000),
                _scaled(slo["within_ratio"], 100),
                "yes" if slo["is_met"] else "NO",
                whole["finished"] + unserved,
                unserved,
                _scaled(whole["in_slo_ratio"], 100),
            )


def _scaled(value: float | None, factor: float) -> Cell:
    return MISSING if value is None else factor * value


def _power_rows(run: Run) -> Iterator[tuple[Cell, ...]]:
    over = {name for name, _, _ in _breaches(run)}
    for name, history in sorted(_by_domain(run.samples).items()):
        yield (
            name,
            round(history[0].budget_watts),
            round(min(now.budget_watts for now in history)),
            round(max(now.fixed_watts for now in history)),
            round(max(now.reserved_watts for now in history)),
            round(max(now.measured_watts for now in history)),
            "YES" if name in over else "no",
        )


def _by_domain(samples: Iterable[Sample]) -> dict[str, list[DomainNow]]:
    found: dict[str, list[DomainNow]] = {}
    for sample in samples:
        for domain in sample.domains:
            found.setdefault(domain.name, []).append(domain)
    return found


def _pools_table(run: Run) -> str:
    step = max(1, len(run.samples) // MOMENTS)
    moments = run.samples[::step]
    groups = sorted({group for sample in moments for group in sample.replicas})
    headers = ("SERVICE", "ROLE", "GPU CLASS", *(f"{sample.at_s:.0f} S" for sample in moments))
    return render_table(headers, [(*group, *(sample.replicas.get(group, 0) for sample in moments)) for group in groups])


def has_failed(run: Run) -> bool:
    """Say whether the demo must end with an error: a budget exceeded, a crash, or nothing seen at all."""
    return bool(exceeded(run) or run.crashed or not run.samples)


def exceeded(run: Run) -> list[str]:
    """Every budget that was not kept, as sentences; empty when all were."""
    return [f"{name} at {sample.at_s:.0f} s: {what}" for name, sample, what in _breaches(run)]


def _breaches(run: Run) -> Iterator[tuple[str, Sample, str]]:
    for sample in run.samples:
        for domain in sample.domains:
            if domain.is_over and not _in_grace(run.script, domain.name, sample.at_s):
                measured = f"measured {domain.drawn_watts:.0f} W of {domain.budget_watts:.0f} W"
                reserved = f"reserved {domain.reserved_watts:.0f} W of {domain.usable_watts:.0f} W"
                yield domain.name, sample, f"{measured}, {reserved}"


def _in_grace(script: Script, domain: str, at_s: float) -> bool:
    return any(
        incident.affected == domain and incident.start_s <= at_s <= incident.start_s + GRACE_S
        for incident in script.incidents
    )


def _incident_lines(run: Run) -> Iterator[str]:
    for incident in run.script.incidents:
        during = [s for s in run.samples if incident.start_s <= s.at_s <= incident.end_s]
        before = [s for s in run.samples if s.at_s < incident.start_s]
        if before and during:
            yield f"  {incident.start_s:.0f} s {incident.name}: {incident.happens}"
            yield from (f"      {line}" for line in _TOLD[incident.name](run, incident, before[-1], during))


def _surge_told(run: Run, incident: Incident, before: Sample, during: Sequence[Sample]) -> Iterator[str]:
    was, *then = (_replicas_of(incident.affected, sample) for sample in (before, *during))
    yield f"{incident.affected} went from {was} to {max(then)} Ready replicas"
    yield f"the fleet went from {before.pods} to {max(sample.pods for sample in during)} pods"
    yield _slo_sentence(incident.affected, during)


def _replicas_of(service: str, sample: Sample) -> int:
    return sum(count for (owner, _, _), count in sample.replicas.items() if owner == service)


def _cut_told(run: Run, incident: Incident, before: Sample, during: Sequence[Sample]) -> Iterator[str]:
    def domain(sample: Sample) -> DomainNow:
        return next(d for d in sample.domains if d.name == incident.affected)

    old, last = domain(before), domain(during[-1])
    kept = next((s for s in during if domain(s).budget_watts < old.budget_watts and not domain(s).is_over), None)
    when = f"{kept.at_s - incident.start_s:.0f} s later the worst case was inside it" if kept else "it was NOT kept"
    yield f"{old.reserved_watts:.0f} W were reserved of {old.usable_watts:.0f} W usable; {when}"
    reserved = f"{last.reserved_watts:.0f} W of {last.usable_watts:.0f} W reserved"
    yield f"at the end {reserved}, {last.measured_watts:.0f} W measured"
    yield from (_slo_sentence(name, during) for name in sorted(before.services))


def _loss_told(run: Run, incident: Incident, before: Sample, during: Sequence[Sample]) -> Iterator[str]:
    was = sum(before.replicas.values())
    least = min(sum(s.replicas.values()) for s in during)
    last = sum(during[-1].replicas.values())
    yield f"{was} Ready replicas before, {least} at the worst, {last} at the end"
    yield from (_slo_sentence(name, during) for name in sorted(before.services))


_TOLD = {"surge": _surge_told, "budget cut": _cut_told, "lost node": _loss_told}


def _slo_sentence(service: str, during: Sequence[Sample]) -> str:
    shares = [w for s in during if (w := s.services[service]["windows"][WINDOW]["in_slo_ratio"]) is not None]
    if not shares:
        return f"{service}: no request finished"
    worst, last = 100 * min(shares), 100 * shares[-1]
    return f"{service}: {worst:.1f} % of requests inside all SLOs in the worst minute, {last:.1f} % at the end"


def _short(service: str) -> str:
    return service.partition("/")[2]
