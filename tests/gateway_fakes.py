# ruff: noqa: A002 (arguments are named as in MeshClient)
"""Stand-ins for the mesh behind the gateway, and a client that speaks ASGI to it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec

from agents.gateway.app import create_app
from agents.gateway.edge import Edge
from mesh import bootstrap, messages
from mesh.config import MeshConfig
from mesh.core.route_table import RouteTable
from mesh.errors import ConflictError, NotFoundError, UnauthorizedError
from mesh.types import ActionState, Health

PREFIX = "/api/ai-engine"

BEARERS = {
    "all": messages.Identity(subject="ann", scopes=["search", "actions", "admin"]),
    "search": messages.Identity(subject="sue", scopes=["search"]),
    "notes": messages.Identity(subject="nan", scopes=["search:notes", "search:gone"]),
    "gone": messages.Identity(subject="gus", scopes=["search:gone"]),
    "refund": messages.Identity(subject="ray", scopes=["actions:refund"]),
    "crm": messages.Identity(subject="crm", scopes=["search", "actions"], node=True),
}

CRM = messages.NodeRecord(
    id="0199", slug="crm", name="CRM", health=Health.HEALTHY, capabilities=["search"], failures=2
)

RESULT = messages.SearchResult(
    results=[],
    count=0,
    total_results=0,
    duration_ms=1.5,
    nodes_searched=1,
    node_breakdown={},
    type_breakdown={},
    merge_strategy="score",
    avg_score=0.0,
    partial=False,
    shards=messages.Shards(total=1, ok=1, failed=0, skipped=0, timed_out=0, details=[]),
)


class FakeGatekeeper:
    def __init__(self) -> None:
        self.ready = True
        self.asked = 0
        self.public_keys = [messages.PublicKey(kid="k1", x="x" * 43)]

    def known(self, bearer: str) -> messages.Identity | None:
        return BEARERS.get(bearer)

    async def identify(self, bearer: str) -> messages.Identity:
        self.asked += 1
        raise UnauthorizedError("nobody")


class FakeAccess:
    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls
        self.error: Exception | None = None

    async def join(self, join_token, node, *, version=""):
        self.calls.append(("join", join_token, node, version))
        if join_token != "join-me":
            raise UnauthorizedError("unknown join token")
        return messages.NodeJoined(node=CRM, api_key="nmk_x", grant=grant("crm"))

    async def refresh(self, refresh_token):
        if refresh_token != "fresh":
            raise UnauthorizedError("no")
        return grant("crm")

    async def rotate_key(self, node, *, overlap_s=0, on_behalf):
        self.calls.append(("rotate_key", node, overlap_s, on_behalf))
        return messages.NodeKey(node=CRM, api_key="nmk_y")


def grant(subject: str) -> messages.Grant:
    return messages.Grant(
        id="t1",
        subject=subject,
        scopes=["search"],
        access_token="a.b.c",
        expires_in=3600,
        refresh_token="next",
        refresh_expires_in=7200,
        node=subject,
    )


class FakeMesh:
    """Answers at once, or raises `error`; `calls` tells what was asked."""

    def __init__(self) -> None:
        self.connected = True
        self.calls: list[Any] = []
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        """Searches wait for it."""
        self.cancelled = 0
        self.access = FakeAccess(self.calls)
        self.records: dict[str, messages.HistoryRecord] = {}
        self.offered: list[messages.OfferedAction] = []
        node = messages.RouteNode(slug="crm", health=Health.HEALTHY, capabilities=["search", "rag"])
        away = messages.RouteNode(slug="wiki", capabilities=["actions"])
        held = [messages.CollectionInfo(name=name, shard="wiki") for name in ("notes", "secrets")]
        away = msgspec.structs.replace(away, collections=held)
        self.routes = RouteTable(epoch=1, version=1, nodes=[node, away])
        self.origins: list[str] = []
        """Where each call came from."""

    def _asked(self, *call: Any) -> None:
        self.calls.append(call)
        self.origins.append(bootstrap.request_origin.get())
        if self.error is not None:
            raise self.error

    async def submit(self, request, *, on_behalf=""):
        self._asked("submit", request, on_behalf)
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return msgspec.structs.replace(RESULT, id=request.id or "made-by-the-mesh")

    async def submit_rag(self, request, *, on_behalf=""):
        found = await self.submit(request, on_behalf=on_behalf)
        return messages.RagResult(
            passages=[],
            count=0,
            prompt="",
            tokens=0,
            budget=request.budget,
            truncated=False,
            documents=found.count,
            duration_ms=found.duration_ms,
            nodes_searched=found.nodes_searched,
            partial=found.partial,
            shards=found.shards,
            id=found.id,
        )

    async def run_action(self, action, params, *, node, id, timeout_s, on_behalf):
        self._asked("run_action", action, params, node, id, timeout_s, on_behalf)
        return messages.ActionResult(
            id=id or "1", node=node or "crm", action=action, state=ActionState.SUCCEEDED, result=7
        )

    async def queue_action(self, action, params, *, node, id, expires_s, on_behalf):
        self._asked("queue_action", action, params, node, id, expires_s, on_behalf)
        return messages.Queued(id=id or "1", node=node or "crm", action=action, expires=9)

    async def fan_out(self, action, params, *, nodes, all, collection, **options):
        self._asked("fan_out", action, nodes, all, collection, options)
        state = ActionState.QUEUED if options["mode"] == "queue" else ActionState.SUCCEEDED
        item = messages.FanOutItem(node="crm", success=True, id="1.crm", state=state, result=7)
        return messages.FanOutResult(
            id="1",
            action=action,
            success=True,
            success_count=1,
            failure_count=0,
            results={"crm": item},
        )

    async def history(self, **query):
        self._asked("history", query)
        offset, limit = query.get("offset", 0), query.get("limit", 50)
        found = list(self.records.values())
        return messages.HistoryPage(actions=found[offset : offset + limit], total=len(found))

    async def action(self, id):
        self._asked("action", id)
        found = [
            messages.ActionStory(action=record, attempts=[record])
            for record in self.records.values()
            if record.id in {id, f"{id}.{record.node}"}
        ]
        if not found:
            raise NotFoundError(f"no action has the id {id!r}")
        return messages.ActionStories(id=id, stories=found)

    async def cancel_action(self, id, *, node, on_behalf):
        self._asked("cancel", id, node, on_behalf)
        record = self.records[id]
        if record.state is not ActionState.RUNNING:
            raise ConflictError(f"it has {record.state.value}")
        return msgspec.structs.replace(record, state=ActionState.CANCELLED)

    async def retry_action(self, id, *, node, on_behalf):
        self._asked("retry", id, node, on_behalf)
        record = self.records[id]
        if record.state is ActionState.SUCCEEDED:
            raise ConflictError("it has succeeded")
        return messages.Queued(id=id, node=record.node, action=record.action, expires=9)

    async def queue(self, node="", limit=50, offset=0):
        self._asked("queue", node, limit, offset)
        return messages.QueueList(actions=[], total=0)

    async def dead_letters(self, node="", limit=50, offset=0):
        self._asked("dead letters", node, limit, offset)
        return messages.QueueList(actions=[], total=0)

    async def actions(self, node="", action=""):
        self._asked("actions", node, action)
        self._known(node or None)
        return messages.OfferedActions(
            actions=[each for each in self.offered if action in {"", each.action.name}]
        )

    async def nodes(self, *, node="", status=None, type=""):
        self._asked("nodes", node, status, type)
        if node and node not in {"crm", "0199"}:
            raise NotFoundError(f"unknown node {node!r}")
        return messages.NodeList(nodes=[CRM])

    async def stats(self):
        return messages.NodeStats(
            total=1,
            active=1,
            inactive=0,
            error=0,
            healthy=1,
            avg_response_time_ms=None,
            by_type={},
            by_health={},
            collections=0,
            documents=0,
        )

    async def register_node(self, node, *, on_behalf):
        self._asked("register", node, on_behalf)
        return messages.NodeRegistered(node=CRM, api_key="nmk_z")

    async def update_node(self, node, change, *, on_behalf):
        self._asked("update", node, change, on_behalf)
        return CRM

    async def remove_node(self, node, *, on_behalf):
        self._asked("remove", node, on_behalf)
        return CRM

    def _known(self, node):
        if node not in {None, "crm", "0199"}:
            raise NotFoundError(f"unknown node {node!r}")

    async def drain_node(self, node, *, on_behalf):
        self._asked("drain", node, on_behalf)
        self._known(node)
        return msgspec.structs.replace(CRM, health=Health.DRAINING)

    async def undrain_node(self, node, *, on_behalf):
        self._asked("undrain", node, on_behalf)
        self._known(node)
        return CRM

    async def breakers(self, node=None):
        self._asked("breakers", node)
        self._known(node)
        return messages.BreakerList(breakers=[])

    async def reset_breakers(self, node, verb=None, *, on_behalf):
        self._asked("reset", node, verb, on_behalf)
        self._known(node)
        return messages.BreakerList(breakers=[])

    async def explain(self, request_id):
        self._asked("explain", request_id)
        if request_id != "r1":
            raise NotFoundError("nothing is known of that request")
        return messages.Explanation(request=request_id, calls=[])


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Asks an edge in memory; one for each test."""

    def __init__(self, config: MeshConfig | None = None, **options: Any) -> None:
        self.mesh = FakeMesh()
        self.gatekeeper = FakeGatekeeper()
        self.config = config or MeshConfig()
        self.edge: Edge = create_app(self.mesh, self.gatekeeper, self.config, **options)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        bearer: str | None = "all",
        prefix: str = PREFIX,
        headers: dict[str, str] | None = None,
        chunks: list[bytes] | None = None,
    ) -> Answer:
        content = (
            body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        )
        sent = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        if bearer is not None:
            sent.append((b"authorization", b"Bearer " + bearer.encode()))
        if chunks is None:
            chunks = [content]
            if content:
                sent.append((b"content-length", str(len(content)).encode()))
        waiting = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
            for number, chunk in enumerate(chunks, 1)
        ]
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": prefix + path,
            "raw_path": (prefix + path).encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": sent,
            "client": ("192.0.2.7", 1234),
            "server": ("127.0.0.1", 80),
        }
        start: dict[str, Any] = {}
        parts: list[bytes] = []

        async def receive() -> Any:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self.edge(scope, receive, send)
        got = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], got, b"".join(parts))
