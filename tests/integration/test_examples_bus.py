"""The examples that live on the bus, run as the guide says: a CRM, and a folder of notes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sqlite3
import sys
import time

import pytest
from live_mesh import START_S, LiveMesh, LiveNode, clean_environment, health_of, until_reborn

from mesh.errors import ActionFailedError, InvalidError, NotFoundError

pytestmark = pytest.mark.timeout(180)

KNOWN_WITHIN_S = 5
"""Of a test machine that does other things as well; a second or two is what is promised."""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    mesh = LiveMesh(tmp_path_factory.mktemp("examples"))
    try:
        mesh.start()
        mesh.add("crm-app", "--app", "examples.crm:node", CRM_DATABASE=str(mesh.folder / "crm.db"))
        mesh.add("notes")
        asyncio.run(ready(mesh))
        yield mesh
    finally:
        mesh.stop()


async def ready(mesh):
    async with asyncio.timeout(START_S), mesh.connect() as client:
        for slug in ("crm-app", "notes"):
            while await health_of(client, slug) != "healthy":
                await asyncio.sleep(0.1)


# -- the CRM ---------------------------------------------------------------------------------------


async def orders_about(client, query, **options):
    answer = await client.search(query, collections=["crm.orders"], timeout_ms=5000, **options)
    assert not answer.partial, answer.shards
    return answer.results


async def test_customers_and_orders_are_found(live):
    async with live.connect() as client:
        everything = await client.search("bakery in Porto", limit=50, timeout_ms=5000)
        assert {hit.collection for hit in everything.results} >= {"crm.customers", "crm.orders"}
        best = next(hit for hit in everything.results if hit.collection == "crm.customers")
        assert (best.metadata["trade"], best.metadata["city"]) == ("bakery", "Porto")
        for hit in (await orders_about(client, "shattered glass"))[:3]:
            assert "glass was shattered" in hit.content
        # What a person types is never an expression of the index.
        assert await orders_about(client, 'glass" OR *; NEAR(', mode="text")


async def test_refund_shows_in_the_next_search(live):
    async with live.connect() as client:
        [order, *_] = await orders_about(client, "wrong colour walnut")
        cents = order.metadata["paid_cents"]
        before = (await client.run_action("customer", {"id": order.metadata["customer"]})).result
        assert order.id in {row["id"] for row in before["orders"]}

        part = await client.run_action("refund", {"order": order.id, "cents": 100})
        assert part.result == {
            "order": order.id,
            "refunded_cents": 100,
            "left_cents": cents - 100,
        }
        [found, *_] = await orders_about(client, "refunded", mode="text")
        assert found.id == order.id
        assert found.metadata["left_cents"] == cents - 100
        assert "Refunded 1.00 EUR" in found.content

        with pytest.raises(ActionFailedError, match="is more than the"):
            await client.run_action("refund", {"order": order.id, "cents": cents})
        await client.run_action("refund", {"order": order.id, "cents": cents - 100})
        with pytest.raises(ActionFailedError, match="refunded already"):
            await client.run_action("refund", {"order": order.id, "cents": 1})
        after = (await client.run_action("customer", {"id": order.metadata["customer"]})).result
        assert {row["id"]: row["left_cents"] for row in after["orders"]}[order.id] == 0


async def test_a_refund_that_is_taken_back_is_gone_once(live):
    """What a saga does when a later step fails."""
    params = {"order": "A-1010", "cents": 50}
    async with live.connect() as client:
        before = (await client.run_action("take-back", params, id="none.undo")).result
        assert before["refunded_cents"] == 0
        await client.run_action("refund", params, id="saga.1")
        undone = await client.run_action("take-back", params, id="saga.1.undo")
        assert undone.result == {
            "order": "A-1010",
            "refunded_cents": -50,
            "left_cents": before["left_cents"],
        }
        [offered] = (await client.actions(action="refund")).actions
        assert offered.action.compensate == "take-back"
        assert "left_cents" in json.dumps(offered.action.result)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"order": "A-1", "cents": 5}, NotFoundError),
        ({"order": "A-1001", "cents": 0}, InvalidError),
        ({"order": "1001", "cents": 5}, InvalidError),
        ({"order": "A-1001", "cents": 5, "to": "me"}, InvalidError),
    ],
    ids=["no such order", "nothing", "no order number", "unknown field"],
)
async def test_refunds_that_cannot_be(live, params, error):
    async with live.connect() as client:
        with pytest.raises(error):
            await client.run_action("refund", params)
        with pytest.raises(NotFoundError):
            await client.run_action("customer", {"id": "C-999"})


async def test_database_knows_an_action_that_the_node_forgot(live):
    """The node's memory of outcomes is lost with its folder; the refund's is in the database."""
    node = live.nodes["crm-app"]
    refund = {"order": "A-1005", "cents": 7}
    async with live.connect() as client:
        first = await client.run_action("refund", refund, id="refund-1005")
        await client.run_action("refund", refund, id="refund-1005-more")
        (record,) = (await client.nodes(node="crm-app")).nodes
        assert node.end(signal.SIGTERM) == 0
        folder = live.state / "nodes" / "crm-app"
        key = (folder / "key.json").read_bytes()  # whoever loses that too must ask for a new one
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        (folder / "key.json").write_bytes(key)
        node.start()
        await until_reborn(client, "crm-app", after=record.incarnation)
        again = await client.run_action("refund", refund, id="refund-1005")
        assert again.result == first.result
        with pytest.raises(ActionFailedError, match="another amount"):
            await client.run_action("refund", refund | {"cents": 8}, id="refund-1005-more")
    with contextlib.closing(sqlite3.connect(live.folder / "crm.db")) as database:
        query = "SELECT count(*), sum(cents) FROM refunds WHERE order_number = 1005"
        assert database.execute(query).fetchone() == (2, 14)


# -- the notes -------------------------------------------------------------------------------------


@pytest.fixture
def notes(live, tmp_path):
    """A folder with two files, and a watcher beside it; ended and begun again by the test."""
    folder = tmp_path / "notes"
    (folder / "garden").mkdir(parents=True)
    (folder / "tea.md").write_text("# Tea\n\nSencha wants water of seventy degrees.\n")
    (folder / "garden" / "beans.md").write_text("# Beans\n\nSow them after the last frost.\n")
    argv = [sys.executable, "-P", "-m", "examples.notes", folder, "--state-dir", live.state]
    watcher = LiveNode("watcher", [*map(str, argv)], tmp_path, clean_environment())
    try:
        watcher.start()
        yield folder, watcher
    finally:
        watcher.end()


async def paths(client):
    """Of all sections that are indexed, each once."""
    try:
        answer = await client.search(
            "a", collections=["notes"], mode="vector", threshold=0.0, limit=100, timeout_ms=5000
        )
    except InvalidError:  # no such collection yet
        return set()
    return {hit.id for hit in answer.results}


async def found(client, query):
    answer = await client.search(query, collections=["notes"], mode="text", timeout_ms=5000)
    return {hit.id for hit in answer.results}


async def until(what, wanted, watcher):
    """How long it took, in seconds."""
    began = time.monotonic()
    while (seen := await what()) != wanted:
        assert time.monotonic() - began < KNOWN_WITHIN_S, f"{seen}\n{watcher.log.read_text()}"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_folder_and_search_are_the_same(live, notes):
    folder, watcher = notes
    async with live.connect() as client:

        async def all_paths():
            return await paths(client)

        until_start = time.monotonic() + START_S
        while not await paths(client):
            assert time.monotonic() < until_start, watcher.log.read_text()
            await asyncio.sleep(0.1)
        await until(all_paths, {"tea.md", "garden/beans.md"}, watcher)

        (folder / "bread.md").write_text(
            "# Bread\n\nRye.\n\n## Oven\n\nSteam in the first minutes.\n"
        )
        sections = {"bread.md#bread", "bread.md#oven"}
        await until(all_paths, {"tea.md", "garden/beans.md"} | sections, watcher)

        (folder / "tea.md").write_text("# Tea\n\nGyokuro wants even less.\n")
        await until(lambda: found(client, "gyokuro"), {"tea.md"}, watcher)
        assert await found(client, "sencha") == set()

        (folder / "bread.md").write_text("# Bread\n\nRye, without a word about steam.\n")
        await until(all_paths, {"tea.md", "garden/beans.md", "bread.md"}, watcher)

        (folder / "tea.md").rename(folder / "garden" / "green tea.md")
        there = {"garden/green tea.md", "garden/beans.md", "bread.md"}
        await until(all_paths, there, watcher)

        (folder / "garden").rename(folder / "plot")
        there = {"plot/green tea.md", "plot/beans.md", "bread.md"}
        await until(all_paths, there, watcher)

        shutil.rmtree(folder / "plot")
        await until(all_paths, {"bread.md"}, watcher)
        assert watcher.end(signal.SIGTERM) == 0

        # What happens while nobody watches is made up for at the next start.
        (folder / "bread.md").unlink()
        (folder / "soup.md").write_text("Leek and potato.\n")
        (folder / ".hidden.md").write_text("Not a note.\n")
        watcher.start()
        async with asyncio.timeout(START_S):
            while await paths(client) != {"soup.md"}:
                await asyncio.sleep(0.1)


async def test_watcher_catches_up_with_a_node_that_was_away(live, notes):
    folder, watcher = notes
    node = live.nodes["notes"]
    async with live.connect() as client:
        async with asyncio.timeout(START_S):
            while await paths(client) != {"tea.md", "garden/beans.md"}:
                await asyncio.sleep(0.1)
        (record,) = (await client.nodes(node="notes")).nodes
        node.end(signal.SIGKILL)
        (folder / "tea.md").unlink()
        (folder / "late.md").write_text("Written while the node was away.\n")
        node.start()
        await until_reborn(client, "notes", after=record.incarnation)
        async with asyncio.timeout(START_S):
            while await paths(client) != {"late.md", "garden/beans.md"}:
                await asyncio.sleep(0.1)
    assert watcher.end(signal.SIGTERM) == 0
