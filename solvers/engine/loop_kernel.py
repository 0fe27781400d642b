"""The inner loop of ``solvers.engine.closed_loop``: plain Python, compiled where numba is installed (extra ``fast``).

Requests are numbered in the order in which clients send them, and every queue is first in, first out. So four counters
say where each request is: below ``prefilled`` its prompt is done, below ``admitted`` it holds KV room, below ``seen``
the scheduler knows of it, below ``sent`` a client waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Curves = tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats]
F = TypeVar("F", bound=Callable[..., Any])

# Places in the array of a server's settings.
CLIENTS, BUDGET, SEATS, ROOM, RANKS, POLL, GATHER_TOKENS, GATHER_REQUESTS, GATHER_STEPS, WHOLE, ALONE = range(11)
# Places in the array of corrections.
DECODE, DECODE_EXTRA, PREFILL, PREFILL_EXTRA, FRONT_END = range(5)
# Places in the loop's own counters, and in its sums.
SENT, SEEN, ADMITTED, PREFILLED, RUNNING, FINISHED, STEPS, SINCE_POLL, WAITED = range(9)
NOW, FRONT_FREE, HELD, CONTEXT = range(4)


def _compiled(function: F) -> F:
    """Compile with numba where it is installed; the plain function otherwise."""
    try:
        from numba import njit
    except ModuleNotFoundError:
        return function
    return cast(F, njit(cache=True)(function))


@_compiled
def along(knots: Floats, values: Floats, at: float) -> float:
    """Straight lines between knots; the first value below them, the last line's slope above."""
    if at <= knots[0]:
        return float(values[0])
    right = min(int(np.searchsorted(knots, at)), len(knots) - 1)
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    return float(values[right - 1] + share * (values[right] - values[right - 1]))


@_compiled
def across(rows: Floats, columns: Floats, table: Floats, row: float, column: float) -> float:
    """Straight lines between the rows of a table, and along them."""
    if row <= rows[0]:
        return along(columns, table[0], column)
    right = min(int(np.searchsorted(rows, row)), len(rows) - 1)
    share = (row - rows[right - 1]) / (rows[right] - rows[right - 1])
    low, high = along(columns, table[right - 1], column), along(columns, table[right], column)
    return float(low + share * (high - low))


@_compiled
def admit(server: Floats, prompts: Whole, outputs: Whole, ready: Floats, count: Whole, total: Floats) -> None:
    """Let the scheduler see who has arrived, where it looks, and give out seats and KV room in order."""
    idle = count[RUNNING] == 0 and count[ADMITTED] == count[PREFILLED]
    if idle or count[SINCE_POLL] == 0:
        while count[SEEN] < count[SENT] and ready[count[SEEN]] <= total[NOW]:
            count[SEEN] += 1
    if count[RUNNING] > 0 and count[ADMITTED] < count[SEEN] and count[WAITED] < server[GATHER_STEPS]:
        waiting = 0
        for request in range(count[ADMITTED], count[SEEN]):
            waiting += prompts[request]
        few = count[SEEN] - count[ADMITTED] < server[GATHER_REQUESTS]
        if few or waiting + count[RUNNING] < server[GATHER_TOKENS]:
            return
    while count[ADMITTED] < count[SEEN]:
        request = count[ADMITTED]
        seated = count[ADMITTED] - count[PREFILLED] + count[RUNNING]
        needed = prompts[request] + outputs[request]
        if seated > 0 and (seated >= server[SEATS] or total[HELD] + needed > server[ROOM]):
            return
        total[HELD] += needed
        count[ADMITTED] += 1
        count[WAITED] = 0


