from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from mesh.adapters.logs import configure_logs, redact


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(out: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_pipe_gets_json_lines_with_ids_and_utc():
    out = io.StringIO()
    configure_logs(ids={"process": "node-crm"}, stream=out)
    structlog.get_logger().info("mesh.node.started", rows=3)
    (line,) = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "mesh.node.started", "level": "info", "process": "node-crm", "rows": 3}


def test_a_terminal_gets_words():
    out = Terminal()
    configure_logs(stream=out)
    structlog.get_logger().warning("mesh.node.lost", node="crm")
    assert "mesh.node.lost" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_no_color_is_heard(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    configure_logs(stream=out)
    structlog.get_logger().warning("mesh.node.lost")
    assert "\x1b" not in out.getvalue()


def test_lines_of_libraries_come_the_same_way():
    out = io.StringIO()
    configure_logs(ids={"process": "master"}, stream=out)
    logging.getLogger("some.library").warning("slow: %d ms, nats://me:geheim@host", 7)
    logging.getLogger("sqlalchemy.engine").info("BEGIN")
    (line,) = lines(out)
    assert line["event"] == "slow: 7 ms, nats://…@host"
    assert (line["logger"], line["level"], line["process"]) == (
        "some.library",
        "warning",
        "master",
    )


@pytest.mark.parametrize(("debug", "count"), [(False, 0), (True, 1)])
def test_debug_lines_come_when_asked(debug, count):
    out = io.StringIO()
    configure_logs(debug=debug, stream=out)
    structlog.get_logger().debug("mesh.node.thought")
    assert len(lines(out)) == count


def test_a_traceback_stays_on_its_line_and_shows_no_secret():
    out = io.StringIO()
    configure_logs(stream=out)
    try:
        float("nats://node:geheim@127.0.0.1")
    except ValueError:
        structlog.get_logger().exception("mesh.node.failed", password="geheim")
    (line,) = lines(out)
    assert "ValueError" in line["exception"]
    assert "geheim" not in out.getvalue()


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "PASSWORD",
        "api_key",
        "key",
        "jwt_secret",
        "access_token",
        "tokens",
        "Authorization",
        "x-api-key",
        "a.key",
    ],
)
def test_what_is_named_like_a_secret_is_hidden_at_any_depth(key):
    shown = redact(None, "", {"a": [{"b": {key: "geheim", "kept": "text"}}], key: ["geheim"]})
    assert shown == {"a": [{"b": {key: "…", "kept": "text"}}], key: "…"}


def test_what_only_sounds_alike_is_shown():
    event = {"monkey": "x", "keyword": "x", "tokens": 12, "token": None, "secretary": "x"}
    assert redact(None, "", dict(event)) == event


def test_endless_depth_ends():
    loop: dict = {}
    loop["again"] = loop
    assert "…" in str(redact(None, "", loop))
