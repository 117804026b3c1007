"""Writing: all or nothing, exact statistics, versions that never go back."""

import asyncio
import errno
import itertools
import threading
from collections import Counter

import pytest

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.adapters.lance import LanceDocuments, tidying
from mesh.adapters.lance.contents import Contents
from mesh.core import text
from mesh.errors import InvalidError, NotFoundError, StateError, UnavailableError
from mesh.wire.messages import Document


async def opened(folder, *, embedder="hash", clock=None, hot_mb=64):
    return await LanceDocuments.open(
        folder,
        embedder=load_embedder(embedder) if isinstance(embedder, str) else embedder,
        shard="s1",
        clock=clock or SystemClock(),
        hot_mb=hot_mb,
    )


@pytest.fixture(params=[64, 0], ids=["hot", "disk"])
async def store(tmp_path, request):
    documents = await opened(tmp_path / "data", hot_mb=request.param)
    yield documents
    await documents.close()


def doc(name, content="some text", /, **metadata):
    return Document(id=name, content=content, metadata=metadata)


async def stored(documents, collection, ids):
    return {d.id: (d.content, d.metadata) for d in await documents.fetch(collection, ids)}


async def everything(documents, collection):
    table = await documents._collections[collection]._table.query().to_arrow()
    return table.to_pylist()


async def assert_statistics_exact(documents, collection):
    """Against a count from nothing but the texts."""
    rows = await everything(documents, collection)
    found = documents._collections[collection].statistics
    counted = Counter(term for row in rows for term in set(text.terms(row["content"])))
    assert found.rows == len(rows)
    assert found.tokens == sum(len(text.terms(row["content"])) for row in rows)
    assert found.terms() == counted
    if copy := documents._collections[collection]._contents.hot:
        assert_hot_copy_exact(copy, rows)
    assert len({row["id"] for row in rows}) == len(rows)


def assert_hot_copy_exact(copy, rows):
    """It holds what LanceDB holds, and finds it by its terms."""
    now = copy.snapshot
    places = {row["id"]: copy.place(row["id"]) for row in rows}
    assert (now.rows if now.living is None else now.living.sum()) == len(rows)
    for row in rows:
        place = places[row["id"]]
        assert now.living is None or now.living[place]
        kept = (now.contents[place], now.hashes[place], now.metadata[place])
        assert kept == (row["content"], row["hash"], row["metadata"])
        assert now.lengths[place] == row["length"]
        assert now.vectors[place].tolist() == (row["vector"] or [0.0] * copy.dim)
        assert (now.directed is None or now.directed[place]) == (row["vector"] is not None)
        for term, count in Counter(text.terms(row["content"])).items():
            found = {int(holder): int(tf) for holder, tf in zip(*now.posting(term), strict=True)}
            assert found[place] == count


async def test_index_update_delete_fetch(store):
    first = await store.index("notes", [doc("a", "red apple", n=1), doc("b", "green pear", n=2)])
    assert first.changed == ("a", "b")
    assert await stored(store, "notes", ["b", "nope", "a"]) == {
        "a": ("red apple", {"n": 1}),
        "b": ("green pear", {"n": 2}),
    }
    await assert_statistics_exact(store, "notes")

    second = await store.update("notes", "a", {"content": "blue apple", "n": None, "new": "x"})
    assert second.changed == ("a",)
    assert second.data_version > first.data_version
    assert await stored(store, "notes", ["a"]) == {"a": ("blue apple", {"new": "x"})}
    await assert_statistics_exact(store, "notes")

    third = await store.delete("notes", ids=["zz", "b", "b"])
    assert third.changed == ("b",)
    assert third.data_version > second.data_version
    assert await store.fetch("notes", ["b"]) == ()
    await assert_statistics_exact(store, "notes")
    [info] = store.collections()
    assert (info.name, info.shard, info.rows) == ("notes", "s1", 1)
    assert info.data_version == third.data_version
    assert info.fingerprint == load_embedder("hash").id


async def test_equal_documents_are_left_alone(store):
    first = await store.index("notes", [doc("a", n=1), doc("b")])
    again = await store.index("notes", [doc("b"), doc("a", n=1)])
    assert again == ((), first.data_version)
    assert await store.update("notes", "a", {"n": 1}) == ((), first.data_version)
    changed = await store.index("notes", [doc("a", n=2), doc("b")])
    assert changed.changed == ("a",)
    await assert_statistics_exact(store, "notes")


