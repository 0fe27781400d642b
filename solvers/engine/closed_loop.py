"""A benchmark of one mixed server, as it is run: clients that send their next request when the last one is answered.

All clients start at once, so the mean time to first token holds an opening burst. Requests pass a serial front end,
are admitted first in, first out while there are seats and KV room, and are prefilled in chunks. A step costs

.. math:: t = k_p \\,(D(n + b) + A) + k_d \\, B(b, c) + o_p \\qquad t = k_d \\, S(b, c) + o_d

with prompt tokens beside ``b`` sequences of mean context ``c``, and without: ``D`` everything but attention, ``A``
the chunk's attention, ``B`` the sequences' attention, ``S`` a whole decode step. The inner loop is in ``loop_kernel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from solvers.engine import EngineProfile
from solvers.engine.curves import Floats
from solvers.errors import InvalidInput

UNLIMITED = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCurves:
    """Times of a server's steps, in seconds; per data-parallel rank.

    Attributes
    ----------
    batches, contexts : (B,), (C,) float
        Axes of the decode tables: sequences, mean tokens of a sequence.
    decode_s, decode_attention_s : (B, C) float s
        A whole decode step, and the attention in it.
    step_tokens : (N,) float
        Axis of the next two: tokens computed in a step, tokens of a prompt.
    dense_s : (N,) float s
        Everything but attention in a step that computes so many tokens.
    prompt_attention_s : (N,) float s
        Attention of one prompt of so many tokens; a chunk costs the difference.
    """

    batches: Floats
    contexts: Floats
    decode_s: Floats
    decode_attention_s: Floats
    step_tokens: Floats
    dense_s: Floats
    prompt_attention_s: Floats


def curves_of_profile(profile: EngineProfile) -> StepCurves:
    """Steps as the planner and the simulation see them: a chunk of a prompt adds its prefill time to a decode step."""
    tokens = np.array([0.0, *profile.prefill_tokens])
    prefill = np.array([profile.prefill_s[0], *profile.prefill_s])
    decode = np.array(profile.decode_step_s)
    return StepCurves(
        batches=np.array(profile.decode_batches, float),
        contexts=np.array(profile.decode_contexts, float),
        decode_s=decode,
        decode_attention_s=decode,
        step_tokens=tokens,
        dense_s=np.zeros_like(tokens),
        prompt_attention_s=prefill,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How a mixed server was started.

    Attributes
    ----------
    budget_tokens : int
        Tokens of one step: prompt tokens and running sequences, per rank.
    seats : int
        Requests that may be served at once.
    kv_tokens : float
        Tokens that the cache of the whole server holds.
    ranks : int
        Data-parallel attention ranks that share the load.
    poll_steps : int
        Decode steps between two looks at the arrivals (SGLang's ``scheduler-recv-interval``).
    gather_steps, gather_tokens, gather_requests : int
        While sequences run, admission waits up to so many steps for so many tokens, or so many requests
        (TensorRT-LLM's ``batch_wait_timeout_iters`` and the balance of attention ranks).
    whole_prompts : bool
        A prompt is never cut into chunks.
    prefill_alone : bool
        No sequence decodes in a step that prefills.
    """

    budget_tokens: int = 8192
    seats: int = 1024
    kv_tokens: float = UNLIMITED
    ranks: int = 1
    poll_steps: int = 1
    gather_steps: int = 0
    gather_tokens: int = 0
    gather_requests: int = 0
    whole_prompts: bool = False
    prefill_alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a benchmark sends: so many clients; lengths evenly spread from ``least_ratio`` of the nominal ones to 1."""

    clients: int
    prompt_tokens: int
    output_tokens: int
    least_ratio: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What measurements change of the tables; the defaults change nothing.

    ``decode_ratio`` and ``prefill_ratio`` multiply times, the overheads add to every decode step and to every step with
    prompt tokens, ``front_end_s`` is what one request takes of the serial front end.
    """

    decode_ratio: float = 1.0
    decode_overhead_s: float = 0.0
    prefill_ratio: float = 1.0
    prefill_overhead_s: float = 0.0
    front_end_s: float = 0.0

    def as_array(self) -> Floats:
        """The numbers in the order of the fields."""
        return np.array([getattr(self, field.name) for field in fields(self)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One benchmark: a load on a server."""

    curves: StepCurves
    server: Server
    load: Load


class CaseBook:
    """Many benchmarks laid out for the loop; the curves must share their axes.

    Parameters
    ----------
    cases : sequence of Case
    rounds : int
        Requests that each client sends. Keep it equal in fitting and in use.
    opening_ratio : float
        Weight of the opening burst in the mean time to first token: 1 over the rounds of the real benchmark.
    seed : int
        Of the lengths; every benchmark draws from the same list.
    """

    def __init__(self, cases: Sequence[Case], *, rounds: int = 4, opening_ratio: float = 0.1, seed: int = 1) -> None:
        if not cases:
            raise InvalidInput("benchmark", "", "holds no case", "give at least one row")
        self._rounds, self._opening = rounds, opening_ratio
        unique = {id(case.curves): case.curves for case in cases}
        place = {name: index for index, name in enumerate(unique)}
        self._which = np.array([place[id(case.curves)] for case in cases], np.int64)
        self._curves = _stack(list(unique.values()))
        self._servers = np.array([_server_row(case) for case in cases])
        sizes = [(c.load.prompt_tokens, c.load.output_tokens, c.load.least_ratio) for c in cases]
        self._sizes = np.array(sizes, float)
        most = max(case.load.clients for case in cases) * rounds
        self._lengths = np.random.default_rng(seed).random((2, most))

    def __len__(self) -> int:
        """Benchmarks in the book."""
        return len(self._which)

    def run(self, corrections: Floats, rows: Sequence[int] | None = None) -> Floats:
        """Run some of the benchmarks, or all.

        Parameters
        ----------
        corrections : (5,) or (rows, 5) float
            ``Correction.as_array()`` of each row.

        Returns
        -------
        (rows, 3) float s
            Mean time to first token, mean time per output token, and how long the benchmark took.
        """
        from solvers.engine.loop_kernel import run_rows

        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        thetas = np.ascontiguousarray(np.broadcast_to(np.asarray(corrections, float), (len(chosen), 5)))
        found = np.zeros((len(chosen), 3))
        run_rows(
            self._which[chosen],
            self._curves,
            self._servers[chosen],
            thetas,
            self._lengths,
            self._sizes[chosen],
            self._rounds,
            self._opening,
            found,
        )
        return found


def _stack(curves: Sequence[StepCurves]) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats]:
    first = curves[0]
    for axis in ("batches", "contexts", "step_tokens"):
        if not all(np.array_equal(getattr(first, axis), getattr(other, axis)) for other in curves):
            raise InvalidInput("benchmark", axis, "differs between the curves", "tabulate all on the same knots")
    decode, attention = (np.array([getattr(c, n) for c in curves]) for n in ("decode_s", "decode_attention_s"))
    dense, prompt = (np.array([getattr(c, n) for c in curves]) for n in ("dense_s", "prompt_attention_s"))
    return first.batches, first.contexts, decode, attention, first.step_tokens, dense, prompt


def _server_row(case: Case) -> list[float]:
    """Settings in the order that the loop knows them."""
    server, load = case.server, case.load
    room = max(server.kv_tokens, load.prompt_tokens + load.output_tokens)
    waits = (server.poll_steps, server.gather_tokens, server.gather_requests, server.gather_steps)
    ways = (server.whole_prompts, server.prefill_alone)
    return [float(x) for x in (load.clients, server.budget_tokens, server.seats, room, server.ranks, *waits, *ways)]
