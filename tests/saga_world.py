"""Masters with sagas and a node, in virtual time: what is lost, late or dead is a test's choice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from fakes import MemoryBroker, MemoryTrail
from saga_fakes import MemorySagaLog, MemorySagaStore
from virtual_time import LoopClock

from mesh.config import MeshConfig, SagasConfig
from mesh.errors import NotFoundError, UnavailableError
from mesh.runtime.background import Background
from mesh.runtime.parts import Surroundings
from mesh.runtime.saga_runner import SagaRunner
from mesh.types import ActionState, Health
from mesh.wire import codec
from mesh.wire.messages import (
    ActionDescription,
    ActionInfo,
    ActionRequest,
    ActionResult,
    ErrorReply,
    NodeRecord,
    SagaAbort,
    SagaName,
    SagaRun,
    SagaShow,
    SagasQuery,
)

OFFERED = {"do": "undo", "undo": "", "other": ""}


def definition(count: int = 2, **fields) -> dict:
    steps = [{"name": f"s{n}", "action": "do", "params": {"n": n}} for n in range(count)]
    return {"id": "x", "steps": steps} | fields


class ShopNode:
    """Runs each id once. `script` says how a step ends: `ok`, `fail`, `cut`, `interrupt`; after a
    space how long it takes, in seconds.
    """

    def __init__(self, bus, slug: str = "shop"):
        self.slug = slug
        self.bus = bus
        self.script: dict[str, list[str]] = {}
        self.heard: list[ActionRequest] = []
        self.effects: list[str] = []
        self.known: dict[str, object] = {}
        self.running: dict[str, asyncio.Task] = {}
        self.refuses: dict[str, str] = {}
        """Kinds of errors, by ids that it refuses."""
        self.most = 0
        """Run at a time, at most."""
        self.lost = 0
        """So many answers do not arrive."""
        self.subscription = None
        self._tasks = set()

    async def open(self):
        self.subscription = await self.bus.subscribe(
            f"mesh.v1.act.{self.slug}.*.*", self._on_request
        )

    async def close(self):
        await self.subscription.unsubscribe()

    def _on_request(self, message):
        task = asyncio.create_task(self._serve(message))
        self._tasks.add(task)

    async def _serve(self, message):
        request = codec.decode(message.data, ActionRequest)
        self.heard.append(request)
        answer = await self._answer(request)
        if self.lost:
            self.lost -= 1
            return
        self.bus.publish(message.reply, answer)

    async def _answer(self, request):
        if kind := self.refuses.get(request.id):
            return codec.encode(ErrorReply(code=400, kind=kind, message="not here"))
        if request.cancel:
            return await self._cancel(request)
        known = self.known.get(request.id)
        attempt = 1
        if known is not None:
            again = request.retry and known.attempt == request.retry
            if not (again and isinstance(known, ErrorReply)):
                return encoded(known)
            attempt = known.attempt + 1
        if request.id not in self.running:
            task = asyncio.create_task(self._run(request, attempt))
            self.running[request.id] = task
            self.most = max(self.most, len(self.running))
            task.add_done_callback(lambda _: self.running.pop(request.id))
        await asyncio.wait({self.running[request.id]})
        return encoded(self.known[request.id])

    async def _run(self, request, attempt):
        ways = self.script.get(request.id.partition(".")[2], [])
        way, _, seconds = (ways.pop(0) if ways else "ok").partition(" ")
        try:
            await asyncio.sleep(float(seconds or 0))
        except asyncio.CancelledError:
            way = "cancelled"
        if way in {"ok", "interrupt"}:
            self.effects.append(request.id)
        kind = {
            "fail": "action_failed",
            "cut": "deadline_exceeded",
            "interrupt": "interrupted",
            "cancelled": "cancelled",
        }
        if way == "ok":
            self.known[request.id] = ActionResult(
                id=request.id,
                node=self.slug,
                action=request.action,
                state=ActionState.SUCCEEDED,
                result={"of": request.id},
                attempt=attempt,
            )
        else:
            self.known[request.id] = ErrorReply(
                code=400, kind=kind[way], message=way, attempt=attempt
            )

    async def _cancel(self, request):
        if task := self.running.get(request.id):
            task.cancel()
            await asyncio.wait({task})
            return encoded(self.known[request.id])
        missing = request.id not in self.known
        kind, code = ("not_found", 404) if missing else ("conflict", 409)
        return codec.encode(ErrorReply(code=code, kind=kind, message="no"))


def encoded(known) -> bytes:
    return codec.encode(known) if isinstance(known, ErrorReply) else codec.ok(known)


class World:
    """Everything the masters share."""

    def __init__(self, **settings):
        self.broker = MemoryBroker()
        self.clock = LoopClock()
        self.log = MemorySagaLog(self.broker.bus("js"))
        self.store = MemorySagaStore()
        self.config = MeshConfig(sagas=SagasConfig(**settings))
        self.audit = MemoryTrail()
        self.records: dict[str, NodeRecord] = {}
        self.history = {}
        self.historian_away = False
        self.masters: list[MasterStub] = []
        self.node = ShopNode(self.broker.bus("shop"))
        self.add("shop")

    def add(self, slug: str, **fields) -> None:
        known = {
            "id": f"id-{slug}",
            "slug": slug,
            "name": slug,
            "health": Health.HEALTHY,
            "incarnation": 1,
            "actions": [ActionInfo(name=name) for name in OFFERED],
        }
        self.records[slug] = NodeRecord(**known | fields)

    async def find(self, name: str) -> NodeRecord:
        if name not in self.records:
            raise NotFoundError(f"no node {name!r}")
        return self.records[name]

    async def known(self, action_id, node):
        if self.historian_away:
            raise UnavailableError("the database is away")
        return self.history.get((action_id, node))

    async def describe(self, node, action):
        return ActionDescription(name=action, compensate=OFFERED[action])

    async def check(self, node, action, params):
        pass

    async def master(self, *, leads: bool = True) -> MasterStub:
        made = MasterStub(self)
        self.masters.append(made)
        await made.runner.start()
        if leads:
            made.lead()
        return made

    async def __aenter__(self):
        await self.node.open()
        return self

    async def __aexit__(self, *_exc):
        for master in self.masters:
            await master.background.stop()


class MasterStub:
    """A master with nothing but sagas."""

    def __init__(self, world: World):
        self.leads = False
        self.background = Background(world.clock)
        membership = SimpleNamespace(
            view=SimpleNamespace(
                get=world.records.get, records=lambda: list(world.records.values())
            ),
            find=world.find,
            blind=False,
        )
        self.runner = SagaRunner(
            Surroundings(
                bus=world.broker.bus("master"),
                clock=world.clock,
                background=self.background,
                config=world.config,
                registry=None,
                membership=membership,
                audit=world.audit,
                leads=lambda: self.leads,
            ),
            world.log,
            world.store,
            offers=world,
            known=world.known,
        )

    def lead(self) -> None:
        self.leads = True
        self.runner.lead(1)

    def follow(self) -> None:
        self.leads = False
        self.runner.follow()

    async def ask(self, verb: str, request, caller: str = "ann"):
        _, serve = self.runner.verbs[verb]
        return await serve(request, caller)

    async def run(self, asked: dict | None = None, *, caller: str = "ann", **fields):
        body = {"saga": definition() if asked is None else asked} | fields
        return await self.ask("saga-run", codec.convert(body, SagaRun), caller)

    async def show(self, saga_id: str = "x", **fields):
        return await self.ask("saga-show", SagaShow(saga=saga_id, **fields))

    async def list(self, **fields):
        return await self.ask("sagas", SagasQuery(**fields))

    async def abort(self, saga_id: str = "x", **fields):
        return await self.ask("saga-abort", SagaAbort(saga=saga_id, **fields))

    async def resume(self, saga_id: str = "x", **fields):
        return await self.ask("saga-resume", SagaName(saga=saga_id, **fields))

    async def until(self, *states: str, saga_id: str = "x", within_s: float = 600):
        async with asyncio.timeout(within_s):
            while (saga := await self.show(saga_id)).state not in states:
                await asyncio.sleep(0.01)
        return saga
