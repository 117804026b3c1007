"""The actions every node with collections offers: index, update, delete, drop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mesh.core import documents as rules
from mesh.errors import InvalidError
from mesh.ports import Documents, Written
from mesh.runtime.sdk import ActionContext, ActionSpec
from mesh.wire.messages import MAX_BATCH, CollectionName, DocumentId, Filter

_LONGEST_WRITE_S = 600.0


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


def builtin_actions(
    documents: Documents, *, changed: Callable[[str], None]
) -> dict[str, ActionSpec]:
    """The specs, bound to a node's documents.

    Args:
        documents: Where they read and write.
        changed: Told the name of each collection that was written.
    """

    def written(collection: str, done: Written) -> int:
        changed(collection)
        return done.data_version

    async def index(params: Index, context: ActionContext) -> dict[str, Any]:
        # Ids that are missing follow from the action's: a second attempt makes no second copy.
        serial = itertools.count()
        batch = rules.batch(
            params.documents,
            new_id=lambda: f"{context.id}-{next(serial)}",
            field="params.documents",
        )
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
        if bool(params.ids) == bool(params.filter):
            message = "give either ids or a filter"
            raise InvalidError(message, fields={"params.ids": [message]})
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

    return {
        spec.name: spec
        for spec in (
            _builtin("index", index, Index, "Upsert documents by id, all or nothing"),
            _builtin("update", update, Update, "Merge fields into one document"),
            _builtin("delete", delete, Delete, "Remove documents by id or by filter"),
            _builtin("drop", drop, Drop, "Remove a collection with all its documents"),
        )
    }


def _builtin(name: str, run: Any, params: Any, description: str) -> ActionSpec:
    return ActionSpec(
        name=name,
        run=run,
        params=params,
        description=description,
        timeout_s=_LONGEST_WRITE_S,
        idempotent=True,
        builtin=True,
    )
