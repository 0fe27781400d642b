"""Corrections on a real control plane: engines of the twin are slow, Prometheus says so, statuses keep it."""

from __future__ import annotations

import numpy as np

from controller.traces import TraceRequest
from solvers.correction import Phase
from tests.operator_harness import World, latest, running, wait_settled
from tests.simcluster.cluster import SimCluster
from tests.simcluster.monitoring import ScrapeJob
from tests.simcluster.poll import PATIENCE_S, wait_until
from tests.simcluster.twin import Twin
from tests.simcluster.twin_traffic import Traffic
from tests.simcluster.twin_watch import ClusterWatch
from tests.world_bodies import NAMESPACE

RATE, SLOWNESS, TIME_SCALE = 6.0, 1.35, 20.0
SERVICE = f"{NAMESPACE}/chat"
MODES = {"replicas": "Act", "placement": "Act", "correction": "Act"}


def traffic() -> Traffic:
    """Poisson arrivals of the sizes that the service declares."""
    rng = np.random.default_rng(7)
    times = rng.exponential(1.0 / RATE, 6000).cumsum()
    is_long = rng.random(6000) < 0.4
    sizes = [(2048, 256) if each else (512, 128) for each in is_long]
    trace = tuple(
        TraceRequest(arrival_s=float(at), prompt_tokens=prompt, output_tokens=output)
        for at, (prompt, output) in zip(times, sizes, strict=True)
    )
    return Traffic(SERVICE, trace)


Factors = dict[tuple[str, str, str], float]
"""By GPU class, configuration and phase."""


def kept(world: World) -> Factors:
    """Factors that planning uses, as statuses have them."""
    profiles = world.cluster.api.list_all("/apis/penstock.dev/v1alpha1/engineprofiles")
    return {
        (body["spec"]["gpuClass"], body["status"]["config"], row["phase"]): row["plannedPermille"] / 1000
        for body in profiles
        for row in body.get("status", {}).get("corrections", ())
        if "plannedPermille" in row
    }


def corrected(world: World, prometheus_url: str, name: str) -> Factors:
    """Run an operator until it plans with corrections; what those are."""
    with running(world.cluster, name, prometheus_url=prometheus_url, time_scale=TIME_SCALE) as operator:
        wait_settled(operator, world, chat=RATE)
        wait_until(
            lambda: any(
                phase == Phase.DECODE
                for profile in latest(operator).problem.profiles.values()
                for phase, _ in profile.corrections
            ),
            "a plan with corrected decode steps",
            timeout_s=2 * PATIENCE_S,
        )
        found = {
            (key.gpu_class, key.config.label, phase): value
            for key, profile in latest(operator).problem.profiles.items()
            for phase, value in profile.corrections
        }
        wait_until(lambda: kept(world), "it in a status")
        return found


def test_slow_engines_are_found_kept_in_a_status_and_known_to_the_next_operator(simcluster: SimCluster) -> None:
    world = World(simcluster).install(modes=MODES)
    world.serve(requests_per_s=RATE)
    watch = ClusterWatch(simcluster.kubeconfig)
    watch.start()
    with Twin(watch, [traffic()], time_scale=TIME_SCALE) as twin:
        twin.fleet.slow_down(SLOWNESS)
        twin.clock.start()
        simcluster.set_scrape_jobs(
            ScrapeJob(name=name, url=f"{twin.url}/{name}/metrics", honor_labels=True)
            for name in ("gateway", "engines", "dcgm")
        )
        first = corrected(world, simcluster.prometheus_url, "one")
        assert all(1.15 < value < 1.6 for (_, _, phase), value in first.items() if phase == Phase.DECODE)
        left = kept(world)
        twin.clock.stop()
        simcluster.set_scrape_jobs([])
        second = corrected(world, simcluster.prometheus_url, "two")
        assert {place: second.get(place) for place in left} == left
    watch.stop()
