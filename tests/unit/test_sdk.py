from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from mesh.errors import ConfigError, InvalidError
from mesh.runtime.attempt import check_params
from mesh.runtime.sdk import ActionContext, Node
from mesh.wire.messages import Document, SearchRequest


class Refund(msgspec.Struct):
    order: str
    cents: int


@dataclass
class Note:
    text: str


def context():
    return ActionContext(id="1", node="crm", caller="ops", attempt=1, deadline=0)


async def test_typed_action_gets_its_type():
    node = Node("crm")

    @node.action("refund")
    async def refund(params: Refund, ctx: ActionContext) -> dict[str, Any]:
        """Give money back.

        Only once.
        """
        return {"cents": params.cents, "by": ctx.caller}

    spec = node.actions["refund"]
    assert spec.description == "Give money back."
    params = msgspec.convert({"order": "o", "cents": 5}, spec.params)
    assert await spec.run(params, context()) == {"cents": 5, "by": "ops"}
    with pytest.raises(InvalidError) as caught:
        check_params(spec, {"order": "o", "cents": "five"})
    assert list(caught.value.fields) == ["params.cents"]
    with pytest.raises(InvalidError) as caught:
        check_params(spec, {"order": "o"})
    assert list(caught.value.fields) == ["params.cents"]


def test_schema_is_json_schema():
    node = Node("crm")

    @node.action("refund")
    def refund(params: Refund) -> None: ...

    schema = node.actions["refund"].schema()
    assert schema["$defs"]["Refund"]["required"] == ["order", "cents"]


async def test_plain_function_without_context_and_dataclass():
    node = Node("crm")

    @node.action("note")
    def note(params: Note) -> str:
        return params.text.upper()

    spec = node.actions["note"]
    assert await spec.run(msgspec.convert({"text": "hi"}, spec.params), context()) == "HI"


async def test_action_without_annotation_takes_any_object():
    node = Node("crm")

    @node.action("any")
    def anything(params):
        return params

    assert await node.actions["any"].run({"a": 1}, context()) == {"a": 1}


@pytest.mark.parametrize("name", ["a.b", "*", "", "master"])
def test_name_that_is_no_token_is_refused(name):
    with pytest.raises(InvalidError):
        Node("crm").action(name)


def test_declared_twice_is_refused():
    node = Node("crm")
    node.action("a")(lambda params: params)
    with pytest.raises(ConfigError, match="twice"):
        node.action("a")
    node.search("s")(lambda request: [])
    with pytest.raises(ConfigError, match="twice"):
        node.search("s")


def test_unknown_annotation_says_where_it_should_be():
    def action(params): ...

    action.__annotations__["params"] = "Nowhere"
    with pytest.raises(ConfigError, match="top level"):
        Node("crm").action("a")(action)


def test_annotation_that_json_cannot_express_is_refused():
    def action(params): ...

    action.__annotations__["params"] = object
    with pytest.raises(ConfigError, match="JSON"):
        Node("crm").action("a")(action)


async def test_search_may_return_plain_objects():
    node = Node("crm")

    @node.search("tickets")
    def tickets(request: SearchRequest) -> list[dict[str, Any]]:
        return [{"id": "1", "content": request.query}]

    found = await node.searches["tickets"](SearchRequest(query="q"))
    assert found == [Document(id="1", content="q")]
