"""One node's executor, with a journal and a history in memory."""

from __future__ import annotations

import asyncio

from action_world import MemoryHistory, MemoryJournal

from mesh.errors import MeshError
from mesh.runtime.executor import Executor
from mesh.runtime.sdk import Node
from mesh.wire import codec
from mesh.wire.messages import ActionRequest, ActionResult, ErrorReply


class Clock:
    """Sleeping takes no time and is written down; `hold` lets nobody wake."""

    def __init__(self):
        self.now_ms = 1_000_000
        self.slept = []
        self.hold = False

    def monotonic(self):
        return self.now_ms / 1000

    def unix_ms(self):
        return self.now_ms

    async def sleep(self, seconds):
        self.slept.append(seconds)
        await (asyncio.Event().wait() if self.hold else asyncio.sleep(0))
        self.now_ms += round(seconds * 1000)


class World:
    def __init__(self, node: Node, before: World | None = None):
        self.clock = Clock()
        self.history = before.history if before else MemoryHistory()
        self.journal = before.journal if before else MemoryJournal()
        self.progress = []
        self.executor = Executor(
            "crm",
            node.actions,
            journal=self.journal,
            history=self.history,
            clock=self.clock,
            default_timeout_s=5,
            on_progress=self.progress.append,
            chance=lambda: 1.0,
        )

    def records(self, action_id="1"):
        return [
            (str(one.state), one.attempt, one.final)
            for one in self.history.stream.records
            if one.id == action_id
        ]

    def ask(self, action, *, caller="ops", **fields):
        request = ActionRequest(**{"id": "1", "action": action, "params": {}} | fields)
        return asyncio.ensure_future(self.executor.execute(request, caller))

    async def run(self, action, **fields):
        return read(await self.ask(action, **fields))

    async def cancel(self, action, **fields):
        return await self.run(action, cancel=True, **fields)


def read(reply):
    try:
        return codec.result_of(reply, ActionResult)
    except MeshError:
        return codec.decode(reply, ErrorReply)


async def turns(count=30):
    for _ in range(count):
        await asyncio.sleep(0)
