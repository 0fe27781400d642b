"""Keeps the README true: its first screen is what the command prints now.

``python -m tests.readme`` compares, ``python -m tests.readme --write`` puts in what the command prints.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MATHS = ROOT / "solvers" / "README.md"
FIRST_SCREEN = "first-screen"
COMMAND = "penstock plan -f deploy/samples/demo"
FENCE = "```"


class NoBlock(LookupError):
    """The README lacks a marked block."""


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n{FENCE}\w*\n)(.*?)({FENCE}\n<!-- /{name} -->)", re.DOTALL)


def block_of(text: str, name: str) -> str:
    """Give what stands in the fence between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises
    ------
    NoBlock
        When there is no such fence.
    """
    found = _pattern(name).search(text)
    if found is None:
        raise NoBlock(f"README.md has no fenced block between <!-- {name} --> and <!-- /{name} -->")
    return found[2]


def with_block(text: str, name: str, content: str) -> str:
    """Put other lines into the fence of that name; the same errors as ``block_of``."""
    block_of(text, name)
    return _pattern(name).sub(lambda found: found[1] + content + found[3], text)


def session(command: str) -> str:
    """Run a command of ours in the repository's root, and give what a terminal shows, without what is warned of.

    Raises
    ------
    subprocess.CalledProcessError
        When its exit code is not 0: the README shows what works.
    """
    name, *arguments = shlex.split(command)
    if name != "penstock":
        raise ValueError(f"runs only penstock, not {name}")
    whole = [sys.executable, "-m", "controller", *arguments]
    done = subprocess.run(whole, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    return f"$ {command}\n{done.stdout}"


def commands(text: str) -> Iterator[list[str]]:
    """Words of every ``make`` and ``penstock`` command that the README shows, in fences and in backticks.

    >>> list(commands("Say `make demo`:\\n```\\n$ penstock plan -f DIR  # why\\n```\\n"))
    [['make', 'demo'], ['penstock', 'plan', '-f', 'DIR']]
    """
    fenced = re.findall(rf"^{FENCE}\w*\n(.*?)^{FENCE}$", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(rf"^{FENCE}.*?^{FENCE}$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [*re.findall(r"`([^`\n]+)`", prose), *(line for fence in fenced for line in fence.splitlines())]
    for line in lines:
        if re.match(r"(\$ )?(make|penstock) [a-z]", line):
            yield [word for word in shlex.split(line, comments=True) if word != "$"]


def places(text: str) -> list[str]:
    """Paths of this repository that the README names in backticks."""
    heads = "|".join(sorted(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir()))
    return re.findall(rf"`((?:{heads})/[\w./-]*)`", text)


def anchors(text: str) -> set[str]:
    """What a link to a heading of the text may say behind ``#``.

    >>> anchors("# A, b\\n## (1) The `c_d`\\n")  == {"a-b", "1-the-c_d"}
    True
    """
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(text: str, folder: Path) -> list[str]:
    """Links of a text in that folder to headings that it does not have, or to files that are not there."""
    known = anchors(text)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    return [link for link in links if not (link[1:] in known if link[0] == "#" else (folder / link).exists())]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.readme", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put in what the command prints now")
    options = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    renewed = with_block(text, FIRST_SCREEN, session(COMMAND))
    if options.write:
        README.write_text(renewed, encoding="utf-8")
    elif renewed != text:
        print(*difflib.unified_diff(text.splitlines(), renewed.splitlines(), "README.md", "now", lineterm=""), sep="\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