async def test_one_id_twice_in_a_batch_is_one_row_the_last(store):
    """LanceDB's merge would insert both."""
    written = await store.index("notes", [doc("a", "old"), doc("b"), doc("a", "new")])
    assert sorted(written.changed) == ["a", "b"]
    assert await stored(store, "notes", ["a"]) == {"a": ("new", {})}
    await assert_statistics_exact(store, "notes")


async def test_concurrent_upserts_of_one_new_id_are_one_row(store):
    """Plain LanceDB makes 16 rows of this and reports no error."""
    await asyncio.gather(*(store.index("notes", [doc("a", f"text {n}")]) for n in range(16)))
    assert store.collections()[0].rows == 1
    await assert_statistics_exact(store, "notes")


async def test_a_reader_sees_what_was_acknowledged(store):
    for number in range(10):
        await store.index("notes", [doc("a", f"text {number}")])
        assert await stored(store, "notes", ["a"]) == {"a": (f"text {number}", {})}


async def test_a_value_of_another_kind_changes_nothing(store):
    await store.index("notes", [doc("a", year=2024)])
    before = store.collections()
    with pytest.raises(InvalidError) as caught:
        await store.index("notes", [doc("b", year=1), doc("c", year="soon", color="red")])
    assert list(caught.value.fields) == ["documents[1].metadata.year"]
    assert "text in document 'c', but a number" in str(caught.value)
    with pytest.raises(InvalidError) as caught:
        await store.update("notes", "a", {"year": True})
    assert list(caught.value.fields) == ["fields.metadata.year"]
    assert store.collections() == before
    assert await stored(store, "notes", ["a", "b", "c"]) == {"a": ("some text", {"year": 2024})}
    with pytest.raises(InvalidError, match="known: id, year"):
        await store.delete("notes", filters={"color": "red"})


async def test_a_batch_refused_makes_no_collection(store):
    for documents in (
        [doc("a", x=1), doc("b", x="1")],
        [doc("a", " ")],
        [Document(id="", content="x")],
        [],
    ):
        with pytest.raises(InvalidError):
            await store.index("notes", documents)
    assert store.collections() == ()


async def test_metadata_of_every_shape_comes_back(store):
    shapes = {"t": "x", "n": 1, "f": 1.5, "b": True, "z": None, "l": [1, {"a": 2}], "o": {"k": []}}
    odd = {"with space": 1, "dots.in.it": "x", "ünï": 2, "Case": 1, "case": "x", "id": "mine"}
    await store.index("notes", [doc("a", **shapes, **odd), doc("b", z="now text", l="now text")])
    assert (await stored(store, "notes", ["a"]))["a"][1] == shapes | odd
    deleted = await store.delete("notes", filters={"Case": 1, "case": "x", "t": "x", "z": None})
    assert deleted.changed == ("a",)


async def test_keys_beyond_the_limit_are_kept_but_cannot_be_filtered_by(store):
    many = {f"k{number:03}": number for number in range(80)}
    await store.index("notes", [doc("a", **many), doc("b", k079="text, as it is no column")])
    assert (await stored(store, "notes", ["a"]))["a"][1] == many
    with pytest.raises(InvalidError):
        await store.delete("notes", filters={"k070": 70})
    assert (await store.delete("notes", filters={"k010": 10})).changed == ("a",)


@pytest.mark.parametrize(
    "hostile",
    ["'", "x' OR '1'='1", '"; DROP TABLE notes; --', "a\\'b", "%", "_", "\x00", "`", "é\n", ",k,"],
)
async def test_what_looks_like_sql_is_data(store, hostile):
    await store.index("notes", [doc("innocent", k="v"), doc(hostile, k=hostile)])
    found = await stored(store, "notes", [hostile])
    assert found == {hostile: ("some text", {"k": hostile})}
    assert (await store.delete("notes", filters={"k": [hostile, "nothing"]})).changed == (hostile,)
    assert (await store.delete("notes", ids=[hostile])).changed == ()
    assert store.collections()[0].rows == 1


async def test_delete_by_filter(store):
    await store.index("notes", [doc(f"d{n}", n=n, even=n % 2 == 0) for n in range(10)])
    assert (await store.delete("notes", filters={"n": {"gte": 8}})).changed == ("d8", "d9")
    both = await store.delete("notes", ids=["d1", "d2"], filters={"even": True})
    assert both.changed == ("d2",)
    missing = await store.delete("notes", filters={"n": [0, None]})
    assert missing.changed == ("d0",)
    await assert_statistics_exact(store, "notes")


