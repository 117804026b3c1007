"""`meshctl actions run`: on one node or several, now or as soon as they are there."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection
from cli.meshctl import action_fan_out, action_outcome, arguments, session
from cli.meshctl.action_watch import Watch
from cli.meshctl.session import Session
from cli.output import Output, iso

if TYPE_CHECKING:
    from mesh import MeshClient, messages


class OnFailure(enum.StrEnum):
    """What a fan-out does after a node failed."""

    STOP = "stop"
    CONTINUE = "continue"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was typed, made sense of."""

    action: str
    params: dict[str, Any]
    id: str
    nodes: list[str]
    everywhere: bool
    collection: str | None
    timeout_s: float | None
    queue: bool
    expires_s: float | None
    parallel: int | None
    sequential: bool
    on_failure: str
    follow: bool

    @property
    def several(self) -> bool:
        """A fan-out, by how it was asked for."""
        return len(self.nodes) > 1 or self.everywhere or self.collection is not None


def run_action(
    context: typer.Context,
    *,
    action: Annotated[str, typer.Argument(help="Its name.", metavar="ACTION")],
    node: Annotated[
        list[str] | None,
        typer.Option(
            help="Where; repeat it for several; may be left out if only one node offers it."
        ),
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all", help="On every node that offers it.")
    ] = False,
    collection: Annotated[
        str | None, typer.Option(help="On the holders of this collection; of replicas, one.")
    ] = None,
    params: Annotated[
        str, typer.Option(help="JSON object, @FILE, or @- for standard input.")
    ] = "{}",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key runs once.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, max=86_400, help="Seconds to wait.")
    ] = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Keep it until its node is there and has run it.")
    ] = False,
    expires: Annotated[
        str | None, typer.Option(help="With --queue: not begun later than 90s, 12h, 2d from now.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Several nodes: so many at a time.  [10]")
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Several nodes: one after another.")
    ] = False,
    on_failure: Annotated[
        OnFailure, typer.Option(help="Several nodes: whether others are still begun.")
    ] = OnFailure.CONTINUE,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show how far it is; wait for what is queued.")
    ] = False,
) -> None:
    """Run an action and show how it ended."""
    run = session.of(context)
    asked = Asked(
        action=action,
        params=arguments.parameters(params),
        id=key or _new_id(),
        nodes=arguments.words(node),
        everywhere=everywhere,
        collection=collection,
        timeout_s=timeout,
        queue=queue,
        expires_s=None if expires is None else arguments.lifetime(expires, "--expires"),
        parallel=parallel,
        sequential=sequential,
        on_failure=on_failure.value,
        follow=follow,
    )
    _check(asked)
    sent = False

    async def work(client: MeshClient) -> bool:
        nonlocal sent
        sent = True
        if asked.several:
            return await action_fan_out.run(client, run.out, asked)
        if asked.queue:
            return await _queue(client, run, asked)
        return await _run(client, run, asked)

    try:
        succeeded = run.run(work)
    except KeyboardInterrupt:
        if sent:
            run.out.note(
                f"\nnobody waits for it any more, but what was begun goes on: meshctl actions show"
                f" {asked.id} tells how, meshctl actions cancel {asked.id} stops it"
            )
        raise
    if not succeeded:
        raise typer.Exit(1)


def _new_id() -> str:
    """Made here, so that who loses the answer can still look."""
    from uuid_utils import uuid7

    return str(uuid7())


def _check(asked: Asked) -> None:
    """Raises: typer.BadParameter."""
    kinds = [
        name
        for name, given in (
            ("--node", bool(asked.nodes)),
            ("--all", asked.everywhere),
            ("--collection", asked.collection is not None),
        )
        if given
    ]
    if len(kinds) > 1:
        raise typer.BadParameter("give only one of them", param_hint=" / ".join(kinds))
    if asked.expires_s is not None and not asked.queue:
        raise typer.BadParameter("only what is queued expires: add --queue", param_hint="--expires")
    if asked.expires_s == 0:
        raise typer.BadParameter("must be more than nothing", param_hint="--expires")
    if asked.timeout_s is not None and asked.queue:
        raise typer.BadParameter(
            "nobody waits for the queue; --expires says how long it keeps the action",
            param_hint="--timeout",
        )
    of_several = {
        "--parallel": asked.parallel is not None,
        "--sequential": asked.sequential,
        "--on-failure": asked.on_failure == OnFailure.STOP,
    }
    for name in (name for name, given in of_several.items() if given):
        if not asked.several:
            words = "is for several nodes: repeat --node, or give --all or --collection"
            raise typer.BadParameter(words, param_hint=name)
        if asked.queue:
            raise typer.BadParameter("the queue waits for no outcome", param_hint=name)
    if asked.sequential and asked.parallel is not None:
        raise typer.BadParameter("not together with --sequential", param_hint="--parallel")


async def _target(client: MeshClient, asked: Asked) -> str | None:
    return await connection.slug_of(client, asked.nodes[0]) if asked.nodes else None


async def _run(client: MeshClient, run: Session, asked: Asked) -> bool:
    """On one node, now."""
    target = await _target(client, asked)

    async def work() -> messages.ActionResult:
        return await client.run_action(
            asked.action, asked.params, node=target, id=asked.id, timeout_s=asked.timeout_s
        )

    if not asked.follow:
        answer = await work()
    else:
        with run.out.progress() as show:
            watch = Watch(asked.id, lambda: show(watch.note(asked.id)))
            async with watch.hearing(client):
                answer = await work()
    succeeded = action_outcome.show_result(run.out, answer)
    run.out.hint(f"why this node: meshctl explain {answer.id}")
    return succeeded


async def _queue(client: MeshClient, run: Session, asked: Asked) -> bool:
    """On one node, as soon as it is there."""
    kept = await client.queue_action(
        asked.action,
        asked.params,
        node=await _target(client, asked),
        id=asked.id,
        expires_s=asked.expires_s,
    )
    if not asked.follow:
        if run.out.as_json:
            run.out.json(kept)
        else:
            _show_queued(run.out, kept)
        return True
    with run.out.progress() as show:

        def changed() -> None:
            words = [kept.node, watch.state(kept.id), watch.note(kept.id)]
            show(" ".join(filter(None, words)))

        watch = Watch(kept.id, changed)
        async with watch.hearing(client):
            await watch.until_ended(client)
    return action_outcome.show_record(run.out, watch.records[kept.id])


def _show_queued(out: Output, kept: messages.Queued) -> None:
    out.fields(
        [
            ("state", kept.state.value),
            ("id", kept.id),
            ("node", kept.node),
            ("expires", iso(kept.expires) if kept.expires else "never"),
        ]
    )
    out.note(f"how it goes: meshctl actions show {kept.id}")
