"""Everything that the stages of one decision share: the problem, exact capacities, options, penalties."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from solvers.certificate import Certificate
from solvers.derived import Derives, derived
from solvers.fleet import ANYWHERE, PoolKey
from solvers.plan import Plan
from solvers.planner.bays.nodes import Counts, Room
from solvers.planner.model.relax import state
from solvers.planner.placing.fairness import fair_ratios
from solvers.planner.placing.pack_nodes import pack
from solvers.planner.placing.rounding import fill
from solvers.planner.pools.caps import planned_counts
from solvers.planner.pools.cells import build_cells
from solvers.planner.pools.crew import Crew
from solvers.planner.pools.options import Options, find_options
from solvers.planner.pools.penalties import Penalties, find_penalties
from solvers.planner.pools.sizer import Sizer
from solvers.planner.pools.tally import Worth, weigh
from solvers.problem import Problem
from solvers.sizing import CapacityOf

FAIR_POOLS = 1000
"""Fleets with more pools share what is short by the weights of the tiers alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk(Derives):
    """One problem with what was worked out about it."""

    problem: Problem
    sizer: Sizer
    options: Options
    penalties: Penalties
    wanted: frozenset[PoolKey]
    crew: Crew = field(default_factory=Crew)
    certificate: Certificate | None = None  # of the plan before: prices to begin with

    @classmethod
    def of(
        cls, problem: Problem, capacity_of: CapacityOf, previous: Plan | None = None, crew: Crew | None = None
    ) -> Desk:
        wanted = frozenset(pool for (pool, _), count in problem.running.items() if count)
        if previous is not None:
            wanted |= {pool for pool, _ in planned_counts(problem, previous)}
        crew = crew or Crew()
        known = crew.sizings.of(problem, capacity_of) if crew.sizings else {}
        sizer = Sizer(problem=problem, capacity_of=capacity_of, known=known)
        options = find_options(problem, sizer, wanted=wanted, is_wide=crew.finds_wide(problem), crew=crew)
        return cls(
            problem=problem,
            sizer=sizer,
            options=options,
            penalties=find_penalties(problem, options),
            wanted=wanted,
            crew=crew,
            certificate=previous.certificate if previous is not None else None,
        )

    @property
    def is_wide(self) -> bool:
        """True when pools are too large for care over every size of each."""
        return self.crew.finds_wide(self.problem)

    @property
    def is_capped(self) -> bool:
        """True when pools may run at lower caps than the highest of their class."""
        return any(option.pool.cap_watts for option in self.options.pools)

    @property
    def is_large(self) -> bool:
        """True when there are more pools than fair shares are looked for with."""
        return len(self.options.pools) > FAIR_POOLS

    def scaled(self, factor: float) -> Desk:
        """The same with so many times the demand."""
        demands = {
            name: replace(demand, requests_per_s=demand.requests_per_s * factor)
            for name, demand in self.problem.demands.items()
        }
        problem = replace(self.problem, demands=demands)
        sizer = replace(self.sizer, problem=problem)  # capacities of one replica do not depend on the load
        options = find_options(problem, sizer, wanted=self.wanted, is_wide=self.is_wide)
        penalties = find_penalties(problem, options)
        return replace(self, problem=problem, sizer=sizer, options=options, penalties=penalties)

    def shared_fairly(self) -> Desk:
        """The same with a fair share of every service that may end up short; as it is when nothing is."""
        cells = build_cells(self.problem, self.options)
        seconds = self.problem.policy.time_limit_s
        ratios = fair_ratios(cells, state(cells), time_limit_s=seconds) if len(cells.pools) else {}
        if not ratios:
            return self
        return replace(self, penalties=find_penalties(self.problem, self.options, ratios))

    def worth(self, counts: Counts) -> Worth:
        return weigh(self.problem, self.sizer, self.penalties, counts)

    def empty_room(self) -> Room:
        return Room.of(self.problem)

    def allowed(self, counts: Counts) -> dict[tuple[PoolKey, str], int]:
        """Leave out pools that are no option in that placement mode (any more), and what exceeds a role's ceiling."""
        known = {(option.pool, option.is_anywhere) for option in self.options.pools}
        services = {service.name: service for service in self.problem.services}
        reclaims = self.sizer.reclaims
        kept: dict[tuple[PoolKey, str], int] = {}
        in_role: dict[tuple[str, str], int] = {}
        for (pool, location), count in sorted(counts.items()):
            if (pool, location == ANYWHERE) not in known or count <= 0:
                continue
            service, role = services[pool.service], (pool.service, pool.role)
            refused = reclaims.refuses(pool.service, location, pool.gpu_class)
            if refused or not service.allows_location(location):
                continue
            kept[pool, location] = min(count, service.max_replicas - in_role.get(role, 0))
            in_role[role] = in_role.get(role, 0) + kept[pool, location]
        return {key: count for key, count in kept.items() if count > 0}

    def fits(self, counts: Counts) -> bool:
        """True when all of it is allowed and has whole groups and watts."""
        wanted = {key: count for key, count in counts.items() if count > 0}
        if self.allowed(wanted) != wanted:
            return False
        if self.empty_room().take_all(wanted) and self._bare_room().take_all(wanted):
            return False
        return not pack(self.problem, wanted).left

    def _bare_room(self) -> Room:
        """Room without CPU and the like, of which patterns may find more than best fit does."""
        nodes = tuple(replace(node, resources={}) if node.resources else node for node in self.problem.nodes)
        return Room.of(replace(self.problem, nodes=nodes))

    def fitting(self, counts: Counts, room: Room | None = None) -> dict[tuple[PoolKey, str], int]:
        """Keep what is allowed and has room, higher tiers first; it is taken out of ``room``."""
        base, free = self.allowed(counts), room or self.empty_room()
        ranks = {service.name: service.tier_rank for service in self.problem.services}
        for rank in sorted(set(ranks.values())):
            mine = {key: count for key, count in base.items() if ranks[key[0].service] == rank}
            for key, left in free.take_all(mine).items():
                base[key] -= left
        return {key: count for key, count in base.items() if count > 0}

    def repaired(self, counts: Counts, least: Counts | None = None) -> Worth:
        """Keep what fits of the counts and fill what is short.

        Of ``least`` nothing is given up that is not needed.
        """
        room = self.empty_room()
        kept = self.fitting(counts, room)
        return self.worth(fill(self.problem, self.sizer, self.fill_options(), room, kept, least))

    def greedy(self) -> Worth:
        """What is filled from nothing, the highest tier first; worked out once."""
        return derived(self, _greedy)

    def is_uneven(self, counts: Counts, *, are_all: bool = True, are_paid: bool = True) -> bool:
        """True when a service that spreads or pairs by place is short or pays for links: perhaps for its places.

        Without ``are_all`` only those whose pairs may cross links count.
        """
        services, sizer = self.problem.services, self.sizer
        others = {*sizer.pairing.local, *(s.name for s in services if s.is_spread)} if are_all else set()
        by_place = {*sizer.links.order, *others}
        if not by_place:
            return False
        worth = self.worth(counts)
        return (are_paid and worth.links_usd_per_hour > 0.0) or not by_place.isdisjoint(worth.short)

    def fill_options(self) -> Options:
        """Pools to fill from: in a large fleet the cheapest per request of each role and class, and those wanted."""
        if not self.is_wide:
            return self.options
        best: dict[tuple[str, str, str], tuple[float, PoolKey]] = {}
        for option in self.options.pools:
            at = (option.pool.service, option.pool.role, option.pool.gpu_class)
            price = option.price_usd_per_hour / option.steps[-1].capacity_requests_per_s
            best[at] = min(best.get(at, (price, option.pool)), (price, option.pool))
        kept = {pool for _, pool in best.values()} | self.wanted
        return replace(self.options, pools=tuple(o for o in self.options.pools if o.pool in kept), _by_service={})


def _greedy(desk: Desk) -> Worth:
    return desk.repaired({})
