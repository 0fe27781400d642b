"""Engine curves as whole picoseconds: the form in which the simulation steps over them.

Curves are polygons with integer knots and integer slopes, continuous by construction, so that a run of steps is an
exact arithmetic progression and two equal replicas tie exactly. Rounding a slope to whole picoseconds a token costs
less than 1e-4 of any value of a real profile.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, pairwise

from solvers.engine import EngineProfile, Role
from solvers.engine.curves import capped, decode_speed_ratio, prefill_speed_ratio
from solvers.errors import InvalidInput

TICKS_PER_S = 1_000_000_000_000
NEVER = 1 << 62
CLOCK_S = NEVER / TICKS_PER_S  # 53 days: no time of a run lies beyond
SPEED_ONE = 10_000  # speeds under a power cap are whole in this

NOMINAL_CONTEXT_TOKENS = 1024  # where a sequence's share of a replica is read for routing
NOMINAL_OUTPUT_TOKENS = 256  # routers do not know output lengths; only the ratio to prompt work matters


def to_ticks(seconds: float) -> int:
    """Round seconds to whole picoseconds."""
    return round(seconds * TICKS_PER_S)


def to_ticks_or_never(seconds: float | None) -> int:
    """Round a limit to whole picoseconds; none, and what lies beyond the clock's end, is ``NEVER``."""
    return NEVER if seconds is None or seconds >= CLOCK_S else to_ticks(seconds)


class Polygon:
    """A continuous piecewise-linear curve over whole tokens, in ticks.

    Flat before the first knot, the last slope kept beyond the last one; the last segment starts at the last knot, so
    a lookup that lands in it was extrapolated.
    """

    __slots__ = ("knots", "slopes", "values")

    def __init__(self, tokens: Sequence[int], ticks: Sequence[float]) -> None:
        pairs = list(zip(tokens, ticks, strict=True))
        rises = [max(0, round((y1 - y0) / (x1 - x0))) for (x0, y0), (x1, y1) in pairwise(pairs)]
        self.knots: list[int] = [0] if tokens[0] > 0 else []
        self.slopes: list[int] = [0] * len(self.knots)
        self.values: list[int] = [max(1, round(ticks[0]))] * len(self.knots)
        value = max(1, round(ticks[0]))
        for i, (knot, rise) in enumerate(zip(tokens, [*rises, rises[-1] if rises else 0], strict=True)):
            if i:
                value += rises[i - 1] * (knot - tokens[i - 1])
            self.knots.append(knot)
            self.values.append(value)
            self.slopes.append(rise)

    def segment(self, tokens: int) -> int:
        """Index of the segment that holds ``tokens`` (0 or more)."""
        return bisect_right(self.knots, tokens) - 1

    def at(self, tokens: int) -> int:
        """Value in ticks."""
        i = bisect_right(self.knots, tokens) - 1
        return self.values[i] + self.slopes[i] * (tokens - self.knots[i])


