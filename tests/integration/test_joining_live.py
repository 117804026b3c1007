"""Each way into a mesh, with processes: the right thing gets in, all else is told what to do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from live_mesh import START_S, LiveMesh, LiveNode, agent, clean_environment, health_of
from processes import pause

from mesh.errors import MeshError
from mesh.types import Status
from mesh.wire.messages import NodeRegister, NodeUpdate

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joining")
    mesh = LiveMesh(folder, MESH_SECURITY__APPROVAL_QUEUE="true", MESH_RATE_LIMIT__ENABLED="false")
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.stop()


class Elsewhere:
    """`mesh-agent run --nats URL`, with nothing of the mesh's state folder."""

    def __init__(self, live: LiveMesh, folder: Path, name: str, *arguments: str, **environment):
        self.state = folder / f"elsewhere-{name}"
        url = live.file()["nats_url"]
        argv = agent("run", "--nats", url, "--state-dir", self.state, "--name", name, *arguments)
        environment = clean_environment(MESH_SEARCH__EMBEDDER="hash", **environment)
        self.node = LiveNode(name, argv, folder, environment)
        live.nodes[f"{folder.name}-{name}"] = self.node  # ended with the mesh, whatever happens
        self.node.start()

    @property
    def key_file(self) -> Path:
        return self.state / "nodes" / self.node.name / "key.json"

    @property
    def log(self) -> str:
        return self.node.log.read_text()

    async def refused(self) -> tuple[int, str]:
        """Its exit code and last words."""
        return await asyncio.to_thread(self.node.wait, START_S), self.log.splitlines()[-1]


async def until(client, slug: str, health: str = "healthy") -> None:
    async with asyncio.timeout(START_S):
        while await health_of(client, slug) != health:
            await asyncio.sleep(0.05)


async def said(node: Elsewhere, words: str) -> str:
    """The line with these words, once it is there."""
    async with asyncio.timeout(START_S):
        while not (found := [line for line in node.log.splitlines() if words in line]):
            assert node.node.is_alive(), node.log
            await asyncio.sleep(0.05)
    return found[-1]


def http_status(live: LiveMesh, key: str) -> int:
    url = f"{live.file()['http_url']}/api/ai-engine/status"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


# -- the ways --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["file", "bare", "environment"])
async def test_a_registered_node_joins_from_anywhere_with_its_key(live, tmp_path, form):
    name = f"registered-{form}"
    async with live.connect() as client:
        made = await client.register_node(NodeRegister(name=name))
        file = tmp_path / "key"
        login = {"user": name, "password": made.api_key}
        file.write_text(json.dumps(login) if form == "file" else f"{made.api_key}\n")
        file.chmod(0o600)
        if form == "environment":
            joined = Elsewhere(live, tmp_path, name, MESH_NODE__API_KEY=made.api_key)
        else:
            joined = Elsewhere(live, tmp_path, name, "--creds", str(file))
        await until(client, name)
        assert not joined.key_file.exists()
        assert made.api_key not in joined.log
        assert made.api_key not in " ".join(psutil.Process(joined.node.pid).cmdline())


async def test_a_join_token_is_good_for_one_node_which_keeps_its_key(live, tmp_path):
    async with live.connect() as client:
        made = await client.access.create_join_token()
        token = {"MESH_NODE__JOIN_TOKEN": made.join_token}
        first = Elsewhere(live, tmp_path, "first", "--weight", "3", "--type", "shop", **token)
        await until(client, "first")
        (record,) = (await client.nodes(node="first")).nodes
        assert (record.weight, record.type) == (3.0, "shop")
        assert stat.S_IMODE(first.key_file.stat().st_mode) == 0o600
        assert json.loads(first.key_file.read_bytes())["user"] == "first"
        code, words = await Elsewhere(live, tmp_path, "second", **token).refused()
        assert code == 4
        assert "used up" in words
        first.node.end()
        first.node.start()
        await until(client, "first", "healthy")
        assert made.join_token not in first.log
        assert first.log.count("mesh.node.joined") == 1


async def test_a_join_token_that_is_none_or_expired_or_revoked_is_refused(live, tmp_path):
    async with live.connect() as client:
        short = await client.access.create_join_token(ttl_s=1)
        revoked = await client.access.create_join_token()
        await client.access.revoke(revoked.id)
        await asyncio.sleep(1.1)
    tokens = {"none": "nmj_" + "x" * 43, "late": short.join_token, "gone": revoked.join_token}
    nodes = [
        Elsewhere(live, tmp_path, name, MESH_NODE__JOIN_TOKEN=token)
        for name, token in tokens.items()
    ]
    for node, token in zip(nodes, tokens.values(), strict=True):
        code, words = await node.refused()
        assert code == 4, words
        assert "nodes join-token create" in words
        assert token not in node.log
        assert not node.key_file.exists()


async def test_a_name_that_is_taken_gives_the_use_of_the_token_back(live, tmp_path):
    async with live.connect() as client:
        made = await client.access.create_join_token()
        await client.register_node(NodeRegister(name="taken"))
        token = {"MESH_NODE__JOIN_TOKEN": made.join_token}
        code, words = await Elsewhere(live, tmp_path, "taken", **token).refused()
        assert code == 2
        assert "rotate-key taken --out" in words
        Elsewhere(live, tmp_path, "not-taken", **token)
        await until(client, "not-taken")


@pytest.mark.parametrize("name", ["master", "gateway", "a.b", "crm*", ">", "x" * 65])
async def test_names_that_cannot_be_are_refused_before_anybody_is_asked(live, tmp_path, name):
    argv = agent("run", "--state-dir", live.state, "--name", name)
    node = LiveNode("odd", argv, tmp_path, clean_environment(MESH_SEARCH__EMBEDDER="hash"))
    node.start()
    assert await asyncio.to_thread(node.wait, START_S) == 2
    assert "Traceback" not in node.log.read_text()


