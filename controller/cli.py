"""The command line: ``penstock COMMAND``, also as ``python -m controller``.

Only the module of the command that was asked for is imported, so ``penstock plan`` needs no cluster and
``penstock run`` loads no modeller.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from solvers.errors import PenstockError

EXIT_OK, EXIT_BAD_INPUT, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 0, 1, 2, 130, 141


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One sub-command. Its module has ``add_arguments(parser)`` and ``run(args) -> int``."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Command(name="run", module="controller.run_command", summary="run the operator against a cluster"),
    Command(
        name="plan", module="controller.plan_command", summary="decide placements from manifests, without a cluster"
    ),
    Command(name="explain", module="controller.explain_command", summary="say why a service is placed as it is"),
    Command(name="replay", module="controller.replay_command", summary="replay a request trace over a plan"),
    Command(name="profile", module="controller.profile_command", summary="make engine profiles"),
    Command(name="demo", module="controller.demo_command", summary="run the operator on a simulated cluster"),
)


class Parser(argparse.ArgumentParser):
    """A wrong option of a command is bad input, and not to be taken for the command's own exit code 2."""

    usage_exit = EXIT_BAD_INPUT

    def error(self, message: str) -> NoReturn:
        """Say how the command is used and what is wrong."""
        self.print_usage(sys.stderr)
        self.exit(self.usage_exit, f"{self.prog}: {message}\n")


def make_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Make the parser; only the chosen command's module is imported for its options."""
    parser = Parser(
        prog="penstock",
        description="Places prefill, decode and mixed replicas of language-model services on mixed GPUs, "
        "inside latency SLOs and power budgets.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parser.usage_exit = EXIT_BAD_INPUT if chosen in {command.name for command in COMMANDS} else EXIT_USAGE
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.summary, description=_sentence(command.summary))
        if command.name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error of the user's becomes one line and exit code 1, never a trace."""
    _print_what_the_terminal_can()
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    args = make_parser(chosen).parse_args(arguments)
    try:
        return _run(args)
    except PenstockError as error:
        print(f"penstock {args.command}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_output()
        return EXIT_PIPE_CLOSED


def _run(args: Any) -> int:
    result: int = args.run(args)
    sys.stdout.flush()  # a reader that has gone away shows here, and not when the interpreter ends
    return result


def _print_what_the_terminal_can() -> None:
    """Let a terminal without Unicode show a question mark, where it would end the command with a trace."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _silence_output() -> None:
    """Send what is left in the buffer nowhere, so that the interpreter's own flush at the end does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _version() -> str:
    from importlib.metadata import version

    return f"penstock {version('penstock')}"


if __name__ == "__main__":
    sys.exit(main())
