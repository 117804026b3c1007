"""`python -m agents.gateway.reference`: docs/http.md, from the app's own OpenAPI document."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from agents.gateway.app import create_litestar
from agents.gateway.openapi import Json, document
from mesh.config import GatewayConfig, RateLimitConfig, SecurityConfig

_HEAD = """# HTTP reference

<!-- Made by `python -m agents.gateway.reference > docs/http.md`; do not edit. -->

The gateway (`mesh-agent gateway`, part of `mesh-agent up`) serves the mesh to clients that do not
speak NATS, under `{prefix}` (`gateway.prefix`). `{prefix}/docs` shows these routes in a browser and
`{prefix}/openapi.json` is their OpenAPI 3.1 document; both need neither a login nor anything from
outside.

## Logging in

`Authorization: Bearer …` with one of

- an access token: `meshctl tokens issue --scope search,actions,admin --ttl 3600`, or a node's from
  `POST /register` and `POST /refresh-token`;
- an API key: a node's, shown once by `meshctl nodes register` and `POST /register`, or a user's,
  from `meshctl users create`.

| scope | lets one |
|---|---|
| `search` | search every collection |
| `search:<collection>` | search this collection: without `options.collections` those of one's \
scopes are searched, and naming another is a 403 |
| `actions` | run, queue, cancel and retry every action, read the history of all of them, see the \
queue and the dead letters |
| `actions:<name>` | run, queue, cancel and retry this action, and read its history |
| `admin` | see and change the registry, give nodes keys, see any node's status, drain nodes, \
see and reset breakers, explain requests |

None implies another. A removed node, a key rotated without an overlap or a revoked token is refused
within a second.

Access tokens are JWTs, signed with EdDSA by a key of the masters that
`GET /.well-known/jwks.json` publishes under the `kid` of the token's header; `meshctl keys rotate`
puts another one in its place. Only where `security.jwt_secret` is set they are signed with that
secret (HS256) instead, and none of the other kind is taken. Clocks may differ by
`security.clock_skew_s` ({skew:g} s).

## Browsers and HTTPS

With `gateway.tls_cert` and `gateway.tls_key` (PEM) the gateway speaks HTTPS, TLS 1.2 at least, and
nothing else on its port. Every answer says `X-Content-Type-Options: nosniff`,
`Content-Security-Policy: default-src 'none'`, `X-Frame-Options: DENY`,
`Referrer-Policy: no-referrer` and `Cache-Control: no-store`, over HTTPS
`Strict-Transport-Security` too; the docs and the key set say what they need instead. Pages of other
origins cannot read answers, unless `gateway.cors_origins` names their origin exactly, for example
`["https://app.example.com"]`; there are no cookies, and credentials are never allowed.

## Limits

| what | setting | default | beyond it |
|---|---|---|---|
| body | `gateway.max_body_bytes` | {body} | 413 |
| request line and headers | `gateway.max_header_bytes` | {header} | 431 |
| time to send the headers, and again for the body | `gateway.read_timeout_s` | {read:g} s | 408 |
| time that an answer waits to be read | `gateway.read_timeout_s` | {read:g} s | cut off |
| connections | `gateway.max_connections` | {connections} | 503 |
| TLS handshakes | `gateway.read_timeout_s` | {read:g} s | cut off |
| nesting of `params` and `metadata` | | 32 | 422 |
| values of a filter, characters of each | | 1,000, 4,096 | 422 |
| requests per identity and route | `rate_limit.max_attempts` in `rate_limit.period_s` | \
{attempts} in {period:g} s | 429 |

The rate limit lets the whole allowance through at once and then one request every {every:g} s.
Where there is no identity (`/register`, `/refresh-token`, failed logins) it counts by the client's
address; behind a proxy that is the proxy's. Whoever shows a good token or key is let in all the
same. `X-RateLimit-Limit`, `X-RateLimit-Remaining` and
`X-RateLimit-Reset` (seconds until the whole allowance is back) come with every answer it counts.
`/health`, `/livez`, `/readyz` and the docs are exempt.

## Failures

```json
{{
  "error": "Validation failed",
  "kind": "invalid",
  "message": "limit: must be at most 100",
  "reference": "0199f0d2-7c1e-7a33-9d0c-5f1f2f7a4b10",
  "errors": {{"limit": ["must be at most 100"]}}
}}
```

`error` is a title for people, `kind` a word for machines, `errors` names each field of a 422. The
routes of actions add `"success": false`. `reference` is the request's id, also in `X-Request-Id`;
one that you send (1 to 64 of `A-Za-z0-9_.-`) is taken over. The gateway's log has more under it.
`retry_after_s` is there wherever the answer has a `Retry-After`, with the same seconds. A search
that fewer shards answered than its `require` asks for says in `shards` how each of them fared, as
an answer does.

A search's `id` is what `GET /explain/{{id}}` and `meshctl explain` take. It is the request's id
where that was made here; under an id that you sent, a search still gets one of its own. Of an
answer that is `cached` there is nothing to explain: no node was asked. Neither is there where an
equal search was under way already: the nodes were asked once, under the id of the first. An
action's `id` is its `idempotency_key`, or one that was made.

When to try again:

