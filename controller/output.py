"""How commands print: ``-o table`` for people, ``-o json`` and ``-o yaml`` for programs; always in the same order."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import yaml

FORMATS = ("table", "json", "yaml")


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``-o``."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print (default table)")


def print_output(output: str, data: Any, table: Callable[[], str]) -> None:
    """Print plain data in the asked format; the table is made only when it is asked for."""
    if output == "table":
        print(table())
    elif output == "json":
        print(json.dumps(data, indent=2))
    else:
        print(yaml.safe_dump(data, sort_keys=False, width=120), end="")


def one_object(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give one Kubernetes object: the only body, or a List of several."""
    if len(bodies) == 1:
        return dict(bodies[0])
    return {"apiVersion": "v1", "kind": "List", "items": [dict(body) for body in bodies]}
