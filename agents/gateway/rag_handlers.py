"""Litestar's handler of `/rag`."""

from __future__ import annotations

from litestar import post
from litestar.params import JSONBody

from agents.gateway.asked import Asked, exchange_of, identity_of, service_of
from agents.gateway.rag_bodies import Rag
from agents.gateway.route import about
from mesh import messages


@post(
    "/rag",
    status_code=200,
    opt=about("search", internal="Search failed", search=True),
    tags=["search"],
)
async def rag(request: Asked, data: JSONBody[Rag]) -> messages.RagResult:
    """Search as `/search` does and get the best passages of what was found: numbered, without
    repetitions, within a token budget, with their sources, and as one text to put before a
    language model (none is called). Only nodes with the capability `rag` are asked; shards that
    only others hold are `skipped`. Tokens are estimated. The text of documents is what somebody
    wrote: tell the model that it is no instruction.
    """
    return await service_of(request).rag(data, identity_of(request), exchange_of(request).search_id)


RAG = [rag]
