"""What the operator exports. One prefix, base units, no series per pod; values are those of the last turn.

==================================================== =========================================================
series                                               meaning
==================================================== =========================================================
penstock_build_info{version}                         always 1
penstock_leader                                      1 while this replica writes
penstock_turns_total{result}                         turns: acted, quiet, held, standby, failed
penstock_turn_seconds                                histogram of how long a turn takes
penstock_last_turn_timestamp_seconds                 when the last turn ended
penstock_solver_solves_total{result}                 solves: planned, failed
penstock_solver_seconds                              histogram of how long a solve takes
penstock_solver_restarts_total                       solver processes killed or crashed
penstock_watch_restarts_total                        times the watches were started again
penstock_plan_number                                 number of the FleetPlan in force
penstock_plan_timestamp_seconds                      when it was decided
penstock_plan_objective_usd_per_hour                 its objective
penstock_plan_bound_usd_per_hour                     no plan has a lower objective
penstock_plan_gap_ratio                              distance of the two
penstock_plan_cost_usd_per_hour                      price of its GPUs
penstock_plan_violations                             limits that it breaks now
penstock_demand_requests_per_second{namespace,model} load that it was made for
penstock_unserved_requests_per_second{namespace,model} part of it that the plan cannot serve
penstock_desired_replicas{namespace,model,role}      replicas that the plan wants
penstock_ready_replicas{namespace,model,role}        replicas that serve
penstock_power_watts{domain,kind}                    budget (fixed draw in it), usable, reserved, planned, measured
penstock_profile_correction_ratio{..., phase, kind}  profiles in use or learnt, by model, gpu_class, config: observed
                                                     against profile: likely, low, high, planned (in force)
penstock_profile_correction_observations{..., phase} weight of what that rests on
penstock_faults                                      objects or fields that are left out because they are wrong
penstock_holds                                       reasons for which the plan is not carried out now
penstock_actions_total{direction,result}             scale actions: up, down; done, failed
penstock_events_dropped_total                        Events not written because there were too many
==================================================== =========================================================
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.turn import Report
from solvers.correction import Learning, Phase, factor
from solvers.engine import ProfileKey
from solvers.fleet import ReplicaState
from solvers.ledger import DomainBalance

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


class Metrics(Collector):
    """A registry of our own and the last report, from which the gauges are made when they are asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._report: Report | None = None
        self._balances: tuple[DomainBalance, ...] = ()
        Info("penstock_build", "Version of the operator", registry=self.registry).info({"version": version("penstock")})
        self._turns = Counter("penstock_turns", "Turns of the loop", ["result"], registry=self.registry)
        self._turn_s = Histogram("penstock_turn_seconds", "Length of a turn", buckets=SECONDS, registry=self.registry)
        self._last = Gauge("penstock_last_turn_timestamp_seconds", "End of the last turn", registry=self.registry)
        self._solves = Counter("penstock_solver_solves", "Solves", ["result"], registry=self.registry)
        self._solve_s = Histogram(
            "penstock_solver_seconds", "Length of a solve", buckets=SECONDS, registry=self.registry
        )
        self._actions = Counter("penstock_actions", "Scale actions", ["direction", "result"], registry=self.registry)
        self._counts: dict[str, Counter] = {
            name: Counter(f"penstock_{name}", text, registry=self.registry)
            for name, text in (
                ("solver_restarts", "Solver processes killed or crashed"),
                ("watch_restarts", "Times the watches were started again"),
                ("events_dropped", "Events not written because there were too many"),
            )
        }
        self._seen: Tally[str] = Tally()
        self.registry.register(self)

    def turn_ended(
        self, report: Report | None, balances: Iterable[DomainBalance], result: str, took_s: float, now_s: float
    ) -> None:
        """Take in a turn; without a report it failed."""
        self._turns.labels(result).inc()
        self._turn_s.observe(took_s)
        self._last.set(now_s)
        if report is None:
            return
        self._report, self._balances = report, tuple(balances)
        for action, outcome in zip(report.actions, report.outcomes, strict=False):
            direction = "up" if action.to_replicas > action.from_replicas else "down"
            self._actions.labels(direction, "done" if outcome.is_done else "failed").inc()

    def solve_ended(self, result: str, took_s: float) -> None:
        """Take in a solve."""
        self._solves.labels(result).inc()
        self._solve_s.observe(took_s)

    def count_up_to(self, name: str, total: int) -> None:
        """Raise a counter to a total that somebody else keeps."""
        self._counts[name].inc(max(0, total - self._seen[name]))
        self._seen[name] = max(total, self._seen[name])

    def render(self) -> bytes:
        """Write everything as Prometheus reads it."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Make the gauges of the last report; series of what is gone end by themselves."""
        report = self._report
        if report is None:
            return
        yield _gauge("leader", "1 while this replica writes", [((), float(report.is_leader))])
        yield _gauge("faults", "Wrong objects or fields", [((), float(len(report.sight.observation.faults)))])
        yield _gauge("holds", "Reasons not to carry the plan out", [((), float(len(report.holds)))])
        yield _gauge("power_watts", "Watts", list(_watts(self._balances)), "domain", "kind")
        yield _gauge("ready_replicas", "Replicas that serve", list(_ready(report)), "namespace", "model", "role")
        yield from _correction_gauges(report)
        yield from _plan_gauges(report)


