"""Make this program a node of a mesh it only reaches over HTTP, and keep its login fresh.

    MESH_JOIN_TOKEN=… python join.py warehouse --tokens warehouse.json

An operator makes the join token: `meshctl nodes join-token create`. It is needed once. From then on
the file holds the login: run it again without a join token, and it refreshes the tokens and shows
what the mesh thinks of the node.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
from pathlib import Path
from typing import Any

from client import MeshHttp, MeshHttpError


def join(url: str, join_token: str, name: str) -> dict[str, Any]:
    """Register; the answer's `api_key` and `auth` are shown this once."""
    body = {"name": name, "capabilities": ["search"], "version": "1.0", "type": "child"}
    return MeshHttp(url, join_token).register(body)


def save(file: Path, login: dict[str, str]) -> None:
    """For its owner alone, and never half: the next start has nothing else to log in with."""
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)  # of a start that was cut off
    # O_EXCL: a file or link that somebody else put there is never written to.
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(login, out)
    fresh.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Join a mesh over HTTP.")
    parser.add_argument("name")
    parser.add_argument("--tokens", type=Path, required=True, help="file to keep the login in")
    asked = parser.parse_args()
    url = os.environ.get("MESH_HTTP_URL", "http://127.0.0.1:8080")
    try:
        if not asked.tokens.exists():
            joined = join(url, os.environ.get("MESH_JOIN_TOKEN", ""), asked.name)
            auth = joined["auth"]
            login = {"api_key": joined["api_key"]}
            login |= {kind: auth[kind] for kind in ("access_token", "refresh_token")}
            save(asked.tokens, login)
            print(f"joined as {joined['node']['slug']}, id {joined['node']['id']}")
        login = json.loads(asked.tokens.read_text())
        client = MeshHttp(
            url,
            login["access_token"],
            refresh_token=login["refresh_token"],
            on_tokens=lambda access, refresh: save(
                asked.tokens, login | {"access_token": access, "refresh_token": refresh}
            ),
        )
        client.refresh()
        print(json.dumps(client.status(), indent=2))
    except MeshHttpError as error:
        sys.exit(f"error: {error}")
    except TimeoutError:
        sys.exit("error: no answer in time")
    except urllib.error.URLError as error:
        sys.exit(f"error: no gateway there: {error.reason}")


if __name__ == "__main__":
    main()
