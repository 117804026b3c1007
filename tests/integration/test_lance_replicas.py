"""What a copy of a collection can do that a collection of one node need not: be written as another
one was, and be compared.
"""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.adapters.lance import LanceDocuments
from mesh.errors import InvalidError, NotFoundError
from mesh.wire.messages import Document


async def opened(path, shard="crm"):
    return await LanceDocuments.open(
        path, embedder=HashEmbedder(), shard=shard, clock=SystemClock()
    )


@pytest_asyncio.fixture
async def one(tmp_path):
    documents = await opened(tmp_path / "one")
    yield documents
    await documents.close()


@pytest_asyncio.fixture
async def two(tmp_path):
    documents = await opened(tmp_path / "two")
    yield documents
    await documents.close()


def document(name, text="late invoice", **metadata):
    return Document(id=name, content=text, metadata=metadata)


async def digest(documents, collection="notes"):
    return (await documents.census(collection)).digest


async def test_equal_contents_have_equal_digests_however_they_came_about(one, two):
    await one.index("notes", [document(f"{n}") for n in range(30)])
    await one.delete("notes", ids=["7", "8"])
    await one.update("notes", "9", {"content": "paid", "cents": 5})
    backwards = [document(f"{n}") for n in range(29, -1, -1) if n not in (7, 8, 9)]
    await two.replace("notes", puts=backwards)
    assert await digest(one) != await digest(two)
    await two.replace("notes", puts=[document("9", "paid", cents=5), document("x")])
    assert await digest(one) != await digest(two)
    await two.replace("notes", deletes=["x", "was never there"])
    assert await digest(one) == await digest(two)


async def test_it_tells_which_columns_a_write_would_bring(one):
    wanted = [document("1", year=1999, who="x"), document("2", ok=True, odd=[1])]
    kinds = {"year": "number", "who": "text", "ok": "boolean"}
    assert one.new_columns("notes", wanted) == kinds
    await one.index("notes", wanted[:1])
    assert one.new_columns("notes", wanted) == {"ok": "boolean"}
    assert one.new_columns("notes", [document("3", year="last")]) == {}


async def test_a_write_that_nobody_waits_for_is_waited_for_by_whoever_must_know(one):
    await one.index("notes", [document("1")])
    writing = asyncio.create_task(one.index("notes", [document("2"), document("3")]))
    await asyncio.sleep(0)
    while not one._collections["notes"]._writer._working:
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await one.settled()
    assert one.collections()[0].rows == 3


async def test_a_census_is_paged_by_id_in_the_order_of_code_points(one):
    names = ["a", "B", "é", "z", "中", "😀", "0"]
    await one.index("notes", [document(name) for name in names])
    census = await one.census("notes")
    found = []
    after = ""
    while page := census.page(after, 2):
        found += [name for name, _ in page]
        after = page[-1][0]
    assert found == sorted(names)
    [stored] = await one.fetch("notes", ["é"])
    assert dict(census.page("", 100))["é"] == stored.hash
    assert [name for name, _ in census.page("b", 1)] == ["z"]  # from where no document is


async def test_what_another_replica_took_is_not_refused(one):
    await one.index("notes", [document("1", year=1999)])
    with pytest.raises(InvalidError):
        await one.index("notes", [document("2", year="last")])
    await one.replace("notes", puts=[document("2", year="last")])
    [stored] = await one.fetch("notes", ["2"])
    assert stored.metadata == {"year": "last"}
    found = await one.search(
        "invoice",
        collections=["notes"],
        mode="text",
        depth=10,
        threshold=None,
        filters={"year": 1999},
    )
    assert [each.id for each in found[0].candidates] == ["1"]


async def test_a_copy_gets_the_columns_of_its_source_though_no_document_has_them_any_more(one, two):
    await one.index("notes", [document("1", year=1999), document("2")])
    await one.delete("notes", ids=["1"])
    await two.replace("notes", columns=one.columns("notes"))
    assert two.columns("notes") == one.columns("notes") == {"year": "number"}
    assert [info.rows for info in two.collections()] == [0]
    with pytest.raises(InvalidError):
        await two.index("notes", [document("3", year="last")])


async def test_what_a_write_would_do_is_found_out_without_doing_it(one):
    assert await one.would_index("notes", [document("1"), document("1"), document("2")]) == 2
    assert one.collections() == ()
    await one.index("notes", [document("1", year=1999), document("2")])
    before = one.collections()
    assert await one.would_index("notes", [document("1", year=1999), document("2", "new")]) == 1
    with pytest.raises(InvalidError):
        await one.would_index("notes", [document("3", year="last")])
    assert await one.would_update("notes", "2", {"content": "late invoice"}) == (
        document("2"),
        False,
    )
    assert await one.would_update("notes", "2", {"year": 3}) == (document("2", year=3), True)
    with pytest.raises(NotFoundError):
        await one.would_update("notes", "9", {"year": 3})
    assert await one.would_delete("notes", ids=["9", "2"]) == ("2",)
    assert await one.would_delete("notes", filters={"year": 1999}) == ("1",)
    assert one.collections() == before


async def test_many_deletions_at_once(one):
    names = [f"{number:05}" for number in range(2500)]
    for start in range(0, 2500, 500):
        await one.index("notes", [document(name) for name in names[start : start + 500]])
    await one.replace("notes", deletes=names[:2499])
    assert [info.rows for info in one.collections()] == [1]
