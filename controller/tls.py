"""Server certificates of the gRPC server, read again when their files change."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

import grpc

from controller.auth import Listen
from solvers.errors import InvalidInput

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int], ...]


def server_credentials(listen: Listen) -> grpc.ServerCredentials | None:
    """Make the credentials that ``listen`` asks for, None for clear text.

    Raises
    ------
    InvalidInput
        When a file cannot be read, or certificate and key do not belong together.
    """
    if listen.certificate_file is None:
        return None
    files = CertificateFiles(listen)
    return grpc.dynamic_ssl_server_credentials(
        files.first(),
        files.changed,  # type: ignore[arg-type]  # None means no change; the published types forgot it
        require_client_authentication=listen.client_ca_file is not None,
    )


class CertificateFiles:
    """The three files of a TLS server; gRPC asks ``changed`` at every handshake.

    A pair that does not fit (written half-way, say) is left alone: the one in use stays until the files are whole.
    """

    def __init__(self, listen: Listen) -> None:
        self._paths = (listen.certificate_file, listen.key_file, listen.client_ca_file)
        self._lock = threading.Lock()
        self._used: Stamp = ()
        self._refused: Stamp = ()

    def first(self) -> grpc.ServerCertificateConfiguration:
        """Read the files, or say what is wrong with them."""
        try:
            self._used = self._stamp()
            return self._read()
        except (OSError, ValueError) as error:
            named = ", ".join(str(path) for path in self._paths if path)
            raise InvalidInput("gRPC", "certificate files", f"{named}: {error}", "check the files") from error

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Read the files again when they are not those in use, else None."""
        with self._lock:
            try:
                return self._fresh(self._stamp())
            except (OSError, ValueError) as error:
                log.warning("keeping the certificate in use, the new files cannot be used: %s", error)
                return None

    def _fresh(self, stamp: Stamp) -> grpc.ServerCertificateConfiguration | None:
        if stamp in (self._used, self._refused):
            return None
        self._refused = stamp  # until it proves good: a bad pair is tried and logged once, not at each handshake
        fresh = self._read()
        self._used = stamp
        log.info("using the renewed certificate %s", self._paths[0])
        return fresh

    def _stamp(self) -> Stamp:
        stats = [path.stat() for path in self._paths if path]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, client_ca = self._paths
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        check.load_cert_chain(str(certificate), str(key))
        if client_ca is not None:
            check.load_verify_locations(str(client_ca))
        pair = (_bytes(key), _bytes(certificate))
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=_bytes(client_ca) or None)


def _bytes(path: Path | None) -> bytes:
    return path.read_bytes() if path else b""
