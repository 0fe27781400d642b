"""KEDA's way with a request rate: replicas in proportion to load, prefill and decode by the planned ratio."""

from __future__ import annotations

from math import ceil

from solvers.evaluate.fleet_state import Place
from solvers.evaluate.run import Seen, Wish, counts_of
from solvers.plan import Plan
from solvers.policies.scaling import SYNC_PERIOD_S, Autoscaler, is_tolerated


class RatioAutoscaler:
    r"""One ScaledObject for each (pool, location), triggered by the service's request rate.

    .. math:: n' = \lceil \lambda(t) / \theta \rceil, \quad \theta = \lambda_0 / n_0

    with the rate :math:`\lambda` of the last window, and the threshold :math:`\theta` that the starting plan implies:
    :math:`n_0` replicas for its demand :math:`\lambda_0`. So all Deployments of a service keep the planned ratio of
    prefill to decode to mixed replicas. KEDA hands the metric to an HPA (AverageValue), hence its tolerance, its five
    minutes of stabilisation, and its 15 s.

    Source: keda.sh, "Scaling Deployments" and the Prometheus scaler; rate per replica as threshold is the usual recipe.
    """

    name = "keda"
    period_s = SYNC_PERIOD_S

    def __init__(self, plan: Plan) -> None:
        asked = {service.service: max(service.served_requests_per_s, 1e-9) for service in plan.services}
        self._thresholds = {
            place: asked[place[0].service] / count
            for place, count in counts_of(plan).items()
            if count > 0 and place[0].service in asked
        }
        self._scalers: dict[Place, Autoscaler] = {}

    def decide(self, seen: Seen) -> Wish:
        """Scale every Deployment by the rate of its service."""
        most = {service.name: service.max_replicas for service in seen.problem.services}
        counts = {}
        for place, threshold in sorted(self._thresholds.items()):
            loads = seen.loads.get(place[0].service, ())
            if not loads:
                continue
            asked = seen.asked.get(place, 0)
            ratio = loads[-1][1] / threshold / asked if asked else 0.0
            proposed = asked if is_tolerated(ratio) else ceil(loads[-1][1] / threshold)
            scaler = self._scalers.setdefault(place, Autoscaler(least=1, most=most.get(place[0].service, asked)))
            counts[place] = scaler.settle(seen.now_s, asked, proposed)
        return Wish(counts=counts)
