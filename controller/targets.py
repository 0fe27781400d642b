"""Carries actions out on generated Deployments.

Ownership is split so that nothing fights: ``penstock`` applies everything but ``spec.replicas``, ``penstock-scale``
applies only those through ``/scale`` and never by force. An autoscaler that takes the replicas keeps them, and we say
so. Whoever leaves is marked first by deletion cost, and only when the mark was observed the count is lowered: both at
once removed wrong pods in trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from controller.cache import Cache
from controller.client import (
    MANAGER,
    SCALE_MANAGER,
    Body,
    KubeClient,
    NotFound,
    ReplicasOwnedByOther,
    Unreachable,
)
from controller.inventory import Place, place_of
from controller.kinds import TEMPLATE_HASH, version_of
from controller.records import DELETION_COST, POOL_LABEL, DeploymentRecord
from controller.workloads import Blueprints, workload_name, workload_path
from solvers.errors import InvalidInput, PenstockError
from solvers.fleet import PoolKey
from solvers.rollout import Scale

LEAVING_COST = -1_000_000  # far below what anybody else would set; one more for each that leaves later
OBSERVE_S = 5.0
SETTLE_S = 0.3  # the ReplicaSet controller has a watch of its own; it sees the costs when we do, or a moment later


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one action. ``reason`` is a CamelCase word for conditions and Events."""

    pool: PoolKey
    location: str
    is_done: bool
    reason: str
    message: str


class DeploymentTargets:
    """The adapter for generated Deployments. Every failure becomes an Outcome; the other actions go on."""

    def __init__(self, client: KubeClient, cache: Cache, pause: Callable[[float], object] = time.sleep) -> None:
        self._client, self._cache, self._pause = client, cache, pause

    def apply(self, actions: Iterable[Scale], blueprints: Blueprints) -> tuple[Outcome, ...]:
        """Lower first, then raise; each kind in parallel. Workloads whose replicas another manager owns are yielded."""
        ordered = list(actions)
        owners = {_place(action): self._owner(action) for action in ordered}
        ours = [action for action in ordered if not owners[_place(action)]]
        downs = [action for action in ours if action.to_replicas < action.from_replicas]
        ups = [action for action in ours if action.to_replicas > action.from_replicas]
        unmarked = self._mark(downs)
        lowered = self._client.in_parallel(_job(_place(action), self._lowering(action, unmarked)) for action in downs)
        raised = self._client.in_parallel(_job(_place(action), self._raising(action, blueprints)) for action in ups)
        done = dict(zip(map(_place, (*downs, *ups)), (*lowered, *raised), strict=True))
        return tuple(done.get(_place(a)) or _yielded(_place(a), owners[_place(a)]) for a in ordered)

    def _owner(self, action: Scale) -> str:
        """Name the other manager that owns the replicas, empty when nobody else does."""
        record = self._record(_place(action))
        manager = record.replicas_manager if record else ""
        return "" if manager in (MANAGER, SCALE_MANAGER) else manager

    def renew_templates(self, blueprints: Blueprints, at_once: int) -> tuple[Outcome, ...]:
        """Apply what a changed ServedModel left different from its blueprint, few workloads at a time.

        Each workload rolls one pod after the other by itself; ``at_once`` bounds how many of them do.
        """
        outdated, rolling = [], 0
        for record in self._cache.view().deployments.values():
            place = _known_place(record, blueprints)
            if place is not None and _is_outdated(record, blueprints.body(*place)):
                outdated.append(place)
            elif record.ready_replicas < record.replicas:
                rolling += 1
        chosen = outdated[: max(0, at_once - rolling)]
        return tuple(self._client.in_parallel(_job(place, self._ensuring(place, blueprints)) for place in chosen))

    def _ensuring(self, place: Place, blueprints: Blueprints) -> Callable[[], str]:
        def ensure() -> str:
            self._ensure(place, blueprints)
            return f"applied the template of {workload_name(*place)}"

        return ensure

    def _raising(self, action: Scale, blueprints: Blueprints) -> Callable[[], str]:
        def work() -> str:
            is_new = self._ensure(_place(action), blueprints)
            return self._scale(action, force=is_new)

        return work

    def _lowering(self, action: Scale, unmarked: Sequence[str]) -> Callable[[], str]:
        def work() -> str:
            if missed := sorted({pod_key(action, name) for name in action.leaving} & set(unmarked)):
                raise PenstockError(f"the deletion cost of {', '.join(missed)} was not seen in {OBSERVE_S:g} s")
            return self._scale(action)

        return work

    def _scale(self, action: Scale, *, force: bool = False) -> str:
        """Write the count; the cache learns of it at once, as the next step must count what this one asked for."""
        place, name = _place(action), workload_name(*_place(action))
        try:
            answer = self._client.scale(workload_path(*place), action.to_replicas, force=force)
        except Unreachable:
            self._cache.suspect("Deployment")  # it may have been written all the same
            raise
        self._cache.scaled(_key(place), answer["spec"].get("replicas", 0), version_of(answer))
        return f"{name} from {action.from_replicas} to {action.to_replicas}: {action.reason}"

    def _ensure(self, place: Place, blueprints: Blueprints) -> bool:
        """Make the Deployment be as its blueprint says, whatever its count; True while ``penstock`` owns the count.

        With no replicas said the API server would start one, so ``penstock`` creates with zero. The first scale takes
        them over by force, which is our own manager's loss only; from then on ``penstock`` never names them.
        """
        path, body = workload_path(*place), blueprints.body(*place)
        record = self._record(place)
        is_new = record is None or record.replicas_manager == MANAGER
        if record is None or _is_outdated(record, body):
            count = {"replicas": record.replicas if record else 0} if is_new else {}
            made = self._client.apply(path, {**body, "spec": {**body["spec"], **count}})
            self._cache.wrote("Deployment", made)
        return is_new

    def _record(self, place: Place) -> DeploymentRecord | None:
        return self._cache.deployment(_key(place))

    def _mark(self, downs: Sequence[Scale]) -> tuple[str, ...]:
        """Mark who leaves, wait until the marks were observed; return the pods whose marks were not."""
        wanted = self._wanted_costs(downs)
        missing = {key: cost for key, cost in wanted.items() if not self._has_cost(key, cost)}
        if not missing:
            return ()
        failed = set(filter(None, self._client.in_parallel(self._marking(key, cost) for key, cost in missing.items())))
        expected = missing.keys() - failed
        self._cache.wait_for(lambda: all(self._has_cost(key, missing[key]) for key in expected), OBSERVE_S)
        self._pause(SETTLE_S)
        return tuple(key for key, cost in missing.items() if not self._has_cost(key, cost))

    def _wanted_costs(self, downs: Sequence[Scale]) -> dict[str, int]:
        """Deletion cost by pod: low for those that leave, none for others that an earlier step had marked."""
        if not downs:
            return {}
        shrinking = {workload_name(*_place(action)) for action in downs}
        marked = (
            key
            for key, pod in self._cache.view().pods.items()
            if pod.labels.get(POOL_LABEL) in shrinking and pod.deletion_cost <= LEAVING_COST // 2
        )
        leaving = {
            pod_key(action, name): LEAVING_COST + rank for action in downs for rank, name in enumerate(action.leaving)
        }
        return {**dict.fromkeys(marked, 0), **leaving}

    def _has_cost(self, key: str, cost: int) -> bool:
        pod = self._cache.pod(key)
        return pod is None or pod.is_leaving or pod.deletion_cost == cost

    def _marking(self, key: str, cost: int) -> Callable[[], str | None]:
        namespace, _, name = key.partition("/")
        patch: Body = {"metadata": {"annotations": {DELETION_COST: str(cost)}}}

        def mark() -> str | None:
            try:
                self._client.merge(f"/api/v1/namespaces/{namespace}/pods/{name}", patch)
            except NotFound:
                return None  # it left by itself
            except PenstockError:
                return key
            return None

        return mark


