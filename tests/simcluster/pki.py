"""Certificates and kubeconfig files for one cluster, valid on loopback only."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=30)
# Python 3.13 and newer refuse an authority without these extensions.
_CA_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)
_SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate with its key, as PEM, and the files that hold them."""

    certificate_pem: bytes
    key_pem: bytes
    certificate_path: Path
    key_path: Path


class Authority:
    """A certificate authority that lives in one folder; its own key stays in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("penstock-simcluster")
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key(), self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_CA_USAGE, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate_pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        self.certificate_path = _write(folder / "ca.crt", self.certificate_pem)

    def server(self, name: str) -> KeyPair:
        """Return a certificate for a server on loopback."""
        names = [x509.DNSName(server) for server in _SERVER_NAMES]
        addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1", "10.96.0.1")]
        alternative = x509.SubjectAlternativeName([*names, *addresses])
        return self._issue(name, _name(name), ExtendedKeyUsageOID.SERVER_AUTH, alternative)

    def client(self, user: str, *groups: str) -> KeyPair:
        """Return a certificate that the API server takes for this user and these groups."""
        return self._issue(user.replace(":", "-"), _name(user, *groups), ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self,
        stem: str,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None = None,
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self._name, key.public_key(), self._key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        certificate_pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        key_pem = _private_pem(key)
        return KeyPair(
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            certificate_path=_write(self.folder / f"{stem}.crt", certificate_pem),
            key_path=_write(self.folder / f"{stem}.key", key_pem),
        )


def write_signing_key(folder: Path) -> tuple[Path, Path]:
    """Write the key that signs service-account tokens; return the paths of its private and public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _write(folder / "sa.key", _private_pem(key)), _write(folder / "sa.pub", public_pem)


def write_kubeconfig(path: Path, server: str, ca_pem: bytes, user: dict[str, str]) -> Path:
    """Write a kubeconfig that holds everything itself, readable by its owner only.

    Parameters
    ----------
    user : dict
        As in the file: ``client-certificate-data`` and ``client-key-data``, or ``token``.
    """
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "simcluster",
        "contexts": [{"name": "simcluster", "context": {"cluster": "simcluster", "user": "simcluster"}}],
        "clusters": [
            {"name": "simcluster", "cluster": {"server": server, "certificate-authority-data": _base64(ca_pem)}}
        ],
        "users": [{"name": "simcluster", "user": user}],
    }
    return _write(path, yaml.safe_dump(document).encode())


def certificate_user(pair: KeyPair) -> dict[str, str]:
    """Return the user part of a kubeconfig that authenticates by certificate."""
    return {
        "client-certificate-data": _base64(pair.certificate_pem),
        "client-key-data": _base64(pair.key_pem),
    }


def _name(common_name: str, *organizations: str) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # TraditionalOpenSSL ("EC PRIVATE KEY") is what the API server reads for service-account keys.
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _write(path: Path, content: bytes) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
    return path
