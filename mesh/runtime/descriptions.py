"""Descriptions of what nodes offer. A node tells a digest of each of its actions with every
heartbeat; where one is new, the node is asked for all of them, and what it says is kept in SQL, so
that it is known while the node is away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping

import structlog

from mesh.core.backoff import Backoff, BackoffPolicy
from mesh.errors import InvalidError, MeshError
from mesh.ports import Check, CompileSchema, DescriptionStore, KnownAction
from mesh.runtime.parts import Surroundings
from mesh.wire import codec, subjects
from mesh.wire.messages import ActionDescription, ActionInfo, NodeActions, NodeRecord, Request

log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
_ASK_WITHIN_S = 3.0
_PATIENCE_S = 0.5
"""Of whoever needs a description that is being asked for."""
_MOST_ASKED_AT_ONCE = 16
_MOST_BYTES = 64 * 1024
"""Of a description; a longer one is not kept."""
_RETRY = BackoffPolicy(first_s=2.0, limit_s=300.0)


class Descriptions:
    """What one master knows of the actions of all nodes."""

    def __init__(
        self, around: Surroundings, store: DescriptionStore, compile_schema: CompileSchema
    ) -> None:
        self._bus = around.bus
        self._clock = around.clock
        self._background = around.background
        self._view = around.membership.view
        self._store = store
        self._compile = compile_schema
        self._shelves: dict[str, _Shelf] = {}
        self._asking: dict[str, asyncio.Event] = {}
        """Nodes that are being asked, and what is set when that has ended."""

    async def round(self) -> None:
        """Ask who tells of something new."""
        for record in self._view.records():
            self._ask(record)
        for gone in self._shelves.keys() - {record.slug for record in self._view}:
            del self._shelves[gone]
        await self._clock.sleep(_LOOK_EVERY_S)

    def get(self, node: str, info: ActionInfo) -> ActionDescription | None:
        """Of an action as its node tells of it today; None: not known."""
        shelf = self._shelves.get(node)
        known = shelf.get(info) if shelf is not None else None
        return known.description if known is not None else None

    def check(self, node: str, info: ActionInfo) -> Check | None:
        """Of its parameters; None: not known, or not to be checked here."""
        description = self.get(node, info)
        if description is None:
            return None
        checks = self._shelves[node].checks
        if info.name not in checks:
            try:
                checks[info.name] = self._compile(description.params)
            except InvalidError as error:
                log.info("mesh.catalogue.unchecked", node=node, action=info.name, why=str(error))
                checks[info.name] = None
        return checks[info.name]

    async def learn(self, *records: NodeRecord) -> None:
        """Wait a moment for what they tell of and is not known yet."""
        for record in records:
            self._ask(record)
        asking = [self._asking[record.slug] for record in records if record.slug in self._asking]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                for each in asking:
                    await each.wait()

    # -- asking ------------------------------------------------------------------------------------

    def _ask(self, record: NodeRecord) -> None:
        """One question at a time to a node, and none about what it would not tell a while ago."""
        slug = record.slug
        if slug in self._asking or len(self._asking) >= _MOST_ASKED_AT_ONCE:
            return
        shelf = self._shelves.get(slug)
        if shelf is None:
            shelf = self._shelves[slug] = _Shelf()
        if shelf.may_ask(record.actions, self._clock.monotonic()):
            self._asking[slug] = asyncio.Event()
            self._background.spawn("describe", self._refresh(record, shelf))

    async def _refresh(self, record: NodeRecord, shelf: _Shelf) -> None:
        slug = record.slug
        try:
            # Another master may have asked, or this one in another life.
            shelf.put(await self._store.described(slug))
            if shelf.missing(record.actions):
                shelf.put(_usable(record, await self._question(slug)))
                await self._store.describe(slug, shelf.actions)
        except MeshError as error:
            log.info("mesh.catalogue.not_described", node=slug, why=str(error)[:200])
        finally:
            shelf.asked(record.actions, self._clock.monotonic())
            self._asking.pop(slug).set()

    async def _question(self, slug: str) -> NodeActions:
        request = Request(deadline=self._clock.unix_ms() + round(_ASK_WITHIN_S * 1000))
        reply = await self._bus.request(
            subjects.rpc(slug, "describe", self._bus.identity),
            codec.encode(request),
            responder=slug,
            timeout_s=_ASK_WITHIN_S,
        )
        return codec.result_of(reply, NodeActions)


class _Shelf:
    """The actions of one node."""

    def __init__(self) -> None:
        self.actions: dict[str, KnownAction] = {}
        self.checks: dict[str, Check | None] = {}
        """Made when they are first needed; None: there can be none."""
        self._in_vain: frozenset[str] = frozenset()
        """Digests that were still missing after the last question."""
        self._ask_at = 0.0
        self._backoff = Backoff(_RETRY)

    def get(self, info: ActionInfo) -> KnownAction | None:
        known = self.actions.get(info.name)
        return known if known is not None and known.digest == info.digest else None

    def put(self, actions: Mapping[str, KnownAction]) -> None:
        self.actions = dict(actions)
        self.checks.clear()

    def missing(self, told: Iterable[ActionInfo]) -> frozenset[str]:
        """Digests that stand for nothing yet; a node of before there were any has none."""
        return frozenset(info.digest for info in told if info.digest and self.get(info) is None)

    def may_ask(self, told: Iterable[ActionInfo], now: float) -> bool:
        missing = self.missing(told)
        return bool(missing) and (bool(missing - self._in_vain) or now >= self._ask_at)

    def asked(self, told: Iterable[ActionInfo], now: float) -> None:
        missing = self.missing(told)
        if missing - self._in_vain or not missing:
            self._backoff = Backoff(_RETRY)
        self._in_vain = missing
        self._ask_at = now + self._backoff.died(0.0)


def _usable(record: NodeRecord, answer: NodeActions) -> dict[str, KnownAction]:
    """What it describes of what it tells of, in reasonable length."""
    digests = {info.name: info.digest for info in record.actions}
    return {
        description.name: KnownAction(digests[description.name], description)
        for description in answer.actions
        if digests.get(description.name) and len(codec.encode(description)) <= _MOST_BYTES
    }
