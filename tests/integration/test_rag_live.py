"""Passages from a real mesh: two nodes that offer rag and one that does not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import httpx
import pytest
from live_mesh import START_S, LiveMesh, clean_environment, health_of, until_reborn
from processes import pause

from mesh.core.tokens import tokens
from mesh.errors import InvalidError

COLLECTION = "handbook"
PATIENTLY_MS = 10_000
FILLER = "".join(
    f"Chapter {n} is about subject{n} and has little to say of it. " for n in range(80)
)

KIND = "Who pays a late invoice gets a kind letter."


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    mesh = LiveMesh(tmp_path_factory.mktemp("rag"))
    try:
        mesh.start()
        mesh.add("shop")
        mesh.add("wiki")
        mesh.add("diary", MESH_NODE__CAPABILITIES="search,actions")
        yield mesh
    finally:
        mesh.stop()


@pytest.fixture
async def client(live):
    async with live.connect() as client:
        async with asyncio.timeout(START_S):
            for slug in live.nodes:
                while await health_of(client, slug) != "healthy":
                    await asyncio.sleep(0.05)
        held = {
            "shop": [
                {"id": "bill", "title": "Billing", "content": "A late invoice is paid by card."},
                {"id": "copy", "content": "a LATE invoice is paid by card"},
            ],
            "wiki": [
                {
                    "id": "long",
                    "title": "All about it",
                    "url": "https://wiki.example/long",
                    "content": f"{FILLER}\n\n{KIND}\n\n{FILLER}",
                }
            ],
            "diary": [{"id": "secret", "content": "My late invoice is nobody's business."}],
        }
        for slug, documents in held.items():
            params = {"collection": COLLECTION, "documents": documents}
            await client.run_action("index", params, node=slug, id=f"fill-{slug}")
        async with asyncio.timeout(START_S):
            while {h.node.slug for h in client.routes.holders(COLLECTION)} != set(held):
                await asyncio.sleep(0.05)
        yield client


async def rag(client, **options):
    return await client.rag("late invoice", timeout_ms=PATIENTLY_MS, require="any", **options)


async def test_the_best_passages_of_all_nodes_that_offer_it(client):
    answer = await rag(client, budget=400)

    assert tokens(answer.prompt) == answer.tokens <= 400
    first = sorted(passage.source.node for passage in answer.passages[:2])
    assert first == ["shop", "wiki"]
    of_wiki = next(each for each in answer.passages if each.source.node == "wiki")
    assert "a kind letter" in of_wiki.text
    assert of_wiki.source.url == "https://wiki.example/long"
    assert of_wiki.source.part > 1
    said = [passage.text.casefold().rstrip(".") for passage in answer.passages]
    assert said.count("a late invoice is paid by card") == 1
    assert all(passage.source.node != "diary" for passage in answer.passages)
    assert not answer.partial
    (skipped,) = [each for each in answer.shards.details if each.status == "skipped"]
    assert (skipped.node, skipped.reason) == ("diary", "its node does not offer rag")
    assert answer.truncated


async def test_the_same_question_has_the_same_answer(client):
    prompts = {(await rag(client, budget=700)).prompt for _ in range(3)}
    assert len(prompts) == 1


async def test_a_node_that_does_not_offer_it_is_not_asked_by_name_either(client):
    with pytest.raises(InvalidError) as refused:
        await rag(client, nodes=["diary"])
    assert list(refused.value.fields) == ["options.nodes"]
    with pytest.raises(InvalidError) as refused:
        await rag(client, nodes=["nobody"])
    assert "options.nodes" in refused.value.fields
    with pytest.raises(InvalidError) as refused:
        await rag(client, collections=["nope"])
    assert list(refused.value.fields) == ["options.collections"]


async def test_a_long_text_that_is_fetched_comes_whole(client):
    answer = await client.rag(
        "subject79", collections=[COLLECTION], nodes=["wiki"], timeout_ms=PATIENTLY_MS
    )
    assert "subject79 " in answer.passages[0].text
    assert answer.passages[0].source.parts > 10


async def test_over_http(client, live):
    grant = await client.access.issue("reader", [f"search:{COLLECTION}"])
    other = await client.access.issue("other", ["search:elsewhere"])
    base = live.file()["http_url"] + "/api/ai-engine"
    body = {"query": "late invoice", "budget": 300, "options": {"timeout_ms": PATIENTLY_MS}}
    async with httpx.AsyncClient(base_url=base, timeout=20) as http:

        async def ask(token, body):
            headers = {"Authorization": f"Bearer {token}"}
            return await http.post("/rag", json=body, headers=headers)

        answer = await ask(grant.access_token, body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["prompt"] == (await rag(client, budget=300)).prompt
        small = await ask(grant.access_token, body | {"budget": 5})
        assert (small.status_code, list(small.json()["errors"])) == (422, ["budget"])
        assert (await ask(other.access_token, body)).status_code == 422
        forbidden = body | {"options": {"collections": [COLLECTION]}}
        assert (await ask(other.access_token, forbidden)).status_code == 403


def meshctl(live, *typed):
    return subprocess.run(
        [
            *(sys.executable, "-P", "-c", "from cli.meshctl import main; main()"),
            *("rag", "late invoice", "--state-dir", str(live.state)),
            *("--timeout-ms", str(PATIENTLY_MS), *typed),
        ],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_typed_in_a_pipe(client, live):
    done = await asyncio.to_thread(meshctl, live, "--budget", "300")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (await rag(client, budget=300)).prompt + "\n"
    assert "1 shard skipped" in done.stderr
    shown = await asyncio.to_thread(meshctl, live, "--budget", "300", "--json")
    assert json.loads(shown.stdout)["budget"] == 300
    wrong = await asyncio.to_thread(meshctl, live, "--node", "diary")
    assert wrong.returncode == 2, wrong.stderr


async def test_a_hung_node_makes_the_answer_partial(client, live):
    pause(live.nodes["wiki"].pid)
    try:
        began = time.monotonic()
        answer = await client.rag("late invoice", timeout_ms=500)
        assert time.monotonic() - began < 5
        assert answer.partial
        assert {passage.source.node for passage in answer.passages} == {"shop"}
        missed = [each for each in answer.shards.details if each.node == "wiki"]
        assert missed[0].status in {"timed_out", "failed"}
        done = await asyncio.to_thread(meshctl, live, "--timeout-ms", "500")
        assert "PARTIAL" in done.stderr
        assert "PARTIAL" not in done.stdout
    finally:
        born = (await client.nodes(node="wiki")).nodes[0].incarnation
        live.nodes["wiki"].end()
        live.nodes["wiki"].start()
        await until_reborn(client, "wiki", after=born)