async def test_delete_everything_is_asked_for_with_drop(store):
    await store.index("notes", [doc("a")])
    for nothing in ({}, {"ids": []}, {"filters": {}}):
        with pytest.raises(InvalidError, match="drop the collection"):
            await store.delete("notes", **nothing)


async def test_unknown_collections_and_documents(store):
    await store.index("notes", [doc("a")])
    for call in (
        store.update("mails", "a", {}),
        store.delete("mails", ids=["a"]),
        store.drop("mails"),
        store.fetch("mails", ["a"]),
    ):
        with pytest.raises(InvalidError, match="'mails'; known: notes") as caught:
            await call
        assert list(caught.value.fields) == ["collection"]
    with pytest.raises(NotFoundError, match="'zz'"):
        await store.update("notes", "zz", {"content": "x"})


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "x" * 129, "a*"])
async def test_names_that_cannot_be(store, name):
    with pytest.raises(InvalidError) as caught:
        await store.index(name, [doc("a")])
    assert list(caught.value.fields) == ["collection"]


async def test_names_that_can_be(store, tmp_path):
    names = ["App.Models.Post", "a-b_c", "x.lance", "9", "A" * 128]
    for name in names:
        await store.index(name, [doc("a", name)])
    await store.close()
    again = await opened(tmp_path / "data")
    assert [info.name for info in again.collections()] == sorted(names)
    for name in names:
        assert await stored(again, name, ["a"]) == {"a": (name, {})}
    await again.close()


async def test_everything_is_there_after_a_restart(tmp_path):
    before = await opened(tmp_path / "data")
    await before.index("notes", [doc(f"d{n}", f"text number {n}", n=n) for n in range(50)])
    await before.delete("notes", ids=["d3"])
    await before.update("notes", "d4", {"content": "another", "note": "x"})
    [old] = before.collections()
    terms = before._collections["notes"].statistics.terms()
    await before.close()
    after = await opened(tmp_path / "data")
    [new] = after.collections()
    assert (new.name, new.rows, new.fingerprint) == (old.name, 49, old.fingerprint)
    assert new.data_version >= old.data_version
    assert after._collections["notes"].statistics.terms() == terms
    await assert_statistics_exact(after, "notes")
    written = await after.index("notes", [doc("new", note="y")])
    assert written.data_version > new.data_version
    await after.close()


class StoppedClock(SystemClock):
    def unix_ms(self):
        return 1_000


async def test_data_versions_never_go_back_over_a_drop(tmp_path):
    """Not even with a clock that stands still, else a cached answer could come back to life."""
    versions = []
    for _ in range(3):
        store = await opened(tmp_path / "data", clock=StoppedClock())
        versions += [
            (await store.index("notes", [doc("a", f"x{number}")])).data_version
            for number in range(3)
        ]
        await store.drop("notes")
        assert store.collections() == ()
        versions.append((await store.index("notes", [doc("b")])).data_version)
        await store.drop("notes")
        await store.close()
    assert versions == sorted(set(versions))


async def test_a_drop_cut_short_is_finished_at_the_next_start(tmp_path):
    store = await opened(tmp_path / "data")
    written = await store.index("notes", [doc("a")])
    store._shelf._catalogue.begin_drop("notes", written.data_version)
    await store.close()
    (next((tmp_path / "data" / "notes.lance" / "data").iterdir())).unlink()
    again = await opened(tmp_path / "data")
    assert again.collections() == ()
    assert not (tmp_path / "data" / "notes.lance").exists()
    assert (await again.index("notes", [doc("b")])).data_version > written.data_version
    await again.close()


@pytest.mark.parametrize("failing", ["drop_table", "end_drop"])
async def test_what_follows_a_drop_that_failed_is_there_after_a_restart(
    tmp_path, monkeypatch, failing
):
    store = await opened(tmp_path / "data")
    await store.index("notes", [doc("a")])
    with monkeypatch.context() as full_disk:
        if failing == "drop_table":

            async def drop_table(*_args, **_options):
                raise OSError(errno.ENOSPC, "No space left on device")

            full_disk.setattr(store._store.connection, "drop_table", drop_table)
        else:

            def end_drop(_name):
                raise StateError("catalogue.json cannot be written: No space left on device")

            full_disk.setattr(store._shelf._catalogue, "end_drop", end_drop)
        with pytest.raises(StateError):
            await store.drop("notes")
        with pytest.raises(StateError):  # not acknowledged while it could be lost
            await store.index("notes", [doc("b")])
    assert (await store.index("notes", [doc("b")])).changed == ("b",)
    await store.close()

    again = await opened(tmp_path / "data")
    assert list(await stored(again, "notes", ["a", "b"])) == ["b"]
    await again.close()


