"""What a replay is asked to serve, and how it is handed to a fleet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.simulate import Clients, Fleet, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests by arrival, and clients that wait for answers."""

    workload: Workload
    clients: tuple[Clients, ...] = ()

    @property
    def services(self) -> tuple[str, ...]:
        """Services that are asked anything, sorted."""
        of_clients = {name for group in self.clients for name in group.workload.services}
        asked = {self.workload.services[i] for i in np.unique(self.workload.service).tolist()}
        return tuple(sorted(asked | of_clients))

    @property
    def span_s(self) -> float:
        """Second of the last arrival; clients come as they are answered."""
        return float(self.workload.arrival_s.max(initial=0.0))

    @property
    def requests(self) -> int:
        """All requests."""
        return len(self.workload) + sum(len(group.workload) for group in self.clients)


def hand_in(fleet: Fleet, load: Load) -> None:
    """Give a fleet everything that it will be asked, prefix blocks included (see ``Fleet.submit_workload``)."""
    if len(load.workload):
        fleet.submit_workload(load.workload)
    for clients in load.clients:
        fleet.add_clients(clients)
