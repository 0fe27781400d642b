"""From readings to corrected plans: engines slower than their profiles are found, planned for and forgotten."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from controller.correction_status import read_back, render_corrections
from controller.corrections import Corrections, observed_pools, with_corrections
from controller.inventory import Records
from controller.observe import Observation, build_problem
from controller.readings import EngineReading, Readings
from controller.records import PodRecord
from controller.resources import parse_engine_profile, parse_gpu_class
from controller.schema import Mode
from controller.specs import Specs, parse_specs
from controller.traces import TraceRequest
from solvers.correction import Belief, Held, Phase
from solvers.engine import EngineConfig, ProfileKey
from solvers.plan import Plan
from solvers.planner import make_plan
from tests.observed import NOW_S, Body, domain, gpu_class, node, our_labels, pod, policy, profile, served
from tests.simcluster.twin_fleet import TwinFleet
from tests.simcluster.twin_metrics import engine_metrics
from tests.simcluster.twin_traffic import Traffic
from tests.simcluster.twin_watch import ClusterView, TwinService
from tests.twin_world import parse, readings_of, run

WINDOW_S = 60.0
KEY = ProfileKey(model="llama", gpu_class="h100", config=EngineConfig())
RATE = 20.0
DEMAND = {"milliRequestsPerSecond": 20_000, "mix": [{"promptTokens": 500, "outputTokens": 50}]}
SLOS = [
    {"metric": "TTFT", "percentile": 95, "milliseconds": 500},
    {"metric": "ITL", "percentile": 95, "milliseconds": 25},
]


def bodies(mode: str = "Act", **changes: Any) -> dict[str, list[Body]]:
    modes = {"replicas": "Act", "placement": "Act", "correction": mode}
    made = [
        policy(modes=modes),
        gpu_class(),
        {**profile(), **changes},
        served(slos=SLOS, demand={"source": "Declared", "declared": DEMAND}, roles=["prefill", "decode"]),
        domain("r1"),
    ]
    return {body["kind"]: [each for each in made if each["kind"] == body["kind"]] for body in made}


@dataclass(slots=True)
class World:
    """A fleet that follows its plans at once, on the twin's engines; a window of readings at a time."""

    mode: str = "Act"
    slowness: float = 1.0
    time_scale: float = 1.0
    now_s: float = NOW_S
    corrections: Corrections = field(default_factory=Corrections)
    pods: dict[str, PodRecord] = field(default_factory=dict)
    plan: Plan | None = None
    twin: TwinFleet = field(init=False)
    specs: Specs = field(init=False)

    def __post_init__(self) -> None:
        gaps = np.random.default_rng(1).exponential(1.0 / RATE, 20_000)
        trace = tuple(TraceRequest(arrival_s=float(at), prompt_tokens=500, output_tokens=50) for at in gaps.cumsum())
        self.twin = TwinFleet([Traffic("demo/chat", trace)], slowness_ratio=self.slowness)
        self.specs = parse_specs(bodies(self.mode))
        self.corrections = read_back(self.corrections, bodies()["EngineProfile"])

    def observe(self) -> Observation:
        records = Records(nodes=(node("n1", gpus=16),), pods=tuple(self.pods.values()))
        return build_problem(
            with_corrections(self.specs, self.corrections), records, Readings(taken_at_s=self.now_s), self.now_s
        )

    def decide(self) -> Plan:
        """Plan, and let the pods follow."""
        self.plan = make_plan(self.observe().problem, previous=self.plan)
        wanted = {
            f"{row.pool.role}-{number}": our_labels(role=row.pool.role, config=row.pool.config.label)
            for row in self.plan.placements
            for number in range(row.replicas)
        }
        self.pods = {name: pod(name, labels=labels, requests={"nvidia.com/gpu": 1}) for name, labels in wanted.items()}
        self.twin.apply(
            ClusterView(
                pods={each.uid: each for each in self.pods.values()},
                nodes={"n1": node("n1", gpus=16)},
                services={"demo/chat": TwinService(name="demo/chat", model="llama", inference_pool="chat")},
                profiles={"p": parse_engine_profile(profile())},
                gpu_classes={"h100": parse_gpu_class(gpu_class())},
            )
        )
        return self.plan

    def window(self) -> Corrections:
        """Serve for one window, read the engines, learn."""
        before = parse(engine_metrics(self.twin))
        run(self.twin, self.twin.fleet.now_s + WINDOW_S)
        self.now_s += WINDOW_S
        return self.learn(at(readings_of(self.twin, before, WINDOW_S), self.now_s))

    def learn(self, engines: dict[str, EngineReading]) -> Corrections:
        self.corrections = observed_pools(
            self.corrections,
            self.specs,
            self.observe(),
            Readings(taken_at_s=self.now_s, engines=engines),
            now_s=self.now_s,
            window_s=WINDOW_S,
            time_scale=self.time_scale,
            plan=self.plan,
        )
        return self.corrections

    def gpus(self) -> int:
        return len(self.pods)


