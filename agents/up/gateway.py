"""Where the gateway of `mesh-agent up` listens, and whether it answers."""

from __future__ import annotations

import errno
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass

from mesh.config import GatewayConfig
from mesh.errors import StateError

_PROBE_S = 2.0
_OPTION = "--http-port"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what people write for all addresses)


@dataclass(frozen=True, kw_only=True)
class Place:
    """An address that stays the same when the gateway is started again."""

    host: str
    port: int
    prefix: str
    certificate: str = ""
    """Path of the one it shows; empty: no TLS."""

    @property
    def url(self) -> str:
        """`http://127.0.0.1:8080`, as this machine reaches it; without the prefix."""
        host = _ANY.get(self.host, self.host)
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def flags(self) -> list[str]:
        """Of `mesh-agent gateway`."""
        return [f"--host={self.host}", f"--port={self.port}", f"--prefix={self.prefix}"]

    def is_ready(self) -> bool:
        """Whether the gateway takes requests now. Blocks up to two seconds.

        Raises:
            StateError: Its certificate cannot be read.
        """
        request = urllib.request.Request(f"{self.url}/readyz")  # noqa: S310 (built above)
        # A proxy of the environment has no business between us and our own child.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.certificate:
            handlers.append(urllib.request.HTTPSHandler(context=_trusting(self.certificate)))
        direct = urllib.request.build_opener(*handlers)
        try:
            with direct.open(request, timeout=_PROBE_S) as answer:
                return int(answer.status) == 200  # noqa: PLR2004 (HTTP's OK)
        except (OSError, urllib.error.URLError, ValueError):
            return False


def take_place(config: GatewayConfig) -> Place:
    """The configured place; port 0 becomes a free one.

    Raises:
        StateError: Something listens there, or this machine has no such address.
    """
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise _no_address(config.host) from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind(address)
        except PermissionError as error:
            raise StateError(
                f"port {config.port} is not for ordinary users: take one above 1023 ({_OPTION})"
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_address(config.host) from error
            raise StateError(
                f"port {config.port} is taken: stop what listens there, or choose another "
                f"with {_OPTION} (0 takes a free one)"
            ) from error
        return Place(
            host=config.host,
            port=probe.getsockname()[1],
            prefix=config.prefix,
            certificate=config.tls_cert,
        )


def _trusting(certificate: str) -> ssl.SSLContext:
    """Trusts the gateway's own certificate, whoever made it and whatever name is in it: it is read
    from the file that the gateway reads.

    Raises:
        StateError: It cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=certificate)
    except OSError as error:
        raise StateError(
            f"gateway.tls_cert: {certificate} cannot be read: {error.strerror or error}"
        ) from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # its file may hold no root
    context.check_hostname = False
    return context


def _no_address(host: str) -> StateError:
    return StateError(f"gateway.host: {host!r} is no address of this machine")
