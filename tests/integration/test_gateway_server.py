"""The gateway's server on a real port, in front of a stand-in for the mesh: limits, slow and
vanishing clients, and a stop that loses nothing.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
import structlog
import uvicorn
from gateway_fakes import PREFIX, FakeGatekeeper, FakeMesh

from agents.gateway.app import create_app
from agents.gateway.run import allow_connections
from agents.gateway.server import serving
from mesh.config import GatewayConfig, MeshConfig, RateLimitConfig
from mesh.errors import StateError

SEARCH = json.dumps({"query": "late"}).encode()


@asynccontextmanager
async def served(**settings):
    gateway = GatewayConfig(port=0, **settings)
    config = MeshConfig(gateway=gateway, rate_limit=RateLimitConfig(enabled=False))
    mesh = FakeMesh()
    edge = create_app(mesh, FakeGatekeeper(), config)
    async with serving(edge, gateway) as url:
        yield Peer(url), mesh, edge


class Peer:
    """Speaks HTTP byte by byte."""

    def __init__(self, url: str) -> None:
        self.port = urlsplit(url).port

    async def open(self):
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, request: bytes):
        reader, writer = await self.open()
        writer.write(request)
        try:
            return await read(reader)
        finally:
            writer.close()


def request(body: bytes = SEARCH, *headers: str, path: str = "/search") -> bytes:
    lines = [f"POST {PREFIX}{path} HTTP/1.1", "Host: x", "Authorization: Bearer all", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


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


async def closed(reader) -> bool:
    async with asyncio.timeout(5):
        return await reader.read() == b""


async def test_keep_alive_and_pipelined_requests():
    async with served() as (peer, mesh, _):
        reader, writer = await peer.open()
        writer.write(request() * 3)
        for _ in range(3):
            assert (await read(reader))[0] == 200
        writer.close()
        assert len(mesh.calls) == 3


@pytest.mark.parametrize("split", [False, True], ids=["at-once", "in-parts"])
async def test_headers_over_the_limit_are_a_431(split):
    async with served(max_header_bytes=2048) as (peer, _, _):
        sent = request(SEARCH, "X-Large: " + "x" * 3000)
        reader, writer = await peer.open()
        if split:
            writer.write(sent[:2000])
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(sent[2000:2500])
        else:
            writer.write(sent)
        status, headers, body = await read(reader)
        assert status == 431
        assert headers["connection"] == "close"
        assert json.loads(body)["reference"] == headers["x-request-id"]
        assert await closed(reader)
        writer.close()


async def test_large_bodies_do_not_count_as_headers():
    async with served(max_header_bytes=2048) as (peer, _, _):
        body = json.dumps(
            {"query": "late", "options": {"filters": {"a": ["x" * 2500] * 2}}}
        ).encode()
        reader, writer = await peer.open()
        for _ in range(3):
            writer.write(request(body))
            assert (await read(reader))[0] == 200
        writer.close()


@pytest.mark.parametrize("part", ["headers", "body"])
async def test_what_does_not_come_whole_in_time_is_a_408_however_it_drips(part):
    async with served(read_timeout_s=0.4) as (peer, mesh, _):
        whole = request()
        sent = 40 if part == "headers" else len(whole) - 5
        reader, writer = await peer.open()
        began = time.monotonic()
        writer.write(whole[: sent - 3])
        for byte in whole[sent - 3 : sent]:
            await asyncio.sleep(0.1)
            writer.write(bytes([byte]))
        status, _, body = await read(reader)
        assert status == 408
        assert part in json.loads(body)["message"]
        assert 0.3 < time.monotonic() - began < 3
        assert await closed(reader)
        writer.close()
        assert not mesh.calls


async def test_slow_clients_hold_up_nobody():
    async with served(read_timeout_s=5) as (peer, _, _):
        slow = []
        for _ in range(50):
            _, writer = await peer.open()
            writer.write(request()[:60])
            slow.append(writer)
        began = time.monotonic()
        assert (await peer.send(request()))[0] == 200
        assert time.monotonic() - began < 1
        for writer in slow:
            writer.close()


async def test_a_long_search_is_no_slow_request():
    async with served(read_timeout_s=0.2) as (peer, mesh, _):
        mesh.hold = asyncio.Event()
        asking = asyncio.create_task(peer.send(request()))
        await asyncio.sleep(0.5)
        mesh.hold.set()
        assert (await asking)[0] == 200


async def test_connections_over_the_limit_get_a_503():
    async with served(max_connections=2) as (peer, _, _):
        _, first = await peer.open()
        _, second = await peer.open()
        await asyncio.sleep(0.05)
        reader, third = await peer.open()
        status, headers, _ = await read(reader)
        assert (status, headers["retry-after"]) == (503, "1")
        first.close()
        second.close()
        third.close()
        await asyncio.sleep(0.1)
        assert (await peer.send(request()))[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET http://example.com HTTP/1.1\r\n\r\n",
        b"GET http://a:b:c/ HTTP/1.1\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\n\r\n",
    ],
    ids=["tls", "version", "nonsense", "length", "no-path", "no-port", "connect"],
)
async def test_what_is_not_http_is_a_400(sent):
    async with served() as (peer, _, _):
        status, _, body = await peer.send(sent)
        assert status == 400
        assert json.loads(body)["kind"] == "bad_request"


async def test_a_body_of_2_mib_is_refused_before_and_while_it_comes():
    async with served() as (peer, _, _):
        large = b"x" * (2 * 1024 * 1024)
        reader, writer = await peer.open()
        writer.write(request(large))
        assert (await read(reader))[0] == 413
        writer.write(request())  # the rest was read past: the connection is good
        assert (await read(reader))[0] == 200
        writer.close()
        chunked = (
            request(None, "Transfer-Encoding: chunked") + b"200000\r\n" + large + b"\r\n0\r\n\r\n"
        )
        assert (await peer.send(chunked))[0] == 413


CHUNKED = b"%x\r\n%b\r\n0\r\n" % (len(SEARCH), SEARCH)


async def test_trailers_are_no_headers():
    async with served() as (peer, mesh, _):
        nobody = request(None, "Transfer-Encoding: chunked").replace(b"Bearer all", b"Bearer no")
        named = request(None, "Transfer-Encoding: chunked").replace(b"Authorization", b"X-Nothing")
        trailer = b"Authorization: Bearer all\r\n\r\n"
        assert (await peer.send(nobody + CHUNKED + trailer))[0] == 401
        assert (await peer.send(named + CHUNKED + trailer))[0] == 401
        reader, writer = await peer.open()
        writer.write(named)  # the trailer comes before anybody looks at the headers
        writer.write(CHUNKED + trailer)
        assert (await read(reader))[0] == 401
        writer.close()
        assert not mesh.calls


@pytest.mark.parametrize("framing", ["trailer", "trailers", "extension"])
async def test_what_frames_a_chunked_body_is_limited(framing):
    async with served(max_header_bytes=2048) as (peer, mesh, _):
        reader, writer = await peer.open()
        writer.write(request(None, "Transfer-Encoding: chunked"))
        await asyncio.sleep(0.05)
        sent = {
            "trailer": CHUNKED + b"x: " + b"y" * 2500,
            "trailers": CHUNKED + b"x: y\r\n" * 500,
            "extension": b"1;x=" + b"y" * 2500,
        }
        writer.write(sent[framing])
        assert (await read(reader))[0] == 413
        assert await closed(reader)
        writer.close()
        assert not mesh.calls


async def test_a_body_in_chunks_of_one_byte_is_no_framing_attack():
    async with served(max_header_bytes=1024) as (peer, _, _):
        body = json.dumps({"query": "late", "options": {"filters": {"a": ["x" * 900]}}}).encode()
        reader, writer = await peer.open()
        writer.write(request(None, "Transfer-Encoding: chunked"))
        for byte in body:
            writer.write(b"1\r\n%c\r\n" % byte)
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        assert (await read(reader))[0] == 200
        writer.close()


async def test_empty_lines_keep_no_connection_open():
    async with served(keep_alive_s=1) as (peer, _, _):
        reader, writer = await peer.open()
        began = time.monotonic()
        for _ in range(3):
            writer.write(b"\r\n")
            await asyncio.sleep(0.2)
        assert await closed(reader)
        assert time.monotonic() - began < 3
        writer.close()


async def test_a_body_that_ends_after_its_answer_leaves_a_connection_that_ends():
    async with served(keep_alive_s=1) as (peer, _, _):
        reader, writer = await peer.open()
        large = request(b"x" * (2 * 1024 * 1024))
        writer.write(large[:-10])
        assert (await read(reader))[0] == 413
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(large[-10:])
        assert await closed(reader)
        writer.close()


@pytest.mark.parametrize("when", ["answering", "closing"])
async def test_a_client_that_does_not_read_is_cut_off(when):
    """Its answer is larger than what the kernel takes."""
    async with served(read_timeout_s=0.5, stop_grace_s=1) as (peer, _, edge):
        parts = [b"x" * (8 * 1024 * 1024)] * 4
        ended = asyncio.Event()
        protocols = []

        async def much(exchange, _body, _receive, send):
            protocols.append(exchange.connection)
            length = b"%d" % sum(map(len, parts))
            headers = [(b"content-length", length)]
            if when == "closing":
                headers.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if when == "closing":
                body = b"".join(parts)
                await send({"type": "http.response.body", "body": body, "more_body": False})
            else:
                for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            ended.set()

        edge._through_litestar = much
        with socket.create_connection(("127.0.0.1", peer.port)) as client:
            client.sendall(request(b'{"action":"refund"}', path="/actions"))
            async with asyncio.timeout(5):
                await ended.wait()
                while protocols[0] in protocols[0].connections:
                    await asyncio.sleep(0.02)


async def test_pipelined_requests_have_a_limit_each():
    async with served(read_timeout_s=0.6) as (peer, mesh, _):
        whole = request()
        reader, writer = await peer.open()
        writer.write(whole[:-5])
        for _ in range(3):
            await asyncio.sleep(0.4)
            writer.write(whole[-5:] + whole[:-5])
            assert (await read(reader))[0] == 200
        writer.close()
        assert len(mesh.calls) == 3


async def test_junk_behind_a_request_does_not_take_its_answer_away():
    async with served() as (peer, mesh, _):
        mesh.hold = asyncio.Event()
        reader, writer = await peer.open()
        writer.write(request() + request())
        await asyncio.sleep(0.05)
        writer.write(b"junk junk\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(request())
        await asyncio.sleep(0.05)
        mesh.hold.set()
        assert (await read(reader))[0] == 200
        status, headers, _ = await read(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await closed(reader)
        writer.close()
        assert len(mesh.calls) == 2


async def test_a_broken_body_behind_a_request_is_refused_in_its_turn():
    async with served() as (peer, mesh, _):
        mesh.hold = asyncio.Event()
        reader, writer = await peer.open()
        writer.write(request() + request(None, "Transfer-Encoding: chunked") + b"junk\r\n")
        await asyncio.sleep(0.1)
        mesh.hold.set()
        assert (await read(reader))[0] == 200
        assert (await read(reader))[0] == 400
        assert await closed(reader)
        writer.close()
        assert len(mesh.calls) == 1


@pytest.mark.parametrize("shortcut", [True, False], ids=["shortcut", "litestar"])
async def test_a_search_ends_when_its_client_goes_and_an_action_does_not(shortcut):
    gateway = GatewayConfig(port=0)
    config = MeshConfig(gateway=gateway)
    mesh = FakeMesh()
    mesh.hold = asyncio.Event()
    edge = create_app(mesh, FakeGatekeeper(), config, shortcut=shortcut)
    done = []
    real = mesh.run_action

    async def slow_action(*args, **options):
        await asyncio.sleep(0.2)
        done.append(await real(*args, **options))
        return done[0]

    mesh.run_action = slow_action
    async with serving(edge, gateway) as url:
        peer = Peer(url)
        for sent in (request(), request(b'{"action":"refund"}', path="/actions")):
            _, writer = await peer.open()
            writer.write(sent)
            await asyncio.sleep(0.1)
            writer.close()
        async with asyncio.timeout(5):
            while not (mesh.cancelled and done):
                await asyncio.sleep(0.01)
        assert mesh.cancelled == 1
        mesh.hold.set()
        assert (await peer.send(request()))[0] == 200


# -- start and stop --------------------------------------------------------------------------------


async def test_a_port_that_is_taken_says_so_and_how_to_choose_another():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        gateway = GatewayConfig(port=port)
        edge = create_app(FakeMesh(), FakeGatekeeper(), MeshConfig(gateway=gateway))
        with pytest.raises(StateError, match=rf"port {port} .* is taken: .*MESH_GATEWAY__PORT"):
            async with serving(edge, gateway):
                pass


async def test_an_address_that_is_not_ours_says_so():
    gateway = GatewayConfig(host="192.0.2.1", port=0)
    edge = create_app(FakeMesh(), FakeGatekeeper(), MeshConfig(gateway=gateway))
    with pytest.raises(StateError, match=r"cannot listen on .*192\.0\.2\.1"):
        async with serving(edge, gateway):
            pass


async def load(peer, counts, stop):
    """Keep-alive requests; a new connection where told to close; ends when none is accepted."""
    while not stop.is_set():
        try:
            reader, writer = await peer.open()
        except OSError:
            return
        counts["connections"] += 1
        try:
            while not stop.is_set():
                writer.write(request())
                status, headers, _ = await read(reader)
                assert status == 200
                counts["answers"] += 1
                if headers.get("connection") == "close":
                    break
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            counts["failures"].append(repr(error))
        finally:
            writer.close()


async def test_no_request_that_was_sent_fails_while_the_gateway_stops():
    counts = {"connections": 0, "answers": 0, "failures": []}
    stop = asyncio.Event()
    async with served() as (peer, _, _):
        clients = [asyncio.create_task(load(peer, counts, stop)) for _ in range(16)]
        await asyncio.sleep(0.5)
    async with asyncio.timeout(10):
        await asyncio.gather(*clients)
    assert counts["failures"] == []
    assert counts["answers"] > 100


async def test_a_running_request_is_finished_and_one_that_never_ends_gets_a_503():
    async with served(stop_grace_s=1) as (peer, mesh, _):
        mesh.hold = asyncio.Event()
        asking = asyncio.create_task(peer.send(request()))
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.8, mesh.hold.set)
    assert (await asking)[0] == 200
    began = time.monotonic()
    async with served(stop_grace_s=1) as (peer, mesh, _):
        mesh.hold = asyncio.Event()
        asking = asyncio.create_task(peer.send(request()))
        await asyncio.sleep(0.1)
    status, headers, body = await asking
    assert (status, headers["retry-after"]) == (503, "1")
    assert "stops" in json.loads(body)["message"]
    assert time.monotonic() - began < 5


async def test_an_action_that_outlives_the_gateway_has_an_unknown_outcome():
    async with served(stop_grace_s=1) as (peer, mesh, _):
        mesh.run_action = lambda *_, **__: asyncio.Event().wait()
        sent = request(b'{"action":"refund"}', path="/actions")
        asking = asyncio.create_task(peer.send(sent))
        await asyncio.sleep(0.1)
    status, _, body = await asking
    assert (status, json.loads(body)["success"]) == (504, False)
    assert "idempotency_key" in json.loads(body)["message"]


async def test_a_server_that_dies_ends_what_it_serves(monkeypatch):
    async def broken(self):
        await asyncio.sleep(0.1)
        raise OSError("the loop of the server is broken")

    monkeypatch.setattr(uvicorn.Server, "main_loop", broken)
    with pytest.raises(StateError, match="the HTTP server ended") as raised:
        async with asyncio.timeout(5), served():
            await asyncio.Event().wait()
    assert "broken" in str(raised.value.__cause__)


def test_the_gateway_may_open_as_many_files_as_the_system_lets_it(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > 300
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with structlog.testing.capture_logs() as logs:
            allow_connections(100)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
            allow_connections(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [entry["event"] for entry in logs] == ["mesh.gateway.files_limited"]


async def test_an_idle_connection_is_closed_after_keep_alive():
    async with served(keep_alive_s=1) as (peer, _, _):
        reader, writer = await peer.open()
        assert await closed(reader)
        writer.close()


async def test_gateways_that_say_so_share_a_port():
    async with served(reuse_port=True) as (peer, first, _):
        config = MeshConfig(
            gateway=GatewayConfig(port=peer.port, reuse_port=True),
            rate_limit=RateLimitConfig(enabled=False),
        )
        second = FakeMesh()
        edge = create_app(second, FakeGatekeeper(), config)
        async with serving(edge, config.gateway) as url:
            assert urlsplit(url).port == peer.port
            sent = 0
            async with asyncio.timeout(20):
                while not (first.calls and second.calls):  # the kernel deals connections out
                    assert (await peer.send(request()))[0] == 200
                    sent += 1
        assert len(first.calls) + len(second.calls) == sent
        with pytest.raises(StateError, match="is taken"):
            async with serving(edge, GatewayConfig(port=peer.port)):
                pass


async def test_an_answer_to_head_has_no_body():
    """Also one that the edge makes: the next answer on the connection must not begin within it."""
    async with served() as (peer, _, _):
        reader, writer = await peer.open()
        writer.write(b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404")
        assert b"content-length: " in head
        writer.write(request())
        assert (await read(reader))[0] == 200
        writer.close()
