"""What a replay is asked to serve, and how it is handed to a fleet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.errors import InvalidInput
from solvers.simulate import Fleet, SimRequest
from solvers.simulate.arrivals import Clients, Workload


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
    """Give a fleet everything that it will be asked.

    Raises
    ------
    InvalidInput
        When clients are asked for and the fleet serves arrivals only.
    """
    if load.clients:
        raise InvalidInput("clients", "", "cannot be simulated", "use an open-loop trace")
    workload = load.workload
    names = workload.names or tuple(str(row) for row in range(len(workload)))
    for row in np.argsort(workload.arrival_s, kind="stable").tolist():
        fleet.submit(
            SimRequest(
                name=names[row],
                service=workload.services[int(workload.service[row])],
                arrival_s=float(workload.arrival_s[row]),
                prompt_tokens=int(workload.prompt_tokens[row]),
                output_tokens=int(workload.output_tokens[row]),
            )
        )
