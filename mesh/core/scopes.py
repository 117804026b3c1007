"""What a scope allows: `search` (every collection), `search:<collection>`, `actions` (all of them),
`actions:<name>` and `admin`.

None implies another: an administrator of the registry may not search for that reason. That is no
wall against administrators: `admin` registers nodes and rotates their keys, so it can make itself
any node and have what that node has.
"""

from __future__ import annotations

from collections.abc import Collection

_ACTIONS = "actions"
_SEARCH = "search"
_WITH_PARTS = (_ACTIONS, _SEARCH)
"""Scopes that cover every `<scope>:<part>`."""


def allows(scopes: Collection[str], needed: str) -> bool:
    """Whether `scopes` cover `needed`; `actions` covers every `actions:<name>`, and `search` every
    `search:<collection>`.
    """
    if needed in scopes:
        return True
    whole, _, part = needed.partition(":")
    return bool(part) and whole in _WITH_PARTS and whole in scopes


def allows_some_action(scopes: Collection[str]) -> bool:
    """Whether any action may be run: enough to read of those, see `readable_actions`."""
    return _some(scopes, _ACTIONS)


def readable_actions(scopes: Collection[str]) -> frozenset[str] | None:
    """Names of the actions whose history may be read: those that may be run. None: all."""
    return _parts(scopes, _ACTIONS)


def allows_some_search(scopes: Collection[str]) -> bool:
    """Whether any collection may be searched: those of `searchable_collections`."""
    return _some(scopes, _SEARCH)


def searchable_collections(scopes: Collection[str]) -> frozenset[str] | None:
    """Names of the collections that may be searched. None: all."""
    return _parts(scopes, _SEARCH)


def _some(scopes: Collection[str], whole: str) -> bool:
    return any(scope == whole or scope.startswith(f"{whole}:") for scope in scopes)


def _parts(scopes: Collection[str], whole: str) -> frozenset[str] | None:
    if whole in scopes:
        return None
    start = f"{whole}:"
    return frozenset(scope.removeprefix(start) for scope in scopes if scope.startswith(start))
