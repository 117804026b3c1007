"""The durable queue: actions that the broker keeps for nodes that may be away."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from mesh.wire.messages import DeadLetter, QueueItem

_SPEAK_FOR_OTHERS = frozenset({"gateway", "master", "bridge"})


class Waiting(NamedTuple):
    """An action in the queue. The broker says where it stands, for whom and of whom."""

    sequence: int
    node: str
    action: str
    caller: str
    at: int
    """Unix ms: stored."""
    item: QueueItem | None
    """None: not readable; `flaw` says why."""
    flaw: str = ""

    @property
    def who(self) -> str:
        """Whose action it is: whom the caller speaks for, if he may."""
        spoken_for = self.item.on_behalf if self.item is not None else ""
        return (self.caller in _SPEAK_FOR_OTHERS and spoken_for) or self.caller


class Buried(NamedTuple):
    """A dead letter, and where it lies."""

    sequence: int
    letter: DeadLetter


class QueueDoor(Protocol):
    """What callers have of the queue."""

    async def put(self, node: str, caller: str, item: QueueItem, *, timeout_s: float) -> int:
        """Its sequence number, once the broker has stored it. The same again is stored again: what
        makes it run once is that its node knows the id.

        Raises:
            UnavailableError: The queue is full or away; without an acknowledgement it may be
                stored: put the same again.
            TooLargeError: Beyond what the broker takes.
        """
        ...


class ActionQueue(QueueDoor, Protocol):
    """What masters have of it. Everything raises UnavailableError where JetStream is away."""

    async def prepare(self) -> None:
        """Make what is not there yet, with the limits we want."""
        ...

    async def next(self, node: str, after: int) -> Waiting | None:
        """The oldest one after that sequence that waits for this node; None: no more.

        Raises:
            InvalidError: No node has such a name.
        """
        ...

    async def next_of_all(self, after: int) -> Waiting | None:
        """The oldest one after that sequence, of whatever node; None: no more. What stands where no
        action can wait is thrown away.
        """
        ...

    async def read(self, sequence: int) -> Waiting | None:
        """What stands there; None: it was removed."""
        ...

    async def waiting(self) -> dict[str, int]:
        """How many wait for each node that has any."""
        ...

    async def remove(self, sequence: int) -> bool:
        """Take it out; whether it was still there."""
        ...

    async def bury(self, letter: DeadLetter, *, key: str) -> None:
        """Keep a dead letter; the same `key` within ten minutes keeps it once."""
        ...

    async def dead(self, node: str, limit: int, offset: int) -> tuple[list[Buried], int]:
        """A page of the dead letters, newest first, of a node, or (empty) of all; and how many
        there are. Of many, the oldest may not be reached.
        """
        ...

    async def letter(self, action_id: str, node: str) -> Buried | None:
        """The newest dead letter of that id, of a node, or (empty) of any; None: there is none."""
        ...

    async def exhume(self, sequence: int) -> None:
        """Forget a dead letter."""
        ...
