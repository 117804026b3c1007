"""Keeps a collection equal to a folder of Markdown files.

It remembers nothing on disk. Every section carries the moment it was read (`read_at`); after files
have been indexed again, whatever of theirs is older is gone from the folder and is deleted. At the
start that is done with the whole folder, so it does not matter what happened while nobody watched.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from watchfiles import Change, awatch

import mesh
from mesh.errors import InvalidError, MeshError

_QUIET_MS = 200
"""Changes closer together than this are one: an editor saves in several steps."""
_TICK_MS = 500
"""How often to look whether something is left to do."""
_AT_ONCE = 100


class Mirror:
    """The folder's files in one collection of one node."""

    def __init__(
        self, client: mesh.MeshClient, folder: Path, *, node: str, collection: str
    ) -> None:
        self.folder = folder.resolve()
        self._client = client
        self._node = node
        self._collection = collection
        self._known: set[str] = set()
        self._read_at = 0

    async def whole(self) -> None:
        """Make all of it equal.

        Raises:
            MeshError: The mesh or the node is away; nothing is lost by trying again.
        """
        there = set(self._under(self.folder))
        await self._index(there)
        await self._forget({})
        self._known = there
        print(f"{len(there)} files are indexed", flush=True)

    async def changed(self, paths: Iterable[Path]) -> None:
        """Make equal what lies at or under these paths, whether it is there, new or gone.

        Raises:
            MeshError: As `whole`.
        """
        there: set[str] = set()
        gone: set[str] = set()
        for path in paths:
            there.update(self._under(path))
            # A folder that was moved away is one change, not one for each file in it.
            place = self._name(path)
            gone.update(
                name for name in self._known if name == place or name.startswith(f"{place}/")
            )
        gone -= there
        await self._index(there)
        names = iter(sorted(there | gone))
        while some := list(itertools.islice(names, _AT_ONCE)):
            await self._forget({"path": some})
        self._known = (self._known | there) - gone
        for verb, files in (("indexed", there), ("forgot", gone)):
            for name in sorted(files):
                print(f"{verb} {name}", flush=True)

    def is_note(self, path: Path) -> bool:
        """Or may be a folder of notes; hidden files and folders are somebody's machinery."""
        if any(part.startswith(".") for part in path.relative_to(self.folder).parts):
            return False
        return (
            path.suffix.lower() in {".md", ""} or path.is_dir() or self._name(path) in self._known
        )

    def _under(self, path: Path) -> Iterator[str]:
        files = path.rglob("*") if path.is_dir() else [path]
        for file in files:
            if file.suffix.lower() == ".md" and file.is_file() and self.is_note(file):
                yield self._name(file)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    async def _index(self, names: Iterable[str]) -> None:
        # Later than any time before, also when the machine's clock was set back meanwhile.
        self._read_at = max(self._read_at + 1, time.time_ns() // 1_000_000)
        report = await mesh.import_documents(
            self._sections(sorted(names)), self._run_index, collection=self._collection
        )
        for bad in report.bad_lines:
            print(f"{bad.source}:{bad.line}: {bad.reason}", flush=True)

    def _sections(self, names: Iterable[str]) -> Iterator[Any]:
        for name in names:
            file = self.folder / name
            try:
                for item in mesh.read_documents(file):
                    if item.document is not None:  # named within the folder, not within the file
                        item.document["id"] = name + item.document["id"].removeprefix(file.name)
                        item.document["metadata"] |= {"path": name, "read_at": self._read_at}
                    yield item
            except InvalidError as error:  # gone again, or not ours to read
                print(f"{name}: {error}", flush=True)

    async def _run_index(self, params: Mapping[str, Any], action_id: str) -> Mapping[str, Any]:
        done = await self._client.run_action("index", params, node=self._node, id=action_id)
        return dict(done.result)

    async def _forget(self, which: Mapping[str, Any]) -> None:
        """Delete what matches and was not read again."""
        older = {"read_at": {"lt": self._read_at}}
        params = {"collection": self._collection, "filter": {**which, **older}}
        try:
            await self._client.run_action("delete", params, node=self._node)
        except InvalidError as error:
            if self._known:
                raise
            print(f"nothing to forget: {error}", flush=True)  # no file has ever been indexed


async def watch(mirror: Mirror, stop: asyncio.Event) -> None:
    """Follow the folder until `stop` is set. While the node is away it is tried again, as a whole:
    what changed meanwhile does not have to be remembered.
    """
    behind = True
    changes = awatch(
        mirror.folder,
        watch_filter=lambda _change, path: mirror.is_note(Path(path)),
        debounce=5 * _QUIET_MS,
        step=_QUIET_MS,
        stop_event=stop,
        rust_timeout=_TICK_MS,
        yield_on_timeout=True,  # the first empty tick says that watching has begun
    )
    async for batch in changes:
        try:
            if behind:
                await mirror.whole()
            elif batch:
                await mirror.changed(_paths(batch))
        except MeshError as error:
            print(f"behind: {error}", flush=True)
            behind = True
        else:
            behind = False


def _paths(batch: set[tuple[Change, str]]) -> set[Path]:
    """What kind of change it was does not matter: the folder as it is now does."""
    return {Path(path) for _change, path in batch}
