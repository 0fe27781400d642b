"""The rules of the house hold for every file of the repository, and each rule can tell good from bad."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from tests import house
from tests.house import ROOT

FILES = house.source_files()
NAMES = {path: str(path.relative_to(ROOT)) for path in FILES}
PYTHON = [path for path in FILES if path.suffix in {".py", ".pyi"}]
LOCKS = ("requirements.lock", "deploy/requirements.lock")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BENCHMARKS = sorted(path.stem for path in FILES if path.name.startswith("bench_"))


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- the repository


def test_the_files_of_the_repository_are_found() -> None:
    assert len(FILES) > 200
    assert {"README.md", "controller/cli.py", "solvers/planner/__init__.py", "tests/conftest.py"} <= set(NAMES.values())
    assert not any(name.startswith((".venv", ".git/")) for name in NAMES.values())


def test_only_what_belongs_there_is_at_the_top() -> None:
    assert house.strange_entries(name.partition("/")[0] for name in NAMES.values()) == []


def test_every_file_is_text_of_bounded_size() -> None:
    assert [fault for path, name in NAMES.items() for fault in house.unreadable(name, path.read_bytes())] == []


def test_no_file_names_hosts_places_or_secrets_or_says_that_work_is_left() -> None:
    texts = ((name, path.read_text(encoding="utf-8")) for path, name in NAMES.items())
    assert [fault for name, text in texts for fault in house.unwanted_text(name, text)] == []


def test_files_and_functions_fit_the_eye() -> None:
    sources = ((NAMES[path], path.read_text(encoding="utf-8")) for path in PYTHON)
    assert [fault for name, source in sources for fault in house.oversized(name, source)] == []


def test_nothing_is_mocked() -> None:
    sources = ((NAMES[path], path.read_text(encoding="utf-8")) for path in PYTHON)
    assert [fault for name, source in sources for fault in house.mocks(name, source)] == []


@pytest.mark.parametrize("name", LOCKS)
def test_every_dependency_is_pinned_with_hashes_and_no_address(name: str) -> None:
    text = _read(name)
    assert len(house.pins(text)) > 20
    assert list(house.unpinned(name, text)) == []


def test_the_image_gets_the_versions_that_the_tests_ran_with() -> None:
    tested, shipped = (house.pins(_read(name)) for name in LOCKS)
    assert {name: tested.get(name) for name in shipped} == shipped


def test_the_lock_holds_every_dependency_of_the_project() -> None:
    project = tomllib.loads(_read("pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[<>=!\[ ;]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names - house.pins(_read("requirements.lock")).keys() == set()


def test_make_help_tells_of_every_target() -> None:
    assert {"help", "setup", "test", "lint", "demo", "demo-short"} <= house.targets(MAKEFILE).keys()
    assert house.untold_targets(MAKEFILE) == []


def test_every_benchmark_has_a_target() -> None:
    assert len(BENCHMARKS) >= 3
    assert house.unlisted_benchmarks(BENCHMARKS, MAKEFILE) == []


# ---------------------------------------------------------------- the rules themselves

BAD_LINES = [
    ("https://files.python" + "hosted.org/packages/x.whl", "names a registry's host"),
    ("GOPROXY=https://proxy.go" + "lang.org", "names a registry's host"),
    ("image: gh" + "cr.io/someone/thing:1", "names a registry's host"),
    ("path = '/ro" + "ot/cache'", "names a place of one machine"),
    ("see /wo" + "rk/main/README.md", "names a place of one machine"),
    ("(/ho" + "me/me/x)", "names a place of one machine"),
    ("-----BEGIN RSA PRIVATE " + "KEY-----", "holds a private key"),
    ("-----BEGIN PRIVATE " + "KEY-----", "holds a private key"),
    ("key: AK" + "IAABCDEFGHIJKLMNOP", "holds a token"),
    ("token = gh" + "p_" + 36 * "a", "holds a token"),
    ("# TO" + "DO: later", "is not finished"),
]
GOOD_LINES = [
    "git clone https://github.com/someone/penstock",
    "require k8s.io/kubernetes v1.36.4",
    "image: vllm/vllm-openai:v0.22.0",
    "folder = ROOT / 'work' / 'root'",
    "~/work/penstock and $HOME/home/ and tests/home/x",
    "-----BEGIN CERTIFICATE-----",
    "the mastodon swallows XXL",
]


@pytest.mark.parametrize(("line", "what"), BAD_LINES)
def test_a_line_that_must_not_be_there_is_found(line: str, what: str) -> None:
    assert list(house.unwanted_text("a.txt", f"fine\n{line}\nfine\n")) == [f"a.txt:2: {what}"]


@pytest.mark.parametrize("line", GOOD_LINES)
def test_a_harmless_line_is_let_pass(line: str) -> None:
    assert list(house.unwanted_text("a.txt", line)) == []


def test_binaries_and_huge_files_are_found() -> None:
    assert house.unreadable("a", b"\x7fELF\0\0") == ["a: is binary"]
    assert house.unreadable("a", b"caf\xe9") == ["a: is binary"]
    assert house.unreadable("a", bytes(house.MAX_FILE_BYTES + 1))[0].startswith("a: has 524289 bytes")
    assert house.unreadable("a", "café, 41 200 W → ok\n".encode()) == []
    assert house.unreadable("a", b"") == []


def test_long_files_and_functions_are_found() -> None:
    body = "    x = 1\n"
    assert list(house.oversized("a.py", "x = 1\n" * 450)) == []
    assert list(house.oversized("a.py", "x = 1\n" * 451)) == ["a.py: has 451 lines, more than 450"]
    assert list(house.oversized("a.py", "def f():\n" + body * 59)) == []
    assert list(house.oversized("a.py", "x = 1\ndef f():\n" + body * 60)) == ["a.py:2: f has 61 lines, more than 60"]
    assert list(house.oversized("a.py", 'def f():\n    """One.\n\n    More.\n    """\n' + body * 59)) == []
    assert list(house.oversized("a_pb2.py", "x = 1\n" * 1000)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import unittest.mock",
        "from unittest import mock",
        "from unittest.mock import patch",
        "import pytest_mock",
        "import mock",
    ],
)
def test_mocks_are_found(line: str) -> None:
    assert list(house.mocks("a.py", f"import os\n{line}\n")) == ["a.py:2: imports a mock; write a fake"]


@pytest.mark.parametrize("line", ["from tests.fake_cluster import FakeCluster", "import hammock", "import unittest"])
def test_what_is_no_mock_is_let_pass(line: str) -> None:
    assert list(house.mocks("a.py", line)) == []


def test_strange_entries_are_found() -> None:
    assert house.strange_entries(["README.md", "tests", "notes.txt"]) == [
        "notes.txt: does not belong at the top of the repository"
    ]


GOOD_LOCK = f"""one==1.0 \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
    # via penstock (pyproject.toml)
