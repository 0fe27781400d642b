"""Where least values hide something in a large fleet: loads cut finer, and all sizes of large pools told apart.

Loads are rounded, and sizes beyond a few dozen lie on a line. Either hides up to a replica: nothing where money is all
that counts, much where something is short and every replica is worth a lot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from solvers.planner.pools.cells import Floats
from solvers.planner.wide.curve_book import CurveBook
from solvers.planner.wide.rows import priced_ways
from solvers.planner.wide.sides import Sides
from solvers.planner.wide.stocks import Pick, Stocks

FINE_PARTS, FINE_WORK = (4000, 8000), 800_000  # of the demand, and of all services, once coarse ones say no more
FINER = 4  # times that loads are cut finer
LEAST_FINEST, MOST_FINEST, FINEST_WORK = 64_000, 128_000, 1_600_000  # parts at most: of a service, and of all
HURRIED_FINEST = 32_000  # the same while every pricing counts


def cut_finer(stocks: Sequence[Stocks], sides: Sequence[Sides | None]) -> tuple[list[Stocks], list[Sides | None]]:
    """Cut loads finely, the more the fewer services there are; none more coarsely than it was."""
    parts = max(FINE_PARTS[0], min(FINE_PARTS[1], FINE_WORK // max(1, len(stocks))))
    return [replace(mine, parts=max(mine.parts, parts)) for mine in stocks], [cut and cut.finer(parts) for cut in sides]


def closer_stocks(
    stocks: Sequence[Stocks],
    picks: Sequence[Pick | None],
    *,
    book: CurveBook,
    asked: Floats,
    weights: Floats,
    most_hidden: float,
    is_hurried: bool = False,
) -> dict[int, Stocks]:
    """Look closer at the services whose least value lies clearly below the way that is made of it.

    Parameters
    ----------
    picks : sequence of Pick or None
        By service, what the least value is made of at the prices; services with None are left as they are.
    book : CurveBook
        Learns the largest size of the pools that are told apart from now on.
    asked, weights : (C,) float, (S,) float
        What a replica of each cell pays for what services share, and what penalties are multiplied by.
    most_hidden : float
        USD per hour that a least value may hide.
    is_hurried : bool
        Cut no loads so finely that pricing takes several times as long.
    """
    finer: dict[int, Stocks] = {}
    finest = HURRIED_FINEST if is_hurried else max(LEAST_FINEST, min(MOST_FINEST, FINEST_WORK // len(stocks)))
    for s, (mine, pick) in enumerate(zip(stocks, picks, strict=False)):
        way = None if pick is None else book.maker.way(s, pick, asked)
        if pick is None or way is None:
            continue
        if float(priced_ways([way], asked, weights)[0]) - pick.value_usd_per_hour <= most_hidden:
            continue
        beyond = {p for p, size in pick.sizes.items() if size > mine.told(p) and p in book.curves[s]}
        for pool in sorted(beyond):
            book.learn(s, pool, int(mine.most[pool]))
        if beyond or mine.parts < finest:
            finer[s] = replace(mine, apart=mine.apart | beyond, parts=min(finest, FINER * mine.parts))
    return finer
