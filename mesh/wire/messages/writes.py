"""Writes to shards that several nodes hold: the log that orders them, and copies of a shard."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mesh.wire.messages.base import (
    MAX_BATCH,
    CollectionName,
    Document,
    DocumentId,
    Request,
    Token,
    Wire,
)

_Sequence = Annotated[int, Meta(ge=0, le=2**53)]


class Change(Wire, frozen=True, kw_only=True):
    """What a write does to a collection, document by document: it can be applied to any copy, has
    the same effect on each, and no copy can refuse it.
    """

    collection: CollectionName
    drop: bool = False
    """Remove the collection first, with all that is in it."""
    puts: list[Document] = []
    deletes: list[DocumentId] = []
    columns: dict[str, str] = {}
    """Metadata keys that can be filtered by from now on, and their kinds: found out by the writer,
    since a copy that applies many changes at once may never see the document that brought one.
    """


class WriteEntry(Wire, frozen=True, kw_only=True):
    """One entry of a shard's log; its subject says of which shard, and who wrote it."""

    id: str = ""
    """Of the action; empty: the log's own business."""
    action: str = ""
    digest: str = ""
    """Of action and parameters."""
    prev: _Sequence
    """Sequence of the shard's entry before this one. Required: what else may get into the log, an
    acknowledgement of JetStream for example, is no entry.
    """
    change: Change | None = None
    packed: bytes = b""
    """The change as deflated JSON, where it is long."""
    changed: int = 0
    """How many documents the write changed."""
    at: int = 0
    """Unix ms."""
    begin: bool = False
    """The order begins here, or goes on here after the log was lost: with whoever had applied
    `prev` of the log `before`, and with nobody else.
    """
    before: str = ""
    base: bool = False
    """Of an entry that begins: there were documents already, which are in no entry."""


class LoggedWrite(Wire, frozen=True, kw_only=True):
    """An entry in its place. `rpc.<node>.replicate` carries one too."""

    sequence: _Sequence
    entry: WriteEntry
    log: str = ""
    """Which log; told by `replicate`."""


class WritesQuery(Request, frozen=True, kw_only=True):
    """`master.writes`: what was written to a shard after `after`."""

    shard: Token
    after: _Sequence = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


class WritesPage(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """In order."""

    log: str
    """Name of this log: another one, if the broker lost the one before."""
    last: int
    """The shard's last entry there is; 0: none."""
    entries: list[LoggedWrite] = []
    fading: bool = False
    """The shard's last entry will soon be too old to be kept: a new one should follow it."""


class CollectionState(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """A collection of a copy."""

    name: str
    rows: int = 0
    data_version: int = 0
    columns: dict[str, str] = {}
    """Metadata keys that can be filtered by, and their kinds."""
    hash: str = ""
    """Over all ids and documents: equal where the contents are. Empty: not asked for."""


class CopyState(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """How far a node's copy of its shard is."""

    node: str
    shard: str
    log: str = ""
    sequence: int = 0
    """Last entry applied; 0: it has no place in the order yet."""
    following: bool = False
    """It has every entry there is, as far as it knows."""
    collections: list[CollectionState] = []


class ExportQuery(Request, frozen=True, kw_only=True):
    """`rpc.<node>.export`, for other replicas of the shard, and masters."""

    what: Literal["state", "hashes", "index", "documents", "applied"]
    """Position; that with content hashes; ids with their documents' hashes; documents; action ids.
    """
    shard: str = ""
    collection: str = ""
    after: str = ""
    """`index` and `applied`: only what comes after this id."""
    since: _Sequence = 0
    """`index`: of this position or a later one."""
    ids: Annotated[list[DocumentId], Meta(max_length=MAX_BATCH)] = []
    limit: Annotated[int, Meta(ge=1, le=5000)] = 1000


class IndexPage(Wire, frozen=True, kw_only=True):
    """Ids, in order, and the hashes of their documents."""

    ids: list[str] = []
    hashes: list[str] = []
    more: bool = False


class DocumentsPage(Wire, frozen=True, kw_only=True):
    """As many of the documents asked for as fit, in order; `looked` ids were looked for."""

    documents: list[Document] = []
    looked: int = 0


class AppliedWrite(Wire, frozen=True, kw_only=True):
    """What a copy remembers of an action that wrote to it."""

    id: str
    sequence: int
    digest: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")
    at: int = 0


class AppliedPage(Wire, frozen=True, kw_only=True):
    """By id."""

    writes: list[AppliedWrite] = []
    more: bool = False


class CopyPlace(Wire, frozen=True, kw_only=True):
    """How far copying from another node has come, so that a crash does not begin it anew."""

    source: str
    scope: str = ""
    """The one collection that is copied; empty: all."""
    log: str = ""
    sequence: int = 0
    """Where the source stood when this began."""
    done: list[str] = []
    collection: str = ""
    after: str = ""
    compared: int = 0
    fetched: int = 0
    deleted: int = 0


class ReplicasQuery(Request, frozen=True, kw_only=True):
    """`master.replicas`: the copies of every shard that several nodes hold, or of one shard."""

    shard: str = ""
    hashes: bool = True


class ReplicaList(Wire, frozen=True, kw_only=True, omit_defaults=False):
    """By shard and node; `away`: nodes that did not answer, and why."""

    copies: list[CopyState]
    away: dict[str, str] = {}
