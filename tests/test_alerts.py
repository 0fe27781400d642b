"""The alert rules parse, name series that exist, and fire when they should."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from controller import metrics
from tests.render_chart import CHART
from tests.simcluster.assets import COMPONENTS, find_assets

pytestmark = pytest.mark.cluster  # promtool is one of the simulated cluster's binaries

RULES = CHART / "files" / "alert-rules.yaml"


def promtool(*arguments: str) -> str:
    (component,) = (each for each in COMPONENTS if "promtool" in each.binaries)
    command = [str(find_assets((component,))["promtool"]), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={"HOME": "/nonexistent"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_parse() -> None:
    rules = sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    assert f"{rules} rules found" in promtool("check", "rules", str(RULES))


def test_every_series_in_a_rule_is_one_that_the_operator_exports() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    named = {name for group in groups for rule in group["rules"] for name in series_of(rule["expr"])}
    assert named
    assert named - series_of(metrics.__doc__ or "") == set()


def series_of(text: str) -> set[str]:
    return set(re.findall(r"penstock_[a-z_]+", text))


def test_the_rules_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    watts, leads = "penstock_power_watts", "penstock_leader"
    series = [
        (watts + '{domain="rack-a",kind="measured",pod="p1"}', "900x3 1100x9"),
        (watts + '{domain="rack-a",kind="usable",pod="p1"}', "1000x12"),
        (watts + '{domain="rack-b",kind="measured",pod="p1"}', "900x12"),
        (watts + '{domain="rack-b",kind="usable",pod="p1"}', "1000x12"),
        (leads + '{pod="p1"}', "1x5 0x7"),
        (leads + '{pod="p2"}', "0x12"),
    ]
    fires_for_rack_a = {"exp_labels": {"severity": "critical", "domain": "rack-a"}}
    expected = [
        ("3m", "PenstockPowerOverBudget", []),
        ("6m", "PenstockPowerOverBudget", [fires_for_rack_a]),
        ("5m", "PenstockNobodyLeads", []),
        ("10m", "PenstockNobodyLeads", [{"exp_labels": {"severity": "critical"}}]),
    ]
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "fuzzy_compare": True,
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "alert_rule_test": [
                    {"eval_time": when, "alertname": name, "exp_alerts": [annotated(name, each) for each in alerts]}
                    for when, name, alerts in expected
                ],
            }
        ],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(test))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def annotated(name: str, alert: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Add the annotations that promtool expects to the word, with this test's labels and values filled in."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    (texts,) = (rule["annotations"] for rule in rules if rule["alert"] == name)
    filled = {
        key: text.replace("{{ $labels.domain }}", "rack-a").replace("{{ $value | humanize }}", "1.1k")
        for key, text in texts.items()
    }
    return alert | {"exp_annotations": filled}