def _gauge(name: str, text: str, rows: Iterable[tuple[tuple[str, ...], float]], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"penstock_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _watts(balances: Iterable[DomainBalance]) -> Iterator[tuple[tuple[str, ...], float]]:
    for row in balances:
        kinds = {
            "budget": row.budget_watts,
            "usable": row.usable_watts,
            "reserved": row.reserved_watts,
            "planned": row.planned_watts,
            "measured": row.measured_watts,
        }
        yield from (((row.domain, kind), watts) for kind, watts in kinds.items() if watts is not None)


def _names(service: str) -> tuple[str, str]:
    namespace, _, model = service.partition("/")
    return namespace, model


def _ready(report: Report) -> Iterator[tuple[tuple[str, ...], float]]:
    serving = (r.pool for r in report.sight.observation.snapshot.replicas if r.state is ReplicaState.READY)
    for (service, role), count in sorted(Tally((pool.service, str(pool.role)) for pool in serving).items()):
        yield (*_names(service), role), float(count)


def _correction_gauges(report: Report) -> Iterator[Metric]:
    """Factors of the profiles that the plan uses or that were observed; 1 where nothing is known."""
    known, now_s = report.sight.corrections, report.sight.now_s
    ratios, weights = [], []
    for key in sorted(_profiles_in_use(report) | {key for key, _ in known.beliefs}):
        for phase in Phase:
            labels = (key.model, key.gpu_class, key.config.label, str(phase))
            found = factor(known.beliefs.get((key, phase)), phase, now_s, Learning())
            kinds = {"likely": found.likely, "low": found.low, "high": found.high}
            kinds["planned"] = known.planned(key).get(phase, 1.0)
            ratios += [((*labels, kind), value) for kind, value in kinds.items()]
            weights.append((labels, found.observations))
    names = ("model", "gpu_class", "config", "phase")
    yield _gauge("profile_correction_ratio", "Observed against profile", ratios, *names, "kind")
    yield _gauge("profile_correction_observations", "Weight of observations", weights, *names)


def _profiles_in_use(report: Report) -> set[ProfileKey]:
    models = {spec.model.name: spec.model.model for spec in report.sight.specs.served_models}
    pools = report.decision.plan.pools if report.decision else ()
    return {
        ProfileKey(model=models[row.pool.service], gpu_class=row.pool.gpu_class, config=row.pool.config)
        for row in pools
        if row.pool.service in models
    }


def _plan_gauges(report: Report) -> Iterator[Metric]:
    if report.decision is None:
        return
    plan = report.decision.plan
    for name, text, value in (
        ("plan_number", "FleetPlan in force", report.decision.number),
        ("plan_timestamp_seconds", "When it was decided", report.decision.made_at_s),
        ("plan_objective_usd_per_hour", "Its objective", plan.report.objective_usd_per_hour),
        ("plan_bound_usd_per_hour", "No plan has a lower objective", plan.report.bound_usd_per_hour),
        ("plan_gap_ratio", "Distance of objective and bound", plan.report.gap_ratio),
        ("plan_cost_usd_per_hour", "Price of its GPUs", plan.report.cost_usd_per_hour),
        ("plan_violations", "Limits that it breaks now", len(report.violations)),
    ):
        yield _gauge(name, text, [((), float(value))])
    loads = [(_names(s.service), s) for s in plan.services]
    demand = [(names, s.demand_requests_per_s) for names, s in loads]
    yield _gauge("demand_requests_per_second", "Load planned for", demand, "namespace", "model")
    unserved = [(names, s.unserved_requests_per_s) for names, s in loads]
    yield _gauge("unserved_requests_per_second", "Load that the plan cannot serve", unserved, "namespace", "model")
    wanted: Tally[tuple[str, str]] = Tally()
    for pool in plan.pools:
        wanted[pool.pool.service, str(pool.pool.role)] += pool.replicas
    rows = [((*_names(service), role), float(count)) for (service, role), count in sorted(wanted.items())]
    yield _gauge("desired_replicas", "Replicas that the plan wants", rows, "namespace", "model", "role")
