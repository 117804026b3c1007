"""Collections kept in memory: the same candidates as LanceDB's, byte for byte, whatever was written
before, and no more memory than there may be.
"""

import asyncio
import random

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import load_embedder
from mesh.adapters.lance import LanceDocuments, hot, hot_search
from mesh.errors import MeshError
from mesh.wire import codec
from mesh.wire.messages import Document

EMBEDDER = load_embedder("hash")
WORDS = ["red", "green", "apple", "pear", "lime", "sour", "…", "Äpfel"]


async def opened(folder, hot_mb=64):
    return await LanceDocuments.open(
        folder, embedder=EMBEDDER, shard="s1", clock=SystemClock(), hot_mb=hot_mb
    )


def doc(name, content, /, **metadata):
    return Document(id=name, content=content, metadata=metadata)


async def find(store, query, *, mode="hybrid", depth=30, threshold=0.0, **filters):
    return await store.search(
        query, collections=None, mode=mode, depth=depth, threshold=threshold, filters=filters
    )


def is_hot(store, collection="notes"):
    return store._collections[collection]._contents.hot is not None


def wire(found):
    """As it goes out, but for the versions: two stores do not come about in the same millisecond."""
    return [codec.encode(msgspec.structs.replace(shard, data_version=0)) for shard in found]


# -- equal to LanceDB ------------------------------------------------------------------------------

names = st.sampled_from([f"d{number}" for number in range(12)])
contents = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
documents = st.builds(
    lambda name, content, n: doc(name, content, **({} if n is None else {"n": n})),
    names,
    contents,
    st.none() | st.integers(0, 3),
)
queries = st.lists(st.sampled_from([*WORDS, "unknown"]), min_size=1, max_size=4).map(" ".join)


class Twins(RuleBasedStateMachine):
    """One store that keeps everything in memory and one that keeps nothing."""

    folder = None
    """Set by the test."""
    runner = None

    @initialize()
    def open(self):
        Twins.count = getattr(Twins, "count", 0) + 1
        folder = Twins.folder / str(Twins.count)
        self.hot = self.run(opened(folder / "hot"))
        self.disk = self.run(opened(folder / "disk", hot_mb=0))
        self.folder_of_hot = folder / "hot"

    def run(self, work):
        return Twins.runner.run(work)

    def both(self, work):
        outcomes = []
        for store in (self.hot, self.disk):
            try:
                outcomes.append(self.run(work(store)).changed)
            except MeshError as error:
                outcomes.append((type(error), error.fields))
        assert outcomes[0] == outcomes[1]

    @rule(batch=st.lists(documents, min_size=1, max_size=8))
    def upsert(self, batch):
        self.both(lambda store: store.index("notes", batch))

    @rule(name=names, content=contents)
    def update(self, name, content):
        self.both(lambda store: store.update("notes", name, {"content": content}))

    @rule(chosen=st.lists(names, min_size=1, max_size=4))
    def delete(self, chosen):
        self.both(lambda store: store.delete("notes", ids=chosen))

    @rule(n=st.integers(0, 3))
    def delete_by_filter(self, n):
        self.both(lambda store: store.delete("notes", filters={"n": n}))

    @rule()
    def drop(self):
        async def drop(store):
            await store.drop("notes")
            return await store.index("notes", [doc("d0", "red apple")])

        self.both(drop)

    @rule()
    def tidy(self):
        for store in (self.hot, self.disk):
            for collection in store._collections.values():
                if copy := collection._contents.hot:
                    collection._contents.hot = copy.compacted()
                self.run(collection._table.optimize())

    @rule()
    def restart(self):
        self.run(self.hot.close())
        self.hot = self.run(opened(self.folder_of_hot))

    @rule(
        query=queries,
        mode=st.sampled_from(["hybrid", "vector", "text"]),
        depth=st.integers(1, 14),
        threshold=st.sampled_from([None, 0.0, 0.3, 0.9]),
        n=st.none() | st.integers(0, 3),
    )
    def search(self, query, mode, depth, threshold, n):
        filters = {} if n is None else {"n": n}
        found = []
        for store in (self.hot, self.disk):
            try:
                hits = self.run(
                    find(store, query, mode=mode, depth=depth, threshold=threshold, **filters)
                )
                found.append(wire(hits))
            except MeshError as error:
                found.append((type(error), error.fields))
        assert found[0] == found[1]

    @invariant()
    def one_is_hot_and_one_is_not(self):
        for store, expected in ((self.hot, True), (self.disk, False)):
            if "notes" in store._collections:
                assert is_hot(store) is expected

    def teardown(self):
        self.run(self.hot.close())
        self.run(self.disk.close())


def test_both_find_the_same_whatever_is_written(tmp_path):
    Twins.folder = tmp_path
    with asyncio.Runner() as Twins.runner:
        run_state_machine_as_test(
            Twins,
            settings=settings(
                max_examples=8,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
