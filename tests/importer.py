"""`meshctl collections import` as a process that can be killed, and what is then in the mesh."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import lancedb
from live_mesh import LiveMesh, clean_environment


class Importer:
    """One run, of one file into a collection of one node."""

    def __init__(self, live: LiveMesh, file: Path, collection: str, node: str, *options: object):
        self._argv = [
            *(sys.executable, "-P", "-c", "from cli.meshctl import main; main()"),
            *("collections", "import", str(file)),
            *("-c", collection, "--node", node, "--state-dir", str(live.state), "--json"),
            *map(str, options),
        ]
        self._place = file.parent / f"{file.name}.{collection}@{node}.import"
        self._log = live.folder / "import.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process, "the import does not run"
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env=clean_environment(), stdout=subprocess.PIPE, stderr=log
            )

    def runs(self) -> bool:
        assert self._process, "the import was not started"
        return self._process.poll() is None

    def done(self) -> int:
        """Documents that its place knows of; 0 before there is one, and after the end."""
        try:
            return json.loads(self._place.read_bytes())["documents"]
        except FileNotFoundError:
            return 0

    async def until(self, documents: int, *, within_s: float) -> None:
        """Until so many are acknowledged; it must still run then."""
        until = time.monotonic() + within_s
        while self.done() < documents:
            assert self.runs(), self._log.read_text()
            assert time.monotonic() < until, f"{self.done()} of {documents} documents"
            await asyncio.sleep(0.01)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self._process, "the import was not started"
        self._process.send_signal(number)
        code = self._process.wait(timeout=30)
        self._process.stdout.close()
        return code

    async def outcome(self, *, within_s: float) -> tuple[int, dict]:
        """Exit code and what it printed."""
        assert self._process, "the import was not started"
        out, _ = await asyncio.to_thread(self._process.communicate, timeout=within_s)
        assert out, self._log.read_text()
        return self._process.returncode, json.loads(out)


async def stored(live: LiveMesh, node: str, collection: str) -> dict[str, tuple[str, dict]]:
    """Content and metadata by id, from the node's disk; each id once."""
    folder = next(live.state.rglob(f"{node}/collections"))
    connection = await lancedb.connect_async(str(folder))
    table = await connection.open_table(collection)
    rows = await table.query().select(["id", "content", "metadata"]).to_list()
    found = {row["id"]: (row["content"], json.loads(row["metadata"])) for row in rows}
    assert len(found) == len(rows), "documents are there twice"
    return found
