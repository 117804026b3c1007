"""Who may say and hear what on the bus, enforced by the broker: the one table.

Source: the permissions of the design, section 3. Empty permissions mean everything to nats-server,
so nobody here has an empty list.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from mesh.core import scopes as scope
from mesh.errors import InvalidError
from mesh.wire import subjects
from mesh.wire.subjects import PREFIX

_ANYBODY = ("ping", "routes")
"""Verbs of the masters that say nothing but who is there."""
_READER = ("nodes", "stats", "actions", "action-check")
_RUNNER = (
    "history",
    "action-cancel",
    "action-retry",
    "action-show",
    "dead-letters",
    "queue",
    "saga-abort",
    "saga-resume",
    "saga-run",
    "saga-show",
    "sagas",
)
"""Of whoever may run any action."""
_HEARD_BY_ALL = (subjects.ROUTES, subjects.REVOKED, f"{PREFIX}.evt.>")
_EVERYTHING = frozenset({"search", "actions", "admin"})


class Permissions(NamedTuple):
    """Subjects, wildcards among them; what is not listed is refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def is_joiner(name: str) -> bool:
    """Whether that is the name of somebody who only wants to join: no node or user has such."""
    return subjects.is_joiner(name)


def of_joiner(name: str) -> Permissions:
    """May ask a master to be made a node, and nothing else.

    Raises:
        InvalidError: Not a joiner's name.
    """
    if not is_joiner(name):
        raise InvalidError(f"{name[:80]!r} is not a name to join under")
    return Permissions(
        publish=(subjects.master("join", name),), subscribe=(f"{PREFIX}.re.*.{name}.>",)
    )


def of_node(node: str) -> Permissions:
    """What the node with this slug may do. Nothing of JetStream's API and acknowledgements: those
    are answered to whatever subject the asker names, past all permissions.

    Raises:
        InvalidError: Not one token: it could be a wildcard.
    """
    subjects.free_name(node)
    return Permissions(
        publish=(
            subjects.heartbeat(node),
            f"{PREFIX}.evt.{node}.*",
            f"{PREFIX}.history.{node}.*.*",
            f"{PREFIX}.re.{node}.>",
            f"{PREFIX}.re.srv.>",
            *(subjects.master(verb, node) for verb in _ANYBODY),
            subjects.rpc(node, "ping", node),  # is there another one of this name?
            *(f"{PREFIX}.rpc.*.{verb}.{node}" for verb in subjects.PEERS_VERBS),
            f"{PREFIX}.write.*.{node}",
            subjects.master("writes", node),
        ),
        subscribe=(
            f"{PREFIX}.rpc.{node}.>",
            f"{PREFIX}.act.{node}.>",
            f"{PREFIX}.re.*.{node}.>",
            *_HEARD_BY_ALL,
            "$SRV.>",
        ),
    )


def of_user(name: str, scopes: Collection[str]) -> Permissions:
    """What an operator or application may do; scopes of single collections open nothing here,
    since no subject names a collection.

    Raises:
        InvalidError: Not one token, or an action that is none.
    """
    subjects.free_name(name)
    return _of_caller(name, scopes)


def of_gateway() -> Permissions:
    """It acts for everybody behind it, and says for whom; administrators ask for its cache."""
    may = _of_caller("gateway", _EVERYTHING)
    return Permissions(
        publish=(*may.publish, f"{PREFIX}.re.gateway.>"),
        subscribe=(*may.subscribe, f"{PREFIX}.rpc.gateway.cache.*"),
    )


def _of_caller(name: str, scopes: Collection[str]) -> Permissions:
    publish = [
        f"{PREFIX}.outcome.{name}",
        *(subjects.master(verb, name) for verb in _ANYBODY),
        *(f"{PREFIX}.rpc.*.{verb}.{name}" for verb in ("ping", "cancel")),
        "$SRV.>",
    ]
    if scope.allows(scopes, "search"):
        publish += [f"{PREFIX}.rpc.*.{verb}.{name}" for verb in ("search", "fetch")]
    for action in _actions(scopes):
        publish += [f"{PREFIX}.{kind}.*.{action}.{name}" for kind in ("act", "queue")]
    if "admin" in scopes:
        publish += [f"{PREFIX}.master.*.{name}", subjects.rpc("gateway", "cache", name)]
    elif scopes:
        publish += [subjects.master(verb, name) for verb in _READER]
        if "actions" in scopes:
            publish += [subjects.master(verb, name) for verb in _RUNNER]
    return Permissions(
        publish=tuple(publish), subscribe=(f"{PREFIX}.re.*.{name}.>", *_HEARD_BY_ALL)
    )


def _actions(scopes: Collection[str]) -> list[str]:
    """The tokens that stand for them in a subject."""
    readable = scope.readable_actions(scopes)
    return ["*"] if readable is None else sorted(subjects.token(each) for each in readable)


def covers(pattern: str, subject: str) -> bool:
    """Whether a permission allows a subject, which may hold wildcards itself: everything they
    stand for must be allowed.

    Source: NATS subject-based messaging, wildcards `*` (one token) and `>` (one or more, last).
    """
    allowed, asked = pattern.split("."), subject.split(".")
    for position, part in enumerate(allowed):
        if part == ">":
            return len(asked) > position
        if position >= len(asked) or asked[position] == ">":
            return False
        if part not in ("*", asked[position]):
            return False
    return len(allowed) == len(asked)


def may_publish(permissions: Permissions, subject: str) -> bool:
    """As the broker decides."""
    return any(covers(pattern, subject) for pattern in permissions.publish)


def may_subscribe(permissions: Permissions, subject: str) -> bool:
    """As the broker decides."""
    return any(covers(pattern, subject) for pattern in permissions.subscribe)
