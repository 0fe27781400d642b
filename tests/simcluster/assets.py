"""Build the simulated cluster's binaries from their published Go modules, into a cache outside the repository.

Each folder below ``go/`` is a Go module that pins one component by ``go.mod`` and ``go.sum``. A component is built
with the ordinary ``go`` tool into a folder named for the hash of these two files, the build flags and the Go version,
so that two checkouts share what is equal and never mix what is not. ``python -m tests.simcluster.assets`` builds what
is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES_DIR = Path(__file__).parent / "go"
MINIMUM_GO = (1, 26)
REMEDY = "run `make setup` (it builds the simulated cluster; about 10 minutes on two cores the first time)"

_KUBERNETES_VERSION = "v1.36.4"  # as in go/kubernetes/go.mod; a test holds the two together


def _kubernetes_linker_flags() -> str:
    """Stamp the version: without it `kubectl version` and Helm's kubeVersion checks see v0.0.0."""
    major, minor, _ = _KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": _KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w"] + [f"-X {package}.{key}={value}" for package in packages for key, value in values.items()]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One Go module of ours, and the binaries that it yields."""

    name: str
    binaries: tuple[str, ...]
    linker_flags: str = "-s -w"
    tags: str = ""
    # `go install` names a binary after the last element of its path, less the major version.
    renames: tuple[tuple[str, str], ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        tags = (f"-tags={self.tags}",) if self.tags else ()
        return ("-trimpath", "-buildvcs=false", f"-ldflags={self.linker_flags}", *tags)


COMPONENTS = (
    Component(
        name="kubernetes",
        binaries=("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
        linker_flags=_kubernetes_linker_flags(),
    ),
    Component(name="etcd", binaries=("etcd",), renames=(("server", "etcd"),)),
    Component(name="kwok", binaries=("kwok",)),
    # The tags leave out the discovery of clouds: static and file targets are all that is needed here.
    Component(name="prometheus", binaries=("prometheus", "promtool"), tags="remove_all_sd,enable_kubernetes_sd"),
    Component(name="helm", binaries=("helm",)),
)


class AssetsError(RuntimeError):
    """The binaries cannot be found or built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """Where each binary lies."""

    paths: Mapping[str, Path]

    def __getitem__(self, binary: str) -> Path:
        return self.paths[binary]


def cache_dir() -> Path:
    """Return the folder that holds the built components: ``$PENSTOCK_CACHE``, else the user's cache."""
    if chosen := os.environ.get("PENSTOCK_CACHE"):
        return Path(chosen).expanduser().absolute() / "simcluster"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "penstock" / "simcluster"


def go_version() -> str:
    """Return the Go tool's version, such as ``go1.26.8``.

    Raises
    ------
    AssetsError
        If there is no Go tool, or one too old to build Kubernetes.
    """
    wanted = ".".join(str(part) for part in MINIMUM_GO)
    if shutil.which("go") is None:
        raise AssetsError(f"no `go` on PATH; install Go {wanted} or newer (https://go.dev/dl), then {REMEDY}")
    version = subprocess.run(
        ["go", "env", "GOVERSION"], env=_build_environment(), check=True, capture_output=True, text=True
    ).stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < MINIMUM_GO:
        raise AssetsError(f"`go` is {version or 'of unknown version'}; install Go {wanted} or newer, then {REMEDY}")
    return version


def component_dir(component: Component, version: str) -> Path:
    """Return the folder of a built component, named for everything that decides its content."""
    digest = hashlib.sha256()
    for part in (*_module_files(component), version.encode(), "\n".join(component.flags).encode()):
        digest.update(hashlib.sha256(part).digest())
    return cache_dir() / f"{component.name}-{digest.hexdigest()[:16]}"


def find_assets(components: Sequence[Component] = COMPONENTS) -> Assets:
    """Return the paths of all binaries, building nothing.

    Raises
    ------
    AssetsError
        If a component has not been built for the pinned versions; the message says how.
    """
    version = go_version()
    folders = {component: component_dir(component, version) for component in components}
    if missing := [component.name for component, folder in folders.items() if not folder.is_dir()]:
        raise AssetsError(f"the simulated cluster lacks {', '.join(missing)} in {cache_dir()}; {REMEDY}")
    return Assets(paths={binary: folder / binary for c, folder in folders.items() for binary in c.binaries})


def build_assets(components: Sequence[Component] = COMPONENTS, *, say: Callable[[str], None] = print) -> Assets:
    """Build what is missing, one component after the other, and return the paths of all binaries.

    Raises
    ------
    AssetsError
        If Go is missing or too old, or a build fails; the message ends with what the Go tool said.
    """
    version = go_version()
    with _lock(cache_dir(), say):
        for abandoned in cache_dir().glob(".*-*"):  # by a build that was killed: we hold the lock
            shutil.rmtree(abandoned)
        for component in components:
            _build(component, component_dir(component, version), say)
    return find_assets(components)


def _build(component: Component, folder: Path, say: Callable[[str], None]) -> None:
    if folder.is_dir():
        return say(f"{component.name:<11} ready in {folder}")
    say(f"{component.name:<11} building {', '.join(component.binaries)} ...")
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{component.name}-", dir=folder.parent) as scratch:
        _go_install(component, Path(scratch))
        for built, wanted in component.renames:
            (Path(scratch) / built).rename(Path(scratch) / wanted)
        _check_complete(component, Path(scratch))
        # TemporaryDirectory wants its folder back at the end: move a child of it, not itself.
        done = Path(scratch) / "done"
        done.mkdir()
        for binary in component.binaries:
            (Path(scratch) / binary).rename(done / binary)
        done.rename(folder)
    return say(f"{component.name:<11} built in {time.monotonic() - started_s:.0f} s")


def _go_install(component: Component, target: Path) -> None:
    done = subprocess.run(
        ["go", "install", *component.flags, "tool"],
        cwd=MODULES_DIR / component.name,
        env=_build_environment() | {"GOBIN": str(target)},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise AssetsError(f"building {component.name} failed; check the network and the disk, then {REMEDY}\n{tail}")


def _check_complete(component: Component, folder: Path) -> None:
    if missing := [binary for binary in component.binaries if not (folder / binary).is_file()]:
        raise AssetsError(f"building {component.name} yielded no {', '.join(missing)}; see its tools in go.mod")


def _build_environment() -> dict[str, str]:
    """Build with the installed Go and no C compiler; what the user says of proxies and caches holds."""
    return dict(os.environ) | {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOWORK": "off"}


def _module_files(component: Component) -> Iterator[bytes]:
    folder = MODULES_DIR / component.name
    return (path.read_bytes() for path in (folder / "go.mod", folder / "go.sum"))


@contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one builder at a time into the cache; the lock goes with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {folder} ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    """Tell of progress on stderr: stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simcluster.assets", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="build nothing; fail if something is missing")
    parser.add_argument("--list", action="store_true", help="print the path of each binary rather than the folder")
    options = parser.parse_args(arguments)
    try:
        assets = find_assets() if options.check else build_assets(say=_say)
    except AssetsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in assets.paths.values()) if options.list else cache_dir())
    return 0


if __name__ == "__main__":
    sys.exit(main())