@_compiled
def prefill_step_s(
    curves: Curves, server: Floats, theta: Floats, prompts: Whole, done: Whole, count: Whole, total: Floats
) -> float:
    """Compute the next chunks of the admitted prompts, beside the running sequences or alone; how long that takes."""
    _, _, _, _, token_knots, dense, attention = curves
    ranks, beside = server[RANKS], 0 if server[ALONE] > 0 else count[RUNNING]
    budget, tokens, attended = server[BUDGET] * ranks - beside, 0.0, 0.0
    request = count[PREFILLED]
    while request < count[ADMITTED] and budget >= 1.0:
        rest = prompts[request] - done[request]
        chunk = min(rest, int(budget))
        if chunk < rest and server[WHOLE] > 0 and tokens > 0:
            break
        before = along(token_knots, attention, float(done[request])) if done[request] > 0 else 0.0
        done[request] += chunk
        attended += along(token_knots, attention, float(done[request])) - before
        tokens += chunk
        budget -= chunk
        request += 1
    spent = theta[PREFILL] * (along(token_knots, dense, (tokens + beside) / ranks) + attended / ranks)
    if beside > 0:
        spent += theta[DECODE] * across(curves[0], curves[1], curves[3], beside / ranks, total[CONTEXT] / beside)
    return float(spent + theta[PREFILL_EXTRA])


@_compiled
def steps_ahead(ends: Whole, running: Whole, count: Whole) -> int:
    """Decode steps until the batch may change at the earliest: somebody ends."""
    steps = ends[running[0]] - count[STEPS]
    for place in range(1, count[RUNNING]):
        steps = min(steps, ends[running[place]] - count[STEPS])
    return int(max(1, steps))


@_compiled
def steps_until_seen(server: Floats, ready: Floats, step_s: float, count: Whole, total: Floats) -> int:
    """Decode steps until the scheduler, which looks every so many steps, sees the next arrival or stops waiting."""
    until = 1 << 60
    if count[SEEN] < count[SENT]:
        away = max(1, math.ceil((ready[count[SEEN]] - total[NOW]) / step_s))
        poll = int(server[POLL])
        until = math.ceil((count[SINCE_POLL] + away) / poll) * poll - count[SINCE_POLL]
    if count[ADMITTED] < count[SEEN] and count[WAITED] < server[GATHER_STEPS]:
        until = min(until, int(server[GATHER_STEPS]) - count[WAITED])
    return int(max(1, until))


@_compiled
def retire(
    theta: Floats,
    prompts: Whole,
    outputs: Whole,
    ends: Whole,
    running: Whole,
    sent: Floats,
    ready: Floats,
    finished: Floats,
    count: Whole,
    total: Floats,
) -> None:
    """Let sequences that are complete go; their clients send their next requests through the serial front end."""
    kept = 0
    for place in range(count[RUNNING]):
        request = running[place]
        if ends[request] > count[STEPS]:
            running[kept] = request
            kept += 1
            continue
        finished[request] = total[NOW]
        count[FINISHED] += 1
        size = prompts[request] + outputs[request]
        total[HELD] -= size
        total[CONTEXT] -= size
        if count[SENT] < len(prompts):
            sent[count[SENT]] = total[NOW]
            total[FRONT_FREE] = max(total[FRONT_FREE], total[NOW]) + theta[FRONT_END]
            ready[count[SENT]] = total[FRONT_FREE]
            count[SENT] += 1
    count[RUNNING] = kept


@_compiled
def seat(
    prompts: Whole,
    outputs: Whole,
    done: Whole,
    ends: Whole,
    running: Whole,
    first: Floats,
    count: Whole,
    total: Floats,
) -> None:
    """Give every prompt that is complete its first token and a place in the batch."""
    while count[PREFILLED] < count[ADMITTED] and done[count[PREFILLED]] >= prompts[count[PREFILLED]]:
        request = count[PREFILLED]
        first[request] = total[NOW]
        ends[request] = count[STEPS] + outputs[request] - 1
        running[count[RUNNING]] = request
        count[RUNNING] += 1
        count[PREFILLED] += 1
        total[CONTEXT] += prompts[request] + 1


