"""Kubernetes' HorizontalPodAutoscaler on the length of the queue, one for each Deployment."""

from __future__ import annotations

from math import ceil

from solvers.evaluate.fleet_state import Place
from solvers.evaluate.run import PlaceSeen, Seen, Wish
from solvers.policies.scaling import SYNC_PERIOD_S, Autoscaler, is_tolerated

TARGET_WAITING = 5.0
"""Waiting requests per Ready pod that are aimed at (``averageValue`` of a Pods metric)."""


class QueueAutoscaler:
    r"""One HPA for each (pool, location) on waiting requests per pod.

    .. math:: n' = \lceil n \cdot \bar{q} / q^* \rceil

    with :math:`\bar q` the mean of ``vllm:num_requests_waiting`` over pods, what waits at the gateway shared among
    those that take prompts, and :math:`q^*` the target. Within 10 % of the target nothing happens; pods that are not
    Ready count as empty when scaling up, so that starting ones are not asked for twice; every 15 s; down only to the
    largest recommendation of the last five minutes. It knows neither GPUs' kinds, nor SLOs, nor watts; a pod without a
    node stays pending.

    Source: kubernetes.io, "Horizontal Pod Autoscaling" (autoscaling/v2); the metric is the one that vLLM's production
    stack scales on.
    """

    name = "hpa"
    period_s = SYNC_PERIOD_S

    def __init__(self, target_waiting: float = TARGET_WAITING) -> None:
        self.target_waiting = target_waiting
        self._scalers: dict[Place, Autoscaler] = {}

    def decide(self, seen: Seen) -> Wish:
        """Scale every Deployment by its own queue."""
        most = {service.name: service.max_replicas for service in seen.problem.services}
        counts = {}
        for place, asked in sorted(seen.asked.items()):
            if asked < 1:
                continue  # an HPA leaves a Deployment alone that stands at 0
            scaler = self._scalers.setdefault(place, Autoscaler(least=1, most=most.get(place[0].service, asked)))
            proposed = self._proposed(seen.places[place], asked, self._at_gateway(seen, place))
            counts[place] = scaler.settle(seen.now_s, asked, proposed)
        return Wish(counts=counts)

    def _at_gateway(self, seen: Seen, place: Place) -> float:
        """Share of what waits at the gateway: by Ready replicas of places of the service."""
        mine = {p: s.ready for p, s in seen.places.items() if p[0].service == place[0].service}
        whole = sum(mine.values())
        return seen.queued.get(place[0].service, 0) * mine[place] / whole if whole else 0.0

    def _proposed(self, place: PlaceSeen, asked: int, at_gateway: float) -> int:
        waiting = place.waiting + at_gateway
        if not place.ready:
            return asked  # no metric, no change
        ratio = waiting / place.ready / self.target_waiting
        if is_tolerated(ratio):
            return asked
        if ratio > 1.0:  # again with the unready ones as empty: if that turns the direction, nothing is done
            pods = max(place.ready + place.starting, asked)
            ratio = waiting / pods / self.target_waiting
            return ceil(ratio * pods) if ratio > 1.0 and not is_tolerated(ratio) else asked
        return ceil(ratio * place.ready)
