"""The simulation against queueing theory: Lindley's recursion, M/D/1, M/M/1, Little's law, conservation of energy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from solvers.engine import EngineProfile, Role
from solvers.simulate import FinishedRequest, Fleet, Served, SimRequest, Workload
from solvers.simulate import serve as serve_workload
from solvers.simulate.tables import TICKS_PER_S, compile_profile, to_ticks
from tests.sim_brute import make_profile

BATCH_MEANS = 30
STUDENT_T_999 = 3.66  # two-sided 99.9 % with 29 degrees of freedom


def one_millisecond_per_ten_tokens() -> EngineProfile:
    """A prompt of n tokens takes exactly n * 100 us, whatever n; a fast link; little else."""
    return make_profile(
        prefill_tokens=(1, 1_000_000),
        prefill_s=(0.0001, 100.0),
        kv_capacity_tokens=10_000_000,
        transfer_bytes_per_s=1e15,
    )


def serve(prompts: Sequence[int], arrivals: NDArray[np.float64], profile: EngineProfile) -> list[FinishedRequest]:
    fleet = Fleet()
    fleet.add_replica("p", "s", Role.PREFILL, profile)
    fleet.add_replica("d", "s", Role.DECODE, profile)
    for i, (prompt, arrival) in enumerate(zip(prompts, arrivals, strict=True)):
        fleet.submit(
            SimRequest(name=str(i), service="s", arrival_s=float(arrival), prompt_tokens=int(prompt), output_tokens=1)
        )
    fleet.advance(math.inf)
    return sorted(fleet.take_finished(), key=lambda r: int(r.name))


def lindley(arrivals: Sequence[int], services: Sequence[int]) -> list[int]:
    """Waiting times of a FIFO queue: w' = max(0, w + service - gap)."""
    waits, wait = [0], 0
    for i in range(1, len(arrivals)):
        wait = max(0, wait + services[i - 1] - (arrivals[i] - arrivals[i - 1]))
        waits.append(wait)
    return waits


