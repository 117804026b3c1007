"""An import whose processes die one after the other: no document lost, none doubled."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest
import pytest_asyncio
from importer import Importer, stored
from live_mesh import START_S, LiveMesh, health_of, until_reborn

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

DOCUMENTS = 3000
BATCH = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory):
    mesh = LiveMesh(tmp_path_factory.mktemp("import"))
    try:
        mesh.start()
        mesh.add("crm")
        async with mesh.connect() as client, asyncio.timeout(START_S):
            while await health_of(client, "crm") != "healthy":
                await asyncio.sleep(0.05)
        yield mesh
    finally:
        mesh.stop()


@pytest.fixture
def file(tmp_path):
    """A third of the documents comes twice, the second time changed; every 100th line is bad."""
    path = tmp_path / "notes.jsonl"
    with path.open("w") as out:
        for number in range(DOCUMENTS):
            name = number if number % 3 else number // 2
            text = {"id": f"d{name}", "content": f"late invoice {number}", "number": number}
            out.write(json.dumps(text) + "\n")
            if number % 100 == 50:
                out.write("oops\n")
    return path


def wanted(file):
    found = {}
    for line in file.read_text().splitlines():
        if line != "oops":
            read = json.loads(line)
            found[read["id"]] = (read["content"], {"number": read["number"]})
    return found


async def test_import_with_everything_killed_in_turn_is_whole(live, file):
    crm = live.nodes["crm"]
    first = Importer(live, file, "notes", "crm", "--batch", BATCH)
    first.start()
    await first.until(DOCUMENTS // 6, within_s=60)
    first.end(signal.SIGKILL)
    assert 0 < first.done() < DOCUMENTS

    second = Importer(live, file, "notes", "crm", "--batch", BATCH)
    second.start()
    await second.until(DOCUMENTS // 3, within_s=60)
    async with live.connect() as client:
        (record,) = (await client.nodes(node="crm")).nodes
        crm.end(signal.SIGKILL)
        crm.start()
        await until_reborn(client, "crm", after=record.incarnation)
    await second.until(DOCUMENTS // 2, within_s=60)
    second.end(signal.SIGINT)

    third = Importer(live, file, "notes", "crm", "--batch", BATCH)
    third.start()
    code, answer = await third.outcome(within_s=90)
    assert code == 1, "there were bad lines"
    assert (answer["documents"], answer["bad"]) == (DOCUMENTS, DOCUMENTS // 100)
    assert answer["resumed"]
    aside = next(file.parent.glob(f"{file.name}.*.rejects.jsonl"))
    assert answer["rejects"] == str(aside)
    rejects = aside.read_text().splitlines()
    assert [json.loads(line)["raw"] for line in rejects] == ["oops"] * (DOCUMENTS // 100)
    assert len({json.loads(line)["line"] for line in rejects}) == len(rejects)

    assert await stored(live, "crm", "notes") == wanted(file)
    assert not list(file.parent.glob("*.import"))


@pytest.mark.parametrize("victim", ["broker", "master"])
async def test_import_goes_on_when_the_mesh_comes_back(live, file, victim):
    """The supervisor starts it again; the import waits."""
    importer = Importer(live, file, victim, "crm", "--batch", BATCH)
    importer.start()
    await importer.until(DOCUMENTS // 4, within_s=60)
    os.kill(live.pid(victim), signal.SIGKILL)
    code, answer = await importer.outcome(within_s=120)

    assert code == 1
    assert (answer["documents"], answer["resumed"]) == (DOCUMENTS, False)
    assert await stored(live, "crm", victim) == wanted(file)
