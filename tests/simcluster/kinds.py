"""Install custom resource definitions, and wait until every way to ask for their kinds knows them.

A server that has stored a definition serves, lists (discovery) and describes (OpenAPI) its kind a little later, each
by a worker of its own: on a busy machine whole seconds apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tests.simcluster.api import Json, KubeApi
from tests.simcluster.nodes import condition
from tests.simcluster.poll import wait_until

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def install_kinds(api: KubeApi, definitions: Iterable[Json]) -> None:
    """Apply definitions and wait until objects of their kinds can be made, listed and looked up.

    Raises
    ------
    DeadlineError
        If the server does not know a kind in time; the message names it.
    """
    wanted = list(definitions)
    for definition in wanted:
        api.apply(definition)
    for definition in wanted:
        wait_until(partial(_is_known, api, definition), f"the server to know {definition['metadata']['name']}")


def _is_known(api: KubeApi, definition: Json) -> bool:
    """Say whether one kind is established, served, listed and described, in that order."""
    spec, plural = definition["spec"], definition["spec"]["names"]["plural"]
    stored = api.find(f"{_CRDS}/{definition['metadata']['name']}") or {}
    if condition(stored, "Established").get("status") != "True":
        return False
    bases = [f"/apis/{spec['group']}/{version['name']}" for version in spec["versions"] if version["served"]]
    return all(
        api.find(f"{base}/{plural}") is not None
        and plural in {entry["name"] for entry in (api.find(base) or {}).get("resources", ())}
        and f"{base}/{plural}" in (api.find(f"/openapi/v3{base}") or {}).get("paths", {})
        for base in bases
    )