def assert_mean_within_its_half_width(values: NDArray[np.float64], expected: float) -> None:
    """Batch means: neighbouring waits are alike, so the spread of batches says how well the mean is known."""
    batches = values[: len(values) // BATCH_MEANS * BATCH_MEANS].reshape(BATCH_MEANS, -1).mean(axis=1)
    half_width = STUDENT_T_999 * batches.std(ddof=1) / math.sqrt(BATCH_MEANS)
    assert half_width < 0.15 * expected, "the run is too short to tell"
    assert abs(values.mean() - expected) < half_width


@pytest.mark.parametrize("kind", ["deterministic", "exponential", "bursty"])
def test_prefill_waits_follow_lindleys_recursion_to_the_picosecond(kind: str) -> None:
    rng = np.random.default_rng(7)
    prompts = {
        "deterministic": np.full(2000, 500),
        "exponential": np.ceil(rng.exponential(500, 2000)).astype(int),
        "bursty": np.where(rng.random(2000) < 0.1, 4000, 100),
    }[kind]
    arrivals = np.cumsum(rng.exponential(0.06, len(prompts)))
    profile = one_millisecond_per_ten_tokens()
    done = serve([int(p) for p in prompts], arrivals, profile)
    tables = compile_profile(profile)
    ticks = [to_ticks(float(a)) for a in arrivals]
    expected = lindley(ticks, [tables.prefill(int(p)) for p in prompts])
    assert [r.queue_s for r in done] == [w / TICKS_PER_S for w in expected]
    assert max(expected) > 0


def test_transfers_queue_on_the_link_as_lindley_says() -> None:
    rng = np.random.default_rng(3)
    profile = make_profile(transfer_bytes_per_s=1e9)  # 0.1 s for 1000 tokens, as long as their prefill
    prompts = [int(p) for p in rng.integers(100, 2000, 300)]
    done = serve(prompts, np.cumsum(rng.exponential(0.13, 300)), profile)
    handed = [to_ticks(r.arrival_s) + round((r.queue_s + r.prefill_s) * TICKS_PER_S) for r in done]
    tables = compile_profile(profile)
    sizes = [tables.transfer(p) for p in prompts]
    expected = [w + size for w, size in zip(lindley(handed, sizes), sizes, strict=True)]
    assert [r.kv_transfer_s for r in done] == pytest.approx([e / TICKS_PER_S for e in expected], abs=1e-9)
    assert any(w > 0 for w in lindley(handed, sizes))


@pytest.mark.parametrize(("load", "squared_variation"), [(0.6, 0.0), (0.6, 1.0)])
def test_mean_wait_is_pollaczek_khinchines(load: float, squared_variation: float) -> None:
    """M/D/1 and M/M/1: E[wait] = load / (1 - load) * (1 + SCV) / 2 * E[service]."""
    rng = np.random.default_rng(11)
    count, service_s = 60_000, 0.05
    deterministic = squared_variation == 0.0
    prompts = np.full(count, 500) if deterministic else np.ceil(rng.exponential(500, count)).astype(int)
    arrivals = np.cumsum(rng.exponential(service_s / load, count))
    done = serve([int(p) for p in prompts], arrivals, one_millisecond_per_ten_tokens())
    expected = load / (1 - load) * (1 + squared_variation) / 2 * service_s
    assert_mean_within_its_half_width(np.array([r.queue_s for r in done]), expected)


def erlang_c(servers: int, offered: float) -> float:
    """Probability of waiting in M/M/c, by Erlang's recursion for the blocking of M/M/c/c."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1.0 - offered / servers * (1.0 - blocked))


@pytest.mark.parametrize(("servers", "load"), [(2, 0.6), (3, 0.6)])
def test_mean_wait_of_several_replicas_behind_one_queue_is_erlangs(servers: int, load: float) -> None:
    """M/M/c: the gateway holds the queue, and a replica takes the next prompt when the one before is computed."""
    rng = np.random.default_rng(17)
    count, service_s = 45_000, 0.05
    fleet = Fleet(replica_queue_limit=1)
    for i in range(servers):
        fleet.add_replica(f"p{i}", "s", Role.PREFILL, one_millisecond_per_ten_tokens())
    for i in range(8):  # so that a decode queue is never what holds a chain up
        fleet.add_replica(f"d{i}", "s", Role.DECODE, instant_decode())
    prompts = np.ceil(rng.exponential(500, count)).astype(np.int64)
    arrivals = np.cumsum(rng.exponential(service_s / (servers * load), count))
    rows = rows_of(fleet, arrivals, prompts)
    expected = erlang_c(servers, servers * load) * service_s / (servers * (1.0 - load))
    assert_mean_within_its_half_width(rows.queue_s[np.argsort(rows.row)], expected)


def instant_decode() -> EngineProfile:
    """A step of a nanosecond, whatever is in it."""
    return make_profile(decode_step_s=((1e-9,) * 3,) * 4, kv_capacity_tokens=10_000_000)


def rows_of(fleet: Fleet, arrivals: NDArray[np.float64], prompts: NDArray[np.int64]) -> Served:
    workload = Workload(
        services=("s",),
        arrival_s=arrivals,
        service=np.zeros(len(arrivals), np.int64),
        prompt_tokens=prompts,
        output_tokens=np.ones(len(arrivals), np.int64),
    )
    return serve_workload(fleet, workload).served


@pytest.mark.parametrize("kind", ["exponential", "bursty"])
def test_mean_time_on_a_shared_link_is_that_of_processor_sharing_whatever_the_sizes(kind: str) -> None:
    """M/G/1 with equal shares: E[time] = E[size] / (1 - load), insensitive to the distribution of sizes."""
    rng = np.random.default_rng(23)
    count, load = 20_000, 0.5
    sizes = {
        "exponential": np.ceil(rng.exponential(500, count)),
        "bursty": np.where(rng.random(count) < 0.1, 2000, 333),
    }[kind].astype(np.int64)
    instant = make_profile(
        prefill_tokens=(1, 1_000_000), prefill_s=(1e-9, 1.1e-9), kv_capacity_tokens=10_000_000, kv_bytes_per_token=100
    )
    fleet = Fleet()
    fleet.add_link("spine", 1e6)  # a tenth of a millisecond a token
    fleet.add_replica("p", "s", Role.PREFILL, instant, link="spine")
    fleet.add_replica("d", "s", Role.DECODE, instant_decode())
    mean_s = float(sizes.mean()) * 1e-4
    rows = rows_of(fleet, np.cumsum(rng.exponential(mean_s / load, count)), sizes)
    assert_mean_within_its_half_width(rows.kv_transfer_s[np.argsort(rows.row)], mean_s / (1.0 - load))


def test_littles_law_holds_exactly_over_a_whole_run() -> None:
    """The time integral of what the fleet says it holds equals the sum of the times in it."""
    rng = np.random.default_rng(5)
    requests = [
        SimRequest(
            name=str(i),
            service="s",
            arrival_s=float(at),
            prompt_tokens=int(rng.integers(10, 3000)),
            output_tokens=int(rng.integers(1, 100)),
        )
        for i, at in enumerate(np.cumsum(rng.exponential(0.1, 200)))
    ]

    def fleet_with_requests() -> Fleet:
        fleet = Fleet()
        # no time on the link: a prompt under way would count at both of its ends
        fleet.add_replica("p", "s", Role.PREFILL, make_profile(transfer_bytes_per_s=1e30))
        fleet.add_replica("d", "s", Role.DECODE, make_profile())
        fleet.add_replica("m", "s", Role.MIXED, make_profile())
        for request in requests:
            fleet.submit(request)
        return fleet

    once = fleet_with_requests()
    once.advance(math.inf)
    done = once.take_finished()
    changes = sorted([to_ticks(r.arrival_s) for r in done] + [to_ticks(r.end_s) for r in done])
    watched, held, area, before = fleet_with_requests(), 0, 0, 0
    for change in changes:
        watched.advance(change / TICKS_PER_S)
        area += held * (change - before)
        held, before = sum(watched.outstanding(name) for name in watched.replica_ids()), change
    assert held == 0
    spent = sum(to_ticks(r.end_s) - to_ticks(r.arrival_s) for r in done)
    assert area == pytest.approx(spent, rel=1e-9)
    assert len(done) == 200


def test_energy_is_idle_watts_and_the_busy_time_above_them() -> None:
    rng = np.random.default_rng(2)
    fleet = Fleet()
    fleet.add_replica("p", "s", Role.PREFILL, make_profile())
    fleet.add_replica("d", "s", Role.DECODE, make_profile())
    for i, at in enumerate(np.cumsum(rng.exponential(0.3, 300))):
        fleet.submit(SimRequest(name=str(i), service="s", arrival_s=float(at), prompt_tokens=1000, output_tokens=1))
    fleet.advance(120.0)
    view = fleet.replica("p")
    assert view.busy_s == pytest.approx(300 * 0.1, rel=1e-6)
    assert view.energy_joules == pytest.approx(75.0 * 120.0 + (600.0 - 75.0) * view.busy_s, rel=1e-9)


def test_a_full_decode_batch_makes_tokens_at_the_rate_of_its_table() -> None:
    """Saturated, with contexts that hardly matter, a batch of 64 yields 64 tokens a step."""
    profile = make_profile(
        decode_step_s=tuple((0.01 + 1e-4 * b,) * 3 for b in (1, 4, 16, 64)),
        prefill_tokens=(1, 2),
        prefill_s=(1e-6, 2e-6),
    )
    fleet = Fleet()
    fleet.add_replica("m", "s", Role.MIXED, profile)
    for i in range(400):
        fleet.submit(SimRequest(name=str(i), service="s", arrival_s=0.0, prompt_tokens=1, output_tokens=1000))
    fleet.advance(10.0)
    fleet.settle()
    before = fleet.replica("m").output_tokens
    fleet.advance(20.0)
    fleet.settle()
    made = fleet.replica("m").output_tokens - before
    assert made == pytest.approx(10.0 / (0.01 + 64e-4) * 64, abs=2 * 64)  # a step at either end
