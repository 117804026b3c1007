"""The actions every node with collections offers: index, update, delete, drop, reembed, sync.

Where other nodes hold the shard too, a write is first found out (what becomes of which document),
then ordered in the shard's log; see `mesh.runtime.replication`.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mesh.core import documents as rules
from mesh.errors import InvalidError
from mesh.ports import Documents, Written
from mesh.runtime.action_context import ActionContext
from mesh.runtime.replication import Replica
from mesh.runtime.sdk import ActionSpec
from mesh.runtime.shard_writes import Planned
from mesh.wire.messages import (
    MAX_BATCH,
    Change,
    CollectionName,
    Document,
    DocumentId,
    Filter,
    Token,
)

_LONGEST_S = 24 * 3600.0
"""Copying takes its time; and a write that may be in the log of its shard must not be called
expired because the broker is away for long.
"""

Run = Callable[[Any, ActionContext], Awaitable[dict[str, Any]]]


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Upsert documents by id."""

    collection: CollectionName
    documents: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_BATCH)]


class Update(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change one document."""

    collection: CollectionName
    id: DocumentId
    fields: Annotated[dict[str, Any], Meta(min_length=1)]


class Delete(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove documents, by id or by filter."""

    collection: CollectionName
    ids: Annotated[list[DocumentId], Meta(max_length=MAX_BATCH)] = []
    filter: Annotated[dict[str, Filter], Meta(max_length=32)] = {}


class Drop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove a collection."""

    collection: CollectionName


class Reembed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Embed a collection anew."""

    collection: CollectionName


class Sync(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make this copy equal to another node's."""

    source: Token = msgspec.field(name="from")
    collection: CollectionName | None = None
    """None: all."""


def builtin_actions(
    documents: Documents, *, changed: Callable[[str], None], replica: Replica | None = None
) -> dict[str, ActionSpec]:
    """The specs, bound to a node's documents.

    Args:
        documents: Where they read and write.
        changed: Told the name of each collection that was written.
        replica: Brings writes to the other holders of the shard; None: there never are any.
    """
    writers = _writers(documents, changed)
    if replica is not None:
        writers = _replicated(writers, _plans(documents), changed, replica)
    index, update, delete, drop = (writers[name] for name in ("index", "update", "delete", "drop"))
    specs = [
        _builtin("index", index, Index, "Upsert documents by id, all or nothing"),
        _builtin("update", update, Update, "Merge fields into one document"),
        _builtin("delete", delete, Delete, "Remove documents by id or by filter"),
        _builtin("drop", drop, Drop, "Remove a collection with all its documents"),
        # Of this node alone, whoever else holds the shard: each replica has an embedder of its own.
        _builtin(
            "reembed",
            _reembedding(documents, changed),
            Reembed,
            "Embed a collection's documents anew, where another embedder did it",
        ),
    ]
    if replica is not None:
        what = "Make this copy of a shard equal to another node's"
        specs.append(_builtin("sync", _syncing(replica), Sync, what))
    return {spec.name: spec for spec in specs}


def _batch(params: Index, context: ActionContext) -> tuple[Document, ...]:
    """Ids that are missing follow from the action's: a second attempt makes no second copy."""
    serial = itertools.count()
    return rules.batch(
        params.documents,
        new_id=lambda: f"{context.id}-{next(serial)}",
        field="params.documents",
    )


def _check_delete(params: Delete) -> None:
    if bool(params.ids) == bool(params.filter):
        message = "give either ids or a filter"
        raise InvalidError(message, fields={"params.ids": [message]})


# -- where nobody else holds the shard -------------------------------------------------------------


def _writers(documents: Documents, changed: Callable[[str], None]) -> dict[str, Run]:

    def written(collection: str, done: Written) -> int:
        changed(collection)
        return done.data_version

    async def index(params: Index, context: ActionContext) -> dict[str, Any]:
        batch = _batch(params, context)
        done = await documents.index(params.collection, batch)
        return {
            "indexed": len(batch),
            "changed": len(done.changed),
            "ids": [document.id for document in batch],
            "data_version": written(params.collection, done),
        }

    async def update(params: Update, _context: ActionContext) -> dict[str, Any]:
        done = await documents.update(params.collection, params.id, params.fields)
        return {
            "updated": len(done.changed),
            "id": params.id,
            "data_version": written(params.collection, done),
        }

    async def delete(params: Delete, _context: ActionContext) -> dict[str, Any]:
        _check_delete(params)
        done = await documents.delete(
            params.collection, ids=params.ids, filters=params.filter or None
        )
        return {
            "deleted": len(done.changed),
            "ids": list(done.changed),
            "data_version": written(params.collection, done),
        }

    async def drop(params: Drop, _context: ActionContext) -> dict[str, Any]:
        await documents.drop(params.collection)
        changed(params.collection)
        return {"dropped": params.collection}

    return {"index": index, "update": update, "delete": delete, "drop": drop}


# -- where others hold it too ----------------------------------------------------------------------


def _plans(documents: Documents) -> dict[str, Callable[[Any, ActionContext], Awaitable[Planned]]]:
    """What each write comes to, found out on a copy that has all writes before it."""

    def put(collection: str, batch: Sequence[Document]) -> Change:
        columns = documents.new_columns(collection, batch)
        return Change(collection=collection, puts=list(batch), columns=columns)

    async def index(params: Index, context: ActionContext) -> Planned:
        batch = _batch(params, context)
        different = await documents.would_index(params.collection, batch)
        return Planned(put(params.collection, batch), different)

    async def update(params: Update, _context: ActionContext) -> Planned:
        new, different = await documents.would_update(params.collection, params.id, params.fields)
        return Planned(put(params.collection, [new]), int(different))

    async def delete(params: Delete, _context: ActionContext) -> Planned:
        _check_delete(params)
        found = await documents.would_delete(
            params.collection, ids=params.ids, filters=params.filter or None
        )
        return Planned(Change(collection=params.collection, deletes=list(found)), len(found))

    async def drop(params: Drop, _context: ActionContext) -> Planned:
        if params.collection not in {info.name for info in documents.collections()}:
            await documents.drop(params.collection)  # it says what there is
        return Planned(Change(collection=params.collection, drop=True), 0)

    return {"index": index, "update": update, "delete": delete, "drop": drop}


def _replicated(
    direct: Mapping[str, Run],
    plans: Mapping[str, Callable[[Any, ActionContext], Awaitable[Planned]]],
    changed: Callable[[str], None],
    replica: Replica,
) -> dict[str, Run]:
    def bound(name: str) -> Run:
        async def run(params: Any, context: ActionContext) -> dict[str, Any]:
            if not replica.logged:
                async with replica.direct():
                    return await direct[name](params, context)
            digest = rules.content_hash(name, msgspec.to_builtins(params))
            answer = await replica.write(
                context.id, name, digest, lambda: plans[name](params, context)
            )
            changed(params.collection)
            return answer

        return run

    return {name: bound(name) for name in direct}


def _reembedding(documents: Documents, changed: Callable[[str], None]) -> Run:
    async def reembed(params: Reembed, context: ActionContext) -> dict[str, Any]:
        done = await documents.reembed(params.collection, context.progress)
        if done.documents or done.before != done.after:
            changed(params.collection)
        return {
            "reembedded": done.documents,
            "from": done.before,
            "to": done.after,
            "data_version": done.data_version,
        }

    return reembed


def _syncing(replica: Replica) -> Run:
    async def sync(params: Sync, context: ActionContext) -> dict[str, Any]:
        copied = await replica.sync(params.source, params.collection or "", context.progress)
        return {
            "from": params.source,
            "collections": copied.collections,
            "compared": copied.compared,
            "fetched": copied.fetched,
            "deleted": copied.deleted,
            "sequence": copied.position.sequence,
        }

    return sync


def _builtin(name: str, run: Any, params: Any, description: str) -> ActionSpec:
    return ActionSpec(
        name=name,
        run=run,
        params=params,
        description=description,
        timeout_s=_LONGEST_S,
        idempotent=True,
        builtin=True,
    )
