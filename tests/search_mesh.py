"""Documents split among the nodes of a live mesh, and how long until they can be searched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping

from live_mesh import LiveMesh

INDEXED_WITHIN_S = 600
"""Of a slow machine with nine nodes that all load a model and index at once."""


def add_holder(
    live: LiveMesh, name: str, collection: str, documents: Iterable[Mapping], **environment: str
) -> int:
    """Start a node that indexes `documents` into `collection`; how many there are."""
    file = live.folder / f"{name}.jsonl"
    lines = [json.dumps(document, ensure_ascii=False) for document in documents]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    live.add(name, "--collection", f"{collection}={file}", **environment)
    return len(lines)


async def until_indexed(client, wanted: Mapping[str, int], note=lambda _done: None) -> None:
    """Until each of these nodes holds so many documents and may be asked."""
    async with asyncio.timeout(INDEXED_WITHIN_S):
        while True:
            table = client.routes
            held = {
                slug: sum(info.rows for info in node.collections)
                for slug, node in table.nodes.items()
                if slug in wanted and not table.refusal(slug)
            }
            note(sum(held.values()))
            if held == wanted:
                return
            await asyncio.sleep(0.1)
