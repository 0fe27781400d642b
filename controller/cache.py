"""What the watches have seen, kept true by lists of our own.

A watch never reports what vanished while it was blind: after a relist of its own (events without a type) the objects
that are gone stay as ghosts. So every kind is also listed here, regularly and after every such event, and what the
list lacks is dropped unless it is newer than the list. Nobody acts on a cache that is not ``is_settled``.

The first pass of a watch is no such event: it repeats, object by object, a list that ours came just before. Meanwhile
our own list is the truth, renewed often because typed events queue behind thousands of untyped ones; when the pass has
been quiet for a while, one more list drops what went between the two.

Resource versions order events: per-object deliveries may overtake each other when a name is used again at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast

from controller.client import Expired, KubeClient
from controller.kinds import KINDS, Body, Kind, ObjectRecord, PlanRecord, Record, essence, is_minor, key_of, version_of
from controller.records import DeploymentRecord, NodeRecord, PodRecord

QUIET_S = 0.3  # events of one relist follow each other closely; list once, after the last of them
PASS_QUIET_S = 5.0  # the first pass of a watch is over; a busy process may well stall for a second or two
PASS_RELIST_S = 15.0  # age at which a list is renewed while the first pass goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheView:
    """All records at one moment, by ``namespace/name`` or name; safe to keep."""

    nodes: Mapping[str, NodeRecord]
    pods: Mapping[str, PodRecord]
    deployments: Mapping[str, DeploymentRecord]
    plans: Mapping[str, PlanRecord]
    objects: Mapping[str, Mapping[str, ObjectRecord]]


@dataclass(slots=True)
class _Shelf:
    """Records of one kind."""

    records: dict[str, tuple[int, Record]] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)  # key → version of its deletion, until a newer list
    suspicions: int = 1  # rises with every event that says the watch was blind; a new cache is blind
    settled: int = 0  # the suspicions that the last list answered
    suspected_at_s: float = 0.0
    listed_at_s: float = float("-inf")
    list_version: int = 0
    passed: set[str] | None = None  # keys that the watch's first pass has brought; None when it is over
    passed_at_s: float = 0.0  # when the watch began, or the first pass last brought something


class Cache:
    """Thread-safe: watches write, the loop lists and reads.

    Parameters
    ----------
    on_change : callable
        Called with the kind's name after a change that means something.
    relist_s : float
        Age at which a kind is listed again.
    """

    def __init__(
        self,
        on_change: Callable[[str], None] = lambda kind: None,
        *,
        kinds: Sequence[Kind] = KINDS,
        relist_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self._shelves = {kind.name: _Shelf() for kind in kinds}
        self._on_change, self._relist_s, self._clock = on_change, relist_s, clock
        self._changed = threading.Condition(threading.RLock())

    def begin_pass(self) -> None:
        """Expect the first pass of watches that begin now; ours must be listed before anybody acts, as ever."""
        with self._changed:
            for shelf in self._shelves.values():
                shelf.passed, shelf.passed_at_s = set(), self._clock()

    def see(self, kind: str, event_type: str | None, body: Body) -> None:
        """Take one watch event; no type means that the watch begins anew and may have missed deletions."""
        shelf, key, version = self._shelves[kind], key_of(body), version_of(body)
        record = None if event_type == "DELETED" else self._kinds[kind].reduce(body)
        with self._changed:
            is_blind = event_type is None and not self._is_of_pass(shelf, key)
            if is_blind:
                shelf.suspicions += 1
                shelf.suspected_at_s = self._clock()
            elif event_type is not None and not shelf.passed:
                shelf.passed = None  # there was nothing to pass: typed events come after all untyped ones
            changed = self._put(shelf, key, version, record)
        if changed or is_blind:
            self._on_change(kind)

    def wrote(self, kind: str, body: Body) -> None:
        """Take in what the API server answered to a write of ours, before the watch tells of it."""
        with self._changed:
            self._put(self._shelves[kind], key_of(body), version_of(body), self._kinds[kind].reduce(body))

    def suspect(self, kind: str) -> None:
        """Trust a kind no more until it was listed again."""
        with self._changed:
            self._shelves[kind].suspicions += 1

    def suspect_all(self) -> None:
        """Trust nothing until every kind was listed again: the watches were interrupted."""
        for kind in self._kinds:
            self.suspect(kind)

    def scaled(self, key: str, replicas: int, version: int) -> None:
        """Take in our own write of a Deployment's replicas, before the watch tells of it."""
        with self._changed:
            shelf = self._shelves["Deployment"]
            known_version, record = shelf.records.get(key, (0, None))
            if isinstance(record, DeploymentRecord) and version >= known_version:
                self._put(shelf, key, version, replace(record, replicas=replicas, replicas_manager="penstock-scale"))

    def is_settled(self) -> bool:
        """Say whether every kind was listed since its watch last began anew."""
        with self._changed:
            return all(shelf.settled == shelf.suspicions for shelf in self._shelves.values())

    def due(self) -> tuple[str, ...]:
        """Name the kinds to list now: suspected ones once their events are quiet, others when their list is old."""
        with self._changed:
            return tuple(name for name, shelf in self._shelves.items() if self._is_due(shelf))

    def refresh(self, client: KubeClient) -> None:
        """List what is due.

        Raises
        ------
        ApiError, Unreachable
            The kinds not listed yet stay due.
        """
        for name in self.due():
            self.list_again(name, client)

    def list_again(self, kind: str, client: KubeClient) -> None:
        """List one kind and drop what the list lacks and is not newer than it."""
        shelf = self._shelves[kind]
        with self._changed:
            answered, ends_pass = shelf.suspicions, self._is_quiet(shelf)
        listed, list_version = self._fetch(self._kinds[kind], client)
        with self._changed:
            changed = self._replace(shelf, listed, list_version)
            shelf.settled, shelf.listed_at_s, shelf.list_version = answered, self._clock(), list_version
            shelf.passed = None if ends_pass else shelf.passed
        if changed:
            self._on_change(kind)

    def view(self) -> CacheView:
        """Copy the shelves; the records themselves are immutable."""
        with self._changed:
            plain: dict[str, Mapping[str, Record]] = {
                name: MappingProxyType({key: record for key, (_, record) in sorted(shelf.records.items())})
                for name, shelf in self._shelves.items()
            }
        return CacheView(
            nodes=cast(Mapping[str, NodeRecord], plain.pop("Node", {})),
            pods=cast(Mapping[str, PodRecord], plain.pop("Pod", {})),
            deployments=cast(Mapping[str, DeploymentRecord], plain.pop("Deployment", {})),
            plans=cast(Mapping[str, PlanRecord], plain.pop("FleetPlan", {})),
            objects=cast(Mapping[str, Mapping[str, ObjectRecord]], plain),
        )

    def wait_for(self, claim: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a claim about the cache holds; False when it did not in time."""
        with self._changed:
            return self._changed.wait_for(claim, timeout_s)

    def pod(self, key: str) -> PodRecord | None:
        """Look one pod up."""
        with self._changed:
            found = self._shelves["Pod"].records.get(key)
            return cast(PodRecord, found[1]) if found else None

    def deployment(self, key: str) -> DeploymentRecord | None:
        """Look one Deployment up."""
        with self._changed:
            found = self._shelves["Deployment"].records.get(key)
            return cast(DeploymentRecord, found[1]) if found else None

    def _is_due(self, shelf: _Shelf) -> bool:
        now_s = self._clock()
        if shelf.settled != shelf.suspicions:
            return now_s - shelf.suspected_at_s >= QUIET_S or shelf.settled == 0
        if shelf.passed:
            return self._is_quiet(shelf) or now_s - shelf.listed_at_s >= min(PASS_RELIST_S, self._relist_s)
        return now_s - shelf.listed_at_s >= self._relist_s

    def _is_quiet(self, shelf: _Shelf) -> bool:
        return self._clock() - shelf.passed_at_s >= PASS_QUIET_S

    def _is_of_pass(self, shelf: _Shelf, key: str) -> bool:
        """Say whether an untyped event is of the first pass, and note it; an object that comes again ends the pass."""
        if shelf.passed is None or key in shelf.passed:
            shelf.passed = None
            return False
        shelf.passed.add(key)
        shelf.passed_at_s = self._clock()
        return True

    def _put(self, shelf: _Shelf, key: str, version: int, record: Record | None) -> bool:
        """Take one object's newest state; older news than what is known changes nothing."""
        known_version, known = shelf.records.get(key, (shelf.gone.get(key, 0), None))
        if version < known_version:
            return False
        if record is None:
            shelf.records.pop(key, None)
            shelf.gone[key] = version
        else:
            shelf.gone.pop(key, None)
            shelf.records[key] = (version, record)
        changed = (known is None) != (record is None) or (
            known is not None and record is not None and essence(known) != essence(record)
        )
        if changed:
            self._changed.notify_all()
        return changed and not (is_minor(known or record) and is_minor(record or known))

    def _replace(self, shelf: _Shelf, listed: Mapping[str, tuple[int, Record | None]], list_version: int) -> bool:
        if list_version < shelf.list_version:  # the storage itself went back (a restored backup): versions start over
            shelf.records.clear()
            shelf.gone.clear()
        ghosts = [key for key, (version, _) in shelf.records.items() if key not in listed and version <= list_version]
        changed = [self._put(shelf, key, list_version, None) for key in ghosts]
        changed += [self._put(shelf, key, version, record) for key, (version, record) in listed.items()]
        shelf.gone = {key: version for key, version in shelf.gone.items() if version > list_version}
        return any(changed)

    @staticmethod
    def _fetch(kind: Kind, client: KubeClient) -> tuple[dict[str, tuple[int, Record | None]], int]:
        """List a kind page by page, each page reduced at once; begin again when the list expired half-way."""
        for _ in range(3):
            try:
                return _reduce_pages(kind, client.list_pages(kind.path, kind.selector))
            except Expired:
                continue
        return _reduce_pages(kind, client.list_pages(kind.path, kind.selector))


def _reduce_pages(
    kind: Kind, pages: Iterable[tuple[Sequence[Body], str]]
) -> tuple[dict[str, tuple[int, Record | None]], int]:
    found: dict[str, tuple[int, Record | None]] = {}
    list_version = 0
    for items, version in pages:
        list_version = int(version or 0)
        found.update({key_of(body): (version_of(body), kind.reduce(body)) for body in items})
    return found, list_version
