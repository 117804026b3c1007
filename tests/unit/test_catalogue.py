"""What masters know of nodes' actions, and what they refuse before anything is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from description_fakes import MemoryDescriptions
from fakes import MemoryBroker, MemoryTrail
from stepped_clock import SteppedClock, settled

from mesh.adapters.json_schema import compile_schema
from mesh.config import MeshConfig
from mesh.core.node_view import NodeView
from mesh.errors import BadRequestError, ConflictError, InvalidError, NotFoundError
from mesh.ports import Message
from mesh.runtime.action_records import fingerprint_of
from mesh.runtime.background import Background
from mesh.runtime.catalogue import Catalogue
from mesh.runtime.parts import Surroundings
from mesh.types import ActionState
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    ActionCheck,
    ActionDescription,
    ActionInfo,
    ActionRequest,
    ActionsQuery,
    HistoryRecord,
    NodeActions,
    NodeRecord,
    Request,
)

SCHEMA = {
    "type": "object",
    "properties": {"order": {"type": "string"}, "cents": {"type": "integer", "minimum": 1}},
    "required": ["order"],
}
REFUND = ActionDescription(name="refund", compensate="unrefund", params=SCHEMA)
INDEX = ActionDescription(name="index", builtin=True, params={"type": "object"})


def digest(description: ActionDescription) -> str:
    return f"{hash(codec.encode(description)):x}"


class Members:
    """Of `Membership` what the catalogue asks for."""

    def __init__(self) -> None:
        self.view = NodeView()

    async def find(self, name: str) -> NodeRecord:
        return self.view.find(name)


class DescribingNode:
    """Says what it is told to say."""

    def __init__(self, office: Office, slug: str) -> None:
        self.slug = slug
        self.bus = office.broker.bus(slug)
        self.questions = 0
        self.answer: bytes | None = b""
        self.waiting: list[Message] = []

    async def start(self, *described: ActionDescription) -> DescribingNode:
        self.offers(*described)
        subject = f"{subjects.PREFIX}.rpc.{self.slug}.describe.*"
        await self.bus.subscribe(subject, self._asked)
        return self

    def offers(self, *described: ActionDescription) -> None:
        self.answer = codec.ok(NodeActions(actions=list(described)))

    def _asked(self, message: Message) -> None:
        assert message.subject.endswith(".describe.master")
        codec.decode(message.data, Request)
        self.questions += 1
        if self.answer is None:
            self.waiting.append(message)
        else:
            self.bus.publish(message.reply, self.answer)


class Office:
    """A catalogue, and all it looks at."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.clock = SteppedClock(1000.0)
        self.background = Background(self.clock)
        self.members = Members()
        self.store = MemoryDescriptions()
        self.known: dict[tuple[str, str], HistoryRecord] = {}
        self.catalogue = self.another()

    def another(self) -> Catalogue:
        """A master beside the first, or its next life."""
        around: Any = Surroundings(
            bus=self.broker.bus("master"),
            clock=self.clock,
            background=self.background,
            config=MeshConfig(),
            registry=None,  # type: ignore[arg-type]
            membership=self.members,  # type: ignore[arg-type]
            audit=MemoryTrail(),
            leads=lambda: True,
        )
        return Catalogue(around, self.store, compile_schema, known=self._find)

    async def _find(self, action_id: str, node: str) -> HistoryRecord | None:
        return self.known.get((action_id, node))

    def tells(self, slug: str, *described: ActionDescription, **infos: str) -> None:
        """A heartbeat of the node says that it offers these."""
        actions = [
            ActionInfo(name=one.name, builtin=one.builtin, digest=digest(one)) for one in described
        ] + [ActionInfo(name=name, digest=told) for name, told in infos.items()]
        others = [record for record in self.members.view if record.slug != slug]
        record = NodeRecord(id=f"id-{slug}", slug=slug, name=slug, actions=actions)
        self.members.view.load([*others, record])

    async def pass_time(self, seconds: float = 0.5) -> None:
        for _ in range(round(seconds / 0.5)):
            await self.clock.step(0.5)

    async def check(self, params: dict[str, Any], node: str = "crm", **asked: Any) -> None:
        check = ActionCheck(**{"action": "refund", "node": node, "params": params} | asked)
        kind, verb = self.catalogue.verbs["action-check"]
        assert kind is ActionCheck
        assert await verb(check, "ops") is None


@pytest.fixture
async def office():
    office = Office()
    await office.catalogue.start()
    await settled()
    yield office
    await office.background.stop()
    assert office.background.failures == 0


