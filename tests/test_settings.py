"""Settings: flags win over variables, variables over defaults, and bad values name their source."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import pytest

from controller.settings import Settings, add_arguments, from_args
from solvers.errors import InvalidInput


def read(*flags: str, environment: Mapping[str, str] | None = None) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_args(parser.parse_args(flags), environment or {})


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    variables = {"PENSTOCK_TICK_S": "3", "PENSTOCK_METRICS_PORT": "9000"}
    settings = read("--tick-s", "0.5", environment=variables)
    assert (settings.tick_s, settings.metrics_port, settings.time_scale) == (0.5, 9000, 1.0)


def test_an_identity_is_made_up_and_differs_between_processes() -> None:
    assert read().identity != read().identity
    assert read("--identity", "me").identity == "me"


@pytest.mark.parametrize(
    ("flags", "variables", "named"),
    [
        (["--tick-s", "soon"], {}, "--tick-s"),
        ([], {"PENSTOCK_TIME_SCALE": "0"}, "PENSTOCK_TIME_SCALE"),
        (["--grpc-port", "70000"], {}, "--grpc-port"),
        (["--write-parallelism", "0"], {}, "--write-parallelism"),
    ],
)
def test_a_bad_value_names_the_flag_or_the_variable(flags: list[str], variables: Mapping[str, str], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        read(*flags, environment=variables)


def test_a_lease_shorter_than_its_renewal_is_refused() -> None:
    with pytest.raises(InvalidInput, match="must rise, got 5 s, 40 s, 30 s"):
        read("--renew-deadline-s", "40")


def test_nothing_listens_beyond_loopback_by_default() -> None:
    settings = read()
    assert (settings.metrics_bind, settings.grpc_bind) == ("127.0.0.1", "127.0.0.1")
