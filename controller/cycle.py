"""One turn of the loop: look, think, doubt, compare, act, tell.

A turn may run twice; the second one on a quiet cluster does nothing. The state of a rollout is nowhere but in the
cluster and in the FleetPlan objects, so an operator that was killed goes on where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from controller.cache import QUIET_S, Cache, CacheView
from controller.client import ApiError, KubeClient, NotFound, Unreachable
from controller.correction_status import read_back
from controller.corrections import Corrections, observed_pools, with_corrections
from controller.decide import TIME_HAS_COME, Decider
from controller.election import Elector
from controller.events import Recorder
from controller.history import PlanHistory
from controller.inventory import Records
from controller.metrics import Metrics
from controller.news import tell_news
from controller.observe import Observation, build_problem
from controller.readings import Readings
from controller.resources import ServedModelSpec, strictest
from controller.schema import Management, Mode
from controller.settings import Settings
from controller.specs import Specs, parse_specs
from controller.statuses import StatusWriter, render_statuses
from controller.story import Story
from controller.targets import DeploymentTargets, Outcome
from controller.telemetry import ServiceTarget, TelemetryReader
from controller.turn import Decision, Report, Sight, Turn
from controller.watch import Watch
from controller.workloads import Blueprints
from solvers.errors import PenstockError
from solvers.fleet import Snapshot
from solvers.ledger import balance
from solvers.plan import Placement, Plan
from solvers.power import charged_domains
from solvers.rollout import Scale, next_step
from solvers.rollout.chains import carried_requests_per_s

log = logging.getLogger("penstock.cycle")

UNLISTED = "the watches began anew; waiting for a list of our own"


class Cycle:
    """One turn after the other, over parts that are handed in.

    Parameters
    ----------
    publish : callable
        Called with the Turn whenever the decision in force changed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        client: KubeClient,
        cache: Cache,
        watch: Watch,
        elector: Elector,
        telemetry: TelemetryReader,
        decider: Decider,
        metrics: Metrics,
        publish: Callable[[Turn], None] = lambda turn: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._client, self._cache, self._watch = settings, client, cache, watch
        self._elector, self._telemetry, self._decider, self._metrics = elector, telemetry, decider, metrics
        self._publish, self._clock = publish, clock
        self._history, self._targets = PlanHistory(client), DeploymentTargets(client, cache)
        self._statuses, self._recorder = StatusWriter(client), Recorder(client)
        self._parsed: tuple[object, Specs] | None = None
        self._last_sight: Sight | None = None
        self._corrections = Corrections()
        self._story = Story()
        self._lacks_kind = False
        self.latest: Turn | None = None
        self.unseen_because = "the cluster was not looked at yet"

    def turn(self) -> Report:
        """Take one turn."""
        began_s = time.monotonic()
        sight = self.look()
        self.think(sight)
        violations = self.doubt(sight)
        actions, holds = self.compare(sight, violations)
        outcomes = self.act(sight, actions)
        report = Report(
            sight=sight,
            decision=self._decider.decision,
            actions=actions,
            outcomes=outcomes,
            holds=holds,
            violations=violations,
            solve_fault=self._decider.fault,
            is_leader=self._elector.is_leader,
            holder=self._elector.holder,
        )
        self.tell(report, time.monotonic() - began_s)
        return report

    def look(self) -> Sight:
        """See the cluster and the telemetry; say when what is seen cannot be relied on."""
        now_s, blind_because = self._clock(), self._refresh()
        self.unseen_because = "" if self.unseen_because == "" else blind_because
        if blind_because and self._last_sight is not None:  # nothing may be done on it, so leave time to the watches
            return replace(self._last_sight, now_s=now_s, blind_because=blind_because)
        self._last_sight = self._see(now_s, blind_because)
        return self._last_sight

    def _see(self, now_s: float, blind_because: str) -> Sight:
        view = self._cache.view()
        specs = self._parse(view)
        learns = specs.policy.modes.correction is not Mode.OFF
        self._telemetry.look_for(map(_target, specs.served_models), self.tick_s(specs), asks_engines=learns)
        readings = self._telemetry.latest
        self._read_back(view, learns=learns)
        observation = build_problem(
            with_corrections(specs, self._corrections),
            Records(
                nodes=tuple(view.nodes.values()),
                pods=tuple(view.pods.values()),
                deployments=tuple(view.deployments.values()),
            ),
            readings,
            now_s,
            previous_demands=self._decider.previous_demands(),
        )
        if learns and self._elector.is_leader and not blind_because:
            self._learn(specs, observation, readings, now_s)
        return Sight(
            now_s=now_s,
            corrections=self._corrections,
            view=view,
            specs=specs,
            readings=readings,
            observation=observation,
            blind_because=blind_because,
        )

    def _read_back(self, view: CacheView, *, learns: bool) -> None:
        """Go on from what the statuses of profiles say: a leader with those that are new, a standby with all."""
        if not learns:
            self._corrections = Corrections()
            return
        bodies = [record.body for record in view.objects.get("EngineProfile", {}).values()]
        known = replace(self._corrections, notices=())
        self._corrections = read_back(known, bodies, anew=not self._elector.is_leader)

    def _learn(self, specs: Specs, observation: Observation, readings: Readings, now_s: float) -> None:
        decision, told = self._decider.decision, self._corrections.notices
        learnt = observed_pools(
            self._corrections,
            specs,
            observation,
            readings,
            now_s=now_s,
            window_s=self._settings.rate_window_s,
            time_scale=self._settings.time_scale,
            plan=decision.plan if decision else None,
        )
        self._corrections = replace(learnt, notices=(*told, *learnt.notices))

    def think(self, sight: Sight) -> None:
        """Take a finished decision, begin another when one is due; a standby follows what the leader recorded."""
        leads = self._elector.is_leader
        if not leads:
            self._decider.forget()
        newest = self._history.newest(sight.view)
        known = self._decider.decision
        is_behind = newest.number and (known is None or (not leads and known.number != newest.number))
        if not sight.blind_because and is_behind and (plan := self._load(newest.number)):
            self._decider.adopt(Decision(plan=plan, problem=sight.observation.problem, number=newest.number))
            self._announce(sight)
        if not leads:
            return
        if self._decider.collect(sight.now_s):
            self._record(sight)
            self._announce(sight)
        elif self._decider.decision and not self._decider.decision.number:
            self._record(sight)
        if sight.blind_because or cut_off(sight) or not self._telemetry.has_read:
            return
        if reason := self._decider.why_now(sight.observation, self.decision_s(sight.specs)):
            log.log(logging.DEBUG if reason == TIME_HAS_COME else logging.INFO, "deciding: %s", reason)
            self._decider.begin(sight.observation.problem)

    def doubt(self, sight: Sight) -> tuple[str, ...]:
        """Check the plan in force against what was just seen."""
        return () if sight.blind_because else self._decider.doubt(sight.observation.problem)

    def compare(self, sight: Sight, violations: tuple[str, ...]) -> tuple[tuple[Scale, ...], tuple[str, ...]]:
        """Choose the next safe step, and say what holds it up. Power protection goes on under pause and doubt."""
        decision, observation = self._decider.decision, sight.observation
        blocked = self._blocked(sight)
        slowed = [f"the plan no longer fits: {violations[0]}"] if violations else []
        slowed += ["FleetPolicy/default is paused"] if observation.policy.is_paused else []
        if blocked or decision is None:
            return (), (*blocked, *slowed)
        step = next_step(
            observation.snapshot,
            plan_to_act_on(decision.plan, observation),
            observation.policy.policy,
            tier_ranks=observation.tier_ranks,
            carried=carried_requests_per_s(observation.problem, observation.snapshot),
        )
        acting = tuple(action for action in step if may_act(observation.served[action.pool.service]))
        return protective(acting, observation.snapshot) if slowed else acting, tuple(slowed)

    def act(self, sight: Sight, actions: tuple[Scale, ...]) -> tuple[Outcome, ...]:
        """Carry the actions out, in their order; templates follow their ServedModels."""
        if self._blocked(sight) or not self._cache.is_settled():  # a watch may have begun anew since the look
            return ()
        served = {name: spec for name, spec in sight.observation.served.items() if may_act(spec)}
        blueprints = Blueprints(
            services=served, gpu_classes=sight.observation.snapshot.gpu_classes, policy=sight.observation.policy
        )
        outcomes = self._targets.apply(actions, blueprints)
        at_once = sight.observation.policy.policy.max_starts_per_turn
        return (*outcomes, *self._targets.renew_templates(blueprints, at_once))

    def tell(self, report: Report, took_s: float) -> None:
        """Report to metrics, and as the leader to statuses, Events and history."""
        sight, decision = report.sight, report.decision
        self._story.tell(report)
        plan = decision.plan if decision else None
        balances = balance(sight.observation.snapshot, plan, sight.observation.node_draw_watts)
        self._metrics.turn_ended(report, balances, _result(report), took_s, sight.now_s)
        self._metrics.count_up_to("events_dropped", self._recorder.dropped)
        self._metrics.count_up_to("watch_restarts", self._watch.restarts)
        if decision is not None:
            self.latest = _turn(report, decision)
        if not report.is_leader or sight.blind_because:
            return
        for problem in self._statuses.write(render_statuses(report, balances)):
            log.warning("%s", problem)
        tell_news(self._recorder, report, balances)
        policy = sight.observation.policy
        days, count = policy.plan_history_days, policy.plan_history_count
        self._history.trim(sight.view, days=days, count=count, now_s=sight.now_s)

    def tick_s(self, specs: Specs) -> float:
        """Pause between turns."""
        return self._settings.tick_s or specs.policy.tick_s

    def pause_s(self, sight: Sight) -> float:
        """Pause until the next turn unless something wakes the loop; a list that is all we wait for is soon due."""
        return QUIET_S if sight.blind_because == UNLISTED else self.tick_s(sight.specs)

    def decision_s(self, specs: Specs) -> float:
        """Pause between decisions."""
        return self._settings.decision_s or specs.policy.decision_s

    def _refresh(self) -> str:
        """List what is due, start or renew the watches; say why the cache cannot be relied on, if so."""
        try:
            self._cache.refresh(self._client)
        except NotFound as error:
            self._lacks_kind = True
            return f"a kind is not installed: {error.request}; apply the CustomResourceDefinitions"
        except (ApiError, Unreachable) as error:
            return f"the API server cannot be relied on: {error}"
        if not self._watch.is_running:
            self._watch.start()
        elif self._lacks_kind:
            self._watch.renew()
        self._lacks_kind = False
        return "" if self._cache.is_settled() else UNLISTED

    def _parse(self, view: CacheView) -> Specs:
        """Parse the resources, again only when one of them changed."""
        state = tuple((kind, *records.values()) for kind, records in view.objects.items())
        if self._parsed is None or self._parsed[0] != state:
            bodies = {kind: [record.body for record in records.values()] for kind, records in view.objects.items()}
            self._parsed = state, parse_specs(bodies)
        return self._parsed[1]

    def _blocked(self, sight: Sight) -> tuple[str, ...]:
        """Say why nothing at all may be written now."""
        reasons = [reason for reason in (sight.blind_because, cut_off(sight)) if reason]
        if not self._elector.is_leader:
            reasons.append("this replica does not lead")
        modes = sight.observation.policy.modes
        if (mode := strictest(modes.replicas, modes.placement)) is not Mode.ACT:
            reasons.append(f"FleetPolicy/default is in mode {mode}")
        if self._decider.decision is not None and not self._decider.decision.number:
            reasons.append("the plan is not recorded as a FleetPlan yet")
        return tuple(reasons)

    def _load(self, number: int) -> Plan | None:
        try:
            return self._history.load(number)
        except (ApiError, Unreachable) as error:
            log.warning("the recorded plan cannot be read: %s", error)
            return None

    def _record(self, sight: Sight) -> None:
        """Write the decision down before anything is done for it."""
        decision = self._decider.decision
        if decision is None or strictest(sight.observation.policy.modes.replicas) is Mode.OFF:
            return
        try:
            self._decider.number(self._history.record(decision.plan, sight.view))
        except PenstockError as error:
            log.warning("the plan cannot be recorded: %s", error)

    def _announce(self, sight: Sight) -> None:
        decision = self._decider.decision
        if decision is not None:
            report = Report(sight=sight, decision=decision, is_leader=self._elector.is_leader)
            self.latest = _turn(report, decision)
            self._publish(self.latest)


