"""Options of every command that searches."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Collections = Annotated[list[str] | None, typer.Option(help="Only in this collection; repeat it.")]
Mode = Annotated[
    Literal["hybrid", "vector", "text"], typer.Option(help="By meaning, by words, or both.")
]
Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Least cosine of a hit by meaning.")
]
Nodes = Annotated[list[str] | None, typer.Option(help="Only on this node; repeat it.")]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="COLUMN=VALUE",
        help='Also column=a,b,c and column>=value (< <= >); "1" in quotes is text. Repeat it.',
    ),
]
Strategy = Annotated[
    Literal["score", "round_robin"] | None, typer.Option(help="How nodes' results are merged.")
]
Require = Annotated[
    Literal["any", "quorum", "all"], typer.Option(help="How many shards must have answered.")
]
TimeoutMs = Annotated[
    int | None, typer.Option(min=1, max=60_000, help="How long to wait for slow nodes.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Ask the nodes, whatever is kept.")]
