"""What clients send to `/rag`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from agents.gateway.bodies import SearchOptions, Strict


class Rag(Strict, frozen=True, kw_only=True):
    """A question whose best passages are to be put before a language model."""

    query: Annotated[
        str, Meta(min_length=1, max_length=4096, description="Words, 1 to 4096 characters.")
    ]
    budget: Annotated[
        int,
        Meta(
            ge=100,
            le=100_000,
            description="Tokens of the whole prompt: passages, numbers, titles and sources.",
        ),
    ] = 1500
    passages: Annotated[int, Meta(ge=1, le=100, description="How many passages at most.")] = 20
    limit: Annotated[
        int, Meta(ge=1, le=100, description="From how many documents they are taken at most.")
    ] = 20
    options: SearchOptions = SearchOptions()
