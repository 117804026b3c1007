from __future__ import annotations

import json
import re
import traceback
from pathlib import Path

import pytest

from mesh.adapters.settings import (
    ALIASES,
    BROKER_PREFIX,
    NOT_SETTINGS,
    load_settings,
    load_with_sources,
    of_broker,
    setting_types,
    variable,
)
from mesh.config import SECRETS, MeshConfig
from mesh.errors import ConfigError

TOP = Path(__file__).parents[2]


def load(*, toml=None, environ=(), flags=()) -> MeshConfig:
    return load_settings(toml=toml, environ=dict(environ), flags=dict(flags))


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mesh.toml"
        path.write_text(text)
        return path

    return write


def test_nothing_given_is_the_defaults():
    assert load() == MeshConfig()


def test_flags_go_over_environment_over_file(toml):
    file = toml("[node]\nname = 'file'\nweight = 2\ntype = 'app'\n[search]\ntimeout_ms = 5\n")
    loaded = load_with_sources(
        toml=file,
        environ={"MESH_NODE__NAME": "variable", "MESH_NODE__WEIGHT": "3"},
        flags={"node.name": "flag", "node.shard": None},
    )
    node = loaded.config.node
    assert (node.name, node.weight, node.type, node.shard) == ("flag", 3.0, "app", "")
    assert loaded.config.search.timeout_ms == 5
    assert loaded.sources == {
        "node.name": "flag node.name",
        "node.weight": "MESH_NODE__WEIGHT",
        "node.type": f"{file}: node.type",
        "search.timeout_ms": f"{file}: search.timeout_ms",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MESH_NODE__MAX_PARALLEL_REQUESTS", "4", 4),
        ("MESH_NODE__WEIGHT", "0.5", 0.5),
        ("MESH_NODE__NAME", "12", "12"),
        ("MESH_SEARCH__DEDUPLICATE", "false", False),
        ("MESH_SEARCH__DEDUPLICATE", "0", False),
        ("MESH_SEARCH__MERGE_STRATEGY", "round_robin", "round_robin"),
        ("MESH_NODE__CAPABILITIES", "search, rag", ["search", "rag"]),
        ("MESH_NODE__CAPABILITIES", '["search", "a,b"]', ["search", "a,b"]),
        ("MESH_NATS__SERVERS", "nats://a:1,nats://b:2", ["nats://a:1", "nats://b:2"]),
    ],
)
def test_the_environment_is_read_by_the_settings_type(name, text, value):
    config = load(environ={name: text})
    section, key = name.removeprefix("MESH_").lower().split("__")
    assert getattr(getattr(config, section), key) == value


def test_an_empty_variable_is_not_set():
    assert load(environ=dict.fromkeys(map(variable, setting_types()), "")) == MeshConfig()


