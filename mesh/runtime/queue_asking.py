"""Asks a node to do what waits for it, and hears of what makes an answer unlikely."""

from __future__ import annotations

import asyncio

from mesh.core import delivery
from mesh.errors import MeshError, NodeGoneError
from mesh.ports import Bus, Waiting
from mesh.runtime.queue_records import error_in
from mesh.types import Health
from mesh.wire import codec, subjects
from mesh.wire.messages import ActionRequest, ErrorReply, NodeRecord, QueueItem


class Asking:
    """One request at a time, to one node."""

    def __init__(self, node: str, bus: Bus) -> None:
        """Args:
        node: Slug.
        bus: Speaks as `master`.
        """
        self._node = node
        self._bus = bus
        self._under_way: tuple[int, asyncio.Future[None]] | None = None

    def look(self, record: NodeRecord | None) -> None:
        """See, a few times a second, whether the node that was asked is still there."""
        if self._under_way is None:
            return
        life, gone = self._under_way
        is_gone = (
            record is None
            or record.incarnation != life
            or record.health is Health.UNREACHABLE
            or not self._bus.connected  # its answer may be lost
        )
        if is_gone and not gone.done():
            gone.set_result(None)

    async def ask(
        self, waiting: Waiting, item: QueueItem, tries: delivery.Tries, life: int, *, late: bool
    ) -> ErrorReply | None:
        """Why the node, in that life, has not done it; None: it has. `late`: it was begun in time,
        and goes on.
        """
        request = ActionRequest(
            id=item.id,
            action=item.action,
            params=item.params,
            retry=tries.retry,
            on_behalf=waiting.who if waiting.who != self._bus.identity else "",
            trace=item.trace,
            deadline=0 if late else item.expires,
            mode="queue",
        )
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            pending = self._bus.ask(
                subjects.act(self._node, item.action, self._bus.identity),
                codec.encode(request),
                responder=self._node,
                timeout_s=delivery.answer_within_s(tries),
            )
        except MeshError as error:
            return codec.error_reply(error)
        self._under_way = life, gone
        try:
            await asyncio.wait((pending.future, gone), return_when=asyncio.FIRST_COMPLETED)
            if not pending.future.done():
                raise NodeGoneError(f"node {self._node!r} went away")
            return error_in(pending.future.result())
        except MeshError as error:
            return codec.error_reply(error)
        finally:
            self._under_way = None
            pending.forget()
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # seen
