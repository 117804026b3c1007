"""`meshctl` as a person types it, against a broker, a master and two nodes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from typed_mesh import BIN, PATIENTLY, Answer, Mesh, eventually


@pytest.fixture(scope="module")
def meshctl(tmp_path_factory) -> Iterator[Mesh]:
    running = Mesh(tmp_path_factory.mktemp("meshctl"))
    try:
        running.start()
        yield running
    finally:
        running.end()
        structlog.reset_defaults()  # a command silences the libraries of its process


def documents(count: int, **more: Any) -> str:
    return "".join(
        json.dumps({"id": f"d{i}", "content": f"invoice {i} is late", "year": 2000 + i, **more})
        + "\n"
        for i in range(count)
    )


def found(answer: Answer) -> list[str]:
    assert answer.code == 0, answer
    return [hit["id"] for hit in answer.json["results"]]


def test_the_nodes_are_listed_counted_pinged_and_shown(meshctl):
    listed = meshctl.typed("nodes", "list")
    assert listed.code == 0
    assert [line.split()[1] for line in listed.out.splitlines()[1:]] == ["crm", "kb"]
    stats = meshctl("nodes", "stats", "--json").json
    assert (stats["active"], stats["healthy"]) == (2, 2)
    pinged = meshctl("--json", "nodes", "ping", "--all")
    assert pinged.code == 0
    assert all(node["round_trip_ms"] < 1000 for node in pinged.json["nodes"])
    assert meshctl("nodes", "ping", "crm", "nobody").code == 1
    node = meshctl("nodes", "show", "crm", "--json").json["node"]
    assert {action["name"] for action in node["actions"]} >= {"index", "update", "delete", "drop"}
    by_id = meshctl("nodes", "ping", node["id"], "--json")
    assert by_id.json["nodes"][0]["node"] == "crm"


def test_a_node_is_registered_once_updated_and_removed(meshctl):
    made = meshctl("nodes", "register", "Shop One", "https://shop.example", "--json")
    assert made.code == 0, made
    assert made.json["node"]["slug"] == "shop-one"
    assert len(made.json["api_key"]) >= 32
    assert "not shown again" in made.err
    assert meshctl("nodes", "register", "shop one").code == 2
    assert meshctl("nodes", "register", "a", "--weight", "0").code == 2
    assert meshctl("nodes", "register", "b", "ftp://x").code == 2

    changed = meshctl("nodes", "update", "shop-one", "--url", "http://b", "--status", "inactive")
    assert changed.code == 0, changed
    shown = meshctl("nodes", "show", made.json["node"]["id"], "--json").json["node"]
    assert (shown["url"], shown["status"]) == ("http://b", "inactive")
    assert [
        node["slug"]
        for node in meshctl("nodes", "list", "--status", "inactive", "--json").json["nodes"]
    ] == ["shop-one"]

    assert meshctl("nodes", "remove", "shop-one").code == 2, "nobody to ask"
    assert meshctl("nodes", "remove", "shop-one", "--yes").code == 0
    assert meshctl("nodes", "show", "shop-one").code == 2
    assert meshctl("nodes", "remove", "shop-one", "--yes").code == 2


def test_monitor_looks_once(meshctl):
    seen = meshctl("nodes", "monitor", "--once", "--json")

    assert seen.code == 0
    assert all(node["ok"] for node in seen.json["nodes"])


def test_monitor_ends_well_on_ctrl_c(meshctl):
    watching = subprocess.Popen(
        [BIN / "meshctl", "nodes", "monitor", "--interval", "60", "--json"],
        env=meshctl.environment("operator"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        first = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
    finally:
        watching.kill()

    assert json.loads(first)["nodes"]
    assert watching.returncode == 0
    assert errors == b""


def test_a_documents_whole_life_is_in_the_history(meshctl):
    def act(action: str, **params: Any) -> Answer:
        body = json.dumps({"collection": "life", **params})
        return meshctl("actions", "run", action, "--node", "crm", "--params", body, "--json")

    def search(text: str) -> list[str]:
        return found(
            meshctl("search", text, "--collection", "life", "--mode", "text", "--json", *PATIENTLY)
        )

    made = act("index", documents=[{"id": "one", "content": "a purple elephant"}])
    assert made.code == 0, made
    assert made.json["result"]["indexed"] == 1
    eventually(lambda: meshctl("search", "x", "--collection", "life").code == 0)
    assert search("elephant") == ["one"]
    assert act("update", id="one", fields={"content": "a purple walrus"}).code == 0
    assert search("walrus") == ["one"]
    assert search("elephant") == []
    assert act("delete", ids=["one"]).code == 0
    assert search("walrus") == []

    def history() -> list[Any]:
        page = meshctl("actions", "history", "--node", "crm", "--since", "1h", "--json").json
        mine = [step for step in page["actions"] if step["params"]["collection"] == "life"]
        return mine if [step["state"] for step in mine] == ["succeeded"] * 3 else []

    steps = eventually(history)
    assert [step["action"] for step in steps] == ["delete", "update", "index"]
    assert {step["caller"] for step in steps} == {"operator"}
    assert all(step["duration_ms"] > 0 for step in steps)
    shown = meshctl("actions", "history", "--id", made.json["id"])
    assert "a purple elephant" in shown.out


def test_the_same_key_runs_once(meshctl):
    def act(text: str) -> Answer:
        body = json.dumps({"collection": "keyed", "documents": [{"content": text}]})
        typed = ("actions", "run", "index", "--node", "kb", "--params", "@-", "--key", "k-1")
        return meshctl.typed(*typed, "--json", stdin=body)

    first, second, other = act("once"), act("once"), act("something else")
    assert first.code == 0, first
    assert second.json == first.json
    assert other.code == 2
    assert other.json["kind"] == "conflict"


def test_import_filter_and_drop(meshctl, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text(documents(60) + "oops\n")
    typed = ("collections", "import", str(file), "-c", "notes", "--node", "crm", "--batch", "25")

    done = meshctl(*typed, "--json")
    assert done.code == 1, done
    assert (done.json["documents"], done.json["batches"], done.json["bad"]) == (60, 3, 1)
    assert "notes.jsonl:61: not JSON" in done.err
    again = meshctl(*typed, "--json").json
    assert (again["documents"], again["changed"]) == (60, 0)

    eventually(
        lambda: (
            [
                held["rows"]
                for held in meshctl("collections", "list", "--json").json["collections"]
                if held["collection"] == "notes"
            ]
            == [60]
        )
    )
    narrow = ("--filter", "year>=2010", "--filter", "year<2013")
    typed_search = ("search", "late invoice", "--collection", "notes", *narrow, "--json")
    ids = found(meshctl(*typed_search, *PATIENTLY))
    assert sorted(ids) == ["d10", "d11", "d12"]
    unknown = meshctl("search", "x", "--collection", "notes", "--filter", "nope=1", "--json")
    assert (unknown.code, unknown.json["kind"]) == (2, "invalid")

    assert meshctl("collections", "drop", "notes").code == 2, "nobody to ask"
    assert meshctl("collections", "drop", "notes", "--yes").code == 0
    eventually(lambda: meshctl("collections", "drop", "notes", "--yes").code == 2)
    refilled = meshctl(*typed, "--json").json
    assert refilled["changed"] == 60, "an import after a drop fills it again"


def test_an_import_that_is_killed_is_completed_by_the_next(meshctl, tmp_path):
    """No document is missed, and none that is there already is written again: what was on its way
    is sent once more under its id, what was done is passed over.
    """
    file = tmp_path / "many.jsonl"
    file.write_text(documents(1500))
    typed = ("collections", "import", str(file), "-c", "many", "--node", "kb", "--batch", "20")

    def steps() -> list[dict[str, Any]]:
        typed = ("actions", "history", "--node", "kb", "--action", "index", "--limit", "1000")
        page = meshctl(*typed, "--json").json
        return [step for step in page["actions"] if step["params"]["collection"] == "many"]

    def ended() -> list[dict[str, Any]]:
        """All of them, once none is under way: what was begun when it was cut off goes on."""
        seen = steps()
        return seen if {step["state"] for step in seen} == {"succeeded"} else []

    cut = subprocess.Popen([BIN / "meshctl", *typed], env=meshctl.environment("operator"))
    try:
        eventually(lambda: len(steps()) >= 3)
    finally:
        cut.kill()
        cut.wait()
    assert cut.returncode == -signal.SIGKILL, "it was over before it was cut off"
    begun = eventually(ended)
    assert 3 <= len(begun) < 75

    done = meshctl(*typed, "--json")
    assert done.code == 0, done
    assert (done.json["documents"], done.json["batches"]) == (1500, 75)
    both = eventually(lambda: len(seen := ended()) >= 75 and seen)
    assert len(both) == 75
    assert {step["id"] for step in begun} <= {step["id"] for step in both}
    assert {step["attempt"] for step in both} == {1}
    assert sum(step["result"]["changed"] for step in both) == 1500
    (held,) = eventually(
        lambda: [
            held
            for held in meshctl("collections", "list", "--json").json["collections"]
            if (held["collection"], held["rows"]) == ("many", 1500)
        ]
    )
    assert held["node"] == "kb"


def test_markdown_and_csv_are_read(meshctl, tmp_path):
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    (tmp_path / "docs" / "a.md").write_text("---\nlang: en\n---\n# Zebra crossing\n\nStripes.\n")
    (tmp_path / "docs" / "sub" / "b.md").write_text("# Other\n\nNothing.\n")
    (tmp_path / "t.csv").write_text("id,content,price\n7,green bicycle,12.5\n")

    for path in (tmp_path / "docs", tmp_path / "t.csv"):
        done = meshctl("collections", "import", str(path), "-c", "mixed", "--node", "kb")
        assert done.code == 0, done
    eventually(lambda: meshctl("search", "x", "--collection", "mixed").code == 0)
    shown = meshctl("search", "zebra", "--collection", "mixed", "--mode", "text", *PATIENTLY)
    assert " 1. " in shown.out
    assert "a.md  kb/mixed" in shown.out
    ids = found(
        meshctl(
            *("search", "bicycle", "--collection", "mixed", "--filter", "price>12", "--json"),
            *PATIENTLY,
        )
    )
    assert ids == ["7"]


@pytest.mark.parametrize(
    "typed",
    [
        ["search", ""],
        ["search", "q" * 4097],
        ["search", "q", "--limit", "0"],
        ["search", "q", "--limit", "101"],
        ["search", "q", "--collection", "nope"],
        ["search", "q", "--node", "nope"],
        ["search", "q", "--node", "a*"],
        ["actions", "run", "nope", "--node", "crm"],
        ["actions", "run", "in*dex", "--node", "crm"],
        ["actions", "run", "index", "--node", "nope"],
        ["actions", "run", "index", "--node", "c rm"],
        ["actions", "run", "index", "--node", "crm", "--params", "{"],
        ["actions", "run", "index", "--node", "crm", "--params", '{"collection": 5}'],
        ["nodes", "ping", "a>b"],
        ["nodes", "show", "*"],
        ["nodes", "register", ""],
        ["nodes", "update", "nope", "--name", "x"],
        ["nodes", "update", "crm", "--weight", "-1"],
        ["nodes", "drain", "nope"],
        ["nodes", "undrain", "a*"],
        ["nodes", "ping", "--shard", "nope"],
        ["breakers", "list", "--node", "nope"],
        ["breakers", "reset", "nope"],
        ["breakers", "reset", "crm", "--verb", "act.nope"],
    ],
)
def test_bad_input_is_refused_with_words(meshctl, typed):
    refused = meshctl(*typed)
    assert refused.code == 2, refused
    assert "error: " in refused.err
    assert "Traceback" not in refused.err


def test_a_message_that_is_too_large_is_refused(meshctl):
    body = json.dumps({"collection": "big", "documents": [{"content": "x" * 2**20}] * 2})
    refused = meshctl("actions", "run", "index", "--node", "crm", "--params", "@-", stdin=body)

    assert refused.code == 2, refused
    assert "Traceback" not in refused.err


def test_wrong_credentials_are_exit_4(meshctl, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"user": "operator", "password": "guess"}')

    denied = meshctl.typed("nodes", "list", "--creds", str(wrong))
    assert denied.code == 4, denied
    assert "guess" not in denied.err


def test_no_broker_is_exit_3(meshctl):
    gone = meshctl.typed("nodes", "list", "--url", "nats://127.0.0.1:1")

    assert gone.code == 3, gone
    assert "mesh-agent up" in gone.err


def test_a_killed_node_is_seen_and_named_and_comes_back(meshctl):
    body = json.dumps({"collection": "both", "documents": [{"id": "x", "content": "red fox"}]})
    for node in ("crm", "kb"):
        assert meshctl("actions", "run", "index", "--node", node, "--params", body).code == 0
    both = ("search", "fox", "--collection", "both", "--json", *PATIENTLY)
    eventually(lambda: (seen := meshctl(*both)).code == 0 and seen.json["shards"]["ok"] == 2)

    meshctl.agents["kb"].kill()
    meshctl.agents["kb"].wait()
    eventually(
        lambda: (
            [
                node["health"]
                for node in meshctl("nodes", "list", "--json").json["nodes"]
                if node["slug"] == "kb"
            ]
            == ["unreachable"]
        )
    )
    shown = meshctl("search", "fox", "--collection", "both", *PATIENTLY)
    assert shown.code == 0, shown
    assert "PARTIAL: 1 of 2 shards missing" in shown.out
    assert "both on kb" in shown.out
    assert meshctl("nodes", "ping", "--all").code == 1
    assert meshctl("nodes", "monitor", "--once").code == 0

    meshctl.node("kb")
    meshctl.until_healthy("kb")
    whole = meshctl(*both).json
    assert not whole["partial"]


def test_a_token_is_issued_listed_and_revoked(meshctl):
    made = meshctl("tokens", "issue", "--subject", "shop", "--ttl", "2h", "--refresh", "--json")
    assert made.code == 0, made
    grant = made.json
    assert (grant["subject"], grant["expires_in"]) == ("shop", 7200)
    assert grant["access_token"].count(".") == 2

    listed = meshctl("tokens", "list", "--subject", "shop", "--json")
    assert {token["kind"] for token in listed.json["tokens"]} == {"access", "refresh"}
    assert grant["access_token"] not in listed.out
    assert grant["refresh_token"] not in listed.out

    assert meshctl("tokens", "revoke", grant["id"], "--json").json == {"revoked": 2}
    kinds = [
        t["kind"] for t in meshctl("tokens", "list", "--subject", "shop", "--json").json["tokens"]
    ]
    assert "access" not in kinds
    table = meshctl("tokens", "list", "--subject", "shop", "--all").out
    assert any(grant["id"] in line and "revoked" in line for line in table.splitlines())
    assert meshctl("tokens", "revoke", "--subject", "shop").code == 0
    assert meshctl("tokens", "list", "--subject", "shop", "--json").json == {"tokens": []}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["issue", "--scope", "everything"], "scopes"),
        (["issue", "--ttl", "0"], "ttl_s"),
        (["issue", "--ttl", "367d"], "ttl_s"),
        (["issue", "--subject", "a.b"], "subject"),
        (["issue", "--subject", "crm"], "crm"),
        (["revoke", "nobody-has-this"], "nobody-has-this"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "refused",
)
def test_what_the_mesh_refuses_about_tokens_is_usage(meshctl, arguments, said):
    answer = meshctl("tokens", *arguments)
    assert answer.code == 2, answer
    assert said in answer.err


def test_a_join_token_is_made_listed_and_revoked(meshctl):
    made = meshctl("nodes", "join-token", "create", "--uses", "3", "--description", "new", "--json")
    assert made.code == 0, made
    (listed,) = meshctl("nodes", "join-token", "list", "--json").json["tokens"]
    assert (listed["id"], listed["subject"], listed["uses_left"]) == (made.json["id"], "new", 3)
    assert meshctl("nodes", "join-token", "revoke", made.json["id"]).code == 0
    assert meshctl("nodes", "join-token", "list", "--json").json == {"tokens": []}
    (gone,) = meshctl("nodes", "join-token", "list", "--all", "--json").json["tokens"]
    assert gone["revoked_at"]


def test_who_may_not_search_is_told_which_scope_it_takes(meshctl, tmp_path):
    file = tmp_path / "acts.json"
    made = meshctl("users", "create", "acts", "--scope", "actions,search:notes", "--out", str(file))
    assert made.code == 0, made
    notes = tmp_path / "walled.jsonl"
    notes.write_text(documents(1))
    assert meshctl("collections", "import", str(notes), "-c", "walled", "--node", "kb").code == 0
    typed = ("search", "invoice", "--collection", "walled", *PATIENTLY)
    eventually(lambda: meshctl(*typed).code == 0)
    answer = meshctl(*typed, "--creds", str(file))
    assert answer.code == 4, answer
    assert "takes the scope 'search'" in answer.err
    assert "--creds" not in answer.err
    assert meshctl("users", "list", "--creds", str(file)).code == 4
    assert meshctl("users", "create", "b", "--scope", "all").err.count("search:COLLECTION") == 1


def test_an_operator_does_not_lock_himself_out(meshctl):
    assert meshctl("users", "remove", "operator", "--yes").code == 2
    refused = meshctl("users", "rotate-key", "operator")
    assert refused.code == 2
    assert "give --overlap" in refused.err
    assert meshctl("users", "list").code == 0


def test_a_rotated_key_is_new(meshctl):
    meshctl("nodes", "register", "rotated")
    first = meshctl("nodes", "rotate-key", "rotated", "--json")
    assert first.code == 0, first
    second = meshctl("nodes", "rotate-key", first.json["node"]["id"], "--json")
    assert first.json["api_key"] != second.json["api_key"]
    assert "not shown again" in second.err
    assert meshctl("nodes", "rotate-key", "nobody").code == 2
