"""Masters that deliver a queue, and nodes that die, all in memory: a node keeps what a node must
keep of the actions it has seen, and nothing else.
"""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

from fakes import MemoryBroker, MemoryHistory
from queue_fakes import MemoryQueue
from virtual_time import LoopClock

from mesh.config import ActionsConfig, MeshConfig
from mesh.core.action_states import join
from mesh.errors import (
    CancelledActionError,
    ConflictError,
    DeadlineExceededError,
    InterruptedActionError,
    MeshError,
    NotFoundError,
)
from mesh.ports import Place
from mesh.runtime.action_records import fingerprint_of, may_try_again
from mesh.runtime.background import Background
from mesh.runtime.parts import Surroundings
from mesh.runtime.queue_dispatcher import QueueDispatcher
from mesh.types import ActionState, Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionRequest,
    ActionResult,
    ErrorReply,
    HistoryPage,
    HistoryRecord,
    NodeRecord,
    QueueItem,
)


class MemoryIndex:
    """`mesh.ports.ActionIndex`, as far as the queue reads it."""

    def __init__(self, history: MemoryHistory) -> None:
        self._history = history

    async def place(self) -> Place:
        return Place(0, len(self._history.stored))

    async def page(self, query: Any) -> HistoryPage:
        rows: dict[tuple[str, str], HistoryRecord] = {}
        for record in self._history.stored:
            if record.id == query.action_id and query.node in ("", record.node):
                key = record.id, record.node
                rows[key] = join(rows.get(key), record)
        found = list(rows.values())
        return HistoryPage(actions=found[: query.limit], total=len(found))


