"""Work in a process of its own: a native crash or a hang there costs an answer, not the process that asked.

The child is a bare interpreter that loads what it is asked to do and nothing else. It is kept between asks, reads from
a pipe, and ends when the pipe does, whatever it is doing then.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from solvers.errors import SolveFailed

T = TypeVar("T")

HEAD_BYTES = 8  # of the length that goes before every ask
LONGEST_S = 86_400.0  # a deadline beyond a day is none
_idle: deque[Child] = deque()  # children without work; a child has one asker at a time


class WorkLost(SolveFailed):
    """The process that worked died or did not answer; the one that asked is as it was."""


class Child:
    """One child process, started when made; loading what it needs overlaps what the parent does meanwhile."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from solvers.apart import main; main()"
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, do: Callable[..., T], *args: Any, deadline_s: float) -> T:
        """Let the child do it and wait; see ``apart``."""
        hung = threading.Event()
        timer = threading.Timer(min(deadline_s, LONGEST_S), self._kill, (hung,))
        timer.daemon = True
        timer.start()
        try:
            answer = self._asked((do, args))
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            code = self.end()
            what = f"did not answer in {deadline_s:g} s" if hung.is_set() else f"ended with code {code}"
            raise WorkLost(f"the process at work {what}") from error
        finally:
            timer.cancel()
            timer.join()
        if isinstance(answer, Exception):
            raise answer
        done: T = answer
        return done

    def _kill(self, hung: threading.Event) -> None:
        hung.set()
        self._process.kill()

    def _asked(self, task: tuple[Any, ...]) -> Any:
        asks, answers = self._process.stdin, self._process.stdout
        if asks is None or answers is None:
            raise EOFError
        sent = pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL)
        asks.write(len(sent).to_bytes(HEAD_BYTES, "big"))
        asks.write(sent)
        asks.flush()
        return pickle.load(answers)

    def end(self) -> int:
        """Kill the child unless it has ended by itself; returns its exit code, negative for a signal."""
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.stdout.close()
        with contextlib.suppress(OSError):  # what it was never sent is lost with it
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that died is about to be seen dead
            return self._process.wait(timeout=1.0)
        self._process.kill()
        return self._process.wait()


def make_ready() -> None:
    """Start a child if none waits, so that it is there when asked."""
    if not _idle:
        _idle.append(Child())


def apart(do: Callable[..., T], *args: Any, deadline_s: float) -> T:
    """Do something in a process of its own.

    Parameters
    ----------
    do : callable
        A function of a module, by whose name the child finds it; it and ``args`` are pickled.
    deadline_s : float
        A child that takes longer is killed; starting it counts.

    Raises
    ------
    WorkLost
        The child died or was killed; the next ask starts another.
    Exception
        What ``do`` raised.
    """
    child = _taken()
    try:
        return child.ask(do, *args, deadline_s=deadline_s)
    finally:
        if child.is_alive:
            _idle.append(child)
        else:
            child.end()


def _taken() -> Child:
    while _idle:
        with contextlib.suppress(IndexError):  # another thread took it
            if (child := _idle.popleft()).is_alive:
                return child
            child.end()
    return Child()


@atexit.register
def end_all() -> None:
    """End the children that wait for work."""
    while _idle:
        _idle.popleft().end()


def main() -> None:
    """Serve asks from standard input, in the child; what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever interrupts the parent ends the pipe
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, asks), daemon=True).start()
    while True:
        pickle.dump(_answer(asks.get()), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _read(source: BinaryIO, asks: queue.SimpleQueue[bytes]) -> None:
    """Hand on what is asked; the end of the pipe is the end, even in the middle of a solve."""
    while len(head := source.read(HEAD_BYTES)) == HEAD_BYTES:
        asks.put(source.read(int.from_bytes(head, "big")))
    os._exit(0)


def _answer(task: bytes) -> Any:
    try:
        do, args = pickle.loads(task)
        return do(*args)
    except Exception as fault:  # noqa: BLE001 - whatever is raised belongs to who asked
        return fault