two[extra]==2.0.post1 ; python_full_version < '3.12' \\
    --hash=sha256:{"c" * 64}
"""


def test_a_good_lock_is_let_pass() -> None:
    assert list(house.unpinned("lock", GOOD_LOCK)) == []
    assert house.pins(GOOD_LOCK) == {"one": "1.0", "two": "2.0.post1"}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("three==3.0", "lock: three==3.0 has no hash"),
        ("three>=3.0", "lock:7: is no pin and no hash: three>=3.0"),
        ("three", "lock:7: is no pin and no hash: three"),
        ("-e .", "lock:7: is no pin and no hash: -e ."),
        ("    --hash=md5:00", "lock:7: is no pin and no hash: --hash=md5:00"),
    ],
)
def test_a_lock_that_pins_too_little_is_found(line: str, what: str) -> None:
    assert list(house.unpinned("lock", GOOD_LOCK + line + "\n")) == [what]


def test_an_unhashed_pin_in_the_middle_is_found() -> None:
    assert list(house.unpinned("lock", "zero==0.1\n" + GOOD_LOCK)) == ["lock: zero==0.1 has no hash"]


def test_an_address_in_a_lock_is_found() -> None:
    faults = [*house.unpinned("lock", "--index-url https://example.com/simple\n"), *house.unpinned("lock", GOOD_LOCK)]
    assert faults[0] == "lock:1: holds a URL"
    assert len(faults) == 2


def test_targets_without_help_or_not_phony_are_found() -> None:
    makefile = "A := b\n.PHONY: help test\n\nhelp: ## Say it\n\t@x\n\ntest: setup\n\tpytest\n\nfile: x ## Make it\n"
    assert house.targets(makefile).keys() == {"help", "test", "file"}
    assert house.untold_targets(makefile) == ["Makefile: test has no help text", "Makefile: file is not in .PHONY"]


def test_a_benchmark_without_a_target_is_found() -> None:
    makefile = "bench-a: ## Time it\n\tpython -m tests.bench_a\n"
    assert house.unlisted_benchmarks(["bench_a"], makefile) == []
    assert house.unlisted_benchmarks(["bench_a", "bench_"], makefile) == ["Makefile: no target runs tests.bench_"]


def test_without_git_the_folder_itself_is_read(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.md", ".venv/lib.py", "x/__pycache__/c.pyc", ".mypy_cache/d", "p.egg-info/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert house.source_files(tmp_path) == [tmp_path / "a.py", tmp_path / "sub" / "b.md"]