class Node:
    """Runs each id once; knows after a crash what it had begun."""

    def __init__(self, world: World, slug: str) -> None:
        self.world = world
        self.slug = slug
        self.bus: Any = None
        self.incarnation = 0
        self.takes_s = 0.01
        self.idempotent = True
        self.script: dict[str, list[MeshError | None]] = {}
        """By id: what comes of its attempts, one after another; then they succeed."""
        self.answer: MeshError | None = None
        """Instead of doing anything."""
        self.effects: list[str] = []
        self.asked: list[ActionRequest] = []
        self.most = 0
        self.journal: dict[str, SimpleNamespace] = {}
        self._tasks: dict[str, asyncio.Task[bytes]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.record = NodeRecord(id=slug, slug=slug, name=slug, actions=[])

    async def start(self, *, known: bool = True) -> None:
        self.bus = self.world.broker.bus(self.slug)
        self.incarnation += 1
        for entry in self.journal.values():
            if entry.outcome is None and not self.idempotent:
                await self._settle(entry, ActionState.INTERRUPTED, InterruptedActionError())
            elif entry.outcome is None:
                entry.attempt += 1
        await self.bus.subscribe(f"{subjects.PREFIX}.act.{self.slug}.*.*", self._on_action)
        if known:
            self.health(Health.HEALTHY)

    def health(self, health: Health, **fields: Any) -> None:
        self.world.set(self.slug, health=health, incarnation=self.incarnation, **fields)

    async def kill(self) -> None:
        if self.bus is None:
            return
        bus, self.bus = self.bus, None
        tasks = [*self._tasks.values(), *self._answering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._answering.clear()
        await bus.close()
        self.health(Health.UNREACHABLE)

    def _on_action(self, message: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, message: Any) -> None:
        request = codec.decode(message.data, ActionRequest)
        self.asked.append(request)
        try:
            if self.answer is not None:
                raise self.answer
            reply = await self._done(request)
        except MeshError as error:
            reply = codec.encode(codec.error_reply(error))
        if self.bus is not None and self.bus.connected:
            self.bus.publish(message.reply, reply)

    async def _done(self, request: ActionRequest) -> bytes:
        known = self.journal.get(request.id)
        if request.cancel:
            if known is None or may_try_again(known, request):
                known = self._known(request)
                known.digest = ""  # masters may not know the parameters
                self.journal[request.id] = known
                await self._settle(known, ActionState.CANCELLED, CancelledActionError("first"))
                return _reply(known.outcome)
            if known.outcome is not None:
                raise ConflictError(f"ended: {known.outcome.state}")
            known.cancelled = True
        task = self._tasks.get(request.id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._run(request, known))
            self._tasks[request.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(request.id, None))
            self.most = max(self.most, len(self._tasks))
        return await asyncio.shield(task)

    async def _run(self, request: ActionRequest, known: Any) -> bytes:
        digest = fingerprint_of(request).digest
        if known is None:
            if request.deadline and self.world.clock.unix_ms() >= request.deadline:
                raise DeadlineExceededError("too late; nothing ran")
            known = self._known(request)
            await self._append(known, ActionState.ACCEPTED)
            self.journal[request.id] = known
        elif known.digest not in ("", digest):
            raise ConflictError("the id was used for other parameters")
        elif known.outcome is not None:
            if not may_try_again(known, request):
                return _reply(known.outcome)
            known.attempt, known.outcome, known.request = request.retry + 1, None, request
            known.state = ActionState.ACCEPTED
            await self._append(known, ActionState.ACCEPTED)
        await asyncio.sleep(self.takes_s / 2)
        if known.cancelled:
            return _reply(await self._settle(known, ActionState.CANCELLED, CancelledActionError()))
        self.effects.append(request.id)
        await asyncio.sleep(self.takes_s / 2)
        comes = self.script.get(request.id)
        error = comes.pop(0) if comes else None
        state = ActionState.SUCCEEDED if error is None else ActionState.FAILED
        return _reply(await self._settle(known, state, error))

    def _known(self, request: ActionRequest) -> SimpleNamespace:
        return SimpleNamespace(
            request=request,
            digest=fingerprint_of(request).digest,
            attempt=request.retry + 1,
            state=ActionState.ACCEPTED,
            outcome=None,
            cancelled=False,
        )

    async def _settle(
        self, entry: Any, state: ActionState, error: MeshError | None
    ) -> HistoryRecord:
        while True:
            try:
                outcome = await self._append(entry, state, error)
            except MeshError:
                await asyncio.sleep(0.1)
            else:
                entry.outcome, entry.state = outcome, state
                return outcome

    async def _append(
        self, entry: Any, state: ActionState, error: MeshError | None = None
    ) -> HistoryRecord:
        record = HistoryRecord(
            id=entry.request.id,
            node=self.slug,
            action=entry.request.action,
            state=state,
            caller=entry.request.on_behalf,
            at=self.world.clock.unix_ms(),
            attempt=entry.attempt,
            params=entry.request.params,
            digest=entry.digest,
            error=codec.error_reply(error) if error is not None else None,
            mode=entry.request.mode,
        )
        await self.world.history.append(record, timeout_s=1)
        return record


def _reply(outcome: HistoryRecord) -> bytes:
    if outcome.error is None:
        fields = {"id": outcome.id, "node": outcome.node, "action": outcome.action}
        return codec.ok(ActionResult(**fields, state=outcome.state, attempt=outcome.attempt))
    error = {name: getattr(outcome.error, name) for name in ErrorReply.__struct_fields__}
    return codec.encode(ErrorReply(**(error | {"attempt": outcome.attempt})))


class World:
    """Masters, nodes, and what they share."""

    def __init__(self, *, masters: int = 1, **actions: Any) -> None:
        self.clock = LoopClock()
        self.broker = MemoryBroker()
        self.history = MemoryHistory()
        self.index = MemoryIndex(self.history)
        self.queue = MemoryQueue(now_ms=self.clock.unix_ms)
        self.ops = self.broker.bus("ops")
        self.hints = True
        self.queue.heard = self._tell
        self.records: dict[str, NodeRecord] = {}
        self.nodes: dict[str, Node] = {}
        self.config = MeshConfig(actions=ActionsConfig(**actions))
        self.masters = [self._master() for _ in range(masters)]
        self.leader: QueueDispatcher | None = None
        self.epoch = 0
        self.backgrounds: list[Background]

    def _master(self) -> QueueDispatcher:
        background = Background(self.clock)
        view = SimpleNamespace(get=self.records.get)
        around = Surroundings(
            bus=self.broker.bus("master"),
            clock=self.clock,
            background=background,
            config=self.config,
            registry=None,
            membership=SimpleNamespace(view=view, find=self._find),
            audit=None,
            leads=lambda: True,
        )
        made = QueueDispatcher(around, self.queue, self.index, self.history)
        made.background = background
        return made

    async def _find(self, name: str) -> NodeRecord:
        if name not in self.records:
            raise NotFoundError(f"no node {name!r}")
        return self.records[name]

    def _tell(self, node: str) -> None:
        if self.hints and self.ops.connected and re.fullmatch("[a-z0-9-]+", node):
            self.ops.publish(subjects.queue(node, "pay", "ops"), b"")

    async def start(self, *slugs: str) -> World:
        for master in self.masters:
            await master.start()
        self.lead(self.masters[0])
        for slug in slugs:
            node = self.nodes[slug] = Node(self, slug)
            self.records[slug] = node.record
            await node.start()
        return self

    async def stop(self) -> None:
        for master in self.masters:
            await master.stop()
            await master.background.stop()
        for node in self.nodes.values():
            await node.kill()
        assert not sum(master.background.failures for master in self.masters)
        assert self.broker.handler_failures == 0

    def lead(self, master: QueueDispatcher, *, alone: bool = True) -> None:
        if self.leader is not None and alone:
            self.leader.follow()
        self.epoch += 1
        self.leader = master
        master.lead(self.epoch)

    def set(self, slug: str, **fields: Any) -> None:
        if slug in self.records:
            known = {
                name: getattr(self.records[slug], name) for name in NodeRecord.__struct_fields__
            }
            self.records[slug] = NodeRecord(**(known | {"status": Status.ACTIVE} | fields))

    async def put(
        self, action_id: str, node: str = "crm", caller: str = "ops", **fields: Any
    ) -> int:
        item = QueueItem(id=action_id, action="pay", **({"params": {"n": 1}} | fields))
        return await self.queue.put(node, caller, item, timeout_s=1)

    async def ask(self, verb: str, asked: Any, master: int = 0, caller: str = "ops") -> Any:
        return await self.masters[master].verbs[verb][1](asked, caller)

    async def until(self, true: Any, within_s: float = 60.0) -> float:
        """Virtual seconds it took."""
        began = self.clock.monotonic()
        async with asyncio.timeout(within_s):
            while not true():
                await asyncio.sleep(0.01)
        return self.clock.monotonic() - began

    async def empty(self, within_s: float = 60.0) -> float:
        return await self.until(lambda: not self.queue.stored, within_s)

    def states(self, action_id: str, node: str = "crm") -> list[str]:
        return [
            f"{record.state.value}{record.attempt}"
            for record in self.history.stored
            if (record.id, record.node) == (action_id, node)
        ]

    async def row(self, action_id: str, node: str = "crm") -> HistoryRecord:
        query = SimpleNamespace(action_id=action_id, node=node, limit=1)
        return (await self.index.page(query)).actions[0]
