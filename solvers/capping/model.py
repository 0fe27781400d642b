"""The best caps as one linear programme, stated once in cvxpy and kept alive in one HiGHS for hot re-solves.

Only right-hand sides change from solve to solve: demands and budgets. cvxpy gives the arrays, and where each of its
parameters stands in them; a solve moves row bounds and lets the dual simplex go on from the last basis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import highspy
import numpy as np
import scipy.sparse as sp

from solvers.capping.cells import CapCells, Floats, Ints
from solvers.engine import Role
from solvers.errors import SolveFailed
from solvers.highs import pass_model, quiet_highs

OVER_TIMES = 10.0  # what a kW above a budget costs, over the most that one could serve: budgets go before demand
ROUNDING = 1e-6  # USD per hour of a kW, so that caps that nobody needs are low even when energy is free


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """Every step that a cell's cap can rise by, (K,): what it adds, and the cell it belongs to."""

    cell: Ints
    cap_watts: Floats
    requests_per_s: Floats

    @classmethod
    def of(cls, cells: CapCells) -> Segments:
        """List the segments of every cell; where no cap may change, one that adds nothing."""
        by_pool = [levels.segments() for levels in cells.levels]
        count = np.array([len(watts) for watts, _ in by_pool], dtype=np.int64)
        if not count[cells.cell_pool].any():
            return cls(cell=np.zeros(1, dtype=np.int64), cap_watts=np.zeros(1), requests_per_s=np.zeros(1))
        pieces = [by_pool[p] for p in cells.cell_pool]
        return cls(
            cell=np.repeat(np.arange(len(cells.cell_pool)), count[cells.cell_pool]),
            cap_watts=np.concatenate([np.zeros(0), *(watts for watts, _ in pieces)]),
            requests_per_s=np.concatenate([np.zeros(0), *(rates for _, rates in pieces)]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """Share of each segment that is used, (K,), and duals: USD/h of a kW by domain, of one request/s by service."""

    used: Floats
    domain_usd_per_kilowatt_hour: Floats
    service_usd_per_request: Floats
    value: float
    iterations: int


class CapModel:
    """The programme of the placed pools of one plan.

    Columns: ``used`` (K,) 0-1, share of a segment; ``mixed``, ``unserved`` (S,) and ``pairs`` (pairing domains),
    requests/s over the service's scale; ``over`` (D,), kW above a budget that the lowest caps pass. Parameters:
    ``demand`` (S,), ``room`` (D,) kW.
    """

    def __init__(self, cells: CapCells, energy_usd_per_kilowatt_hour: float) -> None:
        self.cells, self.segments = cells, Segments.of(cells)
        self.lowest_watts = np.array([levels.cap_watts[0] for levels in cells.levels])[cells.cell_pool]
        self._lowest_rates = cells.replica_rates(self.lowest_watts)
        self._lowest_rise = cells.charged @ (cells.cell_gpus * np.maximum(0.0, self.lowest_watts + cells.rise_watts))
        self.scale = self._scale()
        self.demand = cp.Parameter(len(cells.services))
        self.room = cp.Parameter(len(cells.domains))
        self.problem, self._used, self._unserved = self._state(energy_usd_per_kilowatt_hour)
        self._highs = self._load()

    def _scale(self) -> Floats:
        """What each service's pools carry at full power, in requests/s: rows are in shares of it."""
        cells = self.cells
        full = cells.rates(np.full(len(cells.cell_pool), 1e6))
        return np.maximum(cells.sum_by_service(full), 1e-9)

    def _state(self, energy: float) -> tuple[cp.Problem, Any, Any]:
        cells, seg = self.cells, self.segments
        size, services = len(seg.cell), len(cells.services)
        kilowatts = seg.cap_watts * cells.cell_gpus[seg.cell] / 1000.0
        used = cp.Variable(size, bounds=[np.zeros(size), np.ones(size)])
        mixed, unserved = (_from_zero(services) for _ in range(2))
        pairs = _from_zero(len(cells.pair_keys))
        over = _from_zero(len(cells.domains))
        draws = sp.csr_array(cells.charged[:, seg.cell]) @ sp.diags_array(kilowatts)
        carries = ((Role.MIXED, mixed), (Role.PREFILL, pairs), (Role.DECODE, pairs))
        limits = [
            self._balance(mixed, pairs, unserved),
            *(self._carried(role) @ used + self._base(role) >= flow for role, flow in carries),
            draws @ used - over <= self.room,
        ]
        cost = (
            (energy + ROUNDING) * kilowatts @ used
            + (cells.penalty_usd_per_request * self.scale) @ unserved
            + self._over_usd_per_kilowatt_hour(kilowatts) * (np.ones(len(cells.domains)) @ over)
        )
        return cp.Problem(cp.Minimize(cost), limits), used, unserved

    def _over_usd_per_kilowatt_hour(self, kilowatts: Floats) -> float:
        cells, seg = self.cells, self.segments
        rates = seg.requests_per_s * cells.cell_replicas[seg.cell]
        worth = cells.penalty_usd_per_request[cells.pool_service[cells.cell_pool[seg.cell]]] * rates
        return OVER_TIMES * max(1.0, float(np.max(worth / np.maximum(kilowatts, 1e-9), initial=0.0)))

    def _balance(self, mixed: Any, pairs: Any, unserved: Any) -> Any:
        """What is asked is carried by mixed pools, by pairs of prefill and decode, or by nobody."""
        service, count = self.cells.pair_service, len(self.cells.pair_keys)
        shape = (len(self.cells.services), count)
        inside = sp.csr_array((np.ones(count), (service, np.arange(count))), shape=shape)
        return mixed + inside @ pairs + unserved == self.demand

    def _carried(self, role: Role) -> Any:
        """What a segment adds to its service (mixed) or to its pairing domain, over the service's scale; by segment."""
        cells, seg = self.cells, self.segments
        pool = cells.cell_pool[seg.cell]
        rates = seg.requests_per_s * cells.cell_replicas[seg.cell] / self.scale[cells.pool_service[pool]]
        inside = cells.pool_role[pool] == tuple(Role).index(role)
        rows = cells.pool_service[pool] if role is Role.MIXED else cells.cell_pair[seg.cell]
        count = len(cells.services) if role is Role.MIXED else len(cells.pair_keys)
        return sp.csr_array((rates[inside], (rows[inside], np.flatnonzero(inside))), shape=(count, len(seg.cell)))

    def _base(self, role: Role) -> Floats:
        """What the role carries at the lowest caps, over the service's scale: by service (mixed), else by domain."""
        cells = self.cells
        is_role = cells.pool_role == tuple(Role).index(role)
        if role is Role.MIXED:
            return cells.sum_by_service(cells.rates(self.lowest_watts) * is_role) / self.scale
        carried = self._lowest_rates * cells.cell_replicas * is_role[cells.cell_pool]
        return cells.sum_by_pair(carried) / self.scale[cells.pair_service]

    def _load(self) -> Any:
        self.demand.value, self.room.value = np.zeros(self.demand.size), np.zeros(self.room.size)
        data, _, _ = self.problem.get_problem_data(cp.HIGHS)
        matrix, self._right = sp.csc_array(data["A"]), np.asarray(data["b"], dtype=float)
        services, domains = len(self.cells.services), len(self.cells.domains)
        self._demand_rows = np.arange(services, dtype=np.int32)  # cvxpy lists equations first
        self._room_rows = np.arange(len(self._right) - domains, len(self._right), dtype=np.int32)
        lower = np.where(np.arange(len(self._right)) < services, self._right, -highspy.kHighsInf)
        highs = quiet_highs(solver="simplex")
        pass_model(
            highs,
            matrix=matrix,
            cost=np.asarray(data["c"], dtype=float),
            columns=(np.asarray(data["lower_bounds"], dtype=float), np.asarray(data["upper_bounds"], dtype=float)),
            rows=(lower, self._right),
        )
        starts = data["param_prob"].var_id_to_col
        self._columns = slice(starts[self._used.id], starts[self._used.id] + self._used.size)
        self._unserved_columns = np.arange(services, dtype=np.int32) + np.int32(starts[self._unserved.id])
        return highs

    def solve(self, demand_per_s: Floats, room_watts: Floats) -> Answer:
        """Solve for other demands (S,) and other room above idle draw (D,), from the last basis.

        Raises
        ------
        SolveFailed
            When HiGHS does not end with an optimum.
        """
        highs = self._highs
        asked = demand_per_s / self.scale
        room = (room_watts - self._lowest_rise) / 1000.0
        highs.changeRowsBounds(len(asked), self._demand_rows, asked, asked)
        highs.changeRowsBounds(len(room), self._room_rows, np.full(len(room), -highspy.kHighsInf), room)
        highs.run()
        status = highs.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise SolveFailed(f"the model of caps ended as {highs.modelStatusToString(status)}")
        found, info = highs.getSolution(), highs.getInfo()
        duals = np.array(found.row_dual, dtype=float)
        return Answer(
            used=np.array(found.col_value, dtype=float)[self._columns],
            domain_usd_per_kilowatt_hour=np.maximum(0.0, -duals[self._room_rows]),
            service_usd_per_request=duals[self._demand_rows] / self.scale,
            value=float(info.objective_function_value),
            iterations=int(info.simplex_iteration_count),
        )

    def hold(self, unserved_per_s: Floats) -> None:
        """Leave no service with more unserved than this, (S,), in all further solves."""
        most = np.maximum(0.0, unserved_per_s) / self.scale
        self._highs.changeColsBounds(len(most), self._unserved_columns, np.zeros(len(most)), most)

    def promised(self, used: Floats) -> Floats:
        """Requests/s that one replica of every cell carries by the model, (C,)."""
        seg, count = self.segments, len(self.cells.cell_pool)
        rise = np.bincount(seg.cell, weights=np.clip(used, 0.0, 1.0) * seg.requests_per_s, minlength=count)
        rates: Floats = self._lowest_rates + rise
        return rates

    def caps_watts(self, used: Floats) -> Floats:
        """Cap of every cell, (C,)."""
        seg, count = self.segments, len(self.cells.cell_pool)
        rise = np.bincount(seg.cell, weights=np.clip(used, 0.0, 1.0) * seg.cap_watts, minlength=count)
        caps: Floats = self.lowest_watts + rise
        return caps


def _from_zero(size: int) -> Any:
    return cp.Variable(size, bounds=[np.zeros(size), np.full(size, np.inf)])