async def test_a_collection_half_made_is_made_anew(tmp_path):
    (tmp_path / "data" / "notes.lance" / "_versions").mkdir(parents=True)
    store = await opened(tmp_path / "data")
    assert store.collections() == ()
    await store.index("notes", [doc("a")])
    assert await stored(store, "notes", ["a"]) == {"a": ("some text", {})}
    await store.close()


class FailingEmbedder:
    """The hash embedder, until a text says so; called something else if you like."""

    dim, default_threshold, quick_chars = 512, 0.0, 0

    def __init__(self, name="hash-512/2"):
        self.id = name
        self.gate = threading.Event()
        self.gate.set()

    def embed_documents(self, texts):
        assert self.gate.wait(30)
        if any("fail" in text for text in texts):
            raise UnavailableError("the embedder is away")
        return HashEmbedder().embed_documents(texts)

    def embed_query(self, text):
        return self.embed_documents([text])[0]


async def test_a_first_write_that_fails_leaves_nothing(tmp_path):
    store = await opened(tmp_path / "data", embedder=FailingEmbedder())
    for _ in range(2):
        for write in (
            store.index("notes", [doc("a", "this fails")]),
            store.replace("notes", puts=[doc("a", "this fails")], columns={"n": "number"}),
        ):
            with pytest.raises(UnavailableError):
                await write
            assert store.collections() == ()
            assert not (tmp_path / "data" / "notes.lance").exists()
    await store.index("notes", [doc("a")])
    await store.delete("notes", ids=["a"])
    with pytest.raises(UnavailableError):
        await store.index("notes", [doc("a", "this fails")])
    assert [info.rows for info in store.collections()] == [0], "it has been something"
    await store.close()


@pytest.mark.parametrize("order", list(itertools.permutations(["good", "fails", "fails too"])))
async def test_of_several_first_writes_those_that_succeed_stay(tmp_path, order):
    embedder = FailingEmbedder()
    store = await opened(tmp_path / "data", embedder=embedder)
    embedder.gate.clear()
    writes = [asyncio.create_task(store.index("notes", [doc(text, text)])) for text in order]
    await asyncio.sleep(0.05)
    writes += [asyncio.create_task(store.index("notes", [doc(text, text)])) for text in order]
    embedder.gate.set()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    failed = [isinstance(outcome, UnavailableError) for outcome in outcomes]
    if not all(failed):  # those that share a commit with an endpoint that is away fail together
        assert list(await stored(store, "notes", list(order))) == ["good"]
    else:
        assert store.collections() == ()
    await store.close()


async def test_a_first_write_that_fails_when_nobody_waits_any_more_leaves_nothing(tmp_path):
    embedder = FailingEmbedder()
    store = await opened(tmp_path / "data", embedder=embedder)
    embedder.gate.clear()
    writing = asyncio.create_task(store.index("notes", [doc("a", "this fails")]))
    async with asyncio.timeout(30):
        while not store.collections():
            await asyncio.sleep(0.01)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    embedder.gate.set()
    await store.settled()
    assert store.collections() == ()
    await store.close()


async def test_a_first_write_that_fails_while_the_node_ends_harms_nobody(tmp_path):
    embedder = FailingEmbedder()
    store = await opened(tmp_path / "data", embedder=embedder)
    embedder.gate.clear()
    writing = asyncio.create_task(store.index("notes", [doc("a", "this fails")]))
    async with asyncio.timeout(30):
        while not store.collections():
            await asyncio.sleep(0.01)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    embedder.gate.set()
    await closing
    with pytest.raises(UnavailableError, match="away"):
        await writing
    again = await opened(tmp_path / "data")
    await again.index("notes", [doc("a")])
    assert [info.rows for info in again.collections()] == [1]
    await again.close()


