from __future__ import annotations

import json

import pytest
import typer
from cli_fake_mesh import START, FakeMesh, record

from cli import connection
from cli.meshctl import app as meshctl
from cli.meshctl import audit
from cli.meshctl.failures import guard
from mesh import messages
from mesh.errors import DisconnectedError


def entry(number: int, **fields) -> messages.AuditRecord:
    known = {
        "id": f"id-{number:04}",
        "at": START + number * 1000,
        "kind": "node-joined",
        "actor": "ops",
        "subject": "crm",
        "origin": "192.0.2.7",
        "details": {"uses": 2, "scopes": ["search", "admin"]},
    }
    return messages.AuditRecord(**(known | fields))


class Trail:
    """`MeshClient.access`, as far as the trail goes; ends a run by Ctrl-C after some rounds."""

    def __init__(self):
        self.entries: list[messages.AuditRecord] = []
        self.asked: list[dict] = []
        self.rounds: list = []
        """What happens before each further question."""
        self.following = False

    async def audit(self, **query):
        if self.following:
            if not self.rounds:
                raise KeyboardInterrupt
            self.rounds.pop(0)()
        self.asked.append(query)
        after = query["after"]
        found = [one for one in self.entries if one.id > after]
        found.sort(key=lambda one: one.id, reverse=not after)
        return messages.AuditPage(entries=found[: query["limit"]], total=len(found))


@pytest.fixture
def trail(monkeypatch):
    fake = FakeMesh(record("crm"))
    fake.access = Trail()
    monkeypatch.setattr(connection, "connect", lambda _options: fake)
    monkeypatch.setattr(audit, "POLL_S", 0.0)
    return fake.access


def run(*argv: str) -> int:
    tree = typer.Typer(pretty_exceptions_enable=False)
    tree.callback()(meshctl._session)
    tree.command("audit")(audit.audit)
    common = [one for one in argv if one == "--json"]
    rest = [one for one in argv if one != "--json"]

    def command():
        return tree([*common, "audit", *rest], prog_name="meshctl", standalone_mode=False)

    return guard(command, as_json=bool(common), debug=False)


def test_a_table_newest_first(trail, capsys):
    trail.entries = [entry(1), entry(2, kind="key-rotated", origin="", details={})]
    assert run() == 0
    heading, newest, oldest = capsys.readouterr().out.splitlines()
    assert heading.split() == ["TIME", "KIND", "ACTOR", "SUBJECT", "FROM", "DETAILS"]
    assert newest.split() == ["2026-01-02T03:04:07Z", "key-rotated", "ops", "crm", "-", "-"]
    assert oldest.endswith("192.0.2.7  uses=2 scopes=search,admin")


def test_what_was_typed_is_asked(trail, capsys):
    assert run("--kind", "a", "--actor", "b", "--subject", "c", "--since", "1970-01-02") == 0
    [asked] = trail.asked
    assert asked == {
        "kind": "a",
        "actor": "b",
        "subject": "c",
        "since": 86_400_000,
        "after": "",
        "limit": 50,
    }
    assert capsys.readouterr().err == "no entries match\n"
    assert run("--limit", "0") == 2
    assert run("--since", "soon") == 2


def test_more_than_was_asked_for_is_said(trail, capsys):
    trail.entries = [entry(n) for n in range(5)]
    assert run("--limit", "2") == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 3
    assert told.err == "2 of 5; --limit shows more\n"


def test_json_is_the_page(trail, capsys):
    trail.entries = [entry(1)]
    assert run("--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert page["total"] == 1
    assert page["entries"][0]["details"] == {"uses": 2, "scopes": ["search", "admin"]}


def following(trail, *rounds):
    first = trail.audit

    async def after_the_first(**query):
        answer = await first(**query)
        trail.following = True
        return answer

    trail.audit = after_the_first
    trail.rounds = list(rounds)


def shown(capsys) -> list[str]:
    return [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]


def test_follow_goes_on_until_ctrl_c_each_entry_once_oldest_first(trail, capsys):
    trail.entries = [entry(1), entry(2)]
    following(
        trail,
        lambda: None,
        lambda: trail.entries.append(entry(40)),
        lambda: trail.entries.extend([entry(42), entry(41)]),
    )
    assert run("--follow", "--json") == 0
    assert shown(capsys) == ["id-0001", "id-0002", "id-0040", "id-0041", "id-0042"]


def test_follow_shows_an_entry_that_another_master_wrote_late(trail, capsys):
    trail.entries = [entry(1)]
    following(
        trail,
        lambda: trail.entries.append(entry(45)),
        lambda: trail.entries.append(entry(44)),
    )
    assert run("--follow", "--json") == 0
    assert shown(capsys) == ["id-0001", "id-0045", "id-0044"]


def test_follow_begins_with_an_empty_trail(trail, capsys):
    following(trail, lambda: None, lambda: trail.entries.append(entry(1)), lambda: None)
    assert run("--follow", "--json") == 0
    assert shown(capsys) == ["id-0001"]


def test_follow_reads_many_in_pages(trail, capsys):
    trail.entries = [entry(1)]
    following(trail, lambda: trail.entries.extend(entry(n) for n in range(2, 2500)), *[list] * 3)
    assert run("--follow", "--json") == 0
    assert shown(capsys) == [f"id-{n:04}" for n in range(1, 2500)]


def test_follow_outlives_the_master(trail, capsys):
    def away():
        raise DisconnectedError("the broker is away")

    trail.entries = [entry(1)]
    following(trail, away, away, lambda: trail.entries.append(entry(2)))
    assert run("--follow") == 0
    told = capsys.readouterr()
    assert told.err.count("the broker is away; trying again") == 2
    heading, *rows = told.out.splitlines()
    assert heading.split()[0] == "TIME"
    assert [row.split()[0] for row in rows] == ["2026-01-02T03:04:06Z", "2026-01-02T03:04:07Z"]


def test_follow_forgets_what_it_showed_long_ago(trail):
    seen = audit._Shown()
    for number in range(5000):
        assert len(seen.fresh([entry(number)])) == 1
    assert len(seen._times) <= 12
    assert seen.fresh([entry(4999)]) == []


def test_what_somebody_calls_himself_steers_no_terminal(trail, capsys):
    trail.entries = [entry(1, actor="\x1b[2Jann\nroot")]
    assert run() == 0
    assert "\x1b" not in capsys.readouterr().out
    following(trail)
    assert run("--follow") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