@pytest.fixture
async def crm(office):
    node = await DescribingNode(office, "crm").start(REFUND, INDEX)
    office.tells("crm", REFUND, INDEX)
    await office.pass_time()
    return node


async def test_a_node_is_asked_once_and_its_answer_kept(office, crm):
    await office.pass_time(30)
    assert crm.questions == 1
    assert await office.catalogue.describe("crm", "refund") == REFUND
    assert await office.catalogue.describe("id-crm", "refund") == REFUND, "by id as well"
    assert await office.catalogue.describe("crm", "nothing") is None
    assert set(office.store.nodes["crm"]) == {"refund", "index"}


async def test_another_master_reads_what_this_one_has_asked(office, crm):
    assert await office.another().describe("crm", "refund") == REFUND
    assert crm.questions == 1


async def test_what_is_new_is_asked_for_and_what_was_is_no_longer_believed(office, crm):
    changed = msgspec.structs.replace(REFUND, params={"type": "object", "required": ["reason"]})
    crm.offers(changed)
    office.tells("crm", changed)
    await office.check({"reason": "broken"})
    assert crm.questions == 2, "whoever needs it does not wait for the next round"
    with pytest.raises(InvalidError):
        await office.check({"order": "1"})
    await office.pass_time()
    assert set(office.store.nodes["crm"]) == {"refund"}


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        ({}, {"params.order": ("is missing",)}),
        ({"order": "1", "cents": "5"}, {"params.cents": ("expected int, got str",)}),
        ({"order": 1, "cents": 0}, {"params.order", "params.cents"}),
    ],
)
async def test_parameters_that_do_not_fit_are_refused_by_their_names(office, crm, params, fields):
    with pytest.raises(InvalidError, match=r"^params of refund: ") as refused:
        await office.check(params)
    told = refused.value.fields
    assert told == fields if isinstance(fields, dict) else set(told) == fields


async def test_parameters_that_fit_are_not(office, crm):
    await office.check({"order": "1", "cents": 5, "more": True})
    await office.catalogue.check("crm", "refund", {"order": "1"})


async def test_an_unknown_action_is_refused_with_those_there_are(office, crm):
    with pytest.raises(
        BadRequestError, match=r"unknown action 'refudn'; crm offers: index, refund"
    ):
        await office.check({}, action="refudn")


async def test_an_unknown_node_is_not_found(office, crm):
    with pytest.raises(NotFoundError, match="crn"):
        await office.check({}, node="crn")


async def test_of_a_node_that_was_never_there_nothing_is_refused(office):
    office.tells("new")
    await office.check({"any": "thing"}, node="new")
    assert await office.catalogue.describe("new", "refund") is None


async def test_of_a_node_that_has_no_digests_nothing_is_refused(office):
    office.tells("old", refund="")
    await office.check({"any": "thing"}, node="old")


async def test_what_is_known_of_a_node_that_is_away_is_checked(office, crm):
    await crm.bus.close()
    with pytest.raises(InvalidError):
        await office.check({})


# -- ids -------------------------------------------------------------------------------------------


async def test_an_id_that_stands_for_something_else_is_a_conflict(office, crm):
    params = {"order": "1"}
    known = fingerprint_of(ActionRequest(id="a", action="refund", params=params)).digest
    office.known["a", "crm"] = HistoryRecord(
        id="a",
        node="crm",
        action="refund",
        state=ActionState.QUEUED,
        caller="ops",
        at=1,
        digest=known,
    )
    await office.check(params, action_id="a")
    await office.check(params, action_id="a", digest=known)
    await office.check({"order": "2"}, action_id="b")
    for asked in ({"params": {"order": "2"}}, {"params": params, "digest": "0" * 64}):
        with pytest.raises(ConflictError, match="'a'"):
            await office.check(**asked, action_id="a")
    with pytest.raises(InvalidError, match="order"):
        await office.check({}, action_id="a")  # what does not fit is told first
    with pytest.raises(InvalidError, match="id"):
        await office.check(params, action_id="x" * 201)


# -- nodes that answer badly -----------------------------------------------------------------------


BAD = [
    b"not JSON",
    b"[" * 100_000,
    codec.ok({"actions": 7}),
    codec.ok({"actions": [{"name": "ref und"}]}),
    codec.ok({"actions": [{"name": "refund", "params": [1]}]}),
    codec.encode(codec.error_reply(NotFoundError("no such verb"))),
    codec.ok(NodeActions(actions=[msgspec.structs.replace(REFUND, description="x" * 70_000)])),
    codec.ok(NodeActions(actions=[msgspec.structs.replace(REFUND, name="other")])),
    codec.ok(NodeActions(actions=[])),
]


