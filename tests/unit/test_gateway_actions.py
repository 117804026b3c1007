"""The routes that queue, look at, stop and repeat actions."""

from __future__ import annotations

import pytest
from gateway_fakes import Client

from mesh import messages
from mesh.errors import ConflictError, UnavailableError
from mesh.types import ActionState

REFUND = messages.OfferedAction(
    nodes=["crm"],
    action=messages.ActionDescription(
        name="refund",
        compensate="unrefund",
        params={
            "$ref": "#/$defs/Refund",
            "$defs": {"Refund": {"type": "object", "properties": {"order": {"type": "string"}}}},
        },
    ),
)


@pytest.fixture
def client():
    return Client()


def record(action_id: str, node: str, **fields) -> messages.HistoryRecord:
    known = {"action": "refund", "state": ActionState.SUCCEEDED, "caller": "ann", "at": 1}
    return messages.HistoryRecord(id=action_id, node=node, **(known | fields))


def remember(client: Client, *records: messages.HistoryRecord) -> None:
    client.mesh.records = {each.id: each for each in records}


def names(client: Client) -> list[str]:
    return [call[0] for call in client.mesh.calls]


# -- queueing --------------------------------------------------------------------------------------


async def test_a_queued_action_is_a_202(client):
    body = {"action": "refund", "params": {"a": 1}, "node": "crm", "mode": "queue"}
    answer = await client.ask("POST", "/actions", {**body, "expires_s": 60, "idempotency_key": "k"})
    assert answer.status == 202
    assert answer.json() == {
        "success": True,
        "id": "k",
        "node": "crm",
        "action": "refund",
        "state": "queued",
        "expires": 9,
    }
    assert client.mesh.calls == [("queue_action", "refund", {"a": 1}, "crm", "k", 60.0, "ann")]


async def test_several_in_the_queue_are_a_202_by_slug(client):
    body = {"action": "refund", "all": True, "mode": "queue", "expires_s": 5}
    answer = await client.ask("POST", "/actions", body)
    assert answer.status == 202
    assert answer.json()["results"]["crm"]["state"] == "queued"
    assert client.mesh.calls[0][-1]["mode"] == "queue"
    assert client.mesh.calls[0][-1]["expires_s"] == 5.0


async def test_how_several_are_asked_is_passed_on(client):
    body = {"action": "refund", "nodes": ["a", "b"], "on_failure": "stop"}
    await client.ask("POST", "/actions", {**body, "sequential": True})
    await client.ask("POST", "/actions", {**body, "parallel": 3})
    first, second = (call[-1] for call in client.mesh.calls)
    assert (first["sequential"], first["on_failure"]) == (True, "stop")
    assert (second["sequential"], second["parallel"]) == (False, 3)


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ({"mode": "later"}, ["mode"]),
        ({"expires_s": 5}, ["expires_s"]),
        ({"mode": "queue", "timeout_s": 5}, ["timeout_s"]),
        ({"mode": "queue", "expires_s": 0}, ["expires_s"]),
        ({"parallel": 2}, ["parallel"]),
        ({"node": "crm", "sequential": True, "on_failure": "stop"}, ["sequential", "on_failure"]),
        ({"all": True, "sequential": True, "parallel": 2}, ["parallel"]),
        ({"all": True, "parallel": 0}, ["parallel"]),
        ({"all": True, "mode": "queue", "sequential": True}, ["sequential"]),
        ({"node": "crm", "all": True}, ["node", "all"]),
        ({"idempotency_key": "queue"}, ["idempotency_key"]),
        ({"idempotency_key": "a/b"}, ["idempotency_key"]),
    ],
    ids=str,
)
async def test_what_does_not_go_together_is_named_and_nothing_is_sent(client, more, fields):
    answer = await client.ask("POST", "/actions", {"action": "refund", **more})
    assert answer.status == 422
    assert sorted(answer.json()["errors"]) == sorted(fields)
    assert answer.json()["success"] is False
    assert client.mesh.calls == []


async def test_an_id_may_begin_like_a_path_of_ours(client):
    body = {"action": "refund", "idempotency_key": "queue-7"}
    assert (await client.ask("POST", "/actions", body)).status == 200


async def test_a_full_queue_is_a_503_with_a_time(client):
    client.mesh.error = UnavailableError("the queue is full", retry_after_ms=1500)
    answer = await client.ask("POST", "/actions", {"action": "refund", "mode": "queue"})
    assert answer.status == 503
    assert answer.headers["retry-after"] == "2"


async def test_a_reused_key_is_a_409(client):
    client.mesh.error = ConflictError("the id was used with other parameters")
    answer = await client.ask("POST", "/actions", {"action": "refund", "mode": "queue"})
    assert (answer.status, answer.json()["kind"]) == (409, "conflict")


