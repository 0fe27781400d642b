"""What may give way in a shortage, and at which price: one column of the relief's model for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from solvers.planner.bays.shelves import requests_by_role
from solvers.planner.model.limits_pairs import WAYS
from solvers.planner.model.limits_resources import resource_unit, roomiest
from solvers.planner.model.relax import Arrays
from solvers.planner.pools.cells import Cells

KILO, GIGA = 1e3, 1e9
KILOWATT_USD_PER_HOUR = 0.25  # 180 USD for a kW and month: what colocation asks for power and cooling to go with it
WORD_USD_PER_HOUR = 0.02  # for a GPU, kW or replica more in a quota or ceiling: a word, but not one too many
CORE_USD_PER_HOUR = 0.03  # of a server core, as clouds ask for it with 4 GiB
GIBIBYTE_USD_PER_HOUR = 0.004
LINK_USD_PER_HOUR = (
    0.02  # for a GB/s: a 400 Gbit/s port, its optics and its share of switches over four years, times four
)
WORDS = {"quota_gpus": "GPU", "quota_power": "kW", "ceiling": "replica"}
RESOURCE_USD_PER_HOUR = {"cpu": CORE_USD_PER_HOUR, "memory": GIBIBYTE_USD_PER_HOUR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One limit that may give way: rows it eases by how much for a unit, and what a unit costs.

    ``per_unit`` says how much of what is asked for (``unit``) one unit of the column is.
    """

    limit: str
    subject: str
    unit: str
    eases: tuple[tuple[int, float], ...]
    usd_per_hour: float
    per_unit: float = 1.0
    is_whole: bool = False


def ways_out(cells: Cells, arrays: Arrays) -> list[Way]:
    """List all that may give way."""
    rows = {name: row for row, name in enumerate(arrays.rows)}
    return [*_words(arrays), *_links(cells, rows), *_resources(cells, rows), *_nodes(cells, arrays)]


def _words(arrays: Arrays) -> Iterator[Way]:
    """Watts, and what a word in a policy or a service allows."""
    for row, (limit, subject) in enumerate(arrays.rows):
        unit, usd = ("kW", KILOWATT_USD_PER_HOUR) if limit == "power" else (WORDS.get(limit), WORD_USD_PER_HOUR)
        if unit:
            yield Way(limit=limit, subject=subject, unit=unit, eases=((row, 1.0),), usd_per_hour=usd)


def _links(cells: Cells, rows: Mapping[tuple[str, str], int]) -> Iterator[Way]:
    """Room of a link, both ways; its rows are in shares of what one link carries."""
    for members in cells.grouping.links:
        label = f"{members[0]}+{len(members) - 1}" if len(members) > 1 else members[0]
        share = GIGA / cells.links.links[members[0]].bytes_per_s
        eases = tuple((rows[name], share) for way in WAYS if (name := ("link", f"{label} {way}")) in rows)
        if eases:
            yield Way(limit="link", subject=label, unit="GB/s", eases=eases, usd_per_hour=LINK_USD_PER_HOUR)


def _resources(cells: Cells, rows: Mapping[tuple[str, str], int]) -> Iterator[Way]:
    """CPU, memory and the like of nodes of a group of bays, as much at a time as the replica that asks for most."""
    requests = requests_by_role(cells.problem)
    asked: dict[tuple[int, str], set[int]] = {}
    for p, g in zip(cells.cell_pool, cells.cell_group, strict=True):
        pool = cells.pools[p].pool
        for name, amount in requests.get((pool.service, pool.role), ()):
            asked.setdefault((int(g), name), set()).add(amount)
    for (g, name), sizes in sorted(asked.items()):
        group, largest = cells.grouping.groups[g], max(sizes)
        subject = f"{name} of {group.label}"
        eases = [
            (rows[key], float(largest // q)) for q in sorted(sizes) if (key := ("resources", f"{subject} x{q}")) in rows
        ]
        if ("resources", subject) in rows:
            eases.append((rows["resources", subject], largest / roomiest(group, name)))
        if eases:
            (unit, scale), usd = resource_unit(name), RESOURCE_USD_PER_HOUR.get(name, WORD_USD_PER_HOUR)
            yield Way(
                limit="resources",
                subject=subject,
                unit=unit,
                eases=tuple(eases),
                usd_per_hour=usd * largest / scale,
                per_unit=largest / scale,
                is_whole=True,
            )


def _nodes(cells: Cells, arrays: Arrays) -> Iterator[Way]:
    """GPUs more in a group of bays, as many as its largest replicas take, less the watts that they idle at.

    They come with as much of everything else as the GPUs that are there have.
    """
    power = {subject: row for row, (limit, subject) in enumerate(arrays.rows) if limit == "power"}
    named = [
        (row, *subject.rpartition(" x")[::2]) for row, (limit, subject) in enumerate(arrays.rows) if limit == "gpus"
    ]
    others = [(row, subject) for row, (limit, subject) in enumerate(arrays.rows) if limit == "resources"]
    for g, group in enumerate(cells.grouping.groups):
        gpu_class, there = cells.problem.gpu_classes[group.gpu_class], group.slots(1)
        sizes = [(row, int(size)) for row, label, size in named if label == group.label]
        gpus = max(size for _, size in sizes)
        eases = [(row, float(gpus // size)) for row, size in sizes]
        for d, domain in enumerate(cells.grouping.domain_groups):
            if times := cells.grouping.charges.get((g, d), 0):
                eases.append((power[domain.label], -times * gpus * gpu_class.idle_watts / KILO))
        mine = (row for row, subject in others if subject.partition(" of ")[2].partition(" x")[0] == group.label)
        eases += [(row, float(arrays.row_upper[row]) * gpus / there) for row in mine if there]
        energy = cells.problem.policy.energy_usd_per_kilowatt_hour * gpu_class.idle_watts / KILO
        yield Way(
            limit="gpus",
            subject=group.label,
            unit="GPU",
            eases=tuple(eases),
            usd_per_hour=gpus * (gpu_class.price_usd_per_hour + energy),
            per_unit=float(gpus),
            is_whole=True,
        )
