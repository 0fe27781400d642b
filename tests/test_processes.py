"""What the kernel says of processes: children of children count, and ended ones are let go."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.processes import LOOK_S, child_pids, cpu_s, family_bytes, peak_of_family, resident_bytes

HELD = 64_000_000
HOLDS = f"held = bytearray(b'x') * {HELD}; print('ready', flush=True); input()"
HAS_A_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', {HOLDS!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print('ready', flush=True)
input()
child.communicate(b'\\n')
"""
HAS_A_GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HAS_A_CHILD!r}], check=True)"


def test_what_children_of_children_hold_counts_while_they_run() -> None:
    command = [sys.executable, "-c", HAS_A_GRANDCHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert parent.pid in child_pids(os.getpid())
        assert len(child_pids(parent.pid)) == 1
        assert 0 < resident_bytes(parent.pid) < HELD < family_bytes(parent.pid)
        assert sum(map(resident_bytes, child_pids(parent.pid))) < HELD  # it is held one further down
        parent.communicate(b"\n")
    assert parent.pid not in child_pids(os.getpid())
    assert family_bytes(parent.pid) == 0


def test_the_most_that_was_held_is_told() -> None:
    with peak_of_family() as peak:
        child = [sys.executable, "-c", f"import time; held = bytearray(b'x') * {HELD}; time.sleep(2)"]
        subprocess.run(child, check=True)
        time.sleep(3 * LOOK_S)  # it is looked at again once that is gone
    assert peak.resident_bytes > family_bytes(os.getpid()) + HELD / 2


def test_processor_seconds_are_those_of_the_kernel() -> None:
    assert cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.5)
    assert cpu_s(os.getpid()) > 0.0
