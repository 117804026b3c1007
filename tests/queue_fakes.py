"""The durable queue without a broker, trusted because it passes the contract tests of the real."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from mesh.core.delivery import as_trusted
from mesh.errors import InvalidError, UnavailableError
from mesh.ports import Buried, Waiting
from mesh.wire import codec, subjects
from mesh.wire.messages import DeadLetter, QueueItem


class MemoryQueue:
    """`mesh.ports.ActionQueue`. `available`: whether JetStream answers; `room`: how many bytes."""

    def __init__(
        self,
        *,
        room: int = 10**9,
        now_ms: Callable[[], int] = lambda: round(time.time() * 1000),
    ) -> None:
        self._now_ms = now_ms
        self.available = True
        self.room = room
        self.prepared = False
        self.stored: dict[int, Waiting] = {}
        self.strays = 0
        self.letters: dict[int, DeadLetter] = {}
        self.removed: list[int] = []
        self.heard = lambda _node: None
        """Called with the node of what was put, as the bus would tell."""
        self._last = 0
        self._last_letter = 0
        self._buried: set[str] = set()

    async def prepare(self) -> None:
        self._check()
        self.prepared = True

    async def put(self, node: str, caller: str, item: QueueItem, *, timeout_s: float) -> int:
        self._check()
        subjects.queue(node, item.action, caller)
        size = sum(len(codec.encode(one.item)) for one in self.stored.values())
        if size + len(codec.encode(item)) > self.room:
            raise UnavailableError("the queue is full; nothing was stored", retry_after_ms=1000)
        return self.keep(node, item.action, caller, item)

    def keep(
        self, node: str, action: str, caller: str, item: QueueItem | None, flaw: str = ""
    ) -> int:
        self._last += 1
        at = self._now_ms()
        item = item and as_trusted(item, caller)
        self.stored[self._last] = Waiting(self._last, node, action, caller, at, item, flaw)
        self.heard(node)
        return self._last

    async def next(self, node: str, after: int) -> Waiting | None:
        subjects.token(node)
        return self._next(node, after)

    async def next_of_all(self, after: int) -> Waiting | None:
        return self._next("", after)

    def _next(self, node: str, after: int) -> Waiting | None:
        self._check()
        for sequence, one in list(self.stored.items()):
            if sequence > after and node in ("", one.node):
                try:
                    subjects.queue(one.node, one.action, one.caller)
                except InvalidError:
                    self.strays += 1
                    del self.stored[sequence]
                else:
                    return one
        return None

    async def read(self, sequence: int) -> Waiting | None:
        self._check()
        return self.stored.get(sequence)

    async def waiting(self) -> dict[str, int]:
        self._check()
        counts: dict[str, int] = {}
        for one in self.stored.values():
            counts[one.node] = counts.get(one.node, 0) + 1
        return counts

    async def remove(self, sequence: int) -> bool:
        self._check()
        self.removed.append(sequence)
        return self.stored.pop(sequence, None) is not None

    async def bury(self, letter: DeadLetter, *, key: str) -> None:
        self._check()
        if key not in self._buried:
            self._buried.add(key)
            self._last_letter += 1
            self.letters[self._last_letter] = msgspec.structs.replace(letter)

    async def dead(self, node: str, limit: int, offset: int) -> tuple[list[Buried], int]:
        self._check()
        found = [
            Buried(sequence, letter)
            for sequence, letter in reversed(self.letters.items())
            if node in ("", letter.node)
        ]
        return found[offset : offset + limit], len(found)

    async def letter(self, action_id: str, node: str) -> Buried | None:
        found, _ = await self.dead(node, len(self.letters), 0)
        return next((one for one in found if one.letter.id == action_id), None)

    async def exhume(self, sequence: int) -> None:
        self._check()
        self.letters.pop(sequence, None)

    def _check(self) -> None:
        if not self.available:
            raise UnavailableError("JetStream does not answer", retry_after_ms=1000)
