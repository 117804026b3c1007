"""The master agent: registry, health, routes, history index."""

from __future__ import annotations

from pathlib import Path

from agents.running import until_stopped
from mesh import bootstrap
from mesh.config import MeshConfig


def run(config: MeshConfig, *, state_dir: Path) -> int:
    """Run a master until it is told to stop; `config.nats` is resolved."""
    return until_stopped(bootstrap.master(config, data_dir=state_dir / "master"))
