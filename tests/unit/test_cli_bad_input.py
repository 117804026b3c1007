"""Settings of routing that cannot be: refused with their names, before anything is connected."""

from __future__ import annotations

import pytest

from cli import mesh_agent


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("routing.strategy", "fastest"),
        ("routing.max_attempts", "0"),
        ("routing.retry_budget", "1.5"),
        ("routing.hedge_quantile", "1"),
        ("breaker.failure_threshold", "0"),
        ("breaker.success_threshold", "0"),
        ("breaker.retry_timeout_s", "-1"),
        ("health.flap_after", "0"),
        ("master.lease_ttl_s", "0"),
        ("node.weight", "-1"),
    ],
)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_setting_that_cannot_be_is_refused_by_its_name(
    *, tmp_path, monkeypatch, capsys, key, value, source
):
    monkeypatch.chdir(tmp_path)
    section, _, name = key.partition(".")
    if source == "environment":
        shown = f"MESH_{section}__{name}".upper()
        monkeypatch.setenv(shown, value)
    else:
        shown = key
        written = f'"{value}"' if value.isalpha() else value
        (tmp_path / "mesh.toml").write_text(f"[{section}]\n{name} = {written}\n")

    with pytest.raises(SystemExit) as ended:
        mesh_agent.main(["gateway"])

    assert ended.value.code == 2
    assert shown in capsys.readouterr().err


def test_a_flag_that_cannot_be_is_refused_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        mesh_agent.main(["run", "--name", "crm", "--weight", "-1"])

    assert ended.value.code == 2
    assert "node.weight" in capsys.readouterr().err
