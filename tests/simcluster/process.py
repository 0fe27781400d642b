"""Child processes that never outlive us, and what the kernel knows of them: ports, memory."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tests.processes import cpu_s, resident_bytes

STOP_GRACE_S = 5.0  # between SIGTERM and SIGKILL
_BOUND = Path(__file__).parent / "bound.py"
_TCP_LISTEN = "0A"  # the state column of /proc/net/tcp
_FIRST_PORT = 10_000


class ProcessError(RuntimeError):
    """A child process could not be started, or ended by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start one component; kept, so that a stopped one starts again on the same ports and data."""

    name: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A TCP socket that accepts connections."""

    component: str
    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can connect; ``::ffff:127.0.0.1`` is an IPv6 socket that does so too."""
        address = ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Supervisor:
    """Starts, stops and watches child processes by name; each writes to ``NAME.log`` in one folder.

    Children are started from one thread of ours: the kernel kills them when that thread ends, so a killed test run
    leaves nothing behind. They live in sessions of their own, so that Ctrl-C reaches only us and we stop them in order.
    """

    def __init__(self, logs_dir: Path) -> None:
        self.logs_dir = logs_dir
        logs_dir.mkdir(parents=True, exist_ok=True)
        self._commands: dict[str, Command] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="simcluster")

    @property
    def names(self) -> tuple[str, ...]:
        """Every component started so far, in the order of its first start."""
        return tuple(self._commands)

    def start(self, command: Command) -> None:
        """Start a component for the first time, or again with another command."""
        if self.is_running(command.name):
            raise ProcessError(f"{command.name} runs already, as pid {self._running[command.name].pid}; stop it first")
        self._commands[command.name] = command
        self._running[command.name] = self._thread.submit(self._spawn, command).result()

    def restart(self, name: str) -> None:
        """Start a stopped component with the command it had."""
        self.start(self._command(name))

    def stop(self, name: str, *, kill: bool = False) -> None:
        """Stop a component: SIGTERM, then SIGKILL after 5 s; with ``kill``, SIGKILL at once."""
        self._command(name)
        if (process := self._running.pop(name, None)) is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop every component, the last started first."""
        for name in reversed(self.names):
            self.stop(name)
        self._thread.shutdown()

    def is_running(self, name: str) -> bool:
        process = self._running.get(name)
        return process is not None and process.poll() is None

    def check(self) -> None:
        """Raise if a component that should run has ended, with the end of its log."""
        for name, process in self._running.items():
            if (status := process.poll()) is not None:
                raise ProcessError(f"{name} ended with status {status}; the end of its log:\n{self.log_tail(name)}")

    def pids(self) -> dict[str, int]:
        """Return the process ids of the components that run."""
        return {name: process.pid for name, process in self._running.items() if process.poll() is None}

    def log_tail(self, name: str, lines: int = 20) -> str:
        """Return the last lines of a component's log, long ones cut short."""
        path = self.logs_dir / f"{name}.log"
        return "\n".join(line[:300] for line in path.read_text(errors="replace").splitlines()[-lines:])

    def listeners(self) -> list[Listener]:
        """Return every TCP socket on which a component accepts connections."""
        by_inode = {inode: name for name, pid in self.pids().items() for inode in _socket_inodes(pid)}
        return [
            Listener(component=by_inode[inode], address=address, port=port)
            for inode, address, port in _listening_sockets()
            if inode in by_inode
        ]

    def memory_bytes(self) -> dict[str, int]:
        """Return the resident memory of each component that runs."""
        return {name: resident_bytes(pid) for name, pid in self.pids().items()}

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that each running component has used, in seconds."""
        return {name: cpu_s(pid) for name, pid in self.pids().items()}

    def _command(self, name: str) -> Command:
        if name not in self._commands:
            raise ProcessError(f"no component {name!r} here; there are {', '.join(self._commands) or 'none'}")
        return self._commands[name]

    def _spawn(self, command: Command) -> subprocess.Popen[bytes]:
        bound = (sys.executable, "-I", "-S", str(_BOUND), str(os.getpid()))
        with (self.logs_dir / f"{command.name}.log").open("ab") as log:
            return subprocess.Popen(
                (*bound, *command.arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(command.environment),
                start_new_session=True,
            )


def free_ports(count: int) -> list[int]:
    """Return ports on 127.0.0.1 that are free now and that the kernel gives to no outgoing connection.

    A port from the ephemeral range could be taken while its component is stopped, even by a client's attempts to
    reach that component: a connection to one's own port succeeds.
    """
    last = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(_FIRST_PORT, last) if last > _FIRST_PORT + 1000 else range(_FIRST_PORT, 65_535)
    # A generator of its own: tests seed the global one, and two clusters would then try the same ports.
    found = (port for port in random.SystemRandom().sample(candidates, k=200) if _is_free(port))
    ports = [port for port, _ in zip(found, range(count), strict=False)]
    if len(ports) < count:
        raise ProcessError(f"found {len(ports)} free ports on 127.0.0.1, need {count}")
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _socket_inodes(pid: int) -> Iterable[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:  # closed since the folder was read
            continue
        if target.startswith("socket:["):
            yield target[len("socket:[") : -1]


def _listening_sockets() -> Iterable[tuple[str, str, int]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == _TCP_LISTEN:
                address, port = fields[1].split(":")
                yield fields[9], _dotted(address), int(port, 16)


def _dotted(address: str) -> str:
    """Decode the kernel's form: 32-bit words in the machine's order of bytes."""
    words = [int(address[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(address), 8)]
    packed = b"".join(words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def minimal_environment(home: Path, extra: Sequence[tuple[str, str]] = ()) -> tuple[tuple[str, str], ...]:
    """Return an environment without proxies, kubeconfigs or credentials of the user."""
    return (("HOME", str(home)), ("PATH", os.environ.get("PATH", os.defpath)), ("TZ", "UTC"), *extra)
