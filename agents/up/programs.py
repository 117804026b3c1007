"""What `mesh-agent up` runs: one `Program` for each process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agents.samples import Sample
from agents.up.child import Program
from agents.up.gateway import Place
from mesh.config import MeshConfig

if TYPE_CHECKING:
    from mesh.bootstrap import EmbeddedBroker, StateFolder

_KILL_MARGIN_S = 5.0
_OF_OTHER_NODES = (
    "MESH_CREDS",
    "MESH_NATS__CREDENTIALS",
    "MESH_NODE__API_KEY",
    "MESH_NODE__JOIN_TOKEN",
)
"""What may say in this shell how some node or person logs in; the sample nodes have their own."""
_BROKER, _MASTER, _NODES, _GATEWAY = range(4)
"""Stages: the gateway stops first, then the nodes, the broker last."""


class Programs:
    """The processes of one mesh; they log into its state folder and read their own settings."""

    def __init__(
        self,
        config: MeshConfig,
        config_file: Path | None,
        state: StateFolder,
        broker: EmbeddedBroker,
    ) -> None:
        self._config = config
        self._config_file = config_file
        self._state = state
        self._broker = broker

    def broker(self) -> Program:
        return Program(
            name="broker",
            argv=self._broker.command(),
            log=self._log("broker"),
            stage=_BROKER,
            prepare=self._broker.prepare,
            environment=self._broker.environment,
        )

    def master(self) -> Program:
        return Program(
            name="master",
            argv=_agent("master", *self._where(), self._login("creds", "master")),
            log=self._log("master"),
            stage=_MASTER,
            environment=self._tls,
        )

    def gateway(self, place: Place) -> Program:
        return Program(
            name="gateway",
            argv=_agent("gateway", *self._where(), self._login("creds", "gateway"), *place.flags()),
            log=self._log("gateway"),
            stage=_GATEWAY,
            environment=self._tls,
            grace_s=self._config.gateway.stop_grace_s + _KILL_MARGIN_S,
        )

    def node(self, sample: Sample) -> Program:
        name = node_name(sample)
        source = f"{sample.collection}={sample.file}"
        return Program(
            name=name,
            argv=_agent("run", *self._as_operator(), "--name", sample.slug, "--collection", source),
            log=self._log(name),
            stage=_NODES,
            vital=False,
            environment=lambda: dict.fromkeys(_OF_OTHER_NODES, "") | self._tls(),
            grace_s=self._config.node.stop_grace_s + _KILL_MARGIN_S,
        )

    def samples(self, nodes: int) -> Program:
        return Program(
            name="samples",
            argv=[
                sys.executable,
                "-P",
                "-m",
                "agents.samples",
                str(self._state.samples),
                f"{nodes}",
            ],
            log=self._log("samples"),
        )

    def _where(self) -> list[str]:
        """Flags, because MESH_URL may name another mesh."""
        settings = [f"--config={self._config_file}"] if self._config_file else []
        return [f"--state-dir={self._state.path}", f"--url={self._broker.url}", *settings]

    def _as_operator(self) -> list[str]:
        """Flags of a node: the folder's operator registers it."""
        return [*self._where(), self._login("operator", "operator")]

    def _login(self, option: str, user: str) -> str:
        return f"--{option}={self._state.credentials_file(user)}"

    def _tls(self) -> dict[str, str]:
        """The broker's certificate, for those who read their own settings."""
        certificates = self._config.nats.tls_ca
        return {"MESH_NATS__TLS_CA": certificates} if certificates else {}

    def _log(self, name: str) -> Path:
        return self._state.logs / f"{name}.log"


def node_name(sample: Sample) -> str:
    """Of a sample node's process."""
    return f"node-{sample.slug}"


def _agent(command: str, *flags: str) -> list[str]:
    """`-P`: what lies in the current folder is not for us to import."""
    return [sys.executable, "-P", "-m", "cli.mesh_agent", command, *flags]
