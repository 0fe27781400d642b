"""The kernel compiled and plain: one source, the same bytes; and the same bytes again from the same seed."""

from __future__ import annotations

import dis
import hashlib
from collections import Counter

import pytest

from solvers.errors import InvalidInput
from solvers.simulate import Fleet, is_worth_compiling
from solvers.simulate.kernel import compiled
from solvers.simulate.kernel.records import FINISHED, REJECTED, TIMED_OUT, World
from tests.sim_cases import random_case, simulated

FLEETS = 60


def digest(fleet: Fleet) -> str:
    """Everything that came of a fleet, as one number."""
    fleet.settle()
    told = hashlib.sha256()
    for status in (FINISHED, REJECTED, TIMED_OUT):
        told.update(fleet.take_rows(status).tobytes())
    told.update(fleet.take_runs().tobytes())
    told.update(fleet.meters().tobytes())
    told.update(repr((fleet.events, fleet.now_s)).encode())
    for service in fleet.services():
        told.update(repr((sorted(fleet.gaps(service).counts.items()), fleet.counts(service))).encode())
    return told.hexdigest()


def test_plain_and_compiled_agree_to_the_byte() -> None:
    pytest.importorskip("numba")
    different = [
        seed
        for seed in range(FLEETS)
        if digest(simulated(random_case(seed))) != digest(simulated(random_case(seed), compiled=True))
    ]
    assert different == []


def test_what_is_taken_into_its_caller_has_one() -> None:
    named = Counter(
        step.argval
        for function in compiled.functions().values()
        for step in dis.get_instructions(function)
        if step.opname == "LOAD_GLOBAL"
    )
    assert {name: named[name] for name in compiled.TAKEN_IN} == dict.fromkeys(compiled.TAKEN_IN, 1)


def test_the_world_has_no_more_arrays_than_calls_bear() -> None:
    """With one more every call that is not taken into its caller costs several times as much, and nothing says so."""
    assert len(World._fields) <= 32


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert [digest(simulated(random_case(seed))) for seed in range(20)] == [
        digest(simulated(random_case(seed))) for seed in range(20)
    ]
    assert digest(simulated(random_case(1))) != digest(simulated(random_case(2)))


def test_without_numba_the_plain_kernel_runs_and_the_compiled_one_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    compiled.compiled_run.cache_clear()
    with pytest.raises(InvalidInput, match=r"install penstock\[fast\]"):
        Fleet(compiled=True)
    assert not is_worth_compiling(10**9)
    assert not Fleet().is_compiled


def test_a_change_in_any_file_of_the_kernel_changes_the_digest_of_the_compiled_code() -> None:
    functions = compiled.functions()
    files = {function.__module__ for function in functions.values()}
    assert len(files) >= 8  # the entry's own file is another one, and numba would look at that alone
    constants = {"NEVER": 1, "NONE": -1}
    before = compiled.code_digest(functions, constants)
    changed = {**functions, "time_of": functions["steps_until"]}
    assert compiled.code_digest(functions, constants) == before
    assert compiled.code_digest(changed, constants) != before
    assert compiled.code_digest(functions, {**constants, "NEVER": 2}) != before
