"""How far actions are: what nodes tell of it, heard by whoever wants to know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from mesh.errors import MeshError
from mesh.ports import Message
from mesh.runtime.client import MeshClient
from mesh.wire import codec
from mesh.wire.messages import ActionProgress
from mesh.wire.subjects import PREFIX

_SUBJECT = f"{PREFIX}.evt.*.progress"
_NODE = _SUBJECT.split(".").index("*")

Heard = Callable[[str, ActionProgress], None]
"""Slug of the node, and what it told."""


@asynccontextmanager
async def hear_progress(client: MeshClient, heard: Heard) -> AsyncIterator[None]:
    """Call `heard` for every action of every node that tells how far it is, as long as the context
    is open. What cannot be read is passed over; what was missed is not told again.
    """

    def read(message: Message) -> None:
        with suppress(MeshError):
            heard(message.subject.split(".")[_NODE], codec.decode(message.data, ActionProgress))

    bus = client._bus  # noqa: SLF001 (a method of the client in a file of its own)
    subscription = await bus.subscribe(_SUBJECT, read)
    try:
        yield
    finally:
        await subscription.unsubscribe()