def pod_key(action: Scale, name: str) -> str:
    """``namespace/name`` of a pod that an action names."""
    return f"{action.pool.service.partition('/')[0]}/{name.rpartition('/')[2]}"


def _key(place: Place) -> str:
    return f"{place[0].service.partition('/')[0]}/{workload_name(*place)}"


def _place(action: Scale) -> Place:
    return action.pool, action.location


def _known_place(record: DeploymentRecord, blueprints: Blueprints) -> Place | None:
    """Pool and location of a workload that we can make; one with broken labels is told of by the inventory."""
    try:
        place = place_of(record)
    except (InvalidInput, KeyError):
        return None
    return place if blueprints.knows(place[0]) else None


def _is_outdated(record: DeploymentRecord, body: Body) -> bool:
    wanted: str = body["metadata"]["annotations"][TEMPLATE_HASH]
    return record.template_hash != wanted


def _yielded(place: Place, manager: str) -> Outcome:
    message = f"{manager} owns the replicas of {workload_name(*place)}; yielding to it"
    return Outcome(pool=place[0], location=place[1], is_done=False, reason="ReplicasOwnedByOther", message=message)


def _job(place: Place, work: Callable[[], str]) -> Callable[[], Outcome]:
    pool, location = place

    def guarded() -> Outcome:
        try:
            message, reason, done = work(), "Applied", True
        except ReplicasOwnedByOther as error:
            return _yielded(place, error.manager)
        except PenstockError as error:
            message, reason, done = str(error), type(error).__name__, False
        return Outcome(pool=pool, location=location, is_done=done, reason=reason, message=message)

    return guarded
