"""Actions as people and programs meet them: meshctl and HTTP against a whole mesh."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from live_mesh import LiveMesh, clean_environment, health_of

pytestmark = pytest.mark.timeout(180)

SHOP = '''
import asyncio
import os
from typing import Annotated

import msgspec
from mesh import ActionContext, Node, errors

node = Node("shop")


class Refund(msgspec.Struct):
    order: str
    cents: Annotated[int, msgspec.Meta(gt=0, le=100_000)] = 5


class Slow(msgspec.Struct):
    seconds: Annotated[float, msgspec.Meta(ge=0, le=60)]


@node.action("refund", compensate="unrefund", timeout_s=10)
async def refund(params: Refund) -> dict:
    """Give money back."""
    if not os.path.exists("orders") or params.order not in open("orders").read():
        raise ValueError("no such order")
    return {"refunded": params.cents}


@node.action("unrefund")
async def unrefund(params: Refund) -> dict:
    """Take it back."""
    return {}


@node.action("slow", timeout_s=60)
async def slow(params: Slow, ctx: ActionContext) -> dict:
    """Take your time."""
    for part in range(10):
        ctx.progress(part / 10, f"part {part}")
        await asyncio.sleep(params.seconds / 10)
    return {}
'''


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Faces(LiveMesh):
    """A mesh with two nodes that can give money back."""

    def begin(self) -> None:
        (self.folder / "shop.py").write_text(SHOP)
        (self.folder / "orders").write_text("A-7 A-8 A-9")
        self.start()
        for name in ("shop", "shop2"):
            self.add(name, "--app", "shop:node")
        for name in ("shop", "shop2"):
            self.until_healthy(name)

    def until_healthy(self, *names: str) -> None:
        async def wait() -> None:
            async with self.connect() as client, asyncio.timeout(60):
                for name in names:
                    while await health_of(client, name) != "healthy":
                        await asyncio.sleep(0.1)

        asyncio.run(wait())

    def argv(self, *typed: str) -> list[str]:
        meshctl = str(Path(sys.executable).with_name("meshctl"))
        return [meshctl, "--state-dir", str(self.state), *typed]

    def slow(self, key: str, *, seconds: int) -> list[str]:
        typed = ["--node", "shop", "--follow", "--params", json.dumps({"seconds": seconds})]
        return self.argv("actions", "run", "slow", "--key", key, *typed)

    def __call__(self, *typed: str) -> Answer:
        done = subprocess.run(
            self.argv("actions", *typed),
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def token(self, scopes: str) -> str:
        made = subprocess.run(
            self.argv("tokens", "issue", "--scope", scopes, "--json"),
            env=clean_environment(),
            capture_output=True,
            check=True,
        )
        return json.loads(made.stdout)["access_token"]

    def http(self, method: str, path: str, body: Any = None, *, bearer: str) -> tuple[int, Any]:
        asked = urllib.request.Request(
            f"{self.file()['http_url']}/api/ai-engine{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=40) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def until(self, id_: str, *states: str) -> dict[str, Any]:
        """The record of an action once it is in one of these states."""
        last: Any = None
        until = time.monotonic() + 30
        while time.monotonic() < until:
            last = self("show", id_, "--json")
            if last.code == 0:
                record = last.json()["stories"][0]["action"]
                if record["state"] in states:
                    return record
            time.sleep(0.1)
        raise AssertionError(last)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    running = Faces(tmp_path_factory.mktemp("faces"), MESH_RATE_LIMIT__ENABLED="false")
    try:
        running.begin()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def bearer(live):
    return live.token("actions")


def order(order_: str = "A-7", **more: Any) -> str:
    return json.dumps({"order": order_, **more})


# -- what there is ---------------------------------------------------------------------------------


def test_actions_are_listed_and_described(live):
    listed = live("list", "--json").json()["actions"]
    (refund,) = [each for each in listed if each["name"] == "refund"]
    assert (refund["nodes"], refund["compensate"]) == (["shop", "shop2"], "unrefund")
    told = live("describe", "refund")
    assert re.search(r"cents +integer +no +5 +> 0, ≤ 100000", told.out)
    told = live("describe", "refund", "--node", "shop", "--json").json()
    assert "cents" in json.dumps(told["actions"][0]["action"]["params"])
    assert live("describe", "fly").code == 2


def test_schemas_of_actions_are_in_the_openapi_document(live, bearer):
    _, catalogue = live.http("GET", "/actions/catalogue?action=refund", bearer=bearer)
    assert catalogue["actions"][0]["nodes"] == ["shop", "shop2"]
    until = time.monotonic() + 20
    while True:
        _, made = live.http("GET", "/openapi.json", bearer=bearer)
        schemas = made["components"]["schemas"]
        if "action.refund.params" in schemas:
            break
        assert time.monotonic() < until
        time.sleep(0.5)
    assert "cents" in json.dumps(schemas["action.refund.params"])


# -- wrong input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["refund", "--node", "shop", "--params", "{"], "not JSON"),
        (["fly", "--node", "shop"], "refund"),
        (["fly", "--node", "shop", "--queue"], "refund"),
        (["refund", "--node", "nowhere"], "nowhere"),
        (["refund", "--node", "nowhere", "--queue"], "nowhere"),
        (["refund", "--node", "shop", "--params", order(cents=-1)], "cents"),
        (["refund", "--node", "shop", "--params", order(cents=-1), "--queue"], "cents"),
        (["refund", "--all", "--params", order(cents=-1)], "cents"),
        (["refund", "--params", order()], "shop, shop2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_before_anything_is_sent(live, typed, said):
    refused = live("run", *typed, "--key", "wrong")
    assert refused.code == 2, refused
    assert said in refused.err
    assert live("show", "wrong").code == 2


def test_over_http_wrong_input_has_the_contracts_codes(live, bearer):
    def act(**body: Any) -> tuple[int, Any]:
        return live.http("POST", "/actions", {"node": "shop", **body}, bearer=bearer)

    for mode in ("sync", "queue"):
        status, told = act(action="refund", params={"order": "A-7", "cents": 0}, mode=mode)
        assert (status, list(told["errors"])) == (422, ["params.cents"]), mode
        status, told = act(action="fly", mode=mode)
        assert status == 400, mode
        assert "refund" in told["message"]
        assert act(action="refund", node="nowhere", params={}, mode=mode)[0] == 404
    first = {"action": "refund", "params": {"order": "A-7"}, "idempotency_key": "http-once"}
    assert act(**first)[0] == 200
    assert act(**first)[0] == 200
    for mode in ("sync", "queue"):
        assert act(**first | {"params": {"order": "A-8"}}, mode=mode)[0] == 409, mode


def test_a_reused_key_with_other_parameters_is_refused(live):
    assert live("run", "refund", "--node", "shop", "--key", "once", "--params", order()).code == 0
    for more in ([], ["--queue"]):
        other = live(
            "run", "refund", "--node", "shop", "--key", "once", "--params", order("A-8"), *more
        )
        assert other.code == 2
        assert "once" in other.err


# -- several nodes ---------------------------------------------------------------------------------


def test_a_fan_out_is_a_table_and_found_by_its_id(live):
    done = live("run", "refund", "--all", "--params", order(), "--key", "both")
    assert done.code == 0, done
    assert "2 succeeded; id both" in done.out
    shown = live("show", "both", "--json").json()
    assert [story["action"]["id"] for story in shown["stories"]] == ["both.shop", "both.shop2"]
    failed = live(
        "run",
        "refund",
        *("--node", "shop", "--node", "shop2", "--sequential", "--on-failure", "stop"),
        *("--params", order("Z"), "--json"),
    )
    assert failed.code == 1
    errors = [item["error"]["kind"] for item in failed.json()["results"].values()]
    assert errors == ["action_failed", "skipped"]


def test_a_fan_out_through_the_queue_is_followed_to_its_end(live):
    done = live("run", "refund", "--all", "--queue", "--follow", "--params", order(), "--json")
    assert done.code == 0, done
    told = done.json()
    assert {item["state"] for item in told["results"].values()} == {"succeeded"}


# -- stopping and following ------------------------------------------------------------------------


def test_a_running_action_shows_how_far_it_is_and_is_cancelled(live):
    with subprocess.Popen(
        live.slow("long", seconds=30),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        assert "part" in running.stderr.readline()
        cancelled = live("cancel", "long")
        assert cancelled.code == 0, cancelled
        assert running.wait(timeout=20) != 0
    assert live.until("long", "cancelled")["node"] == "shop"
    assert live("cancel", "long").code == 2


def test_ctrl_c_says_that_the_action_goes_on(live):
    with subprocess.Popen(
        live.slow("left", seconds=3),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        assert "part" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "meshctl actions show left" in said
    assert "Traceback" not in said
    assert live.until("left", "succeeded", "cancelled")["state"] == "succeeded"


def test_the_history_is_followed(live):
    with subprocess.Popen(
        live.argv("actions", "history", "--follow", "--limit", "1", "--action", "refund", "--json"),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        following.stdout.readline()  # what was there
        assert (
            live("run", "refund", "--node", "shop", "--key", "seen", "--params", order()).code == 0
        )
        seen = json.loads(following.stdout.readline())
        assert seen["id"] == "seen"
        following.terminate()


# -- a node that is away ---------------------------------------------------------------------------


def test_queued_actions_wait_for_their_node_and_dead_letters_are_repeated(live, bearer):
    live.nodes["shop2"].end()
    to_shop2 = ["--node", "shop2", "--queue"]
    for number in range(3):
        typed = ["--params", order("A-9", cents=number + 1), "--key", f"q{number}"]
        assert live("run", "refund", *to_shop2, *typed, "--expires", "2d").code == 0
    typed = ["--params", order("B-1"), "--key", "dead"]
    assert live("run", "refund", *to_shop2, *typed).code == 0
    status, queued = live.http(
        "POST",
        "/actions",
        {"action": "refund", "params": {"order": "A-9"}, "node": "shop2", "mode": "queue"}
        | {"idempotency_key": "from-http", "expires_s": 3600},
        bearer=bearer,
    )
    assert (status, queued["state"], queued["id"]) == (202, "queued", "from-http")
    waiting = live("queue", "--node", "shop2", "--json").json()
    assert [entry["id"] for entry in waiting["actions"]] == ["q0", "q1", "q2", "dead", "from-http"]
    _, told = live.http("GET", "/actions/queue?node=shop2", bearer=bearer)
    assert told["waiting"] == {"shop2": 5}
    assert live("cancel", "q1").code == 0
    status, told = live.http("POST", "/actions/from-http/cancel", bearer=bearer)
    assert (status, told["state"]) == (200, "cancelled")

    live.nodes["shop2"].start()
    live.until_healthy("shop2")
    assert live.until("q2", "succeeded")["mode"] == "queue"
    assert live.until("q0", "succeeded")["accepted_at"] <= live.until("q2", "succeeded")["at"]
    assert live.until("q1", "cancelled")["result"] is None
    assert live.until("dead", "failed")["error"]["kind"] == "action_failed"
    _, letters = live.http("GET", "/actions/dead-letters?node=shop2", bearer=bearer)
    assert [letter["id"] for letter in letters["actions"]] == ["dead"]
    assert "no such order" in live("dead").out

    orders = live.folder / "orders"
    orders.write_text(orders.read_text() + " B-1")
    status, told = live.http("POST", "/actions/dead/retry", bearer=bearer)
    assert (status, told["state"]) == (202, "queued")
    assert live.until("dead", "succeeded")["attempt"] == 2
    _, shown = live.http("GET", "/actions/dead", bearer=bearer)
    states = [attempt["state"] for attempt in shown["actions"][0]["attempts"]]
    assert states[-2:] == ["failed", "succeeded"]
    assert live("retry", "dead").code == 2
    assert live.http("POST", "/actions/dead/retry", bearer=bearer)[0] == 409


def test_scopes_of_single_actions_hold_for_all_of_it(live):
    assert live("run", "refund", "--node", "shop", "--key", "mine", "--params", order()).code == 0
    narrow = live.token("actions:slow")
    assert live.http("GET", "/actions/mine", bearer=narrow)[0] == 404
    assert live.http("POST", "/actions/mine/cancel", bearer=narrow)[0] == 404
    assert live.http("POST", "/actions/mine/retry", bearer=narrow)[0] == 404
    assert live.http("GET", "/actions/queue", bearer=narrow)[0] == 403
    body = {"action": "refund", "params": {"order": "A-7"}, "node": "shop", "mode": "queue"}
    assert live.http("POST", "/actions", body, bearer=narrow)[0] == 403
    _, told = live.http("GET", "/actions/catalogue", bearer=narrow)
    assert {each["action"]["name"] for each in told["actions"]} == {"slow"}
