"""The README's snippets and commands, run as a newcomer would paste them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import mesh

pytestmark = pytest.mark.timeout(120)

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
READY_WITHIN_S = 60
MESHCTL = ".venv/bin/meshctl "


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def snippet(file: str) -> str:
    """The Python block that says to be saved as `file`."""
    (found,) = [code for code in blocks("python") if code.startswith(f"# {file}\n")]
    return found


def commands(section: str) -> list[str]:
    """Lines of the shell blocks under a heading, without those that run on for ever."""
    (body,) = re.findall(rf"^### {section}\n(.*?)(?=^##)", README, re.DOTALL | re.MULTILINE)
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)).splitlines()
    return [line for line in lines if line.startswith(MESHCTL)]


def scripts(section: str) -> list[str]:
    """The shell blocks under a heading, whole."""
    (body,) = re.findall(rf"^### {section}\n(.*?)(?=^##)", README, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return clean | {"MESH_SEARCH__EMBEDDER": "hash"}


class Answer(NamedTuple):
    code: int
    out: str
    err: str


class Newcomer:
    """A folder with the README's files, a mesh without sample nodes, and the README's node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        for file in ("crm.py", "ask.py", "plain.py"):
            (folder / file).write_text(snippet(file), encoding="utf-8")
        (notes,) = blocks("jsonl")
        (folder / "notes.jsonl").write_text(notes, encoding="utf-8")
        (folder / ".venv").symlink_to(BIN.parent)

    def begin(self, command: str) -> None:
        """Start a command that runs on."""
        program, *arguments = shlex.split(command)
        with (self.folder / f"{len(self.processes)}.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [BIN / Path(program).name, *arguments],
                    cwd=self.folder,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def __call__(self, command: str) -> Answer:
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [BIN / Path(program).name, *arguments],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def shell(self, script: str) -> Answer:
        """Pasted into a shell, with the gateway's address as it is here."""
        place = json.loads((self.folder / ".mesh" / "mesh.json").read_bytes())
        done = subprocess.run(
            ["sh", "-eu"],
            input=script.replace("http://127.0.0.1:8080", place["http_url"]),
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def wait(self, what: str, command: str) -> None:
        """Until the answer to `command` holds `what`."""
        until = time.monotonic() + READY_WITHIN_S
        while what not in (answer := self(command)).out:
            logs = "".join(log.read_text()[-3000:] for log in self.folder.glob("*.log"))
            assert time.monotonic() < until, f"{answer}\n{logs}"

    def end(self) -> None:
        for process in reversed(self.processes):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Iterator[Newcomer]:
    someone = Newcomer(tmp_path_factory.mktemp("readme"))
    try:
        someone.begin("mesh-agent up --state-dir .mesh --nats-port 0 --http-port 0 --nodes 0")
        until = time.monotonic() + READY_WITHIN_S
        while not (someone.folder / ".mesh" / "mesh.json").exists():
            assert time.monotonic() < until, (someone.folder / "0.log").read_text()
            time.sleep(0.05)
        (run_node,) = [line for line in "".join(blocks("sh")).splitlines() if "-agent run" in line]
        someone.begin(run_node)
        someone.wait("n1", f"{MESHCTL} search invoice --collection notes")
        yield someone
    finally:
        someone.end()


def test_the_node_is_written_in_ten_lines():
    code = [line for line in snippet("crm.py").splitlines() if line and not line.startswith("#")]
    assert len(code) <= 10


def test_own_node_and_action(newcomer):
    *good, wrong = commands("Your own node with your own action")
    for command in good:
        answer = newcomer(command)
        assert answer.code == 0, (command, answer)
    assert '"refunded": 500' in answer.out
    refused = newcomer(wrong)
    assert refused.code == 2
    (told,) = [text for text in blocks("text") if text.startswith("error: ")]
    assert refused.err == told, "the README shows another message"


def test_documents_by_hand(newcomer):
    index, lost, update, found, delete, gone, history = map(
        newcomer, commands("Change documents, and see what was done")
    )
    assert (index.code, update.code, delete.code) == (0, 0, 0)
    assert "n3" in lost.out
    assert "n3" in found.out
    assert "found the parcel" in found.out
    assert "nothing found" in gone.out
    rows = [line.split() for line in history.out.splitlines()]
    newest_first = ["delete", "update", "index"]
    assert [row[3] for row in rows[1:] if row[5] == "operator"][:3] == newest_first
    assert rows[0] == ["TIME", "ID", "NODE", "ACTION", "STATE", "CALLER", "DURATION", "MS"]


def test_the_same_key_runs_once(newcomer):
    first, second, history = map(newcomer, commands("The same key runs once"))
    assert (first.code, history.code) == (0, 0)
    assert second == first
    records = json.loads(newcomer(f"{MESHCTL} actions history --id refund-A-7 --json").out)
    assert [record["attempt"] for record in records["actions"]] == [1]


def test_a_node_that_is_away(newcomer):
    queued, shown, described = commands("A node that is away")
    answer = newcomer(queued)
    assert answer.code == 0, answer
    assert "queued" in answer.out
    assert "actions show refund-A-7-later" in answer.err
    newcomer.wait("succeeded", shown)
    assert "cents" in newcomer(described).out


def test_over_http(newcomer):
    answer = newcomer.shell("".join(scripts("Over HTTP, with curl")))
    assert answer.code == 0, answer
    *answers, table = answer.out.split("\n", 9)
    health, late, index, lamp, update, shining, delete, refund, history = map(json.loads, answers)
    assert health["status"] == "healthy"
    assert late["results"][0]["id"] == "n1"
    assert index["result"]["indexed"] == 1
    assert "flickers" in lamp["results"][0]["content"]
    assert update["result"]["updated"] == 1
    assert "shines again" in shining["results"][0]["content"]
    assert delete["result"]["deleted"] == 1
    assert (refund["id"], refund["result"]["refunded"]) == ("refund-A-9", 700)
    assert [record["action"] for record in history["actions"]] == [
        "refund", "delete", "update", "index",
    ]  # fmt: skip
    assert {record["caller"] for record in history["actions"]} == {"webshop"}
    assert "webshop" in table


@pytest.mark.parametrize(
    ("file", "told"), [("ask.py", "'refunded': 900"), ("plain.py", "Acme paid invoice 1042")]
)
def test_clients(newcomer, file, told):
    answer = newcomer(f"python {file}")
    assert answer.code == 0, answer.err
    assert told in answer.out


def test_links_lead_to_files():
    top = Path(mesh.__file__).parents[1]
    pages = [top / "README.md", top / "CHANGELOG.md", *(top / "docs").rglob("*.md")]
    missing = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert missing == []
