"""What happens in a demo and when: load, surge, budget cut, lost node. Times are virtual seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.simcluster.demo_world import Traffic, World

SURGED, CUT, LOST = "demo/chat-8b", "rack-a1", "h100-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that is done to the world.

    Attributes
    ----------
    start_s, end_s : float
        When it begins, and when it is over or judged.
    affected : str
        Service, power domain or node that it strikes.
    """

    name: str
    start_s: float
    end_s: float
    affected: str
    happens: str
    act: Callable[[World], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One form of the demo. ``time_scale`` is virtual seconds per real one."""

    time_scale: float
    duration_s: float
    traffic: tuple[Traffic, ...]
    incidents: tuple[Incident, ...]
    decision_s: float = 2.0  # real seconds
    tick_s: float = 0.5
    refresh_s: float = 4.0

    @property
    def real_s(self) -> float:
        """How long the requests run, in real seconds."""
        return self.duration_s / self.time_scale


TRAFFIC = (
    Traffic(service="demo/chat-8b", requests_per_s=90.0),
    Traffic(service="demo/chat-70b", requests_per_s=20.0),
    Traffic(service="demo/moe", requests_per_s=50.0),
)


def _surge(start_s: float, seconds: float, factor: float) -> Incident:
    def act(world: World) -> None:
        world.control(surge={"service": SURGED, "factor": factor, "duration_s": seconds})

    return Incident(
        name="surge",
        start_s=start_s,
        end_s=start_s + seconds,
        affected=SURGED,
        happens=f"{factor:g} times the requests to {SURGED} for {seconds:.0f} s",
        act=act,
    )


def _cut(start_s: float, seconds: float, watts: int) -> Incident:
    def act(world: World) -> None:
        world.set_budget(CUT, watts)

    return Incident(
        name="budget cut",
        start_s=start_s,
        end_s=start_s + seconds,
        affected=CUT,
        happens=f"the budget of {CUT} becomes {watts} W",
        act=act,
    )


def _loss(start_s: float, seconds: float) -> Incident:
    def act(world: World) -> None:
        world.cluster.fail_node(LOST, wait=False)

    return Incident(
        name="lost node",
        start_s=start_s,
        end_s=start_s + seconds,
        affected=LOST,
        happens=f"node {LOST} stops answering",
        act=act,
    )


# The clock runs ten times faster than the control plane: its own seconds (leases, scrapes, solves) count tenfold.
FULL = Script(
    time_scale=10.0,
    duration_s=1700.0,
    traffic=TRAFFIC,
    incidents=(_surge(250.0, 450.0, 1.8), _cut(850.0, 350.0, 8000), _loss(1250.0, 450.0)),
)
SHORT = Script(
    time_scale=10.0,
    duration_s=600.0,
    traffic=TRAFFIC,
    incidents=(_surge(60.0, 200.0, 1.8), _cut(290.0, 100.0, 8000), _loss(390.0, 210.0)),
)
