"""The check of links against a plan written down by hand, whose bytes over every link are worked out on paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from solvers.engine import EngineConfig, EngineProfile, Role
from solvers.fleet import PoolKey
from solvers.plan import LinkPlan, PartPlan, Plan
from solvers.problem import KvLink, Problem
from solvers.verify import verify_evidence
from solvers.verify.links import links
from solvers.workload import SizeBucket
from tests import fleets
from tests.plans_by_hand import Held, written

OUT, IN = 14_750.0, 8_500.0  # of up, and into far
CHATS = (
    SizeBucket(prompt_tokens=100, output_tokens=10, weight_ratio=0.5),
    SizeBucket(prompt_tokens=300, output_tokens=10, weight_ratio=1.5),
)
DOCUMENTS = (
    SizeBucket(prompt_tokens=50, output_tokens=10, weight_ratio=0.5),
    SizeBucket(prompt_tokens=900, output_tokens=10, weight_ratio=0.5),
)


def profile(model: str, tensor_parallel: int, bytes_per_token: int, group: str) -> EngineProfile:
    made = fleets.profile(model, "h100-sxm", tensor_parallel, 8.0)
    return replace(made, kv_bytes_per_token=bytes_per_token, kv_compatibility_group=group)


def pool(service: str, role: Role, tensor_parallel: int = 1, sizes: str = "") -> PoolKey:
    config = EngineConfig(tensor_parallel=tensor_parallel)
    return PoolKey(service=f"default/{service}", role=role, gpu_class="h100-sxm", config=config, sizes=sizes)


HELD: Held = {
    # 8 and 2 prompts/s west and east against 6 and 9 of decode: 8 stay, 2 could cross
    pool("chat", Role.PREFILL): (2.0, {"west": 4, "east": 1}),
    pool("chat", Role.DECODE): (3.0, {"west": 2, "east": 3}),
    pool("chat", Role.MIXED): (1.5, {"west": 1}),
    # another KV group: 4 west against 0.5 and 0.5 elsewhere, of which one place hangs on no link: 1 could cross
    pool("chat", Role.PREFILL, 2): (4.0, {"west": 1}),
    pool("chat", Role.DECODE, 2): (0.5, {"east": 1, "mid": 1}),
    # may not cross, so nothing does
    pool("local", Role.PREFILL): (1.0, {"west": 1}),
    pool("local", Role.DECODE): (1.0, {"east": 1}),
    # short documents cross, long ones do not
    pool("paper", Role.PREFILL, sizes="p0-99"): (1.0, {"west": 1}),
    pool("paper", Role.DECODE, sizes="p0-99"): (1.0, {"east": 1}),
    pool("paper", Role.MIXED, sizes="p100-up"): (2.0, {"east": 1}),
}


def problem(*, up: float = OUT, far: float = IN) -> Problem:
    nodes = [node for at in ("west", "mid", "east") for node in fleets.nodes("h100-sxm", 1, at, prefix=at)]
    served = [fleets.service(name, name) for name in ("chat", "local", "paper")]
    served[1:] = [replace(served[1], kv_may_cross=False), replace(served[2], splits_by_size=True)]
    made = fleets.problem(
        [(served[0], 11.0), (served[1], 0.5), (served[2], 1.5)],
        nodes,
        [
            profile("chat", 1, 8, "a"),
            profile("chat", 4, 4, "a"),
            profile("chat", 2, 100, "b"),
            profile("local", 1, 1000, "a"),
            profile("paper", 1, 10, "a"),
        ],
    )
    mixes = {"default/chat": CHATS, "default/local": CHATS, "default/paper": DOCUMENTS}
    demands = {name: replace(demand, mix=mixes[name]) for name, demand in made.demands.items()}
    tied = (
        KvLink(name="far", locations=("east",), bytes_per_s=far, usd_per_terabyte=2e5),
        KvLink(name="up", locations=("west",), bytes_per_s=up, usd_per_terabyte=1e6),
    )
    return replace(made, demands=demands, policy=replace(made.policy, kv_links=tied))


def plan() -> Plan:
    return written(
        HELD,
        {"default/chat": 11.0, "default/local": 0.5, "default/paper": 1.5},
        parts=tuple(
            PartPlan(service="default/paper", sizes=sizes, demand_requests_per_s=rate, served_requests_per_s=rate)
            for sizes, rate in (("p0-99", 0.5), ("p100-up", 1.0))
        ),
        links=(
            LinkPlan(link="far", bytes_per_s=IN, outgoing_bytes_per_s=0.0, incoming_bytes_per_s=IN, usd_per_hour=6.12),
            LinkPlan(link="up", bytes_per_s=OUT, outgoing_bytes_per_s=OUT, incoming_bytes_per_s=0.0, usd_per_hour=53.1),
        ),
    )


def test_the_bytes_of_a_plan_written_down_by_hand_are_found() -> None:
    """A mean chat prompt has 250 tokens. 11 - 9.5 chats cross, two in three of the first group, which has twice the
    spare: 1.0 x 2,000 and 0.5 x 25,000 bytes leave, and half of the latter goes where no link is; 0.5 short papers
    of 50 tokens are 250 bytes more."""
    assert tuple(links(plan(), problem())) == ()


def up(**how: Any) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, links=(plan.links[0], replace(plan.links[1], **how)))


def far(**how: Any) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, links=(replace(plan.links[0], **how), plan.links[1]))


def serving(service: str, rate: float) -> Callable[[Plan], Plan]:
    def changed(plan: Plan) -> Plan:
        rows = (replace(r, served_requests_per_s=rate) if r.service == service else r for r in plan.services)
        return replace(plan, services=tuple(rows))

    return changed


def paper(sizes: str, rate: float) -> Callable[[Plan], Plan]:
    def changed(plan: Plan) -> Plan:
        rows = (replace(r, served_requests_per_s=rate) if r.sizes == sizes else r for r in plan.parts)
        return replace(plan, parts=tuple(rows))

    return changed


WRONG: dict[str, tuple[Callable[[Plan], Plan], tuple[str, ...]]] = {
    "more than leaves": (up(outgoing_bytes_per_s=OUT + 2.0), ("links[up]: said 14,752 B/s out, is 14,750",)),
    "less than leaves": (up(outgoing_bytes_per_s=OUT - 2.0), ("links[up]: said 14,748 B/s out, is 14,750",)),
    "something enters": (up(incoming_bytes_per_s=5.0), ("links[up]: said 5 B/s in, is 0",)),
    "less than enters": (far(incoming_bytes_per_s=IN - 2.0), ("links[far]: said 8,498 B/s in, is 8,500",)),
    "a link for less": (up(usd_per_hour=53.09), ("links[up]: said 53.090000 USD/h, is 53.100000",)),
    "a link for more": (far(usd_per_hour=6.13), ("links[far]: said 6.130000 USD/h, is 6.120000",)),
    "an amount of no number": (up(usd_per_hour=float("nan")), ("links[up]: said nan USD/h, is 53.100000",)),
    "a lost link": (lambda p: replace(p, links=p.links[:1]), ("links[up]: planned and existing links differ",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_on_a_link_are_named(name: str) -> None:
    change, faults = WRONG[name]
    assert tuple(links(change(plan()), problem())) == faults


@pytest.mark.parametrize(
    ("room", "fault"),
    [
        ({"up": OUT - 2.0}, "links[up]: 14,750 B/s out, carries 14,748"),
        ({"up": 0.6 * OUT}, "links[up]: 14,750 B/s out, carries 8,850"),
        ({"far": IN - 2.0}, "links[far]: 8,500 B/s in, carries 8,498"),
        ({"far": 0.6 * IN}, "links[far]: 8,500 B/s in, carries 5,100"),
    ],
)
def test_a_link_that_is_overfull_by_little_is_named(room: dict[str, float], fault: str) -> None:
    """The plan says truly what crosses and what it costs; only the room is too small."""
    assert tuple(links(plan(), problem(**room))) == (fault,)


def test_what_stays_on_one_side_crosses_no_link() -> None:
    """9.5 chats are served without a link, whatever else there is room for."""
    found = tuple(links(serving("default/chat", 9.5)(plan()), problem()))
    assert found[0] == "links[far]: said 8,500 B/s in, is 250"
    assert found[2] == "links[up]: said 14,750 B/s out, is 250"


def test_each_part_of_a_split_service_counts_by_itself() -> None:
    assert tuple(links(paper("p100-up", 9.0)(plan()), problem())) == ()
    found = tuple(links(paper("p0-99", 1.0)(plan()), problem()))
    assert "links[up]: said 14,750 B/s out, is 15,000" in found


def test_what_may_not_cross_counts_nothing() -> None:
    assert tuple(links(serving("default/local", 40.0)(plan()), problem())) == ()


def test_what_crosses_links_is_part_of_what_is_paid() -> None:
    def paid_usd_per_hour(plan: Plan) -> float:
        (said,) = (fault for fault in verify_evidence(plan, problem()) if fault.startswith("objective: said"))
        return float(said.partition("cost and churn are ")[2].partition(",")[0])

    free = paid_usd_per_hour(replace(plan(), links=()))
    assert paid_usd_per_hour(plan()) - free == pytest.approx(6.12 + 53.1)
