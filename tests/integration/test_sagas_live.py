"""Sagas as people and programs meet them: meshctl, HTTP and the client against a whole mesh, with
the shop of examples/shop and an app that hangs and dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import shutil
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

from mesh.errors import ConflictError, InvalidError

ROOT = Path(__file__).parents[2]
ORDER = str(ROOT / "examples" / "shop" / "order.toml")
pytestmark = pytest.mark.timeout(180)

SLOW = """
import asyncio
import os

from mesh import Node

node = Node("slow")


def note(text):
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(text + "\\n")


@node.action("wait", compensate="unwait", timeout_s=60)
async def wait(params: dict, ctx) -> dict:
    note("begin " + ctx.id)
    await asyncio.sleep(params.get("seconds", 0))
    note("end " + ctx.id)
    return {}


@node.action("unwait")
async def unwait(params: dict, ctx) -> dict:
    note("undo " + ctx.id)
    return {}
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Shop(LiveMesh):
    """A mesh with the example's shop, and a node that takes its time."""

    def begin(self) -> None:
        self.file_of_shop = self.folder / "shop.json"
        self.effects = self.folder / "effects"
        (self.folder / "slow_app.py").write_text(SLOW)
        shutil.copytree(ROOT / "examples", self.folder / "examples")
        self.start()
        self.add("shop", "--app", "examples.shop:node", SHOP_FILE=str(self.file_of_shop))
        self.add("slow", "--app", "slow_app:node", EFFECTS=str(self.effects))
        asyncio.run(self.ready())

    async def ready(self) -> None:
        async with self.connect() as client, asyncio.timeout(60):
            for name in self.nodes:
                while await health_of(client, name) != "healthy":
                    await asyncio.sleep(0.05)

    @property
    def shop(self) -> dict:
        return json.loads(self.file_of_shop.read_text())

    def noted(self, saga_id: str) -> list[str]:
        lines = self.effects.read_text().splitlines() if self.effects.exists() else []
        return [line.replace(f"{saga_id}.", "") for line in lines if f" {saga_id}." in line]

    def argv(self, *typed: str) -> list[str]:
        meshctl = str(Path(sys.executable).with_name("meshctl"))
        return [meshctl, "--state-dir", str(self.state), *typed]

    def __call__(self, *typed: str) -> Answer:
        done = subprocess.run(
            self.argv("sagas", *typed),
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def token(self, scopes: str) -> str:
        argv = self.argv("tokens", "issue", "--scope", scopes, "--json")
        made = subprocess.run(argv, env=clean_environment(), capture_output=True, check=True)
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

    def until_noted(self, saga_id: str, text: str) -> None:
        until = time.monotonic() + 30
        while text not in self.noted(saga_id):
            assert time.monotonic() < until, self.noted(saga_id)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    mesh = Shop(tmp_path_factory.mktemp("sagas"))
    try:
        mesh.begin()
        yield mesh
    finally:
        mesh.stop()


def waits(saga_id: str, *seconds: float, **fields: Any) -> dict:
    steps = [
        {"name": f"s{at}", "action": "wait", "params": {"seconds": each}}
        for at, each in enumerate(seconds)
    ]
    return {"id": saga_id, "steps": steps} | fields


# -- meshctl ---------------------------------------------------------------------------------------


def test_the_example_is_done_whole_or_not_at_all(live):
    done = live("run", ORDER, "--key", "o1")
    assert done.code == 0, done
    assert "saga o1: succeeded" in done.out
    assert live.shop["orders"]["O-o1"] == {
        "item": "lamp",
        "count": 1,
        "paid": 4900,
        "shipped": True,
    }
    again = live("run", ORDER, "--key", "o1", "--json")
    assert (again.code, again.json()["state"]) == (0, "succeeded")
    before = live.shop
    assert len(before["orders"]) == 1, "the same id runs once"

    dear = Path(ORDER).read_text().replace("4900", "9000000")
    (live.folder / "dear.toml").write_text(dear)
    refused = live("run", str(live.folder / "dear.toml"), "--key", "o2")
    assert refused.code == 1
    assert "saga o2: compensated" in refused.out
    assert "has not got that much" in refused.out
    assert live.shop == before, "what was set aside is back"


def test_list_and_show(live):
    live("run", ORDER, "--key", "o3")
    listed = live("list", "--name", "order", "--json").json()
    assert "o3" in [saga["id"] for saga in listed["sagas"]]
    assert "o3" in live("list", "--state", "succeeded", "--since", "1h").out
    shown = live("show", "o3")
    assert "result of reserve" in shown.out
    assert [line.split()[0] for line in shown.out.splitlines()[9:12]] == [
        "reserve",
        "charge",
        "ship",
    ]
    one = live("show", "o3", "--json").json()
    assert [step["state"] for step in one["steps"]] == ["succeeded"] * 3
    assert (one["caller"], one["steps"][0]["result"]) == ("operator", {"order": "O-o3"})
    assert live("show", "nobody").code == 2


def test_what_makes_no_sense_is_refused_before_anything_is_done(live):
    body = {"steps": [{"name": "a", "action": "reserve", "params": {"item": "lamp"}}]}
    file = live.folder / "bad.json"

    def refused(**changes: Any) -> Answer:
        file.write_text(json.dumps({"steps": [body["steps"][0] | changes]}))
        answer = live("run", str(file), "--json")
        assert answer.code == 2, answer
        return answer.json()

    before = live.shop
    assert "steps[0].compensate" in refused()["fields"]
    assert (
        "steps[0].params.count" in refused(final=True, params={"item": "a", "count": 0})["fields"]
    )
    assert "shop offers" in refused(final=True, node="shop", action="fly")["message"]
    assert "no node offers 'fly'; actions:" in refused(final=True, action="fly")["message"]
    assert "unknown node 'nobody'" in refused(final=True, node="nobody")["message"]
    file.write_text("{")
    assert live("run", str(file)).code == 2
    assert live("run", str(live.folder / "missing.json")).code == 2
    assert live.shop == before


def test_no_wait_abort_and_an_id_that_is_taken(live):
    file = live.folder / "slow.yaml"
    file.write_text(json.dumps(waits("", 0, 50)))  # JSON is YAML too
    begun = live("run", str(file), "--key", "w1", "--no-wait")
    assert (begun.code, begun.out) == (0, "w1\n")
    live.until_noted("w1", "begin s1")
    assert "s1    wait    slow  running" in live("show", "w1").out
    file.write_text(json.dumps(waits("", 1)))
    taken = live("run", str(file), "--key", "w1")
    assert (taken.code, "another saga" in taken.err) == (2, True)
    assert live("resume", "w1").code == 2, "it does not wait for anybody"
    assert live("abort", "w1").code == 0
    live.until_noted("w1", "undo s0.undo")
    assert live.noted("w1") == [
        "begin s0",
        "end s0",
        "begin s1",
        "undo s1.undo",
        "undo s0.undo",
    ]
    assert live("abort", "w1").code == 2, "it has ended"


def test_ctrl_c_says_that_the_saga_goes_on(live):
    file = live.folder / "slow2.json"
    file.write_text(json.dumps(waits("w2", 3)))
    argv = live.argv("sagas", "run", str(file))
    process = subprocess.Popen(argv, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    live.until_noted("w2", "begin s0")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the saga goes on: meshctl sagas show w2" in told
    live.until_noted("w2", "end s0")


def test_on_a_terminal_the_steps_are_shown_as_they_go(live):
    file = live.folder / "slow3.json"
    file.write_text(json.dumps(waits("w3", 0.5, 0.5)))
    ours, theirs = pty.openpty()
    environment = clean_environment(TERM="xterm", COLUMNS="120")
    process = subprocess.Popen(
        live.argv("sagas", "run", str(file)), env=environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=30) == 0
    assert b"waiting" in shown
    assert b"running" in shown
    assert b"saga w3: succeeded" in shown


# -- HTTP ------------------------------------------------------------------------------------------


def test_sagas_over_http(live):
    bearer = live.token("actions")
    code, done = live.http("POST", "/sagas", waits("h1", 0, 0, name="http"), bearer=bearer)
    assert (code, done["success"], done["saga"]["state"]) == (200, True, "succeeded"), done
    assert done["saga"]["caller"] == "operator", "not the gateway"
    code, begun = live.http("POST", "/sagas", waits("h2", 30, wait=False), bearer=bearer)
    assert (code, begun["success"], begun["saga"]["state"]) == (202, False, "running")
    code, waited = live.http("POST", "/sagas", waits("h2", 30, wait_s=0.3), bearer=bearer)
    assert (code, waited["saga"]["id"]) == (202, "h2"), "it joins"
    code, page = live.http("GET", "/sagas?name=http&limit=5", bearer=bearer)
    assert (code, [saga["id"] for saga in page["sagas"]]) == (200, ["h1"])
    live.until_noted("h2", "begin s0")
    code, stopping = live.http("POST", "/sagas/h2/abort", bearer=bearer)
    assert (code, stopping["saga"]["stop"]) == (200, True)
    live.until_noted("h2", "undo s0.undo")
    assert live.http("POST", "/sagas/h1/resume", bearer=bearer)[0] == 409
    assert live.http("POST", "/sagas/h1/abort", bearer=bearer)[0] == 409
    assert live.http("GET", "/sagas/nobody", bearer=bearer)[0] == 404


def test_what_http_refuses(live):
    bearer = live.token("actions")
    step = {"name": "a", "action": "wait"}

    def asked(*steps: dict, **fields: Any) -> tuple[int, Any]:
        return live.http("POST", "/sagas", {"steps": list(steps)} | fields, bearer=bearer)

    assert asked({"name": "a", "action": "reserve", "params": {"item": "x"}})[0] == 422
    code, said = asked({"name": "a", "action": "reserve", "final": True, "params": {"itm": 1}})
    assert (code, next(iter(said["errors"])).startswith("steps[0].params")) == (422, True)
    assert asked(step, step)[0] == 422
    assert asked(step | {"wrong": 1})[0] == 422
    assert asked(step | {"action": "fly"})[0] == 400
    assert asked(step | {"node": "nobody"})[0] == 404
    assert asked(step, id="a/b")[0] == 422
    assert asked()[0] == 422
    assert asked(step, id="h9")[0] == 200
    assert asked(step, step | {"name": "b"}, id="h9")[0] == 409
    assert live.http("POST", "/sagas", {"steps": [step]}, bearer="nobody")[0] == 401


def test_scopes_of_single_actions_open_the_sagas_that_need_no_others(live):
    some, search = live.token("actions:wait"), live.token("search")
    both = live.token("actions:wait,actions:unwait")
    body = waits("h3", 0)
    assert live.http("POST", "/sagas", body, bearer=search)[0] == 403
    code, said = live.http("POST", "/sagas", body, bearer=some)
    assert (code, "actions:unwait" in said["message"]) == (403, True), "it may have to be undone"
    assert live.http("POST", "/sagas", body, bearer=both)[0] == 200
    for path in ("/sagas/h3", "/sagas/h3/abort", "/sagas/h3/resume"):
        method = "GET" if path == "/sagas/h3" else "POST"
        assert live.http(method, path, bearer=some)[0] == 404
    assert live.http("GET", "/sagas/h3", bearer=both)[0] == 200
    seen = live.http("GET", "/sagas", bearer=both)[1]
    assert seen["total"] == len(seen["sagas"]) > 0
    assert {step["call"]["action"] for saga in seen["sagas"] for step in saga["steps"]} == {"wait"}
    assert live.http("GET", "/sagas", bearer=some)[1]["total"] == 0


# -- what breaks -----------------------------------------------------------------------------------


async def test_a_step_that_was_interrupted_waits_for_a_person(live):
    """Its node dies in the middle: whether it took effect, nobody but a person can tell."""
    for saga_id, after in (("i1", "resume"), ("i2", "abort")):
        async with live.connect() as client:
            began = await client.sagas.start(waits(saga_id, 0, 3))
            await asyncio.to_thread(live.until_noted, saga_id, "begin s1")
            os.kill(live.nodes["slow"].pid, signal.SIGKILL)
            live.nodes["slow"].wait(10)
            live.nodes["slow"].start()
            paused = await client.sagas.follow(began.id, timeout_s=60)
            assert paused.state == "paused", paused
            assert paused.steps[1].error.kind == "interrupted"
            await getattr(client.sagas, after)(saga_id)
            ended = await client.sagas.follow(saga_id, timeout_s=60)
            if after == "resume":
                assert ended.state == "succeeded"
                assert live.noted(saga_id)[2:] == ["begin s1", "begin s1", "end s1"]
            else:
                assert ended.state == "compensated"
                assert live.noted(saga_id)[2:] == ["begin s1", "undo s1.undo", "undo s0.undo"]
            with pytest.raises(ConflictError):
                await client.sagas.resume(saga_id)


async def test_what_takes_too_long_is_stopped(live):
    async with live.connect() as client:
        body = waits("t1", 0, 50, timeout_s=1.5)
        ended = await client.sagas.run(body, timeout_s=40)
        assert (ended.state, ended.reason) == ("compensated", "the saga took longer than it may")
        assert live.noted("t1")[2:] == ["begin s1", "undo s1.undo", "undo s0.undo"]
        body = waits("t2", 0, 50)
        body["steps"][1]["timeout_s"] = 0.5
        ended = await client.sagas.run(body, timeout_s=40)
        assert ended.reason == "step 's1' took longer than 0.5 s"
        story = (await client.action("t2.s1")).stories[0].action
        assert (story.state, story.caller) == ("cancelled", "operator")


async def test_a_hundred_at_once_under_one_id_are_one_saga(live):
    async with live.connect() as client:
        runs = [client.sagas.run(waits("u1", 0, 0.2), timeout_s=60) for _ in range(100)]
        ended = await asyncio.gather(*runs)
        assert {saga.state for saga in ended} == {"succeeded"}
        assert live.noted("u1") == ["begin s0", "end s0", "begin s1", "end s1"]
        with pytest.raises(InvalidError):
            await client.sagas.run({"id": "u2", "steps": []})
        with pytest.raises(InvalidError):
            await client.sagas.show("a.b")


async def test_master_and_broker_may_die_meanwhile(live):
    async with live.connect() as client:
        work = asyncio.create_task(client.sagas.run(waits("b1", 0.5, 1, 4, 0.5), timeout_s=100))
        await asyncio.to_thread(live.until_noted, "b1", "begin s1")
        os.kill(live.pid("master"), signal.SIGKILL)
        await asyncio.to_thread(live.until_noted, "b1", "begin s2")
        os.kill(live.pid("broker"), signal.SIGKILL)
        ended = await work
        assert ended.state == "succeeded", ended
        assert live.noted("b1") == [f"{what} s{at}" for at in range(4) for what in ("begin", "end")]
