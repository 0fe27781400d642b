"""Hold the simulation against the step-by-step truth on one random fleet, to the tick and the token."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from solvers.simulate.books import METERED
from solvers.simulate.kernel import accounts, loop
from solvers.simulate.kernel.curves import time_of
from solvers.simulate.kernel.records import Replica, World
from solvers.simulate.tables import NEVER, TICKS_PER_S, to_ticks
from tests.sim_brute import BruteFleet
from tests.sim_cases import random_case, simulated, stepped
from tests.sim_engine import Sequence

TokenTimes = dict[tuple[int, int], list[int]]
ITL_LIMIT_S = 0.02


@contextmanager
def token_times() -> Iterator[TokenTimes]:
    """Every token of every life of every request, by serial number, read off the runs as they are written down."""
    times: TokenTimes = defaultdict(list)
    account, token_of_prompt = accounts.account, loop.token_of_prompt

    def logged_account(w: World, r: int, steps: int) -> None:
        rep = w.replicas[r]
        ends = [rep.run_start + time_of(rep, k) for k in range(1, steps + 1)]
        for q in w.member[rep.row : rep.row + rep.active]:
            times[w.requests[q].serial, w.requests[q].reroutes].extend(ends)
        account(w, r, steps)

    def logged_token(w: World, rep: Replica, r: int, q: int, now: int) -> None:
        times[w.requests[q].serial, w.requests[q].reroutes].append(now)
        token_of_prompt(w, rep, r, q, now)

    accounts.account = loop.account = logged_account  # type: ignore[attr-defined]
    loop.token_of_prompt = logged_token
    try:
        yield times
    finally:
        accounts.account = loop.account = account  # type: ignore[attr-defined]
        loop.token_of_prompt = token_of_prompt


def energy(brute: BruteFleet) -> int:
    """Nanojoules by the brute force, up to its present."""
    for engine in brute.engines.values():
        engine.charge(brute.now, 0)
    return brute.gone_energy + sum(engine.energy for engine in brute.engines.values())


def compare(seed: int) -> Counter[str]:
    """Hold one random fleet to the truth; return what happened in it.

    Raises
    ------
    AssertionError
        Naming the seed and the first thing that differs.
    """
    case = random_case(seed)
    with token_times() as times:
        fleet = simulated(case, itl_limit_s=ITL_LIMIT_S)
    brute = stepped(case)
    done = {r.name: r for r in fleet.take_finished()}
    refused = {r.name for r in fleet.take_rejected()}
    given_up = {r.name: r.at_s for r in fleet.take_timed_out()}
    seen: Counter[str] = Counter(rejected=len(refused), timed_out=len(given_up), finished=len(done))
    late = 0
    for serial, sequence in enumerate(brute.sequences):
        name = sequence.asked.name
        at = (seed, name)
        assert sequence.is_rejected == (name in refused), at
        assert (sequence.timed_out_at != NEVER) == (name in given_up), at
        if name in given_up:
            assert given_up[name] == sequence.timed_out_at / TICKS_PER_S, at
        assert (sequence.emitted == sequence.asked.output_tokens) == (name in done), at
        if sequence.is_rejected or sequence.timed_out_at != NEVER:
            seen["late"] += sequence.reroutes > 0
            continue
        assert times[serial, sequence.reroutes] == sequence.times, at
        if name in done:
            row = done[name]
            assert row.end_s == sequence.times[-1] / TICKS_PER_S, at
            assert row.ttft_s == (sequence.times[0] - sequence.arrival) / TICKS_PER_S, at
            assert (row.preemptions, row.reroutes) == (sequence.preemptions, sequence.reroutes), at
            assert row.cached_tokens == (sequence.cached or 0), at
            assert row.late_gaps == late_gaps(sequence), at
            ends = [engine.name for engine in (sequence.prompt_at, sequence.output_at) if engine]
            assert [row.prefill_replica, row.replica] == ends, at
            seen["crossed"] += bool(sequence.way and sequence.way.over)
            seen["by_ways"] += sequence.way is not None
        seen.update(tokens=len(sequence.times), preemptions=sequence.preemptions, reroutes=sequence.reroutes)
        seen["cached"] += sequence.cached or 0
        late += late_gaps(sequence)
    assert int(fleet.meters()[:, METERED.index("energy")].sum()) == energy(brute), seed
    seen.update(late_gaps=late, caps=sum(verb == "cap" for _, verb, _ in case.story), clients=bool(case.clients))
    return seen


def late_gaps(sequence: Sequence) -> int:
    """Gaps above the limit, counted one by one."""
    return sum(b - a > to_ticks(ITL_LIMIT_S) for a, b in pairwise(sequence.times))
