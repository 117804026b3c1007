"""Writes that wait share a commit, and nobody notices but the clock."""

import asyncio
import threading

import numpy as np
import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments, schema
from mesh.adapters.lance.contents import Contents
from mesh.adapters.lance.hot import HotCopy
from mesh.adapters.lance.writing import ClosedError
from mesh.core import text
from mesh.errors import InvalidError, NotFoundError, StateError, UnavailableError
from mesh.wire.messages import Document

HASH = load_embedder("hash")


class PoisonedEmbedder:
    """The hash embedder, but what it makes of a text with a bad word is no vector."""

    id, dim, default_threshold, quick_chars = HASH.id, HASH.dim, 0.0, 2000

    def embed_documents(self, texts):
        if any("raises" in text for text in texts):
            raise StateError("the embedder is away")
        vectors = HASH.embed_documents(texts)
        for row, content in zip(vectors, texts, strict=True):
            if "nan" in content:
                row[3] = np.nan
            if "infinite" in content:
                row[3] = np.inf
        return vectors[:-1] if any("short" in text for text in texts) else vectors

    def embed_query(self, text):
        return self.embed_documents([text])[0]


async def opened(folder, hot_mb=64):
    return await LanceDocuments.open(
        folder, embedder=PoisonedEmbedder(), shard="s1", clock=SystemClock(), hot_mb=hot_mb
    )


@pytest.fixture(params=[64, 0], ids=["hot", "disk"])
async def store(tmp_path, request):
    documents = await opened(tmp_path / "data", request.param)
    await documents.index("notes", [doc("zero", "the first one", n=0)])
    yield documents
    await documents.close()


@pytest.fixture
def commits(monkeypatch):
    """Versions that were written since, columns not counted."""
    counted = []
    genuine = Contents.committed

    def committed(self, version, *rest):
        counted.append(version)
        genuine(self, version, *rest)

    monkeypatch.setattr(Contents, "committed", committed)
    return counted


def doc(name, content="some text", /, **metadata):
    return Document(id=name, content=content, metadata=metadata)


async def texts(store):
    rows = await store._collections["notes"]._table.query().to_arrow()
    found = {row["id"]: row["content"] for row in rows.to_pylist()}
    assert len(found) == rows.num_rows == store.collections()[0].rows
    fetched = {d.id: d.content for d in await store.fetch("notes", list(found))}
    assert fetched == found
    return found


async def test_single_writes_that_wait_are_one_commit(store, commits):
    written = await asyncio.gather(
        *(store.index("notes", [doc(f"d{n}", f"text {n}")]) for n in range(50))
    )
    assert [done.changed for done in written] == [(f"d{n}",) for n in range(50)]
    assert {done.data_version for done in written} == {store.collections()[0].data_version}
    assert len(commits) == 1
    assert await texts(store) == {
        "zero": "the first one",
        **{f"d{n}": f"text {n}" for n in range(50)},
    }


async def test_sixteen_upserts_of_one_new_id_are_one_row_the_last(store, commits):
    written = await asyncio.gather(
        *(store.index("notes", [doc("new", f"text {n}")]) for n in range(16))
    )
    assert [done.changed for done in written] == [("new",)] * 16
    assert len(commits) < 16
    assert await texts(store) == {"zero": "the first one", "new": "text 15"}


async def test_each_is_judged_by_what_those_before_it_leave(store, commits):
    """As if they had been written one after the other."""
    outcomes = await asyncio.gather(
        store.index("notes", [doc("a", "one")]),
        store.index("notes", [doc("a", "one")]),
        store.update("notes", "a", {"content": "two", "color": "red"}),
        store.update("notes", "a", {"color": "red"}),
        store.index("notes", [doc("a", "one"), doc("b", "three")]),
        store.update("notes", "zero", {"n": 7}),
    )
    assert [done.changed for done in outcomes] == [("a",), (), ("a",), (), ("a", "b"), ("zero",)]
    assert len(commits) == 1
    assert await texts(store) == {"zero": "the first one", "a": "one", "b": "three"}
    statistics = store._collections["notes"].statistics
    assert statistics.terms() == {"the": 1, "first": 1, "on": 2, "three": 1}


