"""`meshctl nodes register`, `update`, `remove`, `rotate-key`: what an operator decides."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cli import connection
from cli.meshctl import new_keys, session
from cli.meshctl.arguments import given, json_object, lifetime
from cli.output import NOTHING
from mesh.types import Status

if TYPE_CHECKING:
    from mesh import MeshClient, messages

NODE_ARGUMENT = typer.Argument(help="Slug or id.", metavar="NODE")


def register(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="What people call it; its slug follows from it.")],
    url: Annotated[str | None, typer.Argument(help="http(s) address, where it has one.")] = None,
    type_: Annotated[str, typer.Option("--type", help="Kind of node.")] = "child",
    capability: Annotated[
        list[str] | None,
        typer.Option(help="What it can do; repeat it. Default: search, actions."),
    ] = None,
    weight: Annotated[float, typer.Option(help="Share of the load.")] = 1.0,
    description: Annotated[str, typer.Option(help="What it holds.")] = "",
    domain: Annotated[list[str] | None, typer.Option(help="Subject area; repeat it.")] = None,
    keyword: Annotated[list[str] | None, typer.Option(help="Keyword; repeat it.")] = None,
    metadata: Annotated[str, typer.Option(help="A JSON object of your own.")] = "{}",
    out: new_keys.Out = None,
) -> None:
    """Add a node and show its API key, once."""
    run = session.of(context)
    new_keys.check(out)
    new_keys.check_new(out)
    details = json_object(metadata, "--metadata")
    from mesh import messages

    request = messages.NodeRegister(
        name=name,
        url=url,
        type=type_,
        capabilities=capability or ["search", "actions"],
        weight=weight,
        description=description,
        domains=domain or [],
        keywords=keyword or [],
        metadata=details,
    )
    answer = run.ask(lambda client: client.register_node(request))
    node = answer.node
    fields = [
        ("ID", node.id),
        ("name", node.name),
        ("slug", node.slug),
        ("URL", node.url or NOTHING),
        ("type", node.type),
        ("capabilities", ", ".join(node.capabilities)),
        ("weight", f"{node.weight:g}"),
    ]
    new_keys.show(run.out, answer, fields, user=node.slug, file=out)
    if node.url is None and not run.out.as_json:
        key = f"--creds {out}" if out else "--creds FILE, with that key alone in it"
        run.out.note(f"start it: mesh-agent run --nats URL --name {node.slug} {key}")


def rotate_key(
    context: typer.Context,
    *,
    node: Annotated[str, NODE_ARGUMENT],
    overlap: new_keys.Overlap = "0",
    out: new_keys.Out = None,
) -> None:
    """Give a node a new API key and show it, once; the old one is refused from then on."""
    run = session.of(context)
    overlap_s = lifetime(overlap, "--overlap")
    new_keys.check(out)

    async def rotated(client: MeshClient) -> messages.NodeKey:
        slug = await connection.slug_of(client, node) if out else node
        new_keys.check_owner(out, slug)
        return await connection.ask_master(client.access.rotate_key(slug, overlap_s=overlap_s))

    answer = run.run(rotated)
    fields = [("node", answer.node.slug), *new_keys.until(answer.previous_until)]
    new_keys.show(run.out, answer, fields, user=answer.node.slug, file=out)


def update(
    context: typer.Context,
    *,
    node: Annotated[str, NODE_ARGUMENT],
    name: Annotated[str | None, typer.Option(help="New display name.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="New http(s) address. The mesh's own --url stands before the command."),
    ] = None,
    status: Annotated[Status | None, typer.Option(help="New status.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="New type.")] = None,
    weight: Annotated[float | None, typer.Option(help="New share of the load.")] = None,
    capability: Annotated[
        list[str] | None, typer.Option(help="All it can do from now on; repeat it.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="New description.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="All its areas; repeat it.")] = None,
    keyword: Annotated[list[str] | None, typer.Option(help="All its keywords; repeat it.")] = None,
    metadata: Annotated[str | None, typer.Option(help="A new JSON object.")] = None,
) -> None:
    """Change what an operator decides about a node."""
    run = session.of(context)
    change = given(
        name=name,
        url=url,
        status=status,
        type=type_,
        weight=weight,
        capabilities=capability,
        description=description,
        domains=domain,
        keywords=keyword,
        metadata=None if metadata is None else json_object(metadata, "--metadata"),
    )
    if not change:
        raise typer.BadParameter("nothing to change: give at least one option")
    from mesh import messages

    request = messages.NodeUpdate(**change)
    record = run.ask(lambda client: client.update_node(node, request))
    if run.out.as_json:
        run.out.json({"node": record})
    else:
        run.out.line(f"{record.slug} is updated: {', '.join(change)}")


def remove(
    context: typer.Context,
    *,
    node: Annotated[str, NODE_ARGUMENT],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a node out of the registry; its API key is worth nothing from then on."""
    run = session.of(context)
    confirm(f"Remove node {node!r} from the mesh?", yes=yes)
    record = run.ask(lambda client: client.remove_node(node))
    if run.out.as_json:
        run.out.json({"node": record})
    else:
        run.out.line(f"{record.slug} is removed")


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal; where nobody can answer, only `--yes` will do.

    Raises:
        typer.BadParameter, typer.Exit
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody to ask: confirm with --yes", param_hint="--yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
