"""The simulated cluster's binaries: found where they were built, and a clear word where they were not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simcluster.assets import COMPONENTS, MODULES_DIR, AssetsError, component_dir, find_assets


def pinned_version() -> str:
    """Return the version of Kubernetes in the go.mod that it is built from."""
    pinned = re.search(r"k8s\.io/kubernetes (v\S+)", (MODULES_DIR / "kubernetes" / "go.mod").read_text())
    assert pinned is not None
    return pinned[1]


def test_missing_binaries_name_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    with pytest.raises(AssetsError, match=r"lacks kubernetes, etcd, kwok, prometheus, helm in .*make setup"):
        find_assets()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetsError, match=r"no `go` on PATH; install Go 1\.26"):
        find_assets()


def test_an_old_go_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go1.21.0\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(AssetsError, match=r"`go` is go1\.21\.0; install Go 1\.26 or newer"):
        find_assets()


def test_the_folder_of_a_component_changes_with_the_go_version() -> None:
    folders = {component_dir(component, go) for component in COMPONENTS for go in ("go1.26.0", "go1.26.1")}
    assert len(folders) == 2 * len(COMPONENTS)


def test_the_stamped_version_is_the_pinned_one() -> None:
    kubernetes = next(component for component in COMPONENTS if component.name == "kubernetes")
    assert f"gitVersion={pinned_version()}" in kubernetes.linker_flags
