"""Where replies come, when an address is used again, and timers of a loop that was held up."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from virtual_time import virtual

from mesh.adapters.nats.multiplexer import Multiplexer
from mesh.errors import DeadlineExceededError, NodeGoneError


def made():
    return Multiplexer("ops", "c1")


def answer(replies, waiter, data=b"yes"):
    replies.on_message(waiter.address, b"", data, None)


def used(replies, count, responder="crm"):
    """Addresses of so many requests, each answered before the next."""
    addresses = []
    for _ in range(count):
        waiter = replies.expect(responder, 5.0, "about")
        answer(replies, waiter)
        assert waiter.future.result() == b"yes"
        waiter.forget()
        addresses.append(waiter.address)
    return addresses


@virtual
async def test_an_address_rests_before_it_is_used_again():
    replies = made()
    first = used(replies, 40)
    assert len(set(first)) == 40, "no time has passed"
    await asyncio.sleep(0.02)
    again = used(replies, 45)
    assert again[:40] == first, "the one that rested longest first"
    assert not set(again[40:]) & set(first)


@virtual
async def test_a_few_addresses_always_rest():
    replies = made()
    first = used(replies, 16)
    await asyncio.sleep(5.0)
    assert not set(used(replies, 1)) & set(first)
    assert used(replies, 1) == first[:1]


@virtual
async def test_there_are_no_more_addresses_than_the_broker_remembers():
    replies = made()
    first = used(replies, 500)
    await asyncio.sleep(0.02)
    assert len(set(used(replies, 500)) & set(first)) == 96


@virtual
async def test_of_one_that_replies_twice_no_address_is_used_again():
    replies = made()
    first = used(replies, 40)
    others = used(replies, 40, "shop")
    await asyncio.sleep(0.02)
    replies.on_message(first[-1], b"", b"once more", None)
    assert not set(used(replies, 40)) & set(first)
    assert set(used(replies, 20, "shop")) <= set(others)
    assert replies.dropped == 1


@virtual
async def test_an_address_whose_request_was_not_answered_is_not_used_again():
    replies = made()
    waiters = [replies.expect("crm", 0.1, "about") for _ in range(40)]
    await asyncio.sleep(0.2)
    for waiter in waiters:
        with pytest.raises(DeadlineExceededError):
            waiter.future.result()
        waiter.forget()
    assert not set(used(replies, 40)) & {waiter.address for waiter in waiters}
    assert len(replies) == 0


@virtual
async def test_a_first_wait_ends_empty_and_the_reply_still_comes():
    replies = made()
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiter = replies.expect("crm", 1.0, "about", first_s=0.2)
    assert await waiter.future == b""
    assert loop.time() - began == pytest.approx(0.2, abs=0.002)
    answer(replies, waiter)
    assert await waiter.future == b"yes"
    waiter.forget()
    slow = replies.expect("crm", 1.0, "about", first_s=0.2)
    began = loop.time()
    await slow.future
    with pytest.raises(DeadlineExceededError, match="within 1000 ms"):
        await slow.future
    assert loop.time() - began == pytest.approx(1.0, abs=0.02)
    slow.forget()
    assert len(replies) == 0


@virtual
async def test_only_what_was_sent_long_enough_ago_is_abandoned():
    replies = made()
    old = replies.expect("crm", 5.0, "about")
    await asyncio.sleep(0.3)
    new = replies.expect("crm", 5.0, "about")
    assert replies.abandon("crm", NodeGoneError("gone"), older_than_s=0.1) == 1
    with pytest.raises(NodeGoneError):
        await old.future
    answer(replies, new)
    assert await new.future == b"yes"


async def test_after_a_stall_what_has_come_meanwhile_is_read_before_time_is_up():
    """The reply is in the socket; that our own loop did not read it is not the node's fault."""
    replies = made()
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    waiter = replies.expect("crm", 0.1, "about")
    silent = replies.expect("crm", 0.1, "about")

    async def read():
        address = await reader.read(200)
        await asyncio.sleep(0)  # a step more, as the bus takes
        replies.on_message(address, b"", b"yes", None)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    theirs.sendall(waiter.address)
    time.sleep(0.3)  # noqa: ASYNC251 (this is the stall)
    assert await waiter.future == b"yes"
    with pytest.raises(DeadlineExceededError):
        await silent.future
    await reading
    for each in (waiter, silent):
        each.forget()
    writer.close()
    await writer.wait_closed()
    theirs.close()
