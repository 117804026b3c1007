"""What the runtime needs from the world; `mesh.adapters` gives it. Implementations raise only
`MeshError`s: a driver's own errors are translated at the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mesh.errors import UnauthorizedError
from mesh.types import ActionState, SearchMode, Status
from mesh.wire.messages import (
    ActionRequest,
    CollectionInfo,
    Document,
    HistoryQuery,
    HistoryRecord,
    Identity,
    NodeRecord,
    NodeUpdate,
    PublicKey,
    ShardHits,
    StoredDocument,
    TokenInfo,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Clock(Protocol):
    """Time, so that everything above it can be tested without waiting."""

    def monotonic(self) -> float:
        """Seconds; never goes back."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Message(NamedTuple):
    """One message from the bus; `reply` is empty where no answer is asked for."""

    subject: str
    reply: str
    data: bytes


Handler = Callable[[Message], None]
"""Called in the read loop: quick, and free to raise (counted and logged, never fatal)."""


class Subscription(Protocol):
    """Interest in a subject, kept through reconnects."""

    async def unsubscribe(self) -> None:
        """Stop hearing; the broker knows when this returns."""
        ...


class Bus(Protocol):
    """One hardened connection to the broker, with an own request multiplexer."""

    @property
    def identity(self) -> str:
        """The token this connection speaks as: `<caller>` or `<node>` of section 3."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker is there right now."""
        ...

    async def request(
        self, subject: str, payload: bytes, *, responder: str, timeout_s: float
    ) -> bytes:
        """Send and await the one reply of `responder`. While the broker is away the request waits
        for it within its own timeout, and is never sent after it.

        Raises:
            NoRespondersError: Nobody listens; known in about a millisecond.
            DeadlineExceededError: No reply within `timeout_s` seconds.
            DisconnectedError: The broker is or went away; a reply may have been lost.
            TooLargeError: `payload` is beyond what the broker takes.
        """
        ...

    def publish(self, subject: str, payload: bytes) -> None:
        """Send and forget.

        Raises:
            DisconnectedError: The broker is away; nothing is buffered for later.
            TooLargeError: `payload` is beyond what the broker takes.
        """
        ...

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Hear `subject`; interest is known to the broker when this returns."""
        ...

    async def gather(
        self, subject: str, payload: bytes, *, responder: str, window_s: float
    ) -> list[bytes]:
        """Send to many and take every reply that comes within `window_s` seconds."""
        ...

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Have `listener(connected)` called whenever the broker goes or comes."""
        ...

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        """Return when the broker has processed everything sent so far.

        Raises:
            DeadlineExceededError, DisconnectedError
        """
        ...

    async def close(self) -> None:
        """Send what is pending, then hang up."""
        ...


class History(Protocol):
    """The action history: an append-only stream that outlives every process."""

    async def prepare(self) -> None:
        """Make the stream if it is not there (masters, and the embedded mesh)."""
        ...

    async def append(self, record: HistoryRecord, *, timeout_s: float) -> int:
        """Store and return the sequence number; a record stored twice counts once.

        Raises:
            UnavailableError: No acknowledgement: not known to be stored.
        """
        ...

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        """Of the newest record; 0 when empty.

        Raises:
            UnavailableError
        """
        ...

    async def read(
        self, after: int, limit: int, *, timeout_s: float = 5.0
    ) -> tuple[list[tuple[int, HistoryRecord]], int]:
        """Records with sequence > `after`, oldest first, and the sequence read up to (gaps and
        unreadable records are passed over).

        Raises:
            UnavailableError
        """
        ...


class Embedder(Protocol):
    """Text to unit vectors. May block: callers run it in a thread."""

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

    async def search(
        self,
        query: str,
        *,
        collections: Sequence[str] | None,
        mode: SearchMode,
        depth: int,
        threshold: float | None,
        filters: Mapping[str, Any],
    ) -> tuple[ShardHits, ...]:
        """Each leg's best `depth` candidates of every collection asked, with what a caller needs
        to rank them globally. Collections this node does not hold are passed over.

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

    async def close(self) -> None:
        """Finish running writes."""
        ...


class JournalEntry(NamedTuple):
    """An action as the node's own disk remembers it."""

    request: ActionRequest
    caller: str
    digest: str
    state: ActionState
    accepted_at: int
    attempt: int
    outcome: HistoryRecord | None
    recorded: bool


