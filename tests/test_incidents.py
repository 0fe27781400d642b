"""Failures, drains, cold starts and caps at any moment of a replay, as a user lists them or as a seed draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.replay_incidents import load_incidents
from controller.replay_output import run_data, run_sections
from controller.traces_spec import load_of, parse_trace_spec
from solvers.engine import EngineProfile
from solvers.errors import InvalidInput
from solvers.evaluate import Load, Settings, Summary, evaluate
from solvers.evaluate.fleet_state import known_pools
from solvers.evaluate.incidents import Failures, Incident, Timeline, What
from solvers.fleet import Node
from solvers.policies import POLICIES, make_policy
from solvers.policies.fixed import Fixed
from tests.replay_world import small_case

CHAT = "default/chat"


@lru_cache
def load() -> Load:
    stated, _ = small_case()
    return load_of({CHAT: parse_trace_spec("poisson:duration=300")}, stated.demands, {}, 3)


def first_pool() -> tuple[str, str]:
    """Pool and location of the plan's first placement, as a user writes them."""
    row = small_case()[1].placements[0]
    return str(row.pool), row.location


def replayed(*incidents: Incident, **settings: Any) -> Summary:
    return evaluate(*small_case(), load(), Fixed(), Settings(incidents=incidents, **settings))


def held(summary: Summary) -> float:
    return sum(pool.gpu_s for pool in summary.pools)


def test_what_lies_after_the_end_changes_nothing_but_a_note() -> None:
    quiet, late = replayed(), replayed(Incident(at_s=9e9, what=What.FAIL, pool=CHAT), until_s=1e5)
    assert late.incidents == ()
    assert late.incidents_not_reached == 1
    assert late.services[CHAT].in_slo_ratio == quiet.services[CHAT].in_slo_ratio
    assert "1 events lie after the end" in "\n".join(run_sections(late))


def test_a_lost_location_begins_its_requests_again_and_comes_back_after_its_cold_start() -> None:
    _, location = first_pool()
    struck = replayed(Incident(at_s=60.05, what=What.FAIL, location=location, count=None))
    [happened] = struck.incidents
    assert happened.replicas
    assert all(f"@{location}#" in name for name in happened.replicas)
    assert happened.begun_again > 0
    chat = struck.services[CHAT]
    assert chat.finished == chat.submitted
    assert chat.in_slo_ratio.value < replayed().services[CHAT].in_slo_ratio.value
    assert struck.windows[-1].gpus > 0


def test_broken_gpus_come_back_only_when_repaired() -> None:
    pool, _ = first_pool()
    at_once = replayed(Incident(at_s=60, what=What.FAIL, pool=pool, count=None))
    later = replayed(
        *(Incident(at_s=60, what=What.FAIL, node=node.name, count=None, repair_s=200) for node in small_case()[0].nodes)
    )
    assert [w.gpus for w in later.windows if w.start_s >= 60 and w.end_s <= 240] == [0, 0, 0]
    assert at_once.services[CHAT].latencies_s["ttft"][0.5].value < later.services[CHAT].latencies_s["ttft"][0.5].value
    assert later.services[CHAT].finished == later.services[CHAT].submitted


def test_a_drain_ends_what_it_holds_and_a_start_takes_its_cold_start() -> None:
    pool, location = first_pool()
    quiet = replayed()
    fewer = replayed(Incident(at_s=100, what=What.DRAIN, pool=pool))
    more = replayed(Incident(at_s=100, what=What.START, pool=pool, location=location, count=2))
    assert fewer.incidents[0].begun_again == 0
    assert len(more.incidents[0].replicas) == 2
    assert held(fewer) < held(quiet) < held(more)
    assert more.services[CHAT].finished == quiet.services[CHAT].finished


def test_a_cap_slows_what_it_hits_until_it_is_lifted() -> None:
    stated, plan = small_case()
    profiles = {key: _with_caps(profile) for key, profile in stated.profiles.items()}
    capped = Incident(at_s=50, what=What.CAP, pool=CHAT, count=None, cap_watts=200.0)
    lifted = Incident(at_s=150, what=What.CAP, pool=CHAT, count=None)
    quiet, short, whole = (
        evaluate(replace(stated, profiles=profiles), plan, load(), Fixed(), Settings(incidents=incidents))
        for incidents in ((), (capped, lifted), (capped,))
    )

    meanwhile = [sum(w.watts for w in s.windows if 60 <= w.start_s < 120) for s in (quiet, short, whole)]
    assert meanwhile[1] == meanwhile[2] < meanwhile[0]
    per_token = [s.services[CHAT].latencies_s["tpot"][0.5].value for s in (quiet, short, whole)]
    assert per_token[0] < per_token[1] < per_token[2]


