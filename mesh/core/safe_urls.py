"""Where an HTTP node may live: nothing that only those inside our own network can reach.

A URL is read strictly: what two parsers might read differently is refused, not understood. A name's
addresses are judged one by one by `why_not`, when it is resolved and again when somebody connects.

Source: RFC 3986; WHATWG URL, "ends in a number"; IANA special-purpose address registries for IPv4
and IPv6; RFC 6761 (localhost).
"""

from __future__ import annotations

import re
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple

from mesh.errors import InvalidError

Address = IPv4Address | IPv6Address

_MAX_CHARS = 2048
_MAX_HOST_CHARS = 253
_MAX_PORT = 65_535
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]*)(?:[/?#].*)?", re.IGNORECASE)
_PLAIN = re.compile(r"[\x21-\x7e]+")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

_METADATA = frozenset(
    ip_address(address)
    for address in (
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::23",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
)
"""Where clouds hand their machines credentials."""

Network = IPv4Network | IPv6Network


def _networks(**by_reason: str) -> list[tuple[Network, str]]:
    return [
        (ip_network(network), reason.replace("_", " "))
        for reason, networks in by_reason.items()
        for network in networks.split()
    ]


_NEVER = _networks(
    reserved="0.0.0.0/8 192.0.0.0/24 192.88.99.0/24 240.0.0.0/4 2001::/23",
    multicast="224.0.0.0/4 ff00::/8",
)
_OURS = _networks(
    loopback="127.0.0.0/8 ::1/128",
    link_local="169.254.0.0/16 fe80::/10",
    private="10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16 198.18.0.0/15 "
    "fc00::/7 fec0::/10",
    for_documentation="192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20",
)
"""Refused unless private addresses are allowed."""

_GLOBAL = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_TELLING_NOTHING = (IPv6Address("::"), IPv6Address("::1"))


class Target(NamedTuple):
    """Where a URL leads."""

    host: str
    """A name in lower case, or an address without brackets."""
    port: int
    is_address: bool


def check(url: str, *, allow_private: bool) -> Target:
    """Where `url` leads, if it may lead there as far as can be told without resolving its name.

    Raises:
        InvalidError: It may not, or is not plainly an http or https URL; `fields` names `url`.
    """
    if len(url) > _MAX_CHARS or not _PLAIN.fullmatch(url) or "\\" in url:
        raise refused(
            "must be plain ASCII without spaces, up to 2048 characters: write other letters "
            "percent-encoded, and names of hosts in their xn-- form"
        )
    found = _URL.fullmatch(url)
    if found is None:
        raise refused("must begin with http:// or https://")
    authority = found[2]
    if "@" in authority:
        raise refused("must not hold a login")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise refused("must name a host, and a port as a number or none")
    port = int(parts[2]) if parts[2] else _PORTS[found[1].lower()]
    if not 0 < port <= _MAX_PORT:
        raise refused("must have a port from 1 to 65535")
    host = parts[1].lower()
    address = _literal(host)
    if address is None:
        _check_name(host, allow_private=allow_private)
        return Target(host, port, is_address=False)
    if reason := _disguise(address) or why_not(address, allow_private=allow_private):
        raise refused(f"must not lead to an address that is {reason}")
    return Target(str(address), port, is_address=True)


def refused(reason: str) -> InvalidError:
    """The error for a URL that is not safe."""
    return InvalidError(f"url: {reason}", fields={"url": [reason]})


def why_not(address: Address, *, allow_private: bool = False) -> str | None:
    """What is wrong with connecting to `address`, in words; None: it is public, or one of our own
    network and `allow_private`.
    """
    if address in _METADATA:
        return "a cloud's metadata service"
    inner = _embedded(address)
    if inner is not None:
        return why_not(inner, allow_private=allow_private)
    for network, reason in _OURS:
        if address in network:
            return None if allow_private else reason
    for network, reason in _NEVER:
        if address in network:
            return reason
    return "reserved" if isinstance(address, IPv6Address) and address not in _GLOBAL else None


def _literal(host: str) -> Address | None:
    """The address that `host` is, if it is one and plainly written; None: a name."""
    if host.startswith("["):
        try:
            return IPv6Address(host[1:-1])
        except AddressValueError:
            raise refused("must hold an IPv6 address between its brackets") from None
    last = host.rpartition(".")[2]
    if not _NUMBER.fullmatch(last):
        return None
    try:  # refuses zeros in front, that may mean octal
        return IPv4Address(host)
    except AddressValueError:
        raise refused("must have an IPv4 address as four plain decimal numbers") from None


def _check_name(host: str, *, allow_private: bool) -> None:
    labels = host.split(".")
    if len(host) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise refused("must name a host: words of letters, digits and '-', with dots between them")
    if labels[-1] == "localhost" and not allow_private:
        raise refused("must not lead to an address that is loopback")


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that packets to this IPv6 address end up at."""
    if not isinstance(address, IPv6Address) or address in _TELLING_NOTHING:
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or address in _COMPATIBLE:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour


def _disguise(address: Address) -> str | None:
    """Nobody has to write an IPv4 address as an IPv6 one; a resolver behind NAT64 answers so."""
    return "IPv4 in disguise" if _embedded(address) is not None else None
