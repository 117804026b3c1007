"""`meshctl actions queue`, `dead`, `retry` and `cancel`: what waits, what could not be done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import session
from cli.meshctl.action_outcome import error_text, goes_on
from cli.meshctl.session import Session
from cli.output import NOTHING, STATE_STYLES, Column, iso, printable
from mesh.errors import ConflictError, MeshError, NotFoundError
from mesh.types import ActionState

if TYPE_CHECKING:
    from mesh import MeshClient, messages

_OF_NODE = Annotated[str, typer.Option(help="Only of this node.")]
_LIMIT = Annotated[int, typer.Option(min=1, max=1000, help="Most to show.")]
_OFFSET = Annotated[int, typer.Option(min=0, help="Pass over the first this many.")]
_ID = Annotated[str, typer.Argument(help="Of an action or a fan-out.", metavar="ID")]
_PART = Annotated[
    str | None, typer.Option(help="Only there, of an action that went to several nodes.")
]


def queue(
    context: typer.Context, *, node: _OF_NODE = "", limit: _LIMIT = 50, offset: _OFFSET = 0
) -> None:
    """What is kept for nodes, in the order in which each will do it."""
    run = session.of(context)

    async def work(client: MeshClient) -> messages.QueueList:
        slug = await _slug(client, node)
        return await connection.ask_master(client.queue(slug, limit, offset))

    listed = run.run(work)
    if run.out.as_json:
        run.out.json(listed)
        return
    if not listed.actions:
        run.out.note("nothing waits")
        return
    run.out.table(
        [
            Column("queued"),
            Column("id"),
            Column("node"),
            Column("action"),
            Column("caller"),
            Column("expires"),
            Column("attempts", align="right"),
            Column("last error"),
        ],
        [
            [
                run.out.when(entry.at),
                entry.id,
                entry.node,
                entry.action,
                entry.caller,
                iso(entry.expires) if entry.expires else NOTHING,
                str(entry.attempts),
                error_text(entry.error),
            ]
            for entry in listed.actions
        ],
    )
    counts = ", ".join(f"{slug} {count}" for slug, count in sorted(listed.waiting.items()))
    run.out.line(f"waiting: {counts}")
    _more(run, listed, offset)


def dead(
    context: typer.Context, *, node: _OF_NODE = "", limit: _LIMIT = 50, offset: _OFFSET = 0
) -> None:
    """What was queued and could not be done, newest first."""
    run = session.of(context)

    async def work(client: MeshClient) -> messages.QueueList:
        slug = await _slug(client, node)
        return await connection.ask_master(client.dead_letters(slug, limit, offset))

    listed = run.run(work)
    if run.out.as_json:
        run.out.json(listed)
        return
    if not listed.actions:
        run.out.note("no dead letters")
        return
    run.out.table(
        [
            Column("given up"),
            Column("id"),
            Column("node"),
            Column("action"),
            Column("caller"),
            Column("attempts", align="right"),
            Column("error"),
        ],
        [
            [
                run.out.when(entry.at),
                entry.id,
                entry.node,
                entry.action,
                entry.caller,
                str(entry.attempts),
                error_text(entry.error),
            ]
            for entry in listed.actions
        ],
    )
    run.out.hint("once more: meshctl actions retry ID")
    _more(run, listed, offset)


def _more(run: Session, listed: messages.QueueList, offset: int) -> None:
    if listed.total > offset + len(listed.actions):
        run.out.note(f"{len(listed.actions)} of {listed.total}; --offset shows more")


async def _slug(client: MeshClient, node: str) -> str:
    """Raises: NotFoundError: A name that was mistyped must not look like an empty queue."""
    if not node or node in client.routes.nodes:
        return node
    return (await connection.ask_master(client.nodes(node=node))).nodes[0].slug


# -- cancel and retry ------------------------------------------------------------------------------


def cancel(context: typer.Context, *, id_: _ID, node: _PART = None) -> None:
    """Stop an action: one that waits is not begun any more, one that runs is stopped."""
    run = session.of(context)

    async def one(client: MeshClient, record: messages.HistoryRecord) -> _Done:
        now = await client.cancel_action(record.id, node=record.node)
        return _Done(now.node, now.id, now.state)

    done = run.run(
        lambda client: _each(
            client, id_, node, one, wanted=goes_on, otherwise="has ended on all of its nodes"
        )
    )
    _show(run, done, ActionState.CANCELLED)


def retry(context: typer.Context, *, id_: _ID, node: _PART = None) -> None:
    """Do an action that did not succeed once more, through the queue, under the same id."""
    run = session.of(context)

    async def one(client: MeshClient, record: messages.HistoryRecord) -> _Done:
        kept = await client.retry_action(record.id, node=record.node)
        return _Done(kept.node, kept.id, kept.state)

    done = run.run(
        lambda client: _each(
            client,
            id_,
            node,
            one,
            wanted=_ended_badly,
            otherwise="runs or has succeeded on all of its nodes",
        )
    )
    _show(run, done, ActionState.QUEUED)
    if not run.out.as_json:
        run.out.note(f"how it goes: meshctl actions show {id_}")


@dataclass(frozen=True)
class _Done:
    """What came of it on one node."""

    node: str
    id: str
    state: ActionState
    error: MeshError | None = None


def _ended_badly(record: messages.HistoryRecord) -> bool:
    return not goes_on(record) and record.state is not ActionState.SUCCEEDED


async def _each(
    client: MeshClient,
    id_: str,
    node: str | None,
    do: Callable[[MeshClient, messages.HistoryRecord], Awaitable[_Done]],
    *,
    wanted: Callable[[messages.HistoryRecord], bool],
    otherwise: str,
) -> list[_Done]:
    """On the parts that it makes sense for. One alone is asked for whatever the history says, so
    that its node gives the reason.

    Raises:
        NotFoundError: No such action, or not there.
        ConflictError: It makes sense for none of several.
        MeshError: Of one alone.
    """
    slug = None if node is None else await connection.slug_of(client, node)
    stories = (await connection.ask_master(client.action(id_))).stories
    records = [story.action for story in stories if slug in {None, story.action.node}]
    if not records:
        there = ", ".join(story.action.node for story in stories)
        raise NotFoundError(f"{id_!r} did not go to {node!r}; it went to: {there}")
    if len(records) == 1:
        return [await do(client, records[0])]
    chosen = [record for record in records if wanted(record)]
    if not chosen:
        raise ConflictError(f"{id_!r} {otherwise}: there is nothing to do")
    done = []
    for record in chosen:
        try:
            done.append(await do(client, record))
        except MeshError as error:
            done.append(_Done(record.node, record.id, record.state, error))
    return done


def _show(run: Session, done: list[_Done], hoped: ActionState) -> None:
    if run.out.as_json:
        run.out.json({"actions": [_as_json(each) for each in done]})
    else:
        run.out.table(
            [Column("node"), Column("id"), Column("state", styles=STATE_STYLES), Column("error")],
            [
                [
                    each.node,
                    each.id,
                    each.state.value,
                    "" if each.error is None else printable(str(each.error)),
                ]
                for each in done
            ],
        )
    if any(each.error is not None or each.state is not hoped for each in done):
        raise typer.Exit(1)


def _as_json(each: _Done) -> dict[str, object]:
    return {
        "node": each.node,
        "id": each.id,
        "state": each.state,
        "error": None if each.error is None else str(each.error),
    }
