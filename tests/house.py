"""Rules of the house that no linter knows, as functions from files or text to what is wrong with them.

Each finding is a sentence that starts with the place, ``file:line`` where there is a line.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = frozenset({
    *(".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml", "requirements.lock"),
    *("charts", "controller", "deploy", "protos", "solvers", "tests"),
})  # fmt: skip
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
MADE_HERE = frozenset({".git", ".venv", "build", "dist", "out", "__pycache__"})
"""Folders that are no part of the source; so are those that end in ``_cache`` or ``.egg-info``, and .hypothesis."""

MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 60
MAX_FILE_BYTES = 512 * 1024


# The patterns below are put together from pieces, so that this file does not find itself.
HOSTS = (
    *("pypi" + ".org", "pythonhosted" + ".org", "proxy.golang" + ".org", "sum.golang" + ".org", "goproxy" + ".io"),
    *("npmjs" + ".org", "crates" + ".io", "docker" + ".io", "ghcr" + ".io", "quay" + ".io", "gcr" + ".io"),
    *("pkg" + ".dev", "registry.k8s" + ".io"),
)
ANY_HOST = "|".join(map(re.escape, HOSTS))
TOKENS = (r"AKIA[0-9A-Z]{16}", r"gh[pousr]_\w{36}", r"xox[abprs]-[\w-]{10,}", r"eyJ[\w-]{20,}\.[\w-]{20,}\.")
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "names a registry's host": re.compile(rf"(?<![\w-])(?:[\w-]+\.)*(?:{ANY_HOST})(?![\w-])"),
    "names a place of one machine": re.compile(r"(?<![\w.$})~/-])/(?:root|work|home|Users)/"),
    "holds a private key": re.compile("-----BEGIN [A-Z ]*" + "PRIVATE KEY-----"),
    "holds a token": re.compile(rf"\b(?:{'|'.join(TOKENS)})"),
    "is not finished": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b"),
}
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[\w,]+\])?==([\w.!+-]+)(?:\s*;.*?)?\s*\\?$")
HASH = re.compile(r"^\s+--hash=sha256:[0-9a-f]{64}\s*\\?$")
TARGET = re.compile(r"^([A-Za-z][\w-]*):(?!=)(.*)$", re.MULTILINE)


def source_files(root: Path = ROOT) -> list[Path]:
    """Files that git tracks and that are there; without git every file that is not made here."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = b""
    tracked = [root / name for name in listed.decode().split("\0") if name]
    return sorted(path for path in tracked or _walk(root) if path.is_file())


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in MADE_HERE and not path.name.endswith(("_cache", ".egg-info", ".hypothesis")):
                yield from _walk(path)
        else:
            yield path


def strange_entries(names: Iterable[str]) -> list[str]:
    """Names at the top of the repository that do not belong there."""
    return [f"{name}: does not belong at the top of the repository" for name in sorted(set(names) - TOP_LEVEL)]


def unreadable(name: str, content: bytes) -> list[str]:
    """A file that people cannot read: binary, or too large."""
    if len(content) > MAX_FILE_BYTES:
        return [f"{name}: has {len(content)} bytes, more than {MAX_FILE_BYTES}"]
    try:
        is_text = b"\0" not in content and content.decode() is not None
    except UnicodeDecodeError:
        is_text = False
    return [] if is_text else [f"{name}: is binary"]


def unwanted_text(name: str, text: str) -> Iterator[str]:
    """Lines that name hosts of registries or places of a machine, hold secrets, or say that work is left."""
    for number, line in enumerate(text.splitlines(), start=1):
        yield from (f"{name}:{number}: {what}" for what, pattern in PATTERNS.items() if pattern.search(line))


def oversized(name: str, source: str) -> Iterator[str]:
    """A Python file, or functions in it, that are too long; generated code may be. Docstrings do not count."""
    if name.endswith(GENERATED):
        return
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        yield f"{name}: has {lines} lines, more than {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (n := _body_lines(node)) > MAX_FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {n} lines, more than {MAX_FUNCTION_LINES}"


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def mocks(name: str, source: str) -> Iterator[str]:
    """Imports of mocks: fakes that behave are what tests use here."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            modules = [f"{origin}.{alias.name}" for alias in node.names]
            if any("mock" in re.split(r"[._]", module) for module in modules):
                yield f"{name}:{node.lineno}: imports a mock; write a fake"


def unpinned(name: str, text: str) -> Iterator[str]:
    """Lines of a lock file that are no pin with hashes, or that say where to download from."""
    pin, hashes = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if "://" in line:
            yield f"{name}:{number}: holds a URL"
        if HASH.match(line):
            hashes += 1
        elif found := PIN.match(line):
            yield from _unhashed(name, pin, hashes)
            pin, hashes = found[0].rstrip(" \\"), 0
        elif line.strip() and not line.lstrip().startswith("#"):
            yield f"{name}:{number}: is no pin and no hash: {line.strip()[:60]}"
    yield from _unhashed(name, pin, hashes)


def _unhashed(name: str, pin: str, hashes: int) -> list[str]:
    return [f"{name}: {pin} has no hash"] if pin and not hashes else []


def pins(text: str) -> dict[str, str]:
    """Name → version of a lock file; one name may be pinned twice for different platforms, the last one counts."""
    found = (PIN.match(line) for line in text.splitlines())
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def targets(makefile: str) -> dict[str, str]:
    """Name → what stands behind its colon, of a Makefile's named targets."""
    return {match[1]: match[2] for match in TARGET.finditer(makefile)}


def untold_targets(makefile: str) -> list[str]:
    """Targets that ``make help`` does not tell about, or that are not declared phony."""
    phony = set(re.findall(r"[\w-]+", " ".join(re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE))))
    known = targets(makefile)
    untold = [f"Makefile: {name} has no help text" for name, rest in known.items() if not re.search(r"## \S", rest)]
    return untold + [f"Makefile: {name} is not in .PHONY" for name in sorted(known.keys() - phony)]


def unlisted_benchmarks(modules: Iterable[str], makefile: str) -> list[str]:
    """Benchmarks that no target runs."""
    run = set(makefile.split())
    return [f"Makefile: no target runs tests.{module}" for module in modules if f"tests.{module}" not in run]