@pytest.mark.parametrize(("bearer", "status"), [("refund", 202), ("search", 403), ("crm", 202)])
async def test_scopes_hold_for_the_queue_too(client, bearer, status):
    body = {"action": "refund", "mode": "queue"}
    assert (await client.ask("POST", "/actions", body, bearer=bearer)).status == status
    body = {"action": "index", "mode": "queue"}
    assert (await client.ask("POST", "/actions", body, bearer="refund")).status == 403


# -- looking ---------------------------------------------------------------------------------------


async def test_one_action_has_its_attempts(client):
    remember(client, record("one", "crm", result=7))
    answer = await client.ask("GET", "/actions/one")
    (action,) = answer.json()["actions"]
    assert (action["node"], action["result"]) == ("crm", 7)
    assert [attempt["state"] for attempt in action["attempts"]] == ["succeeded"]
    assert (await client.ask("GET", "/actions/none")).status == 404


async def test_an_action_on_several_nodes_is_found_whole(client):
    remember(client, record("many.crm", "crm"), record("many.wiki", "wiki"), record("many", "shop"))
    many = (await client.ask("GET", "/actions/many")).json()
    assert {entry["node"] for entry in many["actions"]} == {"crm", "wiki", "shop"}


async def test_who_may_run_some_actions_sees_no_others(client):
    remember(client, record("mine", "crm"), record("yours", "crm", action="index"))
    assert (await client.ask("GET", "/actions/mine", bearer="refund")).status == 200
    assert (await client.ask("GET", "/actions/yours", bearer="refund")).status == 404
    assert (await client.ask("GET", "/actions/mine", bearer="search")).status == 403


@pytest.mark.parametrize("path", ["queue", "dead-letters"])
async def test_the_queue_is_for_those_who_may_run_all(client, path):
    answer = await client.ask("GET", f"/actions/{path}?node=0199&limit=7&offset=2")
    assert answer.json() == {"actions": [], "total": 0, "waiting": {}}
    assert client.mesh.calls[-1][1:] == ("crm", 7, 2)
    assert (await client.ask("GET", f"/actions/{path}?node=nobody")).status == 404
    assert (await client.ask("GET", f"/actions/{path}?limit=0")).status == 422
    refused = await client.ask("GET", f"/actions/{path}", bearer="refund")
    assert (refused.status, refused.json()["success"]) == (403, False)


async def test_the_catalogue_shows_what_the_identity_may_run(client):
    index = messages.OfferedAction(
        nodes=["crm"], action=messages.ActionDescription(name="index", builtin=True)
    )
    client.mesh.offered = [index, REFUND]
    whole = (await client.ask("GET", "/actions/catalogue")).json()["actions"]
    assert [each["action"]["name"] for each in whole] == ["index", "refund"]
    assert whole[1]["action"]["compensate"] == "unrefund"
    some = (await client.ask("GET", "/actions/catalogue", bearer="refund")).json()["actions"]
    assert [each["action"]["name"] for each in some] == ["refund"]
    assert (await client.ask("GET", "/actions/catalogue?node=nobody")).status == 404


# -- stopping and repeating ------------------------------------------------------------------------


async def test_a_running_action_is_cancelled(client):
    remember(client, record("one", "crm", state=ActionState.RUNNING))
    answer = await client.ask("POST", "/actions/one/cancel")
    assert answer.status == 200
    assert answer.json() == {
        "success": True,
        "id": "one",
        "node": "crm",
        "action": "refund",
        "state": "cancelled",
    }
    assert client.mesh.calls[-1] == ("cancel", "one", "crm", "ann")


async def test_what_has_ended_is_a_409_and_what_nobody_knows_a_404(client):
    remember(client, record("one", "crm"))
    answer = await client.ask("POST", "/actions/one/cancel")
    assert (answer.status, answer.json()["success"]) == (409, False)
    assert (await client.ask("POST", "/actions/one/retry")).status == 409
    assert (await client.ask("POST", "/actions/two/cancel")).status == 404
    assert (await client.ask("POST", "/actions/one/cancel?node=wiki")).status == 404


@pytest.mark.parametrize("verb", ["cancel", "retry"])
async def test_actions_of_others_are_neither_stopped_nor_repeated(client, verb):
    remember(client, record("yours", "crm", action="index", state=ActionState.RUNNING))
    assert (await client.ask("POST", f"/actions/yours/{verb}", bearer="refund")).status == 404
    assert names(client) == ["action"]
    assert (await client.ask("POST", f"/actions/yours/{verb}", bearer="search")).status == 403


