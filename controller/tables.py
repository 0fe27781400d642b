"""Plain text tables, as the command line and the demo print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Cell = str | int | float
MISSING = "-"
"""Stands for a number that is not known."""


def text_of(cell: Cell) -> str:
    """Write a cell: whole numbers as they are, others with two decimals, thousands apart."""
    if isinstance(cell, str):
        return cell
    return f"{cell:,}".replace(",", " ") if isinstance(cell, int) else f"{cell:,.2f}".replace(",", " ")


def render_table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], indent: str = "") -> str:
    """Align columns under their headers: text to the left, numbers, and what stands for them, to the right.

    >>> print(render_table(("NAME", "WATTS"), [("rack-1", 1200), ("rack-22", 80)]))
    NAME     WATTS
    rack-1   1 200
    rack-22     80
    """
    body = [tuple(row) for row in rows]
    texts = [[text_of(cell) for cell in row] for row in body]
    columns = range(len(headers))
    widths = [max(len(line[i]) for line in [list(headers), *texts]) for i in columns]
    numeric = [bool(body) and all(row[i] == MISSING or not isinstance(row[i], str) for row in body) for i in columns]
    return "\n".join(indent + _line(line, widths, numeric) for line in [list(headers), *texts])


def _line(texts: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cells = [
        text.rjust(width) if right else text.ljust(width)
        for text, width, right in zip(texts, widths, numeric, strict=True)
    ]
    return "  ".join(cells).rstrip()
