"""The state folder on a real file system, with real processes holding its lock."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mesh.adapters.state import (
    Credentials,
    MeshFile,
    StateFolder,
    read_credentials,
    read_mesh,
    write_json,
)
from mesh.errors import DisconnectedError, StateError

MESH = MeshFile(
    nats_url="nats://127.0.0.1:4222",
    credentials={"operator": "/x/operator.json"},
    pids={"broker": 1},
    started_at="2026-01-01T00:00:00Z",
    version="0.1.0",
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def as_nobody():
    """Root may write anywhere: be somebody else where it matters."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_everything_in_it_is_private(tmp_path):
    with StateFolder(tmp_path / "deep" / "mesh") as state:
        state.credentials(["node"])
        state.write_mesh(MESH)
        found = list(state.path.rglob("*"))
        assert len(found) >= 6
        wrong = {p: mode(p) for p in found if mode(p) != (0o700 if p.is_dir() else 0o600)}
        assert wrong == {}
        assert mode(state.path) == 0o700


@pytest.mark.usefixtures("as_nobody")
def test_a_folder_that_cannot_be_written_says_what_to_do():
    with (
        pytest.raises(StateError, match=r"cannot be used: Permission.*writable.*--state-dir"),
        StateFolder(Path("/nodemesh-test")),
    ):
        pass


def test_a_file_in_its_place_says_what_to_do(tmp_path):
    (tmp_path / "mesh").write_text("")
    with (
        pytest.raises(StateError, match=r"mesh cannot be used.*--state-dir"),
        StateFolder(tmp_path / "mesh"),
    ):
        pass


def test_a_second_start_is_refused_with_the_pid_of_the_first(tmp_path):
    with (
        StateFolder(tmp_path),
        pytest.raises(StateError, match=rf"in use by pid {os.getpid()}: stop.*--state-dir"),
        StateFolder(tmp_path),
    ):
        pass
    with StateFolder(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mesh.adapters.state import StateFolder\n"
        "with StateFolder(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match=f"pid {holder.pid}"), StateFolder(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with StateFolder(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_children_do_not_inherit_the_lock(tmp_path):
    """A child that outlives its parent would keep the folder taken."""
    with StateFolder(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with StateFolder(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_credentials_are_made_once_and_kept(tmp_path):
    first = StateFolder(tmp_path)
    first.create()
    made = first.credentials(["node", "master"])
    assert len({login.password for login in made.values()}) == 2
    assert all(len(login.password) >= 43 for login in made.values())

    again = StateFolder(tmp_path).credentials(["master", "node"])
    assert again == made
    assert read_credentials(first.credentials_file("node")) == made["node"]
    assert json.loads(first.credentials_file("node").read_bytes()).keys() == {"user", "password"}
    assert first.credentials_file("node").is_absolute()


def test_a_password_does_not_show_in_a_repr():
    assert "geheim" not in repr(Credentials(user="u", password="geheim"))


def test_a_damaged_credentials_file_says_which(tmp_path):
    state = StateFolder(tmp_path)
    state.create()
    state.credentials_file("node").write_text('{"user": "node"}')
    with pytest.raises(StateError, match=r"node\.json is damaged.*password"):
        state.credentials(["node"])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"nats_url": 1}'])
def test_a_damaged_mesh_file_says_so(tmp_path, content):
    (tmp_path / "mesh.json").write_bytes(content)
    with pytest.raises(StateError, match=r"mesh\.json is damaged"):
        read_mesh(tmp_path)


def test_without_a_mesh_it_says_how_to_start_one(tmp_path):
    with pytest.raises(DisconnectedError, match=r"no mesh\.json in .*`mesh-agent up`.*--url"):
        read_mesh(tmp_path)


def test_the_mesh_file_goes_round_and_has_every_key(tmp_path):
    state = StateFolder(tmp_path)
    state.create()
    state.write_mesh(MESH)
    assert read_mesh(tmp_path) == MESH
    assert json.loads((tmp_path / "mesh.json").read_bytes()) == {
        "nats_url": "nats://127.0.0.1:4222",
        "http_url": None,
        "credentials": {"operator": "/x/operator.json"},
        "pids": {"broker": 1},
        "started_at": "2026-01-01T00:00:00Z",
        "version": "0.1.0",
    }
    state.remove_mesh()
    state.remove_mesh()
    assert not (tmp_path / "mesh.json").exists()


def test_a_newer_mesh_file_is_readable(tmp_path):
    write_json(tmp_path / "mesh.json", {"of_tomorrow": 1, **json.loads(_encoded())})
    assert read_mesh(tmp_path) == MESH


def _encoded() -> bytes:
    state = json.dumps({name: getattr(MESH, name) for name in MESH.__struct_fields__})
    return state.encode()


def test_readers_never_see_half_a_file(tmp_path):
    file = tmp_path / "mesh.json"
    sizes = (10, 50_000)
    write_json(file, ["x" * sizes[0]])
    done = threading.Event()

    def write() -> None:
        for turn in range(100):
            write_json(file, ["x" * sizes[turn % 2]])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(len(json.loads(file.read_bytes())[0]))
    writer.join()
    assert seen <= set(sizes)
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": True})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    with pytest.raises(StateError, match=r"b\.json cannot be written: No such file"):
        write_json(tmp_path / "missing" / "b.json", {})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"old": True}
