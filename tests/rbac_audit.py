"""Compares what a role grants with what the API server's audit log says was asked under it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.simcluster.api import Json, KubeApi
from tests.simcluster.poll import wait_until


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Right:
    """A verb on a resource; ``resource`` holds its subresource after a slash."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the log."""

    right: Right
    path: str
    status: int


def granted(rules: Iterable[Json]) -> set[Right]:
    """Spell out the rules of a role, one right for each verb on each resource."""
    return {
        Right(group=group, resource=resource, verb=verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def may(api: KubeApi, user: str, right: Right, *, namespace: str = "", name: str = "") -> bool:
    """Ask the API server whether a user may; without a namespace, in every one."""
    resource, _, subresource = right.resource.partition("/")
    attributes = {"group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb}
    body = {"spec": {"user": user, "resourceAttributes": attributes | {"namespace": namespace, "name": name}}}
    answer = api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


def wait_granted(api: KubeApi, user: str, rules: Iterable[Json], *, namespace: str = "") -> None:
    """Wait until the API server lets a user do what rules say; it stores them before it goes by them.

    Raises
    ------
    DeadlineError
        Names the rights that were not granted in time.
    """
    asked = [(right, (rule.get("resourceNames") or [""])[0]) for rule in rules for right in sorted(granted([rule]))]

    def missing() -> list[str]:
        return [str(right) for right, name in asked if not may(api, user, right, namespace=namespace, name=name)]

    wait_until(lambda: not missing(), lambda: f"{user} to be granted {', '.join(missing())}")


def requests_of(events: Iterable[Json], user: str) -> Iterator[Request]:
    """Requests of one user for resources; discovery and health are no business of roles."""
    for event in events:
        about = event.get("objectRef")
        if event["user"]["username"] != user or not about or "responseStatus" not in event:
            continue
        names = (about["resource"], about.get("subresource", ""))
        right = Right(group=about.get("apiGroup", ""), resource="/".join(filter(None, names)), verb=event["verb"])
        yield Request(right=right, path=event["requestURI"], status=event["responseStatus"].get("code", 0))


def denied(requests: Iterable[Request]) -> list[str]:
    """Requests that were refused for want of a right."""
    return sorted({f"{request.right}: {request.path}" for request in requests if request.status == 403})


def unused(rules: Iterable[Json], requests: Iterable[Request]) -> list[str]:
    """Rights that no request needed.

    A server-side apply that creates an object is a patch in the log, but needs the verb create too.
    """
    used = {request.right for request in requests if request.status < 400}
    created = {
        Right(group=request.right.group, resource=request.right.resource, verb="create")
        for request in requests
        if request.status == 201
    }
    return sorted(str(right) for right in granted(rules) - used - created)