class Journal(Protocol):
    """A node's durable memory of actions: what was accepted, how it ended, what history still
    has to hear.
    """

    async def find(self, action_id: str) -> JournalEntry | None:
        """The entry of an id, or None."""
        ...

    async def accept(
        self,
        request: ActionRequest,
        *,
        caller: str,
        digest: str,
        accepted_at: int,
        attempts: int = 0,
    ) -> None:
        """Remember an action before it runs; `attempts` of its id were refused before."""
        ...

    async def begin(self, action_id: str, attempt: int) -> None:
        """Note that attempt number `attempt` starts: from here on the entry is `running`, which
        is how the next life tells what may have had an effect.
        """
        ...

    async def settle(self, outcome: HistoryRecord) -> None:
        """Remember how it ended; history has not heard of it yet."""
        ...

    async def forget(self, action_id: str) -> None:
        """Free the id of an action that was refused before it ran (state `cancelled`); one that
        was accepted again meanwhile is left alone.
        """
        ...

    async def recorded(self, outcome: HistoryRecord) -> None:
        """History has this outcome; that of a later attempt is another one."""
        ...

    async def unrecorded(self) -> list[HistoryRecord]:
        """Outcomes that history has not acknowledged, oldest first."""
        ...

    async def unsettled(self) -> list[JournalEntry]:
        """Accepted without an outcome: what a crash left behind, oldest first."""
        ...

    async def prune(self, before: int) -> int:
        """Drop recorded outcomes older than `before` (unix ms); returns how many."""
        ...

    async def close(self) -> None:
        """Release the file."""
        ...