def test_variables_that_are_no_settings_pass():
    passing = {*NOT_SETTINGS, BROKER_PREFIX + "LISTEN", "MESHED", "HOME", "AI_ENGINE_X"}
    assert load(environ=dict.fromkeys(passing, "x")) == MeshConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[node]\nmax_paralel = 1", "node.max_paralel: unknown key; did you mean max_parallel_req"),
        ("[nodes]\nname = 'x'", "nodes: unknown key; did you mean node?"),
        ("zebra = 1", "zebra: unknown key"),
        ("node = 1", "node: is a table, write [node]"),
        ("[node]\nweight = 'heavy'", "node.weight: expected float, got str"),
        ("[node]\nweight = '2'", "node.weight: expected float, got str"),
        ("[node]\nweight = 0", "node.weight: expected float > 0.0"),
        ("[node]\nweight = nan", "node.weight: expected float"),
        ("[node]\nweight = true", "node.weight: expected float, got bool"),
        ("[node]\nmax_parallel_requests = 0", "node.max_parallel_requests: expected int >= 1"),
        ("[node]\ncapabilities = ['a', 1]", "node.capabilities: expected str, got int at [1]"),
        ("[node]\ncapabilities = 'search'", "node.capabilities: expected array, got str"),
        ("[nats]\nservers = 'x'", "nats.servers: expected array, got str"),
        (
            "[search]\nmerge_strategy = 'best'",
            "search.merge_strategy: 'best' is none of score, round_robin",
        ),
        ("[routing]\nstrategy = 'best'", "routing.strategy: 'best' is none of p2c, round_robin, "),
        ("[routing]\nstrategy = 1", "routing.strategy: expected str, got int"),
        ("[routing]\nmax_attempts = 0", "routing.max_attempts: expected int >= 1"),
        ("[routing]\nretry_budget = 1.5", "routing.retry_budget: expected float <= 1.0"),
        ("[breaker]\nfailure_threshold = 0", "breaker.failure_threshold: expected int >= 1"),
        ("[node]\nweight = -1", "node.weight: expected float > 0.0"),
        ("[node\n", "not TOML: "),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_key_and_file(toml, text, message):
    path = toml(text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")):
        load(toml=path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(toml=tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: cannot be read: not UTF-8"):
        load(toml=tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "MESH_ROUTING__STRATEGY",
            "fastest",
            "'fastest' is none of p2c, round_robin, least_connections, weighted, response_time, ",
        ),
        ("MESH_HEALTH__HEARTBEAT_INTERVAL_S", "soon", "expected float, got str"),
        ("MESH_HEALTH__HEARTBEAT_INTERVAL_S", "-1", "expected float > 0.0"),
        ("MESH_HEALTH__HEARTBEAT_INTERVAL_S", "nan", "expected float > 0.0"),
        ("MESH_NODE__MAX_PARALLEL_REQUESTS", "1.5", "expected int"),
        ("MESH_NODE__CAPABILITIES", "[search", "not a JSON list"),
        ("MESH_NODE__CAPABILITIES", "[1]", "expected str, got int at [0]"),
        ("MESH_SEARCH__DEDUPLICATE", "maybe", "expected bool, got str"),
        ("MESH_NODE_WEIGHT", "1", "unknown key; did you mean MESH_NODE__WEIGHT?"),
        ("MESH_NODE__WEIHGT", "1", "unknown key; did you mean MESH_NODE__WEIGHT?"),
        ("MESH_STATEDIR", "x", "unknown key; did you mean MESH_STATE_DIR?"),
        ("MESH_QQQQQQ", "", "unknown key"),
    ],
)
def test_a_variable_that_cannot_be_is_refused_by_its_name(name, text, message):
    with pytest.raises(ConfigError, match=re.escape(f"{name}: {message}")):
        load(environ={name: text})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("node.weight", 0.0, "flag node.weight: expected float > 0.0"),
        ("node.wait", 1, "flag node.wait: unknown key; did you mean node.weight?"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_by_its_key(key, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(flags={key: value})


def test_a_rule_between_keys_names_all_that_were_given(toml):
    file = toml("[health]\nsuspect_after_intervals = 5\n")
    with pytest.raises(ConfigError, match="must exceed") as refused:
        load(toml=file, environ={"MESH_HEALTH__UNREACHABLE_AFTER_INTERVALS": "4"})
    assert f"{file}: health.suspect_after_intervals" in str(refused.value)
    assert "MESH_HEALTH__UNREACHABLE_AFTER_INTERVALS" in str(refused.value)


def examples() -> dict[str, str]:
    lines = (TOP / ".env.example").read_text().splitlines()
    found = [re.fullmatch(r"#(MESH_\w+)=(.*)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_env_example_lists_every_variable():
    broker = set(re.findall(r"\$(MESH_BROKER_\w+)", (TOP / "nats-server.conf").read_text()))
    settings = set(map(variable, setting_types()))
    assert broker
    assert set(examples()) == settings | NOT_SETTINGS | set(ALIASES) | broker


def test_env_example_shows_the_defaults():
    settings = {name: text for name, text in examples().items() if not of_broker(name)}
    assert load(environ=settings) == MeshConfig()


def test_env_example_says_what_each_setting_is():
    """A comment stands above every variable; those with a number say their unit."""
    text = (TOP / ".env.example").read_text()
    numbers = re.findall(
        r"((?:^# .*\n)+)#(MESH_(?!BROKER_[A-Z])\w+)=\d+(?:\.\d+)?$", text, re.MULTILINE
    )
    assert len(numbers) == sum(
        bool(re.fullmatch(r"\d+(\.\d+)?", value)) for name, value in examples().items()
    )
    units = re.compile(r"seconds|milliseconds|count|bytes|days|intervals|number", re.IGNORECASE)
    assert [name for comment, name in numbers if not units.search(comment)] == []


def test_the_reference_has_a_row_for_every_setting():
    """With its variable beside it, and its default where that is a plain value."""
    rows = re.findall(
        r"^\| `([a-z_]+\.[a-z_]+)` \| (.*?) \|.*\| `(MESH_\w+)` \|$",
        (TOP / "docs" / "reference.md").read_text(),
        re.MULTILINE,
    )
    assert {key: name for key, _, name in rows} == {key: variable(key) for key in setting_types()}
    config, wrong = MeshConfig(), {}
    for key, shown, _ in rows:
        section, name = key.split(".")
        default = getattr(getattr(config, section), name)
        plain = shown.strip("`")
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if (number and float(plain) != default) or (
            isinstance(default, bool) and plain != str(default).lower()
        ):
            wrong[key] = (shown, default)
    assert wrong == {}


def test_what_clients_of_the_gateway_export_stops_no_agent():
    names = ("MESH_TOKEN", "MESH_REFRESH_TOKEN", "MESH_JOIN_TOKEN", "MESH_HTTP_URL")
    assert load(environ=dict.fromkeys(names, "x")) == MeshConfig()


# -- secrets ---------------------------------------------------------------------------------------

SECRET = "-".join(["s3cret"] * 6)  # written like that nowhere a traceback could quote it


def test_every_secret_is_a_setting():
    assert {key.rpartition(".")[2] for key in setting_types()} >= SECRETS


def test_the_broker_s_own_settings_are_not_taken_for_variables_of_its_configuration():
    files = {"MESH_BROKER__TLS_CERT": "c.pem", "MESH_BROKER__TLS_KEY": "k.pem"}
    config = load(environ=files | {"MESH_BROKER_TLS": "x"})
    assert (config.broker.tls_cert, config.broker.tls_key) == ("c.pem", "k.pem")
    with pytest.raises(ConfigError, match="MESH_BROKER__TLS: unknown key"):
        load(environ={"MESH_BROKER__TLS": "x"})


@pytest.mark.parametrize(
    "environ",
    [
        {"MESH_JWT_SECRET": SECRET},
        {"MESH_JWT_SECRET": SECRET, "MESH_SECURITY__JWT_SECRET": SECRET},
        {"MESH_JWT_SECRET": SECRET, "MESH_SECURITY__JWT_SECRET": ""},
        {"MESH_JWT_SECRET": "", "MESH_SECURITY__JWT_SECRET": SECRET},
    ],
    ids=["alias alone", "both alike", "long one empty", "alias empty"],
)
def test_the_jwt_secret_has_a_short_name_too(environ):
    assert load(environ=environ).security.jwt_secret == SECRET


def test_two_jwt_secrets_are_refused_by_their_names():
    with pytest.raises(ConfigError, match="MESH_JWT_SECRET and MESH_SECURITY__JWT") as refused:
        load(environ={"MESH_JWT_SECRET": SECRET, "MESH_SECURITY__JWT_SECRET": SECRET[::-1]})
    assert_silent(refused.value, SECRET, SECRET[::-1])


def test_the_short_name_goes_over_the_file(toml):
    file = toml(f"[security]\njwt_secret = '{SECRET}'\n")
    file.chmod(0o600)
    loaded = load_with_sources(toml=file, environ={"MESH_JWT_SECRET": SECRET * 2}, flags={})
    assert loaded.config.security.jwt_secret == SECRET * 2
    assert loaded.sources["security.jwt_secret"] == "MESH_JWT_SECRET"


def assert_silent(error: BaseException, *secrets: str) -> None:
    """No secret in what `--debug` prints either."""
    told = "".join(traceback.format_exception(error))
    assert not [secret for secret in secrets if secret in told], told


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("security.jwt_secret", "geheim9"),
        ("security.jwt_secret", SECRET * 40),
        *(
            (f"node.{name}", value)
            for name in ("api_key", "join_token")
            for value in ("geheim9", SECRET * 40, f"nmr_{SECRET}", f"nmk_{SECRET}\n")
        ),
    ],
    ids=lambda value: f"{len(value)} characters" if "." not in value else value,
)
def test_a_secret_that_is_refused_is_not_shown(toml, key, value):
    section, name = key.split(".")
    file = toml(f"[{section}]\n{name} = {json.dumps(value)}\n")
    file.chmod(0o600)
    for given in (
        {"toml": file},
        {"environ": {variable(key): value}},
        {"flags": {key: value}},
    ):
        with pytest.raises(ConfigError, match=f"(?i){name}") as refused:
            load(**{"environ": {}, **given})
        assert_silent(refused.value, value, SECRET)


def test_a_refused_secret_says_what_is_wrong_with_it():
    for key in ("node.api_key", "node.join_token"):
        with pytest.raises(ConfigError, match=re.escape(f"{variable(key)}: is too long, or not ")):
            load(environ={variable(key): "geheim9"})


def test_a_secret_of_the_wrong_type_names_the_types(toml):
    file = toml("[security]\njwt_secret = 123456789\n")
    with pytest.raises(ConfigError, match=r"jwt_secret: expected str, got int") as refused:
        load(toml=file)
    assert_silent(refused.value, "123456789")


def test_a_short_jwt_secret_is_refused_and_not_shown():
    short = SECRET[:13]
    with pytest.raises(ConfigError, match=r"MESH_JWT_SECRET: .*at least 32 characters") as refused:
        load(environ={"MESH_JWT_SECRET": short})
    assert_silent(refused.value, short)


def test_a_configuration_shows_no_secret_when_it_is_printed():
    config = load(environ={"MESH_JWT_SECRET": SECRET, "MESH_MASTER__DATABASE": f"x://{SECRET}@y"})
    assert SECRET not in repr(config)
    assert "jwt_secret=…" in repr(config)


@pytest.mark.parametrize(
    ("mode", "text", "warned"),
    [
        (0o644, f"[security]\njwt_secret = '{SECRET}'\n", True),
        (0o640, f"[security]\njwt_secret = '{SECRET}'\n", True),
        (0o600, f"[security]\njwt_secret = '{SECRET}'\n", False),
        (0o644, "[security]\njwt_secret = ''\n", False),
        (0o644, "[node]\nweight = 2\n", False),
    ],
    ids=["all read it", "the group reads it", "its owner alone", "an empty one", "no secret"],
)
def test_a_file_with_a_secret_that_others_can_read_is_warned_about(
    toml, caplog, mode, text, warned
):
    file = toml(text)
    file.chmod(mode)
    load(toml=file)
    told = [record.getMessage() for record in caplog.records]
    assert bool(told) is warned
    if warned:
        assert "security.jwt_secret" in told[0]
        assert str(file) in told[0]
        assert SECRET not in told[0]
