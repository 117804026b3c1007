"""What clients send and get about actions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agents.gateway.bodies import Strict, check_depth
from mesh import messages
from mesh.types import ActionState

_KEY = r"^(?!(queue|dead-letters|catalogue)$)[!-.0-~]{1,200}(?!\n)$"
"""Those three stand where an id stands in a path."""
_LONGEST_S = 3650 * 86_400


class Action(Strict, frozen=True, kw_only=True):
    """An action for one node (`node`, or none where exactly one qualifies) or for several
    (`nodes`, `all` or `collection`). Not more than one of the four.
    """

    action: messages.Token
    params: Annotated[
        dict[str, Any],
        Meta(
            description="Checked against the action's own type before anything is sent; "
            "`GET /actions/catalogue` has the types."
        ),
    ] = msgspec.field(default_factory=dict)
    node: Annotated[messages.Token | None, Meta(description="Slug of the node to run it.")] = None
    nodes: Annotated[
        Annotated[list[messages.Token], Meta(min_length=1, max_length=1024)] | None,
        Meta(description="Slugs of several."),
    ] = None
    all: Annotated[bool, Meta(description="Every node that offers the action.")] = False
    collection: Annotated[
        messages.CollectionName | None,
        Meta(description="Every holder of this collection; of replicas of a shard, one."),
    ] = None
    mode: Annotated[
        Literal["sync", "queue"],
        Meta(
            description="`sync`: the answer waits for the outcome. `queue`: it is a 202, and the "
            "action is kept until its node is there and has run it."
        ),
    ] = "sync"
    idempotency_key: Annotated[
        Annotated[str, Meta(pattern=_KEY)] | None,
        Meta(
            description="The action's id: the same key runs once, however often it is sent. "
            "1 to 200 visible ASCII characters, no `/`; not `queue`, `dead-letters` or `catalogue`."
        ),
    ] = None
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0, le=86_400)] | None,
        Meta(description="How long the answer waits; the action itself goes on. Not with `queue`."),
    ] = None
    expires_s: Annotated[
        Annotated[float, Meta(gt=0, le=_LONGEST_S)] | None,
        Meta(
            description="With `queue`: after so long it is no longer begun. Left out: "
            "`actions.queue_days`."
        ),
    ] = None
    parallel: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="Several nodes: how many at a time. Left out: 10."),
    ] = None
    sequential: Annotated[
        bool, Meta(description="Several nodes: one after another, in the order of `nodes`.")
    ] = False
    on_failure: Annotated[
        Literal["continue", "stop"],
        Meta(
            description="Several nodes: after a failure go on, or begin no further node. What was "
            "not begun has an error of the kind `skipped`."
        ),
    ] = "continue"

    def __post_init__(self) -> None:
        check_depth("params", self.params)

    @property
    def targets(self) -> list[str]:
        """Which of the four were given."""
        given = {
            "node": self.node is not None,
            "nodes": self.nodes is not None,
            "all": self.all,
            "collection": self.collection is not None,
        }
        return [name for name, there in given.items() if there]

    def misfits(self) -> dict[str, list[str]]:
        """What does not go together, by field."""
        targets = self.targets
        wrong: dict[str, list[str]] = {}
        if len(targets) > 1:
            wrong |= {
                name: [f"not more than one of them: {', '.join(targets)}"] for name in targets
            }
        of_several = {
            "parallel": self.parallel is not None,
            "sequential": self.sequential,
            "on_failure": self.on_failure == "stop",
        }
        given = [name for name, there in of_several.items() if there]
        if targets in ([], ["node"]):
            wrong |= {name: ["is for several nodes: nodes, all or collection"] for name in given}
        elif self.mode == "queue":
            wrong |= {name: ["the queue waits for no outcome: leave it out"] for name in given}
        elif self.sequential and self.parallel is not None:
            wrong["parallel"] = ["not together with sequential"]
        if self.mode == "queue" and self.timeout_s is not None:
            wrong["timeout_s"] = ["nobody waits for the queue; expires_s says how long it is kept"]
        if self.mode == "sync" and self.expires_s is not None:
            wrong["expires_s"] = ["only what is in the queue expires: mode queue"]
        return wrong


class ActionDone(msgspec.Struct, frozen=True, kw_only=True):
    """How an action on one node ended well."""

    success: bool
    id: str
    node: str
    action: str
    state: ActionState
    result: Any
    duration_ms: float


class ActionsDone(msgspec.Struct, frozen=True, kw_only=True):
    """How an action on several nodes went; `results` by slug. `success`: everywhere."""

    success: bool
    id: str
    action: str
    success_count: int
    failure_count: int
    results: dict[str, messages.FanOutItem]


class ActionQueued(msgspec.Struct, frozen=True, kw_only=True):
    """An action that is kept until its node has run it: `GET /actions/{id}` tells how it went."""

    success: bool
    id: str
    node: str
    action: str
    state: ActionState
    expires: Annotated[int, Meta(description="Unix ms after which it is no longer begun.")]


class ActionStopped(msgspec.Struct, frozen=True, kw_only=True):
    """How an action stands that was told to stop. `success`: it is `cancelled`."""

    success: bool
    id: str
    node: str
    action: str
    state: ActionState


class ActionPage(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first; `total` match."""

    actions: list[messages.HistoryRecord]
    total: int
    limit: int
    offset: int


class ActionRecord(messages.HistoryRecord, frozen=True, kw_only=True):
    """Where an action stands, and every attempt, oldest first."""

    attempts: list[messages.HistoryRecord]


class ActionRecords(msgspec.Struct, frozen=True, kw_only=True):
    """One record for an action of one node; one per node for an action of several."""

    id: str
    actions: list[ActionRecord]
