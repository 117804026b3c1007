"""nats-py's client with its ways to die or to lie taken out.

What plain nats-py 2.16 does, each reproduced by a test: a late PONG or a raising callback ends the
read loop while `is_connected` stays true; an `-ERR` (expired login, payload too large) closes for
good; what was written in an outage is sent, and executed, after it; callbacks run one at a time; a
server that says it has no TLS gets the login in clear, also where the address says `tls://`; each
login that is refused leaves a socket open; one that is cut before its answer counts as connected.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client

from mesh.adapters.nats.quick_parser import QuickParser

log = structlog.get_logger()

FastHandler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Called with subject, reply, data and raw headers, in the read loop."""

_PERMISSIONS = "permissions violation"


class NoTlsError(nats.errors.Error):
    """Something answered in clear where TLS was asked for."""

    def __str__(self) -> str:
        return "the server does not speak TLS"


class HardenedClient(Client):
    """One connection that is either working, or reconnecting, or closed by its owner."""

    def __init__(
        self, *, on_lost: Callable[[], None], on_found: Callable[[], None], needs_tls: bool = False
    ) -> None:
        super().__init__()
        self.parser = self._ps = QuickParser(self, self._deliver)
        self.needs_tls = needs_tls
        self._tried_at = 0.0
        self._on_lost = on_lost
        self._on_found = on_found
        self._fast: dict[int, FastHandler] = {}
        self._flush_scheduled = False
        self._buffered_bytes = 0
        self.handler_failures = 0

    # -- receiving -----------------------------------------------------------------------------

    async def subscribe_fast(self, subject: str, queue: str, handler: FastHandler) -> int:
        """Subscribe without a queue and task per message; returns the subscription's id."""
        sid: int = self._sid + 1  # the handler is in place before the first message can be
        self._fast[sid] = handler
        # A future tells nats-py to start no task of its own; it is never resolved.
        await self.subscribe(subject, queue, future=asyncio.get_running_loop().create_future())
        return sid

    async def unsubscribe_fast(self, sid: int) -> None:
        """Forget a subscription; the broker is told in order with everything else."""
        self.drop(sid)
        if self.is_connected:
            self.write(b"UNSUB %d\r\n" % sid)

    def withdraw(self, sid: int) -> None:
        """Tell the broker to send no more; what is on its way is still heard, until `drop`."""
        self._subs.pop(sid, None)  # a reconnect does not bring it back
        if self.is_connected:
            self.write(b"UNSUB %d\r\n" % sid)

    def drop(self, sid: int) -> None:
        """Forget a subscription that the broker does not have."""
        self._fast.pop(sid, None)
        self._subs.pop(sid, None)

    async def unsubscribe_all(self) -> None:
        """Forget every subscription."""
        for sid in list(self._fast):
            await self.unsubscribe_fast(sid)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        self._deliver(sid, subject, reply, data, headers)

    def _deliver(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        handler = self._fast.get(sid)
        if handler is None:
            return
        try:
            handler(subject, reply, data, headers)
        except Exception:
            self.handler_failures += 1
            log.exception("mesh.bus.handler_failed", subject=subject.decode("ascii", "replace"))

    async def _process_pong(self) -> None:
        """Also a PONG whose waiter has given up: it must not end the read loop."""
        if self._pongs:
            waiter: asyncio.Future[bool] = self._pongs.pop(0)
            if not waiter.done():
                waiter.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    async def _process_err(self, err_msg: str) -> None:
        """Any error the broker reports but a refused subject means: log in again."""
        error = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
        self._err = error
        await self._error_cb(error)
        if _PERMISSIONS not in err_msg:
            await self._process_op_err(error)

    async def _read_loop(self) -> None:
        """A read loop that ends while connected is a lost connection, whatever ended it."""
        await super()._read_loop()
        if self._status == Client.CONNECTED:
            await self._process_op_err(nats.errors.StaleConnectionError())

    @property
    def connected(self) -> bool:
        """As nats-py's `is_connected`, but for who drains, which nobody here does."""
        return bool(self._status == Client.CONNECTED)

    # -- sending -------------------------------------------------------------------------------

    def write(self, command: bytes) -> None:
        """Queue a command; one piece per turn of the loop, however many commands it made."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def takes(self, size: int, most_unsent: int) -> bool:
        """Whether a message of `size` bytes can be written now: we are connected, it is not too
        large, and no more than `most_unsent` bytes wait for the socket. Every message asks this.
        """
        if self._status != Client.CONNECTED or size > self._max_payload:
            return False
        if self._buffered_bytes + self._pending_data_size <= most_unsent:
            return True
        self._buffered_bytes = self._unsent()  # as of the last flush it was more
        return bool(self._buffered_bytes + self._pending_data_size <= most_unsent)

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        transport = self._transport
        if not self._pending or transport is None or not self.is_connected:
            return  # a reconnect drops what is pending
        pending, self._pending = self._pending, []
        self._pending_data_size = 0
        transport.write(b"".join(pending))
        self._buffered_bytes = self._unsent()

    def _unsent(self) -> int:
        writer = getattr(self._transport, "_io_writer", None)
        return writer.transport.get_write_buffer_size() if writer is not None else 0

    # -- logging in ----------------------------------------------------------------------------

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Before anything of ours is sent; nats-py would go on without TLS."""
        if initial_connection and self.needs_tls and not info.get("tls_required"):
            raise NoTlsError
        await super()._process_info(info, initial_connection)

    async def _connect_to_server(self, s: Any) -> None:
        """nats-py forgets the socket of a login that was refused, and opens the next one."""
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]
        self._tried_at = asyncio.get_running_loop().time()
        await super()._connect_to_server(s)

    async def _process_connect_init(self) -> None:
        """A login that is cut before it is answered is a lost connection; nats-py would call it a
        connection and never look again.
        """
        await super()._process_connect_init()
        if self._status != Client.CONNECTED:
            begun = (self._reading_task, self._ping_interval_task, self._flusher_task)
            for task in begun:
                if task is not None:
                    task.cancel()
            raise nats.errors.UnexpectedEOF

    @property
    def seat(self) -> tuple[str, int]:
        """Id of the server we are connected to, and the number of this connection there."""
        info = self._server_info
        return str(info.get("server_id", "")), int(info.get("client_id", 0))

    def login_took_s(self) -> float:
        """Since the last connection was begun: the broker's patience starts there as well."""
        return asyncio.get_running_loop().time() - self._tried_at

    # -- losing and finding the broker -----------------------------------------------------------

    async def _process_op_err(self, e: Exception) -> None:
        if not (self.is_closed or self.is_reconnecting):
            # Nothing written during an outage may be executed after it.
            self._pending = []
            self._pending_data_size = self._buffered_bytes = 0
            self._on_lost()
        await super()._process_op_err(e)

    async def found(self) -> None:
        """nats-py's `reconnected_cb`."""
        self._on_found()

    async def hang_up(self) -> None:
        """Close without waiting for a broker that does not answer."""
        with contextlib.suppress(nats.errors.Error, OSError, asyncio.CancelledError):
            await self.close()