async def test_an_empty_collection_of_another_embedder_is_made_anew_by_the_first_write(tmp_path):
    """As a crash leaves it that comes between a table and its first rows."""
    store = await opened(tmp_path / "data", embedder=FailingEmbedder("another"))
    await store.index("notes", [doc("a", n=1)])
    version = (await store.delete("notes", ids=["a"])).data_version
    await store.close()
    store = await opened(tmp_path / "data")
    assert await store.would_index("notes", [doc("a")]) == 1
    assert (await store.delete("notes", ids=["a"])).changed == ()
    with pytest.raises(NotFoundError):
        await store.update("notes", "a", {"n": 2})
    written = await store.index("notes", [doc("b")])
    assert written.data_version > version
    [info] = store.collections()
    assert (info.fingerprint, info.outdated, info.rows) == (HashEmbedder().id, False, 1)
    await store.close()


async def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match="cannot be used"):
        await opened(tmp_path / "file")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "catalogue.json").write_text("{")
    with pytest.raises(StateError, match="restore it"):
        await opened(tmp_path / "data")


async def test_many_single_writes_leave_few_fragments(store):
    """400 of them made queries 20 times slower; counted, not timed."""
    for number in range(60):
        await store.index("notes", [doc(f"d{number}", f"text {number}")])
    collection = store._collections["notes"]
    for _ in range(100):
        fragments = (await collection._table.stats())["fragment_stats"]["num_fragments"]
        if fragments <= tidying.MIN_WRITES:  # those that were joined are one more
            break
        await asyncio.sleep(0.05)
    assert fragments <= tidying.MIN_WRITES
    await assert_statistics_exact(store, "notes")


async def test_readers_go_on_while_a_table_is_tidied(store):
    """Forgetting old versions at once would break them."""
    await store.index("notes", [doc(f"d{n}", f"text {n}") for n in range(50)])
    table = store._collections["notes"]._table
    stop = asyncio.Event()

    async def read():
        count = 0
        while not stop.is_set():
            assert len(await store.fetch("notes", ["d1", "d2"])) == 2
            count += 1
        return count

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for number in range(5):
        await store.index("notes", [doc("x", f"again {number}")])
        await table.optimize(cleanup_older_than=tidying.GRACE)
    stop.set()
    assert all(count > 0 for count in await asyncio.gather(*readers))


async def test_a_cancelled_write_happens_or_not_but_statistics_stay_exact(store):
    await store.index("notes", [doc("a", "first words")])
    for delay in (0, 0, 0.001, 0.003, 0.006, 0.01, 0.02):
        task = asyncio.create_task(store.index("notes", [doc("a", f"other words {delay}")]))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.index("notes", [doc("b", f"after {delay}")])
        await assert_statistics_exact(store, "notes")


async def test_a_write_that_fails_after_its_commit_is_found_out(store, monkeypatch):
    """The driver raises, but the version is there: memory has to follow the disk."""
    await store.index("notes", [doc("a", "first words")])
    genuine = Contents.committed
    monkeypatch.setattr(Contents, "committed", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(StateError, match="writing collection 'notes' failed"):
        await store.index("notes", [doc("b", "second words", fresh=1)])
    monkeypatch.setattr(Contents, "committed", genuine)
    await assert_statistics_exact(store, "notes")
    written = await store.index("notes", [doc("c", "third words")])
    assert written.data_version == store.collections()[0].data_version
    await assert_statistics_exact(store, "notes")


async def test_writes_and_a_drop_at_once(store):
    """Each write lands in the old collection, which goes, or in a new one: never in neither."""
    await store.index("notes", [doc("a")])
    results = await asyncio.gather(
        *(store.index("notes", [doc(f"d{n}")]) for n in range(5)),
        store.drop("notes"),
        *(store.index("notes", [doc(f"e{n}")]) for n in range(5)),
        return_exceptions=True,
    )
    assert [r for r in results if isinstance(r, BaseException)] == []
    remaining = {row["id"] for row in await everything(store, "notes")}
    assert {f"e{n}" for n in range(5)} <= remaining
    assert "a" not in remaining
    await assert_statistics_exact(store, "notes")


async def test_closing_waits_for_writes(tmp_path):
    store = await opened(tmp_path / "data")
    await store.index("notes", [doc("a")])
    writing = asyncio.create_task(store.index("notes", [doc(f"d{n}") for n in range(500)]))
    await asyncio.sleep(0.005)
    await store.close()
    outcome = (await asyncio.gather(writing, return_exceptions=True))[0]
    again = await opened(tmp_path / "data")
    rows = again.collections()[0].rows
    assert rows == (1 if isinstance(outcome, UnavailableError) else 501)
    await again.close()
