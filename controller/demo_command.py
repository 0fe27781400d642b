"""``penstock demo``: the operator on a simulated cluster. The simulation lives beside the tests, in a checkout."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from solvers.errors import InvalidInput

MODULE = "tests.simcluster.demo"
CHECKOUT = Path(__file__).resolve().parents[1]


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
    if not (CHECKOUT / "tests" / "simcluster" / "demo.py").is_file():
        raise InvalidInput(
            "demo",
            "",
            "the simulated cluster is not part of the installed package",
            "clone the repository and run `make demo` in it",
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return importlib.import_module(MODULE)