def at(engines: dict[str, EngineReading], as_of_s: float) -> dict[str, EngineReading]:
    return {name: replace(each, as_of_s=as_of_s) for name, each in engines.items()}


@pytest.fixture(scope="module")
def slow() -> World:
    """Engines that take 1.2 times as long, seen for half an hour."""
    world = World(slowness=1.2)
    world.decide()
    for _ in range(30):
        world.window()
    return world


def test_engines_that_are_a_fifth_slower_are_found_and_planned_for(slow: World) -> None:
    right = World()
    right.decide()
    before = right.gpus()
    factors = slow.corrections.factors(KEY)
    assert factors[Phase.PREFILL] == pytest.approx(1.2, abs=0.06)
    assert factors[Phase.DECODE] == pytest.approx(1.2, abs=0.06)
    plan = slow.decide()
    assert slow.gpus() > before, "the same load needs more of slower engines"
    used = slow.observe().problem.profiles[KEY]
    assert dict(used.corrections) == {str(phase): value for phase, value in factors.items()}
    assert not plan.is_short


def test_engines_that_keep_their_promises_move_no_plan() -> None:
    world = World()
    first = world.decide()
    for _ in range(12):
        world.window()
    assert world.corrections.beliefs, "something was learnt"
    assert not {Phase.PREFILL, Phase.DECODE} & world.corrections.factors(KEY).keys()
    assert world.decide().decision_hash == first.decision_hash


def test_speed_that_returns_is_believed_slowly() -> None:
    """Beliefs age 20 times as fast, so that six hours are eighteen windows."""
    world = World(slowness=1.2, time_scale=20.0)
    world.decide()
    for _ in range(16):
        world.window()
    high = world.corrections.factors(KEY)[Phase.PREFILL]
    world.twin.slow_down(1.0)
    seen = []
    for _ in range(40):
        world.window()
        seen.append(world.corrections.factors(KEY).get(Phase.PREFILL, 1.0))
    assert seen[1] > 1.05, "two windows do not undo sixteen"
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < min(1.1, high)


def test_advice_tells_and_plans_with_nothing(slow: World) -> None:
    advised = parse_specs(bodies("Advise"))
    assert advised.policy.modes.correction is Mode.ADVISE
    assert with_corrections(advised, slow.corrections) is advised
    assert parse_specs({**bodies(), "FleetPolicy": [policy()]}).policy.modes.correction is Mode.ADVISE, "the default"


def test_siblings_that_nobody_ran_are_not_let_off() -> None:
    fast, other = replace(KEY, config=EngineConfig(tensor_parallel=2)), replace(KEY, gpu_class="l40s")
    held = {
        (KEY, Phase.DECODE): Held(factor=1.21, since_s=0.0),
        (KEY, Phase.PREFILL): Held(factor=0.9, since_s=0.0),
        (KEY, Phase.THROUGHPUT): Held(factor=0.8, since_s=0.0),
    }
    known = Corrections(held=held)
    assert known.planned(KEY) == known.factors(KEY)
    assert known.planned(fast) == {Phase.DECODE: 1.21, Phase.THROUGHPUT: 0.8}, "what is for the better is not lent"
    assert known.planned(other) == {}
    own = Corrections(held={**held, (fast, Phase.DECODE): Held(factor=1.0, since_s=0.0)})
    assert own.planned(fast)[Phase.DECODE] == 1.0, "what was seen of itself counts"
    right = Belief(weight=20.0, mean=0.01, squares=0.01)
    assert Phase.DECODE not in Corrections(held=held, beliefs={(fast, Phase.DECODE): right}).planned(fast)
    third = replace(KEY, config=EngineConfig(tensor_parallel=4))
    assert own.planned(third)[Phase.DECODE] == 1.1


# ------------------------------------------------------------------ what teaches nothing


def quick() -> tuple[World, dict[str, EngineReading]]:
    """A world with a plan, and readings that would teach."""
    world = World()
    world.decide()
    world.learn({})
    world.now_s += 2 * WINDOW_S
    engine = EngineReading(
        pod="",
        running=3.0,
        waiting=0.0,
        prompts_per_s=4.0,
        prompt_tokens_per_s=2000.0,
        output_tokens_per_s=200.0,
        prefill_s=0.05,
        itl_s=0.015,
        as_of_s=world.now_s,
    )
    return world, {f"demo/{name}": replace(engine, pod=name) for name in world.pods}


def test_a_steady_pool_teaches_once_a_window() -> None:
    world, engines = quick()
    taught = world.learn(engines)
    assert set(taught.beliefs) == {(KEY, Phase.PREFILL), (KEY, Phase.DECODE)}
    world.now_s += 5.0
    assert world.learn(engines).beliefs == taught.beliefs, "the same readings count once"