async def test_a_refusal_is_its_callers_alone(store, commits):
    outcomes = await asyncio.gather(
        store.index("notes", [doc("a", "fine", year=1999)]),
        store.index("notes", [doc("b", "fine too"), doc("c", year="last")]),
        store.update("notes", "nobody", {"content": "x"}),
        store.index("notes", [doc("d", "fine as well")]),
        return_exceptions=True,
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Written", "InvalidError", "NotFoundError", "Written"]
    assert isinstance(outcomes[1], InvalidError)
    assert isinstance(outcomes[2], NotFoundError)
    assert list(outcomes[1].fields) == ["documents[1].metadata.year"]
    assert len(commits) == 1
    assert set(await texts(store)) == {"zero", "a", "d"}


@pytest.mark.parametrize("poison", ["nan", "infinite", "short", "raises"])
async def test_what_the_embedder_cannot_do_is_refused_whole_and_to_its_caller_alone(store, poison):
    outcomes = await asyncio.gather(
        store.index("notes", [doc("a", "fine")]),
        store.index("notes", [doc("b", "fine too"), doc("c", f"this is {poison}")]),
        store.update("notes", "zero", {"content": poison}),
        store.index("notes", [doc("d", "fine as well")]),
        return_exceptions=True,
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Written", "StateError", "StateError", "Written"]
    if poison in {"nan", "infinite"}:
        assert "'c'" in str(outcomes[1])
    assert set(await texts(store)) == {"zero", "a", "d"}


async def test_what_a_refused_call_would_have_brought_along_is_held_against_nobody(store):
    """The first one's column would be one of numbers, but it is never made."""
    outcomes = await asyncio.gather(
        store.index("notes", [doc("a", "this raises", year=1)]),
        store.index("notes", [doc("b", "fine", year="text")]),
        store.update("notes", "b", {"color": "red"}),
        store.index("notes", [doc("c", "this raises too")]),
        store.update("notes", "c", {"color": "red"}),
        return_exceptions=True,
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["StateError", "Written", "Written", "StateError", "NotFoundError"]
    assert [done.changed for done in outcomes[1:3]] == [("b",), ("b",)]
    assert await texts(store) == {"zero": "the first one", "b": "fine"}
    assert store.columns("notes") == {"n": "number", "year": "text", "color": "text"}


async def test_an_embedder_that_is_away_is_waited_for_once_by_all_who_share_a_commit(
    store, monkeypatch
):
    asked = []

    def away(_embedder, texts):
        asked.append(texts)
        raise UnavailableError("the embedder is away")

    monkeypatch.setattr(PoisonedEmbedder, "embed_documents", away)
    outcomes = await asyncio.gather(
        *(store.index("notes", [doc(f"d{n}", f"text {n}")]) for n in range(5)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 5
    assert len(asked) == 1


async def test_who_is_written_alone_is_not_written_after_a_drop(store, monkeypatch):
    asked, genuine = [], PoisonedEmbedder.embed_documents

    def embedded(embedder, texts):
        asked.append(texts)
        if len(asked) == 2:
            store._collections["notes"].refuse_writes()  # as a drop begins
        return genuine(embedder, texts)

    monkeypatch.setattr(PoisonedEmbedder, "embed_documents", embedded)
    writes = [
        asyncio.create_task(store._collections["notes"].upsert([doc(name, text)], ["x"]))
        for name, text in (("a", "raises"), ("b", "raises"), ("c", "raises"), ("d", "fine"))
    ]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StateError] + [ClosedError] * 3
    assert len(asked) == 2


async def test_long_texts_are_taken_apart_beside_the_loop_old_ones_too(store, monkeypatch):
    on_loop = []

    def watch(owner, name):
        genuine = getattr(owner, name)

        def watched(*arguments):
            if threading.current_thread() is threading.main_thread():
                texts = [arguments[0]] if name != "add" else [row.content for row in arguments[1]]
                on_loop.append(sum(map(len, texts)))
            return genuine(*arguments)

        monkeypatch.setattr(owner, name, watched)

    watch(text, "terms")
    watch(schema, "split")
    watch(HotCopy, "add")
    long = "the long text " * 1000
    await store.index("notes", [doc("long", long), doc("other", long)])
    await store.update("notes", "long", {"n": 7})
    await store.update("notes", "zero", {"content": long + "too"})
    await store.index("notes", [doc("long", "brief")])
    await store.delete("notes", ids=["other", "zero"])
    assert max(on_loop, default=0) < 100
    await store.update("notes", "long", {"n": 8})
    assert on_loop, "a thread would cost more"
    assert await texts(store) == {"long": "brief"}
    statistics = store._collections["notes"].statistics
    assert (statistics.tokens, statistics.terms()) == (1, {"brief": 1})


async def test_a_write_that_changes_nothing_asks_the_embedder_for_nothing(store, monkeypatch):
    """It might be an endpoint that is away."""

    def away(*_):
        raise StateError("the embedder is away")

    monkeypatch.setattr(PoisonedEmbedder, "embed_documents", away)
    assert (await store.index("notes", [doc("zero", "the first one", n=0)])).changed == ()
    assert (await store.update("notes", "zero", {"n": 0})).changed == ()
    with pytest.raises(NotFoundError):
        await store.update("notes", "nobody", {"n": 0})


@pytest.mark.parametrize("poison", ["nan", "infinite"])
async def test_a_query_without_a_vector_is_answered_by_words_or_refused(store, poison):
    asked = {"collections": None, "depth": 30, "threshold": 0.0, "filters": {}}
    with pytest.raises(StateError, match="no vector for the query"):
        await store.search(f"first {poison}", mode="vector", **asked)

    (hits,) = await store.search(f"first {poison}", mode="hybrid", **asked)
    assert "no vector for the query" in hits.no_vectors
    assert [(found.id, found.vector_hit) for found in hits.candidates] == [("zero", False)]


async def test_deletions_keep_their_place_among_the_others(store):
    outcomes = await asyncio.gather(
        store.index("notes", [doc("a", "one"), doc("b", "two")]),
        store.delete("notes", ids=["a"]),
        store.index("notes", [doc("a", "three")]),
        store.delete("notes", ids=["b", "zero"]),
        store.update("notes", "a", {"content": "four"}),
        store.update("notes", "b", {"content": "gone"}),
        return_exceptions=True,
    )
    assert isinstance(outcomes.pop(), NotFoundError)
    changed = [done.changed for done in outcomes]
    assert changed == [("a", "b"), ("a",), ("a",), ("b", "zero"), ("a",)]
    versions = [done.data_version for done in outcomes]
    assert versions == sorted(versions)
    assert await texts(store) == {"a": "four"}


async def test_whoever_gives_up_waiting_takes_nobody_with_him(store):
    writing = [
        asyncio.create_task(store.index("notes", [doc(f"d{n}", f"text {n}")])) for n in range(9)
    ]
    await asyncio.sleep(0)
    for task in writing[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*writing, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes[1::2]] == ["Written"] * 4
    await store.settled()
    assert {f"d{n}" for n in range(1, 9, 2)} <= set(await texts(store))


async def test_a_commit_that_fails_is_everybodys_and_memory_follows_the_disk(store, monkeypatch):
    """The driver raises, but the version is there."""
    genuine = Contents.committed
    monkeypatch.setattr(Contents, "committed", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    outcomes = await asyncio.gather(
        *(store.index("notes", [doc(f"d{n}", f"text {n}")]) for n in range(3)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, StateError) for outcome in outcomes)
    monkeypatch.setattr(Contents, "committed", genuine)
    assert set(await texts(store)) == {"zero", "d0", "d1", "d2"}
    assert (await store.index("notes", [doc("d0", "text 0")])).changed == ()


async def test_a_thousand_documents_go_in_and_no_commit_takes_more_of_several_callers(
    store, commits
):
    """Bounded, so that neither memory nor whoever came first pays for the queue."""
    written = await asyncio.gather(
        *(store.index("notes", [doc(f"{n}-{k}") for k in range(400)]) for n in range(5))
    )
    assert [len(done.changed) for done in written] == [400] * 5
    assert len(commits) == 3
    big = await store.index("notes", [doc(f"big-{n}") for n in range(1000)])
    assert len(big.changed) == 1000
