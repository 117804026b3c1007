from __future__ import annotations

import json

import pytest
from cli_fake_mesh import FakeMesh

from cli import connection, mesh_agent
from cli.meshctl.app import run
from cli.meshctl.failures import exit_code, guard
from mesh import errors
from mesh.config import NatsConfig, NodeConfig


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadRequestError(), 2),
        (errors.NotFoundError(), 2),
        (errors.ConflictError(), 2),
        (errors.TooLargeError(), 2),
        (errors.InvalidError(), 2),
        (errors.ConfigError(), 2),
        (errors.UnauthorizedError(), 4),
        (errors.ForbiddenError(), 4),
        (errors.DisconnectedError(), 3),
        (connection.NotReachableError(), 3),
        (errors.NoMasterError(), 3),
        (errors.ActionFailedError(), 1),
        (errors.NoRespondersError(), 1),
        (errors.UnavailableError(), 1),
        (errors.OverloadedError(), 1),
        (errors.DeadlineExceededError(), 1),
        (errors.InterruptedActionError(), 1),
        (errors.InternalError(), 1),
    ],
)
def test_exit_codes(error, code, monkeypatch):
    assert exit_code(error) == code

    monkeypatch.setattr(mesh_agent, "app", lambda *_args, **_options: failing(error)())
    with pytest.raises(SystemExit) as ended:
        mesh_agent.main([])
    assert ended.value.code == code, "one table for both commands"


def failing(error):
    def command():
        raise error

    return command


def test_an_error_in_json_names_fields_and_reference(capsys):
    error = errors.InvalidError("weight: too big", fields={"weight": ["too big"]}, reference="r1")

    assert guard(failing(error), as_json=True, debug=False) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": "Invalid",
        "kind": "invalid",
        "message": "weight: too big",
        "fields": {"weight": ["too big"]},
        "reference": "r1",
    }
    assert captured.err == ""


def test_an_error_for_people_is_on_stderr_and_tells_each_thing_once(capsys):
    error = errors.InvalidError("2 are wrong", fields={"weight": ["too big"], "name": ["taken"]})

    guard(failing(error), as_json=False, debug=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: 2 are wrong\n  weight: too big\n  name: taken\n"


def test_a_bug_is_one_line_and_its_traceback_is_for_debug(capsys):
    assert guard(failing(ZeroDivisionError("oh")), as_json=False, debug=False) == 1
    quiet = capsys.readouterr().err
    assert guard(failing(ZeroDivisionError("oh")), as_json=False, debug=True) == 1
    loud = capsys.readouterr().err

    assert quiet == (
        "error: this is a bug: ZeroDivisionError: oh (--debug or MESH_DEBUG=1 shows where)\n"
    )
    assert "Traceback" in loud


def test_ctrl_c_is_quiet(capsys):
    assert guard(failing(KeyboardInterrupt()), as_json=False, debug=False) == 130
    assert capsys.readouterr() == ("", "")


def test_no_mesh_is_exit_3_and_says_what_to_do(tmp_path, capsys):
    assert run(["nodes", "list", "--state-dir", str(tmp_path)]) == 3
    assert "mesh-agent up" in capsys.readouterr().err
    assert run(["--json", "--state-dir", str(tmp_path), "nodes", "list"]) == 3
    assert json.loads(capsys.readouterr().out)["kind"] == "not_reachable"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnauthorizedError("refused"), 4),
        (errors.DisconnectedError("no broker at nats://127.0.0.1:1"), 3),
        (errors.DeadlineExceededError("silence"), 3),
        (errors.StateError("mesh.json is damaged"), 3),
    ],
)
def test_what_connecting_can_meet(error, code, monkeypatch, capsys):
    mesh = FakeMesh()
    mesh.failure = error
    monkeypatch.setattr(connection, "connect", lambda _options: mesh)

    assert run(["nodes", "stats"]) == code
    assert str(error) in capsys.readouterr().err


