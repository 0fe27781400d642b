"""``penstock demo``: the operator on a simulated cluster. The simulation lives beside the tests, in a checkout."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

from solvers.errors import InvalidInput

MODULE = "tests.simcluster.demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the demo's own where the checkout is there."""
    try:
        _demo().add_arguments(parser)
    except InvalidInput:
        parser.add_argument("--short", action="store_true", help="the 90-second form")


def run(args: argparse.Namespace) -> int:
    """Run the demo; exit code 0 when no budget was exceeded and the loop held."""
    code: int = _demo().run(args)
    return code


def _demo() -> ModuleType:
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("tests"):
            raise
        raise InvalidInput(
            "demo",
            "",
            "the simulated cluster is not part of the installed package",
            "clone the repository and run `make demo` in it",
        ) from error
