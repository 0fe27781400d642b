"""Who may ask: loopback, certificates, tokens."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controller import placement_pb2 as pb
from controller.api import ApiServer, serve
from controller.auth import (
    ACCESS_REVIEWS,
    HOLD_S,
    PERMISSIONS,
    TOKEN_REVIEWS,
    Listen,
    Permission,
    Refused,
    TokenGate,
    bearer_token,
    check_listen,
    review_by,
)
from controller.client import Transport, Unreachable, load_configuration
from controller.placement_pb2_grpc import PlacementStub
from solvers.errors import InvalidInput
from tests import placement_world as world
from tests.rbac_audit import wait_granted
from tests.simcluster.api import Json
from tests.simcluster.cluster import SimCluster

AUDIENCE = "penstock"
GET = Permission(verb="get")
WHAT_IF = Permission(verb="create", subresource="whatif")
SOME = Path("some.pem")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_nothing(host: str) -> None:
    assert refusal(Listen(host=host)) == ""


def refusal(listen: Listen) -> str:
    """Why we would not listen; empty when we would."""
    try:
        check_listen(listen)
    except InvalidInput as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("listen", "complaint"),
    [
        (Listen(host="0.0.0.0"), "clear text"),
        (Listen(host="::"), "clear text"),
        (Listen(host="10.0.0.7", token_audience=AUDIENCE), "clear text"),
        (Listen(host="0.0.0.0", certificate_file=SOME, key_file=SOME), "anybody could ask"),
        (Listen(certificate_file=SOME), "one is given without the other"),
        (Listen(client_ca_file=SOME), "needs TLS"),
    ],
)
def test_an_open_server_is_refused_with_a_remedy(listen: Listen, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as caught:
        check_listen(listen)
    assert caught.value.remedy


@pytest.mark.parametrize("proof", [{"client_ca_file": SOME}, {"token_audience": AUDIENCE}])
def test_beyond_loopback_tls_and_one_proof_suffice(proof: dict[str, Any]) -> None:
    assert refusal(Listen(host="0.0.0.0", certificate_file=SOME, key_file=SOME, **proof)) == ""


def test_a_token_audience_without_an_api_server_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be reviewed"):
        ApiServer(world.Source(), Listen(token_audience=AUDIENCE))


@dataclass
class Reviewer:
    """An API server's answers to reviews: who a token is, and what they may do."""

    users: dict[str, str] = field(default_factory=lambda: {"good": "system:serviceaccount:ops:reader"})
    grants: set[str] = field(default_factory=lambda: {"get", "watch"})
    audiences: list[str] | None = field(default_factory=lambda: [AUDIENCE])
    is_up: bool = True
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def __call__(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append((path, body["spec"]))
        if not self.is_up:
            raise Unreachable("connection refused")
        return {"status": self._token(body["spec"]) if path == TOKEN_REVIEWS else self._access(body["spec"])}

    def _token(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        name = self.users.get(spec["token"])
        if name is None:
            return {"authenticated": False, "error": "unknown token"}
        user = {"username": name, "uid": "u1", "groups": ["system:serviceaccounts"]}
        return {"authenticated": True, "user": user} | ({"audiences": self.audiences} if self.audiences else {})

    def _access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        attributes = spec["resourceAttributes"]
        return {"allowed": "/".join(filter(None, (attributes["verb"], attributes.get("subresource")))) in self.grants}

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


class Clock:
    """Seconds in hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def refused(check: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        check()
    return caught.value


def test_a_good_token_passes_and_its_answers_are_held_for_a_minute() -> None:
    reviewer, clock = Reviewer(), Clock()
    gate = TokenGate(reviewer, AUDIENCE, clock)
    gate.check("good", GET)
    gate.check("good", GET)
    assert reviewer.paths() == [TOKEN_REVIEWS, ACCESS_REVIEWS]
    assert reviewer.asked[0][1] == {"token": "good", "audiences": [AUDIENCE]}
    assert reviewer.asked[1][1] == {
        "user": "system:serviceaccount:ops:reader",
        "uid": "u1",
        "groups": ["system:serviceaccounts"],
        "resourceAttributes": {"group": "penstock.dev", "resource": "fleetplans", "verb": "get"},
    }
    clock.now_s = HOLD_S
    reviewer.users.clear()
    assert refused(lambda: gate.check("good", GET)).code is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_is_never_held_in_clear() -> None:
    gate = TokenGate(Reviewer(users={"s3cret-token": "ops"}), AUDIENCE)
    gate.check("s3cret-token", GET)
    assert "s3cret-token" not in repr(vars(gate._users)) + repr(vars(gate._grants))


def test_a_token_without_our_audience_is_unauthenticated() -> None:
    for audiences in (["other"], None):
        gate = TokenGate(Reviewer(audiences=audiences), AUDIENCE)
        assert refused(partial(gate.check, "good", GET)).code is grpc.StatusCode.UNAUTHENTICATED


def test_a_verb_without_a_grant_is_denied_and_named() -> None:
    gate = TokenGate(Reviewer(), AUDIENCE)
    error = refused(lambda: gate.check("good", WHAT_IF))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert "create fleetplans/whatif.penstock.dev" in str(error)


def test_an_api_server_that_is_down_lets_nobody_in_and_is_asked_again() -> None:
    reviewer = Reviewer(is_up=False)
    gate = TokenGate(reviewer, AUDIENCE)
    assert refused(lambda: gate.check("good", GET)).code is grpc.StatusCode.UNAVAILABLE
    reviewer.is_up = True
    gate.check("good", GET)


def test_an_endless_token_is_refused_unasked() -> None:
    reviewer = Reviewer()
    error = refused(lambda: TokenGate(reviewer, AUDIENCE).check("x" * 100_000, GET))
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert reviewer.asked == []


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        [("authorization", "Basic dXNlcjpwYXNz")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
    ],
)
def test_anything_but_one_bearer_header_is_unauthenticated(metadata: Any) -> None:
    assert refused(lambda: bearer_token(metadata)).code is grpc.StatusCode.UNAUTHENTICATED


def test_every_call_of_the_service_needs_a_permission() -> None:
    service = pb.DESCRIPTOR.services_by_name["Placement"]
    assert sorted(PERMISSIONS) == sorted(f"/{service.full_name}/{name}" for name in service.methods_by_name)


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[ApiServer, Reviewer]]:
    source, reviewer = world.Source(), Reviewer()
    source.decide(1)
    server = serve(source, Listen(token_audience=AUDIENCE), reviewer)
    yield server, reviewer
    server.stop(grace_s=0.5)


def code_of(answer: Any) -> grpc.StatusCode:
    """Status of a unary call, waited for."""
    code: grpc.StatusCode = answer.code()
    return code


def first_code_of(stream: Any) -> grpc.StatusCode:
    """OK when a stream sends something, else the status with which it ends."""
    try:
        next(stream)
    except grpc.RpcError:
        return code_of(stream)
    return grpc.StatusCode.OK


def test_tokens_are_asked_of_every_call_but_health(guarded: tuple[ApiServer, Reviewer]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{guarded[0].port}") as channel:
        stub, good = PlacementStub(channel), (("authorization", "Bearer good"),)
        bad = (("authorization", "Bearer bad"),)
        get, what_if, watch = pb.GetPlanRequest(), pb.WhatIfRequest(), pb.WatchPlansRequest()
        outcomes = [
            code_of(stub.GetPlan.future(get, timeout=60.0)),
            code_of(stub.GetPlan.future(get, timeout=60.0, metadata=bad)),
            code_of(stub.GetPlan.future(get, timeout=60.0, metadata=good)),
            code_of(stub.WhatIf.future(what_if, timeout=60.0, metadata=good)),
            first_code_of(stub.WatchPlans(watch, timeout=60.0)),
            first_code_of(stub.WatchPlans(watch, timeout=60.0, metadata=good)),
        ]
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60.0)
    status = grpc.StatusCode
    assert outcomes == [
        status.UNAUTHENTICATED,
        status.UNAUTHENTICATED,
        status.OK,
        status.PERMISSION_DENIED,
        status.UNAUTHENTICATED,
        status.OK,
    ]
    assert health.status == health_pb2.HealthCheckResponse.SERVING


class Authority:
    """A certificate authority of the test, with the files of a server and of a client."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._signed(self._name, self._key.public_key(), is_ca=True)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(pem(self._certificate))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write a certificate for 127.0.0.1 and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate_file, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate_file.write_bytes(pem(self._signed(subject, key.public_key(), is_ca=False)))
        encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key_file.write_bytes(key.private_bytes(encoding, private, serialization.NoEncryption()))
        return certificate_file, key_file

    def _signed(self, subject: x509.Name, public_key: Any, *, is_ca: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(self._name, subject, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(minutes=5)).not_valid_after(now + dt.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        addresses = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        return builder.add_extension(addresses, critical=False).sign(self._key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def ask(port: int, ca: Path, pair: tuple[Path, Path] | None) -> grpc.StatusCode:
    """Ask for the plan over a fresh connection; with ``pair`` show that certificate."""
    certificate, key = (path.read_bytes() for path in pair) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate)
    with grpc.secure_channel(f"localhost:{port}", credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return code_of(PlacementStub(channel).GetPlan.future(pb.GetPlanRequest(), timeout=60.0))


@pytest.fixture
def mutual(tmp_path: Path) -> Iterator[tuple[ApiServer, Authority, Listen]]:
    authority = Authority(tmp_path / "ca", "test authority")
    certificate, key = authority.issue("server")
    source = world.Source()
    source.decide(1)
    listen = Listen(certificate_file=certificate, key_file=key, client_ca_file=authority.ca)
    server = serve(source, listen)
    yield server, authority, listen
    server.stop(grace_s=0.5)


def test_only_a_certificate_of_the_client_authority_gets_in(
    mutual: tuple[ApiServer, Authority, Listen], tmp_path: Path
) -> None:
    server, authority, _ = mutual
    stranger = Authority(tmp_path / "other", "another authority").issue("client")
    assert ask(server.port, authority.ca, authority.issue("client")) is grpc.StatusCode.OK
    assert ask(server.port, authority.ca, None) is grpc.StatusCode.UNAVAILABLE
    assert ask(server.port, authority.ca, stranger) is grpc.StatusCode.UNAVAILABLE


def test_renewed_certificates_are_used_without_a_restart(
    mutual: tuple[ApiServer, Authority, Listen], tmp_path: Path
) -> None:
    server, authority, listen = mutual
    renewed = Authority(tmp_path / "renewed", "renewed authority")
    client, old_client = renewed.issue("client"), authority.issue("client")
    fresh_certificate, fresh_key = renewed.issue("server")
    assert listen.certificate_file is not None
    assert listen.key_file is not None
    assert listen.client_ca_file is not None

    listen.key_file.write_bytes(fresh_key.read_bytes())  # half of the pair: the old one stays in use
    assert ask(server.port, authority.ca, old_client) is grpc.StatusCode.OK

    old_ca = tmp_path / "old-ca.pem"
    old_ca.write_bytes(authority.ca.read_bytes())
    listen.certificate_file.write_bytes(fresh_certificate.read_bytes())
    listen.client_ca_file.write_bytes(renewed.ca.read_bytes())
    assert ask(server.port, renewed.ca, client) is grpc.StatusCode.OK
    assert ask(server.port, old_ca, old_client) is grpc.StatusCode.UNAVAILABLE


def test_files_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "test authority")
    certificate, _ = authority.issue("server")
    _, other_key = authority.issue("other")
    listen = Listen(certificate_file=certificate, key_file=other_key)
    with pytest.raises(InvalidInput, match=r"other\.key"):
        serve(world.Source(), listen)
    with pytest.raises(InvalidInput, match=r"absent\.key"):
        serve(world.Source(), replace(listen, key_file=tmp_path / "absent.key"))


def test_both_proofs_are_asked_for_when_both_are_configured(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", "test authority")
    certificate, key = authority.issue("server")
    source = world.Source()
    source.decide(1)
    listen = Listen(certificate_file=certificate, key_file=key, client_ca_file=authority.ca, token_audience=AUDIENCE)
    server = serve(source, listen, Reviewer())
    try:
        assert ask(server.port, authority.ca, authority.issue("client")) is grpc.StatusCode.UNAUTHENTICATED
    finally:
        server.stop(grace_s=0.5)


def rbac(account: str, rules: list[dict[str, list[str]]]) -> list[Json]:
    """A service account of the default namespace with these rights in the whole cluster."""
    api = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "default"}
    role = {"apiGroup": api, "kind": "ClusterRole", "name": account}
    named = {"metadata": {"name": account}}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", **named},
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", **named, "rules": rules},
        {"apiVersion": f"{api}/v1", "kind": "ClusterRoleBinding", **named, "roleRef": role, "subjects": [subject]},
    ]


def mint(cluster: SimCluster, account: str, audience: str) -> str:
    path = f"/api/v1/namespaces/default/serviceaccounts/{account}/token"
    token: str = cluster.api.request("POST", path, {"spec": {"audiences": [audience]}})["status"]["token"]
    return token


def test_a_real_api_server_proves_tokens_and_grants(simcluster: SimCluster) -> None:
    rules = [{"apiGroups": ["penstock.dev"], "resources": ["fleetplans"], "verbs": ["get", "watch"]}]
    what_if_only = [{"apiGroups": ["penstock.dev"], "resources": ["fleetplans/whatif"], "verbs": ["create"]}]
    simcluster.create(rbac("reader", rules) + rbac("asker", what_if_only))
    wait_granted(simcluster.api, "system:serviceaccount:default:reader", rules)
    wait_granted(simcluster.api, "system:serviceaccount:default:asker", what_if_only)
    transport = Transport(load_configuration(str(simcluster.kubeconfig)))
    gate = TokenGate(review_by(transport), AUDIENCE)
    reader, asker = mint(simcluster, "reader", AUDIENCE), mint(simcluster, "asker", AUDIENCE)
    try:
        gate.check(reader, GET)
        gate.check(asker, WHAT_IF)
        codes = [
            refused(partial(gate.check, reader, WHAT_IF)).code,
            refused(partial(gate.check, asker, GET)).code,
            refused(partial(gate.check, mint(simcluster, "reader", "somebody-else"), GET)).code,
            refused(partial(gate.check, "not.a.token", GET)).code,
        ]
    finally:
        transport.close()
    denied, unknown = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
    assert codes == [denied, denied, unknown, unknown]
