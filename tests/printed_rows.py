"""How benches print rows: a table, or JSON with ``-o json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from controller.tables import render_table

Row = Mapping[str, object]
OUTPUTS = ("table", "json")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Let who runs the bench choose how its rows are printed."""
    parser.add_argument("-o", "--output", choices=OUTPUTS, default="table")


def written(rows: Sequence[Row], output: str) -> str:
    """Write rows as they are said, under all names that occur, in the order in which these first do.

    >>> print(written([{"plan": "a", "gap": 0.125}, {"plan": "b", "x": 2}], "table"))
    plan  gap    x
    a     0.125
    b            2
    """
    if output == "json":
        return json.dumps(rows, indent=2)
    header = list(dict.fromkeys(key for row in rows for key in row))
    return render_table(header, [[str(row.get(key, "")) for key in header] for row in rows])
