"""The prefix cache of the step-by-step truth: single blocks, each named by everything up to it."""

from __future__ import annotations

from collections.abc import Sequence

Path = tuple[tuple[int, ...], ...]
"""Blocks of a prompt that may be shared, from its start on; a block is the tuple of all ids up to it."""


def path_of(ids: Sequence[int], prompt_tokens: int, block_tokens: int) -> Path:
    """Blocks of a prompt without the one that holds its last token."""
    count = min(len(ids), (prompt_tokens - 1) // block_tokens)
    return tuple(tuple(ids[: i + 1]) for i in range(count))


class Stretches:
    """Which blocks are always used together: those in the paths of the very same requests."""

    def __init__(self, paths: Sequence[Path], block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.of: dict[tuple[int, ...], frozenset[int]] = {}
        users: dict[tuple[int, ...], set[int]] = {}
        for i, path in enumerate(paths):
            for block in path:
                users.setdefault(block, set()).add(i)
        self.of = {block: frozenset(some) for block, some in users.items()}


class BlockCache:
    """Blocks held by one engine. Who uses a block of a stretch uses all that are held of it."""

    def __init__(self, stretches: Stretches, *, is_on: bool) -> None:
        self.of, self.tokens, self.is_on = stretches.of, stretches.block_tokens, is_on
        self.held: set[tuple[int, ...]] = set()
        self.users: dict[frozenset[int], int] = {}
        self.unused: list[tuple[int, ...]] = []  # oldest first

    def hits(self, path: Path) -> int:
        for i, block in enumerate(path if self.is_on else ()):
            if block not in self.held:
                return i
        return len(path) if self.is_on else 0

    def used_tokens(self) -> int:
        return (len(self.held) - len(self.unused)) * self.tokens

    def unused_among(self, path: Path) -> int:
        """Blocks that nobody uses and that using this path would put to use."""
        stretches = {self.of[block] for block in path}
        return sum(self.of[block] in stretches for block in self.unused)

    def pin(self, path: Path) -> None:
        for stretch in {self.of[block] for block in path}:
            self.users[stretch] = self.users.get(stretch, 0) + 1
            self.unused = [block for block in self.unused if self.of[block] != stretch]

    def share(self, path: Path, hits: int) -> None:
        """A prompt is computed of which the first ``hits`` blocks were pinned: it pins and brings the other ones."""
        pinned = {self.of[block] for block in path[:hits]}
        self.pin(tuple(block for block in path if self.of[block] not in pinned))
        self.held |= set(path)

    def unpin(self, path: Path) -> None:
        for stretch in {self.of[block]: None for block in reversed(path)}:  # the deepest first
            self.users[stretch] -= 1
            if self.users[stretch] == 0:
                mine = [block for block in self.held if self.of[block] == stretch]
                self.unused += sorted(mine, key=len, reverse=True)

    def evict(self, room: int) -> None:
        """Drop the oldest unused blocks until those left take no more than ``room`` tokens."""
        while self.unused and len(self.unused) * self.tokens > max(0, room):
            self.held.discard(self.unused.pop(0))
