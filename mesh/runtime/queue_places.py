"""Where in the queue an action stands, by its id."""

from __future__ import annotations

import asyncio

from mesh.errors import UnavailableError
from mesh.ports import ActionQueue, Waiting

_MOST = 100_000
_WITHIN_S = 4.0


class Places:
    """What a master has seen come in."""

    def __init__(self, queue: ActionQueue) -> None:
        self._queue = queue
        self._places: dict[tuple[str, int], None] = {}
        self._by_id: dict[str, set[int]] = {}
        self._read_to = 0
        self._forgot = False
        """There was more than fits."""
        self._reading = asyncio.Lock()

    def read(self, waiting: Waiting) -> None:
        """It came next."""
        self.seen(waiting)
        self._read_to = max(self._read_to, waiting.sequence)

    def seen(self, waiting: Waiting) -> None:
        """It is in the queue."""
        if waiting.item is None:
            return
        key = waiting.item.id, waiting.sequence
        if key not in self._places:
            self._places[key] = None
            self._by_id.setdefault(key[0], set()).add(key[1])
            if len(self._places) > _MOST:
                self._forgot = True
                self._forget(*next(iter(self._places)))

    def gone(self, waiting: Waiting) -> None:
        """It was taken out."""
        if waiting.item is not None:
            self._forget(waiting.item.id, waiting.sequence)

    async def find(
        self,
        action_id: str,
        node: str = "",
        *,
        thorough: bool = False,
        within_s: float = _WITHIN_S,
    ) -> list[Waiting]:
        """Those of that id that wait now, of a node, or (empty) of all, oldest first.

        Args:
            action_id: Theirs.
            node: Slug.
            thorough: Of a named node, also those of so many that some were forgotten.
            within_s: How long reading may take.

        Raises:
            UnavailableError: The queue cannot be read, or not in time.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._read_on()
                found = await self._seen_of(action_id, node)
                if not found and thorough and node and self._forgot:
                    found = await self._search(action_id, node)
        except TimeoutError:
            raise UnavailableError("the queue is too long to be read in time") from None
        return found

    async def _read_on(self) -> None:
        """What came in since: that it is not found shall mean that it does not wait."""
        async with self._reading:
            while (waiting := await self._queue.next_of_all(self._read_to)) is not None:
                self.read(waiting)

    async def _seen_of(self, action_id: str, node: str) -> list[Waiting]:
        found = []
        for sequence in sorted(self._by_id.get(action_id, ())):
            waiting = await self._queue.read(sequence)
            if waiting is None or waiting.item is None or waiting.item.id != action_id:
                self._forget(action_id, sequence)
            elif node in ("", waiting.node):
                found.append(waiting)
        return found

    async def _search(self, action_id: str, node: str) -> list[Waiting]:
        found, after = [], 0
        while (waiting := await self._queue.next(node, after)) is not None:
            after = waiting.sequence
            if waiting.item is not None and waiting.item.id == action_id:
                found.append(waiting)
        return found

    def _forget(self, action_id: str, sequence: int) -> None:
        self._places.pop((action_id, sequence), None)
        sequences = self._by_id.get(action_id)
        if sequences is not None:
            sequences.discard(sequence)
            if not sequences:
                del self._by_id[action_id]
