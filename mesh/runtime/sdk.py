"""What an application writes: a `Node` with typed actions and searches of its own.

```python
node = Node("crm")


class Refund(msgspec.Struct):
    order: str
    cents: int


@node.action("refund", compensate="unrefund", timeout_s=10)
async def refund(params: Refund, ctx: ActionContext) -> Receipt:
    ctx.progress(0.5, "asking the bank")
    ...
```

The annotations are the schema: checked before the action runs, published as JSON Schema.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from mesh.errors import ConfigError
from mesh.runtime.action_context import ActionContext
from mesh.runtime.own_threads import in_own_thread
from mesh.wire.messages import ActionDescription, Document, SearchRequest
from mesh.wire.subjects import free_name, token

_DIGEST_CHARS = 32

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ActionSpec:
    """An action that a node offers."""

    name: str
    run: Callable[[Any, ActionContext], Awaitable[Any]]
    params: Any = dict[str, Any]
    """The type parameters are converted to before `run` sees them."""
    description: str = ""
    timeout_s: float | None = None
    idempotent: bool = False
    """Running it again after a crash does no harm."""
    builtin: bool = False
    compensate: str = ""
    """The action that undoes it."""
    concurrency: int = 0
    """How many run at once on a node; 0: no limit of its own."""
    retries: int = 0
    """Further attempts after one that failed."""
    backoff_s: float = 0.5
    """Before the second attempt; doubles with each further one."""
    result: Any = None
    """The type of what it returns; None: not declared."""
    threaded: bool = False
    """It runs in a thread, so it can be asked to stop, not made to."""

    def schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the parameters."""
        return msgspec.json.schema(self.params)

    def describe(self) -> ActionDescription:
        """All that others may know of it."""
        return self._described

    @property
    def digest(self) -> str:
        """Of `describe()`: equal on nodes that offer just the same."""
        return self._digest

    @functools.cached_property
    def _described(self) -> ActionDescription:
        return ActionDescription(
            name=self.name,
            description=self.description,
            idempotent=self.idempotent,
            builtin=self.builtin,
            compensate=self.compensate,
            timeout_s=self.timeout_s,
            retries=self.retries,
            concurrency=self.concurrency,
            params=self.schema(),
            result=None if self.result is None else msgspec.json.schema(self.result),
        )

    @functools.cached_property
    def _digest(self) -> str:
        encoded = msgspec.json.encode(self._described, order="deterministic")
        return hashlib.sha256(encoded).hexdigest()[:_DIGEST_CHARS]


SearchFunction = Callable[[SearchRequest], Awaitable[Sequence[Document]]]


@dataclass(slots=True)
class Node:
    """A node-to-be: a name and what it can do. `mesh-agent run --app module:node` runs it."""

    name: str
    actions: dict[str, ActionSpec] = field(default_factory=dict)
    searches: dict[str, SearchFunction] = field(default_factory=dict)

    def action(
        self,
        name: str,
        *,
        compensate: str = "",
        timeout_s: float | None = None,
        concurrency: int = 0,
        idempotent: bool = False,
        retries: int = 0,
        backoff_s: float = 0.5,
        description: str = "",
    ) -> Callable[[F], F]:
        """Offer a function as the action `name`.

        The function takes the parameters (their annotation is the type: a msgspec Struct, a
        dataclass, a TypedDict or `dict`) and, if it wants one, an `ActionContext`. It may be a
        plain function, which runs in a thread. What it returns must be expressible as JSON.

        Args:
            name: One subject token.
            compensate: The action of this node that undoes this one, for sagas.
            timeout_s: An attempt is cancelled after that many seconds; None:
                `routing.request_timeout_s`. A plain function cannot be cancelled: until it returns,
                it keeps its place of `concurrency`, and no further attempt begins.
            concurrency: How many run at once here; further ones wait, accepted, 256 at most. They
                take no places of the node's, only these. 0: as many as the node takes.
            idempotent: Running it twice equals running it once: it is run again if the node died
                in the middle. Otherwise such an action ends `interrupted`.
            retries: Further attempts after one that failed or took too long, unless it raised a
                `MeshError` below 500: that is how an author says that trying again is no use.
            backoff_s: Before the second attempt; doubles with each further one.
            description: For people; by default the docstring's first line.

        Raises:
            ConfigError: The name is taken or no token, the annotation is no type for JSON, a figure
                cannot be, or there are `retries` of what is not `idempotent`.
        """
        free_name(name, "action")
        if name in self.actions:
            raise ConfigError(f"the action {name!r} is declared twice")
        if compensate:
            token(compensate, "compensate")
        _check_figures(
            name, timeout_s=timeout_s, backoff_s=backoff_s, concurrency=concurrency, retries=retries
        )
        if retries and not idempotent:
            raise ConfigError(
                f"the action {name!r} has retries, so it has to be idempotent: an attempt that "
                "failed may have had its effect"
            )

        def declare(function: F) -> F:
            self.actions[name] = ActionSpec(
                name=name,
                run=_as_coroutine(function),
                params=_params_type(name, function),
                description=description or _first_line(function),
                timeout_s=timeout_s,
                idempotent=idempotent,
                compensate=compensate,
                concurrency=concurrency,
                retries=retries,
                backoff_s=backoff_s,
                result=_result_type(function),
                threaded=not inspect.iscoroutinefunction(function),
            )
            return function

        return declare

    def search(self, collection: str) -> Callable[[F], F]:
        """Offer a function as the collection `collection`.

        The function takes the `SearchRequest` and returns the documents it would show; the mesh
        ranks them together with everybody else's, so it should return too many rather than too
        few (`max(30, limit)` is what other shards give).

        Raises:
            ConfigError: The collection is declared twice.
        """
        if collection in self.searches:
            raise ConfigError(f"the search {collection!r} is declared twice")
        token(collection.replace(".", "_"), "collection")

        def declare(function: F) -> F:
            self.searches[collection] = _as_search(function)
            return function

        return declare


