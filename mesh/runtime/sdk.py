"""What an application writes: a `Node` with typed actions and searches of its own.

```python
node = Node("crm")


class Refund(msgspec.Struct):
    order: str
    cents: int


@node.action("refund")
async def refund(params: Refund, ctx: ActionContext) -> dict[str, int]:
    return {"refunded": params.cents}
```

The annotations are the schema: checked before the action runs, published as JSON Schema.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import structlog

from mesh.errors import ConfigError
from mesh.wire.messages import Document, SearchRequest
from mesh.wire.subjects import free_name, token

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ActionContext:
    """What an action may know of the request it serves."""

    id: str
    """The idempotency key; equal on every attempt."""
    node: str
    caller: str
    """Who asked: the identity the broker vouches for."""
    attempt: int
    deadline: int
    """Unix ms after which nobody waits; 0: none."""
    log: structlog.typing.FilteringBoundLogger


@dataclass(frozen=True, slots=True)
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

    def schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the parameters."""
        return msgspec.json.schema(self.params)


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
        timeout_s: float | None = None,
        idempotent: bool = False,
        description: str = "",
    ) -> Callable[[F], F]:
        """Offer a function as the action `name`.

        The function takes the parameters (their annotation is the type: a msgspec Struct, a
        dataclass, a TypedDict or `dict`) and, if it wants one, an `ActionContext`. It may be a
        plain function, which runs in a thread. What it returns must be expressible as JSON.

        Args:
            name: One subject token.
            timeout_s: Cancelled after that many seconds; None: `routing.request_timeout_s`.
            idempotent: Running it twice equals running it once: it is run again if the node died
                in the middle. Otherwise such an action ends `interrupted`.
            description: For people; by default the docstring's first line.

        Raises:
            ConfigError: The name is taken or no token, or the annotation is no type for JSON.
        """
        free_name(name, "action")
        if name in self.actions:
            raise ConfigError(f"the action {name!r} is declared twice")

        def declare(function: F) -> F:
            self.actions[name] = ActionSpec(
                name=name,
                run=_as_coroutine(function),
                params=_params_type(name, function),
                description=description or _first_line(function),
                timeout_s=timeout_s,
                idempotent=idempotent,
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


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run an author's blocking function in a thread of its own: one that hangs starves nobody
    else's, and does not keep the node from ending. How many run is the bulkhead's business.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()
    work = functools.partial(contextvars.copy_context().run, function, *arguments)

    def settle(result: Any, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)

    def run() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except StopIteration as stop:  # no future can hold one
            error = RuntimeError(f"StopIteration: {stop}")
        except BaseException as raised:  # noqa: BLE001 (it is the waiting task's to handle)
            error = raised
        with contextlib.suppress(RuntimeError):  # the node has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=f"author-{function.__name__}", daemon=True).start()
    return await ended


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
        return await _in_thread(function, *arguments)

    return run


def _params_type(action: str, function: Callable[..., Any]) -> Any:
    names = list(inspect.signature(function).parameters)
    if not names:
        raise ConfigError(f"the action {action!r} must take its parameters as first argument")
    # The first argument alone: the others' names may exist for the type checker only.
    annotation = function.__annotations__.get(names[0], dict[str, Any])
    if isinstance(annotation, str):
        closure = inspect.getclosurevars(function).nonlocals
        scope = {**vars(typing), **getattr(function, "__globals__", {}), **closure}
        try:
            annotation = eval(annotation, scope)  # noqa: S307 (the author's own annotation)
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
