"""``penstock run``: the operator."""

from __future__ import annotations

import argparse
import importlib

from controller import settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one flag per setting; each is also a ``PENSTOCK_`` variable."""
    settings.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or until leadership is lost; the loop is imported late, ``--help`` needs no kopf."""
    code: int = importlib.import_module("controller.loop").run(settings.from_args(args))
    return code
