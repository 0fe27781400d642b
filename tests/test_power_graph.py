"""Nodes to power domains: membership, ancestors, and graphs that are broken."""

from __future__ import annotations

import pytest

from controller.power_graph import PowerGraph, resolve
from controller.resources import PowerDomainSpec
from solvers.fleet import PowerDomain


def domain(name: str, parents: tuple[str, ...] = (), **labels: str) -> PowerDomainSpec:
    return PowerDomainSpec(
        domain=PowerDomain(name=name, parents=parents, budget_watts=1000.0), node_selector=dict(labels)
    )


NODES = {"n1": {"rack": "a", "pod": "x"}, "n2": {"rack": "b"}, "n3": {"rack": "c"}}


def faults(graph: PowerGraph) -> dict[str, str]:
    return {fault.subject: str(fault) for fault in graph.faults}


def test_a_node_belongs_to_its_domain_and_all_above() -> None:
    graph = resolve([domain("rack-a", ("row",), rack="a"), domain("row", ("site",)), domain("site")], NODES)
    assert graph.of_node == {"n1": ("rack-a", "row", "site"), "n2": (), "n3": ()}
    assert graph.faults == ()
    assert graph.unproven == {}


def test_two_feeds_both_count_and_a_diamond_counts_once() -> None:
    specs = [
        domain("rack-a", ("feed-a", "feed-b"), rack="a"),
        domain("feed-a", ("site",)),
        domain("feed-b", ("site",)),
        domain("site"),
    ]
    assert resolve(specs, NODES).of_node["n1"] == ("feed-a", "feed-b", "rack-a", "site")


def test_every_label_of_a_selector_must_match() -> None:
    graph = resolve([domain("both", rack="a", pod="x"), domain("neither", rack="a", pod="y")], NODES)
    assert graph.of_node["n1"] == ("both",)


def test_a_domain_without_labels_has_no_node_of_its_own() -> None:
    assert resolve([domain("site")], NODES).of_node == {"n1": (), "n2": (), "n3": ()}


def test_a_cycle_is_named_left_out_and_proves_nothing_about_its_nodes() -> None:
    specs = [
        domain("a", ("b",), rack="a"),
        domain("b", ("a", "site")),
        domain("site"),
        domain("c", ("site",), rack="c"),
    ]
    graph = resolve(specs, NODES)
    assert faults(graph)["PowerDomain/a"] == (
        "PowerDomain/a spec.parents: cycle a → b → a; no new replicas on its nodes (1); remove one of these parents"
    )
    assert set(faults(graph)) == {"PowerDomain/a", "PowerDomain/b"}
    assert set(graph.domains) == {"c", "site"}
    assert graph.unproven == {"n1": "a"}
    assert graph.of_node["n1"] == ("site",), "what is sound above still holds"
    assert graph.of_node["n3"] == ("c", "site")


@pytest.mark.parametrize(
    ("parents", "shown"),
    [
        ({"a": ("a",)}, "cycle a → a"),
        ({"a": ("b",), "b": ("c",), "c": ("a",)}, "cycle a → b → c → a"),
        ({"a": ("c", "b"), "b": ("a",), "c": ("d",), "d": ("a",)}, "cycle a → b → a"),
    ],
)
def test_the_shortest_cycle_is_shown(parents: dict[str, tuple[str, ...]], shown: str) -> None:
    graph = resolve([domain(name, above) for name, above in parents.items()], {})
    assert shown in faults(graph)["PowerDomain/a"]
    assert graph.domains == {}


def test_what_hangs_below_a_cycle_keeps_its_own_budget_and_takes_nothing_new() -> None:
    specs = [domain("rack", ("a",), rack="a"), domain("a", ("b",)), domain("b", ("a",))]
    graph = resolve(specs, NODES)
    assert graph.domains["rack"].parents == ()
    assert graph.of_node["n1"] == ("rack",)
    assert "n1" in graph.unproven
    assert "hangs below PowerDomain/a" in faults(graph)["PowerDomain/rack"]


def test_an_unknown_parent_is_named() -> None:
    graph = resolve([domain("rack", ("fed-a", "site"), rack="a"), domain("site")], NODES)
    assert faults(graph)["PowerDomain/rack"] == (
        "PowerDomain/rack spec.parents: there is no PowerDomain fed-a; no new replicas on its nodes (1); "
        "create it or remove it from parents"
    )
    assert graph.of_node["n1"] == ("rack", "site")
    assert graph.unproven == {"n1": "rack"}
    assert graph.domains["rack"].parents == ("site",)


def test_order_of_input_does_not_matter() -> None:
    specs = [domain("rack", ("site", "b"), rack="a"), domain("b", ("site",)), domain("site"), domain("x", ("x",))]
    assert resolve(specs, NODES) == resolve(specs[::-1], dict(reversed(list(NODES.items()))))