class Registry(Protocol):
    """Registered nodes and the searchable copy of the action history, in SQL."""

    async def nodes(self) -> list[NodeRecord]:
        """All, by slug."""
        ...

    async def register(
        self,
        record: NodeRecord,
        *,
        api_key_hash: str,
        scopes: Sequence[str] = ("search", "actions"),
    ) -> None:
        """Add a node, and what it may do.

        Raises:
            ConflictError: The slug is taken.
        """
        ...

    async def enrol(self, record: NodeRecord) -> bool:
        """Add the node if its slug is new; False if it was there."""
        ...

    async def update(self, slug: str, change: NodeUpdate) -> NodeRecord:
        """Change what an operator may change.

        Raises:
            NotFoundError
        """
        ...

    async def observe(self, *records: NodeRecord) -> None:
        """Save what nodes last told of themselves and how their probes went; one transaction."""
        ...

    async def remove(self, slug: str, *, incarnation: int) -> None:
        """Delete a node and remember which of its lives was removed.

        Raises:
            NotFoundError
        """
        ...

    async def removed(self) -> dict[str, int]:
        """Slug → newest incarnation that was removed: its heartbeats do not enrol it again."""
        ...

    async def next_epoch(self, *, at_least: int) -> int:
        """A number above all that this database gave before, and not below `at_least`."""
        ...

    async def history_cursor(self) -> int:
        """Sequence of the stream up to which history is indexed."""
        ...

    async def index_history(
        self, records: Sequence[tuple[int, HistoryRecord]], *, cursor: int
    ) -> None:
        """Save records and the cursor in one transaction; a record seen twice changes nothing."""
        ...

    async def history(self, query: HistoryQuery) -> tuple[list[HistoryRecord], int]:
        """Newest first, one record per action in its latest state; and how many match."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class AccessTokenRecord(NamedTuple):
    """An access token that was issued; times in unix ms."""

    id: str
    subject: str
    node: bool
    scopes: tuple[str, ...]
    family: str
    """Of the refresh tokens it belongs to; empty: none."""
    issued_at: int
    expires_at: int


class RefreshTokenRecord(NamedTuple):
    """A refresh token, by its hash. All that come from one first token are a family."""

    id: str
    digest: str
    subject: str
    node: bool
    scopes: tuple[str, ...]
    family: str
    issued_at: int
    expires_at: int


class JoinTokenRecord(NamedTuple):
    """A join token, by its hash."""

    id: str
    digest: str
    description: str
    scopes: tuple[str, ...]
    issued_at: int
    expires_at: int
    uses_left: int | None


class NodeAccess(NamedTuple):
    """A registered node, as far as it matters at the door."""

    slug: str
    status: Status
    scopes: tuple[str, ...]


class TokenStore(Protocol):
    """Issued tokens, in the same SQL as the registry; what expired is forgotten by `prune`."""

    async def add(
        self, access: AccessTokenRecord, refresh: RefreshTokenRecord | None = None
    ) -> bool:
        """Remember new tokens, both or neither; False, and neither, if their family was revoked."""
        ...

    async def rotate(self, digest: str, *, at: int) -> tuple[RefreshTokenRecord, bool] | None:
        """Take a refresh token that is neither expired nor revoked; exactly one of many takers at
        once gets True with it: it was unused, and is used now. None: no such token.
        """
        ...

    async def revoke_family(self, family: str, *, at: int) -> list[str]:
        """Revoke all of a family; ids of its access tokens that were still good."""
        ...

    async def revoke(self, id: str, *, at: int) -> tuple[int, list[str]] | None:  # noqa: A002
        """Revoke a token of any kind by its id, one of a family with all of that; how many were
        good, and the ids of the access tokens among them. None: no such token.
        """
        ...

    async def revoke_subject(self, subject: str, *, at: int) -> tuple[int, list[str]]:
        """Revoke every access and refresh token of a subject; how many were good, and the ids of
        the access tokens among them.
        """
        ...

    async def revoked(self, *, at: int) -> list[str]:
        """Ids of access tokens that are revoked and not expired."""
        ...

    async def list(self, *, subject: str, all: bool, at: int) -> list[TokenInfo]:  # noqa: A002
        """Issued tokens, newest first, the last 1,000 of each kind; without `all` those that are
        good. Join tokens have no subject.
        """
        ...

    async def add_join(self, token: JoinTokenRecord) -> None:
        """Remember a new join token."""
        ...

    async def use_join(self, digest: str, *, at: int) -> JoinTokenRecord | None:
        """Use a join token once, if it is good; None: it is not."""
        ...

    async def give_back_join(self, id: str) -> None:  # noqa: A002
        """The join it was used for was refused: undo the use."""
        ...

    async def node_of_key(self, digest: str) -> NodeAccess | None:
        """The node whose API key has this hash."""
        ...

    async def node(self, slug: str) -> NodeAccess | None:
        """What the registry has now, whichever master wrote it."""
        ...

    async def set_key(self, slug: str, digest: str) -> None:
        """Give a node another API key.

        Raises:
            NotFoundError
        """
        ...

    async def prune(self, *, before: int) -> int:
        """Forget what expired before; how many."""
        ...


class TokenSigner(Protocol):
    """Makes access tokens."""

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        """A token that says who its bearer is, from and until a unix time in seconds."""
        ...

    def public_keys(self) -> list[PublicKey]:
        """What verifies its tokens, newest first."""
        ...


class UnknownKeyError(UnauthorizedError):
    """The token names a key that is not trusted, or not yet."""


class TokenVerifier(Protocol):
    """Judges access tokens by what they say and who signed it."""

    def trust(self, keys: Sequence[PublicKey]) -> bool:
        """Believe these keys and no others; whether that is a change."""
        ...

    def verify(self, token: str, now: float) -> tuple[Identity, float]:
        """Who the bearer is, and until when (unix seconds, clock skew included).

        Args:
            token: What was shown; may be anything.
            now: Unix seconds.

        Raises:
            UnknownKeyError: Perhaps good, but none of the trusted keys.
            UnauthorizedError: Not good; the words are safe to show.
        """
        ...
