"""A node's collections, and the vectors of their texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mesh.types import SearchMode
from mesh.wire.messages import CollectionInfo, Document, ShardHits, StoredDocument

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Embedder(Protocol):
    """Text to unit vectors. May block: callers run it in a thread, but for `quick_chars`."""

    @property
    def id(self) -> str:
        """Fingerprint: vectors of two embedders compare only where this is equal."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def default_threshold(self) -> float:
        """Cosine below which a hit of the vector leg is noise for this embedder."""
        ...

    @property
    def quick_chars(self) -> int:
        """Texts of together so many characters take less than a millisecond and wait for nothing:
        they may be embedded on the event loop. 0: always in a thread.
        """
        ...

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """`(n, dim)` float32, L2-normalised; a text without known words gives a zero row."""
        ...

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """`(dim,)` float32, L2-normalised."""
        ...


class Written(NamedTuple):
    """What a write did. `changed` are the ids written or removed, in order of the input."""

    changed: tuple[str, ...]
    data_version: int


class Reembedded(NamedTuple):
    """What embedding a collection anew did."""

    documents: int
    """How many have a new vector; 0: there was nothing to do."""
    before: str
    """Fingerprint of the vectors that were there."""
    after: str
    data_version: int


class Census(Protocol):
    """Which documents a collection held at some moment, by id and hash."""

    @property
    def rows(self) -> int: ...

    @property
    def digest(self) -> str:
        """SHA-256 over all ids and hashes: equal where the contents are."""
        ...

    def page(self, after: str, limit: int) -> list[tuple[str, str]]:
        """(id, hash) by id, of those after `after`; empty: from the first one on."""
        ...


class Documents(Protocol):
    """A node's collections on disk."""

    def collections(self) -> tuple[CollectionInfo, ...]:
        """What there is now; cheap, no I/O."""
        ...

    async def index(self, collection: str, documents: Sequence[Document]) -> Written:
        """Upsert by id, all or nothing; makes the collection if needed. Documents equal to what is
        stored are left alone and not in `changed`.

        Raises:
            InvalidError: A document or metadata value that cannot be stored; nothing changed.
            ConflictError: Its vectors are another embedder's; so of every write but `drop`.
        """
        ...

    async def update(self, collection: str, id: str, fields: Mapping[str, Any]) -> Written:  # noqa: A002
        """Merge `fields` into one document: `content` replaces the text, other keys the metadata's
        (null removes one).

        Raises:
            InvalidError, NotFoundError: Unknown collection; unknown document.
        """
        ...

    async def delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
    ) -> Written:
        """Remove by id or by filter; ids that are not there are passed over.

        Raises:
            InvalidError: Unknown collection or column.
        """
        ...

    async def drop(self, collection: str) -> None:
        """Remove a collection with all its documents.

        Raises:
            InvalidError: Unknown collection.
        """
        ...

    async def would_index(self, collection: str, documents: Sequence[Document]) -> int:
        """How many documents `index` would change; nothing is written.

        Raises:
            InvalidError: As `index`.
        """
        ...

    async def would_update(
        self,
        collection: str,
        id: str,  # noqa: A002
        fields: Mapping[str, Any],
    ) -> tuple[Document, bool]:
        """The document as `update` would leave it, and whether it is another one then.

        Raises:
            InvalidError, NotFoundError: As `update`.
        """
        ...

    async def would_delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
    ) -> tuple[str, ...]:
        """Whom `delete` would remove, in its order.

        Raises:
            InvalidError: As `delete`.
        """
        ...

    async def replace(
        self,
        collection: str,
        *,
        puts: Sequence[Document] = (),
        deletes: Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
    ) -> Written:
        """Remove and write documents with distinct ids as another replica did, without judging
        them: a metadata value that does not fit its column is kept, and cannot be filtered by.
        Makes the collection if needed, with these columns.
        """
        ...

    async def census(self, collection: str) -> Census:
        """What is there now.

        Raises:
            InvalidError: Unknown collection.
        """
        ...

    async def settled(self) -> None:
        """Until the writes that run now have ended, also those whose caller is gone."""
        ...

    def new_columns(self, collection: str, documents: Sequence[Document]) -> dict[str, str]:
        """The columns that writing these documents would add, and their kinds."""
        ...

    def columns(self, collection: str) -> dict[str, str]:
        """Metadata keys that can be filtered by, and their kinds; empty: no such collection."""
        ...

    async def search(
        self,
        query: str,
        *,
        collections: Sequence[str] | None,
        mode: SearchMode,
        depth: int,
        threshold: float | None,
        filters: Mapping[str, Any],
        texts: int | None = None,
    ) -> tuple[ShardHits, ...]:
        """Each leg's best `depth` candidates of every collection asked, with what a caller needs
        to rank them globally. Collections this node does not hold are passed over. So many of a
        collection's best bring their texts along; None: all.

        Raises:
            InvalidError: A filter on a column that none of the collections asked has, or that
                does not fit the column's type.
        """
        ...

    async def fetch(self, collection: str, ids: Sequence[str]) -> tuple[StoredDocument, ...]:
        """Documents by id; those that are not there are passed over.

        Raises:
            InvalidError: Unknown collection.
        """
        ...

    async def reembed(
        self, collection: str, progress: Callable[[float | None, str], None]
    ) -> Reembedded:
        """Replace vectors and terms that are not such as this node makes, all at once at the end.
        Until then the collection answers with its text leg alone and takes no writes. Cut short,
        it goes on where it was.

        Args:
            collection: Its name.
            progress: Told the share that is done (0..1; None: not known) and how far it is.

        Raises:
            InvalidError: Unknown collection, or it was dropped meanwhile.
            MeshError: The embedder failed; nothing changed.
        """
        ...

    async def close(self) -> None:
        """Finish running writes."""
        ...
