"""``penstock replay --events FILE``: failures, drains, cold starts and caps that a user injects, in YAML or CSV.

CSV has a header with some of ``FIELDS``; YAML is a list of mappings with the same names::

    - {at_s: 120, what: fail, location: rack-a1, value: all, repair_s: 600}
    - {at_s: 180, what: cap, pool: demo/chat-8b, value: 400}
    - {at_s: 240, what: start, pool: demo/chat-8b/decode/h100-sxm/tp1, location: rack-a1, value: 2}

The first loses a whole rack, idle GPUs included, for ten minutes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from controller.traces import finite, parse_field
from solvers.errors import InvalidInput
from solvers.evaluate.fleet_state import known_pools
from solvers.evaluate.incidents import Incident, What
from solvers.fleet import ANYWHERE
from solvers.problem import Problem

FIELDS = ("at_s", "what", "pool", "location", "node", "replica", "value", "repair_s")
ALL = "all"
Row = tuple[str, Mapping[str, str]]
"""Where it stands (``FILE:LINE``), and the text of each field."""


def load_incidents(path: Path, problem: Problem) -> tuple[Incident, ...]:
    """Read the incidents of a file and hold their names against a problem.

    Raises
    ------
    InvalidInput
        When the file cannot be read, or at the first wrong field, with file, line and field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(_csv_rows(text, path.name) if _is_csv(text) else _yaml_rows(text, path.name))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(str(path), "", f"cannot be read: {error}", "give a CSV or YAML file of events") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path.name}:{mark.line + 1}" if mark else path.name
        said = " ".join(str(error).split())
        raise InvalidInput(where, "", f"is no YAML: {said}", "correct it") from error
    return tuple(_incident(where, row, problem) for where, row in rows)


def _is_csv(text: str) -> bool:
    """A header that holds both fields that each event needs."""
    first = text.partition("\n")[0]
    return {"at_s", "what"} <= {name.strip() for name in first.split(",")}


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text))
    header = [cell.strip() for cell in next(reader)]
    _check_names(f"{name}:1", header)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{name}:{reader.line_num}"
        if len(cells) != len(header):
            problem = f"has {len(cells)} fields instead of {len(header)}"
            raise InvalidInput(where, "", problem, f"write {','.join(header)}")
        yield where, {field: cell.strip() for field, cell in zip(header, cells, strict=True)}


def _yaml_rows(text: str, name: str) -> Iterator[Row]:
    """Read nodes, not values: they know their lines."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.SequenceNode):
        remedy = f"write a CSV header with some of {', '.join(FIELDS)}, or a YAML list of mappings"
        raise InvalidInput(f"{name}:1", "", "is no list of events", remedy)
    for node in root.value:
        where = f"{name}:{node.start_mark.line + 1}"
        if not isinstance(node, yaml.MappingNode):
            raise InvalidInput(where, "", "is no mapping", "write {at_s: …, what: …}")
        yield where, dict(_member(name, key, value) for key, value in node.value)


def _member(name: str, key: Any, value: Any) -> tuple[str, str]:
    where = f"{name}:{key.start_mark.line + 1}"
    if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
        raise InvalidInput(where, str(key.value), "is no plain value", "write one name and one value")
    _check_names(where, [key.value])
    return key.value, "" if value.tag.endswith(":null") else value.value


def _check_names(where: str, names: list[str]) -> None:
    for name in names:
        if name not in FIELDS:
            raise InvalidInput(where, name, "is no field of an event", f"known are {', '.join(FIELDS)}")


# ---------------------------------------------------------------- one event


def _incident(where: str, row: Mapping[str, str], problem: Problem) -> Incident:
    for field in ("at_s", "what"):
        if not row.get(field):
            raise InvalidInput(where, field, "is missing", "say when, and which of " + ", ".join(What))
    what = parse_field(where, "what", row["what"], _what)
    names: dict[str, Any] = {field: row.get(field, "") for field in ("pool", "location", "node", "replica")}
    _check_known(where, names, problem)
    if what is What.START:
        _check_start(where, names, problem)
    elif not any(names.values()):
        remedy = "name a pool, location, node or replica; a service's name is all its pools"
        raise InvalidInput(where, "pool", "is missing, and nothing else is named", remedy)
    if what is not What.FAIL and row.get("repair_s"):
        raise InvalidInput(where, "repair_s", f"means nothing to {what}", "leave it out")
    value = VALUES[what](where, row.get("value", ""))
    repair_s = parse_field(where, "repair_s", row.get("repair_s") or "0", finite)
    at_s = parse_field(where, "at_s", row["at_s"], finite)
    return Incident(at_s=at_s, what=what, **names, **value, repair_s=repair_s, where=where)


def _what(text: str) -> What:
    if text not in list(What):
        raise ValueError(f"is none of {', '.join(What)}")
    return What(text)


def _check_known(where: str, names: Mapping[str, str], problem: Problem) -> None:
    """Refuse names of nothing: an event that can hit nobody is a slip of the pen."""
    known = {
        "pool": {part for pool in known_pools(problem) for part in _beginnings(pool)},
        "location": {node.location for node in problem.nodes} | {ANYWHERE},
        "node": {node.name for node in problem.nodes},
    }
    for field, options in known.items():
        name = names[field]
        if name and name not in options:
            shown = sorted(options, key=lambda option: (option.count("/"), option))[:8]
            raise InvalidInput(where, field, f"{name!r} is unknown", f"known are {', '.join(shown)}")


def _beginnings(pool: str) -> Iterator[str]:
    """``NAMESPACE/NAME``, and on part by part to the whole."""
    parts = pool.split("/")
    return ("/".join(parts[:end]) for end in range(2, len(parts) + 1))


def _check_start(where: str, names: Mapping[str, str], problem: Problem) -> None:
    if names["pool"] not in known_pools(problem):
        remedy = "write it whole, NAMESPACE/NAME/ROLE/CLASS/CONFIG, as plans show it"
        raise InvalidInput(where, "pool", f"{names['pool']!r} is no one pool to start", remedy)
    if not names["location"]:
        raise InvalidInput(where, "location", "is missing", "say where to start replicas")
    for field in ("node", "replica"):
        if names[field]:
            raise InvalidInput(where, field, "cannot be chosen for a start", "name pool and location only")


def _count(where: str, text: str) -> dict[str, Any]:
    if text == ALL:
        return {"count": None}
    return {"count": parse_field(where, "value", text or "1", _replicas)}


def _started(where: str, text: str) -> dict[str, Any]:
    return {"count": parse_field(where, "value", text or "1", _replicas)}


def _replicas(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("is no number of replicas above 0")
    return int(text)


def _watts(where: str, text: str) -> dict[str, Any]:
    """A cap concerns all that match; ``none`` lifts it."""
    if not text:
        raise InvalidInput(where, "value", "is missing", "give the watts of one GPU, or none to lift the cap")
    watts = None if text == "none" else parse_field(where, "value", text, _above_zero)
    return {"count": None, "cap_watts": watts}


def _above_zero(text: str) -> float:
    if not finite(text) > 0:
        raise ValueError("is no cap above 0 W")
    return float(text)


VALUES: Mapping[What, Callable[[str, str], dict[str, Any]]] = MappingProxyType({
    What.FAIL: _count, What.DRAIN: _count, What.START: _started, What.CAP: _watts,
})  # fmt: skip