def cut_off(sight: Sight) -> str:
    """Say that no managed node is Ready: the control plane has lost them rather than they their power, so all stays.

    Kubernetes itself evicts nothing then; replicas on nodes that nobody hears of may serve on.
    """
    nodes = [sight.view.nodes[node.name] for node in sight.observation.problem.nodes if node.name in sight.view.nodes]
    if not nodes or any(node.is_ready for node in nodes):
        return ""
    return f"none of the {len(nodes)} managed nodes is Ready: nothing moves until one is heard of"


def may_act(spec: ServedModelSpec) -> bool:
    """Say whether workloads of the service may be written."""
    mode = strictest(spec.modes.replicas, spec.modes.placement)
    return mode is Mode.ACT and spec.management is Management.GENERATE


def plan_to_act_on(plan: Plan, observation: Observation) -> Plan:
    """Take from the plan what may be carried out; other services stay as they are, so that they hold up nothing."""
    acting = {name for name, spec in observation.served.items() if may_act(spec)}
    stays = (
        Placement(pool=pool, location=location, replicas=count)
        for (pool, location), count in observation.snapshot.desired.items()
        if pool.service not in acting and count
    )
    wanted = (row for row in plan.placements if row.pool.service in acting)
    return replace(plan, placements=tuple(sorted([*wanted, *stays])))


def protective(actions: tuple[Scale, ...], snapshot: Snapshot) -> tuple[Scale, ...]:
    """Keep only what lowers a power domain that is over its budget now."""
    over = {row.domain for row in balance(snapshot) if row.is_over}
    return tuple(
        action
        for action in actions
        if action.to_replicas < action.from_replicas
        and over & set(charged_domains(snapshot.nodes, action.pool.gpu_class, action.location))
    )


def _target(spec: ServedModelSpec) -> ServiceTarget:
    return ServiceTarget(
        service=spec.model.name, namespace=spec.namespace, inference_pool=spec.inference_pool, model=spec.model.model
    )


def _turn(report: Report, decision: Decision) -> Turn:
    return Turn(
        plan=decision.plan,
        problem=decision.problem,
        snapshot=report.sight.observation.snapshot,
        number=decision.number,
        decision_hash=decision.plan.decision_hash,
        taken_at_s=report.sight.now_s,
        report=report,
    )


def _result(report: Report) -> str:
    if not report.is_leader:
        return "standby"
    if report.outcomes:
        return "acted"
    return "held" if report.holds else "quiet"
