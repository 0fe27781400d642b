"""Quantities of Kubernetes as whole numbers: extended resources as they are, CPU in thousandths, memory in bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

MULTIPLES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}
UNITS = {"cpu": 1000, "memory": 1}
"""Host resources that replicas may run out of, and how many of our units make one of theirs."""

MOST = Decimal(2**63 - 1)
"""What Kubernetes takes every larger quantity for."""

_FORM = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkKMGTPE]i?)?")

Amounts = dict[str, int]
Pick = Callable[[Mapping[str, Any] | None], Amounts]


def quantity(text: str) -> Decimal:
    """Read ``500m``, ``2Gi``, ``1e3``.

    Raises
    ------
    ValueError
        When it is none.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None or (found[2] or "") not in MULTIPLES:
        raise ValueError(f"{text!r} is no quantity")
    return max(-MOST, min(MOST, Decimal(found[1]) * MULTIPLES[found[2] or ""]))


def extended(resources: Mapping[str, Any] | None) -> Amounts:
    """Keep extended resources (``vendor.example/thing``), whole numbers by definition."""
    named = {name: int(quantity(str(amount))) for name, amount in (resources or {}).items() if "/" in name}
    return {name: amount for name, amount in named.items() if amount}


def host(resources: Mapping[str, Any] | None) -> Amounts:
    """Keep CPU (thousandths) and memory (bytes), rounded up."""
    found = {}
    for name, unit in UNITS.items():
        if name in (resources or {}):
            exact = quantity(str((resources or {})[name])) * unit
            found[name] = int(exact.to_integral_value(ROUND_CEILING))
    return found


def pod_amounts(spec: Mapping[str, Any], pick: Pick) -> Amounts:
    """Sum what the containers of a pod hold together; an init container counts where it asks for more than they do."""
    total: Amounts = {}
    for container in spec.get("containers") or ():
        for name, amount in _of_container(container, pick).items():
            total[name] = total.get(name, 0) + amount
    for container in spec.get("initContainers") or ():
        stays = container.get("restartPolicy") == "Always"  # a sidecar holds what it asks for beside the others
        for name, amount in _of_container(container, pick).items():
            total[name] = total.get(name, 0) + amount if stays else max(total.get(name, 0), amount)
    return total


def _of_container(container: Mapping[str, Any], pick: Pick) -> Amounts:
    resources = container.get("resources") or {}
    return {**pick(resources.get("limits")), **pick(resources.get("requests"))}
