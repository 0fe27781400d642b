"""Render what is made from the chart: ``python -m tests.render_chart``.

=====================================  ==========================================================
written                                from
=====================================  ==========================================================
``charts/penstock/files/crds/*.yaml``  ``deploy/crds/*.yaml``, copied byte by byte
``deploy/operator.yaml``               the chart with its default values, without the definitions
``deploy/alerts.yaml``                 the chart's PrometheusRule
=====================================  ==========================================================

Needs the Helm binary of the simulated cluster (``make setup``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.simcluster.assets import COMPONENTS, find_assets

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "penstock"
CHART_CRDS = CHART / "files" / "crds"
CRDS = ROOT / "deploy" / "crds"
NAMESPACE = "penstock-system"

_HEAD = "# Rendered from charts/penstock by `python -m tests.render_chart`; do not edit.\n"
_NAMESPACE_OBJECT = f"""---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


class HelmError(RuntimeError):
    """Helm refused; the message is its own."""


def helm(*arguments: str) -> str:
    """Run Helm without a cluster and return what it prints.

    Raises
    ------
    HelmError
        With Helm's own words, when it fails.
    """
    (component,) = (each for each in COMPONENTS if "helm" in each.binaries)
    command = [str(find_assets((component,))["helm"]), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise HelmError(f"helm {' '.join(arguments)}: {done.stderr.strip()}{done.stdout.strip()}")
    return done.stdout


def template(*settings: str, show_only: str = "", release: str = "penstock", values: str = "") -> str:
    """Render the chart with ``--set`` settings, and a values file when given."""
    arguments = ["template", release, str(CHART), "--namespace", NAMESPACE]
    for setting in settings:
        arguments += ["--set", setting]
    arguments += ["--values", values] if values else []
    return helm(*arguments, *(["--show-only", f"templates/{show_only}"] if show_only else []))


def rendered() -> dict[Path, str]:
    """Text of every rendered file, by path; the chart's definitions are read from ``deploy/crds``."""
    files = {CHART_CRDS / path.name: path.read_text() for path in sorted(CRDS.glob("*.yaml"))}
    files[ROOT / "deploy" / "operator.yaml"] = _HEAD + _NAMESPACE_OBJECT + template("crds.install=false")
    alerts = template("metrics.alerts.enabled=true", show_only="prometheusrule.yaml")
    return files | {ROOT / "deploy" / "alerts.yaml": _HEAD + alerts}


def stale(wanted: Mapping[Path, str]) -> list[Path]:
    """Files that differ from ``wanted`` or, in the chart's folder of definitions, should not be there."""
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return sorted([*differing, *(path for path in CHART_CRDS.glob("*") if path not in wanted)])


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or with ``--check`` only say which are stale."""
    parser = argparse.ArgumentParser(prog="python -m tests.render_chart", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check = parser.parse_args(argv).check
    wanted = rendered()
    paths = stale(wanted)
    for path in paths:
        if not check:
            _write(path, wanted.get(path))
        print(f"{'stale' if check else 'wrote'} {path.relative_to(ROOT)}")
    return 1 if check and paths else 0


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
