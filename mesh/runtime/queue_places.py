"""Where in the queue an action stands, by its id."""

from __future__ import annotations

from mesh.ports import ActionQueue, Waiting

_MOST = 100_000


class Places:
    """What a master has seen come in. What it has not, or has forgotten since, is not found by its
    id; that it waits is known to the history by then.
    """

    def __init__(self, queue: ActionQueue) -> None:
        self._queue = queue
        self._places: dict[tuple[str, int], None] = {}
        self._by_id: dict[str, set[int]] = {}

    def seen(self, waiting: Waiting) -> None:
        """It is in the queue."""
        if waiting.item is None:
            return
        key = waiting.item.id, waiting.sequence
        if key not in self._places:
            self._places[key] = None
            self._by_id.setdefault(key[0], set()).add(key[1])
            if len(self._places) > _MOST:
                self._forget(*next(iter(self._places)))

    def gone(self, waiting: Waiting) -> None:
        """It was taken out."""
        if waiting.item is not None:
            self._forget(waiting.item.id, waiting.sequence)

    async def find(self, action_id: str, node: str = "") -> list[Waiting]:
        """Those of that id that still wait, of a node, or (empty) of all, oldest first.

        Raises:
            UnavailableError: The queue cannot be read.
        """
        found = []
        for sequence in sorted(self._by_id.get(action_id, ())):
            waiting = await self._queue.read(sequence)
            if waiting is None or waiting.item is None or waiting.item.id != action_id:
                self._forget(action_id, sequence)
            elif node in ("", waiting.node):
                found.append(waiting)
        return found

    def _forget(self, action_id: str, sequence: int) -> None:
        self._places.pop((action_id, sequence), None)
        sequences = self._by_id.get(action_id)
        if sequences is not None:
            sequences.discard(sequence)
            if not sequences:
                del self._by_id[action_id]
