"""TLS with the broker, with certificates made here."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from certificates import Authority
from processes import BrokerProcess

from mesh.adapters.nats.bus import NatsBus
from mesh.config import BrokerConfig, NatsConfig
from mesh.errors import DisconnectedError, StateError, UntrustedError


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def started(folder: Path, tls: BrokerConfig) -> BrokerProcess:
    process = BrokerProcess(folder, tls=tls)
    process.start()
    return process


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory, authority):
    shown = authority.certify("broker")
    tls = BrokerConfig(tls_cert=shown.cert, tls_key=shown.key)
    process = started(tmp_path_factory.mktemp("one-sided"), tls)
    yield process
    process.kill()


@pytest.fixture(scope="module")
def mutual(tmp_path_factory, authority):
    shown = authority.certify("mutual")
    tls = BrokerConfig(tls_cert=shown.cert, tls_key=shown.key, tls_client_ca=authority.file)
    process = started(tmp_path_factory.mktemp("mutual"), tls)
    yield process
    process.kill()


async def talk(broker, config: NatsConfig) -> None:
    """Log in and hear oneself."""
    bus = await NatsBus.connect("ops", config, login=broker.login())
    try:
        await bus.subscribe("mesh.v1.rpc.ops.>", lambda m: bus.publish(m.reply, m.data))
        subject = "mesh.v1.rpc.ops.echo.ops"
        payload = b"x" * 500_000
        answer = await bus.request(subject, payload, responder="ops", timeout_s=5)
        assert answer == payload
    finally:
        await bus.close()


def config(broker, **tls: str) -> NatsConfig:
    return NatsConfig(servers=[broker.url], **tls)


async def test_whoever_trusts_the_authority_talks(one_sided, authority):
    assert one_sided.url.startswith("tls://127.0.0.1:")
    await talk(one_sided, config(one_sided, tls_ca=authority.file))


async def test_another_authority_is_not_trusted_nor_is_the_systems(one_sided, stranger):
    for tls in ({"tls_ca": stranger.file}, {}):
        with pytest.raises(UntrustedError, match=r"certificate .*not to be trusted.*tls_ca"):
            await talk(one_sided, config(one_sided, **tls))


async def test_nor_is_it_when_the_address_does_not_say_tls(one_sided, stranger):
    plain = NatsConfig(servers=[one_sided.url.replace("tls://", "nats://")])
    with pytest.raises(UntrustedError):
        await talk(one_sided, plain)


async def test_a_certificate_for_another_address_is_not_trusted(tmp_path, authority):
    shown = authority.certify("elsewhere", address="192.0.2.1")
    broker = started(tmp_path, BrokerConfig(tls_cert=shown.cert, tls_key=shown.key))
    try:
        with pytest.raises(UntrustedError, match="name in the address"):
            await talk(broker, config(broker, tls_ca=authority.file))
    finally:
        broker.kill()


async def test_a_client_that_speaks_in_clear_is_hung_up_on(one_sided):
    with socket.create_connection(("127.0.0.1", one_sided.port), timeout=5) as connection:
        words = connection.makefile("rb")
        assert b'"tls_required":true' in words.readline()
        connection.sendall(b'CONNECT {"user":"crm","pass":"x"}\r\nPING\r\n')
        assert b"PONG" not in words.read()


@pytest.mark.parametrize("way", ["address", "authority"])
async def test_no_login_is_sent_in_clear_to_a_broker_without_tls(broker, authority, way):
    """Who sits between us and the broker would only have to say that it has none."""
    if way == "address":
        wanted = NatsConfig(servers=[broker.url.replace("nats://", "tls://")])
    else:
        wanted = config(broker, tls_ca=authority.file)
    with pytest.raises(UntrustedError, match="does not speak TLS"):
        await talk(broker, wanted)


async def test_a_certificate_of_ours_opens_a_broker_that_asks_for_one(mutual, authority):
    ours = authority.certify("client")
    tls = {"tls_ca": authority.file, "tls_cert": ours.cert, "tls_key": ours.key}
    await talk(mutual, config(mutual, **tls))


async def test_without_one_or_with_one_of_a_stranger_nobody_gets_in(mutual, authority, stranger):
    theirs = stranger.certify("client")
    for shown in ({}, {"tls_cert": theirs.cert, "tls_key": theirs.key}):
        with pytest.raises((UntrustedError, DisconnectedError)):
            await talk(mutual, config(mutual, tls_ca=authority.file, **shown))


async def test_it_comes_back_over_tls(tmp_path, authority):
    shown = authority.certify("again")
    broker = started(tmp_path, BrokerConfig(tls_cert=shown.cert, tls_key=shown.key))
    bus = await NatsBus.connect("ops", config(broker, tls_ca=authority.file), login=broker.login())
    states = []
    bus.on_connection(states.append)
    try:
        broker.kill()
        broker.start()
        async with asyncio.timeout(10):
            while states != [False, True]:
                await asyncio.sleep(0.01)
        await bus.flush()
    finally:
        await bus.close()
        broker.kill()


@pytest.mark.parametrize("setting", ["tls_ca", "tls_cert"])
async def test_a_file_that_cannot_be_used_is_named(tmp_path, setting):
    file = tmp_path / "none.pem"
    tls = {"tls_ca": str(file)} if setting == "tls_ca" else {"tls_cert": str(file), "tls_key": "x"}
    wanted = NatsConfig(servers=["tls://127.0.0.1:1"], **tls)
    for content in (None, b"nothing"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(StateError, match=r"none\.pem.* cannot be used"):
            await NatsBus.connect("ops", wanted)


def test_a_broker_says_which_certificate_it_cannot_use(tmp_path):
    missing = str(tmp_path / "missing.crt")
    tls = BrokerConfig(tls_cert=missing, tls_key=missing)
    with pytest.raises(StateError, match=r"missing\.crt.* cannot be used: No such file"):
        BrokerProcess(tmp_path, tls=tls)._broker.prepare()
