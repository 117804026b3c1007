from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesh.adapters.settings import (
    BROKER_PREFIX,
    NOT_SETTINGS,
    load_settings,
    load_with_sources,
    setting_types,
    variable,
)
from mesh.config import MeshConfig
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
        ("[search]\nmerge_strategy = 'best'", "search.merge_strategy: invalid enum value 'best'"),
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
    assert set(examples()) == settings | NOT_SETTINGS | broker


def test_env_example_shows_the_defaults():
    settings = {
        name: text for name, text in examples().items() if not name.startswith(BROKER_PREFIX)
    }
    assert load(environ=settings) == MeshConfig()


def test_env_example_says_what_each_setting_is():
    """A comment stands above every variable; those with a number say their unit."""
    text = (TOP / ".env.example").read_text()
    numbers = re.findall(r"((?:^# .*\n)+)#(MESH_(?!BROKER)\w+)=\d+(?:\.\d+)?$", text, re.MULTILINE)
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
