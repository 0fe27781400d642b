"""The closed loop against formulas, against a step-by-step loop written apart, and plain against compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from solvers.engine.closed_loop import Case, CaseBook, Correction, Load, Server, StepCurves, curves_of_profile
from solvers.engine.curves import Floats, decode_step_s, prefill_s
from solvers.errors import InvalidInput
from tests.profile_maker import make_profile

TOKENS = np.array([1.0, 256.0, 2048.0, 8192.0])
BATCHES = np.array([1.0, 8.0, 64.0])


def curves(context_s: float = 0.0) -> StepCurves:
    """A server whose decode step does not depend on the context, unless told so."""
    contexts = np.array([1.0, 10_000.0])
    attention = np.array([[1e-5 * b + context_s * b * c for c in contexts] for b in BATCHES])
    return StepCurves(
        batches=BATCHES,
        contexts=contexts,
        decode_s=attention + (0.005 + 2e-5 * BATCHES)[:, None],
        decode_attention_s=attention,
        step_tokens=TOKENS,
        dense_s=0.006 + 3e-5 * TOKENS,
        prompt_attention_s=1e-9 * TOKENS**2,
    )


def line(knots: Floats, values: Floats, at: float) -> float:
    return float(np.interp(at, knots, values))


# ---------------------------------------------------------------- a lone client


def test_a_lone_client_waits_for_the_front_end_its_prompt_and_nothing_else() -> None:
    own, load = curves(), Load(clients=1, prompt_tokens=2048, output_tokens=11, least_ratio=1.0)
    correction = Correction(
        decode_ratio=1.5, decode_overhead_s=0.001, prefill_ratio=2.0, prefill_overhead_s=0.003, front_end_s=0.02
    )
    case = Case(curves=own, server=Server(), load=load)
    ttft, tpot, whole = CaseBook([case], rounds=3).run(correction.as_array())[0]
    assert ttft == pytest.approx(0.02 + 2.0 * (own.dense_s[2] + own.prompt_attention_s[2]) + 0.003)
    assert tpot == pytest.approx(1.5 * own.decode_s[0, 0] + 0.001)
    assert whole == pytest.approx(3 * (ttft + 10 * tpot))


def test_a_profile_is_replayed_as_the_planner_sees_it() -> None:
    profile = make_profile()
    load = Load(clients=1, prompt_tokens=1024, output_tokens=2, least_ratio=1.0)
    case = Case(curves=curves_of_profile(profile), server=Server(), load=load)
    ttft, tpot, _ = CaseBook([case], rounds=1).run(Correction().as_array())[0]
    assert ttft == pytest.approx(prefill_s(profile, 1024))
    assert tpot == pytest.approx(decode_step_s(profile, 1, 1025.5))


def test_the_opening_burst_counts_as_much_as_it_is_told() -> None:
    load = Load(clients=8, prompt_tokens=2048, output_tokens=50)
    case = Case(curves=curves(), server=Server(budget_tokens=2048), load=load)
    found = {w: CaseBook([case], rounds=4, opening_ratio=w).run(Correction().as_array())[0, 0] for w in (0.0, 0.5, 1.0)}
    assert found[1.0] > 2 * found[0.0]
    assert found[0.5] == pytest.approx((found[0.0] + found[1.0]) / 2)


# ---------------------------------------------------------------- settings of a server


def run(server: Server, load: Load, **changes: float) -> Floats:
    own = Correction(**changes)
    found: Floats = CaseBook([Case(curves=curves(), server=server, load=load)]).run(own.as_array())[0]
    return found


BUSY = Load(clients=24, prompt_tokens=2000, output_tokens=60)


def test_few_seats_make_arrivals_wait_and_the_seated_fast() -> None:
    roomy, tight = run(Server(), BUSY), run(Server(seats=4), BUSY)
    assert tight[0] > 3 * roomy[0]
    assert tight[1] < roomy[1]


def test_little_kv_room_is_like_few_seats() -> None:
    assert run(Server(kv_tokens=4 * 2060), BUSY)[0] > 3 * run(Server(), BUSY)[0]


def test_looking_seldom_at_arrivals_makes_them_wait_half_as_long_on_average() -> None:
    load = Load(clients=2, prompt_tokens=256, output_tokens=400)
    seldom, always = run(Server(poll_steps=40), load), run(Server(), load)
    assert always[0] + 5 * 0.005 < seldom[0] < always[0] + 40 * 0.006


def test_gathering_waits_no_longer_than_it_may() -> None:
    load = Load(clients=4, prompt_tokens=256, output_tokens=400)
    patient = run(Server(gather_steps=30, gather_requests=4), load)[0]
    assert run(Server(), load)[0] < patient < run(Server(), load)[0] + 30 * 0.006


def test_prompts_prefilled_alone_hold_the_others_up() -> None:
    beside, alone = run(Server(), BUSY), run(Server(prefill_alone=True), BUSY)
    assert alone[1] > beside[1]


def test_ranks_share_the_load() -> None:
    assert run(Server(ranks=4), BUSY)[2] < 0.5 * run(Server(), BUSY)[2]


def test_nothing_to_run_and_curves_on_other_knots_are_refused() -> None:
    with pytest.raises(InvalidInput, match="holds no case"):
        CaseBook([])
    other = replace(curves(), step_tokens=TOKENS + 1)
    cases = [Case(curves=own, server=Server(), load=BUSY) for own in (curves(), other)]
    with pytest.raises(InvalidInput, match="step_tokens"):
        CaseBook(cases)


# ---------------------------------------------------------------- step by step


def stepped(
    own: StepCurves, server: Server, prompts: list[int], outputs: list[int], clients: int, front_s: float
) -> Floats:
    """One step at a time with plain lists; contexts do not matter to these curves."""
    now, free, sent = 0.0, clients * front_s, {i: (0.0, (i + 1) * front_s) for i in range(clients)}
    waiting: list[int] = list(range(clients))
    chunking: list[int] = []
    decoding: list[int] = []
    done, left, times = [0] * len(prompts), [0] * len(prompts), np.zeros((3, len(prompts)))
    while waiting or chunking or decoding:
        while waiting and sent[waiting[0]][1] <= now:
            held = sum(prompts[i] + outputs[i] for i in [waiting[0], *chunking, *decoding])
            if chunking + decoding and (len(chunking + decoding) >= server.seats or held > server.kv_tokens):
                break
            chunking.append(waiting.pop(0))
        if not chunking and not decoding:
            now = sent[waiting[0]][1]
            continue
        beside = [] if chunking and server.prefill_alone else list(decoding)
        now += _step_s(own, server, chunking, len(beside), prompts, done)
        for i in beside:
            left[i] -= 1
            if left[i] == 0:
                decoding.remove(i)
                times[2, i] = now
                if len(sent) < len(prompts):
                    free = max(free, now) + front_s
                    waiting.append(len(sent))
                    sent[len(sent)] = (now, free)
        for i in [i for i in chunking if done[i] == prompts[i]]:
            chunking.remove(i)
            decoding.append(i)
            left[i], times[1, i] = outputs[i] - 1, now
    times[0] = [sent[i][0] for i in range(len(prompts))]
    return times


def _step_s(
    own: StepCurves, server: Server, chunking: list[int], beside: int, prompts: list[int], done: list[int]
) -> float:
    if not chunking:
        return line(own.batches, own.decode_s[:, 0], beside)
    budget, tokens, attention = server.budget_tokens - beside, 0, 0.0
    for i in chunking:
        chunk = min(budget, prompts[i] - done[i])
        if budget < 1 or (server.whole_prompts and tokens and chunk < prompts[i] - done[i]):
            break
        before = line(TOKENS, own.prompt_attention_s, done[i]) if done[i] else 0.0
        done[i] += chunk
        attention += line(TOKENS, own.prompt_attention_s, done[i]) - before
        tokens, budget = tokens + chunk, budget - chunk
    own_s = line(TOKENS, own.dense_s, tokens + beside) + attention
    return own_s + (line(own.batches, own.decode_attention_s[:, 0], beside) if beside else 0.0)


def random_cases(count: int) -> Iterator[tuple[Server, Load, float]]:
    rng = np.random.default_rng(7)
    for _ in range(count):
        server = Server(
            budget_tokens=int(rng.integers(300, 4000)),
            seats=int(rng.integers(1, 12)),
            kv_tokens=float(rng.integers(2000, 40_000)),
            whole_prompts=bool(rng.integers(2)),
            prefill_alone=bool(rng.integers(2)),
        )
        clients = int(rng.integers(1, 12))
        load = Load(clients=clients, prompt_tokens=int(rng.integers(20, 2000)), output_tokens=int(rng.integers(4, 60)))
        yield server, load, float(rng.choice([0.0, 0.004]))


def test_skipping_steps_changes_nothing() -> None:
    own, rounds = curves(), 3
    for server, load, front_s in random_cases(60):
        book = CaseBook([Case(curves=own, server=server, load=load)], rounds=rounds, seed=3)
        spread = 0.8 + 0.2 * np.random.default_rng(3).random((2, load.clients * rounds))
        prompts = [max(1, int(load.prompt_tokens * share)) for share in spread[0]]
        outputs = [max(2, int(load.output_tokens * share)) for share in spread[1]]
        roomy = replace(server, kv_tokens=max(server.kv_tokens, load.prompt_tokens + load.output_tokens))
        times = stepped(own, roomy, prompts, outputs, load.clients, front_s)
        ttft, tpot = times[1] - times[0], (times[2] - times[1]) / (np.array(outputs) - 1)
        mean = 0.1 * ttft[: load.clients].mean() + 0.9 * ttft[load.clients :].mean()
        found = book.run(Correction(front_end_s=front_s).as_array())[0]
        assert found == pytest.approx([mean, tpot.mean(), times[2].max()], rel=1e-9)


PLAIN = """
import json, sys
from tests.test_closed_loop import answers
json.dump(answers(), sys.stdout)
"""


def answers() -> list[list[str]]:
    """A few benchmarks, to the last bit."""
    own = curves(context_s=1e-9)
    cases = [Case(curves=own, server=server, load=load) for server, load, _ in random_cases(6)]
    return [[value.hex() for value in row] for row in CaseBook(cases).run(Correction(front_end_s=1e-3).as_array())]


def test_plain_and_compiled_agree_to_the_byte() -> None:
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, check=True, env={"NUMBA_DISABLE_JIT": "1", "PATH": ""}
    )
    assert json.loads(plain.stdout) == answers()
