"""Which collections a node has: how they come, go, and give way to a new version of themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog

from mesh.adapters.lance.catalogue import Catalogue
from mesh.adapters.lance.contents import Store
from mesh.adapters.lance.driver import translated
from mesh.adapters.lance.staging import staging_file, staging_files
from mesh.adapters.lance.table import Collection
from mesh.adapters.lance.writing import ClosedError
from mesh.errors import InvalidError, MeshError, StateError, UnavailableError
from mesh.ports import Written

T = TypeVar("T")

_MAX_LISTED = 20

_log = structlog.get_logger()


class Shelf:
    """Of one folder. What it does runs to its end, whether or not anybody waits for that."""

    def __init__(self, store: Store, catalogue: Catalogue, folder: Path) -> None:
        self.collections: dict[str, Collection] = {}
        self.folder = folder
        self.closed = False
        self._store = store
        self._catalogue = catalogue
        self._making = asyncio.Lock()
        """Held while a collection comes or goes."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Open what is in the folder.

        Raises:
            StateError
        """
        for name in self._catalogue.unfinished_drops:
            await self._remove(name)
        for name in await self._table_names():
            if collection := await Collection.open(self._store, name):
                self.collections[name] = collection
                if collection.foreign:
                    _log.warning(
                        "mesh.documents.foreign", collection=name, why=collection.foreign.reason
                    )
            else:
                _log.warning("mesh.documents.half_made_collection_skipped", collection=name)
        # A kill may have come between the last step of a re-embedding and this.
        for file in staging_files(self.folder):
            found = self.collections.get(file.stem)
            if found is None or found.foreign is None:
                file.unlink(missing_ok=True)

    async def _table_names(self) -> list[str]:
        names: list[str] = []
        token: str | None = None
        with translated("listing", "*"):
            while True:
                page = await self._store.connection.list_tables(page_token=token)
                names.extend(page.tables)
                token = page.page_token
                if not token:
                    return sorted(names)

    # -- who is there ------------------------------------------------------------------------------

    def known(self, name: str) -> Collection:
        """Raises InvalidError."""
        try:
            return self.collections[name]
        except KeyError:
            raise self._unknown(name) from None

    def gone(self, name: str) -> MeshError:
        """The error for work that a drop or the end of the node came before."""
        if self.closed:
            return UnavailableError("the node is stopping")
        return self._unknown(name)

    def _unknown(self, name: str) -> InvalidError:
        known = sorted(self.collections)
        listed = ", ".join(known[:_MAX_LISTED]) + (", …" if len(known) > _MAX_LISTED else "")
        message = f"unknown collection {name[:128]!r}; known: {listed or 'none'}"
        return InvalidError(message, fields={"collection": [message]})

    # -- coming and going --------------------------------------------------------------------------

    async def written(
        self, name: str, write: Callable[[Collection], Awaitable[Written]]
    ) -> Written:
        """What `write` does to the collection, made if there is none. One whose first write fails
        is gone again.

        Raises:
            MeshError: The write's.
        """
        while True:
            found = self.collections.get(name)
            try:
                if found is None or found.closed or found.unproven or found.blank:
                    return await self.to_the_end(self._first_written(name, write))
                return await write(found)
            except ClosedError:
                if self.closed:
                    raise self.gone(name) from None
                # Dropped meanwhile: this makes it anew, as if it had come after the drop.

    async def _first_written(
        self, name: str, write: Callable[[Collection], Awaitable[Written]]
    ) -> Written:
        found = await self._make(name)
        try:
            done = await write(found)
        except ClosedError:
            raise
        except Exception:
            # The error that brought this about says more.
            with contextlib.suppress(StateError):
                await self._unmake(found)
            raise
        found.unproven = False
        return done

    async def _make(self, name: str) -> Collection:
        async with self._making:
            if self.closed:
                raise self.gone(name)
            found = self.collections.get(name)
            if found is not None and found.blank:
                await self._remove_opened(found)
                found = None
            if found is None:
                if name in self._catalogue.unfinished_drops:
                    # Else the next start would remove what is written from now on.
                    await self._remove(name)
                last = self._catalogue.last_version(name)
                born = max(self._store.clock.unix_ms(), last)
                # Opened, if an earlier attempt failed between the table and its index.
                found = await Collection.open(self._store, name)
                found = found or await Collection.create(self._store, name, born=born)
                self.collections[name] = found
            return found

    async def _unmake(self, made: Collection) -> None:
        """Unless somebody else has written to it, or is about to."""
        async with self._making:
            is_there = not self.closed and self.collections.get(made.name) is made
            if is_there and made.unproven and made.idle:
                await self._remove_opened(made)

    async def drop(self, name: str) -> None:
        """Remove a collection; also if a crash comes in between, once this began.

        Raises:
            InvalidError, StateError
        """
        # Now, and not when its turn comes: whatever is written from here on outlives the drop.
        self.known(name).refuse_writes()
        await self.to_the_end(self._drop(name))

    async def _drop(self, name: str) -> None:
        async with self._making:
            await self._remove_opened(self.known(name))

    async def _remove_opened(self, found: Collection) -> None:
        await found.close()
        del self.collections[found.name]
        try:
            await asyncio.to_thread(self._catalogue.begin_drop, found.name, found.data_version)
        except StateError:
            if reopened := await Collection.open(self._store, found.name):
                self.collections[found.name] = reopened
            raise
        await self._remove(found.name)

    async def _remove(self, name: str) -> None:
        with translated("dropping", name):
            await self._store.connection.drop_table(name, ignore_missing=True)
            staging_file(self.folder, name).unlink(missing_ok=True)
        await asyncio.to_thread(self._catalogue.end_drop, name)

    async def swap(self, old: Collection, rewrite: Callable[[], Awaitable[None]]) -> Collection:
        """The new version that `rewrite` makes of the table, opened, in the old one's place.

        Raises:
            StateError: The old version stays.
            ClosedError: It was dropped.
        """
        async with self._making:
            if self.collections.get(old.name) is not old or old.closed:
                raise ClosedError
            with translated("re-embedding", old.name):
                await rewrite()
            new = await Collection.open(self._store, old.name)
            if new is None:
                raise self.gone(old.name)
            self.collections[old.name] = new
            await old.close()
            return new

    # -- the end -----------------------------------------------------------------------------------

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Cancelling the caller must not leave a collection half made or half gone."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Until what runs now has ended, also what nobody waits for."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(found.settled() for found in self.collections.values()))

    async def close(self) -> None:
        """Finish the writes that run; those that wait raise UnavailableError."""
        self.closed = True
        async with self._making:
            await asyncio.gather(*(found.close() for found in self.collections.values()))
            self._store.connection.close()  # type: ignore[no-untyped-call]
            self._store.embedding.close()
