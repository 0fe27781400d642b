"""The Placement service over a real socket, asked by a real client."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from controller import placement_pb2 as pb
from controller.api import MAX_SOLVES, SERVICE, ApiServer, serve, solve_time_s
from controller.api_convert import pool_messages
from controller.auth import Listen
from controller.placement_pb2_grpc import PlacementStub
from controller.what_if import BadRequest, changed_problem
from controller.worker import with_time_limit
from solvers.errors import InvalidInput, SolveFailed
from solvers.explain import explain
from solvers.explain.pricing import explain_priced
from solvers.explain.reasons import KeptBy
from solvers.plan import Plan
from solvers.planner import make_plan
from solvers.problem import Problem
from tests import fleets
from tests import placement_world as world
from tests.resource_cases import small_plan


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[world.Source, ApiServer]]:
    source = world.Source()
    running = serve(source, Listen())
    yield source, running
    running.stop(grace_s=1.0)


@pytest.fixture
def source(server: tuple[world.Source, ApiServer]) -> world.Source:
    """The source behind the server, with plan 7 (or one above the last) in force."""
    found = server[0]
    found.solve = lambda problem, deadline_s: world.plan(chat_replicas=3)
    found.asked.clear()
    found.decide(found.turn.number + 1 if found.turn else 7)
    return found


@pytest.fixture
def channel(server: tuple[world.Source, ApiServer]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server[1].port}") as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> PlacementStub:
    return PlacementStub(channel)


def refusal(call: Any, request: object, timeout_s: float | None = 60.0) -> Any:
    """Ask what must be refused, and return the refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=timeout_s)
    return caught.value


def watch(stub: PlacementStub, after_number: int = 0) -> Any:
    return stub.WatchPlans(pb.WatchPlansRequest(after_number=after_number), timeout=60.0)


