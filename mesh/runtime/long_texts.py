"""Texts of the final hits that did not come along with the candidates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from mesh.errors import MeshError, TooLargeError
from mesh.runtime.caller import Caller
from mesh.runtime.results import TextKey
from mesh.runtime.shard_reports import Outcome
from mesh.wire.messages import Candidates, FetchRequest, FetchResult, SearchRequest


async def long_texts(
    caller: Caller,
    request: SearchRequest,
    missing: Mapping[tuple[str, str], list[str]],
    outcomes: Sequence[Outcome],
    within_s: float,
) -> dict[TextKey, str]:
    """What comes within so many seconds.

    Args:
        caller: Asks.
        request: The search.
        missing: Ids by (node, collection).
        outcomes: What was asked for, and what came of it.
        within_s: Seconds.
    """
    holders = {
        (found.node, place.collection): part.fetched
        for part, found in outcomes
        if isinstance(found, Candidates)
        for place in part.places
    }
    texts: dict[TextKey, str] = {}

    async def fetch(shard: tuple[str, str], ids: list[str], suffix: str = "") -> None:
        """From the node that found them; another replica has them as well."""
        node, collection = shard
        asked = FetchRequest(
            id=f"{request.id}.{node}.{collection}{suffix}",  # to be stopped apart from its siblings
            trace=request.trace,
            on_behalf=request.on_behalf,
            collection=collection,
            ids=ids,
        )
        try:
            _, answer = await caller.any(
                holders[shard], asked, FetchResult, within_s, prefer=node, trace=request.id
            )
        except TooLargeError:  # each of them fits into a message, but not all together
            half = len(ids) // 2
            if half:
                await asyncio.gather(
                    fetch(shard, ids[:half], f"{suffix}.0"), fetch(shard, ids[half:], f"{suffix}.1")
                )
        except MeshError:
            pass
        else:
            for document in answer.documents:
                texts[node, collection, document.id] = document.content

    with contextlib.suppress(TimeoutError):  # what has come by then is there
        async with asyncio.timeout(within_s):
            await asyncio.gather(
                *(
                    fetch(shard, ids)
                    for shard, ids in missing.items()
                    if shard in holders  # who answers what was not asked is not asked again
                )
            )
    return texts
