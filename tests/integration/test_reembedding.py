"""Collections of another embedder or another version: searched by words, not written, made anew."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments, reembedding, staging
from mesh.core import text
from mesh.errors import ConflictError, InvalidError, StateError, UnavailableError
from mesh.runtime.results import how_it_went
from mesh.wire.messages import Document

HASH, LLAMA = load_embedder("hash"), load_embedder("wordllama")
TEXTS = {
    "a": "The invoice is late, again.",
    "b": "A game about knights and dragons.",
    "c": "?!",  # has a vector from one of the two alone
    "d": "Bill overdue since March.",
    "e": "The invoice is late, again.",
}
WRITES = {
    "index": lambda store: store.index("notes", [Document(id="a", content="x")]),
    "update": lambda store: store.update("notes", "a", {"content": "x"}),
    "delete": lambda store: store.delete("notes", ids=["a"]),
    "replace": lambda store: store.replace("notes", puts=[Document(id="a", content="x")]),
    "would index": lambda store: store.would_index("notes", [Document(id="a", content="x")]),
    "would update": lambda store: store.would_update("notes", "a", {"content": "x"}),
    "would delete": lambda store: store.would_delete("notes", ids=["a"]),
}


class Gated:
    """An embedder that counts what it is given, and can be made to wait or fail."""

    quick_chars = 0

    def __init__(self, embedder):
        self.embedder = embedder
        self.texts = []
        self.fail = None
        self.reached, self.open = threading.Event(), threading.Event()
        self.asked, self.asks = threading.Event(), threading.Event()
        self.open.set()
        self.asks.set()

    def __getattr__(self, name):
        return getattr(self.embedder, name)

    def embed_query(self, text):
        self.asked.set()
        assert self.asks.wait(30)
        return self.embedder.embed_query(text)

    def embed_documents(self, texts):
        self.reached.set()
        assert self.open.wait(30)
        if self.fail:
            raise self.fail
        self.texts += texts
        return self.embedder.embed_documents(texts)


async def opened(folder, embedder):
    return await LanceDocuments.open(
        folder, embedder=embedder, shard="s1", clock=SystemClock(), node="kb"
    )


async def filled(folder, embedder=HASH):
    store = await opened(folder, embedder)
    for number, (name, content) in enumerate(TEXTS.items()):  # some versions
        await store.index("notes", [Document(id=name, content=content, metadata={"n": number})])
    return store


@pytest.fixture
async def foreign(tmp_path):
    """A node with wordllama on what hash embedded."""
    await (await filled(tmp_path)).close()
    store = await opened(tmp_path, LLAMA)
    yield store
    await store.close()


async def asked(store, query="late invoice", mode="hybrid", **options):
    found = await store.search(
        query,
        collections=["notes"],
        mode=mode,
        depth=30,
        threshold=None,
        **({"filters": {}} | options),
    )
    return found[0]


async def everything(store):
    table = await store._collections["notes"]._table.query().to_arrow()
    return {row.pop("id"): row for row in table.to_pylist()}


def silent(_share, _note):
    pass


# -- what can be done with it as it is -------------------------------------------------------------


async def test_it_says_what_it_is(foreign):
    [info] = foreign.collections()
    assert (info.fingerprint, info.rows) == (HASH.id, 5)


async def test_the_text_leg_answers_and_says_that_it_is_alone(foreign):
    hits = await asked(foreign)
    assert {found.id for found in hits.candidates} == {"a", "e"}
    assert {(found.cosine, found.vector_hit) for found in hits.candidates} == {(None, False)}
    assert hits.fingerprint == HASH.id
    assert "embedded by 'hash-512/2'" in hits.no_vectors
    assert "search.embedder" in hits.no_vectors
    assert "`meshctl collections reembed notes --node kb`" in hits.no_vectors
    only_text = await asked(foreign, mode="text")
    assert only_text.no_vectors == ""
    assert only_text.candidates == hits.candidates


async def test_vectors_alone_find_nothing_and_say_why(foreign):
    hits = await asked(foreign, mode="vector")
    assert hits.candidates == []
    assert "embedded by" in hits.no_vectors


async def test_a_collection_of_this_node_s_own_is_whole_beside_it(foreign):
    await foreign.index("other", [Document(id="a", content="late invoice")])
    both = await foreign.search(
        "late invoice", collections=None, mode="hybrid", depth=30, threshold=None, filters={}
    )
    assert [(hits.collection, bool(hits.no_vectors)) for hits in both] == [
        ("notes", True),
        ("other", False),
    ]
    assert both[1].candidates[0].vector_hit


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_writes_are_refused_with_what_to_do(foreign, write):
    before = await everything(foreign)
    with pytest.raises(ConflictError, match=r"'notes' is embedded by 'hash.*collections reembed"):
        await write(foreign)
    assert await everything(foreign) == before


async def test_it_can_be_read_compared_and_dropped(foreign):
    assert [found.id for found in await foreign.fetch("notes", ["b", "a"])] == ["b", "a"]
    assert (await foreign.census("notes")).rows == 5
    await foreign.drop("notes")
    assert foreign.collections() == ()
    await foreign.index("notes", [Document(id="a", content="x")])
    assert foreign.collections()[0].fingerprint == LLAMA.id


async def test_set_back_it_is_as_it_was(tmp_path, foreign):
    await foreign.close()
    store = await opened(tmp_path, HASH)
    assert (await asked(store)).candidates[0].vector_hit
    await store.index("notes", [Document(id="z", content="x")])
    await store.close()


# -- made anew -------------------------------------------------------------------------------------


async def test_reembed_makes_it_as_if_it_had_been_indexed_here(tmp_path, foreign):
    before = foreign.collections()[0]
    told = []
    done = await foreign.reembed("notes", lambda share, note: told.append((share, note)))
    assert (done.documents, done.before, done.after) == (5, HASH.id, LLAMA.id)
    assert done.data_version > before.data_version
    assert told[-1] == (1.0, "writing")
    assert (1.0, "5 of 5 documents") in told

    genuine = await filled(tmp_path / "genuine", LLAMA)
    mine, theirs = await everything(foreign), await everything(genuine)
    for rows in (mine, theirs):
        for row in rows.values():
            del row["updated_at"]
    assert mine == theirs
    for mode in ("hybrid", "vector", "text"):
        hits, wanted = await asked(foreign, mode=mode), await asked(genuine, mode=mode)
        assert hits.no_vectors == ""
        assert (hits.fingerprint, hits.df) == (wanted.fingerprint, wanted.df)
        key = lambda found: found.id  # noqa: E731
        assert sorted(hits.candidates, key=key) == sorted(wanted.candidates, key=key)
    assert (await foreign.census("notes")).digest == (await genuine.census("notes")).digest
    await genuine.close()


async def test_afterwards_everything_works_also_after_a_restart(tmp_path, foreign):
    await foreign.reembed("notes", silent)
    version = foreign.collections()[0].data_version
    done = await foreign.index("notes", [Document(id="z", content="zebra", metadata={"n": 9})])
    assert done.data_version > version
    await asyncio.gather(
        *(foreign.index("notes", [Document(id="new", content=f"v{n}")]) for n in range(8))
    )
    await foreign.close()
    store = await opened(tmp_path, LLAMA)
    [info] = store.collections()
    assert (info.fingerprint, info.rows) == (LLAMA.id, 7)
    assert info.data_version >= done.data_version
    hits = await asked(store, "zebra", filters={"n": {"gt": 5}})
    assert [found.id for found in hits.candidates] == ["z"]
    assert not [file.name for file in tmp_path.glob("*.reembedding")]
    await store.close()


async def test_nothing_to_do_is_said(foreign):
    await foreign.reembed("notes", silent)
    again = await foreign.reembed("notes", silent)
    assert (again.documents, again.before, again.after) == (0, LLAMA.id, LLAMA.id)
    assert again.data_version == foreign.collections()[0].data_version


async def test_an_unknown_collection(foreign):
    with pytest.raises(InvalidError, match="unknown collection 'nothing'"):
        await foreign.reembed("nothing", silent)


async def test_an_empty_collection(tmp_path):
    store = await opened(tmp_path, HASH)
    await store.index("notes", [Document(id="a", content="x", metadata={"n": 1})])
    await store.delete("notes", ids=["a"])
    await store.close()
    store = await opened(tmp_path, LLAMA)
    assert (await asked(store)).no_vectors == ""
    assert (await store.reembed("notes", silent)).after == LLAMA.id
    await store.index("notes", [Document(id="a", content="late invoice", metadata={"n": 1})])
    assert [found.id for found in (await asked(store, filters={"n": 1})).candidates] == ["a"]
    await store.close()


async def test_terms_of_another_version_and_another_embedder_s_vectors(tmp_path, monkeypatch):
    """By words alone the vectors do not matter, but the words do."""
    with monkeypatch.context() as old:
        old.setattr(text, "VERSION", "0")
        await (await filled(tmp_path)).close()
    store = await opened(tmp_path, LLAMA)
    assert "embedded by" in (await asked(store, mode="text")).old_words
    await store.reembed("notes", silent)
    assert (await asked(store, mode="text")).old_words == ""
    await store.close()


async def test_terms_of_another_version(tmp_path, monkeypatch):
    """The vectors are good, so both legs answer, and they stay; the terms are counted anew. Until
    then words of today do not find all that is there, and the shard says so.
    """
    monkeypatch.setattr(text, "VERSION", "0")
    with monkeypatch.context() as old:
        old.setattr(text, "terms", lambda content: content.split())
        await (await filled(tmp_path, LLAMA)).close()
    monkeypatch.undo()
    embedder = Gated(LLAMA)
    store = await opened(tmp_path, embedder)
    vectors = {name: row["vector"] for name, row in (await everything(store)).items()}
    for mode, told in (("hybrid", True), ("text", True), ("vector", False)):
        hits = await asked(store, "Invoice dragons", mode=mode)
        assert ("indexed by another version" in hits.old_words) is told
        status, reason = how_it_went(hits, mode)
        assert (status, bool(reason)) == ("ok", told)
    hits = await asked(store, "Invoice dragons")
    assert hits.no_vectors == ""
    assert any(found.vector_hit for found in hits.candidates)
    assert "b" not in {found.id for found in hits.candidates if found.text_hit}
    with pytest.raises(ConflictError, match="'notes' is indexed by another version of nodemesh"):
        await store.index("notes", [Document(id="a", content="x")])

    done = await store.reembed("notes", silent)
    assert (done.documents, done.before, done.after) == (5, LLAMA.id, LLAMA.id)
    assert embedder.texts == []
    assert {name: row["vector"] for name, row in (await everything(store)).items()} == vectors
    hits = await asked(store, "dragons")
    assert hits.old_words == ""
    assert [found.id for found in hits.candidates if found.text_hit] == ["b"]
    await store.index("notes", [Document(id="z", content="x")])
    await store.close()


# -- while it is made ------------------------------------------------------------------------------


@pytest.fixture
async def gated(tmp_path):
    await (await filled(tmp_path)).close()
    embedder = Gated(LLAMA)
    store = await opened(tmp_path, embedder)
    yield store, embedder
    embedder.open.set()
    embedder.asks.set()
    await store.close()


async def begun(store, embedder):
    embedder.open.clear()
    work = asyncio.create_task(store.reembed("notes", silent))
    await asyncio.to_thread(embedder.reached.wait, 30)
    return work


async def test_searches_go_on_meanwhile_and_writes_do_not(gated):
    store, embedder = gated
    work = await begun(store, embedder)
    assert {found.id for found in (await asked(store)).candidates} == {"a", "e"}
    with pytest.raises(ConflictError):
        await store.index("notes", [Document(id="z", content="x")])
    assert store.collections()[0].fingerprint == HASH.id
    embedder.open.set()
    assert (await work).documents == 5
    assert any(found.vector_hit for found in (await asked(store)).candidates)


async def test_no_search_misses_it_when_it_is_swapped(gated):
    """One that began on the old version ends on the new one."""
    store, embedder = gated
    embedder.asks.clear()
    searching = asyncio.create_task(asked(store))
    await asyncio.to_thread(embedder.asked.wait, 30)
    assert (await store.reembed("notes", silent)).documents == 5
    embedder.asks.set()
    hits = await searching
    assert {"a", "e"} <= {found.id for found in hits.candidates if found.vector_hit}


@pytest.mark.parametrize("verb", ["fetch", "census"])
async def test_no_reader_misses_it_when_it_is_swapped(foreign, monkeypatch, verb):
    old = foreign._collections["notes"]
    genuine = getattr(old, verb)

    async def late(*arguments):
        await foreign.reembed("notes", silent)
        return await genuine(*arguments)

    monkeypatch.setattr(old, verb, late)
    if verb == "fetch":
        assert [found.id for found in await foreign.fetch("notes", ["b", "a"])] == ["b", "a"]
    else:
        assert (await foreign.census("notes")).rows == 5
    assert foreign._collections["notes"] is not old


@pytest.mark.parametrize("verb", ["fetch", "census"])
async def test_a_reader_of_what_is_dropped_meanwhile_is_told(foreign, monkeypatch, verb):
    old = foreign._collections["notes"]
    genuine = getattr(old, verb)

    async def late(*arguments):
        await foreign.drop("notes")
        return await genuine(*arguments)

    monkeypatch.setattr(old, verb, late)
    with pytest.raises(InvalidError, match="unknown collection 'notes'"):
        await (foreign.fetch("notes", ["a"]) if verb == "fetch" else foreign.census("notes"))


async def test_equal_texts_are_embedded_once(gated):
    store, embedder = gated
    await store.reembed("notes", silent)
    assert sorted(embedder.texts) == sorted(set(TEXTS.values()))


async def test_a_drop_ends_it(gated, monkeypatch):
    store, embedder = gated
    monkeypatch.setattr(reembedding, "_BATCH", 1)
    work = await begun(store, embedder)
    collection = store._collections["notes"]
    drop = asyncio.create_task(store.drop("notes"))
    while not collection.closed:
        await asyncio.sleep(0)
    embedder.open.set()
    await drop
    with pytest.raises(InvalidError, match="unknown collection 'notes'"):
        await work
    assert len(embedder.texts) == 1
    assert not list(store._shelf.folder.glob("*.reembedding"))
    await store.index("notes", [Document(id="a", content="late invoice")])
    assert store.collections()[0].fingerprint == LLAMA.id


async def test_a_drop_before_the_first_text_ends_it_too(gated, monkeypatch):
    """The file of staged vectors is made while nobody reads, so the drop does not wait."""
    store, _ = gated
    genuine = reembedding.Staged
    reached, go = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        reached.set()
        assert go.wait(30)
        return genuine(*arguments, **options)

    monkeypatch.setattr(reembedding, "Staged", slow)
    work = asyncio.create_task(store.reembed("notes", silent))
    await asyncio.to_thread(reached.wait, 30)
    await store.drop("notes")
    go.set()
    with pytest.raises(InvalidError, match="unknown collection 'notes'"):
        await work
    assert not list(store._shelf.folder.glob("*.reembedding"))


async def test_the_end_of_the_node_keeps_what_was_staged(tmp_path, gated, monkeypatch):
    store, embedder = gated
    monkeypatch.setattr(reembedding, "_BATCH", 1)
    work = await begun(store, embedder)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    embedder.open.set()
    await closing
    with pytest.raises(UnavailableError):
        await work
    done = len(embedder.texts)
    store = await opened(tmp_path, embedder)
    await store.reembed("notes", silent)
    assert (done, len(embedder.texts)) == (1, 4)
    await store.close()


async def test_two_at_once_embed_once(gated):
    store, embedder = gated
    work = await begun(store, embedder)
    told = []
    second = asyncio.create_task(store.reembed("notes", lambda *word: told.append(word)))
    await asyncio.sleep(0)
    embedder.open.set()
    assert ((await work).documents, (await second).documents) == (5, 0)
    assert told == [(None, "waiting for another collection's turn")]
    assert len(embedder.texts) == 4


async def test_cancelled_it_goes_on_where_it_was(gated, monkeypatch):
    store, embedder = gated
    monkeypatch.setattr(reembedding, "_BATCH", 1)
    seen = asyncio.Event()
    work = asyncio.create_task(store.reembed("notes", lambda *_: seen.set()))
    await seen.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert store.collections()[0].fingerprint == HASH.id
    assert (await store.reembed("notes", silent)).documents == 5
    # The batch that ran when it was cancelled may have been embedded twice.
    assert len(embedder.texts) <= len(set(TEXTS.values())) + 1


async def test_cancelled_in_the_last_step_it_ends_all_the_same(gated, monkeypatch):
    store, _ = gated
    writing, go = asyncio.Event(), asyncio.Event()
    rewrite = reembedding.rewrite

    async def slow(*arguments):
        writing.set()
        await go.wait()
        await rewrite(*arguments)

    monkeypatch.setattr(reembedding, "rewrite", slow)
    first = asyncio.create_task(store.reembed("notes", silent))
    await writing.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(store.reembed("notes", silent))
    await asyncio.sleep(0.05)  # it may be anywhere by now
    go.set()
    done = await second
    assert (done.documents, done.after) == (0, LLAMA.id)
    assert store.collections()[0].fingerprint == LLAMA.id
    assert any(found.vector_hit for found in (await asked(store)).candidates)
    assert not list(store._shelf.folder.glob("*.reembedding"))


async def test_an_embedder_that_fails_changes_nothing(gated):
    store, embedder = gated
    before = await everything(store)
    embedder.fail = UnavailableError("the embedder does not answer")
    with pytest.raises(UnavailableError, match="does not answer"):
        await store.reembed("notes", silent)
    assert await everything(store) == before
    embedder.fail = None
    assert (await store.reembed("notes", silent)).documents == 5


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda vectors: vectors * np.nan, "NaN or infinity for document 'a'"),
        (lambda vectors: vectors[:, 1:], "shape"),
        (lambda vectors: vectors[1:], "shape"),
    ],
    ids=["nan", "dim", "few"],
)
async def test_vectors_that_are_none_are_not_staged(gated, spoil, words):
    store, embedder = gated
    genuine = embedder.embedder
    before = await everything(store)
    embedder.embed_documents = lambda texts: spoil(genuine.embed_documents(texts))
    with pytest.raises(StateError, match=words):
        await store.reembed("notes", silent)
    assert await everything(store) == before
    del embedder.embed_documents
    assert (await store.reembed("notes", silent)).documents == 5
    assert any(found.vector_hit for found in (await asked(store)).candidates)


async def test_a_commit_that_fails_changes_nothing(foreign, monkeypatch):
    before = await everything(foreign)

    def broken(*_):
        raise ValueError("broken on the way")

    with monkeypatch.context() as wrong:
        wrong.setattr(reembedding, "_made_anew", broken)
        with pytest.raises(StateError, match="re-embedding collection 'notes' failed"):
            await foreign.reembed("notes", silent)
    assert await everything(foreign) == before
    assert foreign.collections()[0].fingerprint == HASH.id
    assert (await foreign.reembed("notes", silent)).documents == 5


async def test_staged_vectors_that_a_kill_left_behind_go(tmp_path, foreign):
    """Between the last step and their removal; those of a collection still to be embedded stay."""
    await foreign.index("mine", [Document(id="a", content="x")])
    for name in ("notes", "mine", "gone"):
        (tmp_path / f"{name}.reembedding").touch()
    await foreign.close()
    store = await opened(tmp_path, LLAMA)
    assert [file.name for file in tmp_path.glob("*.reembedding")] == ["notes.reembedding"]
    (tmp_path / "mine.reembedding").touch()
    await store.reembed("mine", silent)
    await store.reembed("notes", silent)
    assert not list(tmp_path.glob("*.reembedding"))
    await store.close()


# -- the staged vectors ----------------------------------------------------------------------------


def staged(path, *, embedder="e", dim=3):
    return staging.Staged(path, embedder=embedder, dim=dim)


def rows(*numbers):
    return np.asarray([[number] * 3 for number in numbers], dtype=np.float32)


def test_staged_vectors_outlive_the_process(tmp_path):
    file = tmp_path / "notes.reembedding"
    first = staged(file)
    first.add(["one", "two"], rows(1, 2))
    first.add(["three"], rows(3))
    again = staged(file)  # the first was never closed, as after a kill
    assert again.missing(["one", "four", "three", "four"]) == ["four"]
    again.add(["four"], rows(4))
    assert again.vectors(["three", "one", "four", "one"]).tolist() == rows(3, 1, 4, 1).tolist()
    again.remove()
    first.close()
    assert not file.exists()


@pytest.mark.parametrize("torn", range(1, 60, 7))
def test_what_is_torn_off_is_embedded_again(tmp_path, torn):
    file = tmp_path / "notes.reembedding"
    first = staged(file)
    first.add(["one", "two"], rows(1, 2))
    first.close()
    content = file.read_bytes()
    file.write_bytes(content[:-torn])
    again = staged(file)
    lost = ["two"] if torn <= 48 else ["one", "two"]
    assert again.missing(["one", "two"]) == lost
    again.add(lost, rows(*range(len(lost))))
    assert staged_anew(again, file).missing(["one", "two"]) == []


def staged_anew(before, file):
    before.close()
    again = staged(file)
    again.close()
    return again


def test_what_is_damaged_is_embedded_again(tmp_path):
    file = tmp_path / "notes.reembedding"
    first = staged(file)
    first.add(["one", "two", "three"], rows(1, 2, 3))
    first.close()
    content = bytearray(file.read_bytes())
    content[-48 - 10] ^= 1  # a bit of the second vector
    file.write_bytes(content)
    assert staged_anew(first, file).missing(["one", "two", "three"]) == ["two", "three"]


def test_another_embedder_s_are_not_used(tmp_path):
    file = tmp_path / "notes.reembedding"
    first = staged(file)
    first.add(["one"], rows(1))
    first.close()
    for others in ({"embedder": "f"}, {"dim": 4}):
        other = staged(file, **others)
        assert other.missing(["one"]) == ["one"]
        other.close()


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(StateError, match="cannot be used"):
        staged(tmp_path / "nothing" / "notes.reembedding")