@pytest.mark.parametrize("answer", BAD, ids=range(len(BAD)))
async def test_a_node_that_answers_garbage_harms_nobody(office, answer):
    node = await DescribingNode(office, "bad").start()
    good = await DescribingNode(office, "crm").start(REFUND)
    node.answer = answer
    office.tells("bad", REFUND)
    office.tells("crm", REFUND)
    await office.pass_time(60)
    assert good.questions == 1
    assert 2 <= node.questions <= 6, "it is asked again, ever more seldom"
    await office.check({"anything": 1}, node="bad")
    assert await office.catalogue.describe("crm", "refund") == REFUND
    office.tells("bad", msgspec.structs.replace(REFUND, description="new"))
    asked = node.questions
    await office.pass_time()
    assert node.questions == asked + 1, "something new is asked for at once"


@pytest.mark.parametrize(
    "schema", [{"allOf": []}, {"type": 7}, {"$ref": "http://127.0.0.1:9/x"}], ids=str
)
async def test_a_schema_that_cannot_be_checked_is_shown_and_left_to_the_node(office, schema):
    strange = msgspec.structs.replace(REFUND, params=schema)
    await DescribingNode(office, "crm").start(strange)
    office.tells("crm", strange)
    await office.pass_time()
    await office.check({"anything": 1})
    assert await office.catalogue.describe("crm", "refund") == strange


async def test_long_parameters_are_left_to_the_node(office, crm):
    await office.check({"order": ["x" * 300_000]})
    with pytest.raises(InvalidError):
        await office.check({"order": ["x" * 30_000]})


async def test_a_node_is_not_asked_twice_at_a_time_and_nobody_waits_for_ever(office):
    silent = await DescribingNode(office, "crm").start()
    silent.answer = None
    office.tells("crm", REFUND)
    async with asyncio.timeout(5):
        await asyncio.gather(*(office.check({}) for _ in range(20)))
    assert silent.questions == 1
    await office.pass_time()
    assert silent.questions == 1
    silent.bus.publish(silent.waiting[0].reply, codec.ok(NodeActions(actions=[REFUND])))
    await settled()
    with pytest.raises(InvalidError):
        await office.check({})


async def test_a_thousand_new_nodes_are_asked_a_few_at_a_time(office):
    nodes = [await DescribingNode(office, f"n{number}").start() for number in range(100)]
    for node in nodes:
        node.answer = None
    records = [
        NodeRecord(
            id=node.slug, slug=node.slug, name="n", actions=[ActionInfo(name="a", digest="d")]
        )
        for node in nodes
    ]
    office.members.view.load(records)
    await office.pass_time()
    assert sum(node.questions for node in nodes) == 16


async def test_a_database_that_is_away_costs_nothing_but_the_memory(office):
    node = await DescribingNode(office, "crm").start(REFUND)
    office.store.away = True
    office.tells("crm", REFUND)
    await office.pass_time(20)
    await office.check({})
    office.store.away = False
    await office.pass_time(30)
    assert node.questions >= 1
    with pytest.raises(InvalidError):
        await office.check({})


# -- what is offered -------------------------------------------------------------------------------


async def offered(office, **query: str) -> list[tuple[str, list[str]]]:
    kind, verb = office.catalogue.verbs["actions"]
    assert kind is ActionsQuery
    answer = await verb(ActionsQuery(**query), "ops")
    return [(one.action.name, one.nodes) for one in answer.actions]


async def test_equal_actions_of_several_nodes_are_one(office, crm):
    other = msgspec.structs.replace(REFUND, description="otherwise")
    await DescribingNode(office, "erp").start(REFUND, INDEX)
    await DescribingNode(office, "shop").start(other)
    office.tells("erp", REFUND, INDEX)
    office.tells("shop", other)
    office.tells("old", ship="")
    await office.pass_time()
    assert await offered(office) == [
        ("index", ["crm", "erp"]),
        ("refund", ["crm", "erp"]),
        ("refund", ["shop"]),
        ("ship", ["old"]),
    ]
    assert await offered(office, node="id-shop") == [("refund", ["shop"])]
    assert await offered(office, action="ship") == [("ship", ["old"])]
    assert await offered(office, action="none") == []
    with pytest.raises(NotFoundError):
        await offered(office, node="none")


async def test_a_node_that_is_gone_is_forgotten(office, crm):
    office.members.view.remove("crm")
    await office.pass_time()
    assert await offered(office) == []
    office.tells("crm", REFUND, INDEX)
    await office.pass_time()
    assert crm.questions == 1, "SQL remembers"
    assert await offered(office) == [("index", ["crm"]), ("refund", ["crm"])]
