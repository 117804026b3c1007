"""What clients send and get. Requests are strict: an unknown field is refused by its name. Answers
that are the mesh's own messages are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agents.gateway import reports
from mesh import messages
from mesh.errors import InvalidError
from mesh.types import MergeStrategy, Require, SearchMode, Status


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies."""


_MOST_DEPTH = 32


def check_depth(field: str, value: Any) -> None:
    """Everybody behind us reads it too, some with less room on their stack.

    Raises:
        InvalidError
    """
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    message = f"must be nested at most {_MOST_DEPTH} deep"
    raise InvalidError(f"{field}: {message}", fields={field: [message]})


# -- search ----------------------------------------------------------------------------------------

_MOST_COLUMN_CHARS = 256
_MOST_FILTER_VALUES = 1000
_MOST_FILTER_CHARS = 4096


def _check_filter(column: str, given: messages.Filter) -> None:
    """What every node would refuse is not sent to all of them first.

    Raises:
        InvalidError
    """
    values: Iterable[Any] = [given]
    if isinstance(given, list):
        values = given
    elif isinstance(given, messages.Range):
        values = msgspec.structs.astuple(given)
    if len(column) > _MOST_COLUMN_CHARS:
        message = f"a column's name has at most {_MOST_COLUMN_CHARS} characters"
    elif isinstance(given, list) and len(given) > _MOST_FILTER_VALUES:
        message = f"must have at most {_MOST_FILTER_VALUES} values"
    elif any(isinstance(value, str) and len(value) > _MOST_FILTER_CHARS for value in values):
        message = f"must be at most {_MOST_FILTER_CHARS} characters"
    else:
        return
    field = f"options.filters.{column[:200]}"
    raise InvalidError(f"{field}: {message}", fields={field: [message]})


class SearchOptions(Strict, frozen=True, kw_only=True):
    """Every option has a default; those that are not given are the gateway's settings."""

    collections: Annotated[
        Annotated[list[messages.CollectionName], Meta(min_length=1, max_length=256)] | None,
        Meta(description="Names; left out: all there are."),
    ] = None
    threshold: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="Least cosine of the vector leg; left out: the embedder's own."),
    ] = None
    filters: Annotated[
        dict[str, messages.Filter],
        Meta(
            max_length=32,
            description="Column → value, list of values, or range (`gt`, `gte`, `lt`, `lte`).",
        ),
    ] = {}
    mode: SearchMode = "hybrid"
    nodes: Annotated[
        Annotated[list[messages.Token], Meta(min_length=1, max_length=1024)] | None,
        Meta(description="Slugs; left out: all."),
    ] = None
    strategy: Annotated[
        MergeStrategy | UnsetType,
        Meta(description="`score` ranks globally, `round_robin` takes the nodes in turn."),
    ] = UNSET
    require: Annotated[Require, Meta(description="How many shards must answer; else 503.")] = "any"
    timeout_ms: Annotated[
        Annotated[int, Meta(ge=1, le=60_000)] | UnsetType,
        Meta(description="The answer goes out by then, with what came."),
    ] = UNSET
    deduplicate: Annotated[
        bool | UnsetType, Meta(description="Keep one of equal documents of a collection.")
    ] = UNSET
    explain: Annotated[bool, Meta(description="Give the parts of each score.")] = False
    cache: Annotated[
        bool,
        Meta(description="False: the answer is neither taken from the gateway's cache nor kept."),
    ] = True

    def __post_init__(self) -> None:
        for column, given in self.filters.items():
            _check_filter(column, given)


class Search(Strict, frozen=True, kw_only=True):
    """A search of all nodes as if they were one index."""

    query: Annotated[
        str, Meta(min_length=1, max_length=4096, description="Words, 1 to 4096 characters.")
    ]
    limit: Annotated[int, Meta(ge=1, le=100, description="How many results at most.")] = 10
    options: SearchOptions = SearchOptions()


# -- joining, tokens, own state --------------------------------------------------------------------

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Url = Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s/]\S*(?!\n)$")]
_Type = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}(?!\n)$")]
_Weight = Annotated[float, Meta(gt=0, le=1000)]
_Capabilities = Annotated[list[messages.Token], Meta(max_length=32)]
_Words = Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=64)]
_Text = Annotated[str, Meta(max_length=2000)]
_MOST_METADATA_BYTES = 16_384
_METADATA = Meta(description="Of your own; at most 16 KiB.")


def _check_metadata(metadata: dict[str, Any] | None) -> None:
    """Every route table and list of nodes carries it."""
    if metadata:
        check_depth("metadata", metadata)
    if metadata and len(msgspec.json.encode(metadata)) > _MOST_METADATA_BYTES:
        message = f"must be at most {_MOST_METADATA_BYTES} bytes of JSON"
        raise InvalidError(f"metadata: {message}", fields={"metadata": [message]})


class NewNode(Strict, frozen=True, kw_only=True):
    """A node to register. Its slug, by which all else names it, is made from `name`."""

    name: _Name
    url: _Url | None = None
    type: _Type = "child"
    capabilities: _Capabilities = msgspec.field(default_factory=lambda: ["search", "actions"])
    weight: _Weight = 1.0
    description: _Text = ""
    domains: _Words = []
    keywords: _Words = []
    metadata: Annotated[dict[str, Any], _METADATA] = {}

    def __post_init__(self) -> None:
        _check_metadata(self.metadata)


class Join(NewNode, frozen=True, kw_only=True):
    """A node that registers itself."""

    version: Annotated[str, Meta(max_length=64, description="Of its software.")] = ""


class NodeChanges(Strict, frozen=True, kw_only=True):
    """What is given changes; the rest stays as it is."""

    name: _Name | None = None
    url: _Url | None = None
    status: Status | None = None
    type: _Type | None = None
    weight: _Weight | None = None
    capabilities: _Capabilities | None = None
    description: _Text | None = None
    domains: _Words | None = None
    keywords: _Words | None = None
    metadata: Annotated[dict[str, Any] | None, _METADATA] = None

    def __post_init__(self) -> None:
        _check_metadata(self.metadata)


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """A node's new tokens, shown this once."""

    access_token: str
    refresh_token: str | None
    token_type: str
    expires_in: Annotated[int, Meta(description="Seconds.")]
    node: str


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """The new node; its API key and tokens are shown this once."""

    success: bool
    node: reports.NodeIdentity
    auth: Tokens
    api_key: str


class Refresh(Strict, frozen=True, kw_only=True):
    """A refresh token: good for one use."""

    refresh_token: Annotated[str, Meta(min_length=1, max_length=1024)]


class Refreshed(msgspec.Struct, frozen=True, kw_only=True):
    """New tokens; the refresh token that was sent is used up."""

    access_token: str
    refresh_token: str | None
    token_type: str
    expires_in: Annotated[int, Meta(description="Seconds.")]
    refresh_expires_in: Annotated[int | None, Meta(description="Seconds.")]


class BreakerReset(Strict, frozen=True, kw_only=True):
    """Whose breakers to close."""

    node: Annotated[messages.Token, Meta(description="Slug or id.")]
    verb: Annotated[
        messages.Verb | None,
        Meta(description="`search`, `fetch`, `ping` or `act.<action>`; left out: all."),
    ] = None
