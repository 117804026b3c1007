"""The mesh over HTTP with Python's standard library alone. Copy `MeshHttp` into your program.

    python client.py health
    python client.py search "late invoice" --limit 3
    python client.py action refund '{"order": "A-1001", "cents": 500}' --node crm-app --key r-1001
    python client.py history --node crm-app

`MESH_TOKEN` is an access token (`meshctl tokens issue`) or a node's API key, `MESH_REFRESH_TOKEN`
what renews it, `MESH_HTTP_URL` the gateway (default http://127.0.0.1:8080).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from typing import Any

PREFIX = "/api/ai-engine"
TRIES = 4
LONGEST_PAUSE_S = 60.0


class MeshHttpError(Exception):
    """The gateway refused; `body` says why (`error`, `kind`, `message`, `errors` by field)."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {body.get('error', '')}: {body.get('message', '')}")
        self.status = status
        self.body = body


class MeshHttp:
    """Search, actions and their history. For one thread at a time."""

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        refresh_token: str = "",
        on_tokens: Callable[[str, str], None] = lambda _access, _refresh: None,
        timeout_s: float = 60.0,
    ) -> None:
        """Args:
        url: The gateway, without the prefix of its routes.
        token: Access token or API key.
        refresh_token: Trades itself for new tokens when `token` has expired; good for one use.
        on_tokens: Told the new access and refresh token. Save both: the old ones are done with.
        timeout_s: How long one request may take.
        """
        self._base = url.rstrip("/") + PREFIX
        self._token = token
        self._refresh_token = refresh_token
        self._on_tokens = on_tokens
        self._timeout_s = timeout_s

    def health(self) -> dict[str, Any]:
        """Whether the gateway serves; needs no token."""
        return self._ask("GET", "/health")

    def search(self, query: str, *, limit: int = 10, **options: Any) -> dict[str, Any]:
        """`options` as in the reference: `collections`, `filters`, `mode`, `require` …"""
        return self._ask("POST", "/search", {"query": query, "limit": limit, "options": options})

    def action(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        **target: Any,
    ) -> dict[str, Any]:
        """Run an action where `target` says: `node`, `nodes`, `all` or `collection`.

        The key makes it safe to ask again when an answer was lost: the same key runs once. Give one
        of your own (say, the number of the refund) if your program may die and ask again.
        """
        body = {"action": action, "params": dict(params or {}), **target}
        return self._ask("POST", "/actions", body | {"idempotency_key": key or str(uuid.uuid4())})

    def history(self, **filters: Any) -> dict[str, Any]:
        """Who ran what, newest first; `node`, `action`, `caller`, `state`, `limit` …"""
        return self._ask("GET", "/actions?" + urllib.parse.urlencode(filters))

    def register(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Join as a new node, with a join token for a token; see join.py."""
        return self._ask("POST", "/register", node)

    def status(self) -> dict[str, Any]:
        """What the mesh thinks of the node whose token this is."""
        return self._ask("GET", "/status")

    def refresh(self) -> None:
        """Trade the refresh token for new tokens.

        Raises:
            MeshHttpError: 401 if it was used before, has expired or was revoked.
        """
        # Never sent twice: a refresh token that comes a second time ends all tokens made from it.
        old = {"refresh_token": self._refresh_token}
        status, body, _ = self._send("POST", "/refresh-token", old, token="")
        if status != 200:
            raise MeshHttpError(status, body)
        self._token, self._refresh_token = body["access_token"], body["refresh_token"]
        self._on_tokens(self._token, self._refresh_token)

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        renewed = not self._refresh_token
        for left in reversed(range(TRIES)):
            status, answer, retry_after = self._send(method, path, body, token=self._token)
            if status == 401 and not renewed:
                renewed = True
                self.refresh()
                status, answer, retry_after = self._send(method, path, body, token=self._token)
            if status < 400:
                return answer
            if status not in {429, 503} or not left:
                break
            time.sleep(min(retry_after, LONGEST_PAUSE_S))
        raise MeshHttpError(status, answer)

    def _send(
        self, method: str, path: str, body: Any, *, token: str
    ) -> tuple[int, dict[str, Any], float]:
        """Status, body, and the seconds after which to try again."""
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(
            self._base + path,
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                return response.status, json.load(response), 0.0
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, _refusal(refused), _seconds(refused.headers["Retry-After"])


def _refusal(refused: urllib.error.HTTPError) -> dict[str, Any]:
    """The gateway's JSON; a proxy before it may answer with a page of its own."""
    try:
        body = json.load(refused)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"error": refused.reason, "message": "no JSON"}


def _seconds(retry_after: str | None) -> float:
    """A proxy may also give a date."""
    return float(retry_after) if retry_after and retry_after.isdigit() else 1.0


def from_environment() -> MeshHttp:
    """As the variables say."""
    return MeshHttp(
        os.environ.get("MESH_HTTP_URL", "http://127.0.0.1:8080"),
        os.environ.get("MESH_TOKEN", ""),
        refresh_token=os.environ.get("MESH_REFRESH_TOKEN", ""),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a mesh over HTTP.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("health")
    search = commands.add_parser("search")
    search.add_argument("query")
    search.add_argument("--limit", type=int, default=10)
    action = commands.add_parser("action")
    action.add_argument("action")
    action.add_argument("params", type=json.loads, nargs="?", default={})
    action.add_argument("--node")
    action.add_argument("--key")
    history = commands.add_parser("history")
    history.add_argument("--node", default="")
    asked = parser.parse_args()

    client = from_environment()
    try:
        match asked.command:
            case "health":
                answer = client.health()
            case "search":
                answer = client.search(asked.query, limit=asked.limit)
            case "action":
                target = {"node": asked.node} if asked.node else {}
                answer = client.action(asked.action, asked.params, key=asked.key, **target)
            case _:
                answer = client.history(**({"node": asked.node} if asked.node else {}))
    except MeshHttpError as error:
        sys.exit(f"error: {error}")
    except TimeoutError:
        sys.exit("error: no answer in time; whether an action ran, its key will tell: ask again")
    except urllib.error.URLError as error:
        sys.exit(f"error: no gateway there: {error.reason}")
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