def _with_caps(profile: EngineProfile) -> EngineProfile:
    return replace(
        profile, cap_watts_per_gpu=(200.0, 350.0), prefill_speed_ratio=(0.5, 1.0), decode_speed_ratio=(0.7, 1.0)
    )


def test_a_cap_that_the_profile_does_not_know_is_named_with_its_line() -> None:
    low = Incident(at_s=5, what=What.CAP, pool=CHAT, count=None, cap_watts=60.0, where="events.csv:7")
    with pytest.raises(InvalidInput, match=r"events\.csv:7 value: is a cap of 60 W"):
        replayed(low)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_lives_through_a_storm_and_its_account_is_the_same_twice(name: str) -> None:
    stated, plan = small_case()
    storm = Settings(patience_s=30.0, failures=Failures(gpu_mtbf_hours=0.5, repair_s=120.0, seed=5))
    one, two = (evaluate(stated, plan, load(), make_policy(name, stated, plan), storm) for _ in range(2))
    assert one.incidents
    assert run_data(one) == run_data(two)
    chat = one.services[CHAT]
    assert chat.finished + chat.timed_out + chat.unfinished + chat.rejected == chat.submitted


def test_policies_meet_the_same_broken_gpus() -> None:
    stated, plan = small_case()
    storm = Settings(patience_s=30.0, failures=Failures(gpu_mtbf_hours=0.5, repair_s=60.0, seed=2))
    seen = [
        [each.incident for each in evaluate(stated, plan, load(), make_policy(name, stated, plan), storm).incidents]
        for name in ("fixed", "keda")
    ]
    shortest = min(map(len, seen))
    assert shortest > 0
    assert seen[0][:shortest] == seen[1][:shortest]


def test_drawn_failures_have_the_mean_that_was_asked() -> None:
    nodes = [Node(name=f"n{i}", gpu_class="h", location="r", gpus_total=8, gpus_usable=8) for i in range(4)]
    timeline = Timeline((), Failures(gpu_mtbf_hours=100.0, repair_s=1.0, seed=1), nodes)
    drawn = list(islice(timeline.due(float("inf")), 4000))
    gaps = [b.at_s - a.at_s for a, b in pairwise(drawn)]
    mean = sum(gaps) / len(gaps)
    assert abs(mean / (100 * 3600 / 32) - 1) < 4 / len(gaps) ** 0.5  # four standard errors of an exponential mean
    assert {(each.node, each.slot) for each in drawn} == {(f"n{i}", slot) for i in range(4) for slot in range(8)}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(What)), max_size=12))
def test_incidents_of_one_moment_come_as_they_were_given(rows: list[tuple[int, What]]) -> None:
    incidents = [Incident(at_s=at, what=what, pool=str(i)) for i, (at, what) in enumerate(rows)]
    timeline = Timeline(incidents, None, ())
    taken = [each for now in range(6) for each in timeline.due(now)]
    assert taken == sorted(incidents, key=lambda each: (each.at_s, int(each.pool)))
    assert timeline.left == 0


def test_given_and_drawn_incidents_come_in_order_of_time_and_given_ones_first_at_equal_times() -> None:
    nodes = [Node(name="n", gpu_class="h", location="r", gpus_total=8, gpus_usable=8)]
    storm = Failures(gpu_mtbf_hours=1.0, repair_s=1.0, seed=4)
    drawn = list(islice(Timeline((), storm, nodes).due(float("inf")), 3))
    second = drawn[1].at_s
    asked = [Incident(at_s=at, what=What.DRAIN, pool="p") for at in (0.0, second, second + 1e-9, drawn[2].at_s * 2)]
    timeline = Timeline(asked, storm, nodes)
    taken = list(islice(timeline.due(float("inf")), 6))
    assert taken == [asked[0], drawn[0], asked[1], drawn[1], asked[2], drawn[2]]
    assert (timeline.left, timeline.next_s <= asked[3].at_s) == (1, True)


