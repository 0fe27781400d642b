"""Every limit has a function, an equation in ``solvers/README.md`` and a golden file of the rows it adds.

``python -m tests.test_limits`` writes the golden files anew; read the difference before committing it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from solvers.engine import EngineConfig, Role
from solvers.fleet import PoolKey
from solvers.planner.menus.compose import SHARED, shared_rows
from solvers.planner.model import limits
from solvers.planner.model.columns import make_variables
from solvers.planner.model.relax import Arrays, solve_linear, solve_whole, state
from solvers.planner.pools.cells import Cells, build_cells
from solvers.planner.pools.options import find_options
from solvers.planner.pools.sizer import Sizer
from solvers.planner.proof.bound import dual_bound
from solvers.problem import KvLink, Problem, Quota
from solvers.workload import Pin
from tests import fleets

GOLDEN = Path(__file__).parent / "golden"
README = Path(limits.__file__).parents[2] / "README.md"
LINKED = ("limit_crossing", "limit_link")
NAMES = tuple(make.__name__ for make in limits.LIMITS)


def golden_problem() -> Problem:
    """Two services on four nodes in two racks, one replica running; budgets that bind, and few cores in one rack."""
    spot = (replace(node, reclaims_per_hour=0.05, price_ratio=0.4) for node in fleets.nodes("h100-sxm", 2, "rack-1"))
    few_cores = (replace(n, resources={"cpu": 20_000}) for n in fleets.nodes("l40s", 2, "rack-2", usable=3, gpus=4))
    fleet = (*spot, *few_cores)
    pins = (Pin(location="rack-2", replicas=1, gpu_class="l40s"),)
    long = fleets.service("long", "long", rank=1, ttft_s=2.0, roles=(Role.PREFILL, Role.DECODE))
    long = replace(long, kv_may_cross=False)
    chat = fleets.service("chat", "chat", roles=(Role.MIXED,), min_replicas=1, max_replicas=6)
    services = (
        (replace(chat, pins=pins, requests={Role.MIXED: {"cpu": 8_000, "memory": 2**35}}), 12.0),
        (replace(long, min_locations=2, max_share_per_location_ratio=0.6, max_spot_ratio=0.7), 2.0),
    )
    profiles = [fleets.profile("chat", name, 1, 8.0) for name in ("h100-sxm", "l40s")]
    profiles += [fleets.profile("long", "h100-sxm", tp, 30.0) for tp in (1, 2)]
    running = PoolKey(service="default/chat", role=Role.MIXED, gpu_class="l40s", config=EngineConfig(tensor_parallel=1))
    budgets = {"rack-1": 7000.0, "site": 8000.0}
    quotas = (Quota(namespace="default", max_gpus=20), Quota(namespace="default", gpu_class="l40s", max_watts=5000.0))
    problem = fleets.problem(services, fleet, profiles, budgets=budgets, running={(running, "rack-2"): 1})
    return replace(problem, policy=replace(problem.policy, quotas=quotas))


def linked_problem() -> Problem:
    """The same with traffic that may cross links; the second hangs on none of the racks that it may use."""
    problem = golden_problem()
    links = tuple(
        KvLink(name=f"up-{n}", locations=(f"rack-{n}",), bytes_per_s=2e9, usd_per_terabyte=5.0) for n in (1, 2)
    )
    services = tuple(replace(service, kv_may_cross=True) for service in problem.services)
    return replace(problem, services=services, policy=replace(problem.policy, kv_links=links))


def cells_of(problem: Problem, *, one_by_one: bool = False, fair_ratio: Mapping[str, float] | None = None) -> Cells:
    sizer = Sizer(problem=problem, capacity_of=fleets.plain_capacity)
    wanted = {pool for pool, _ in problem.running}
    return build_cells(
        problem, find_options(problem, sizer, wanted=wanted), one_by_one=one_by_one, fair_ratio=fair_ratio
    )


def column_names(cells: Cells, arrays: Arrays) -> list[str]:
    steps = [f"{cells.pools[p].pool}#{s.lower}-{s.upper}" for p, s in zip(cells.step_pool, cells.steps, strict=True)]
    held = [
        f"{cells.pools[p].pool}@{cells.grouping.groups[g].label}"
        for p, g in zip(cells.held_pool, cells.held_group, strict=True)
    ]
    services = [service.name for service in cells.services]
    labels = {
        "replicas": [cells.cell_label(c) for c in range(len(cells.cell_pool))],
        "sized": steps,
        "chosen": steps,
        "share": [str(option.pool) for option in cells.pools],
        "started": held,
        "stopped": held,
        "unserved": services,
        "excess": services,
        "unpinned": [f"{cells.services[s].name} {pin}" for s, pin in cells.pins],
        "parted": [f"{services[s]} {chain} in {site}" for s, chain, site in cells.parted],
        "unparted": [f"{name} {chain}" for chain in ("prompts", "tokens") for name in services],
        "hung": [cells.cell_label(c) for c in range(len(cells.cell_pool))],
        "flow": [cells.cell_label(c) for c in range(len(cells.cell_pool))],
        "outgoing": [f"{services[s]} {group} over {k}" for s, group, k in cells.crossings],
        "incoming": [f"{services[s]} {group} over {k}" for s, group, k in cells.crossings],
        "missing": [f"{name} {chain}" for chain in ("prompts", "tokens") for name in services],
    }
    names = [""] * len(arrays.cost)
    for variable, place in arrays.columns.items():
        if place.stop > place.start:
            names[place] = [f"{variable}[{label}]" for label in labels[variable]]
    return names


def rows_text(cells: Cells, arrays: Arrays, name: str) -> str:
    """Write the rows of one limit, a term a line, at six digits."""
    columns, matrix, lines = column_names(cells, arrays), arrays.matrix.tocsr(), []
    for row, (limit, subject) in enumerate(arrays.rows):
        if limit != name:
            continue
        sign = "=" if arrays.row_lower[row] == arrays.row_upper[row] else "<="
        lines.append(f"{subject}")
        start, end = matrix.indptr[row], matrix.indptr[row + 1]
        terms = sorted(zip(matrix.indices[start:end], matrix.data[start:end], strict=True))
        lines += [f"    {value:+.6g} {columns[column]}" for column, value in terms if value]
        lines.append(f"    {sign} {arrays.row_upper[row] + 0.0:.6g}")
    return "\n".join(lines) + "\n"


def golden_texts() -> dict[str, str]:
    cells = cells_of(golden_problem(), fair_ratio={"default/long": 0.25})
    arrays = state(cells)
    linked = cells_of(linked_problem())
    texts = {name: rows_text(linked, state(linked), name.removeprefix("limit_")) for name in LINKED}
    return {name: rows_text(cells, arrays, name.removeprefix("limit_")) for name in NAMES} | texts


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_adds_the_rows_of_its_golden_file(name: str) -> None:
    assert golden_texts()[name] == (GOLDEN / f"{name}.txt").read_text()


def test_every_limit_function_is_stated_in_order_and_no_golden_file_is_left_over() -> None:
    functions = {name for name in vars(limits) if name.startswith("limit_")}
    assert functions == set(NAMES)
    assert {path.stem for path in GOLDEN.glob("limit_*.txt")} == functions
    assert all(text.strip() for text in golden_texts().values())


def test_every_limit_cites_its_equation_of_the_readme() -> None:
    text = README.read_text()
    cells = cells_of(golden_problem())
    variables = make_variables(cells)
    for number, make in enumerate(limits.LIMITS, start=1):
        limit = make(cells, variables)
        assert limit.equation == number
        assert (make.__doc__ or "").startswith(f"({number})")
        assert re.search(rf"^### \({number}\) .*`{make.__name__}`$", text, re.MULTILINE), make.__name__
        assert len(limit.subjects) == limit.constraint.size


def test_shared_limits_by_themselves_have_the_rows_that_they_have_among_all() -> None:
    cells = cells_of(golden_problem())
    full, few = state(cells), state(cells, limits.SHARED_LIMITS)
    rows = shared_rows(full)
    assert few.rows == tuple(full.rows[row] for row in rows)
    assert {limit for limit, _ in few.rows} == set(SHARED)
    assert (few.row_upper == full.row_upper[rows]).all()
    mine, theirs = few.matrix[:, few.columns["replicas"]], full.matrix.tocsr()[rows][:, full.columns["replicas"]]
    assert (mine.toarray() == theirs.toarray()).all()


def test_the_dual_bound_is_the_value_of_the_relaxation_and_wrong_prices_only_weaken_it() -> None:
    arrays = state(cells_of(golden_problem()))
    relaxed = solve_linear(arrays, time_limit_s=10.0)
    assert relaxed.duals is not None
    assert dual_bound(arrays, relaxed.duals) == pytest.approx(relaxed.value, rel=1e-6)
    rng = fleets.seeded(3)
    for _ in range(20):
        wrong = relaxed.duals * rng.uniform(0.5, 1.5, relaxed.duals.shape)
        assert dual_bound(arrays, wrong) <= relaxed.value * (1.0 + 1e-9)


@pytest.mark.parametrize("ratio", [0.45, 0.6, 0.9])
def test_grouping_loses_nothing_of_the_relaxation(ratio: float) -> None:
    """Colour refinement is exact for linear programmes: groups are worth what their bays are worth."""
    problem = fleets.demo(3.0, budget_ratio=ratio)
    values = []
    for one_by_one in (False, True):
        cells = cells_of(problem, one_by_one=one_by_one)
        values.append((len(cells.grouping.groups), solve_linear(state(cells), time_limit_s=30.0).value))
    (groups, grouped), (bays, apart) = values
    assert groups < bays
    assert grouped == pytest.approx(apart, rel=1e-7)


def test_a_whole_solution_keeps_every_row_and_its_bound() -> None:
    arrays = state(cells_of(golden_problem()))
    whole = solve_whole(arrays, relative_gap=1e-6, time_limit_s=30.0, node_limit=10_000)
    reached = arrays.matrix @ whole.x
    assert np.all(reached <= arrays.row_upper + 1e-6)
    assert np.all(reached >= arrays.row_lower - 1e-6)
    assert whole.bound <= whole.value + 1e-6


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for stem, content in golden_texts().items():
        (GOLDEN / f"{stem}.txt").write_text(content)
