"""LanceDB by itself, in a process of its own: what one hybrid query over one table takes.

`python lance_baseline.py FOLDER DOCUMENTS QUERIES` makes a table with a native full-text index
and reads lines: `one N` answers the milliseconds of N queries one after the other, `many N W` the
queries per second of N with W at once. The queries' vectors are made beforehand.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("LANCE_LOG", "error")
os.environ.setdefault("LANCEDB_LOG", "error")  # a warning for every query is no work of its own

import lancedb
import pyarrow as pa
import uvloop
from lancedb.index import FTS
from lancedb.rerankers import RRFReranker

from mesh.adapters.embedders.wordllama import WordLlamaEmbedder

TOP = 10


async def serve(folder: str, documents: list[dict], queries: list[str]) -> None:
    embedder = WordLlamaEmbedder()
    vectors = embedder.embed_documents([document["content"] for document in documents])
    rows = pa.table(
        {
            "id": [document["id"] for document in documents],
            "content": [document["content"] for document in documents],
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), vectors.shape[1]
            ),
        }
    )
    connection = await lancedb.connect_async(folder)
    table = await connection.create_table("all", rows)
    await table.create_index("content", config=FTS())
    asked = list(zip(queries, embedder.embed_documents(queries), strict=True))
    reranker = RRFReranker()

    async def ask(number: int) -> None:
        text, vector = asked[number % len(asked)]
        query = table.query().nearest_to(vector).distance_type("cosine")
        hybrid = query.nearest_to_text(text, columns="content").rerank(reranker)
        found = await hybrid.select(["id", "content"]).limit(TOP).to_arrow()
        assert found.num_rows, text

    async def one(count: int) -> list[float]:
        took = []
        for number in range(count):
            began = time.perf_counter()
            await ask(number)
            took.append((time.perf_counter() - began) * 1000)
        return took

    async def many(count: int, width: int) -> float:
        turns = iter(range(count))

        async def work() -> None:
            for number in turns:
                await ask(number)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(width)))
        return count / (time.perf_counter() - began)

    say(True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *numbers = line.split()
        say(await {"one": one, "many": many}[command](*map(int, numbers)))


def say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    place, *files = sys.argv[1:]
    read = [json.loads(Path(file).read_text()) for file in files]
    uvloop.run(serve(place, *read))
