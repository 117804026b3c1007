"""HTTPS on a real port, with certificates made here: the limits of plain HTTP hold, and those that
plain HTTP does not need.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import socket
import ssl
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateway_fakes import PREFIX, FakeGatekeeper, FakeMesh

from agents.gateway.app import create_app
from agents.gateway.server import serving
from mesh.config import GatewayConfig, MeshConfig, RateLimitConfig
from mesh.errors import StateError

SEARCH = json.dumps({"query": "late"}).encode()


def certificate(folder: Path, name: str = "gateway") -> tuple[str, str]:
    """Paths of a certificate for 127.0.0.1 that vouches for itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(private_pem(key, serialization.NoEncryption()))
    return str(paths[0]), str(paths[1])


def private_pem(key, encryption) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def served(pair, **settings):
    gateway = GatewayConfig(port=0, tls_cert=pair[0], tls_key=pair[1], **settings)
    config = MeshConfig(gateway=gateway, rate_limit=RateLimitConfig(enabled=False))
    mesh = FakeMesh()
    edge = create_app(mesh, FakeGatekeeper(), config)
    async with serving(edge, gateway) as url:
        yield Peer(url, pair[0]), mesh, edge


class Peer:
    """Speaks HTTP byte by byte, inside TLS or not."""

    def __init__(self, url: str, ca: str) -> None:
        assert url.startswith("https://")
        self.url = url
        self.port = urlsplit(url).port
        self.trust = ssl.create_default_context(cafile=ca)

    async def open(self, **options):
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust, **options)

    async def plain(self):
        return await asyncio.open_connection("127.0.0.1", self.port)


