"""Keys that are looked up millions of times: their hash is worked out once for each object."""

from __future__ import annotations

from dataclasses import Field
from operator import attrgetter
from typing import Any, ClassVar


class HashedOnce:
    """Base of frozen dataclasses with slots whose body says ``__hash__ = HashedOnce.__hash__``.

    The hash is no field: it is neither compared, printed nor sent to other processes, where strings hash differently.
    """

    __slots__ = ("_hash",)
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # of those that derive from it
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            found = hash(attrgetter(*self.__dataclass_fields__)(self))
            object.__setattr__(self, "_hash", found)
            return found
