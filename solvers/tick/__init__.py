"""Between two plans: replicas stay where they are; caps, routing and shedding follow demand and budgets at once.

One linear programme over the plan's own pools (``solvers.capping``), kept alive from tick to tick. What comes out is
worked out again in plain arithmetic, and watts never pass a budget that the lowest caps can keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from solvers.capping.cells import CapCells, Floats, build_cap_cells
from solvers.capping.model import CapModel
from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.fleet import PoolKey
from solvers.pairing import Pairing
from solvers.plan import Plan
from solvers.planner.bays.links import Links
from solvers.planner.splits.splitting import as_whole
from solvers.problem import Problem
from solvers.sizing import CapacityOf, replica_capacity
from solvers.tick.links import over_links
from solvers.tick.parts import TickParts

WATTS = 1e-3  # a budget is kept by this much, far above the rounding of sums
ROUNDING = 1e-6  # relative; a demand met to this is met
SPARE_WATTS = 1e-6  # of a cap


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tick:
    """Caps, shares and shedding for the moment, with what they come to.

    Attributes
    ----------
    places : tuple of (PoolKey, str)
        Cells: pools by location, as the plan has them.
    cap_watts : (C,) float W
        Power cap of every GPU of the cell.
    pools : tuple of PoolKey
    share_ratio, capacity_requests_per_s : (P,) float
        Part of what its service serves (of that role) that goes to the pool, and what it carries at its caps.
    services : tuple of str
    demand_per_s, served_per_s : (S,) float
    service_usd_per_request : (S,) float
        What one request per second more would cost, USD per hour.
    domains : tuple of str
    reserved_watts, usable_watts, over_watts : (D,) float
        Worst case at the caps; what may be drawn; and what the lowest caps draw above that.
    domain_usd_per_kilowatt_hour : (D,) float
        Worth of one more kW.
    notes : tuple of str
        Budgets that cannot be kept, by name and numbers.
    """

    places: tuple[tuple[PoolKey, str], ...]
    cap_watts: Floats
    pools: tuple[PoolKey, ...]
    share_ratio: Floats
    capacity_requests_per_s: Floats
    services: tuple[str, ...]
    demand_per_s: Floats
    served_per_s: Floats
    service_usd_per_request: Floats
    domains: tuple[str, ...]
    reserved_watts: Floats
    usable_watts: Floats
    over_watts: Floats
    domain_usd_per_kilowatt_hour: Floats
    notes: tuple[str, ...]

    @property
    def caps(self) -> dict[tuple[PoolKey, str], float]:
        """Cap of one GPU, by (pool, location)."""
        return dict(zip(self.places, self.cap_watts.tolist(), strict=True))

    @property
    def shares(self) -> dict[PoolKey, float]:
        """Routing shares, by pool."""
        return dict(zip(self.pools, self.share_ratio.tolist(), strict=True))

    @property
    def unserved_per_s(self) -> dict[str, float]:
        """Requests per second to shed, by service; services without any are left out."""
        short = (self.demand_per_s - self.served_per_s).tolist()
        return {name: lack for name, lack in zip(self.services, short, strict=True) if lack > 0.0}


class Ticker:
    """The tick of one plan. Not for use from several threads at once.

    Parameters
    ----------
    problem : Problem
        What the plan was made for. ``policy.power_caps`` is not asked: whoever ticks can set caps.
    plan : Plan
        Its placements are what is there; its own caps play no part.
    capacity_of : callable
        ``solvers.sizing.replica_capacity`` or a table with its signature.

    Raises
    ------
    InvalidInput
        When the plan does not belong to the problem.
    """

    def __init__(self, problem: Problem, plan: Plan, *, capacity_of: CapacityOf = replica_capacity) -> None:
        self._parts, problem, plan = TickParts.of(problem, plan)
        self.problem = problem
        counts = {(row.pool, row.location): row.replicas for row in plan.placements if row.replicas}
        self.cells = build_cap_cells(problem, counts, capacity_of)
        self._feeds = self.cells.charged.tocsc()
        self._links = Links.of(problem, Pairing.of(problem))
        energy = problem.policy.energy_usd_per_kilowatt_hour
        self._model = CapModel(self.cells, energy) if self.cells.places and self.cells.domains else None
        usable = [problem.domains[name].usable_watts for name in self.cells.domains]
        self._usable_watts = np.array(usable, dtype=float)
        self._demand_per_s = np.array(
            [problem.demands[name].requests_per_s for name in self.cells.services], dtype=float
        )

    def tick(self, demands: Mapping[str, float] | None = None, budgets: Mapping[str, float] | None = None) -> Tick:
        """Decide for other demands and budgets.

        Parameters
        ----------
        demands : mapping of service to requests/s, optional
            Of those that changed; the others stay as they were in the problem.
        budgets : mapping of domain to W, optional
            ``budget_watts`` of those that changed; headroom and fixed draw are taken off as the problem says.

        Raises
        ------
        InvalidInput
            For a name that is not known, or a number that is none.
        SolveFailed
            When HiGHS fails; the caps in force remain safe, because budgets have not been passed with them.
        """
        demands = self._parts.asked(demands or {})
        asked = _changed("demand", self.cells.services, self._demand_per_s, demands)
        usable = self._usable(budgets or {})
        if self._model is None:
            highest = np.array([levels.cap_watts[-1] for levels in self.cells.levels])[self.cells.cell_pool]
            return self._worked_out(highest, asked, usable, np.zeros(len(usable)), np.zeros(len(asked)))
        room = self._room_watts(usable)
        answer = self._model.solve(asked, room)
        caps = self._kept_inside(self._model.caps_watts(answer.used), usable)
        caps = self._kept_promises(caps, self._model.promised(answer.used), usable)
        prices = answer.domain_usd_per_kilowatt_hour, answer.service_usd_per_request
        return self._worked_out(caps, asked, usable, *prices)

    def _usable(self, budgets: Mapping[str, float]) -> Floats:
        for name, watts in sorted(budgets.items()):
            _check_number(f"PowerDomain/{name}", "budgetWatts", watts, name in self.problem.domains)
        usable = self._usable_watts.copy()
        for d, name in enumerate(self.cells.domains):
            if name in budgets:
                domain = self.problem.domains[name]
                usable[d] = budgets[name] * (1.0 - domain.headroom_ratio) - domain.fixed_watts
        return usable

    def _room_watts(self, usable: Floats) -> Floats:
        """Watts above idle draw; more than any caps need where even full GPUs do not fill the domain."""
        cells = self.cells
        never = cells.ceiling_watts <= usable
        most = cells.charged @ (cells.cell_gpus * 1e5)  # above what any GPU draws
        return np.where(never, most, usable - WATTS - cells.idle_watts)

    def _kept_inside(self, caps: Floats, usable: Floats) -> Floats:
        """Lower the caps of a domain that rounding took above its budget, by as much as that."""
        cells, model = self.cells, self._model
        if model is None:
            return caps
        for d in np.flatnonzero(cells.watts(caps) > usable):
            inside = cells.charged[[d]].toarray().ravel() > 0.0
            free = cells.cell_gpus[inside] @ (caps - model.lowest_watts)[inside]
            excess = float(cells.watts(caps)[d] - usable[d])
            if excess > 0.0 and free > 0.0:
                less = max(0.0, 1.0 - excess * (1.0 + SPARE_WATTS) / free)
                caps = np.where(inside, model.lowest_watts + less * (caps - model.lowest_watts), caps)
        return caps

    def _kept_promises(self, caps: Floats, promised: Floats, usable: Floats) -> Floats:
        """Raise the caps of cells that carry less than the model took them to, where the watts are there.

        The model sees the concave curve above the levels of a pool; between levels that it skips a cap carries less.
        """
        cells = self.cells
        less = np.flatnonzero(cells.replica_rates(caps) < promised * (1.0 - ROUNDING))
        if not len(less):
            return caps
        caps, left = caps.copy(), np.maximum(0.0, usable - WATTS - cells.watts(caps))
        left[cells.ceiling_watts <= usable] = np.inf
        feeds = self._feeds
        for c in less.tolist():
            cap = max(caps[c], cells.levels[cells.cell_pool[c]].cap_for(promised[c]))
            watts, domains = (cap - caps[c]) * cells.cell_gpus[c], feeds.indices[feeds.indptr[c] : feeds.indptr[c + 1]]
            if np.all(left[domains] >= watts):
                left[domains] -= watts
                caps[c] = cap
        return caps

    def _worked_out(
        self, caps: Floats, asked: Floats, usable: Floats, domain_prices: Floats, service_prices: Floats
    ) -> Tick:
        """Say what the caps come to: capacities, shares, served demand and watts, without the model."""
        cells = self.cells
        capacity, reserved = cells.rates(caps), cells.watts(caps)
        carried = cells.replica_rates(caps) * cells.cell_replicas
        served, shares, notes = over_links(self._links, cells, carried, *_routed(cells, carried, asked))
        over = np.where(reserved > usable + WATTS, reserved - usable, 0.0)
        tick = Tick(
            places=cells.places,
            cap_watts=caps,
            pools=cells.pools,
            share_ratio=shares,
            capacity_requests_per_s=capacity,
            services=cells.services,
            demand_per_s=asked,
            served_per_s=served,
            service_usd_per_request=service_prices,
            domains=cells.domains,
            reserved_watts=reserved,
            usable_watts=usable,
            over_watts=over,
            domain_usd_per_kilowatt_hour=domain_prices,
            notes=(
                *(_over_note(cells, int(d), reserved[d], usable[d]) for d in np.flatnonzero(over > 0.0)),
                *notes,
            ),
        )
        return _of_whole(tick, self._parts) if self._parts.cuts else tick


def _routed(cells: CapCells, carried: Floats, asked: Floats) -> tuple[Floats, Floats]:
    """Served requests/s by service, and the share of every pool: in proportion to capacity inside a role and domain.

    Parameters
    ----------
    carried : (C,) float
        Requests/s that each cell carries.
    """
    count, role = len(cells.services), cells.pool_role[cells.cell_pool]
    is_role = {r: role == index for index, r in enumerate(Role)}
    mixed = cells.sum_by_service(cells.sum_by_pool(carried * is_role[Role.MIXED]))
    sides = {r: cells.sum_by_pair(carried * is_role[r]) for r in (Role.PREFILL, Role.DECODE)}
    pairs = np.minimum(sides[Role.PREFILL], sides[Role.DECODE])
    able = mixed + np.bincount(cells.pair_service, weights=pairs, minlength=count)
    served = np.where(able >= asked * (1.0 - ROUNDING), asked, able)
    used = np.ones(len(carried))  # of a cell's capacity, as far as the other side of its domain goes
    for r, side in sides.items():
        inside = np.divide(pairs, side, out=np.zeros(len(pairs)), where=side > 0.0)[cells.cell_pair]
        used = np.where(is_role[r], inside, used)
    each = np.divide(1.0, able, out=np.zeros(count), where=able > 0.0)
    return served, cells.sum_by_pool(carried * used) * each[cells.pool_service]


def _of_whole(tick: Tick, parts: TickParts) -> Tick:
    """Say of services what was worked out for their parts."""
    names, owner = parts.owners(tick.services)
    index = {name: s for s, name in enumerate(tick.services)}
    demand, served = (
        np.bincount(owner, weights=rates).astype(float) for rates in (tick.demand_per_s, tick.served_per_s)
    )
    paid = np.bincount(owner, weights=tick.service_usd_per_request * tick.demand_per_s)
    of_part = np.array([index[pool.service] for pool in tick.pools], dtype=np.int64)
    carried = tick.share_ratio * tick.served_per_s[of_part]
    whole = served[owner[of_part]]
    return replace(
        tick,
        places=tuple((as_whole(pool), location) for pool, location in tick.places),
        pools=tuple(as_whole(pool) for pool in tick.pools),
        share_ratio=np.divide(carried, whole, out=np.zeros(len(carried)), where=whole > 0.0),
        services=names,
        demand_per_s=demand,
        served_per_s=served,
        service_usd_per_request=np.divide(paid, demand, out=np.zeros(len(names)), where=demand > 0.0),
    )


def _over_note(cells: CapCells, domain: int, reserved: float, usable: float) -> str:
    idle = cells.idle_watts[domain]
    what = f"idle GPUs alone draw {idle:,.0f} W" if idle > usable else f"the lowest caps need {reserved:,.0f} W"
    return f"power[{cells.domains[domain]}]: {what}, usable {usable:,.0f} W; stop replicas or raise the budget"


def _changed(what: str, names: tuple[str, ...], values: Floats, changes: Mapping[str, float]) -> Floats:
    index, changed = {name: i for i, name in enumerate(names)}, values.copy()
    for name, value in sorted(changes.items()):
        _check_number(f"ServedModel/{name}", what, value, name in index)
        changed[index[name]] = value
    return changed


def _check_number(subject: str, field: str, value: float, is_known: bool) -> None:
    if not is_known:
        raise InvalidInput(subject, field, "is of nothing in the plan", "name what the plan was made for")
    if not 0.0 <= value < float("inf"):
        raise InvalidInput(subject, field, f"is {value!r}", "give a finite number of at least 0")