def _in_thread(function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    """Run an author's blocking function; how many run is the bulkhead's business."""
    return in_own_thread(f"author-{function.__name__}", function, *arguments)


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _as_search(function: Callable[..., Any]) -> SearchFunction:
    async def search(request: SearchRequest) -> Sequence[Document]:
        if inspect.iscoroutinefunction(function):
            found = await function(request)
        else:
            found = await _in_thread(function, request)
        return [
            document if isinstance(document, Document) else msgspec.convert(document, Document)
            for document in found
        ]

    return search


def _as_coroutine(
    function: Callable[..., Any],
) -> Callable[[Any, ActionContext], Awaitable[Any]]:
    takes_context = len(inspect.signature(function).parameters) > 1

    @functools.wraps(function)
    async def run(params: Any, context: ActionContext) -> Any:
        arguments = (params, context) if takes_context else (params,)
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        work = _in_thread(function, *arguments)
        context.occupies(work)
        return await asyncio.shield(work)  # whoever gives up on it should still see it end

    return run


def _params_type(action: str, function: Callable[..., Any]) -> Any:
    names = list(inspect.signature(function).parameters)
    if not names:
        raise ConfigError(f"the action {action!r} must take its parameters as first argument")
    # The first argument alone: the others' names may exist for the type checker only.
    annotation = function.__annotations__.get(names[0], dict[str, Any])
    try:
        annotation = _resolved(annotation, function)
    except NameError as error:
        raise ConfigError(
            f"the type of {names[0]!r} of action {action!r} is not known where the module "
            f"is run: {error}; define it at the module's top level"
        ) from error
    try:
        msgspec.json.schema(annotation)
    except TypeError as error:
        raise ConfigError(
            f"the type of {names[0]!r} of action {action!r} cannot come from JSON: {error}"
        ) from error
    return annotation


def _result_type(function: Callable[..., Any]) -> Any:
    """What the annotation says, if it says something that JSON Schema knows."""
    annotation = function.__annotations__.get("return")
    try:
        annotation = _resolved(annotation, function)
        if annotation is not None and annotation is not Any:
            msgspec.json.schema(annotation)
            return annotation
    except (NameError, TypeError, AttributeError, SyntaxError):
        pass  # a name for the type checker only, or a type that is no schema: nothing is promised
    return None


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """The type that an annotation stands for.

    Raises:
        NameError: It holds a name that is not known when the module is run.
    """
    if not isinstance(annotation, str):
        return annotation
    closure = inspect.getclosurevars(function).nonlocals
    scope = {**vars(typing), **getattr(function, "__globals__", {}), **closure}
    return eval(annotation, scope)  # noqa: S307 (the author's own annotation)


def _check_figures(
    action: str, *, timeout_s: float | None, backoff_s: float, concurrency: int, retries: int
) -> None:
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise ConfigError(f"timeout_s of action {action!r} must be more than 0 seconds")
    if not 0 < backoff_s < float("inf"):
        raise ConfigError(f"backoff_s of action {action!r} must be more than 0 seconds")
    for name, figure in (("concurrency", concurrency), ("retries", retries)):
        if figure < 0:
            raise ConfigError(f"{name} of action {action!r} must not be negative")
