"""Subject grammar, version 1: every name is one token, so an id can never widen a subscription.

Source: NATS ADR-6 (subject naming), ADR-32 (service subjects).
"""

from __future__ import annotations

import functools
import re

from mesh.errors import InvalidError

PREFIX = "mesh.v1"
RESERVED = frozenset({"srv", "js", "master", "gateway", "bridge"})
"""Names no node, application or operator may take."""

NODE_VERBS = ("search", "fetch", "ping", "cancel")
MASTERS_VERBS = ("drain", "undrain", "describe")
"""Of a node too, but only masters may ask for them."""
PEERS_VERBS = ("export", "replicate")
"""Of a node too, but only replicas of its shard may ask for them."""
HISTORY_STREAM = "MESH_HISTORY"
HISTORY_SUBJECTS = f"{PREFIX}.history.>"
QUEUE_STREAM = "MESH_QUEUE"
QUEUE_SUBJECTS = f"{PREFIX}.queue.*.*.*"
DEAD_STREAM = "MESH_DEAD"
DEAD_SUBJECTS = f"{PREFIX}.dead.>"
SAGA_STREAM = "MESH_SAGAS"
SAGA_SUBJECTS = f"{PREFIX}.saga.>"
WRITES_STREAM = "MESH_WRITES"
WRITES_SUBJECTS = f"{PREFIX}.write.>"
AUDIT_STREAM = "MESH_AUDIT"
AUDIT_SUBJECTS = f"{PREFIX}.audit.>"
ROUTES = f"{PREFIX}.routes"
REVOKED = f"{PREFIX}.revoked"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOINER = re.compile(r"join-[0-9a-f]{32}")


def token(value: str, field: str = "name") -> str:
    """Give `value` back if it can stand in a subject.

    Raises:
        InvalidError: It holds anything but letters, digits, `_` and `-`, or is not 1..64 long.
    """
    if not _TOKEN.fullmatch(value):
        message = f"{value[:80]!r} is not a name: 1 to 64 letters, digits, '_' or '-'"
        raise InvalidError(message, fields={field: [message]})
    return value


def is_joiner(name: str) -> bool:
    """Whether that is the name of somebody who only wants to join: `join-` and 128 random bits, so
    that nobody else can ask for the same and hear the answer.
    """
    return _JOINER.fullmatch(name) is not None


def free_name(value: str, field: str = "name") -> str:
    """A token that is not reserved, in whatever case.

    Raises:
        InvalidError: Not a token, one of `RESERVED`, or a name under which nodes join.
    """
    folded = token(value, field).lower()
    if folded in RESERVED or is_joiner(folded):
        message = f"{value!r} is reserved; choose another name"
        raise InvalidError(message, fields={field: [message]})
    return value


def slug_of(name: str) -> str:
    """The slug a display name gets: lower case, runs of other characters become one `-`.

    Raises:
        InvalidError: Nothing is left, the result is reserved, or the name holds a wildcard.
    """
    if "*" in name or ">" in name or not name.isprintable():
        return token(name)
    slug = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:64].strip("-")
    return free_name(slug) if slug else token(name)


@functools.lru_cache(maxsize=4096)
def rpc(node: str, verb: str, caller: str) -> str:
    """Request to a node, e.g. `mesh.v1.rpc.crm.search.ops`."""
    return f"{PREFIX}.rpc.{token(node, 'node')}.{token(verb, 'verb')}.{token(caller, 'caller')}"


def act(node: str, action: str, caller: str) -> str:
    """Action request; the broker enforces scopes by the action's token."""
    return f"{PREFIX}.act.{token(node, 'node')}.{token(action, 'action')}.{token(caller, 'caller')}"


def reply(responder: str, caller: str, connection: str, serial: str) -> str:
    """Where one reply goes, e.g. `mesh.v1.re.crm.ops.4fK….1f`."""
    return f"{PREFIX}.re.{responder}.{caller}.{connection}.{serial}"


def heartbeat(node: str) -> str:
    """Where a node's heartbeats go."""
    return f"{PREFIX}.hb.{token(node, 'node')}"


def outcome(caller: str) -> str:
    """Where a caller tells how its calls went."""
    return f"{PREFIX}.outcome.{token(caller, 'caller')}"


def event(node: str, name: str) -> str:
    """Where a node announces `name`: `started`, `changed`, `draining`, `stopped`."""
    return f"{PREFIX}.evt.{token(node, 'node')}.{token(name, 'event')}"


def master(verb: str, caller: str) -> str:
    """Registry API and history queries, answered by any master."""
    return f"{PREFIX}.master.{token(verb, 'verb')}.{token(caller, 'caller')}"


def history(node: str, action: str, state: str) -> str:
    """Where an action's record is stored."""
    return f"{PREFIX}.history.{token(node, 'node')}.{token(action, 'action')}.{token(state)}"


def queue(node: str, action: str, caller: str) -> str:
    """Where an action waits for a node that may be away."""
    return (
        f"{PREFIX}.queue.{token(node, 'node')}.{token(action, 'action')}.{token(caller, 'caller')}"
    )


def dead(node: str, action: str, key: str) -> str:
    """Where a queued action ends that could not be done, found by a `key` made of its id; masters
    alone put it there.
    """
    return f"{PREFIX}.dead.{token(node, 'node')}.{token(action, 'action')}.{token(key, 'key')}"


def saga(saga_id: str) -> str:
    """Where the states of a saga are stored; masters alone put them there."""
    return f"{PREFIX}.saga.{token(saga_id, 'id')}"


def write(shard: str, node: str) -> str:
    """Where a write to a shard with replicas gets its place in their common order."""
    return f"{PREFIX}.write.{token(shard, 'shard')}.{token(node, 'node')}"


def write_filter(shard: str) -> str:
    """Whatever is written to a shard."""
    return f"{PREFIX}.write.{token(shard, 'shard')}.*"


def audit(kind: str) -> str:
    """Where an entry of the audit trail is stored."""
    return f"{PREFIX}.audit.{token(kind, 'kind')}"


def parts(subject: str) -> tuple[str, ...]:
    """The tokens after the version: `mesh.v1.hb.crm` → `("hb", "crm")`.

    Raises:
        InvalidError: Not one of our subjects, or a token that is none.
    """
    head, _, tail = subject.partition(f"{PREFIX}.")
    if head or not tail:
        raise InvalidError(f"not a mesh subject: {subject[:80]!r}")
    return tuple(token(part, "subject") for part in tail.split("."))
