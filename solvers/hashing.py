"""Keys that are looked up millions of times: their hash is worked out once for each object."""

from __future__ import annotations

from operator import attrgetter
from typing import Any


class HashedOnce:
    """Base of frozen dataclasses with slots whose body says ``__hash__ = HashedOnce.__hash__``.

    The hash is no field: it is neither compared, printed nor sent to other processes, where strings hash differently.
    """

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            fields: Any = type(self).__dataclass_fields__  # type: ignore[attr-defined]
            found = hash(attrgetter(*fields)(self))
            object.__setattr__(self, "_hash", found)
            return found