# ---------------------------------------------------------------- files


def read(tmp_path: Path, text: str, name: str = "events.yaml") -> tuple[Incident, ...]:
    path = tmp_path / name
    path.write_text(text)
    return load_incidents(path, small_case()[0])


def test_csv_and_yaml_say_the_same(tmp_path: Path) -> None:
    pool, location = first_pool()
    yaml_rows = read(
        tmp_path,
        f"- {{at_s: 5, what: fail, location: {location}, value: all, repair_s: 60}}\n"
        f"- at_s: 7.5\n  what: cap\n  pool: {CHAT}\n  value: none\n"
        f"- {{at_s: 9, what: start, pool: {pool}, location: {location}, value: 2}}\n",
    )
    csv_rows = read(
        tmp_path,
        "at_s,what,pool,location,value,repair_s\n"
        f"5,fail,,{location},all,60\n\n7.5,cap,{CHAT},,none,\n9,start,{pool},{location},2,\n",
        "events.csv",
    )
    plain = [
        [(i.at_s, i.what, i.names, i.count, i.cap_watts, i.repair_s) for i in rows] for rows in (yaml_rows, csv_rows)
    ]
    assert plain[0] == plain[1]
    assert [i.where for i in csv_rows] == ["events.csv:2", "events.csv:4", "events.csv:5"]
    assert [i.where for i in yaml_rows] == ["events.yaml:1", "events.yaml:2", "events.yaml:6"]


def wrong() -> Iterator[tuple[str, str]]:
    pool, location = "default/chat/mixed/h100-sxm/tp1", "rack-1"
    yield "at_s: 5", r"events.yaml:1: is no list of events"
    yield "- 5", r"events.yaml:1: is no mapping"
    yield "- {what: fail, pool: default/chat}", r"events.yaml:1 at_s: is missing"
    yield "\n- {at_s: -1, what: fail, pool: default/chat}", r"events.yaml:2 at_s: '-1' is no number of 0 or more"
    yield "- {at_s: 1, what: melt, pool: default/chat}", r"events.yaml:1 what: 'melt' is none of fail, drain"
    yield "- {at_s: 1, what: fail}", r"events.yaml:1 pool: is missing, and nothing else"
    yield "- {at_s: 1, what: fail, rack: rack-1}", r"events.yaml:1 rack: is no field of an event"
    yield "- {at_s: 1, what: fail, pool: default/chit}", r"events.yaml:1 pool: 'default/chit' is unknown; known are de"
    yield "- {at_s: 1, what: fail, location: rack-9}", r"events.yaml:1 location: 'rack-9' is unknown"
    yield "- {at_s: 1, what: fail, node: n}", r"events.yaml:1 node: 'n' is unknown"
    yield "- {at_s: 1, what: fail, pool: default/chat, value: 0}", r"events.yaml:1 value: '0' is no number of replicas"
    yield f"- {{at_s: 1, what: start, pool: {pool}, location: {location}, value: all}}", r"value: 'all' is no number"
    yield f"- {{at_s: 1, what: start, pool: {pool}}}", r"events.yaml:1 location: is missing"
    yield "- {at_s: 1, what: start, pool: default/chat, location: rack-1}", r"pool: 'default/chat' is no one pool"
    yield "- {at_s: 1, what: cap, pool: default/chat}", r"events.yaml:1 value: is missing; give the watts"
    yield "- {at_s: 1, what: cap, pool: default/chat, value: 0}", r"events.yaml:1 value: '0' is no cap above 0 W"
    yield "- {at_s: 1, what: drain, pool: default/chat, repair_s: 5}", r"events.yaml:1 repair_s: means nothing to drain"
    yield "- {at_s: [1], what: fail}", r"events.yaml:1 at_s: is no plain value"
    yield "- {at_s: 1", r"events.yaml:\d: is no YAML"


@pytest.mark.parametrize(("text", "message"), list(wrong()))
def test_a_wrong_event_is_named_with_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(tmp_path, text)


def test_a_short_line_of_a_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"events\.csv:3: has 2 fields instead of 3"):
        read(tmp_path, f"at_s,what,pool\n1,fail,{CHAT}\n2,fail\n", "events.csv")


def test_every_pool_of_the_plan_can_be_named() -> None:
    stated, plan = small_case()
    assert {str(row.pool) for row in plan.placements} <= known_pools(stated).keys()
