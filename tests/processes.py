"""What processes hold and have used, as the kernel tells it, and the most that one and all that it started held."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.2
GONE = FileNotFoundError, ProcessLookupError


@dataclass(slots=True)
class Peak:
    """The most seen so far."""

    resident_bytes: int = 0


def resident_bytes(pid: int) -> int:
    """What of its memory is in RAM, pages that it shares with others included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """Processor seconds, its own and those of the kernel for it."""
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child_pids(pid: int) -> set[int]:
    """Processes whose parent a process is. Not by its threads' lists: those vanish with their threads."""
    return {child for child, parent in _parents().items() if parent == pid}


def family_bytes(pid: int) -> int:
    """What a process and all that it started, and these in turn, hold; pages that they share count for each."""
    parents, family = _parents(), {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for member in family:
        with suppress(*GONE):  # it has ended meanwhile
            total += resident_bytes(member)
    return total


@contextmanager
def peak_of_family() -> Iterator[Peak]:
    """Look every so often what this process and all that it started hold, until the block ends."""
    peak, is_over = Peak(), threading.Event()

    def look() -> None:
        while True:
            peak.resident_bytes = max(peak.resident_bytes, family_bytes(os.getpid()))
            if is_over.wait(LOOK_S):
                return

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        is_over.set()
        looking.join()


def _parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(*GONE):  # it has ended meanwhile
            found[int(entry.name)] = int(_fields(int(entry.name))[1])
    return found


def _fields(pid: int) -> list[str]:
    """What /proc/PID/stat says after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
