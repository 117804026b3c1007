"""The broker reserves what every stream may hold: a stream that does not fit is not made at all."""

from __future__ import annotations

import re

from mesh.adapters.nats import audit, lease, queue, saga_log
from mesh.adapters.nats.broker import find_conf
from mesh.config import MeshConfig


def test_all_streams_fit_into_the_broker():
    config = MeshConfig()
    streams = (
        config.actions.history_bytes,
        config.actions.queue_bytes,
        config.replicas.log_bytes,
        queue._DEAD_BYTES,
        saga_log._MAX_BYTES,
        audit._MAX_BYTES,
        lease._SETTINGS["max_bytes"],
    )
    [room] = re.findall(r"max_file_store: (\d+)GB", find_conf().read_text())
    assert sum(streams) <= int(room) * 1024**3