async def test_an_operators_file_registers_a_node_elsewhere(live, tmp_path):
    operator = live.file()["credentials"]["operator"]
    node = Elsewhere(live, tmp_path, "adopted", "--operator", operator)
    async with live.connect() as client:
        await until(client, "adopted")
    assert json.loads(node.key_file.read_bytes())["user"] == "adopted"


async def test_somebody_elses_key_is_told_from_ones_own(live, tmp_path):
    operator = live.file()["credentials"]["operator"]
    code, words = await Elsewhere(live, tmp_path, "mistaken", "--creds", operator).refused()
    assert code == 1
    assert "the login of 'operator', and this node is 'mistaken'" in words


async def test_a_node_that_asks_waits_for_a_yes_and_comes_by_itself(live, tmp_path):
    node = Elsewhere(live, tmp_path, "asking", "--request-approval")
    line = await said(node, "mesh.node.approval_awaited")
    async with live.connect() as client:
        listed = {each.name: each for each in (await client.access.pending()).nodes}
        assert listed["asking"].fingerprint in line
        await client.access.approve("asking")
        await until(client, "asking")
    assert "mesh.node.approved" in node.log
    assert json.loads(node.key_file.read_bytes())["password"] not in node.log


async def test_a_node_that_was_turned_away_does_not_come_in(live, tmp_path):
    node = Elsewhere(live, tmp_path, "unwanted", "--request-approval")
    await said(node, "mesh.node.approval_awaited")
    async with live.connect() as client:
        await client.access.reject("unwanted")
        await asyncio.sleep(2)
        assert "unwanted" not in {each.name for each in (await client.access.pending()).nodes}
        assert await health_of(client, "unwanted") == ""
        assert node.node.is_alive()


# -- afterwards ------------------------------------------------------------------------------------


async def test_a_key_is_replaced_under_load_without_a_failed_call(live, tmp_path):
    node = live.add("rotating")
    async with live.connect() as client:
        await until(client, "rotating")
        failed, calls, stop = [], 0, asyncio.Event()

        async def load():
            nonlocal calls
            while not stop.is_set():
                try:
                    await client.ping("rotating")
                except MeshError as error:
                    failed.append(error)
                calls += 1
                await asyncio.sleep(0.005)

        loading = asyncio.create_task(load())
        made = await client.access.rotate_key("rotating", overlap_s=60)
        old = json.loads((live.state / "nodes" / "rotating" / "key.json").read_bytes())["password"]
        assert made.previous_until > time.time() * 1000
        assert http_status(live, old) == http_status(live, made.api_key) == 200
        await asyncio.sleep(3.5)  # the last of the kicks that follow a change comes after 2.5 s
        stop.set()
        await loading
        assert node.is_alive()
        assert failed == []
        assert calls > 100


async def test_a_removed_node_is_out_within_a_second_and_stays_out_while_it_runs(live, tmp_path):
    live.add("removed")
    key_file = live.state / "nodes" / "removed" / "key.json"
    async with live.connect() as client:
        await until(client, "removed")
        key = json.loads(key_file.read_bytes())["password"]
        assert http_status(live, key) == 200
        began = time.monotonic()
        await client.remove_node("removed")
        while True:
            try:
                await client.ping("removed", timeout_s=0.2)
            except MeshError:
                if http_status(live, key) == 401:
                    break
            assert time.monotonic() - began < 1
        await asyncio.sleep(4)
        assert live.nodes["removed"].is_alive()
        assert await health_of(client, "removed") == ""
        assert live.nodes["removed"].log.read_text().count("mesh.bus.login_awaited") <= 4
        live.nodes["removed"].end()
        live.nodes["removed"].start()
        await until(client, "removed")
    assert json.loads(key_file.read_bytes())["password"] != key


async def test_a_suspended_node_is_out_and_back_again_by_itself(live):
    node = live.add("suspended")
    async with live.connect() as client:
        await until(client, "suspended")
        pid = node.pid
        await client.update_node("suspended", NodeUpdate(status=Status.INACTIVE))
        async with asyncio.timeout(10):
            while await health_of(client, "suspended") == "healthy":
                await asyncio.sleep(0.05)
        await client.update_node("suspended", NodeUpdate(status=Status.ACTIVE))
        await until(client, "suspended")
        assert (node.is_alive(), node.pid) == (True, pid)


async def test_a_suspended_node_that_starts_says_why_it_may_not(live):
    node = live.add("asleep")
    async with live.connect() as client:
        await until(client, "asleep")
        await client.update_node("asleep", NodeUpdate(status=Status.INACTIVE))
    node.end()
    node.start()
    assert await asyncio.to_thread(node.wait, START_S) == 4
    assert "update asleep --status active" in node.log.read_text()


async def test_a_node_that_finds_no_master_waits_for_one(live):
    """Nobody refuses its login: there is no one who could."""
    master = live.pid("master")
    pause(master)
    try:
        node = live.add("patient")
        async with asyncio.timeout(START_S):
            while "login_awaited" not in node.log.read_text():
                assert node.is_alive(), node.log.read_text()
                await asyncio.sleep(0.1)
    finally:
        os.kill(master, signal.SIGCONT)
    async with live.connect() as client:
        await until(client, "patient")


async def test_a_node_that_waits_for_a_master_can_be_ended(live):
    master = live.pid("master")
    pause(master)
    try:
        node = live.add("hasty")
        async with asyncio.timeout(START_S):
            while "login_awaited" not in node.log.read_text():
                await asyncio.sleep(0.1)
        assert node.end(signal.SIGINT) == 0
    finally:
        os.kill(master, signal.SIGCONT)
