"""Who does which step, and what is refused before anything is done."""

from __future__ import annotations

import pytest

from mesh.errors import (
    BadRequestError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from mesh.runtime.saga_plan import plan
from mesh.types import Health, SagaState, Status
from mesh.wire import codec
from mesh.wire.messages import (
    ActionDescription,
    ActionInfo,
    CollectionInfo,
    NodeRecord,
    SagaDefinition,
)


def node(slug: str, *actions: str, **fields) -> NodeRecord:
    offered = [ActionInfo(name=action) for action in actions]
    return NodeRecord(id=f"id-{slug}", slug=slug, name=slug, actions=offered, **fields)


def holder(slug: str, shard: str, **fields) -> NodeRecord:
    held = [CollectionInfo(name="docs", shard=shard)]
    return node(slug, "delete", "index", collections=held, **fields)


class Offers:
    """`charge` is undone by `refund`; amounts are positive; `away` cannot be told of now."""

    def __init__(self):
        self.checked = []

    async def describe(self, node, action):
        undo = {"charge": "refund", "broken": "nothing"}.get(action, "")
        return None if action == "unheard" else ActionDescription(name=action, compensate=undo)

    async def check(self, node, action, params):
        self.checked.append((node, action, params))
        if node == "away":
            raise UnavailableError("the database is away")
        if params.get("cents", 1) <= 0:
            raise InvalidError("no", fields={"params.cents": ["must be at least 1"]})


NODES = [
    node("bank", "charge", "refund", "broken", "unheard"),
    node("shop", "reserve", "release", "refund"),
    node("new"),
]


async def planned(*steps, nodes=None, allowed=None, offers=None, **fields):
    named = [{"name": f"s{at}"} | step for at, step in enumerate(steps)]
    return await plan(
        codec.convert({"steps": named} | fields, SagaDefinition),
        caller="ann",
        now=1000,
        timeout_s=60,
        nodes=NODES if nodes is None else nodes,
        offers=offers or Offers(),
        allowed=allowed,
    )


async def test_a_saga_is_made_that_has_not_begun():
    saga = await planned(
        {"action": "charge", "params": {"cents": 5}},
        {
            "action": "reserve",
            "node": "id-shop",
            "compensate": {"action": "refund", "node": "bank", "params": {"cents": 1}},
            "timeout_s": 7,
        },
        {"action": "release", "final": True},
        id="x",
        name="order",
    )
    assert (saga.id, saga.state, saga.version) == ("x", SagaState.RUNNING, 1)
    assert (saga.started_at, saga.deadline) == (1000, 61_000)
    one, two, three = saga.steps
    assert (one.call.node, one.undo.action, one.undo.node) == ("bank", "refund", "bank")
    assert one.undo.params == {"cents": 5}, "undone with what it was done with"
    assert (two.call.node, two.undo.node, two.undo.params) == ("shop", "bank", {"cents": 1})
    assert (three.undo, three.final, two.timeout_s) == (None, True, 7)


async def test_its_own_time_counts():
    assert (await planned({"action": "charge"}, timeout_s=5)).deadline == 6000
    assert (await planned({"action": "charge"})).id


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        ({"action": "charge", "node": "nobody"}, NotFoundError, "steps[0].node: unknown node"),
        ({"action": "reserve", "node": "bank"}, BadRequestError, "bank offers: broken, charge"),
        ({"action": "fly"}, BadRequestError, "no node offers 'fly'; actions: broken, charge"),
        ({"action": "refund"}, BadRequestError, "2 nodes offer 'refund'; say which: bank, shop"),
        ({"action": "reserve"}, InvalidError, "'reserve' has no compensation"),
        ({"action": "unheard"}, InvalidError, "has no compensation"),
        ({"action": "broken"}, BadRequestError, "steps[0].compensate.action: unknown action"),
        ({"action": "charge", "params": {"cents": 0}}, InvalidError, "must be at least 1"),
    ],
)
async def test_what_cannot_be_is_refused(step, kind, words):
    with pytest.raises(kind) as caught:
        await planned(step)
    assert words in str(caught.value)


async def test_all_that_does_not_fit_is_named_at_once():
    with pytest.raises(InvalidError) as caught:
        await planned(
            {"action": "charge", "params": {"cents": 0}},
            {"action": "reserve"},
            {"action": "reserve", "compensate": {"action": "release", "params": {"cents": -1}}},
        )
    assert list(caught.value.fields) == [
        "steps[0].params.cents",
        "steps[0].compensate.params.cents",
        "steps[1].compensate",
        "steps[2].compensate.params.cents",
    ]


async def test_what_is_not_known_yet_is_left_to_the_node():
    offers = Offers()
    await planned(
        {"action": "charge", "node": "bank", "params": {"text": "$${s0}"}},
        {"action": "charge", "node": "bank", "params": {"cents": "${s0.cents}"}},
        {"action": "charge", "node": "away", "params": {"cents": 0}},
        {"action": "fly", "node": "new", "final": True},
        nodes=[*NODES, node("away", "charge", "refund")],
        offers=offers,
    )
    assert offers.checked[0] == ("bank", "charge", {"text": "${s0}"}), "as it will be sent"
    assert [each[0] for each in offers.checked] == ["bank", "bank", "away", "away", "new"]


async def test_what_one_may_not_run_one_may_not_have_undone_either():
    with pytest.raises(ForbiddenError, match="actions:refund"):
        await planned({"action": "charge"}, allowed=["charge"])
    await planned({"action": "charge"}, allowed=["charge", "refund"])


async def test_a_saga_waits_for_a_node_that_is_away():
    away = node("only", "charge", "refund", health=Health.UNREACHABLE, status=Status.ACTIVE)
    saga = await planned({"action": "charge"}, nodes=[away])
    assert saga.steps[0].call.node == "only"


async def test_the_holder_of_a_collection_is_found():
    step = {"action": "delete", "params": {"collection": "docs"}, "final": True}
    saga = await planned(step, nodes=[holder("a", "s"), node("b", "delete")])
    assert saga.steps[0].call.node == "a"
    replicas = [holder("a", "s"), holder("b", "s", health=Health.HEALTHY)]
    saga = await planned(step, nodes=replicas)
    assert saga.steps[0].call.node == "b", "of one shard, one that is there"
    with pytest.raises(BadRequestError, match="2 nodes hold 'docs'"):
        await planned(step, nodes=[holder("a", "s"), holder("b", "t")])
