"""The Helm chart: it lints, says no to bad values, and what it renders is safe, minimal and fresh."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from controller import settings
from tests.render_chart import CHART, CHART_CRDS, CRDS, NAMESPACE, ROOT, HelmError, helm, rendered, stale, template
from tests.simcluster.api import Json, load_objects

pytestmark = pytest.mark.cluster  # Helm is one of the simulated cluster's binaries

TLS = "grpc.tls.secretName=penstock-tls"


def objects(*settings: str, **options: str) -> dict[tuple[str, str], Json]:
    """Rendered objects by kind and name, the definitions left out."""
    found = load_objects(template("crds.install=false", *settings, **options))
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in found}


def pod_of(found: dict[tuple[str, str], Json], name: str = "penstock") -> Json:
    pod: Json = found["Deployment", name]["spec"]["template"]["spec"]
    return pod


def arguments(*settings: str) -> list[str]:
    args: list[str] = pod_of(objects(*settings))["containers"][0]["args"]
    return args


def test_the_chart_lints_strictly() -> None:
    said = helm("lint", "--strict", str(CHART), "--set", f"{TLS},grpc.tls.clientCa=true,networkPolicy.enabled=true")
    assert "0 chart(s) failed" in said


def test_what_is_rendered_from_the_chart_is_fresh() -> None:
    assert [str(path.relative_to(ROOT)) for path in stale(rendered())] == []


def test_the_charts_definitions_are_the_generated_ones_and_survive_an_uninstall() -> None:
    assert sorted(path.name for path in CHART_CRDS.iterdir()) == sorted(path.name for path in CRDS.iterdir())
    wanted = {body["metadata"]["name"]: body for path in CRDS.iterdir() for body in load_objects(path.read_text())}
    found = {body["metadata"]["name"]: body for body in load_objects(template(show_only="crds.yaml"))}
    for body in found.values():
        assert body["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert found == wanted


def test_without_the_switch_no_definition_is_rendered() -> None:
    assert {kind for kind, _ in objects()} & {"CustomResourceDefinition"} == set()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("replicas=0", "replicas"),
        ("replicas=two", "replicas"),
        ("logLevel=LOUD", "logLevel"),
        ("prometheus.url=prometheus", "url"),
        ("grpc.port=80", "port"),
        ("image.repository=", "repository"),
        ("unheardOf=1", "unheardOf"),
        ("grpc.tls.secret=typo", "secret"),
        ("solver.memoryGibibytes=0", "memoryGibibytes"),
        ("extraArgs={rm}", "extraArgs"),
    ],
)
def test_a_bad_value_is_refused_by_name(setting: str, named: str) -> None:
    with pytest.raises(HelmError, match=named):
        template(setting)


def test_the_schema_knows_every_value_and_describes_it() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert sorted(schema["properties"]) == sorted([*values, "global"])
    assert [name for name, each in _leaves("", schema) if "description" not in each] == []


def _leaves(name: str, schema: Json) -> list[tuple[str, Json]]:
    inner = schema.get("properties", {})
    return [row for key, each in inner.items() for row in _leaves(f"{name}.{key}", each)] or [(name, schema)]


def test_an_open_grpc_server_without_a_proof_of_callers_is_refused() -> None:
    with pytest.raises(HelmError, match="not anybody can ask"):
        template(TLS)


@pytest.mark.parametrize("proof", ["grpc.tls.clientCa=true", "grpc.tokenAudience=penstock"])
def test_a_certificate_and_a_proof_open_the_grpc_server(proof: str) -> None:
    found = objects(TLS, proof)
    assert "--grpc-bind=0.0.0.0" in pod_of(found)["containers"][0]["args"]
    assert [port["name"] for port in found["Service", "penstock"]["spec"]["ports"]] == ["metrics", "grpc"]
    assert {"secretName": "penstock-tls", "defaultMode": 0o440} in [
        volume.get("secret") for volume in pod_of(found)["volumes"]
    ]


def test_by_default_grpc_stays_on_the_pods_loopback() -> None:
    assert not [argument for argument in arguments() if argument.startswith("--grpc-bind")]
    assert [port["name"] for port in objects()["Service", "penstock"]["spec"]["ports"]] == ["metrics"]


@pytest.mark.parametrize(
    "settings_given",
    [
        (),
        (TLS, "grpc.tls.clientCa=true", "grpc.tokenAudience=penstock"),
        ("prometheus.url=http://prometheus:9090", "logLevel=DEBUG", "solver.memoryGibibytes=8"),
        ("extraArgs={--time-scale=10}",),
    ],
)
def test_every_rendered_flag_is_one_that_the_operator_takes(settings_given: tuple[str, ...]) -> None:
    command, *flags = arguments(*settings_given)
    assert command == "run"
    known = {"--" + each.replace("_", "-") for each in settings.Settings.__dataclass_fields__}
    assert {flag.partition("=")[0] for flag in flags} - known == set()
    plain = [flag for flag in flags if "$(" not in flag]
    parser = settings_parser()
    settings.from_args(parser.parse_args(plain), {})  # raises when a value cannot be read


def settings_parser() -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    return parser


def test_the_pods_are_restricted() -> None:
    pod = pod_of(objects())
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {probe: container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")} == {
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert container["resources"]["requests"]
    assert container["resources"]["limits"]["memory"]


def test_two_replicas_prefer_two_nodes_and_leave_one_at_a_time() -> None:
    found = objects()
    assert found["Deployment", "penstock"]["spec"]["replicas"] == 2
    assert pod_of(found)["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert found["PodDisruptionBudget", "penstock"]["spec"]["maxUnavailable"] == 1


def operator_rules(*settings: str) -> list[Json]:
    found = objects(*settings)
    return [rule for kind in ("ClusterRole", "Role") for rule in found[kind, "penstock"]["rules"]]


def test_the_role_holds_no_wildcard_no_secret_and_no_way_to_more_rights() -> None:
    everything = ("grpc.tokenAudience=penstock", TLS, "grpc.tls.clientCa=true")
    for rule in operator_rules(*everything):
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "*" not in "".join(words)
        assert not {"secrets", "configmaps", "pods/exec", "serviceaccounts/token"} & set(words)
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(words)


def test_reviews_are_allowed_only_when_tokens_are_asked_for() -> None:
    def groups(*settings: str) -> set[str]:
        return {group for rule in operator_rules(*settings) for group in rule["apiGroups"]}

    reviews = {"authentication.k8s.io", "authorization.k8s.io"}
    assert groups() & reviews == set()
    assert groups("grpc.tokenAudience=penstock") & reviews == reviews


def test_options_add_their_objects() -> None:
    settings_given = (
        "metrics.serviceMonitor.enabled=true",
        "metrics.serviceMonitor.labels.release=prom",
        "metrics.alerts.enabled=true",
        "networkPolicy.enabled=true",
        "podDisruptionBudget.enabled=false",
        "rbac.userRoles=false",
        "serviceAccount.name=custom",
    )
    found = objects(*settings_given, release="fleet")
    assert sorted(found) == [
        ("ClusterRole", "fleet-penstock"),
        ("ClusterRoleBinding", "fleet-penstock"),
        ("Deployment", "fleet-penstock"),
        ("NetworkPolicy", "fleet-penstock"),
        ("PrometheusRule", "fleet-penstock"),
        ("Role", "fleet-penstock"),
        ("RoleBinding", "fleet-penstock"),
        ("Service", "fleet-penstock"),
        ("ServiceAccount", "custom"),
        ("ServiceMonitor", "fleet-penstock"),
    ]
    assert found["ServiceMonitor", "fleet-penstock"]["metadata"]["labels"]["release"] == "prom"
    assert pod_of(found, "fleet-penstock")["serviceAccountName"] == "custom"
    lease = [rule for rule in found["Role", "fleet-penstock"]["rules"] if "resourceNames" in rule]
    assert lease[0]["resourceNames"] == ["fleet-penstock"]
    assert "--lease-name=fleet-penstock" in pod_of(found, "fleet-penstock")["containers"][0]["args"]


def test_nothing_of_ours_looks_like_a_workload_that_penstock_made() -> None:
    for obj in objects().values():
        assert obj["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") != "penstock"


def test_a_values_file_reaches_the_pod(tmp_path: Path) -> None:
    values = {"tolerations": [{"key": "system", "operator": "Exists"}], "podLabels": {"team": "inference"}}
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    found = objects(values=str(path))
    assert pod_of(found)["tolerations"] == values["tolerations"]
    assert found["Deployment", "penstock"]["spec"]["template"]["metadata"]["labels"]["team"] == "inference"


def test_the_image_is_pinned_unprivileged_and_lean() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, flags=re.M)
    assert all(re.fullmatch(r"[a-z]+:[0-9][\w.-]*", base) for base in bases)  # name:tag, no registry host
    assert "--require-hashes -r deploy/requirements.lock" in text
    assert re.findall(r"^USER (\d+):", text, flags=re.M) == ["65532"]
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, flags=re.M) for word in line.split()]
    assert ignored[0] == "*"
    assert {f"!{word}" for word in copied} <= set(ignored)


def test_the_manifest_makes_its_namespace_first() -> None:
    first, *others = load_objects((ROOT / "deploy" / "operator.yaml").read_text())
    assert (first["kind"], first["metadata"]["name"]) == ("Namespace", NAMESPACE)
    assert {obj["metadata"].get("namespace", NAMESPACE) for obj in others} == {NAMESPACE}
