"""Replace this process by the given command, which dies with the process that started it.

Run as ``python -I -S bound.py PARENT_PID COMMAND ...``. The kernel sends SIGKILL when the *thread* that started this
process ends, so the starter keeps one thread for it. A ``preexec_fn`` would do the same, but may deadlock in a program
with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:  # it ended before the line above
        sys.exit(f"process {parent_pid}, which started this one, is gone")
    os.execv(command[0], command)


main()
