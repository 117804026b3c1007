"""What a client is told about actions by real masters and a real node."""

from __future__ import annotations

import asyncio
import textwrap

import pytest
import pytest_asyncio
from live_mesh import START_S, LiveMesh, health_of

from mesh.errors import BadRequestError, ConflictError, InvalidError, MeshError, NotFoundError
from mesh.types import ActionState

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = '''
import msgspec
import mesh

node = mesh.Node("shop")


class Refund(msgspec.Struct):
    order: str
    cents: int


@node.action("refund")
async def refund(params: Refund) -> dict[str, int]:
    """Give money back.

    Slowly.
    """
    if params.cents > 100:
        raise ValueError("too much")
    return {"refunded": params.cents}
'''


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    live = LiveMesh(tmp_path_factory.mktemp("catalogue"))
    (live.folder / "shop_app.py").write_text(textwrap.dedent(APP))
    try:
        live.start()
        live.add("shop", "--app", "shop_app:node", PYTHONPATH=str(live.folder))
        async with live.connect() as client:
            async with asyncio.timeout(START_S):
                while await health_of(client, "shop") != "healthy":
                    await asyncio.sleep(0.05)
            yield client
    finally:
        live.stop()


async def test_what_a_node_offers_is_shown_in_full(client):
    offered = (await client.actions()).actions
    assert [one.action.builtin for one in offered] == sorted(
        (one.action.builtin for one in offered), reverse=True
    )
    [refund] = (await client.actions("shop", "refund")).actions
    assert (refund.nodes, refund.action.description) == (["shop"], "Give money back.")
    told = str(refund.action.params)
    assert "order" in told
    assert "cents" in told
    with pytest.raises(NotFoundError):
        await client.actions("nowhere")


@pytest.mark.parametrize(
    "params",
    [{}, {"order": "1"}, {"order": "1", "cents": "5"}, {"order": 1, "cents": 5}, {"order": None}],
    ids=str,
)
async def test_what_does_not_fit_is_refused_as_the_node_would(client, params):
    with pytest.raises(InvalidError) as checked:
        await client.check_action("refund", params, node="shop")
    with pytest.raises(InvalidError) as run:
        await client.run_action("refund", params, node="shop")
    [(field, messages)] = run.value.fields.items()
    assert checked.value.fields[field] == messages


async def test_what_nobody_knows_is_refused(client):
    with pytest.raises(BadRequestError, match=r"'refudn'; shop offers: .*refund"):
        await client.check_action("refudn", {}, node="shop")
    with pytest.raises(NotFoundError, match="nowhere"):
        await client.check_action("refund", {}, node="nowhere")
    with pytest.raises(NotFoundError, match="never"):
        await client.action("never")


async def test_an_id_that_was_used_otherwise_is_refused(client):
    params = {"order": "1", "cents": 5}
    await client.run_action("refund", params, node="shop", id="used")
    page = await client.history(action_id="used")  # once it is there, it is known
    assert page.total == 1
    await client.check_action("refund", params, node="shop", id="used")
    with pytest.raises(ConflictError, match="used"):
        await client.check_action("refund", params | {"cents": 6}, node="shop", id="used")


async def test_the_story_of_an_action_and_of_a_fan_out_is_told(client):
    with pytest.raises(MeshError, match="too much"):
        await client.run_action("refund", {"order": "1", "cents": 500}, node="shop", id="bad")
    [story] = (await client.action("bad")).stories
    assert (story.action.state, len(story.attempts)) == (ActionState.FAILED, 1)
    assert "too much" in story.attempts[0].error.message
    await client.fan_out("refund", {"order": "1", "cents": 5}, nodes=["shop"], id="many")
    told = await client.action("many")
    assert [(one.action.node, one.action.id) for one in told.stories] == [("shop", "many.shop")]


async def test_who_follows_begins_with_the_last_few_and_hears_what_is_new(client):
    for number in range(3):
        await client.run_action("refund", {"order": "1", "cents": 5}, node="shop", id=f"f{number}")
    changes = client.follow_actions(id_prefix="f", last=2, poll_s=0.05)
    assert [(await anext(changes)).id for _ in range(2)] == ["f1", "f2"]
    await client.run_action("refund", {"order": "1", "cents": 6}, node="shop", id="f3")
    async with asyncio.timeout(10):
        while True:
            heard = await anext(changes)
            assert heard.id == "f3"
            if heard.state is ActionState.SUCCEEDED:
                break
    await changes.aclose()
    with pytest.raises(InvalidError, match="last"):
        await anext(client.follow_actions(last=-1))
