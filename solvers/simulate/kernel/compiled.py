"""The kernel compiled: the same functions, bound to compiled ones of each other. Needs the extra ``fast`` (numba).

numba keeps what it compiled beside this file and looks only at one file's age to know whether that is outdated. The
kernel is several, so the entry closes over a digest of all their code: another digest, another entry in the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import CodeType, FunctionType, ModuleType
from typing import Any, cast

from solvers.errors import InvalidInput
from solvers.simulate.kernel import accounts, choice, clock, curves, engine, links, loop, prefix, records, routing
from solvers.simulate.kernel.records import World

MODULES: tuple[ModuleType, ...] = (records, clock, prefix, curves, engine, accounts, links, choice, routing, loop)

UNCOUNTED = {"_nrt": False}  # the kernel allocates nothing; counting references to its arrays would cost ten times more
INNER = {**UNCOUNTED, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}

TAKEN_IN = frozenset({"boundary", "give_up_waiting", "next_arrival", "deliver", "ask", "begin_again"})
"""Called from one place, with much of the kernel below them: as functions of their own each would be optimised, and
made into machine code, with all of that again. Taken into their caller they save a tenth of the compilation. (``run``
and ``advance`` would save another tenth, and the loop would then take half as long again.)"""

Run = Callable[[World, int, int, int], int]


def is_available() -> bool:
    """True when numba can be imported."""
    return find_spec("numba") is not None


@lru_cache(maxsize=1)
def compiled_run() -> Run:
    """Return ``loop.run`` compiled; the first call of it compiles, or reads what an earlier process compiled.

    Raises
    ------
    InvalidInput
        When numba is not installed.
    """
    if not is_available():
        remedy = "install penstock[fast], or run plain"
        raise InvalidInput("simulation", "compiled", "needs numba, which is not installed", remedy)
    njit: Any = import_module("numba").njit
    namespace = _constants()
    for name, function in functions().items():
        inline = "always" if name in TAKEN_IN else "never"
        namespace[name] = njit(**INNER, inline=inline)(_bound(function, namespace))
    entry = _bound(_entry(code_digest(functions(), _constants())), namespace)
    return cast(Run, njit(cache=True, **UNCOUNTED)(entry))


def functions() -> dict[str, FunctionType]:
    """Every function of the kernel by name."""
    return {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    }


def code_digest(some: dict[str, FunctionType], constants: dict[str, Any]) -> int:
    """Digest of the code of functions and of the numbers they use, 63 bits."""
    text = repr([(name, _told(function.__code__)) for name, function in sorted(some.items())])
    numbers = repr(sorted((name, value) for name, value in constants.items() if isinstance(value, int)))
    return int.from_bytes(hashlib.sha256((text + numbers).encode()).digest()[:8], "big") >> 1


def _told(code: CodeType) -> tuple[object, ...]:
    """What a function does, without where it stands."""
    constants = tuple(c for c in code.co_consts if not isinstance(c, (str, CodeType)))
    return code.co_code.hex(), constants, code.co_names, code.co_varnames


def _constants() -> dict[str, Any]:
    """Numbers and library functions that the kernel uses."""
    return {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if not name.startswith("__") and not isinstance(value, (FunctionType, ModuleType))
    }


def _bound(function: FunctionType, namespace: dict[str, Any]) -> FunctionType:
    """The same function with other globals, which are looked up when it is compiled."""
    bound = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__)
    bound.__module__, bound.__qualname__ = __name__, function.__qualname__
    return bound


def _entry(digest: int) -> FunctionType:
    def entry(w: World, what: int, which: int, value: int) -> int:
        return run(w, what, which, value) if digest >= 0 else 0  # type: ignore[name-defined]  # noqa: F821

    return entry  # type: ignore[return-value]
