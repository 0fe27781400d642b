"""One frozen Settings for ``penstock run``: flags, then ``PENSTOCK_*`` variables, then defaults.

What belongs to the fleet (cadence, modes, tiers, budgets) lives in FleetPolicy; here is only what one process needs.
"""

from __future__ import annotations

import argparse
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from solvers.errors import InvalidInput

GIBIBYTE = 1024**3


def _option(default: Any, help_text: str, *, parse: Callable[[str], Any] = str) -> Any:
    """Declare one option: its default, what it means, and how its text is read."""
    return field(default=default, metadata={"help": help_text, "parse": parse})


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError("must be above 0")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise ValueError("must not be negative")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must lie between 0 and 65535")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must not be negative")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be 1 or more")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one operator process needs to know; every field is a flag and a ``PENSTOCK_`` variable."""

    kubeconfig: str = _option("", "kubeconfig file; empty: the pod's service account, else the user's default")
    namespace: str = _option("penstock-system", "namespace of the leader Lease and of our Events")
    lease_name: str = _option("penstock", "name of the leader Lease")
    identity: str = _option("", "our name in the Lease; empty: host name and a random tail")
    lease_duration_s: float = _option(30.0, "a Lease not renewed for so long may be taken", parse=_positive)
    renew_deadline_s: float = _option(20.0, "the leader writes nothing later than this after renewing", parse=_positive)
    retry_period_s: float = _option(5.0, "pause between attempts at the Lease", parse=_positive)
    prometheus_url: str = _option("", "Prometheus to query; empty: only declared demand is known")
    queries_file: str = _option("", "YAML file, query name to PromQL, that replaces built-in queries")
    rate_window_s: float = _option(60.0, "window of rates, real seconds; at least four scrapes", parse=_positive)
    time_scale: float = _option(1.0, "seconds of the served world per real second (simulations)", parse=_positive)
    decision_s: float = _option(0.0, "pause between full decisions; 0: as FleetPolicy says", parse=_not_negative)
    tick_s: float = _option(0.0, "pause between steps; 0: as FleetPolicy says", parse=_not_negative)
    relist_s: float = _option(60.0, "every kind is listed again this often", parse=_positive)
    solver_deadline_s: float = _option(60.0, "a solve that takes longer is killed", parse=_positive)
    solver_memory_bytes: int = _option(4 * GIBIBYTE, "memory of the solver, all its processes together", parse=_count)
    solver_workers: int = _option(
        0, "processes that share a decision on a large fleet; 0: the CPUs we may use, at most 4", parse=_whole
    )
    write_parallelism: int = _option(16, "writes in flight at once", parse=_count)
    request_timeout_s: float = _option(10.0, "one request to the API server takes no longer", parse=_positive)
    metrics_bind: str = _option("127.0.0.1", "address of /metrics, /healthz and /readyz")
    metrics_port: int = _option(8080, "port of /metrics, /healthz and /readyz; 0: any free one", parse=_port)
    grpc_bind: str = _option("127.0.0.1", "address of the gRPC server; beyond loopback it needs TLS or tokens")
    grpc_port: int = _option(0, "port of the gRPC server; 0: none", parse=_port)
    grpc_certificate: str = _option("", "PEM file of the gRPC server's certificate")
    grpc_key: str = _option("", "PEM file of the gRPC server's key")
    grpc_client_ca: str = _option("", "PEM file; clients must show a certificate signed by it")
    grpc_token_audience: str = _option("", "callers show a bearer token for this audience, checked by TokenReview")
    log_level: str = _option("INFO", "DEBUG, INFO, WARNING or ERROR")

    def __post_init__(self) -> None:
        if not self.retry_period_s < self.renew_deadline_s < self.lease_duration_s:
            numbers = f"{self.retry_period_s:g} s, {self.renew_deadline_s:g} s, {self.lease_duration_s:g} s"
            raise InvalidInput(
                "settings", "lease", f"retry period, renew deadline and lease duration must rise, got {numbers}"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one flag per setting."""
    for each in fields(Settings):
        flag = "--" + each.name.replace("_", "-")
        parser.add_argument(flag, metavar=_metavar(each), help=f"{each.metadata['help']} (default {each.default!r})")


def from_args(args: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Settings:
    """Read settings: a flag wins over ``PENSTOCK_NAME``, that over the default.

    Raises
    ------
    InvalidInput
        When a value cannot be read, naming the flag or variable.
    """
    known = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for each in fields(Settings):
        variable = "PENSTOCK_" + each.name.upper()
        given = getattr(args, each.name, None)
        subject, text = (
            ("--" + each.name.replace("_", "-"), given) if given is not None else (variable, known.get(variable))
        )
        if text is not None:
            values[each.name] = _parse(each, subject, str(text))
    values["identity"] = values.get("identity") or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    return Settings(**values)


def _parse(setting: Field[Any], subject: str, text: str) -> Any:
    try:
        return setting.metadata["parse"](text)
    except ValueError as error:
        raise InvalidInput(subject, "", f"cannot use {text!r}: {error}", setting.metadata["help"]) from error


def _metavar(setting: Field[Any]) -> str:
    return {float: "NUMBER", int: "NUMBER"}.get(type(setting.default), "TEXT")
