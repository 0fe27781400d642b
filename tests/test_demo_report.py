"""The demo's own judgement and its report: every budget breach is found, and the summary says all that happened."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from solvers.errors import InvalidInput
from tests.simcluster import demo
from tests.simcluster.demo_report import GRACE_S, Run, exceeded, has_failed, live_header, live_line, summary
from tests.simcluster.demo_script import CUT, FULL, LOST, SHORT, SURGED, Incident
from tests.simcluster.demo_watch import DomainNow, Sample
from tests.simcluster.demo_world import World
from tests.simcluster.process import Listener, ProcessError
from tests.twin_world import SERVICE, busy_twin

SURGED_AT_S, CUT_AT_S, LOST_AT_S = (incident.start_s for incident in SHORT.incidents)
SERVED = ("demo/chat-70b", "demo/chat-8b", "demo/moe")


def _domain(name: str = CUT, /, **changes: Any) -> DomainNow:
    usual = DomainNow(
        name=name,
        budget_watts=10_000.0,
        usable_watts=9_500.0,
        reserved_watts=8_000.0,
        measured_watts=6_000.0,
        fixed_watts=300.0,
    )
    return replace(usual, **changes)


def _told(value_s: float | None = 0.25, share: float | None = 0.97) -> dict[str, Any]:
    slos = [
        {
            "metric": metric,
            "percentile": 0.95,
            "limit_s": limit_s,
            "value_s": value_s,
            "within_ratio": share,
            "is_met": share is None or share >= 0.95,
        }
        for metric, limit_s in (("TTFT", 0.5), ("ITL", 0.05))
    ]
    counts = {"finished": 90, "rejected": 4, "timed_out": 6, "offered_requests_per_s": 1.5}
    return {**counts, "in_slo_ratio": share, "slos": slos}


def _service(value_s: float | None = 0.25, share: float | None = 0.97) -> dict[str, Any]:
    return {"whole_run": _told(value_s, share), "windows": {"60s": _told(value_s, share)}}


def _sample(at_s: float, *domains: DomainNow, chat: int = 3, **changes: Any) -> Sample:
    replicas: Mapping[tuple[str, str, str], int] = {
        (SURGED, "decode", "h100-sxm"): chat,
        ("demo/moe", "mixed", "l40s"): 6,
    }
    sample = Sample(
        at_s=at_s,
        services={name: _service() for name in SERVED},
        replicas=replicas,
        pods=9 + chat,
        gpus={"h100-sxm": chat, "l40s": 6},
        usd_per_hour=10.0 * chat,
        domains=domains or (_domain(),),
    )
    return replace(sample, **changes)


def _run(*samples: Sample, **changes: Any) -> Run:
    return replace(Run(script=SHORT, samples=samples, final_services=samples[-1].services, plans=7), **changes)


def _whole_run() -> Run:
    """Samples before, in and after every incident of the short script."""
    cut = {"budget_watts": 8_000.0, "usable_watts": 7_600.0}
    return _run(
        _sample(10.0, chat=3),
        _sample(SURGED_AT_S + 100, chat=5),
        _sample(CUT_AT_S - 10, chat=4),
        _sample(CUT_AT_S + 10, _domain(**cut, reserved_watts=8_000.0), chat=4),
        _sample(CUT_AT_S + 40, _domain(**cut, reserved_watts=7_000.0), chat=4),
        _sample(LOST_AT_S + 20, _domain(**cut, reserved_watts=7_000.0), chat=2),
        _sample(LOST_AT_S + 200, _domain(**cut, reserved_watts=7_000.0), chat=4),
    )


# ---------------------------------------------------------------- breaches


def test_a_fleet_inside_its_budgets_breaks_none() -> None:
    at_the_edge = _domain(reserved_watts=9_500.0, measured_watts=9_700.0)
    run = _run(_sample(10.0), _sample(20.0, at_the_edge))
    assert exceeded(run) == []
    assert not has_failed(run)
    assert "EXCEEDED" not in summary(run)


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"measured_watts": 9_800.0}, "measured 10100 W of 10000 W"),
        ({"reserved_watts": 9_600.0}, "reserved 9600 W of 9500 W"),
    ],
)
def test_a_breach_is_found_told_with_its_numbers_and_fails_the_demo(over: dict[str, float], told: str) -> None:
    run = _run(_sample(10.0), _sample(20.0, _domain("site"), _domain("row-a", **over)), _sample(30.0))
    (sentence,) = exceeded(run)
    assert sentence.startswith("row-a at 20 s: ")
    assert told in sentence
    assert has_failed(run)
    assert sentence in summary(run)


def test_a_cut_domain_has_a_while_to_drain_and_no_longer() -> None:
    over = _domain(budget_watts=8_000.0, usable_watts=7_600.0)
    draining = [_sample(CUT_AT_S, over), _sample(CUT_AT_S + GRACE_S, over)]
    assert exceeded(_run(*draining)) == []
    too_late = _run(*draining, _sample(CUT_AT_S + GRACE_S + 1, over))
    assert len(exceeded(too_late)) == 1


def test_only_the_cut_domain_has_that_while() -> None:
    over = _domain("row-a", reserved_watts=9_600.0)
    assert len(exceeded(_run(_sample(CUT_AT_S + 1, over)))) == 1


def test_before_the_cut_there_is_no_such_while() -> None:
    assert len(exceeded(_run(_sample(CUT_AT_S - 1, _domain(measured_watts=9_701.0))))) == 1


# ---------------------------------------------------------------- the summary


def test_the_summary_has_every_section() -> None:
    text = summary(_whole_run())
    headings = [section.splitlines()[0] for section in text.split("\n\n")]
    assert headings == [
        "Services over the whole run",
        "Power",
        "Ready replicas over time, by GPU class",
        "Cost: 37.14 USD/h on average, 50.00 at most; 7 plans decided",
        "Incidents",
    ]


def test_the_services_are_told_with_slo_attained_share_and_what_was_not_served() -> None:
    table = summary(_whole_run()).split("\n\n")[0].splitlines()
    rows = [line.split() for line in table[2:]]
    assert [row[0] for row in rows] == [name for name in SERVED for _ in range(2)]
    assert rows[0][1:] == ["TTFT", "p95", "500", "250.00", "97.00", "yes", "100", "10", "97.00"]


def test_a_missed_slo_is_told_and_an_unknown_one_is_not_made_up() -> None:
    sample = _sample(10.0, services={"demo/moe": _service(0.7, 0.5), SURGED: _service(None, None)})
    table = summary(_run(sample)).split("\n\n")[0].splitlines()
    assert table[2].split()[4:7] == ["-", "-", "yes"]
    assert table[4].split()[4:7] == ["700.00", "50.00", "NO"]


def test_power_is_told_with_the_peaks_and_the_least_budget() -> None:
    power = summary(_whole_run()).split("\n\n")[1].splitlines()
    assert power[2].split() == f"{CUT} 10 000 8 000 300 8 000 6 000 no".split()


def test_pools_are_told_over_time_by_gpu_class() -> None:
    table = summary(_whole_run()).split("\n\n")[2].splitlines()
    assert table[1].split()[4:6] == ["10", "S"]
    assert table[2].split() == f"{SURGED} decode h100-sxm 3 5 4 4 4 2 4".split()


def test_every_incident_is_told_with_what_came_of_it() -> None:
    incidents = summary(_whole_run()).split("\n\n")[4]
    assert f"1.8 times the requests to {SURGED}" in incidents
    assert f"{SURGED} went from 3 to 5 Ready replicas" in incidents
    assert "8000 W were reserved of 9500 W usable; 40 s later the worst case was inside it" in incidents
    assert f"node {LOST} stops answering" in incidents
    assert "10 Ready replicas before, 8 at the worst, 10 at the end" in incidents
    assert "97.0 % of requests inside all SLOs in the worst minute" in incidents


def test_a_cut_that_was_never_kept_is_said_so() -> None:
    over = _domain(budget_watts=8_000.0, usable_watts=7_600.0)
    text = summary(_run(_sample(CUT_AT_S - 1), _sample(CUT_AT_S + 1, over), _sample(CUT_AT_S + 150, over)))
    assert "it was NOT kept" in text


@pytest.mark.parametrize("script", [FULL, SHORT], ids=["full", "short"])
def test_the_scripts_have_the_three_incidents_one_after_the_other(script: Any) -> None:
    incidents: tuple[Incident, ...] = script.incidents
    assert [incident.name for incident in incidents] == ["surge", "budget cut", "lost node"]
    assert all(a.end_s <= b.start_s for a, b in pairwise(incidents))
    assert incidents[-1].end_s <= script.duration_s
    assert all(incident.end_s - incident.start_s > GRACE_S for incident in incidents if incident.name == "budget cut")


def test_the_short_form_serves_for_less_than_90_seconds() -> None:
    assert SHORT.real_s < 90.0 < FULL.real_s


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False)],
)
def test_sockets_beyond_loopback_are_told_apart(address: str, is_loopback: bool) -> None:
    assert Listener(component="operator", address=address, port=1).is_loopback == is_loopback


# ---------------------------------------------------------------- the live table


def test_the_lines_of_the_live_table_stand_under_its_header() -> None:
    head, units = live_header(SERVED).splitlines()
    line = live_line(_sample(42.0), SERVED)
    assert [i for i, c in enumerate(head) if c == "|"] == [i for i, c in enumerate(line) if c == "|"]
    assert [i for i, c in enumerate(units) if c == "|"] == [i for i, c in enumerate(line) if c == "|"]
    assert line.startswith("   42 s |    1.5     250    250  97.0 %")


def test_a_service_that_nobody_heard_of_yet_has_dashes() -> None:
    assert live_line(_sample(0.0, services={}), SERVED).count("-") == 3 * 3


# ---------------------------------------------------------------- crashes


def test_a_run_that_crashed_says_so_and_fails() -> None:
    crashed = Run(script=SHORT, samples=[_sample(10.0)], crashed="operator ended with status 3")
    text = summary(crashed)
    assert "CRASHED\n  operator ended with status 3" in text
    assert "Services over the whole run\nSERVICE" in text
    assert "plans decided" not in text
    assert has_failed(crashed)


def test_a_run_that_saw_nothing_fails() -> None:
    assert has_failed(Run(script=SHORT, samples=[]))
    assert summary(Run(script=SHORT, samples=[], crashed="no API server")) == "CRASHED\n  no API server"


class BrokenWorld:
    """A world whose operator ends by itself, and whose API server is gone then."""

    def list_kind(self, plural: str) -> list[Any]:
        return []

    def start_twin(self, traffic: object, trace: object) -> None:
        pass

    def start_operator(self, decision_s: float, tick_s: float) -> None:
        raise ProcessError("operator ended with status 3")

    def log_tail(self, name: str) -> str:
        return f"the end of {name}'s log"

    def conditions(self) -> str:
        raise ProcessError("nobody there")


def test_a_crash_ends_the_play_with_what_can_still_be_told() -> None:
    result = demo.play(cast(World, BrokenWorld()), SHORT, None)
    assert has_failed(result)
    assert result.crashed.splitlines() == [
        "operator ended with status 3",
        "the end of operator's log",
        "the API server does not tell any conditions: nobody there",
    ]


def test_a_malformed_trace_is_told_with_its_line_before_anything_starts(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,10\n1,many,10\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"trace\.csv:3"):
        demo.run(argparse.Namespace(short=True, trace=trace))


def test_the_azure_trace_is_taken_where_the_data_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATA", str(tmp_path))
    assert demo.default_trace() is None
    trace = tmp_path / demo.AZURE_TRACE
    trace.parent.mkdir()
    trace.write_text("", encoding="utf-8")
    assert demo.default_trace() == trace


# ---------------------------------------------------------------- what the twin really says


def test_the_report_reads_what_the_twin_really_says() -> None:
    services = busy_twin().state()["services"]
    surge = replace(SHORT.incidents[0], start_s=20.0, end_s=60.0, affected=SERVICE)
    samples = [_sample(at_s, services=services) for at_s in (10.0, 30.0, 60.0)]
    run = Run(script=replace(SHORT, incidents=(surge,)), samples=samples, final_services=services, plans=1)
    text = summary(run)
    ttft, itl = (line.split() for line in text.splitlines() if line.startswith(f"{SERVICE} "))
    assert ttft[1:4] == ["TTFT", "p95", "500"]
    assert itl[1:4] == ["ITL", "p95", "20"]
    assert int(ttft[7]) == services[SERVICE]["finished"] > 0
    assert float(ttft[4]) > 0.0
    assert f"{SERVICE}: " in text
    assert "of requests inside all SLOs" in text
    assert " 5.0 " in live_line(samples[0], [SERVICE])
