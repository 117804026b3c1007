"""Where an HTTP node may live: whatever an address is written as, and whatever a name leads to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters import addresses
from mesh.adapters.addresses import check_url, public_addresses
from mesh.config import SecurityConfig
from mesh.core.safe_urls import Target, check, why_not
from mesh.errors import ForbiddenError, InvalidError, UnavailableError

NEVER = [
    # IPv4 in disguise
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0X7F.1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.01/",
    "http://127.0.0.0x1/",
    "http://1.2.3.4.5/",
    "http://256.1.1.1/",
    "http://8.8.8.8./",
    "http://134744072/",
    "http://x.0x/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[::127.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::808:808]/",
    "http://[2001:0:4136:e378::1]/",
    # full-width digits and dots, other tricks with letters
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://127\u30020.0.1/",
    "http://127\uff0e0\uff0e0\uff0e1/",
    "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/",
    "http://loc\u00adalhost/",
    "http://b\u00fccher.example/",
    # what no address is for
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://240.0.0.1/",
    "http://192.0.0.8/",
    "http://[::]/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[4000::1]/",
    # metadata services
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    # not plainly a URL
    "",
    "http://",
    "http:///x",
    "http:/x.example/",
    "//x.example/",
    "x.example",
    "ftp://x.example/",
    "file:///etc/passwd",
    "gopher://x.example/",
    "javascript:alert(1)",
    "http://ann@x.example/",
    "http://ann:pw@x.example/",
    "http://x.example@127.0.0.1/",
    "http://x.example:80@127.0.0.1/",
    "http://x.example\\@127.0.0.1/",
    "http://x.example\\.evil.example/",
    "http://x.example/\r\nHost: y",
    "http://x.exa\tmple/",
    "http://x.example/ y",
    "http://x.example\x00.y/",
    "\nhttp://x.example/",
    "http://x.example/\n",
    "http://x.example:/",
    "http://x.example:0/",
    "http://x.example:65536/",
    "http://x.example:-1/",
    "http://x.example:8O/",
    "http://x.example:80:80/",
    "http://x.example:000080/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[::1/",
    "http://::1/",
    "http://[v1.x]/",
    "http://[127.0.0.1]/",
    "http://%31%32%37.0.0.1/",
    "http://x..example/",
    "http://.x.example/",
    "http://x.example./",
    "http://localhost./",
    "http://-x.example/",
    "http://x.example-/",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 130 + "example/",
    "http://x.example/" + "a" * 2048,
]

OURS = [
    "http://127.0.0.1:8080/",
    "http://127.255.255.254/",
    "https://[::1]:8443/",
    "http://localhost/",
    "http://LOCALHOST:80/",
    "http://a.b.localhost/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://100.127.255.255/",
    "http://198.18.0.1/",
    "http://169.254.1.1/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fd12:3456::1]/",
    "http://[fec0::1]/",
    "http://192.0.2.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
]
PUBLIC = {
    "http://crm.example": Target("crm.example", 80, is_address=False),
    "HTTPS://CRM.Example:8443/a?b=c@d#e": Target("crm.example", 8443, is_address=False),
    "https://xn--bcher-kva.example/": Target("xn--bcher-kva.example", 443, is_address=False),
    "http://crm?x": Target("crm", 80, is_address=False),
    "http://x.example#@127.0.0.1/@": Target("x.example", 80, is_address=False),
    "http://a_b.example/%7Ex": Target("a_b.example", 80, is_address=False),
    "http://8.8.8.8:65535/": Target("8.8.8.8", 65535, is_address=True),
    "http://172.32.0.1/": Target("172.32.0.1", 80, is_address=True),
    "http://100.128.0.1/": Target("100.128.0.1", 80, is_address=True),
    "https://[2606:4700:4700::1111]/": Target("2606:4700:4700::1111", 443, is_address=True),
    "http://notlocalhost/": Target("notlocalhost", 80, is_address=False),
    "http://localhost.example/": Target("localhost.example", 80, is_address=False),
    "http://1e100.net/": Target("1e100.net", 80, is_address=False),
    "http://127.0.0.1.example/": Target("127.0.0.1.example", 80, is_address=False),
}


@pytest.mark.parametrize("allow_private", [False, True], ids=["strict", "private allowed"])
@pytest.mark.parametrize("url", NEVER, ids=ascii)
def test_what_is_never_a_node(url, allow_private):
    with pytest.raises(InvalidError) as refused:
        check(url, allow_private=allow_private)
    assert list(refused.value.fields) == ["url"]


@pytest.mark.parametrize("url", OURS)
def test_what_only_we_can_reach_is_refused_unless_it_is_allowed(url):
    with pytest.raises(InvalidError, match="must not lead to an address that is"):
        check(url, allow_private=False)
    check(url, allow_private=True)


@pytest.mark.parametrize(("url", "target"), PUBLIC.items())
def test_what_is_public_passes(url, target):
    assert check(url, allow_private=False) == target


@given(st.ip_addresses())
def test_an_address_passes_only_if_it_is_global(address):
    """Against the standard library's reading of the same registries."""
    shown = f"[{address}]" if address.version == 6 else str(address)
    try:
        check(f"http://{shown}/", allow_private=False)
    except InvalidError:
        return
    assert address.is_global
    assert not address.is_multicast
    assert not address.is_loopback


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_one_is_judged_by_what_it_is(inner):
    number = int(inner)
    for outer in (
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address((0x64_FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | number << 80),
    ):
        assert why_not(outer) == why_not(inner)


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://["]))
def test_anything_at_all_is_a_target_or_refused(text, start):
    try:
        target = check(start + text, allow_private=False)
    except InvalidError:
        return
    assert target.host.isascii()
    assert 0 < target.port < 65_536


# -- names -----------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch):
    """Name → its addresses; asking for another one fails as DNS does."""
    known = {}

    def look_up(host, port, **_options):
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, port)) for at in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


