"""Which replicas of a run pair, over which links, and in which proportions: as the plan that it begins with pairs them.

Only services for which it matters have ways: those whose prefill and decode replicas may be of several KV groups, or at
several locations while keys and values stay at one, or on several sides of a link. Their requests go over the ways in
the proportions of ``links.Route``, worked out anew whenever other replicas are Ready: at the rate that the plan
serves, or what was last seen to be asked if that is more, and for each replica what the plan says of its pool (what the
sizing says of a pool that it does not have).
"""

from __future__ import annotations

from collections.abc import Mapping

from solvers.engine import ProfileKey, Role
from solvers.fleet import PoolKey
from solvers.pairing import Domain, Pairing
from solvers.plan import Plan
from solvers.planner.bays.links import Links, Route
from solvers.problem import Problem
from solvers.simulate import Fleet
from solvers.sizing import Capacity, replica_capacity
from solvers.workload import ServedModel

Place = tuple[PoolKey, str]


class Ways:
    """Ways of a fleet's services; they are declared to it as replicas come to need them."""

    def __init__(self, problem: Problem, plan: Plan | None, fleet: Fleet) -> None:
        self._problem, self._fleet = problem, fleet
        self._pairing = Pairing.of(problem)
        self._links = Links.of(problem, self._pairing)
        self._crossing = frozenset(self._links.order)
        self.asked_per_s: Mapping[str, float] = {}
        services, pools, placements = (plan.services, plan.pools, plan.placements) if plan else ((), (), ())
        self._served = {row.service: row.served_requests_per_s for row in services}
        self._rates = {row.pool: row.capacity_requests_per_s / max(1, row.replicas) for row in pools}
        places = {node.location for node in problem.nodes} | {row.location for row in placements}
        self._apart = {s.name: s for s in problem.services if s.has_pairs and self._is_apart(s, places)}
        self._bytes = {name: self._bytes_of(service) for name, service in self._apart.items()}
        self._known: dict[str, set[tuple[Domain, Domain]]] = {name: set() for name in self._apart}
        for link in self._links.links.values() if self._crossing & self._apart.keys() else ():
            fleet.add_crossing(link.name, link.bytes_per_s)

    def _is_apart(self, service: ServedModel, places: set[str]) -> bool:
        """True when its pools may lie in more than one domain."""
        sites = {self._links.side(at) for at in places} if service.name in self._crossing else {""}
        if service.name in self._pairing.local:
            sites = places
        return len(sites) * len(self._pairing.all_groups(service.name)) > 1

    def _bytes_of(self, service: ServedModel) -> dict[str, float]:
        """Keys and values of a prompt token by KV group; the most of any profile of it."""
        found: dict[str, float] = {}
        for key, profile in self._problem.profiles.items():
            if key.model == service.model:
                group = self._pairing.groups[service.name, key.gpu_class, key.config]
                found[group] = max(found.get(group, 0.0), profile.kv_bytes_per_token)
        return found

    @property
    def is_any(self) -> bool:
        """True when a service has ways."""
        return bool(self._apart)

    def domain(self, place: Place) -> str:
        """Domain of the replicas of a place, as the fleet knows it; empty for a service without ways."""
        pool, location = place
        if pool.service not in self._apart or pool.role is Role.MIXED:
            return ""
        domain = self._domain(pool, location)
        self._declare(pool.service, domain, domain)
        return _name(domain)

    def _domain(self, pool: PoolKey, location: str) -> Domain:
        if pool.service in self._crossing:
            return self._links.domain(pool, location)
        return self._pairing.domain(pool, location)

    def _declare(self, service: str, giver: Domain, receiver: Domain) -> None:
        if (giver, receiver) in self._known[service]:
            return
        self._known[service].add((giver, receiver))
        over = (giver.site or None, receiver.site or None) if giver != receiver else (None, None)
        self._fleet.add_way(
            service,
            _name(giver),
            _name(receiver),
            out=over[0],
            into=over[1],
            bytes_per_token=self._bytes[service].get(giver.group, 0.0),
        )

    # ------------------------------------------------------------------ proportions

    def share_out(self, ready: Mapping[Place, int]) -> None:
        """Set the proportions of all ways for the replicas that are Ready, by place, and for ``asked_per_s``."""
        totals: dict[PoolKey, int] = {}
        for (pool, _), count in ready.items():
            totals[pool] = totals.get(pool, 0) + count
        for name, service in self._apart.items():
            carried = {
                place: count * self._rate(service, place[0], totals[place[0]])
                for place, count in ready.items()
                if place[0].service == name
            }
            self._share_out(name, Route.of(carried, self._domain, {}))

    def _share_out(self, service: str, route: Route) -> None:
        served = max(self._served.get(service, 0.0), self.asked_per_s.get(service, 0.0))
        if service not in self._crossing or served <= 0.0:
            served = min(served, route.near_per_s) or route.near_per_s
        pairs = route.pairs(served)
        for giver, receiver in sorted(pairs.keys() | self._stuck(service, route)):
            self._declare(service, giver, receiver)
        if self._known[service]:
            shares = {(_name(x), _name(y)): rate for (x, y), rate in pairs.items()}
            self._fleet.share_out(service, route.flows(served)[Role.MIXED, Domain()], shares)

    def _stuck(self, service: str, route: Route) -> set[tuple[Domain, Domain]]:
        """Ways out of domains that have lost their decode replicas: prompts may be computed there already."""
        if service not in self._crossing:
            return set()
        takers = {domain for (role, domain), rate in route.sides.items() if role is Role.DECODE and rate > 0.0}
        lost = {x for x, y in self._known[service] if x == y} - takers
        return {(x, y) for x in lost for y in takers if x.group == y.group}

    def _rate(self, service: ServedModel, pool: PoolKey, replicas: int) -> float:
        """Requests per second of one replica."""
        if pool not in self._rates:
            key = ProfileKey(model=service.model, gpu_class=pool.gpu_class, config=pool.config)
            mix = self._problem.demands[service.name].mix
            if not mix:
                return 1.0
            found = replica_capacity(self._problem.profiles[key], pool.role, mix, service.slos, pool_replicas=replicas)
            return found.requests_per_s if isinstance(found, Capacity) else 0.0
        return self._rates[pool]


def _name(domain: Domain) -> str:
    return f"{domain.group}@{domain.site}"
