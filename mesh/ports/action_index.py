"""The searchable copy of the action history, and what nodes offer, in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from mesh.wire.messages import (
    ActionDescription,
    ActionStory,
    HistoryPage,
    HistoryQuery,
    HistoryRecord,
)


class Place(NamedTuple):
    """How far the stream is indexed. A row's sequence is `base` plus the stream's own, so it grows
    even if somebody makes the stream anew.
    """

    base: int
    cursor: int


class ActionIndex(Protocol):
    """One row per action and node in its latest state, its earlier attempts beside it."""

    async def place(self) -> Place:
        """Where to read on."""
        ...

    async def save(self, records: Sequence[tuple[int, HistoryRecord]], *, upto: Place) -> Place:
        """Save records and the place in one transaction, and say where to read on. What another
        master has saved already is passed over; nothing is saved if the stream was made anew since.

        Raises:
            InvalidError: A record that the database cannot hold.
        """
        ...

    async def restart(self, seen: Place) -> Place:
        """The stream has been made anew: read it from its start, unless another master has said so
        before. Where to read on.
        """
        ...

    async def page(self, query: HistoryQuery) -> HistoryPage:
        """Newest first, one record per action and node; with `after`: oldest change first."""
        ...

    async def stories(self, action_id: str) -> list[ActionStory]:
        """Of an action, by node; of a fan-out, those of its parts."""
        ...

    async def prune(self, *, before: int, most_bytes: int, limit: int) -> int:
        """Forget the oldest that have ended: those that ended before `before` (unix ms), and more
        until all take `most_bytes` at most; `limit` of them at a time. How many were forgotten.
        """
        ...


class KnownAction(NamedTuple):
    """A description, and the digest under which its node tells of it."""

    digest: str
    description: ActionDescription


class DescriptionStore(Protocol):
    """The actions of nodes as their authors declared them."""

    async def described(self, node: str) -> dict[str, KnownAction]:
        """Those of a node, by name."""
        ...

    async def describe(self, node: str, actions: Mapping[str, KnownAction]) -> None:
        """Those of a node are these from now on, and no others."""
        ...