async def test_of_a_fan_out_the_parts_that_go_on_are_cancelled(client):
    running = {"state": ActionState.RUNNING}
    remember(
        client,
        record("many.a", "a", **running),
        record("many.b", "b", **running),
        record("many.c", "c"),
    )
    answer = (await client.ask("POST", "/actions/many/cancel")).json()
    assert (answer["success"], answer["success_count"], answer["id"]) == (True, 2, "many")
    assert sorted(answer["results"]) == ["a", "b"]
    client.mesh.calls.clear()
    one = (await client.ask("POST", "/actions/many/cancel?node=b")).json()
    assert (one["id"], one["node"]) == ("many.b", "b")
    assert [call[1] for call in client.mesh.calls if call[0] == "cancel"] == ["many.b"]


async def test_a_part_that_cannot_be_stopped_does_not_keep_the_others(client):
    remember(
        client,
        record("many.a", "a", state=ActionState.RUNNING),
        record("many.b", "b", state=ActionState.ACCEPTED),
    )
    answer = (await client.ask("POST", "/actions/many/cancel")).json()
    assert (answer["success"], answer["success_count"], answer["failure_count"]) == (False, 1, 1)
    assert answer["results"]["b"]["error"]["kind"] == "conflict"


async def test_a_failed_action_is_repeated_through_the_queue(client):
    remember(client, record("one", "crm", state=ActionState.FAILED))
    answer = await client.ask("POST", "/actions/one/retry")
    assert answer.status == 202
    assert answer.json()["state"] == "queued"
    assert client.mesh.calls[-1] == ("retry", "one", "crm", "ann")


async def test_of_a_fan_out_the_parts_that_ended_badly_are_repeated(client):
    remember(
        client,
        record("many.a", "a", state=ActionState.INTERRUPTED),
        record("many.b", "b", state=ActionState.EXPIRED),
        record("many.c", "c"),
        record("many.d", "d", state=ActionState.FAILED, final=False),
    )
    answer = (await client.ask("POST", "/actions/many/retry")).json()
    assert sorted(answer["results"]) == ["a", "b"]
    remember(client, record("many.a", "a"), record("many.b", "b"))
    assert (await client.ask("POST", "/actions/many/retry")).status == 409


async def test_steering_takes_no_body(client):
    remember(client, record("one", "crm"))
    assert (await client.ask("POST", "/actions/one/cancel", {"node": "crm"})).status == 400


# -- schemas of actions in the OpenAPI document ----------------------------------------------------


async def schemas(client: Client, bearer: str | None = "all"):
    made = (await client.ask("GET", "/openapi.json", bearer=bearer)).json()
    return made["components"]["schemas"]


async def test_offered_actions_are_components_whose_references_lead_there(client):
    client.mesh.offered = [REFUND]
    params = (await schemas(client))["action.refund.params"]
    target = "#/components/schemas/action.refund.params/$defs/Refund"
    assert params["$ref"] == target
    assert params["$defs"]["Refund"]["properties"] == {"order": {"type": "string"}}
    assert params["description"] == "On crm."


async def test_different_actions_of_one_name_are_any_of_them(client):
    other = messages.OfferedAction(
        nodes=["shop"],
        action=messages.ActionDescription(
            name="refund", params={"$ref": "#/$defs/R", "$defs": {"R": {}}}, result={"type": "null"}
        ),
    )
    client.mesh.offered = [REFUND, other]
    found = await schemas(client)
    first, second = found["action.refund.params"]["anyOf"]
    assert first["$ref"].endswith("/action.refund.params/anyOf/0/$defs/Refund")
    assert second["$ref"].endswith("/action.refund.params/anyOf/1/$defs/R")
    assert found["action.refund.result"]["type"] == "null"


async def test_who_may_not_run_an_action_does_not_read_of_it(client):
    index = messages.OfferedAction(
        nodes=["crm"], action=messages.ActionDescription(name="index", builtin=True)
    )
    client.mesh.offered = [index, REFUND]

    async def read(bearer: str | None) -> set[str]:
        found = await schemas(client, bearer)
        return {name.split(".")[1] for name in found if name.startswith("action.")}

    assert await read("all") == {"index", "refund"}
    assert await read("refund") == {"refund"}
    assert await read("search") == set()
    assert await read(None) == set(), "nor who has not logged in"
    assert (await client.ask("GET", "/openapi.json", bearer="nobody")).status == 401


async def test_masters_are_not_asked_for_every_reader(client):
    first = await client.ask("GET", "/openapi.json")
    for _ in range(20):
        assert (await client.ask("GET", "/openapi.json")).content == first.content
        assert (await client.ask("GET", "/openapi.json", bearer=None)).status == 200
    assert names(client) == ["actions"]


async def test_the_document_is_there_without_a_master(client):
    client.mesh.error = UnavailableError("no master")
    found = await schemas(client)
    assert "Action" in found
    assert not [name for name in found if name.startswith("action.")]