| status | try again |
|---|---|
| 429 | after `Retry-After` seconds |
| 503 | the same; of `circuit_open` nothing was sent. An action, which may have been sent before \
the broker was lost: with the same \
`idempotency_key` only |
| 502, 504 | a search: at once; an action, which may have run: with the same \
`idempotency_key` only |
| 500 of an action | with the same `idempotency_key` only |
| 202 | not at all: what is queued is done once its node is there |
| other 4xx | not before the request is another one |

An action that was sent goes on when its client goes; ask `GET /actions/{{id}}` what became of it.
Give it an `idempotency_key`: the same key runs once, and answers the same outcome for a day. A
search whose client goes is stopped.

The parameters and results of the actions that nodes offer are schemas of `openapi.json`, named
`action.<name>.params` and `action.<name>.result`, for whoever reads it with a token: those that its
scopes cover, at most a few seconds old. [The guide to actions](actions.md) tells what each state
means and what is promised.

A stopping gateway answers with `Connection: close`; clients that honour it lose no request.

## Departures from the contract it replaces

- `POST /refresh-token` takes the refresh token alone, without an access token. A refresh token is
  good for one use, and one that comes a second time ends all that came from it.
- `POST /register` takes a join token; registration is not open.
- A collection that no node has is refused (422) instead of passed over; one whose holders are away
  makes the answer `partial`.
- Unknown fields in a body are refused (422) by their name, and a body where a route takes none
  (400), unless it is `{{}}`.
- An action has exactly one target: two of `node`, `nodes`, `all` and `collection` are a 422.
  `collection` means one of the replicas of each shard.
- `mode` `queue` answers 202 with `id`, `state` and `expires`; for several nodes by slug.
- For an action on several nodes the status is 200 whatever became of it on each: `success` is true
  where it succeeded everywhere.
- The rate limit counts by identity and route, and `X-RateLimit-Reset` counts seconds.

## Routes
"""


def reference() -> str:
    """The page, with the defaults of the settings."""
    gateway, limits = GatewayConfig(), RateLimitConfig()
    made = document(create_litestar(gateway.prefix), gateway.prefix)
    head = _HEAD.format(
        prefix=gateway.prefix,
        body=f"{gateway.max_body_bytes:,} bytes",
        header=f"{gateway.max_header_bytes:,} bytes",
        read=gateway.read_timeout_s,
        connections=f"{gateway.max_connections:,}",
        attempts=limits.max_attempts,
        period=limits.period_s,
        every=limits.period_s / limits.max_attempts,
        skew=SecurityConfig().clock_skew_s,
    )
    parts = [head, *_routes(made), "\n## Types\n", *_types(made["components"]["schemas"])]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n") + "\n"


def _routes(made: Json) -> Iterator[str]:
    for tag in made["tags"]:
        yield f"\n### {tag['name'].capitalize()}\n"
        for path, methods in made["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield from _route(method.upper(), path, operation)


def _route(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"\n#### {method} {path}\n"
    yield operation["description"] + "\n"
    yield f"Login: {_login(operation)}.\n"
    parameters = [given for given in operation["parameters"] if given["in"] != "header"]
    if parameters:
        yield "| parameter | in | type | what |\n|---|---|---|---|"
        for given in parameters:
            words = (given["name"], given["in"], _type(given["schema"]), given.get("description"))
            yield f"| `{words[0]}` | {words[1]} | {words[2]} | {words[3] or ''} |"
        yield ""
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        yield f"Body: {_type(content['schema'])}, for example:\n"
        for example in content.get("examples", {}).values():
            yield _json(example["value"])
    codes = operation["responses"]
    for success in (code for code in codes if code.startswith("2")):
        content = codes[success]["content"]["application/json"]
        yield f"Answer: {success}, {_type(content['schema'])}."
        if "example" in content:
            yield "\n" + _json(content["example"])
    failures = ", ".join(
        f"{code} {codes[code]['description']}" for code in codes if not code.startswith("2")
    )
    yield f"\nFailures: {failures}.\n"


def _login(operation: Json) -> str:
    if scope := operation.get("x-scope"):
        return {
            "*": "any identity",
            "actions…": "scope `actions` or `actions:<name>`",
            "search": "scope `search` or `search:<collection>`",
        }.get(scope, f"scope `{scope}`")
    return "a join token" if operation["security"] else "none"


def _types(schemas: Json) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield f"\n### {name}\n"
        if "description" in schema:
            yield schema["description"] + "\n"
        if "enum" in schema:
            yield "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".\n"
            continue
        yield "| field | type | default | what |\n|---|---|---|---|"
        required = schema.get("required", [])
        for field, kind in schema["properties"].items():
            default = json.dumps(kind["default"]) if "default" in kind else ""
            shown = "required" if field in required else f"`{default}`" if default else ""
            yield f"| `{field}` | {_type(kind)} | {shown} | {kind.get('description', '')} |"
        yield ""


def _type(schema: Json) -> str:  # noqa: PLR0911 (one for each kind)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(kind) for kind in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"list of {_type(schema['items'])}{_bounds(schema, 'Items')}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}{_bounds(schema, 'Properties')}"
    if kind == "string":
        return "text" + _bounds(schema, "Length")
    return str(kind) + _bounds(schema, "imum")


def _bounds(schema: Json, what: str) -> str:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if low is None and high is None:
        return ""
    return f" ({'' if low is None else low}…{'' if high is None else high})"


def _json(value: Any) -> str:
    return "```json\n" + json.dumps(value, indent=2, ensure_ascii=False) + "\n```\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