def violations(error: Any) -> dict[str, str]:
    """Read the details as any client does."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    (detail,) = status.details
    found = error_details_pb2.BadRequest()
    assert detail.Unpack(found)
    return {row.field: row.description for row in found.field_violations}


def test_the_plan_in_force_is_returned_whole(source: world.Source, stub: PlacementStub) -> None:
    assert source.turn is not None
    plan = stub.GetPlan(pb.GetPlanRequest(), timeout=60.0).plan
    assert plan.number == source.turn.number
    assert plan.decision_hash == source.turn.plan.decision_hash
    chat = plan.pools[0]
    assert (chat.pool.service, chat.pool.role, chat.pool.config.label) == (world.CHAT, pb.ROLE_MIXED, "tp2")
    assert [(row.location, row.replicas) for row in chat.placements] == [("rack-a", 2)]
    assert plan.report.status == pb.SOLVE_STATUS_OPTIMAL
    assert [domain.domain for domain in plan.domains] == ["rack-a", "rack-b"]
    assert not plan.is_short


def test_a_recent_plan_is_returned_by_number_and_an_unknown_one_is_not_found(
    source: world.Source, stub: PlacementStub
) -> None:
    assert source.turn is not None
    first = source.turn.number
    source.decide(first + 1, chat_replicas=5)
    assert stub.GetPlan(pb.GetPlanRequest(), timeout=60.0).plan.number == first + 1
    assert stub.GetPlan(pb.GetPlanRequest(number=first), timeout=60.0).plan.pools[0].replicas == 2
    error = refusal(stub.GetPlan, pb.GetPlanRequest(number=first + 99))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert f"plan {first + 99}" in error.details()


def test_before_the_first_plan_the_service_is_unavailable() -> None:
    server = serve(world.Source(), Listen())
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            error = refusal(PlacementStub(channel).GetPlan, pb.GetPlanRequest())
    finally:
        server.stop(grace_s=1.0)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_what_if_solves_the_changed_problem_and_says_what_differs(source: world.Source, stub: PlacementStub) -> None:
    assert source.turn is not None
    request = pb.WhatIfRequest(
        demands=[pb.DemandChange(service=world.CHAT, requests_per_s=25.0)],
        budgets=[pb.BudgetChange(domain="rack-a", budget_watts=15_000.0)],
    )
    answer = stub.WhatIf(request, timeout=60.0)
    changed, deadline_s = source.asked[0]
    assert changed.demands[world.CHAT].requests_per_s == 25.0
    assert changed.domains["rack-a"].budget_watts == 15_000.0
    assert 0.0 < deadline_s < 60.0
    assert (answer.plan.number, answer.base_number) == (0, source.turn.number)
    (difference,) = answer.difference.placements
    assert (difference.location, difference.from_replicas, difference.to_replicas) == ("rack-a", 2, 3)
    assert (answer.difference.starting_replicas, answer.difference.stopping_replicas) == (1, 0)
    assert [row.domain for row in answer.difference.domains] == ["rack-a"]
    assert source.turn.problem == world.problem()  # nothing was applied


def test_bad_what_ifs_name_every_wrong_field_at_once(source: world.Source, stub: PlacementStub) -> None:
    request = pb.WhatIfRequest(
        demands=[
            pb.DemandChange(service="prod/unknown", requests_per_s=1.0),
            pb.DemandChange(service=world.CHAT, requests_per_s=-1.0),
            pb.DemandChange(service=world.CODE),
            pb.DemandChange(service=world.CHAT, factor_ratio=2.0),
        ],
        budgets=[pb.BudgetChange(domain="rack-a", budget_watts=math.nan)],
        prices=[pb.PriceChange(gpu_class="v100", price_usd_per_hour=1.0)],
        nodes=[pb.NodesChange(gpu_class="h100", location="rack-a", nodes=-3)],
        removed_nodes=["n9"],
    )
    error = refusal(stub.WhatIf, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    named = violations(error)
    assert sorted(named) == [
        "budgets[0].budget_watts",
        "demands[0].service",
        "demands[1].requests_per_s",
        "demands[2]",
        "demands[3].service",
        "nodes[0].nodes",
        "prices[0].gpu_class",
        "removed_nodes[0]",
    ]
    assert "known: h100, l40s" in named["prices[0].gpu_class"]
    assert source.asked == []


def test_a_solver_that_refuses_the_problem_makes_a_bad_request(source: world.Source, stub: PlacementStub) -> None:
    def refuse(problem: Problem, deadline_s: float) -> Plan:
        raise InvalidInput("ServedModel/prod/chat", "spec.slos", "no profile fits")

    source.solve = refuse
    error = refusal(stub.WhatIf, pb.WhatIfRequest())
    assert violations(error) == {"": "ServedModel/prod/chat spec.slos: no profile fits"}


def test_a_solver_without_an_answer_is_an_internal_error(source: world.Source, stub: PlacementStub) -> None:
    def fail(problem: Problem, deadline_s: float) -> Plan:
        raise SolveFailed("the worker ran out of memory")

    source.solve = fail
    error = refusal(stub.WhatIf, pb.WhatIfRequest())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "ran out of memory" in error.details()


def test_a_deadline_ends_the_wait_and_bounds_the_solve(source: world.Source, stub: PlacementStub) -> None:
    source.solve = gate = world.Gate()
    try:
        question: Any = stub.WhatIf.future(pb.WhatIfRequest(), timeout=2.0)
        gate.wait_for(1)
        assert question.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        changed, deadline_s = source.asked[0]
        assert deadline_s < 2.0
        assert changed.policy.time_limit_s < deadline_s
        assert stub.GetPlan(pb.GetPlanRequest(), timeout=60.0).plan.number  # the others are answered meanwhile
    finally:
        gate.open()


def test_the_servers_own_limit_ends_the_wait_too(
    source: world.Source, stub: PlacementStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.api.DEFAULT_SOLVE_S", 0.2)
    source.solve = gate = world.Gate()
    try:
        error = refusal(stub.WhatIf, pb.WhatIfRequest(), timeout_s=None)
    finally:
        gate.open()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no answer within 0.2 s" in error.details()


def test_a_cancelled_question_frees_its_slot_when_its_solve_ends(source: world.Source, stub: PlacementStub) -> None:
    source.solve = gate = world.Gate()
    questions: list[Any] = [stub.WhatIf.future(pb.WhatIfRequest(), timeout=120.0) for _ in range(MAX_SOLVES)]
    gate.wait_for(MAX_SOLVES)
    for question in questions:
        assert question.cancel()
    error = refusal(stub.WhatIf, pb.WhatIfRequest())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    gate.open()
    until_answered(stub)


def until_answered(stub: PlacementStub) -> None:
    give_up, pause = time.monotonic() + 60.0, threading.Event()
    while (code := outcome(stub)) is not grpc.StatusCode.OK:
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert time.monotonic() < give_up, "no slot became free within 60 s"
        pause.wait(0.02)


def outcome(stub: PlacementStub) -> grpc.StatusCode:
    question: Any = stub.WhatIf.future(pb.WhatIfRequest(), timeout=60.0)
    code: grpc.StatusCode = question.code()
    return code


def test_watching_sends_the_plan_in_force_and_then_each_new_one(source: world.Source, stub: PlacementStub) -> None:
    assert source.turn is not None
    number = source.turn.number
    plans = watch(stub)
    assert next(plans).plan.number == number
    source.decide(number + 1, chat_replicas=4)
    newest = next(plans).plan
    assert (newest.number, newest.pools[0].replicas) == (number + 1, 4)
    plans.cancel()


def test_a_reader_that_reconnects_reads_nothing_twice(source: world.Source, stub: PlacementStub) -> None:
    assert source.turn is not None
    number = source.turn.number
    plans = watch(stub, after_number=number)
    source.decide(number + 1)
    assert next(plans).plan.number == number + 1
    plans.cancel()


def test_stopping_sends_watchers_away_and_frees_the_port() -> None:
    source = world.Source()
    source.decide(1)
    server = serve(source, Listen())
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        plans = watch(PlacementStub(channel))
        assert next(plans).plan.number == 1
        server.stop(grace_s=5.0)
        with pytest.raises(grpc.RpcError) as caught:
            next(plans)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert source.callbacks == []
    again = serve(source, Listen(port=server.port))
    again.stop(grace_s=0.0)


def test_a_taken_port_is_refused_with_a_remedy(server: tuple[world.Source, ApiServer]) -> None:
    with pytest.raises(InvalidInput, match="choose another address or port"):
        serve(world.Source(), Listen(port=server[1].port))


def test_requests_beyond_the_size_limit_are_refused(source: world.Source, stub: PlacementStub) -> None:
    error = refusal(stub.WhatIf, pb.WhatIfRequest(removed_nodes=["x" * 2_000_000]))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert source.asked == []


def test_health_says_serving(source: world.Source, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60.0)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_describes_the_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    described = DescriptorPool(database).FindServiceByName(SERVICE)
    assert sorted(described.methods_by_name) == ["Explain", "GetPlan", "WatchPlans", "WhatIf"]


def test_time_for_a_solve_is_what_is_left_less_the_answer() -> None:
    assert solve_time_s(5.2) == pytest.approx(5.0)
    assert solve_time_s(0.1) == 0.0
    assert solve_time_s(1e9) == 120.0
    assert solve_time_s(None) == 30.0
    assert with_time_limit(world.problem(), 10.0).policy.time_limit_s == pytest.approx(8.0)
    assert with_time_limit(world.problem(), 1000.0).policy.time_limit_s == world.problem().policy.time_limit_s


def test_the_planner_answers_a_budget_cut_and_a_surge(stub: PlacementStub, source: world.Source) -> None:
    """The real planner behind the server, on the small fleet of its own tests."""
    problem = fleets.demo(0.5)
    in_force = make_plan(problem)
    assert source.turn is not None
    source.put(world.Turn(plan=in_force, problem=problem, number=source.turn.number + 1))
    source.solve = lambda changed, deadline_s: make_plan(changed, previous=in_force)
    row = next(domain for domain in in_force.domains if domain.domain == "row-a")

    surge = stub.WhatIf(pb.WhatIfRequest(demands=[pb.DemandChange(service="default/chat-8b", factor_ratio=3.0)]))
    assert surge.difference.starting_replicas > 0
    assert surge.difference.to_cost_usd_per_hour > surge.difference.from_cost_usd_per_hour
    (served,) = (each for each in surge.plan.services if each.service == "default/chat-8b")
    assert served.demand_requests_per_s == pytest.approx(3 * problem.demands["default/chat-8b"].requests_per_s)

    budget_watts = 0.9 * row.reserved_watts
    cut = stub.WhatIf(pb.WhatIfRequest(budgets=[pb.BudgetChange(domain="row-a", budget_watts=budget_watts)]))
    (after,) = (each for each in cut.plan.domains if each.domain == "row-a")
    assert after.budget_watts == pytest.approx(budget_watts)
    assert after.reserved_watts <= budget_watts
    assert cut.difference.stopping_replicas > 0


def test_a_service_is_explained_in_words_and_numbers(stub: PlacementStub, source: world.Source) -> None:
    problem = fleets.demo(0.5)
    plan = make_plan(problem)
    assert source.turn is not None
    number = source.turn.number + 1
    source.put(world.Turn(plan=plan, problem=problem, number=number))
    why = stub.Explain(pb.ExplainRequest(service="default/chat-70b"), timeout=60.0)
    assert why.number == number
    assert why.text == explain(plan, problem, "default/chat-70b").text()
    assert why.service.service == "default/chat-70b"
    wanted = {str(row.pool): row.replicas for row in plan.pools if row.pool.service == "default/chat-70b"}
    found = {short_name(each.pool.pool): each.pool.replicas for each in why.chosen}
    assert found == {name: count for name, count in wanted.items() if count}
    assert all(0.0 < each.used_ratio <= 1.0 for each in why.chosen)
    assert all(way.pools for way in why.rejected)
    assert {each.pool: each.replicas for each in why.counts} == {name: count for name, count in wanted.items() if count}
    assert {each.kept_by for each in why.counts} <= set(map(str, KeptBy))
    assert 0.0 <= why.demand_range.least_requests_per_s < 3.0 <= why.demand_range.most_requests_per_s
    assert all(switch.pools and switch.at_usd_per_hour != switch.now_usd_per_hour for switch in why.switches)


def test_prices_and_losses_are_worked_out_when_they_are_asked_for(stub: PlacementStub, source: world.Source) -> None:
    problem = fleets.demo(9.0, budget_ratio=0.6)
    plan = make_plan(problem)
    assert plan.is_short
    assert source.turn is not None
    source.put(world.Turn(plan=plan, problem=problem, number=source.turn.number + 1))
    ask = pb.ExplainRequest(service="default/moe", with_prices=True)
    told, priced = explain_priced(plan, problem, "default/moe"), stub.Explain(ask, timeout=60.0)
    assert priced.text == told.text()
    rows = [(row.limit, row.subject, row.more_usd_per_hour, row.less_holds_for_units) for row in priced.prices]
    wanted = [(row.limit, row.subject, row.more_usd_per_hour, row.less_holds_for) for row in told.prices]
    assert rows == wanted
    assert wanted
    for way in priced.rejected:
        assert way.fleet_low_usd_per_hour <= way.fleet_expected_usd_per_hour <= way.fleet_high_usd_per_hour
    assert not priced.losses
    shown = stub.GetPlan(pb.GetPlanRequest(), timeout=10.0).plan.relief
    said = [(row.limit, row.amount_units, row.first_serves_requests_per_s, row.is_estimate) for row in shown]
    assert said == [(r.limit, r.amount, r.first_serves_requests_per_s, r.is_estimate) for r in plan.relief]
    assert [row.subject for row in priced.relief] == [row.subject for row in plan.relief]
    plain = stub.Explain(pb.ExplainRequest(service="default/moe"), timeout=10.0)
    assert not plain.prices
    assert not any(way.HasField("fleet_low_usd_per_hour") for way in plain.rejected)


def test_prices_that_take_too_long_are_not_waited_for(stub: PlacementStub, source: world.Source) -> None:
    problem = fleets.demo(0.5)
    assert source.turn is not None
    source.put(world.Turn(plan=make_plan(problem), problem=problem, number=source.turn.number + 1))
    ask = pb.ExplainRequest(service="default/chat-70b", with_losses=True)
    error = refusal(stub.Explain, ask, timeout_s=0.25)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not stub.Explain(pb.ExplainRequest(service="default/chat-70b"), timeout=10.0).losses


def short_name(pool: pb.Pool) -> str:
    role = pb.Role.Name(pool.role).removeprefix("ROLE_").lower()
    return f"{pool.service}/{role}/{pool.gpu_class}/{pool.config.label}"


def test_an_unknown_service_is_not_found_and_the_known_are_named(stub: PlacementStub, source: world.Source) -> None:
    error = refusal(stub.Explain, pb.ExplainRequest(service="prod/unknown"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert f"known: {world.CHAT}, {world.CODE}" in error.details()


def test_nodes_come_and_go_with_the_feeds_of_their_neighbours() -> None:
    request = pb.WhatIfRequest(
        nodes=[
            pb.NodesChange(gpu_class="h100", location="rack-a", nodes=-1),
            pb.NodesChange(gpu_class="h100", location="rack-b", nodes=2),
            pb.NodesChange(gpu_class="l40s", location="rack-c", nodes=1, gpus_per_node=4, domains=["rack-b"]),
        ],
        removed_nodes=["n3"],
    )
    with pytest.raises(BadRequest) as caught:
        changed_problem(world.problem(), request)
    assert [v.field for v in caught.value.violations] == [
        "nodes[1].domains"
    ]  # n3 is gone: no neighbour is left in rack b
    request.nodes[1].domains[:] = ["rack-b"]
    changed = changed_problem(world.problem(), request)
    assert [(node.name, node.gpus_usable) for node in changed.nodes] == [
        ("n1", 8),
        ("what-if-h100-rack-b-0", 8),
        ("what-if-h100-rack-b-1", 8),
        ("what-if-l40s-rack-c-0", 4),
    ]
    assert {node.domains for node in changed.nodes[1:]} == {("rack-b", "row")}


def test_what_runs_and_what_is_not_named_stays_as_it_is() -> None:
    before = world.problem()
    request = pb.WhatIfRequest(
        demands=[pb.DemandChange(service=world.CHAT, factor_ratio=1.5)],
        prices=[pb.PriceChange(gpu_class="l40s", price_usd_per_hour=0.4)],
    )
    after = changed_problem(before, request)
    assert after.demands[world.CHAT].requests_per_s == 15.0
    assert after.demands[world.CODE] == before.demands[world.CODE]
    assert after.gpu_classes["l40s"] == replace(before.gpu_classes["l40s"], price_usd_per_hour=0.4)
    assert replace(after, demands=before.demands, gpu_classes=before.gpu_classes) == before
    assert changed_problem(before, pb.WhatIfRequest()) == before


def test_a_pool_says_on_how_many_nodes_each_replica_stands() -> None:
    plan = small_plan()
    joined = replace(plan, pools=(replace(plan.pools[0], nodes_per_replica=18),))
    said = [pool_messages(each, ["default/chat"])[0].nodes_per_replica for each in (plan, joined)]
    assert said == [1, 18]
