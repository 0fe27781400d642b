"""The comparison of roles with audit logs finds what it is for."""

from __future__ import annotations

from typing import Any

from tests.rbac_audit import denied, requests_of, unused

RULES = [
    {"apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": ["patch"]},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
]


def event(verb: str, resource: str, status: int, *, user: str = "operator", **about: str) -> dict[str, Any]:
    return {
        "user": {"username": user},
        "verb": verb,
        "requestURI": f"/{resource}",
        "objectRef": {"resource": resource, **about},
        "responseStatus": {"code": status},
    }


def test_a_right_that_nobody_used_and_a_refusal_are_found() -> None:
    events = [
        event("patch", "deployments", 201, apiGroup="apps"),
        event("list", "pods", 200, user="somebody else"),
        event("list", "secrets", 403),
        {"user": {"username": "operator"}, "verb": "get", "requestURI": "/apis", "responseStatus": {"code": 200}},
    ]
    requests = list(requests_of(events, "operator"))
    assert unused(RULES, requests) == ["list pods", "patch deployments/scale.apps"]
    assert denied(requests) == ["list secrets: /secrets"]


def test_a_request_that_failed_used_no_right() -> None:
    events = [event("patch", "deployments", 404, apiGroup="apps", subresource="scale")]
    assert "patch deployments/scale.apps" in unused(RULES, list(requests_of(events, "operator")))


def test_everything_used_leaves_nothing() -> None:
    events = [
        event("patch", "deployments", 200, apiGroup="apps"),
        event("patch", "deployments", 201, apiGroup="apps"),
        event("patch", "deployments", 200, apiGroup="apps", subresource="scale"),
        event("list", "pods", 200),
    ]
    requests = list(requests_of(events, "operator"))
    assert (unused(RULES, requests), denied(requests)) == ([], [])
