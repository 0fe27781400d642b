"""What happens to a fleet from outside while it serves: failures, drains, cold starts and power caps, at any moment.

Given ones are listed by the user. Random failures are drawn by seed for every GPU of the inventory, whoever holds it:
two policies that are compared meet the same broken GPUs at the same seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

import numpy as np

from solvers.errors import InvalidInput
from solvers.fleet import Node, PoolKey

SECONDS_PER_HOUR = 3600.0
LEAST_GAP_S = 0.01  # on average, between failures drawn for the whole fleet


class What(StrEnum):
    """Kinds of incidents."""

    FAIL = "fail"  # gone at once; its requests begin again elsewhere, and its Deployment starts another
    DRAIN = "drain"  # one is asked for less: it takes nothing new, and leaves when it is empty
    START = "start"  # one is asked for more: it comes after its cold start
    CAP = "cap"  # a power cap on each GPU, beside the one that the policy sets; the lower holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One thing that happens. What is not named matches all.

    Attributes
    ----------
    pool : str
        As tables show it, or its beginning: ``NAMESPACE/NAME`` is every pool of a service.
    location, node, replica : str
        Exact names.
    slot : int or None
        The GPU of ``node`` that breaks, counted over the replicas there from the oldest on; idle GPUs come last.
    count : int or None
        How many replicas, the oldest first; None is every one that matches.
    cap_watts : float or None
        Of each GPU; None lifts the cap that an incident with the same names has set.
    repair_s : float
        How long the GPUs of a failed replica are out of use.
    where : str
        File and line, for errors.
    """

    at_s: float
    what: What
    pool: str = ""
    location: str = ""
    node: str = ""
    replica: str = ""
    slot: int | None = None
    count: int | None = 1
    cap_watts: float | None = None
    repair_s: float = 0.0
    where: str = "incident"

    @property
    def names(self) -> tuple[str, str, str, str]:
        """What it is aimed at: pool, location, node, replica."""
        return self.pool, self.location, self.node, self.replica

    @property
    def is_of_hosts(self) -> bool:
        """True when all of a node or location is meant, whoever is there: then its idle GPUs fail too."""
        return self.count is None and not self.pool and not self.replica and bool(self.node or self.location)

    @property
    def target(self) -> str:
        """What it is aimed at, in words."""
        pool = self.replica or self.pool or "every pool"
        slot = "" if self.slot is None else f" GPU {self.slot}"
        return (
            pool + (f" on {self.node}{slot}" if self.node else "") + (f" at {self.location}" if self.location else "")
        )

    def matches(self, pool: PoolKey, location: str, node: str, replica: str) -> bool:
        """Whether a replica is meant."""
        text = str(pool)
        is_pool = not self.pool or text == self.pool or text.startswith(self.pool + "/")
        pairs = ((self.location, location), (self.node, node), (self.replica, replica))
        return is_pool and all(name in ("", given) for name, given in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Random failures: each GPU breaks after exponential times of this mean, and is out of use for ``repair_s``."""

    gpu_mtbf_hours: float
    repair_s: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """An incident as it went: replicas that it hit, and requests that had to begin again."""

    incident: Incident
    replicas: tuple[str, ...]
    begun_again: int


class Timeline:
    """Incidents in order of time, those of equal times as they were given and drawn failures last.

    Raises
    ------
    InvalidInput
        When a mean time between failures or a time to repair is none.
    """

    def __init__(self, given: Sequence[Incident], failures: Failures | None, nodes: Sequence[Node]) -> None:
        self._given = deque(sorted(given, key=lambda incident: incident.at_s))
        self._drawn = iter(()) if failures is None else _drawn(failures, nodes)
        self._next = next(self._drawn, None)

    @property
    def next_s(self) -> float:
        """Second of the next incident; infinity when there is none."""
        given_s = self._given[0].at_s if self._given else inf
        return min(given_s, self._next.at_s if self._next else inf)

    @property
    def left(self) -> int:
        """Given incidents that did not happen yet."""
        return len(self._given)

    def due(self, now_s: float) -> Iterator[Incident]:
        """Take what happens up to now."""
        while self.next_s <= now_s:
            if self._given and self._given[0].at_s <= self.next_s:
                yield self._given.popleft()
            elif self._next is not None:
                yield self._next
                self._next = next(self._drawn, None)


def _drawn(failures: Failures, nodes: Sequence[Node]) -> Iterator[Incident]:
    """Failures without end: exponential gaps over all GPUs together, each GPU alike."""
    mtbf_s, repair_s = SECONDS_PER_HOUR * failures.gpu_mtbf_hours, failures.repair_s
    if not 0 < mtbf_s < inf or not 0 <= repair_s < inf:
        problem = f"are one in {failures.gpu_mtbf_hours} GPU hours, each repaired in {repair_s} s"
        raise InvalidInput("failures", "", problem, "give hours above 0 and 0 or more seconds")
    places = [(node.name, slot) for node in sorted(nodes, key=lambda n: n.name) for slot in range(node.gpus_usable)]
    if places and mtbf_s / len(places) < LEAST_GAP_S:
        problem = f"are one in {failures.gpu_mtbf_hours} GPU hours, {len(places) / mtbf_s:.3g} a second of the fleet"
        raise InvalidInput("failures", "", problem, f"give hours that leave {LEAST_GAP_S} s between them")
    rng, at_s = np.random.default_rng(failures.seed), 0.0
    while places:
        at_s += float(rng.exponential(mtbf_s / len(places)))
        node, slot = places[int(rng.integers(len(places)))]
        yield Incident(at_s=at_s, what=What.FAIL, node=node, slot=slot, repair_s=repair_s, where="--mtbf-hours")
