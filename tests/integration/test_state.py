"""The state folder on a real file system, with real processes holding its lock."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import structlog

from mesh import bootstrap
from mesh.adapters.state import (
    MeshFile,
    StateFolder,
    keep_private,
    read_credentials,
    read_mesh,
    write_json,
)
from mesh.errors import DisconnectedError, InvalidError, StateError
from mesh.ports import Login, Seedling

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
        bootstrap.make_credentials(state.credentials, nodes=["crm"])
        state.write_mesh(MESH)
        found = list(state.path.rglob("*"))
        assert len(found) >= 11
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


# -- credentials -----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.json")}


def seedlings(folder: Path) -> dict[str, Seedling]:
    master = bootstrap.read_master_credentials(folder / "master.json")
    return {seedling.name: seedling for seedling in master.seedlings}


def test_credentials_are_made_once_and_kept(tmp_path):
    made = bootstrap.make_credentials(tmp_path)
    first = contents(tmp_path)
    assert first.keys() == {f"{role}.json" for role in ("master", "gateway", "operator", "broker")}
    assert {file.name for file in made.files.values()} == first.keys()
    again = bootstrap.make_credentials(tmp_path)
    assert contents(tmp_path) == first
    assert again == made


def test_the_masters_know_the_operator_by_the_hash_of_his_key(tmp_path):
    bootstrap.make_credentials(tmp_path)
    operator = read_credentials(tmp_path / "operator.json")
    assert (operator.user, operator.nkey) == ("operator", "")
    assert seedlings(tmp_path) == {
        "operator": Seedling(
            name="operator",
            digest=hashlib.sha256(operator.password.encode()).hexdigest(),
            scopes=["search", "actions", "admin"],
        )
    }
    assert operator.password.encode() not in (tmp_path / "master.json").read_bytes()


def test_nodes_are_added_one_after_another(tmp_path):
    bootstrap.make_credentials(tmp_path, nodes=["crm"])
    first = contents(tmp_path)
    bootstrap.make_credentials(tmp_path, nodes=["shop", "crm"])
    second = contents(tmp_path)
    assert {name for name in second if second[name] != first.get(name)} == {
        "nodes/shop.json",
        "master.json",
    }
    known = seedlings(tmp_path)
    assert [(name, known[name].node) for name in sorted(known)] == [
        ("crm", True),
        ("operator", False),
        ("shop", True),
    ]
    (tmp_path / "nodes" / "crm.json").unlink()  # carried to another machine
    bootstrap.make_credentials(tmp_path)
    assert seedlings(tmp_path) == known


@pytest.mark.parametrize("name", ["master", "*", "a.b", "", "../x"])
def test_a_node_cannot_have_a_name_that_is_none(tmp_path, name):
    with pytest.raises(InvalidError):
        bootstrap.make_credentials(tmp_path, nodes=[name])
    assert not (tmp_path / "master.json").exists()


def test_a_file_that_is_missing_is_made_again_and_the_others_fit_it(tmp_path):
    before = bootstrap.make_credentials(tmp_path).broker
    (tmp_path / "gateway.json").unlink()
    (tmp_path / "broker.json").unlink()
    after = bootstrap.make_credentials(tmp_path).broker
    assert after.gateway != before.gateway
    assert msgspec.structs.replace(after, gateway=before.gateway) == before
    assert bootstrap.read_broker_keys(tmp_path / "broker.json") == after


def test_passwords_of_the_earlier_format_are_replaced(tmp_path):
    for user in ("master", "node", "gateway", "operator", "sys"):
        write_json(tmp_path / f"{user}.json", {"user": user, "password": "p" + "x" * 43})
    with structlog.testing.capture_logs() as logs:
        bootstrap.make_credentials(tmp_path)
    replaced = [line for line in logs if line["event"] == "mesh.credentials.replaced"]
    assert len(replaced) == 5
    assert contents(tmp_path).keys() == {
        f"{role}.json" for role in ("master", "gateway", "operator", "broker")
    }
    assert read_credentials(tmp_path / "operator.json").password.startswith("nmk_")


@pytest.mark.parametrize("role", ["master", "gateway", "operator"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"user": "x"}', b"\xff", b"[" * 9000])
def test_a_damaged_file_is_named_and_not_replaced(tmp_path, role, content):
    """A new master.json would be a new mesh."""
    bootstrap.make_credentials(tmp_path)
    (tmp_path / f"{role}.json").write_bytes(content)
    with pytest.raises(StateError, match=rf"{role}\.json is damaged"):
        bootstrap.make_credentials(tmp_path)
    assert (tmp_path / f"{role}.json").read_bytes() == content


def test_secrets_do_not_show_in_a_repr(tmp_path):
    made = bootstrap.make_credentials(tmp_path, nodes=["crm"])
    shown = repr(made) + repr(bootstrap.read_master_credentials(tmp_path / "master.json"))
    shown += "".join(repr(read_credentials(tmp_path / f"{r}.json")) for r in ("operator", "master"))
    master = json.loads((tmp_path / "master.json").read_bytes())
    secrets = [text for name, text in master.items() if name.endswith("key")]
    secrets.append(read_credentials(tmp_path / "operator.json").password)
    assert len(secrets) == 6
    assert not [secret for secret in secrets if secret in shown]


KEY = "nmk_" + "k" * 43


def test_a_bare_key_is_a_login_of_whoever_reads_it(tmp_path):
    file = tmp_path / "key"
    file.write_text(f" {KEY}\n")
    assert read_credentials(file, user="crm") == Login(user="crm", password=KEY)
    with pytest.raises(StateError, match="not whose it is") as caught:
        read_credentials(file)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        f'{{"user": "crm", "pass": "{KEY}"}}',
        f'{{"user": "", "password": "{KEY}"}}',
        f'{{"user": "crm", "password": "{KEY}", "nkey": "SU"}}',
        f'{{"user": 1, "password": "{KEY}"}}',
        f'{{"user": "crm", "password": "{KEY}"',
        f"crm:{KEY}",
        f"{KEY} {KEY}",
        "",
        "\u00e4",
    ],
)
def test_a_damaged_login_says_which_file_and_no_secret(tmp_path, content):
    (tmp_path / "crm.json").write_text(content)
    with pytest.raises(StateError, match=r"crm\.json .*password") as caught:
        read_credentials(tmp_path / "crm.json", user="crm")
    assert "nmk_k" not in str(caught.value)


def test_a_login_that_others_can_read_is_made_private(tmp_path):
    file = tmp_path / "open" / "crm.json"
    file.parent.mkdir(mode=0o755)
    write_json(file, {"user": "crm", "password": KEY})
    file.chmod(0o644)
    with structlog.testing.capture_logs() as logs:
        read_credentials(file)
        read_credentials(file)
    assert mode(file) == 0o600
    assert [line["event"] for line in logs] == ["mesh.credentials.made_private"]


def test_what_lies_behind_a_closed_door_is_left_alone(tmp_path):
    """`mesh-agent credentials --containers`: 0444 in a folder of 0700."""
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    bootstrap.make_credentials(folder, shared=True)
    with structlog.testing.capture_logs() as logs:
        read_credentials(folder / "operator.json")
    assert mode(folder / "operator.json") == 0o444
    assert logs == []


def test_a_file_of_somebody_else_is_read_and_told(tmp_path, monkeypatch):
    """As containers are given theirs."""
    file = tmp_path / "open" / "crm.json"
    file.parent.mkdir(mode=0o755)
    write_json(file, {"user": "crm", "password": KEY}, mode=0o444)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with structlog.testing.capture_logs() as logs:
        keep_private(file)
    assert mode(file) == 0o444
    assert [line["event"] for line in logs] == ["mesh.credentials.left_readable"]


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
        "tls_ca": "",
        "tls_cert": "",
        "tls_key": "",
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
