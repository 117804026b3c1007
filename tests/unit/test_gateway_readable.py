"""Who may run one action reads of that one; and whom the masters are told it was done for."""

from __future__ import annotations

import gateway_fakes
import pytest
from gateway_fakes import Client

from mesh import messages
from mesh.types import ActionState

SEVERAL = messages.Identity(subject="sue", scopes=["actions:refund", "actions:ping"])


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setitem(gateway_fakes.BEARERS, "several", SEVERAL)
    return Client()


def record(action_id: str, action: str, node: str = "crm") -> messages.HistoryRecord:
    return messages.HistoryRecord(
        id=action_id, node=node, action=action, state=ActionState.SUCCEEDED, caller="ann", at=1
    )


@pytest.mark.parametrize(
    ("bearer", "query", "asked"),
    [
        ("all", "", ""),
        ("all", "?action=index", "index"),
        ("refund", "", "refund"),
        ("refund", "?action=refund", "refund"),
        ("refund", "?action=index", None),
        ("several", "?action=ping", "ping"),
        ("several", "", None),
        ("several", "?action=pin", None),
    ],
)
async def test_the_history_of_what_one_may_run(client, bearer, query, asked):
    answer = await client.ask("GET", f"/actions{query}", bearer=bearer)
    if asked is None:
        assert answer.status == 403
        assert client.mesh.calls == []
    else:
        assert answer.status == 200
        assert client.mesh.calls[0][1]["action"] == asked


async def test_another_action_is_as_if_it_were_not_there(client):
    client.mesh.records = {
        "mine": record("mine", "refund"),
        "other": record("other", "index"),
        "many.crm": record("many.crm", "index"),
    }
    for action_id, status in (("mine", 200), ("other", 404), ("many", 404)):
        answer = await client.ask("GET", f"/actions/{action_id}", bearer="refund")
        assert answer.status == status
        assert (await client.ask("GET", f"/actions/{action_id}")).status == 200


async def test_masters_are_told_whom_a_change_is_for(client):
    for method, path, body in (
        ("POST", "/nodes", {"name": "x"}),
        ("PATCH", "/nodes/crm", {"weight": 2}),
        ("DELETE", "/nodes/crm", None),
        ("POST", "/nodes/crm/rotate-key", None),
    ):
        assert (await client.ask(method, path, body)).status in (200, 201)
    assert [(call[0], call[-1]) for call in client.mesh.calls] == [
        ("register", "ann"),
        ("update", "ann"),
        ("remove", "ann"),
        ("rotate_key", "ann"),
    ]
