"""Replicas that ask for more than GPUs onto nodes: CPU, memory, network ports, watts and spread per rack, KV locality.

Best fit by decreasing size comes first. Where all sizes in GPUs divide one another and nothing else binds, it places
everything that can be placed (see ``planner/bays/nodes.py``). When something is left over, node patterns decide
(``node_patterns.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from solvers.errors import InvalidInput
from solvers.packing.node_patterns import solve_by_patterns
from solvers.packing.rack_ledger import NodeRoom, ReplicaKind, Scene, best_fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Where replicas go.

    ``on_node`` has rows (kind, node, replicas), sorted. ``left`` counts what found no place, by kind; no other placing
    leaves less than ``least_left_worth`` behind, which is 0 where nothing is known.
    """

    on_node: tuple[tuple[str, str, int], ...]
    left: Mapping[str, int]
    left_worth: float
    least_left_worth: float

    @property
    def is_proved(self) -> bool:
        return self.left_worth <= self.least_left_worth + 1e-6 * max(1.0, self.left_worth)


def place_replicas(
    nodes: Sequence[NodeRoom], kinds: Sequence[ReplicaKind], *, rack_watts: Mapping[str, float] | None = None
) -> Placing:
    """Place as much as fits, by worth, and say what is left.

    Parameters
    ----------
    rack_watts : mapping of str to float, optional
        Watts that each rack can still take; racks that are not in it are not limited.

    Returns
    -------
    Placing
        Proved when nothing is left, or when the node patterns were few enough to be solved over.

    Raises
    ------
    InvalidInput
        Names are given twice, or numbers make no sense; the error names the node or kind.
    """
    _check(nodes, kinds, rack_watts or {})
    scene = Scene(nodes, kinds, rack_watts or {})
    wanted = float(scene.weight @ scene.demand)
    placed, least_left = best_fit(scene).placed, 0.0
    if wanted - scene.worth(placed) > 1e-9 and (solved := solve_by_patterns(scene)) is not None:
        found, most = solved
        placed = max((placed, found), key=scene.worth)
        least_left = max(0.0, wanted - most)
    left = {kind.name: int(n) for kind, n in zip(scene.kinds, scene.demand - placed.sum(axis=1), strict=True) if n}
    rows = [
        (scene.kinds[k].name, scene.nodes[n].name, int(placed[k, n])) for k, n in zip(*np.nonzero(placed), strict=True)
    ]
    left_worth = max(0.0, wanted - scene.worth(placed))
    return Placing(
        on_node=tuple(sorted(rows)),
        left=dict(sorted(left.items())),
        left_worth=left_worth,
        least_left_worth=min(least_left, left_worth),
    )


def _check(nodes: Sequence[NodeRoom], kinds: Sequence[ReplicaKind], rack_watts: Mapping[str, float]) -> None:
    for label, items in (("Node", nodes), ("replicas", kinds)):
        names = [item.name for item in items]
        if len(set(names)) < len(names):
            twice = min(name for name in names if names.count(name) > 1)
            raise InvalidInput(f"{label}/{twice}", "name", "is given twice", "give every one a name of its own")
        for item in items:
            for field in fields(item):
                value = getattr(item, field.name)
                if isinstance(value, int | float) and not (np.isfinite(value) and value >= 0):
                    raise InvalidInput(f"{label}/{item.name}", field.name, f"is {value}", "give 0 or more")
    others = [node.others for node in nodes] + [kind.others for kind in kinds]
    if len(lengths := {len(each) for each in others}) > 1:
        problem = f"have {sorted(lengths)} resources"
        raise InvalidInput("replicas", "others", problem, "give nodes and kinds the same ones, in one order")
    if bad := [amount for each in others for amount in each if amount < 0]:
        raise InvalidInput("replicas", "others", f"is {bad[0]}", "give 0 or more")
    for rack, watts in rack_watts.items():
        if not watts >= 0:
            raise InvalidInput(f"rack {rack}", "watts", f"are {watts}", "give 0 or more")
