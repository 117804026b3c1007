"""`meshctl sagas`: several actions, or none of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection
from cli.meshctl import arguments, saga_table, session
from cli.meshctl.failures import ExitCode
from cli.meshctl.session import Session
from cli.output import Column, now_ms
from mesh.types import SagaState

if TYPE_CHECKING:
    from mesh import MeshClient, messages

app = typer.Typer()

_SagaId = Annotated[str, typer.Argument(help="Its id.", metavar="ID")]


@app.command("run")
def run_saga(
    context: typer.Context,
    *,
    file: Annotated[
        str, typer.Argument(help="JSON, TOML or YAML; - for JSON from standard input.")
    ],
    key: Annotated[
        str | None, typer.Option(help="Its id: the same id runs once.", metavar="ID")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Until it has ended.")] = True,
) -> None:
    """Run a saga: its steps in order, and back if one fails."""
    run = session.of(context)
    definition = _read(file)
    if key is not None:
        definition["id"] = key
    definition.setdefault("id", _new_id())  # whatever happens, it can be asked about
    if not wait:
        saga = run.ask(lambda client: client.sagas.start(definition))
        if run.out.as_json:
            run.out.json(saga)
        else:
            run.out.line(saga.id)
            run.out.hint(f"how far it is: meshctl sagas show {saga.id}")
        return
    try:
        saga = _watched(run, definition)
    except KeyboardInterrupt:
        run.out.note(
            f"the saga goes on: meshctl sagas show {definition['id']}, or abort"
            f" {definition['id']} to undo it"
        )
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if run.out.as_json:
        run.out.json(saga)
    if saga.state is not SagaState.SUCCEEDED:
        raise typer.Exit(ExitCode.FAILED)


def _watched(run: Session, definition: dict[str, Any]) -> messages.Saga:
    """Its steps as they go: in place on a terminal, once at the end in a pipe."""
    if run.out.as_json or not run.out.terminal:
        saga = run.ask(lambda client: client.sagas.run(definition))
        if not run.out.as_json:
            run.out.table(saga_table.STEPS, saga_table.rows(saga))
            for line in saga_table.summary(saga):
                run.out.line(line)
        return saga
    with run.out.live() as show:

        def changed(saga: messages.Saga) -> None:
            show(saga_table.STEPS, saga_table.rows(saga), saga_table.summary(saga))

        return run.ask(lambda client: client.sagas.run(definition, on_change=changed))


@app.command("list")
def list_sagas(
    context: typer.Context,
    *,
    state: Annotated[SagaState | None, typer.Option(help="Only in this state.")] = None,
    name: Annotated[str, typer.Option(help="Only of this name.")] = "",
    caller: Annotated[str, typer.Option(help="Only of this caller.")] = "",
    since: Annotated[
        str | None, typer.Option(help="Not older than 90s, 5m, 1h, 2d, or an ISO date or time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to show.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Pass over the newest this many.")] = 0,
) -> None:
    """Sagas, newest first."""
    run = session.of(context)
    start = 0 if since is None else arguments.since(since, now_ms())
    page = run.ask(
        lambda client: client.sagas.list(
            state=state, name=name, caller=caller, since=start, limit=limit, offset=offset
        )
    )
    if run.out.as_json:
        run.out.json(page)
        return
    if not page.sagas:
        run.out.note("no sagas match")
        return
    run.out.table(
        [
            Column("started"),
            Column("id"),
            Column("name"),
            Column("state", styles=saga_table.STATES),
            Column("steps", align="right"),
            Column("caller"),
            Column("reason"),
        ],
        [
            [
                run.out.when(saga.started_at),
                saga.id,
                saga.name,
                saga.state.value,
                f"{sum(step.state.value == 'succeeded' for step in saga.steps)}/{len(saga.steps)}",
                saga.caller,
                saga.reason,
            ]
            for saga in page.sagas
        ],
    )
    if page.total > offset + len(page.sagas):
        run.out.note(f"{len(page.sagas)} of {page.total}; --offset shows more")


@app.command("show")
def show_saga(context: typer.Context, *, saga: _SagaId) -> None:
    """A saga with its steps."""
    run = session.of(context)
    found = run.ask(lambda client: client.sagas.show(saga))
    if run.out.as_json:
        run.out.json(found)
    else:
        saga_table.show(run.out, found)


@app.command("resume")
def resume_saga(context: typer.Context, *, saga: _SagaId) -> None:
    """Do what was interrupted once more, and go on."""
    run = session.of(context)

    async def work(client: MeshClient) -> messages.Saga:
        return await connection.ask_master(client.sagas.resume(saga))

    _told(run, run.run(work))


@app.command("abort")
def abort_saga(
    context: typer.Context,
    *,
    saga: _SagaId,
    give_up: Annotated[
        str,
        typer.Option(
            help="Of one that is being undone: wait no longer for this step.", metavar="STEP"
        ),
    ] = "",
) -> None:
    """Undo what was done."""
    run = session.of(context)

    async def work(client: MeshClient) -> messages.Saga:
        return await connection.ask_master(client.sagas.abort(saga, give_up=give_up))

    _told(run, run.run(work))


def _told(run: Session, saga: messages.Saga) -> None:
    if run.out.as_json:
        run.out.json(saga)
        return
    for line in saga_table.summary(saga):
        run.out.line(line)
    run.out.hint(f"how far it is: meshctl sagas show {saga.id}")


def _new_id() -> str:
    from uuid_utils import uuid7

    return str(uuid7())


def _read(file: str) -> dict[str, Any]:
    """Raises: typer.BadParameter."""
    import msgspec

    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        if file.endswith((".yaml", ".yml")):
            value = msgspec.yaml.decode(raw)
        elif file.endswith(".toml"):
            value = msgspec.toml.decode(raw)
        else:
            value = msgspec.json.decode(raw)
    except OSError as error:
        raise _unfit(f"cannot read {file!r}: {error.strerror}") from error
    except ImportError as error:
        raise _unfit(f"{file!r}: {error}; write it as JSON or TOML") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _unfit(f"{file!r} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise _unfit(f"{file!r} must hold an object with `steps`")
    return value


def _unfit(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="FILE")
