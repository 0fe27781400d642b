"""What a step costs: look-ups in the flattened curves of a profile, and the arithmetic of runs.

Curves are polygons with whole knots and slopes; the last segment goes on beyond the last knot. A *run* is ``k`` steps
of an unchanged batch; step ``i`` takes ``step + i * growth`` ticks, so the end of step ``k`` is
``k * step + growth * k * (k - 1) / 2``.
"""

from __future__ import annotations

from math import sqrt

from solvers.simulate.kernel.records import NEVER, Replica, Table, World


def segment(w: World, base: int, count: int, tokens: int) -> int:
    """Index of the segment that holds ``tokens``, among ``count`` knots from ``base`` on."""
    low, high = base, base + count
    while high - low > 1:
        middle = (low + high) >> 1
        if w.knots[middle] <= tokens:
            low = middle
        else:
            high = middle
    return low


def value_at(w: World, base: int, count: int, tokens: int) -> int:
    """Ticks of a curve at ``tokens``."""
    i = segment(w, base, count, tokens)
    return w.values[i] + w.slopes[i] * (tokens - w.knots[i])


def prompt_ticks(w: World, table: Table, tokens: int) -> int:
    """Ticks to compute a prompt on its own."""
    return value_at(w, table.line, table.line_knots, tokens)


def behind_ticks(w: World, table: Table, cached: int, tokens: int) -> int:
    """Ticks to compute ``tokens`` behind a cached prefix.

    From the profile's table, linear between its prefixes; without one what their continuation costs, and never less
    than they do alone.
    """
    line, count = table.line, table.line_knots
    alone = value_at(w, line, count, tokens)
    if cached == 0:
        return alone
    if table.prefixes == 0:
        return max(alone, value_at(w, line, count, cached + tokens) - value_at(w, line, count, cached))
    first = table.first_prefix
    high = 0
    while high < table.prefixes - 1 and w.numbers[first + high] < cached:
        high += 1
    low_at, low = 0, alone
    if high > 0:
        low_at = w.numbers[first + high - 1]
        low = value_at(w, table.behind + (high - 1) * count, count, tokens)
    rise = value_at(w, table.behind + high * count, count, tokens) - low
    return low + rise * (cached - low_at) // (w.numbers[first + high] - low_at)


def piece_ticks(w: World, table: Table, cached: int, done: int, tokens: int) -> int:
    """Ticks of ``tokens`` more of a prompt whose first ``done`` are there, ``cached`` of them from the prefix cache."""
    if cached > 0:
        upto = behind_ticks(w, table, cached, done - cached + tokens)
        return upto - behind_ticks(w, table, cached, done - cached) if done > cached else upto
    upto = value_at(w, table.line, table.line_knots, done + tokens)
    return upto - value_at(w, table.line, table.line_knots, done) if done > 0 else upto


def alike_pieces(w: World, table: Table, done: int, tokens: int) -> int:
    """How many pieces of ``tokens`` from ``done`` on cost the same, 0 when the first already crosses a knot."""
    i = segment(w, table.line, table.line_knots, done)
    if i + 1 == table.line + table.line_knots:
        return NEVER
    return (w.knots[i + 1] - done) // tokens


def draw(w: World, table: Table, batch: int, is_prefilling: int) -> int:
    """Milliwatts of a replica: the larger of the two phases when a step does both."""
    decoding = w.numbers[table.watts + batch] if batch > 0 else table.idle_milliwatts
    return max(decoding, table.prefill_milliwatts) if is_prefilling else decoding


def time_of(rep: Replica, steps: int) -> int:
    """Ticks from the start of the run to the end of its step ``steps``."""
    return steps * rep.step + rep.growth * (steps * (steps - 1) // 2)


def steps_until(rep: Replica, elapsed: int) -> int:
    """Fewest steps (at least 1) that last ``elapsed`` ticks; the guess is corrected by comparing whole numbers."""
    if rep.growth > 0:
        half = rep.step / rep.growth - 0.5
        guess = int(2.0 * (elapsed / rep.growth) / (half + sqrt(half * half + 2.0 * elapsed / rep.growth)))
    else:
        guess = elapsed // rep.step
    steps = max(1, guess)
    while steps > 1 and time_of(rep, steps - 1) >= elapsed:
        steps -= 1
    while time_of(rep, steps) < elapsed:
        steps += 1
    return steps
