"""The quick parser against nats-py's own: the same bytes, however they are cut, are the same."""

from __future__ import annotations

import asyncio

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from mesh.adapters.nats.quick_parser import QuickParser

HEADERS = b"NATS/1.0 503\r\n\r\n"


class Client:
    """What either parser tells its client, in order."""

    def __init__(self):
        self.told = []

    async def _process_msg(self, sid, subject, reply, data, headers):
        self.deliver(sid, subject, reply, data, headers)

    def deliver(self, sid, subject, reply, data, headers):
        parts = (bytes(part) for part in (subject, reply, data))
        self.told.append((sid, *parts, None if headers is None else bytes(headers)))

    async def _process_ping(self):
        await asyncio.sleep(0)
        self.told.append("ping")

    async def _process_pong(self):
        self.told.append("pong")

    async def _process_err(self, error):
        self.told.append(("error", error))

    async def _process_info(self, info):
        self.told.append(("info", str(info)))


def message(payload, reply, number):
    subject = b"mesh.v1.%d %d %b" % (number, number, reply)
    return b"MSG %b%d\r\n%b\r\n" % (subject, len(payload), payload)


def with_headers(payload, reply, number):
    sizes = b"%d %d" % (len(HEADERS), len(HEADERS) + len(payload))
    return b"HMSG s.a %d %b%b\r\n%b%b\r\n" % (number, reply, sizes, HEADERS, payload)


PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"MSG a 1 5\r\n", b"\r\n", b"PING\r\n", b"\x00", b" "])).map(
        b"".join
    ),
    st.integers(0, 5000).map(lambda size: b"x" * size),
)
REPLIES = st.sampled_from([b"", b"mesh.v1.re.a.b "])
OTHERS = [
    b"PING\r\n",
    b"PONG\r\n",
    b"+OK\r\n",
    b"-ERR 'Permissions Violation'\r\n",
    b'INFO {"a":1}\r\n',
]
BLOCKS = st.one_of(
    st.builds(message, PAYLOADS, REPLIES, st.integers(0, 99)),
    st.builds(message, PAYLOADS, REPLIES, st.integers(0, 99)),
    st.builds(with_headers, PAYLOADS, REPLIES, st.integers(0, 99)),
    st.sampled_from(OTHERS),
)


@given(
    st.lists(BLOCKS, min_size=1, max_size=12).map(b"".join),
    st.lists(st.one_of(st.integers(1, 4), st.integers(1, 5000)), min_size=1),
)
def test_the_same_bytes_are_the_same_messages_however_they_are_cut(data, cuts):
    plain, quick = Client(), Client()
    parser = QuickParser(quick, quick.deliver)

    async def read():
        whole = Parser(plain)
        await whole.parse(data)
        at, turn = 0, 0
        while at < len(data):
            step = cuts[turn % len(cuts)] if turn < 2000 else len(data)
            await parser.parse(data[at : at + step])
            at, turn = at + step, turn + 1
        assert (whole.state, whole.buf) == (parser.state, parser.buf)

    asyncio.run(read())
    assert quick.told == plain.told


@pytest.mark.parametrize("line", [b"MSG a b c\r\nx\r\n", b"MSG a\r\n\r\n"], ids=["sizes", "words"])
def test_what_is_no_message_is_a_protocol_error(line):
    quick = Client()
    with pytest.raises(nats.errors.ProtocolError):
        asyncio.run(QuickParser(quick, quick.deliver).parse(line))