def test_a_master_that_is_away_is_told_from_a_node_that_is(monkeypatch, capsys):
    mesh = FakeMesh()

    async def nobody(**_query):
        raise errors.NoRespondersError("nobody listens")

    mesh.nodes = nobody
    monkeypatch.setattr(connection, "connect", lambda _options: mesh)

    assert run(["nodes", "list", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "no_master"
    assert "no master answers" in answer["message"]


@pytest.mark.parametrize("typed", [["nodes", "lst"], ["bogus"], ["search"], ["search", "q", "--x"]])
def test_wrong_usage_is_exit_2_also_in_json(typed, capsys):
    assert run(typed) == 2
    assert "Usage: meshctl" in capsys.readouterr().err
    assert run([*typed, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["kind"] == "usage"


@pytest.mark.parametrize(
    "typed", [["nodes", "list"], ["search"], ["collections", "import"], ["actions", "run"], []]
)
def test_help_of_every_command_mentions_the_common_options(typed, capsys):
    assert run([*typed, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--json", "--url", "--state-dir", "--creds"))


def test_whoever_may_not_is_told_of_scopes_and_not_of_files(capsys):
    guard(failing(errors.ForbiddenError("no")), as_json=False, debug=False)
    told = capsys.readouterr().err
    assert "an operator gives it" in told
    assert "--creds" not in told


@pytest.mark.parametrize("content", [None, "", "junk", '{"user": "ann"}', "nmk_x"])
@pytest.mark.parametrize("how", ["--creds", "MESH_NATS__CREDENTIALS"])
def test_a_credentials_file_that_cannot_be_is_no_missing_mesh(
    tmp_path, monkeypatch, capsys, content, how
):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    given = ["--creds", str(file)] if how == "--creds" else []
    monkeypatch.setenv("MESH_NATS__CREDENTIALS", "" if given else str(file))
    assert run(["nodes", "list", "--url", "nats://127.0.0.1:1", *given]) == 2
    told = capsys.readouterr().err
    assert str(file) in told
    assert "mesh-agent up" not in told


def test_calls_of_a_command_are_made_as_file_and_environment_say(tmp_path, monkeypatch):
    """How agents log in, and what else the file says of them, is not a command's business."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh.toml").write_text(
        "[routing]\nstrategy = 'random'\nmax_attempts = 2\n[search]\ntimeout_ms = 5\n"
        "[nats]\nservers = ['nats://agents:1']\n[node]\nname = 'crm'\n"
    )
    monkeypatch.setenv("MESH_ROUTING__MAX_ATTEMPTS", "4")
    monkeypatch.setenv("MESH_BREAKER__FAILURE_THRESHOLD", "7")
    monkeypatch.setenv("MESH_NODE__WEIGHT", "not theirs to read")
    given = []
    monkeypatch.setattr(connection.mesh, "connect", lambda *_, **named: given.append(named))
    connection.connect(connection.Options())
    config = given[0]["config"]
    assert (config.routing.strategy, config.routing.max_attempts) == ("random", 4)
    assert (config.breaker.failure_threshold, config.search.timeout_ms) == (7, 5)
    assert (config.nats, config.node) == (NatsConfig(), NodeConfig())


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_strategy_that_is_none_names_those_there_are(tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    if how == "file":
        (tmp_path / "mesh.toml").write_text("[routing]\nstrategy = 'fastest'\n")
    else:
        monkeypatch.setenv("MESH_ROUTING__STRATEGY", "fastest")
    assert run(["nodes", "list", "--url", "nats://127.0.0.1:1"]) == 2
    assert "'fastest' is none of p2c, round_robin, " in capsys.readouterr().err


def test_an_address_that_cannot_be_is_wrong_usage_and_shows_no_password(capsys):
    assert run(["nodes", "list", "--url", "nats://ann:geheim@127.0.0.1:1"]) == 2
    told = capsys.readouterr()
    assert "--url" in told.err
    assert "geheim" not in told.err + told.out


def test_an_open_breaker_says_when_it_is_tried_again(capsys):
    error = errors.CircuitOpenError("search: not sent", retry_after_ms=1001)

    assert guard(failing(error), as_json=False, debug=False) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: search: not sent",
        "  tried again in 2 s",
    ]
    assert guard(failing(error), as_json=True, debug=False) == 1
    assert json.loads(capsys.readouterr().out)["retry_after_ms"] == 1001