class EngineTables:
    """Everything that the simulation asks of one profile.

    Attributes
    ----------
    max_batch : int
        Largest batch in the decode table; the engine admits no more sequences, so batches are never extrapolated.
    sequence_work : int, ticks
        What one sequence in decode costs the replica, for routing between unlike replicas.
    prefixes, behind : tuple of int, of Polygon
        Cached prefixes that the profile has curves for, and the curves of prompts behind them.
    transfer_ticks : int
        Ticks on the replica's own link for the keys and values of one prompt token.
    prefill_speed, decode_speed : int
        Speeds under the power cap, in ``SPEED_ONE``.
    """

    __slots__ = (
        "_decode_milliwatts",
        "_flat",
        "_rows",
        "behind",
        "chunk_tokens",
        "decode_speed",
        "gpus",
        "idle_milliwatts",
        "kv_capacity",
        "max_batch",
        "prefill_line",
        "prefill_milliwatts",
        "prefill_speed",
        "prefixes",
        "profile",
        "sequence_work",
        "transfer_ticks",
    )  # fmt: skip

    def __init__(self, profile: EngineProfile, cap_watts: float | None = None) -> None:
        _check(profile)
        self.prefill_speed = round(SPEED_ONE * prefill_speed_ratio(profile, cap_watts))
        self.decode_speed = round(SPEED_ONE * decode_speed_ratio(profile, cap_watts))
        profile = capped(profile, cap_watts)
        self.profile = profile
        self.gpus = profile.key.config.gpus
        self.kv_capacity = profile.kv_capacity_tokens
        self.chunk_tokens = profile.prefill_chunk_tokens
        self.max_batch = profile.decode_batches[-1]
        self.prefill_line = Polygon(profile.prefill_tokens, [s * TICKS_PER_S for s in profile.prefill_s])
        self.prefixes = profile.prefill_cached_tokens
        self.behind = tuple(
            Polygon(profile.prefill_tokens, [r * s * TICKS_PER_S for r, s in zip(row, profile.prefill_s, strict=True)])
            for row in profile.prefill_cached_ratio
        )
        self.transfer_ticks = round(profile.kv_bytes_per_token * TICKS_PER_S / profile.transfer_bytes_per_s)
        self.idle_milliwatts = round(1000 * self.gpus * profile.idle_watts_per_gpu)
        self.prefill_milliwatts = round(1000 * self.gpus * profile.prefill_watts_per_gpu)
        self._flat: Mapping[str, Sequence[int]] | None = None
        self._rows: list[Polygon | None] = [None] * (self.max_batch + 1)
        self._decode_milliwatts: list[int] = [
            round(1000 * self.gpus * _between(profile.decode_batches, profile.decode_watts_per_gpu, batch))
            for batch in range(self.max_batch + 1)
        ]
        batch = max(1, min(self.max_batch, self.kv_capacity // NOMINAL_CONTEXT_TOKENS))
        step = self.row(batch).at(batch * NOMINAL_CONTEXT_TOKENS)
        self.sequence_work = max(1, NOMINAL_OUTPUT_TOKENS * step // batch)

    def row(self, batch: int) -> Polygon:
        """Decode step time of ``batch`` sequences over the *sum* of their contexts."""
        made = self._rows[batch]
        if made is None:
            made = self._rows[batch] = self._make_row(batch)
        return made

    def _make_row(self, batch: int) -> Polygon:
        profile = self.profile
        columns = range(len(profile.decode_contexts))
        steps = [
            _between(profile.decode_batches, [row[c] for row in profile.decode_step_s], batch) * TICKS_PER_S
            for c in columns
        ]
        return Polygon([context * batch for context in profile.decode_contexts], steps)

    def flat(self) -> Mapping[str, Sequence[int]]:
        """Knots, values and slopes: curve of prompts, those behind prefixes, decode rows of batches 0, 1, 2, ..."""
        if self._flat is None:
            rows = [self.row(batch) for batch in range(1, self.max_batch + 1)]
            unused, prompts = [0] * len(rows[0].knots), (self.prefill_line, *self.behind)
            lines = {name: [getattr(row, name) for row in rows] for name in ("knots", "values", "slopes")}
            self._flat = {
                name: [*chain.from_iterable(getattr(c, name) for c in prompts), *unused, *chain.from_iterable(some)]
                for name, some in lines.items()
            }
        return self._flat

    def prefill(self, tokens: int) -> int:
        """Ticks to prefill one prompt on its own."""
        return self.prefill_line.at(tokens)

    def behind_prefix(self, cached: int, tokens: int) -> int:
        """Ticks to prefill ``tokens`` behind so many cached ones: as ``engine.prefill`` says, in whole ticks."""
        line = self.prefill_line
        if not cached or not self.prefixes:
            return max(line.at(tokens), line.at(cached + tokens) - line.at(cached)) if cached else line.at(tokens)
        high = min(bisect_left(self.prefixes, cached), len(self.prefixes) - 1)
        low_at, low = (self.prefixes[high - 1], self.behind[high - 1]) if high else (0, line)
        rise = self.behind[high].at(tokens) - low.at(tokens)
        return low.at(tokens) + rise * (cached - low_at) // (self.prefixes[high] - low_at)

    def piece(self, done: int, tokens: int, *, cached: int = 0) -> int:
        """Ticks to prefill ``tokens`` more of a prompt whose first ``done`` are there, ``cached`` of them found."""
        if cached:
            upto = self.behind_prefix(cached, done - cached + tokens)
            return upto - self.behind_prefix(cached, done - cached) if done > cached else upto
        line = self.prefill_line
        return line.at(done + tokens) - line.at(done) if done else line.at(tokens)

    def milliwatts(self, batch: int, *, prefilling: bool) -> int:
        """Draw of the replica: the larger of the two phases when a step does both."""
        decoding = self._decode_milliwatts[batch] if batch else self.idle_milliwatts
        return max(decoding, self.prefill_milliwatts) if prefilling else decoding

    def transfer(self, prompt_tokens: int) -> int:
        """Ticks on the replica's own link for the keys and values of one prompt."""
        return prompt_tokens * self.transfer_ticks

    def decode_milliwatts(self) -> Sequence[int]:
        """Draw by batch, from 0 on."""
        return self._decode_milliwatts

    def fits(self, role: Role, prompt_tokens: int, output_tokens: int) -> bool:
        """True when an otherwise empty replica could serve the request to its end."""
        grown = 1 if role is Role.PREFILL else output_tokens
        return prompt_tokens + grown <= self.kv_capacity


@lru_cache(maxsize=4096)
def compile_profile(profile: EngineProfile, cap_watts: float | None = None) -> EngineTables:
    """Compile a profile under a power cap of each GPU once; replicas of one pool share the tables.

    Raises
    ------
    InvalidInput
        When an axis is empty, not increasing, or disagrees with its table.
    OutOfRange
        When the cap is below the lowest one that the profile knows.
    """
    return EngineTables(profile, cap_watts)


def _between(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    """Interpolate; flat outside the axis."""
    i = bisect_right(xs, x)
    if i == 0 or i == len(xs):
        return ys[0] if i == 0 else ys[-1]
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])


def _check(profile: EngineProfile) -> None:
    where = f"EngineProfile/{profile.key.model}/{profile.key.gpu_class}/{profile.key.config.label}"
    batches, contexts = profile.decode_batches, profile.decode_contexts
    for field, axis, size in (
        ("prefill_tokens", profile.prefill_tokens, len(profile.prefill_s)),
        ("decode_batches", batches, len(profile.decode_step_s)),
        ("decode_batches", batches, len(profile.decode_watts_per_gpu)),
        ("decode_contexts", contexts, min((len(row) for row in profile.decode_step_s), default=0)),
        ("decode_contexts", contexts, max((len(row) for row in profile.decode_step_s), default=0)),
    ):
        if not axis or len(axis) != size or axis[0] < 0 or any(b <= a for a, b in pairwise(axis)):
            problem = f"{len(axis)} knots for {size} values, or knots that do not increase"
            raise InvalidInput(where, field, problem, "give one value for each of at least one increasing knot")
    for field, number in (
        ("kv_capacity_tokens", profile.kv_capacity_tokens),
        ("transfer_bytes_per_s", profile.transfer_bytes_per_s),
        ("prefill_chunk_tokens", profile.prefill_chunk_tokens),
        ("decode_batches", batches[0]),
    ):
        if number <= 0:
            raise InvalidInput(where, field, f"is {number}", "give a positive number")
