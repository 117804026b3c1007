"""What a scope allows: `search`, `actions` (all of them), `actions:<name>` and `admin`.

None implies another: an administrator of the registry may not search for that reason. That is no
wall against administrators: `admin` registers nodes and rotates their keys, so it can make itself
any node and have what that node has.
"""

from __future__ import annotations

from collections.abc import Collection

_ACTIONS = "actions"
_ONE_ACTION = f"{_ACTIONS}:"


def allows(scopes: Collection[str], needed: str) -> bool:
    """Whether `scopes` cover `needed`; `actions` covers every `actions:<name>`."""
    if needed in scopes:
        return True
    return len(needed) > len(_ONE_ACTION) and needed.startswith(_ONE_ACTION) and _ACTIONS in scopes


def allows_some_action(scopes: Collection[str]) -> bool:
    """Whether any action may be run: enough to read of those, see `readable_actions`."""
    return any(scope == _ACTIONS or scope.startswith(_ONE_ACTION) for scope in scopes)


def readable_actions(scopes: Collection[str]) -> frozenset[str] | None:
    """Names of the actions whose history may be read: those that may be run. None: all."""
    if _ACTIONS in scopes:
        return None
    return frozenset(
        scope.removeprefix(_ONE_ACTION) for scope in scopes if scope.startswith(_ONE_ACTION)
    )
