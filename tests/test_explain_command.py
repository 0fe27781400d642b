"""``penstock explain`` from the command line."""

from __future__ import annotations

import json

import pytest
import yaml

from controller.cli import main

FOLDER = "deploy/samples/minimal"


def service(capsys: pytest.CaptureFixture[str]) -> str:
    main(["plan", "-f", FOLDER, "-o", "json"])
    name: str = json.loads(capsys.readouterr().out)["spec"]["services"][0]["service"]
    return name


def test_a_service_is_explained_in_words_and_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    name = service(capsys)
    assert main(["explain", name, "-f", FOLDER]) == 0
    text = capsys.readouterr().out
    assert name in text
    assert main(["explain", name, "-f", FOLDER, "-o", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert main(["explain", name, "-f", FOLDER, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == data
    assert data["service"] == name


def test_an_unknown_service_is_named_with_those_that_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    name = service(capsys)
    assert main(["explain", "nobody/nothing", "-f", FOLDER]) == 1
    said = capsys.readouterr().err
    assert "nobody/nothing" in said
    assert name in said


def test_losses_are_predicted_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    name = service(capsys)
    assert main(["explain", name, "-f", FOLDER, "--losses"]) == 0
    text = capsys.readouterr().out
    assert f"  without {name}: -" in text
    assert "  1 kW at rack-1 less: " in text
    assert main(["explain", name, "-f", FOLDER, "--losses", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["losses"]
    assert next(row["change"] for row in rows) == f"without {name}"
    assert all(row["low_usd_per_hour"] <= row["expected_usd_per_hour"] <= row["high_usd_per_hour"] for row in rows)
