"""Links between the replicas of a fleet, and the ways over which its prefill and decode replicas pair."""

from __future__ import annotations

from collections.abc import Mapping

from solvers.engine import Role
from solvers.errors import InvalidInput
from solvers.simulate.books import FleetBooks
from solvers.simulate.kernel.records import INTO, OUT, OWN, Way
from solvers.simulate.kernel.routing import number_group
from solvers.simulate.tables import TICKS_PER_S

ROLES = (Role.MIXED, Role.PREFILL, Role.DECODE)  # in the kernel's order
STRIDE = 1 << 20
LEAST_SHARE = 1e-6  # of all requests; less is no share

Pair = tuple[str, str]
"""Domains of prefill and of decode replicas."""

MIXED_WAY: Pair = ("", "*")  # a name that no two domains have


class FleetWays(FleetBooks):
    """What lies between replicas; see ``Fleet``."""

    def __init__(
        self, *, itl_limits_s: Mapping[str, float], policies: Mapping[str, int], record_runs: bool, compiled: bool
    ) -> None:
        super().__init__(itl_limits_s=itl_limits_s, policies=policies, record_runs=record_runs, compiled=compiled)
        self._used = {"groups": 0}
        self._links: dict[str, tuple[int, float]] = {}
        self._crossings: dict[str, tuple[int, int, float]] = {}
        self._domains: dict[tuple[int, str], int] = {}
        self._ways: dict[int, dict[Pair, int]] = {}
        self._last_way: dict[int, int] = {}
        self._link_count = self._way_count = 0

    # ------------------------------------------------------------------ links

    def add_link(self, link: str, bytes_per_s: float) -> None:
        """Declare a link that prefill replicas share; its transfers go on all at once, in equal shares.

        Raises
        ------
        InvalidInput
            When the name is taken or nothing fits through.
        """
        self._check_link(link, bytes_per_s)
        self._links[link] = (self._new_link(is_shared=1), bytes_per_s)

    def add_crossing(self, link: str, bytes_per_s: float) -> None:
        """Declare a link that ways cross; it carries so much each way, all transfers at once in equal shares.

        Raises
        ------
        InvalidInput
            When the name is taken or nothing fits through.
        """
        self._check_link(link, bytes_per_s)
        out, into = (self._new_link(is_shared=1, leg=leg) for leg in (OUT, INTO))
        self._crossings[link] = (out, into, bytes_per_s)

    def _check_link(self, link: str, bytes_per_s: float) -> None:
        is_taken = link in self._links or link in self._crossings
        if is_taken or not bytes_per_s > 0:
            problem = "exists already" if is_taken else f"carries {bytes_per_s} bytes a second"
            raise InvalidInput(f"link/{link}", "", problem, "give each link one name and a bandwidth above 0")

    def _new_link(self, *, is_shared: int, leg: int = OWN) -> int:
        index = self._link_count
        self._link_count += 1
        self._memory.entity("link", index)
        self._memory.add("links", index, is_shared=is_shared, leg=leg, free=int(self._memory.state.now))
        return index

    # ------------------------------------------------------------------ ways

    def add_way(
        self,
        service: str,
        giver: str,
        receiver: str,
        *,
        out: str | None = None,
        into: str | None = None,
        bytes_per_token: float = 0.0,
    ) -> None:
        """Let prefill replicas of a domain hand prompts to decode replicas of a domain.

        From its first way on a service pairs nothing else; its mixed replicas go on. Ways have no share of the requests
        until ``share_out`` gives them one: they are open only when no other one is, the first declared first.

        Parameters
        ----------
        out, into : str, optional
            Declared crossings (``add_crossing``) that it leaves the one place and comes into the other by, beside the
            link of the prefill replica. It has landed when each of them has carried all of it.
        bytes_per_token : float
            What each prompt token has on those.

        Raises
        ------
        InvalidInput
            When the way exists, or a crossing is not declared.
        """
        where = f"way/{service}/{giver}-{receiver}"
        s = self._service(service)
        ways = self._ways.setdefault(s, {})
        if (giver, receiver) in ways:
            raise InvalidInput(where, "", "exists already", "declare each way once")
        for name in (out, into):
            if name is not None and name not in self._crossings:
                raise InvalidInput(where, "", f"names no crossing: {name!r}", "declare it first")
        if not ways:
            home = int(self._memory["services"][s].home)
            ways[MIXED_WAY] = self._append_way(s, giver=home, receiver=home)
        over = {}
        for leg, name in (("out", out), ("into", into)):
            if name is not None:
                *both, bytes_per_s = self._crossings[name]
                over[f"{leg}_link"] = both[leg == "into"]
                over[f"{leg}_transfer"] = round(bytes_per_token * TICKS_PER_S / bytes_per_s)
        ways[giver, receiver] = self._append_way(
            s, giver=self._group(s, Role.PREFILL, giver), receiver=self._group(s, Role.DECODE, receiver), **over
        )

    def _append_way(self, s: int, **fields: int) -> int:
        index, service = self._way_count, self._memory["services"][s]
        self._way_count += 1
        self._memory.add("ways", index, turn=int(service.turn), **fields)
        if s in self._last_way:
            self._memory["ways"][self._last_way[s]].next = index
        else:
            service.first_way = index
        self._last_way[s] = index
        return index

    def share_out(self, service: str, mixed: float, shares: Mapping[Pair, float]) -> None:
        """Say how a service's requests go over its ways from now on, in any unit; what is not named gets none.

        Parameters
        ----------
        mixed : float
            What goes to mixed replicas.
        shares : mapping of (giver, receiver) to float

        Raises
        ------
        InvalidInput
            When a way is not declared, or a share is negative.
        """
        s = self._service(service)
        ways = self._ways.get(s, {})
        asked = {MIXED_WAY: mixed, **shares}
        for pair, share in asked.items():
            if pair not in ways or not share >= 0.0:
                problem = f"has a share of {share}" if pair in ways else "is not declared"
                raise InvalidInput(f"way/{service}/{'-'.join(pair)}", "", problem, "add it; give shares of 0 or more")
        total = sum(asked.values())
        for pair, index in ways.items():
            share = asked.get(pair, 0.0) / total if total > 0.0 else 0.0
            way: Way = self._memory["ways"][index]
            stride = round(STRIDE / share) if share >= LEAST_SHARE else 0
            if way.stride != stride:
                way.stride, way.turn = stride, int(self._memory["services"][s].turn) + stride // 2

    # ------------------------------------------------------------------ groups

    def _group(self, s: int, role: Role, domain: str) -> int:
        """Group of the replicas of a role in a domain of a service; one for all mixed ones, and without a domain."""
        home = int(self._memory["services"][s].home)
        if role is not Role.MIXED and domain:
            if (s, domain) not in self._domains:
                self._domains[s, domain] = self._add_groups(s)
            home = self._domains[s, domain]
        return home + ROLES.index(role)

    def _widen_group(self, g: int) -> None:
        """Make room for one more replica in a group, at a new place when the old one is full."""
        self._members[g] += 1
        memory, group = self._memory, self._memory["groups"][g]
        if self._members[g] <= group.room:
            return
        old, first, room = int(group.first), self._used["groups"], max(1, 2 * int(group.room))
        self._used["groups"] += room
        for name in ("load", "members"):
            memory.ensure(name, self._used["groups"])
        memory.ensure("lightest", 2 * self._used["groups"])
        group = memory["groups"][g]
        memory["members"][first : first + group.count] = memory["members"][old : old + group.count]
        group.first, group.room = first, room
        number_group(memory.world(), g)