async def test_a_name_passes_if_every_address_it_has_is_public(names):
    names["crm.example"] = ["8.8.8.8", "2606:4700::1", "8.8.8.8"]
    await check_url(SecurityConfig())("https://crm.example/x")
    assert await public_addresses("crm.example", 443) == ["8.8.8.8", "2606:4700::1"]


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.1.2.3", "fe80::1%eth0", "::ffff:10.0.0.1"])
async def test_one_address_of_ours_spoils_a_name(names, bad):
    names["crm.example"] = ["8.8.8.8", bad]
    with pytest.raises(InvalidError) as refused:
        await check_url(SecurityConfig())("https://crm.example/")
    assert list(refused.value.fields) == ["url"]
    assert bad not in str(refused.value), "it would be a map of our network"
    with pytest.raises(ForbiddenError) as forbidden:
        await public_addresses("crm.example", 443)
    assert bad not in str(forbidden.value)
    await check_url(SecurityConfig(allow_private_urls=True))("https://crm.example/")


@pytest.mark.parametrize("at", ["169.254.169.254", "169.254.170.23", "fd00:ec2::23"])
async def test_a_metadata_service_hides_behind_no_name(names, at):
    names["crm.example"] = [at]
    with pytest.raises(InvalidError):
        await check_url(SecurityConfig(allow_private_urls=True))("https://crm.example/")


async def test_a_resolver_behind_nat64_is_understood(names):
    names["crm.example"] = ["64:ff9b::808:808"]
    names["inside.example"] = ["64:ff9b::a00:1"]
    assert await public_addresses("crm.example", 80) == ["64:ff9b::808:808"]
    with pytest.raises(ForbiddenError):
        await public_addresses("inside.example", 80)


async def test_a_name_that_is_not_there_yet_passes_now_and_not_when_somebody_connects(names):
    await check_url(SecurityConfig())("https://later.example/")
    with pytest.raises(UnavailableError, match="cannot be resolved"):
        await public_addresses("later.example", 443)


async def test_a_name_that_leads_nowhere_is_not_connected_to(names):
    names["empty.example"] = []
    with pytest.raises(UnavailableError, match="no address"):
        await public_addresses("empty.example", 80)


async def test_a_resolver_that_hangs_holds_nobody_up(monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_o: hanging.wait(30) and [])
    monkeypatch.setattr(addresses, "_WITHIN_S", 0.05)
    try:
        with pytest.raises(UnavailableError):
            await public_addresses("slow.example", 80)
        with pytest.raises(UnavailableError, match="try again"):
            await check_url(SecurityConfig())("https://slow.example/")
    finally:
        hanging.set()


async def test_hanging_resolvers_let_no_private_name_pass(monkeypatch):
    hanging = threading.Event()

    def look_up(host, port, **_options):
        if host != "inside.example":
            hanging.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(addresses, "_WITHIN_S", 0.05)
    check = check_url(SecurityConfig())
    try:
        slow = [check(f"https://slow-{number}.example/") for number in range(4)]
        told = await asyncio.gather(*slow, return_exceptions=True)
        assert [type(error) for error in told] == [UnavailableError] * 4
        with pytest.raises(UnavailableError, match="could not be checked"):
            await check("https://inside.example/")
    finally:
        hanging.set()


async def test_a_dns_that_is_away_is_no_answer(monkeypatch):
    def look_up(*_args, **_options):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(UnavailableError, match="could not be checked"):
        await check_url(SecurityConfig())("https://crm.example/")


async def test_the_machine_s_own_resolver_is_asked():
    with pytest.raises(ForbiddenError, match="loopback"):
        await public_addresses("localhost", 80)
    assert "127.0.0.1" in await public_addresses("localhost", 80, allow_private=True)


async def test_what_the_rules_refuse_is_not_even_looked_up(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_o: asked.append(a) or [])
    for url in ("http://127.1/", "http://10.0.0.1/", "ftp://x.example/"):
        with pytest.raises(InvalidError):
            await check_url(SecurityConfig())(url)
    await check_url(SecurityConfig())("http://8.8.8.8/")
    assert asked == []
