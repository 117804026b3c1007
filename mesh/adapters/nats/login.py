"""Logging in: what is shown to the broker, TLS, and what a refusal means."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

import nats.errors

from mesh.adapters.nats.client import NoTlsError
from mesh.config import NatsConfig
from mesh.errors import (
    DisconnectedError,
    MeshError,
    NoMasterError,
    StateError,
    UnauthorizedError,
    UntrustedError,
)
from mesh.ports import Login

MASTER = "master"
_NO_MASTER_S = 1.5
"""The broker waits 2 s for a master's word and says the same as if one had said no, which takes
milliseconds."""


def check(identity: str, login: Login | None) -> None:
    """See that these credentials are for that identity; the masters' are for any.

    Raises:
        UnauthorizedError
    """
    if login is None or login.user == identity or (login.nkey and login.user == MASTER):
        return
    raise UnauthorizedError(
        f"these are the credentials of {login.user!r}, not of {identity!r}; "
        "give the file of whoever you speak as"
    )


def options(config: NatsConfig, login: Login | None) -> dict[str, Any]:
    """As nats-py's `connect` takes them.

    Raises:
        StateError: A certificate that cannot be read.
    """
    shown: dict[str, Any] = {}
    if needs_tls(config):
        shown["tls"] = _tls_context(config)
    if login is None:
        return shown
    if login.nkey:
        return shown | {"nkeys_seed_str": login.nkey}
    return shown | {"user": login.user, "password": login.password}


def needs_tls(config: NatsConfig) -> bool:
    """Whether to refuse a broker that has none: by its address, or because certificates are set."""
    asked = any(server.startswith("tls://") for server in config.servers)
    return asked or bool(config.tls_ca or config.tls_cert)


def _tls_context(config: NatsConfig) -> ssl.SSLContext:
    """The broker must show a certificate for its name; ours goes out where we have one."""
    file = config.tls_ca
    try:
        context = ssl.create_default_context(cafile=file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.tls_cert:
            file = f"{config.tls_cert} or {config.tls_key}"
            # A key with a passphrase is refused; OpenSSL would ask on the terminal.
            context.load_cert_chain(config.tls_cert, config.tls_key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = getattr(error, "strerror", None) or str(error)
        raise StateError(f"nats.tls_*: {file} cannot be used: {why}") from error
    return context


def refused(error: Exception | None) -> bool:
    """Whether the broker did not let us in."""
    return error is not None and "authorization violation" in str(error).lower()


def explain(
    error: Exception | None, *, took_s: float, servers: Sequence[str], login: Login | None
) -> MeshError:
    """What a login that went wrong is to our callers."""
    where = ", ".join(_without_login(server) for server in servers)
    cut = isinstance(error, nats.errors.UnexpectedEOF)  # its refusal may be lost with it
    if refused(error) or (cut and took_s >= _NO_MASTER_S):
        return _explain_refusal(where, login, took_s)
    if isinstance(error, ssl.SSLError | NoTlsError):
        return _explain_tls(where, error)
    why = f" ({error})" if error is not None and str(error) else ""
    return DisconnectedError(
        f"no broker answers at {where}{why}; start a mesh with `mesh-agent up`, "
        "or say where it is with --url or MESH_URL"
    )


def _explain_refusal(where: str, login: Login | None, took_s: float) -> MeshError:
    if login is None:
        return UnauthorizedError(
            f"the broker at {where} lets nobody in without credentials: give the file of yours "
            "with --creds/MESH_CREDS"
        )
    if took_s < _NO_MASTER_S:
        return UnauthorizedError(
            f"the broker at {where} refused the login of {login.user!r}: check the credentials "
            "file; the key may have been replaced, or the name removed (ask for a new key)"
        )
    return NoMasterError(
        f"no master answered the login of {login.user!r} at {where}: start one with "
        "`mesh-agent master`; whoever is logged in already goes on"
    )


def _explain_tls(where: str, error: ssl.SSLError | NoTlsError) -> MeshError:
    if isinstance(error, NoTlsError):
        return UntrustedError(
            f"no login was sent to {where}, because it does not speak TLS: check the address"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return UntrustedError(
            f"the certificate of the broker at {where} is not to be trusted "
            f"({error.verify_message}): check nats.tls_ca, and the name in the address"
        )
    return UntrustedError(
        f"TLS with the broker at {where} failed ({error.reason or error}): it may ask for a "
        "certificate (nats.tls_cert, nats.tls_key)"
    )


def _without_login(server: str) -> str:
    scheme, found, rest = server.rpartition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
