"""`mesh-agent up` with TLS at the broker, which asks for certificates, and at the gateway."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from certificates import Authority
from live_mesh import START_S, LiveMesh, clean_environment


def meshctl(*arguments, cwd, **environment) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("meshctl"), *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.timeout(180)
def test_a_whole_mesh_speaks_tls_alone(tmp_path):
    authority = Authority(tmp_path, "authority")
    server, client = authority.certify("server"), authority.certify("client")
    ours = {
        "MESH_NATS__TLS_CA": authority.file,
        "MESH_NATS__TLS_CERT": client.cert,
        "MESH_NATS__TLS_KEY": client.key,
    }
    live = LiveMesh(
        tmp_path,
        MESH_BROKER__TLS_CERT=server.cert,
        MESH_BROKER__TLS_KEY=server.key,
        MESH_BROKER__TLS_CLIENT_CA=authority.file,
        MESH_GATEWAY__TLS_CERT=server.cert,
        MESH_GATEWAY__TLS_KEY=server.key,
        **ours,
    )
    live.start()
    try:
        told = live.file()
        assert told["nats_url"].startswith("tls://")
        assert told["http_url"].startswith("https://")
        with httpx.Client(verify=ssl.create_default_context(cafile=authority.file)) as http:
            assert http.get(f"{told['http_url']}/readyz").status_code == 200
        with httpx.Client() as http, pytest.raises(httpx.ConnectError):
            http.get(f"{told['http_url']}/readyz")

        live.add("crm")
        until = time.monotonic() + START_S
        ping = ["--state-dir", live.state, "nodes", "ping", "crm"]
        while (here := meshctl(*ping, cwd=tmp_path)).returncode:
            assert time.monotonic() < until, here.stderr
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        at = ["--url", told["nats_url"], "--creds", told["credentials"]["operator"]]
        there = meshctl(*at, "nodes", "stats", cwd=elsewhere, **ours)
        assert there.returncode == 0, there.stderr
        without_ca = meshctl(*at, "nodes", "stats", cwd=elsewhere)
        without_own = meshctl(
            *at, "nodes", "stats", cwd=elsewhere, MESH_NATS__TLS_CA=authority.file
        )
        assert without_ca.returncode == 4
        assert without_own.returncode in {3, 4}, "the broker may hang up before it says why"
        plain = ["--url", told["nats_url"].replace("tls://", "nats://"), *at[2:]]
        assert meshctl(*plain, "nodes", "stats", cwd=elsewhere).returncode != 0
    finally:
        live.stop()
