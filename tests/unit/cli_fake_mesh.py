"""A mesh that answers from memory, where `meshctl` connects, for tests of words and forms."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from mesh import messages
from mesh.core.route_table import RouteTable
from mesh.errors import MeshError, NotFoundError
from mesh.ports import Message
from mesh.types import ActionState, BreakerState, Health

START = 1_767_323_045_000  # 2026-01-02T03:04:05Z
FAR = 4_102_444_800_000  # 2100-01-01T00:00:00Z


def record(slug: str, **fields: Any) -> messages.NodeRecord:
    known = {
        "id": f"id-{slug}",
        "slug": slug,
        "name": slug.upper(),
        "health": Health.HEALTHY,
        "last_ping_at": START,
        "response_time_ms": 1.25,
        "capabilities": ["search", "actions"],
    }
    return messages.NodeRecord(**(known | fields))


def token(id: str, **fields: Any) -> messages.TokenInfo:  # noqa: A002
    known = {
        "id": id,
        "kind": "access",
        "subject": "operator",
        "scopes": ["search", "actions"],
        "node": False,
        "issued_at": START,
        "expires_at": FAR,
    }
    return messages.TokenInfo(**(known | fields))


def waiting(name: str, **fields: Any) -> messages.PendingNode:
    known = {
        "id": f"id-{name}",
        "name": name,
        "fingerprint": "0123456789abcdef",
        "address": "192.0.2.7",
        "first_seen": START,
        "last_seen": START,
    }
    return messages.PendingNode(**(known | fields))


def breaker(node: str, verb: str, **fields: Any) -> messages.BreakerInfo:
    known = {
        "node": node,
        "verb": verb,
        "state": BreakerState.CLOSED,
        "reason": "",
        "until": 0,
        "calls": 20,
        "failures": 0,
        "callers": 2,
        "open_at": 0,
    }
    return messages.BreakerInfo(**(known | fields))


def cache(gateway: str, **fields: Any) -> messages.CacheReport:
    known = {
        "entries": 3,
        "bytes": 3 * 1024 * 1024,
        "max_bytes": 64 * 1024 * 1024,
        "hits": 9,
        "misses": 3,
        "evictions": 0,
        "shared": 1,
        "hit_rate": 0.75,
    }
    cleared = fields.pop("cleared", None)
    return messages.CacheReport(
        gateway=gateway, stats=messages.CacheStats(**(known | fields)), cleared=cleared
    )


class FakeAccess:
    """What `MeshClient.access` is asked, and the answers of the test."""

    def __init__(self, calls: list[tuple[str, Any]]) -> None:
        self._calls = calls
        self.issued: list[messages.TokenInfo] = []
        self.revoked = 1
        self.waiting: list[messages.PendingNode] = []
        self.known_users: list[messages.User] = []
        self.ring: list[messages.SigningKey] = []

    async def issue(self, subject, scopes, *, ttl_s=3600, refresh=False):
        self._calls.append(("issue", (subject, list(scopes), ttl_s, refresh)))
        extra = {"refresh_token": "secret-refresh", "refresh_expires_in": 9} if refresh else {}
        return messages.Grant(
            id="t1",
            subject=subject,
            scopes=list(scopes),
            access_token="secret-access",
            expires_in=ttl_s,
            **extra,
        )

    async def tokens(self, *, subject="", all=False):  # noqa: A002
        self._calls.append(("tokens", (subject, all)))
        return messages.TokenList(tokens=self.issued)

    async def revoke(self, id="", *, subject=""):  # noqa: A002
        self._calls.append(("revoke", (id, subject)))
        return messages.TokensRevoked(revoked=self.revoked)

    async def create_join_token(self, *, scopes, ttl_s, uses, description):
        self._calls.append(("join token", (list(scopes), ttl_s, uses, description)))
        return messages.JoinTokenCreated(
            id="j1", join_token="secret-join", scopes=list(scopes), expires_at=FAR, uses=uses
        )

    async def rotate_key(self, node, *, overlap_s=0):
        self._calls.append(("rotate", (node, overlap_s)))
        until = FAR if overlap_s else 0
        return messages.NodeKey(node=record(node), api_key="secret-key", previous_until=until)

    async def pending(self):
        return messages.PendingList(nodes=self.waiting)

    async def approve(self, node, *, scopes):
        self._calls.append(("approve", (node, list(scopes))))
        return record(node)

    async def reject(self, node):
        self._calls.append(("reject", node))
        return waiting(node)

    async def users(self):
        return messages.UserList(users=self.known_users)

    async def create_user(self, name, scopes, *, description=""):
        self._calls.append(("create user", (name, list(scopes), description)))
        user = messages.User(name=name, scopes=list(scopes), description=description)
        return messages.UserKey(user=user, api_key="secret-key")

    async def remove_user(self, name):
        self._calls.append(("remove user", name))
        return messages.User(name=name, scopes=["search"])

    async def rotate_user_key(self, name, *, overlap_s=0):
        self._calls.append(("rotate user", (name, overlap_s)))
        user = messages.User(name=name, scopes=["search"])
        return messages.UserKey(user=user, api_key="secret-key", previous_until=overlap_s and FAR)

    async def signing_keys(self):
        return messages.SigningKeyList(keys=self.ring)

    async def rotate_signing_keys(self, *, overlap_s):
        self._calls.append(("rotate signing keys", overlap_s))
        return messages.SigningKeyList(keys=self.ring)


def route(node: messages.NodeRecord, **fields: Any) -> messages.RouteNode:
    known = {
        "slug": node.slug,
        "name": node.name,
        "status": node.status,
        "health": node.health,
        "reason": node.reason,
        "weight": node.weight,
        "collections": node.collections,
    }
    return messages.RouteNode(**(known | fields))


class FakeBus:
    """Nothing comes over it but what the test says."""

    def __init__(self) -> None:
        self.told: list[Message] = []

    async def subscribe(self, subject, handler):
        for message in self.told:
            handler(message)
        return self

    async def unsubscribe(self):
        pass


class FakeMesh:
    """Records what it is asked; answers with what the test put into it."""

    def __init__(self, *nodes: messages.NodeRecord) -> None:
        self.records = list(nodes)
        self.calls: list[tuple[str, Any]] = []
        self.ping_errors: dict[str, MeshError] = {}
        self.action_errors: dict[str, MeshError] = {}
        self.outcomes: dict[str, Any] = {}
        self.failure: MeshError | None = None
        self.epoch = 1
        self.blind = False
        self.routed: dict[str, messages.RouteNode] = {}
        """Routes that say more than the records do."""
        self.known_caches: list[messages.CacheReport] = []
        self.known_breakers: list[messages.BreakerInfo] = []
        self.explanations: list[messages.Explanation | MeshError] = []
        """The answers, one after the other; the last one again and again."""
        self.drained: list[messages.NodeRecord] = []
        """What is seen of a node that is drained, look after look; the last one again and again."""
        self.replica = "crm"
        """Who answers for any shard."""
        self.found: messages.SearchResult | None = None
        self.passages: messages.RagResult | None = None
        self.page = messages.HistoryPage(actions=[], total=0)
        self.changes: list[messages.HistoryRecord] = []
        """What a follower hears."""
        self.stories: list[messages.ActionStory] = []
        self.offered: list[messages.OfferedAction] = []
        self.items: list[messages.FanOutItem] = []
        self.waiting = [messages.QueueList(actions=[], total=0)]
        """What is in the queue, look after look; the last one again and again."""
        self.dead = messages.QueueList(actions=[], total=0)
        self._bus = FakeBus()
        self.probed: messages.NodeRecord | None = None
        self.access = FakeAccess(self.calls)

    async def __aenter__(self) -> Self:
        if self.failure is not None:
            raise self.failure
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @property
    def routes(self) -> RouteTable:
        nodes = [self.routed.get(node.slug) or route(node) for node in self.records]
        return RouteTable(epoch=self.epoch, version=1, nodes=nodes, blind=self.blind)

    def named(self, name: str) -> list[Any]:
        return [arguments for call, arguments in self.calls if call == name]

    async def nodes(self, *, node="", status=None, type=""):  # noqa: A002
        self.calls.append(("nodes", {"node": node, "status": status, "type": type}))
        if node:
            if self.drained:
                seen = self.drained[0] if len(self.drained) == 1 else self.drained.pop(0)
                return messages.NodeList(nodes=[seen])
            for known in self.records:
                if node in {known.slug, known.id}:
                    return messages.NodeList(nodes=[known])
            raise NotFoundError(f"unknown node {node!r}")
        return messages.NodeList(nodes=self.records)

    async def register_node(self, node):
        self.calls.append(("register", node))
        made = record("crm", name=node.name, url=node.url, weight=node.weight)
        return messages.NodeRegistered(node=made, api_key="key-of-the-node")

    async def update_node(self, node, change):
        self.calls.append(("update", (node, change)))
        return record(node)

    async def remove_node(self, node):
        self.calls.append(("remove", node))
        return record(node)

    async def probe_node(self, node):
        self.calls.append(("probe", node))
        return self.probed or record(node)

    async def drain_node(self, node):
        self.calls.append(("drain", node))
        return (await self.nodes(node=node)).nodes[0]

    async def undrain_node(self, node):
        self.calls.append(("undrain", node))
        return record(node)

    async def breakers(self, node=None):
        self.calls.append(("breakers", node))
        found = [seen for seen in self.known_breakers if node in {None, seen.node}]
        return messages.BreakerList(breakers=found)

    async def reset_breakers(self, node, verb=None):
        self.calls.append(("reset", (node, verb)))
        found = [
            breaker(seen.node, seen.verb)
            for seen in self.known_breakers
            if seen.node == node and verb in {None, seen.verb}
        ]
        return messages.BreakerList(breakers=found)

    async def caches(self, *, clear=False):
        self.calls.append(("caches", clear))
        return messages.CacheReports(gateways=self.known_caches)

    async def explain(self, request_id):
        self.calls.append(("explain", request_id))
        found = self.explanations[0] if len(self.explanations) == 1 else self.explanations.pop(0)
        if isinstance(found, MeshError):
            raise found
        return found

    async def stats(self):
        return messages.NodeStats(
            total=3,
            active=2,
            inactive=1,
            error=0,
            healthy=2,
            avg_response_time_ms=2.345,
            by_type={"child": 3},
            by_health={"healthy": 2, "unreachable": 1},
            collections=4,
            documents=1234,
            verbs={"search": messages.VerbFigures(calls=60, per_s=1.0, p50_ms=4.0, p99_ms=40.0)},
            breakers={"open": 1, "half_open": 0},
            callers=3,
        )

    async def ping(self, node, *, timeout_s=1.0):
        self.calls.append(("ping", (node, timeout_s)))
        if node in self.ping_errors:
            raise self.ping_errors[node]
        return messages.PingResult(node=node, incarnation=1), 1.234

    async def ping_shard(self, shard, *, timeout_s=1.0):
        self.calls.append(("ping shard", (shard, timeout_s)))
        if shard in self.ping_errors:
            raise self.ping_errors[shard]
        return messages.PingResult(node=self.replica, incarnation=1), 2.345

    async def search(self, query, **options):
        self.calls.append(("search", {"query": query, **options}))
        assert self.found is not None
        return self.found

    async def rag(self, query, **options):
        self.calls.append(("rag", {"query": query, **options}))
        assert self.passages is not None
        return self.passages

    async def run_action(self, action, params, *, node=None, id=None, timeout_s=None, retry=0):  # noqa: A002
        asked = {"action": action, "params": params, "node": node, "id": id, "timeout_s": timeout_s}
        self.calls.append(("action", asked))
        for name in (action, node or ""):
            if name in self.action_errors:
                raise self.action_errors[name]
        result = self.outcomes.get(action, {"changed": len(params.get("documents", []))})
        return messages.ActionResult(
            id=id or "made-id",
            node=node or "crm",
            action=action,
            state=ActionState.SUCCEEDED,
            result=result,
            duration_ms=12.5,
        )

    async def history(self, **query):
        self.calls.append(("history", query))
        return self.page

    async def follow_actions(self, **query):
        self.calls.append(("follow", query))
        for record in self.changes:
            yield record
        await asyncio.Event().wait()

    async def action(self, id):  # noqa: A002
        self.calls.append(("show", id))
        if not self.stories:
            raise NotFoundError(f"no action {id!r} in the history")
        return messages.ActionStories(id=id, stories=self.stories)

    async def actions(self, node="", action=""):
        self.calls.append(("actions", (node, action)))
        return messages.OfferedActions(
            actions=[
                each
                for each in self.offered
                if action in {"", each.action.name} and (not node or node in each.nodes)
            ]
        )

    async def queue_action(self, action, params, *, node=None, id=None, expires_s=None):  # noqa: A002
        asked = {"action": action, "params": params, "node": node, "id": id, "expires_s": expires_s}
        self.calls.append(("queue action", asked))
        if action in self.action_errors:
            raise self.action_errors[action]
        return messages.Queued(id=id, node=node or "crm", action=action, expires=FAR)

    async def fan_out(self, action, params, **options):
        self.calls.append(("fan out", {"action": action, "params": params, **options}))
        if action in self.action_errors:
            raise self.action_errors[action]
        items = {item.node: item for item in self.items}
        succeeded = sum(item.success for item in self.items)
        return messages.FanOutResult(
            id=options["id"],
            action=action,
            success=succeeded == len(items),
            success_count=succeeded,
            failure_count=len(items) - succeeded,
            results=items,
        )

    async def cancel_action(self, id, *, node=None):  # noqa: A002
        self.calls.append(("cancel", (id, node)))
        if id in self.action_errors:
            raise self.action_errors[id]
        return messages.HistoryRecord(
            id=id, node=node, action="refund", state=ActionState.CANCELLED, caller="ops", at=START
        )

    async def retry_action(self, id, *, node=None):  # noqa: A002
        self.calls.append(("retry", (id, node)))
        if id in self.action_errors:
            raise self.action_errors[id]
        return messages.Queued(id=id, node=node, action="refund", expires=FAR)

    async def queue(self, node="", limit=50, offset=0):
        self.calls.append(("queue", (node, limit, offset)))
        return self.waiting[0] if len(self.waiting) == 1 else self.waiting.pop(0)

    async def dead_letters(self, node="", limit=50, offset=0):
        self.calls.append(("dead letters", (node, limit, offset)))
        return self.dead
