"""One action on several nodes: how it goes while it goes, and how it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from cli import connection
from cli.meshctl.action_outcome import compact, error_text
from cli.meshctl.action_watch import Watch
from cli.output import NOTHING, STATE_STYLES, Column, Output, number
from mesh.errors import MeshError
from mesh.types import ActionState

if TYPE_CHECKING:
    from cli.meshctl.action_run import Asked
    from mesh import MeshClient, messages

_PARALLEL = 10
COLUMNS = (
    Column("node"),
    Column("state", styles=STATE_STYLES),
    Column("duration ms", align="right"),
    Column("result or error"),
)


async def run(client: MeshClient, out: Output, asked: Asked) -> bool:
    """Do it, show it; whether it succeeded (or, if nobody waits, is queued) everywhere."""
    if asked.queue and not asked.follow:
        done = await _ask(client, asked)
        _show(out, done)
        if not out.as_json:
            out.note(f"how it goes: meshctl actions show {done.id}")
    elif out.terminal:
        with out.live() as show:
            done = await _watched(client, asked, lambda rows: show(COLUMNS, rows, ()))
            show(COLUMNS, [_row(item) for item in done.results.values()], [_summary(done)])
    elif asked.follow:
        with out.progress() as say:
            done = await _watched(client, asked, lambda rows: say(_line(rows)))
        _show(out, done)
    else:
        done = await _ask(client, asked)
        _show(out, done)
    return done.success


async def _watched(
    client: MeshClient, asked: Asked, show: Callable[[list[list[str]]], None]
) -> messages.FanOutResult:
    """With everything that can be seen of it meanwhile."""
    if asked.queue:
        done = await _ask(client, asked)
        ids = [item.id for item in done.results.values() if item.success]
        watch = Watch(done.id, lambda: show(_rows(watch)), parts=ids)
        async with watch.hearing(client):
            await watch.until_ended(client)
        return _ended(done, watch.records)

    import asyncio

    watch = Watch(asked.id, lambda: show(_rows(watch)), parts=())
    async with asyncio.TaskGroup() as group:
        showing = group.create_task(_look(client, watch))
        try:
            return await _ask(client, asked)
        finally:
            showing.cancel()


async def _look(client: MeshClient, watch: Watch) -> None:
    """The action does not depend on whether it can be watched."""
    with suppress(MeshError):
        async with watch.hearing(client):
            await watch.for_ever(client)


def _rows(watch: Watch) -> list[list[str]]:
    return [
        [record.node, record.state.value, number(record.duration_ms), _said(watch, record)]
        for record in sorted(watch.records.values(), key=lambda record: record.node)
    ]


def _said(watch: Watch, record: messages.HistoryRecord) -> str:
    return watch.note(record.id) or error_text(record.error)


def _line(rows: list[list[str]]) -> str:
    return "; ".join(f"{row[0]} {row[1]} {row[3]}".rstrip() for row in rows)


def _ended(
    done: messages.FanOutResult, records: Mapping[str, messages.HistoryRecord]
) -> messages.FanOutResult:
    """What was queued, with how it ended."""
    import msgspec

    results = {}
    for node, item in done.results.items():
        record = records.get(item.id)
        results[node] = item if record is None else _item(item, record)
    succeeded = sum(item.success for item in results.values())
    return msgspec.structs.replace(
        done,
        results=results,
        success=succeeded == len(results),
        success_count=succeeded,
        failure_count=len(results) - succeeded,
    )


def _item(item: messages.FanOutItem, record: messages.HistoryRecord) -> messages.FanOutItem:
    import msgspec

    return msgspec.structs.replace(
        item,
        success=record.state is ActionState.SUCCEEDED,
        state=record.state,
        result=record.result,
        duration_ms=record.duration_ms,
        error=record.error,
    )


async def _ask(client: MeshClient, asked: Asked) -> messages.FanOutResult:
    nodes = [await connection.slug_of(client, node) for node in asked.nodes]
    return await client.fan_out(
        asked.action,
        asked.params,
        nodes=nodes or None,
        all=asked.everywhere,
        collection=asked.collection,
        id=asked.id,
        timeout_s=asked.timeout_s,
        parallel=asked.parallel or _PARALLEL,
        sequential=asked.sequential,
        on_failure="stop" if asked.on_failure == "stop" else "continue",
        mode="queue" if asked.queue else "sync",
        expires_s=asked.expires_s,
    )


def _show(out: Output, done: messages.FanOutResult) -> None:
    if out.as_json:
        out.json(done)
        return
    out.table(COLUMNS, [_row(item) for item in done.results.values()])
    out.line(_summary(done))


def _summary(done: messages.FanOutResult) -> str:
    queued = sum(item.state is ActionState.QUEUED for item in done.results.values())
    words = [
        f"{queued} queued" if queued else "",
        f"{done.success_count - queued} succeeded" if done.success_count - queued else "",
        f"{done.failure_count} failed" if done.failure_count else "",
    ]
    return f"{', '.join(filter(None, words))}; id {done.id}"


def _row(item: messages.FanOutItem) -> list[str]:
    state = item.error.kind if item.error else NOTHING
    said = error_text(item.error)
    if item.error is None and item.result is not None:
        said = compact(item.result)
    return [item.node, item.state.value if item.state else state, number(item.duration_ms), said]
