"""The command line as a user meets it: help, usage errors, version, pipes; and that it loads only what it needs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from controller import cli, demo_command
from controller.cli import COMMANDS, EXIT_BAD_INPUT, EXIT_PIPE_CLOSED, EXIT_USAGE, main, make_parser

ROOT = Path(__file__).resolve().parents[1]
MINIMAL = str(ROOT / "deploy" / "samples" / "minimal")
PROFILE = ("profile", "--model", "org/chat", "--gpu-class", "h100-sxm")
NAMES = [command.name for command in COMMANDS]
OPTIONS = {
    "run": ("--kubeconfig", "--prometheus-url", "--grpc-port", "--time-scale"),
    "plan": ("--folder", "--demand", "--output", "Exit code"),
    "explain": ("--folder", "--output"),
    "replay": ("--folder", "--trace", "--plan", "Exit code"),
    "profile": ("--model", "--gpu-class", "--tensor-parallel", "--csv"),
    "demo": ("--short", "--trace"),
}


def _exit_code(*arguments: str) -> int:
    """What the shell sees: argparse exits, commands return."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def _options(command: str) -> list[argparse.Action]:
    subs = next(a for a in make_parser(command)._actions if isinstance(a, argparse._SubParsersAction))
    return [action for action in subs.choices[command]._actions if action.dest != "help"]


def _python(*arguments: str, stdout: int = subprocess.PIPE, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        timeout=300,
        check=False,
    )


def test_every_command_is_tested_here() -> None:
    assert sorted(OPTIONS) == sorted(NAMES)


@pytest.mark.parametrize("command", NAMES)
def test_help_of_a_command_names_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(command, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: penstock {command}")
    assert [option for option in OPTIONS[command] if option not in text] == []


@pytest.mark.parametrize("command", NAMES)
def test_every_option_says_what_it_does(command: str) -> None:
    options = _options(command)
    assert options
    assert [option.dest for option in options if not option.help] == []


def test_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("--help") == 0
    text = capsys.readouterr().out
    assert all(f"{command.name}" in text and command.summary.split()[0] in text for command in COMMANDS)


@pytest.mark.parametrize("arguments", [(), ("fly",), ("--fly",)])
def test_without_a_command_that_exists_it_says_how_it_is_used(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(*arguments) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: penstock ")


def test_an_unknown_command_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    _exit_code("fly")
    text = capsys.readouterr().err
    assert all(name in text for name in ["fly", *NAMES])


@pytest.mark.parametrize(
    ("arguments", "blamed"),
    [
        (("plan",), "--folder"),
        (("plan", "-f", MINIMAL, "-o", "xml"), "xml"),
        (("plan", "-f", MINIMAL, "--fly"), "--fly"),
        (("--fly", "plan", "-f", MINIMAL), "--fly"),
        (("profile", "--model", "org/chat"), "--gpu-class"),
        ((*PROFILE, "--tensor-parallel", "x"), "'x' holds no degree of at least 1"),
        ((*PROFILE, "--pipeline-parallel", "0"), "'0' is no count of at least 1"),
        ((*PROFILE, "--chunk-tokens", "0"), "'0' is no count of at least 1"),
        ((*PROFILE, "--precision", "int3"), "is 'int3'; use fp8, fp4, int4, or leave it out"),
    ],
)
def test_a_wrong_option_is_bad_input_and_not_an_infeasible_plan(
    arguments: tuple[str, ...], blamed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(*arguments) == EXIT_BAD_INPUT
    assert blamed in capsys.readouterr().err


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("--version") == 0
    assert capsys.readouterr().out == f"penstock {version('penstock')}\n"


def test_an_interrupt_ends_it_with_the_shells_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert main(["plan", "-f", MINIMAL]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_went_away_ends_it_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = _python("-m", "controller", "plan", "-f", MINIMAL, stdout=write_end)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (EXIT_PIPE_CLOSED, "")


def test_a_terminal_without_unicode_shows_what_it_can() -> None:
    done = _python("-m", "controller", "plan", "-f", MINIMAL, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rack-1 ?1" in done.stdout


def test_the_demo_of_an_installed_package_says_that_it_needs_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_command, "CHECKOUT", tmp_path)
    assert main(["demo", "--short"]) == EXIT_BAD_INPUT
    assert "clone the repository and run `make demo`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--kubeconfig", "nowhere.yaml"), ("nowhere.yaml", "--kubeconfig FILE")),
        (("--metrics-port", "many"), ("--metrics-port", "'many'")),
        (("--lease-duration-s", "1"), ("settings lease", "must rise")),
    ],
)
def test_an_operator_that_cannot_start_says_which_setting_is_wrong(
    arguments: tuple[str, ...], named: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == EXIT_BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("penstock run: ")
    assert [part for part in named if part not in message] == []


def test_python_dash_m_controller_is_penstock() -> None:
    done = _python("-m", "controller", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"penstock {version('penstock')}\n", "")


@pytest.mark.parametrize(
    ("command", "unwanted"), [("plan", {"kopf", "kubernetes", "grpc"}), ("run", {"kopf", "cvxpy"}), ("", {"numpy"})]
)
def test_help_and_options_load_only_what_the_command_needs(command: str, unwanted: set[str]) -> None:
    script = f"import sys; from controller.cli import make_parser; make_parser({command!r}); print(*sys.modules)"
    done = _python("-c", script)
    assert done.returncode == 0, done.stderr
    assert unwanted & set(done.stdout.split()) == set()