def request(*headers: str, body: bytes = SEARCH) -> bytes:
    lines = [f"POST {PREFIX}/search HTTP/1.1", "Host: x", "Authorization: Bearer all", *headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read(reader):
    """(status, headers, body) of one answer."""
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


async def until_closed(reader) -> bytes:
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except OSError:  # cut off
            return b""


async def hung_up(writer) -> None:
    writer.close()
    with_error = await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    assert all(one is None or isinstance(one, OSError) for one in with_error)


# -- what works ------------------------------------------------------------------------------------


async def test_searches_and_keeps_alive(pair):
    async with served(pair) as (peer, mesh, _):
        reader, writer = await peer.open()
        for _ in range(3):
            writer.write(request())
            status, headers, _body = await read(reader)
            assert status == 200
            assert headers["strict-transport-security"] == "max-age=31536000"
        assert len(mesh.calls) == 3
        await hung_up(writer)
        async with httpx.AsyncClient(verify=peer.trust) as client:
            answer = await client.get(f"{peer.url}/livez")
            assert answer.json() == {"status": "alive"}


def test_the_loop_that_the_agent_uses_serves_it_too(pair):
    async def main():
        async with served(pair, max_header_bytes=2048) as (peer, _, _):
            reader, writer = await peer.open()
            writer.write(request() * 2)
            assert (await read(reader))[0] == 200
            assert (await read(reader))[0] == 200
            writer.write(request("X-Large: " + "x" * 3000))
            assert (await read(reader))[0] == 431
            await hung_up(writer)
            plain, spoken = await peer.plain()
            spoken.write(request())
            assert b"HTTP" not in await until_closed(plain)
            await hung_up(spoken)

    uvloop.run(main())


async def test_a_request_right_behind_the_handshake_is_not_lost(pair):
    """Both come in one read: blocking sockets, so that nothing waits in between."""

    def ask(port: int, trust: ssl.SSLContext) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trust.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    incoming.write(connection.recv(65_536))
            tls.write(request())
            connection.sendall(outgoing.read())  # the client's last message, and the request
            while True:
                try:
                    return tls.read(65_536)
                except ssl.SSLWantReadError:
                    incoming.write(connection.recv(65_536))

    async with served(pair) as (peer, _, _):
        for _ in range(5):
            assert (await asyncio.to_thread(ask, peer.port, peer.trust)).startswith(b"HTTP/1.1 200")


async def test_old_tls_is_refused(pair):
    async with served(pair) as (peer, _, _):
        peer.trust.maximum_version = ssl.TLSVersion.TLSv1_2
        _, writer = await peer.open()
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        await hung_up(writer)
        old = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{peer.port}", "-tls1_1"),
            *("-cipher", "ALL:@SECLEVEL=0"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await old.communicate()
        assert old.returncode != 0, said
        assert b"Cipher    : 0000" in said, said


# -- who does not speak it, or not in time ---------------------------------------------------------


async def test_plain_http_is_cut_off_and_hurts_nobody(pair):
    async with served(pair) as (peer, mesh, _):
        for sent in (request(), b"\r\n", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 40):
            reader, writer = await peer.plain()
            writer.write(sent)
            writer.write_eof()
            answer = await until_closed(reader)
            assert b"HTTP" not in answer
            assert len(answer) <= 7  # a TLS alert, or nothing
            await hung_up(writer)
        assert mesh.calls == []
        reader, writer = await peer.open()
        writer.write(request())
        assert (await read(reader))[0] == 200
        await hung_up(writer)


async def test_a_handshake_that_does_not_end_is_ended(pair):
    async with served(pair, read_timeout_s=0.3) as (peer, _, _):
        began = time.monotonic()
        reader, writer = await peer.plain()
        writer.write(b"\x16\x03\x01")  # as a handshake begins
        assert await until_closed(reader) == b""
        assert 0.2 < time.monotonic() - began < 5
        await hung_up(writer)


async def test_handshakes_count_as_connections(pair):
    async with served(pair, max_connections=3, read_timeout_s=2) as (peer, _, _):
        waiting = [await peer.plain() for _ in range(60)]
        await asyncio.sleep(0.2)
        cut = 0
        for reader, _ in waiting:
            try:
                async with asyncio.timeout(0.02):
                    cut += await until_closed(reader) == b""
            except TimeoutError:
                continue
        assert cut == 60 - (3 + 32)
        for _, writer in waiting:
            await hung_up(writer)


async def test_connections_over_the_limit_get_a_503(pair):
    async with served(pair, max_connections=2) as (peer, _, _):
        kept = [await peer.open() for _ in range(2)]
        await asyncio.sleep(0.05)
        reader, writer = await peer.open()
        status, headers, _body = await read(reader)
        assert (status, headers["retry-after"]) == (503, "1")
        assert headers["strict-transport-security"]
        await hung_up(writer)
        for _, other in kept:
            await hung_up(other)


# -- the limits of plain HTTP ----------------------------------------------------------------------


async def test_headers_over_the_limit_are_a_431(pair):
    async with served(pair, max_header_bytes=2048) as (peer, _, _):
        reader, writer = await peer.open()
        writer.write(request("X-Large: " + "x" * 3000))
        status, headers, _body = await read(reader)
        assert (status, headers["connection"]) == (431, "close")
        assert await until_closed(reader) == b""
        await hung_up(writer)


@pytest.mark.parametrize("part", ["head", "body"])
async def test_what_drips_in_is_a_408(pair, part):
    async with served(pair, read_timeout_s=0.3) as (peer, mesh, _):
        reader, writer = await peer.open()
        whole = request()
        writer.write(whole[:20] if part == "head" else whole[:-5])
        assert (await read(reader))[0] == 408
        assert await until_closed(reader) == b""
        assert mesh.calls == []
        await hung_up(writer)


async def test_a_body_over_the_limit_is_a_413(pair):
    async with served(pair) as (peer, _, _):
        reader, writer = await peer.open()
        writer.write(request(body=b"x" * 200).replace(b"Length: 200", b"Length: 9999999"))
        assert (await read(reader))[0] == 413
        await hung_up(writer)


async def test_a_client_that_does_not_read_is_cut_off(pair):
    """What it asks for does not fit the buffers in between."""
    async with served(pair, read_timeout_s=0.5) as (peer, _, _):
        reader, writer = await peer.open(limit=1024)
        asked = f"GET {PREFIX}/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        began = time.monotonic()
        writer.write(asked.encode() * 40)
        await asyncio.sleep(2)
        came = len(await until_closed(reader))
        assert came < 40 * 1_000_000
        assert time.monotonic() - began < 10
        await hung_up(writer)


async def test_a_search_ends_when_its_client_goes(pair):
    async with served(pair) as (peer, mesh, _):
        mesh.hold = asyncio.Event()
        _, writer = await peer.open()
        writer.write(request())
        async with asyncio.timeout(5):
            while not mesh.calls:
                await asyncio.sleep(0.01)
            writer.transport.abort()
            while not mesh.cancelled:
                await asyncio.sleep(0.01)


async def test_stopping_finishes_what_runs_and_waits_for_no_handshake(pair):
    mesh_at_work = None
    began = 0.0
    async with served(pair, read_timeout_s=30) as (peer, mesh, _):
        mesh_at_work = mesh
        mesh.hold = asyncio.Event()
        silent, half_open = await peer.plain()
        reader, writer = await peer.open()
        writer.write(request())
        async with asyncio.timeout(5):
            while not mesh.calls:
                await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(1.0, mesh.hold.set)
        began = time.monotonic()
    assert time.monotonic() - began < 6
    assert (await read(reader))[0] == 200
    assert mesh_at_work.cancelled == 0
    assert await until_closed(silent) == b""
    await hung_up(half_open)
    await hung_up(writer)


# -- files that cannot be used ---------------------------------------------------------------------


def encrypted(folder: Path) -> tuple[str, str]:
    cert, key = certificate(folder)
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    locked = private_pem(loaded, serialization.BestAvailableEncryption(b"secret"))
    Path(key).write_bytes(locked)
    return cert, key


def mismatched(folder: Path) -> tuple[str, str]:
    return certificate(folder)[0], certificate(folder, "other")[1]


def garbage(folder: Path) -> tuple[str, str]:
    cert, key = certificate(folder)
    Path(cert).write_text("no certificate")
    return cert, key


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: (str(folder / "none.pem"), certificate(folder)[1]),
         r"gateway\.tls_cert: .*none\.pem cannot be read: No such file"),
        (lambda folder: (certificate(folder)[0], str(folder)),
         r"gateway\.tls_key: .* cannot be read: Is a directory"),
        (encrypted, r"gateway\.tls_key: .*gateway\.key is encrypted"),
        (mismatched, r"other\.key is not the key of .*gateway\.pem"),
        (garbage, r"gateway\.pem and .*gateway\.key cannot be used"),
    ],
    ids=["none", "folder", "encrypted", "mismatched", "garbage"],
)  # fmt: skip
async def test_a_file_that_cannot_be_used_is_named(tmp_path, make, words):
    with pytest.raises(StateError, match=words):
        async with served(make(tmp_path)):
            pytest.fail("it serves")