def test_a_pool_that_changed_within_the_window_teaches_nothing() -> None:
    world, engines = quick()
    name = next(name for name in world.pods if name.startswith("decode"))
    world.pods["decode-new"] = replace(world.pods[name], name="decode-new", uid="decode-new")
    engines["demo/decode-new"] = engines[f"demo/{name}"]
    taught = world.learn(engines)
    assert {phase for _, phase in taught.beliefs} == {Phase.PREFILL}
    assert "changed within the window" in " ".join(taught.passed_over.values())


@pytest.mark.parametrize("change", [{"is_ready": False}, {"is_leaving": True}])
def test_a_pool_with_a_replica_on_its_way_teaches_nothing(change: dict[str, bool]) -> None:
    world, engines = quick()
    name = next(name for name in world.pods if name.startswith("decode"))
    world.pods[name] = replace(world.pods[name], **change)  # type: ignore[arg-type]
    assert {phase for _, phase in world.learn(engines).beliefs} == {Phase.PREFILL}


def test_a_cap_that_changed_within_the_window_teaches_nothing() -> None:
    world, engines = quick()
    assert world.plan is not None
    pools = tuple(replace(row, cap_watts=500.0) for row in world.plan.pools)
    world.plan = replace(world.plan, pools=pools)
    assert world.learn(engines).beliefs == {}


def test_old_readings_and_engines_that_were_not_read_teach_nothing() -> None:
    world, engines = quick()
    stale = at(engines, world.now_s - 50.0)
    assert world.learn(stale).beliefs == {}
    lone = {name: engine for name, engine in engines.items() if not name.startswith("demo/decode-0")}
    assert {phase for _, phase in world.learn(lone).beliefs} == {Phase.PREFILL}


def test_too_little_traffic_teaches_nothing() -> None:
    world, engines = quick()
    quiet = {n: replace(e, running=0.2, prompts_per_s=0.01, output_tokens_per_s=0.5) for n, e in engines.items()}
    assert world.learn(quiet).beliefs == {}


def test_another_profile_of_that_name_begins_anew() -> None:
    world, engines = quick()
    assert world.learn(engines).beliefs
    world.specs = parse_specs({**bodies(), "EngineProfile": [profile(step_microseconds=9_000)]})
    world.now_s += 5.0
    assert world.learn({}).beliefs == {}


# ------------------------------------------------------------------ statuses


def with_status(known: Corrections, generation: int = 3) -> Body:
    body = profile()
    body["metadata"]["generation"] = generation
    return {**body, "status": {"corrections": render_corrections(known, KEY, generation)}}


def test_what_is_known_survives_a_restart_and_plans_to_the_byte(slow: World) -> None:
    body = with_status(slow.corrections)
    again = read_back(Corrections(), [body])
    assert again.factors(KEY) == slow.corrections.factors(KEY)
    for place, belief in slow.corrections.beliefs.items():
        assert again.beliefs[place].mean == pytest.approx(belief.mean, abs=1e-6)
        assert again.beliefs[place].weight == pytest.approx(belief.weight, abs=1e-3)
    assert with_status(again)["status"] == body["status"]
    problems = [with_corrections(slow.specs, known).engine_profiles for known in (slow.corrections, again)]
    assert problems[0] == problems[1]


def test_rows_of_an_older_spec_are_passed_over(slow: World) -> None:
    body = with_status(slow.corrections)
    body["metadata"]["generation"] = 4
    known = read_back(Corrections(), [body])
    assert (known.beliefs, known.held, known.notices) == ({}, {}, ())


@pytest.mark.parametrize(
    "wrong", [{"phase": "sideways"}, {"likelyPermille": 99}, {"observedAt": "yesterday"}, {"meanMicro": "much"}]
)
def test_a_bad_status_is_ignored_with_a_notice(slow: World, wrong: Body) -> None:
    body = with_status(slow.corrections)
    body["status"]["corrections"][0] |= wrong
    known = read_back(Corrections(), [body])
    assert known.beliefs == {}
    ((name, reason, message, is_warning),) = known.notices
    assert (name, reason, is_warning) == ("llama-h100-tp1", "CorrectionIgnored", True)
    assert f"status.corrections[0].{next(iter(wrong))}" in message
    assert read_back(known, [body]).notices == known.notices, "it is said once"


def test_a_standby_follows_and_a_leader_goes_on_by_itself(slow: World) -> None:
    old = with_status(slow.corrections)
    fresh = World().corrections
    assert read_back(fresh, [old]).beliefs == {}, "it knows the profile, and better"
    assert read_back(fresh, [old], anew=True).factors(KEY) == slow.corrections.factors(KEY)
