"""`meshctl` about routing, as a person types it: replicas, breakers, drain, explain."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from typed_mesh import BIN, PATIENTLY, Mesh, eventually

APP = """
import asyncio

from mesh import Node

node = Node("replica")


@node.action("explode")
async def explode(params: dict) -> dict:
    return {"never": 1 / 0}


@node.action("doze")
async def doze(params: dict) -> dict:
    await asyncio.sleep(params["seconds"])
    return {"slept": params["seconds"]}
"""


@pytest.fixture(scope="module")
def meshctl(tmp_path_factory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("routing")
    (folder / "app.py").write_text(APP)
    # Each command is a caller of its own: what they find out is put together by the master.
    running = Mesh(folder, "eu-1", "eu-2", MESH_BREAKER__MIN_CALLS="3")
    try:
        running.start()
        fill(running)
        yield running
    finally:
        running.end()
        structlog.reset_defaults()  # a command silences the libraries of its process


def fill(meshctl: Mesh) -> None:
    """The replicas alike."""
    body = json.dumps({"collection": "notes", "documents": [{"id": "x", "content": "red fox"}]})
    for node in ("eu-1", "eu-2"):
        made = meshctl("actions", "run", "index", "--node", node, "--params", body)
        assert made.code == 0, made
    eventually(lambda: routed(meshctl)["eu-1"]["shards"] == routed(meshctl)["eu-2"]["shards"])


def routed(meshctl: Mesh) -> dict[str, Any]:
    return {node["slug"]: node for node in meshctl("routes", "--json").json["nodes"]}


def search(meshctl: Mesh) -> dict[str, Any]:
    found = meshctl("search", "fox", "--collection", "notes", "--json", *PATIENTLY)
    assert found.code == 0, found
    assert [hit["id"] for hit in found.json["results"]] == ["x"]
    return found.json


def breaker(meshctl: Mesh) -> dict[str, Any]:
    listed = meshctl("breakers", "list", "--node", "eu-1", "--json").json["breakers"]
    return next((seen for seen in listed if seen["verb"] == "act.explode"), {"state": "none"})


def test_the_replicas_of_a_shard_are_routed_to_and_answer_for_it(meshctl):
    seen = routed(meshctl)
    assert {slug: (node["asked"], node["why_not"]) for slug, node in seen.items()} == {
        "eu-1": (True, ""),
        "eu-2": (True, ""),
    }
    assert seen["eu-1"]["shards"] == ["eu"]
    pinged = meshctl("nodes", "ping", "--shard", "eu", "--json").json["nodes"]
    assert [(one["shard"], one["ok"]) for one in pinged] == [("eu", True)]
    assert pinged[0]["node"] in seen
    typed = meshctl.typed("routes")
    assert [line.split()[3] for line in typed.out.splitlines()[1:3]] == ["yes", "yes"]


def test_a_search_is_explained_and_counted(meshctl):
    found = search(meshctl)
    told = meshctl("explain", found["id"], "--json")
    assert told.code == 0, told
    (call, *_) = [call for call in told.json["calls"] if call["verb"] == "search"]
    assert (call["caller"], call["outcome"]) == ("operator", "ok")
    assert [step["what"] for step in call["steps"]] == ["chosen", "answered"]
    (hit,) = found["results"]
    assert hit["node"] == call["steps"][-1]["node"]
    assert f"{found['id']}: search for operator" in meshctl("explain", found["id"]).out
    figures = eventually(lambda: meshctl("nodes", "stats", "--json").json["verbs"].get("search"))
    assert figures["calls"] >= 1
    assert figures["p50_ms"] > 0


def test_an_action_is_explained_by_its_key(meshctl):
    doze = ("actions", "run", "doze", "--node", "eu-1", "--params", '{"seconds": 0}')
    assert meshctl(*doze, "--key", "nap-1").code == 0
    told = meshctl("explain", "nap-1", "--json").json
    (call,) = told["calls"]
    assert call["verb"] == "act.doze"
    assert call["steps"][-1]["what"] == "answered"


def test_what_nobody_asked_cannot_be_explained(meshctl):
    answer = meshctl("explain", "never-asked", "--json")
    assert answer.code == 1
    assert answer.json["kind"] == "not_traced"


def test_an_action_that_fails_for_all_is_kept_from_all_until_it_is_reset(meshctl):
    explode = ("actions", "run", "explode", "--node", "eu-1", "--json")
    for _ in range(4):
        assert meshctl(*explode).code == 1
    open_ = eventually(lambda: (seen := breaker(meshctl))["state"] == "open" and seen)
    assert open_["failures"] >= 3
    assert open_["until"] > time.time() * 1000

    refused = meshctl(*explode)
    assert (refused.code, refused.json["kind"]) == (1, "circuit_open")
    assert routed(meshctl)["eu-1"]["breakers"]["act.explode"]["state"] == "open"
    assert "act.explode open" in meshctl("nodes", "monitor", "--once").out
    assert meshctl("nodes", "stats", "--json").json["breakers"]["open"] == 1
    shown = meshctl("nodes", "show", "eu-1", "--json").json["breakers"]
    assert "open" in {seen["state"] for seen in shown}
    search(meshctl)

    assert meshctl("breakers", "reset", "eu-1", "--verb", "act.explode").code == 0
    eventually(lambda: breaker(meshctl)["state"] != "open")
    again = meshctl(*explode)
    assert (again.code, again.json["kind"]) == (1, "internal"), "it was sent"


def test_a_drained_node_finishes_what_runs_and_others_take_its_place(meshctl):
    typed = ("actions", "run", "doze", "--node", "eu-2", "--params", '{"seconds": 3}', "--json")
    running = subprocess.Popen(
        [BIN / "meshctl", *typed],
        env=meshctl.environment("operator"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(
            lambda: meshctl("nodes", "show", "eu-2", "--json").json["node"]["in_flight"] == 1
        )
        too_short = meshctl("nodes", "drain", "eu-2", "--wait", "0.1", "--json")
        assert (too_short.code, too_short.json["idle"]) == (1, False)
        assert routed(meshctl)["eu-2"]["why_not"].startswith("draining")
        assert search(meshctl)["results"][0]["node"] == "eu-1"
        refused = meshctl(*typed[:5], "--params", '{"seconds": 0}', "--json")
        assert (refused.code, refused.json["kind"]) in {(1, "draining"), (1, "unavailable")}
        assert meshctl("nodes", "ping", "eu-2").code == 0

        drained = meshctl("nodes", "drain", "eu-2", "--wait", "30")
        assert drained.code == 0, drained
        assert "nothing runs on it" in drained.out
        out, _ = running.communicate(timeout=10)
        assert json.loads(out)["state"] == "succeeded", "it was let finish"
    finally:
        running.kill()

    assert meshctl("nodes", "undrain", "eu-2").code == 0
    eventually(lambda: routed(meshctl)["eu-2"]["asked"])
    assert (
        meshctl("actions", "run", "doze", "--node", "eu-2", "--params", '{"seconds": 0}').code == 0
    )
