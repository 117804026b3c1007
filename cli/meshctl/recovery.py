"""What `meshctl nodes monitor --auto-recover` does for a node that is not well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli import connection
from cli.meshctl.ping import ping_all
from mesh.errors import MeshError
from mesh.types import BreakerState, Health

if TYPE_CHECKING:
    from mesh import MeshClient, messages

WAIT_S = 5.0
"""What a node gets to come back by itself before it is tried again."""

PING_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One attempt to bring a node back."""

    node: str
    recovered: bool
    message: str
    reset: list[str]
    """Verbs whose breakers were reset."""


async def recover(client: MeshClient, node: messages.NodeRecord) -> Recovery:
    """Ping a node again, have the master probe it, so that it is routed to as soon as it is well,
    and close its breakers if it answers.
    """
    (again,) = await ping_all(
        client, [node.slug], {node.slug: node.status.value}, timeout_s=PING_TIMEOUT_S
    )
    step, reset = "probe", []
    try:
        probed = await connection.ask_master(client.probe_node(node.slug))
        if again.ok:
            step = "reset of its breakers"
            reset = await _reset(client, node.slug)
    except MeshError as error:
        message = f"the {step} failed: {error}"
        return Recovery(node=node.slug, recovered=False, message=message, reset=[])
    well = again.ok and probed.health is Health.HEALTHY
    if well:
        message = "healthy again"
    else:
        reason = f": {probed.reason}" if probed.reason else ""
        answered = "answers" if again.ok else "does not answer"
        message = f"{answered}, {probed.health.value}{reason}"
    if reset:
        message += f"; breakers reset: {', '.join(reset)}"
    return Recovery(node=node.slug, recovered=well, message=message, reset=reset)


async def _reset(client: MeshClient, slug: str) -> list[str]:
    """Close what is not closed at every caller; the verbs of it."""
    found = await connection.ask_master(client.breakers(slug))
    shut = [seen.verb for seen in found.breakers if shuts(seen)]
    if shut:
        await connection.ask_master(client.reset_breakers(slug))
    return shut


def shuts(seen: messages.BreakerInfo) -> bool:
    """Whether it keeps calls away, of all callers or of some."""
    return seen.state is not BreakerState.CLOSED or seen.open_at > 0


def states(found: messages.BreakerList) -> Mapping[str, dict[str, BreakerState]]:
    """Node → verb → state, of breakers that are not closed."""
    by_node: dict[str, dict[str, BreakerState]] = {}
    for seen in found.breakers:
        if seen.state is not BreakerState.CLOSED:
            by_node.setdefault(seen.node, {})[seen.verb] = seen.state
    return by_node
