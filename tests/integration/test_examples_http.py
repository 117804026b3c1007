"""The examples that speak HTTP, run against a real gateway: curl, Python, Node.js, joining."""

from __future__ import annotations

import asyncio
import http.server
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import msgspec
import pytest
from live_mesh import START_S, LiveMesh, clean_environment, health_of, until_reborn

pytestmark = pytest.mark.timeout(180)

CLIENTS = Path(__file__).parents[2] / "examples" / "clients"
BURST, PERIOD_S = 20, 40


def load_client():
    """examples/clients/client.py: a script to copy, not a package."""
    spec = importlib.util.spec_from_file_location("mesh_http_example", CLIENTS / "client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_client()
KEYWORDS = dict(example.MeshHttp.__init__.__kwdefaults__)


class Counting(example.MeshHttp):
    """Notes what each request was answered with."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.statuses = []

    def _send(self, *arguments, **options):
        answer = super()._send(*arguments, **options)
        self.statuses.append(answer[0])
        return answer


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    mesh = LiveMesh(
        tmp_path_factory.mktemp("examples-http"),
        MESH_RATE_LIMIT__MAX_ATTEMPTS=str(BURST),
        MESH_RATE_LIMIT__PERIOD_S=str(PERIOD_S),
        MESH_SEARCH__TIMEOUT_MS="5000",
        MESH_SECURITY__CLOCK_SKEW_S="0",
    )
    try:
        mesh.start()
        mesh.add("crm-app", "--app", "examples.crm:node", CRM_DATABASE=str(mesh.folder / "crm.db"))
        asyncio.run(ready(mesh))
        yield mesh
    finally:
        mesh.stop()


async def ready(mesh):
    async with asyncio.timeout(START_S), mesh.connect() as client:
        while await health_of(client, "crm-app") != "healthy":
            await asyncio.sleep(0.1)


def meshctl(live, *arguments):
    program = Path(sys.executable).with_name("meshctl")
    argv = [program, "--state-dir", live.state, *arguments]
    done = subprocess.run(
        [*map(str, argv), "--json"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def issued(live, *, ttl_s=3600, refresh=False):
    """A token of somebody whom no other test has used: the rate limit counts by identity."""
    who = f"someone-{uuid.uuid4().hex[:8]}"

    async def issue():
        async with live.connect() as client:
            return await client.access.issue(
                who, ["search", "actions"], ttl_s=ttl_s, refresh=refresh
            )

    return msgspec.to_builtins(asyncio.run(issue()))


def url_of(live):
    return live.file()["http_url"]


def run(live, argv, grant=None, **more):
    environment = clean_environment(MESH_HTTP_URL=url_of(live), **more)
    if grant is not None:
        environment["MESH_TOKEN"] = grant["access_token"]
    return subprocess.run(
        [*map(str, argv)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answered(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


NODE = shutil.which("node") or "node"
CURL = [CLIENTS / "search.sh"]
PYTHON = [sys.executable, CLIENTS / "client.py"]
NODEJS = [NODE, CLIENTS / "client.mjs"]


def refund_of(order, key):
    """The same refund in each client's own words."""
    params = {"order": order, "cents": 100}
    body = {"action": "refund", "node": "crm-app", "params": params, "idempotency_key": key}
    return {
        "curl": [*CURL, "action", json.dumps(body)],
        "python": [
            *PYTHON,
            "action",
            "refund",
            json.dumps(params),
            "--node",
            "crm-app",
            "--key",
            key,
        ],
        "nodejs": [*NODEJS, "action", "crm-app", "refund", json.dumps(params), key],
    }


SEARCH = {
    "curl": [*CURL, "search", '{"query": "shattered glass", "limit": 3}'],
    "python": [*PYTHON, "search", "shattered glass", "--limit", 3],
    "nodejs": [*NODEJS, "search", "shattered glass"],
}
HEALTH = {"curl": [*CURL, "health"], "python": [*PYTHON, "health"], "nodejs": [*NODEJS, "health"]}
HISTORY = {
    "curl": [*CURL, "history", "node=crm-app&limit=50"],
    "python": [*PYTHON, "history", "--node", "crm-app"],
    "nodejs": [*NODEJS, "history", "crm-app"],
}
ORDERS = {"curl": "A-1010", "python": "A-1011", "nodejs": "A-1012"}


@pytest.mark.parametrize("client", ["curl", "python", "nodejs"])
def test_client_does_it_all(live, client):
    grant = issued(live)
    assert answered(run(live, HEALTH[client]))["status"] == "healthy"

    found = answered(run(live, SEARCH[client], grant))
    assert "glass was shattered" in found["results"][0]["content"]
    assert not found["partial"]

    key = f"refund-with-{client}"
    refund = refund_of(ORDERS[client], key)[client]
    first = answered(run(live, refund, grant))
    assert (first["state"], first["id"]) == ("succeeded", key)
    assert first["result"]["refunded_cents"] == 100
    assert answered(run(live, refund, grant))["result"] == first["result"]

    records = answered(run(live, HISTORY[client], grant))["actions"]
    (record,) = [record for record in records if record["id"] == key]
    assert (record["action"], record["state"]) == ("refund", "succeeded")
    assert record["caller"] == grant["subject"]


@pytest.mark.parametrize("client", ["curl", "python", "nodejs"])
def test_refusals_are_told(live, client):
    stranger = {"access_token": "nobody"}
    refused = run(live, SEARCH[client], stranger)
    assert refused.returncode != 0
    assert "Unauthorized" in refused.stdout + refused.stderr
    missing = run(live, refund_of("A-9", f"no-order-{client}")[client], issued(live))
    assert missing.returncode != 0
    assert "no order 'A-9'" in missing.stdout + missing.stderr


def test_token_of_the_shell_client_is_on_no_command_line(live):
    """While curl waits for an answer, anybody may look at what it was started with."""
    grant = issued(live)
    node = live.nodes["crm-app"]
    os.kill(node.pid, signal.SIGSTOP)
    environment = clean_environment(MESH_HTTP_URL=url_of(live), MESH_TOKEN=grant["access_token"])
    body = json.dumps({"query": "slow", "options": {"timeout_ms": 1500}})
    with subprocess.Popen(
        [*map(str, CURL), "search", body],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as asking:
        try:
            lines = []
            until = time.monotonic() + 10
            while not lines:
                assert time.monotonic() < until, "curl was never seen"
                assert asking.poll() is None, "it did not wait"
                lines = [line for line in command_lines(asking.pid) if line.startswith("curl")]
            assert grant["access_token"] not in " ".join(lines)
        finally:
            os.kill(node.pid, signal.SIGCONT)
            asking.wait(timeout=30)


def command_lines(parent):
    """Of a process and all below it; none of one that has ended meanwhile."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        own = Path(f"/proc/{parent}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [own, *(line for child in children for line in command_lines(int(child)))]


# -- what a client should do about 401, 429 and 503 ------------------------------------------------


def test_python_waits_when_it_asks_too_often(live):
    client = Counting(url_of(live), issued(live)["access_token"])
    while 429 not in client.statuses:
        assert client.search("glass", limit=1)["count"] == 1
    assert client.statuses.index(429) >= BURST
    assert client.statuses[-1] == 200, "it did not ask again"


def test_python_renews_an_expired_token_once(live):
    grant = issued(live, ttl_s=1, refresh=True)
    saved = []
    client = Counting(
        url_of(live),
        grant["access_token"],
        refresh_token=grant["refresh_token"],
        on_tokens=lambda access, refresh: saved.append((access, refresh)),
    )
    time.sleep(1.1)
    assert client.search("glass")["count"]
    assert client.statuses == [401, 200, 200]
    ((access, refresh),) = saved
    assert access != grant["access_token"]
    assert refresh != grant["refresh_token"]
    assert client.search("glass")["count"]
    assert client.statuses[3:] == [200]


def test_python_gives_up_on_a_node_that_stays_away(live):
    client = Counting(url_of(live), issued(live)["access_token"])
    node = live.nodes["crm-app"]

    async def incarnation():
        async with live.connect() as asking:
            (record,) = (await asking.nodes(node="crm-app")).nodes
            return record.incarnation

    before = asyncio.run(incarnation())
    node.end(signal.SIGKILL)
    try:
        with pytest.raises(example.MeshHttpError) as caught:
            client.action("customer", {"id": "C-1"}, node="crm-app")
    finally:
        node.start()
    assert caught.value.status == 503
    assert client.statuses == [503] * example.TRIES

    async def back():
        async with live.connect() as asking:
            await until_reborn(asking, "crm-app", after=before)

    asyncio.run(back())
    assert client.action("customer", {"id": "C-1"}, node="crm-app")["result"]["id"] == "C-1"


NODEJS_COUNTING = """
import { MeshHttp } from %s;
const statuses = {};
const plain = globalThis.fetch;
globalThis.fetch = async (...given) => {
  const response = await plain(...given);
  const name = `${new URL(response.url).pathname.split("/").at(-1)} ${response.status}`;
  statuses[name] = (statuses[name] ?? 0) + 1;
  return response;
};
const [url, token, refreshToken, requests] = process.argv.slice(2);
const saved = [];
const client = new MeshHttp(url, token, { refreshToken, onTokens: (...both) => saved.push(both) });
const asked = Array.from({ length: Number(requests) }, () => client.search("glass", { limit: 1 }));
const counts = (await Promise.all(asked)).map((answer) => answer.count);
console.log(JSON.stringify({ statuses, saved, counts }));
"""


def nodejs_many(live, tmp_path, grant, requests):
    script = tmp_path / "many.mjs"
    script.write_text(NODEJS_COUNTING % json.dumps((CLIENTS / "client.mjs").as_uri()))
    arguments = [url_of(live), grant["access_token"], grant["refresh_token"] or "", requests]
    return answered(run(live, [NODE, script, *arguments]))


def test_nodejs_waits_when_it_asks_too_often(live, tmp_path):
    told = nodejs_many(live, tmp_path, issued(live), BURST + 2)
    assert told["counts"] == [1] * (BURST + 2)
    assert told["statuses"]["search 429"] >= 1


def test_nodejs_renews_once_for_all_that_meet_an_expired_token(live, tmp_path):
    """Two trades of one refresh token would be a theft to the mesh, and end all its tokens."""
    grant = issued(live, ttl_s=1, refresh=True)
    time.sleep(1.1)
    told = nodejs_many(live, tmp_path, grant, 5)
    assert told["counts"] == [1] * 5
    assert told["statuses"]["refresh-token 200"] == 1
    assert told["statuses"]["search 401"] >= 1
    assert len(told["saved"]) == 1


# -- joining ---------------------------------------------------------------------------------------


def test_join_use_refresh_and_no_second_use(live, tmp_path):
    made = meshctl(live, "nodes", "join-token", "create", "--scope", "search")
    file = tmp_path / "warehouse.json"
    join = [sys.executable, CLIENTS / "join.py", "Warehouse", "--tokens", file]
    joined = run(live, join, MESH_JOIN_TOKEN=made["join_token"])
    assert joined.returncode == 0, joined.stderr
    head, _, status = joined.stdout.partition("\n")
    assert head.startswith("joined as warehouse, id ")
    assert json.loads(status)["node"]["slug"] == "warehouse"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    login = json.loads(file.read_text())
    assert example.MeshHttp(url_of(live), login["api_key"]).search("glass")["count"]

    # The join token was good for one node.
    other = [*join[:2], "Other", "--tokens", tmp_path / "other.json"]
    refused = run(live, other, MESH_JOIN_TOKEN=made["join_token"])
    assert (refused.returncode, refused.stderr[:11]) == (1, "error: 401 ")

    # A second start needs no join token, and trades the refresh token for new ones.
    again = run(live, join)
    assert again.returncode == 0, again.stderr
    renewed = json.loads(file.read_text())
    assert renewed["access_token"] != login["access_token"]
    assert renewed["refresh_token"] != login["refresh_token"]
    assert example.MeshHttp(url_of(live), renewed["access_token"]).search("glass")["count"]

    thief = example.MeshHttp(url_of(live), refresh_token=login["refresh_token"])
    with pytest.raises(example.MeshHttpError, match="401 Invalid refresh token"):
        thief.refresh()
    # Who came first cannot be told: the family of tokens is over.
    with pytest.raises(example.MeshHttpError, match="401 Invalid refresh token"):
        example.MeshHttp(url_of(live), refresh_token=renewed["refresh_token"]).refresh()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Its page while the gateway behind it is away; slow on one path."""

    def do_GET(self):
        if "limit" in self.path:
            time.sleep(1)
        page = b"<html>Bad gateway</html>"
        self.send_response(502)
        self.send_header("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("client", ["python", "nodejs"])
def test_a_page_of_a_proxy_is_told_as_a_refusal(proxy, client):
    done = subprocess.run(
        [*map(str, HEALTH[client])],
        env=clean_environment(MESH_HTTP_URL=proxy),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: 502"), done.stderr


def test_an_answer_that_does_not_come_is_a_timeout(proxy, monkeypatch):
    monkeypatch.setenv("MESH_HTTP_URL", proxy)
    monkeypatch.setattr(sys, "argv", ["client.py", "health"])
    monkeypatch.setattr(example.MeshHttp, "health", lambda self: self.history(limit=1))
    monkeypatch.setattr(example.MeshHttp.__init__, "__kwdefaults__", KEYWORDS | {"timeout_s": 0.1})
    with pytest.raises(SystemExit, match="no answer in time"):
        example.main()


def test_a_login_is_never_written_through_a_link(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(CLIENTS))
    join = importlib.import_module("join")
    mine = tmp_path / "other"
    mine.write_text("untouched")
    (tmp_path / "login.json.new").symlink_to(mine)
    join.save(tmp_path / "login.json", {"api_key": "k"})
    assert mine.read_text() == "untouched"
    assert json.loads((tmp_path / "login.json").read_text()) == {"api_key": "k"}
    assert stat.S_IMODE((tmp_path / "login.json").stat().st_mode) == 0o600