@_compiled
def run_loop(curves: Curves, server: Floats, theta: Floats, prompts: Whole, outputs: Whole, times: Floats) -> None:
    """Run the benchmark to its end; ``times`` (3, requests) takes when each was sent, began to answer and ended."""
    requests, clients = len(prompts), min(int(server[CLIENTS]), len(prompts))
    count, total = np.zeros(9, np.int64), np.zeros(4)
    done, ends = np.zeros(requests, np.int64), np.zeros(requests, np.int64)
    ready, running = np.zeros(requests), np.zeros(requests, np.int64)
    sent, first, finished = times[0], times[1], times[2]
    for request in range(clients):
        ready[request] = theta[FRONT_END] * (request + 1)
    count[SENT], total[FRONT_FREE] = clients, theta[FRONT_END] * clients
    while count[FINISHED] < requests:
        admit(server, prompts, outputs, ready, count, total)
        batch = count[RUNNING]
        if count[ADMITTED] > count[PREFILLED]:
            total[NOW] += prefill_step_s(curves, server, theta, prompts, done, count, total)
            steps = 1 if batch > 0 and server[ALONE] == 0 else 0
            count[SINCE_POLL] = 0
        elif batch > 0:
            steps = steps_ahead(ends, running, count)
            rows, context = max(1.0, batch / server[RANKS]), (total[CONTEXT] + batch * steps / 2.0) / batch
            step_s = theta[DECODE] * across(curves[0], curves[1], curves[2], rows, context) + theta[DECODE_EXTRA]
            steps = min(steps, steps_until_seen(server, ready, step_s, count, total))
            total[NOW] += step_s * steps
            count[SINCE_POLL] = (count[SINCE_POLL] + steps) % int(server[POLL])
            if count[ADMITTED] < count[SEEN]:
                count[WAITED] += steps
        else:
            total[NOW] = max(total[NOW], ready[count[SEEN]])
            continue
        if steps > 0:
            count[STEPS] += steps
            total[CONTEXT] += batch * steps
            retire(theta, prompts, outputs, ends, running, sent, ready, finished, count, total)
        seat(prompts, outputs, done, ends, running, first, count, total)


@_compiled
def run_rows(
    which: Whole,
    curves: Curves,
    servers: Floats,
    thetas: Floats,
    lengths: Floats,
    sizes: Floats,
    rounds: int,
    opening_ratio: float,
    found: Floats,
) -> None:
    """Run many benchmarks; ``found`` (rows, 3) takes mean TTFT, mean TPOT and the makespan, in seconds.

    Curves are stacked along a first axis and ``which`` says which belongs to a row. ``sizes`` (rows, 3) holds nominal
    prompt, nominal output and the least share of them; ``lengths`` (2, requests) evenly spread numbers 0-1.
    """
    for row in range(len(which)):
        own = (curves[0], curves[1], curves[2][which[row]], curves[3][which[row]], curves[4])
        shaped = (*own, curves[5][which[row]], curves[6][which[row]])
        clients = int(servers[row, CLIENTS])
        requests = clients * rounds
        prompts, outputs = np.zeros(requests, np.int64), np.zeros(requests, np.int64)
        spread = 1.0 - sizes[row, 2]
        for request in range(requests):
            prompts[request] = max(1, int(sizes[row, 0] * (sizes[row, 2] + spread * lengths[0, request])))
            outputs[request] = max(2, int(sizes[row, 1] * (sizes[row, 2] + spread * lengths[1, request])))
        times = np.zeros((3, requests))
        run_loop(shaped, servers[row], thetas[row], prompts, outputs, times)
        opening, later, gap = 0.0, 0.0, 0.0
        for request in range(requests):
            ttft = times[1, request] - times[0, request]
            if request < clients:
                opening += ttft / clients
            else:
                later += ttft / (requests - clients)
            gap += (times[2, request] - times[1, request]) / (outputs[request] - 1) / requests
            found[row, 2] = max(found[row, 2], times[2, request])
        share = opening_ratio if requests > clients else 1.0
        found[row, 0] = share * opening + (1.0 - share) * later
        found[row, 1] = gap
