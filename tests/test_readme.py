"""The README is true: its first screen is what is printed now, its commands exist, its paths are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli import COMMANDS, make_parser
from tests import readme
from tests.house import ROOT, targets
from tests.readme import COMMAND, FIRST_SCREEN, NoBlock, block_of, with_block

TEXT = readme.README.read_text(encoding="utf-8")
MATHS = readme.MATHS.read_text(encoding="utf-8")
SAMPLE = "Before\n<!-- first-screen -->\n```\n$ old\n```\n<!-- /first-screen -->\n```\nother\n```\n"


def test_the_first_screen_is_what_the_command_prints_now() -> None:
    shown = block_of(TEXT, FIRST_SCREEN)
    assert shown.splitlines()[:1] == [f"$ {COMMAND}"], "fill it: python -m tests.readme --write"
    assert shown == readme.session(COMMAND), "renew it: python -m tests.readme --write"


def test_every_make_command_names_targets() -> None:
    known = targets((ROOT / "Makefile").read_text(encoding="utf-8")).keys()
    shown = [words[1:] for text in (TEXT, MATHS) for words in readme.commands(text) if words[0] == "make"]
    assert {"demo", "test", "help"} <= {word for words in shown for word in words}
    assert [word for words in shown for word in words if "=" not in word and word not in known] == []


def test_every_penstock_command_would_be_understood() -> None:
    shown = [words[1:] for words in readme.commands(TEXT) if words[0] == "penstock" and len(words) > 2]
    assert {"plan", "profile"} <= {words[0] for words in shown}
    for words in shown:
        assert make_parser(words[0]).parse_args(words).command == words[0]


def test_every_penstock_command_exists() -> None:
    shown = {words[1] for words in readme.commands(TEXT) if words[0] == "penstock"}
    assert shown - {command.name for command in COMMANDS} == set()


def test_every_path_that_it_names_is_there() -> None:
    named = readme.places(TEXT)
    assert "deploy/samples/minimal" in named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", [readme.README, readme.MATHS], ids=["project", "maths"])
def test_every_link_leads_to_a_heading_or_a_file(path: Path) -> None:
    assert readme.dead_links(path.read_text(encoding="utf-8"), path.parent) == []


# ---------------------------------------------------------------- the tools themselves


def test_a_link_that_leads_nowhere_is_told() -> None:
    text = (
        "## (1) One, `two`\n[a](#1-one-two), [b](#2-one), [c](README.md), [d](not/there.py), [e](https://example.org/x)"
    )
    assert readme.dead_links(text, readme.README.parent) == ["#2-one", "not/there.py"]


def test_only_the_named_block_is_taken_and_replaced() -> None:
    assert block_of(SAMPLE, FIRST_SCREEN) == "$ old\n"
    assert with_block(SAMPLE, FIRST_SCREEN, "$ new \\1\n") == SAMPLE.replace("$ old\n", "$ new \\1\n")
    assert block_of(SAMPLE.replace("$ old\n", ""), FIRST_SCREEN) == ""


@pytest.mark.parametrize("text", ["", "<!-- first-screen -->\n<!-- /first-screen -->\n"])
def test_a_readme_without_the_block_is_told(text: str) -> None:
    with pytest.raises(NoBlock, match=r"README\.md has no fenced block"):
        block_of(text, FIRST_SCREEN)


def test_commands_are_found_in_fences_and_in_backticks_and_nowhere_else() -> None:
    text = (
        "`make crds chart` and `make`, make up\n"
        "```\nmake demo  # the operator\n$ penstock plan -f x\npip install .\n```\n"
        "`penstock` and `penstock explain -f DIR A/B`\n"
    )
    assert list(readme.commands(text)) == [
        ["make", "crds", "chart"],
        ["penstock", "explain", "-f", "DIR", "A/B"],
        ["make", "demo"],
        ["penstock", "plan", "-f", "x"],
    ]


def test_a_session_runs_only_our_command() -> None:
    with pytest.raises(ValueError, match="runs only penstock, not rm"):
        readme.session("rm -r x")
