"""`python -m examples.notes FOLDER`: watch a folder and keep a collection equal to it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path

import mesh
from examples.notes.watcher import Mirror, watch


async def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.notes",
        description="Keep a collection of a node equal to a folder of Markdown files.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--node", default="notes", help="slug of the node that holds them")
    parser.add_argument("--collection", default="notes")
    parser.add_argument("--state-dir", default=".mesh", help="of a mesh on this machine")
    parser.add_argument("--url", help="nats://host:port of a mesh elsewhere")
    parser.add_argument("--creds", help="your credentials file")
    asked = parser.parse_args()
    if not asked.folder.is_dir():
        parser.error(f"{asked.folder} is no folder")

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with mesh.connect(
        asked.url, state_dir=asked.state_dir, credentials=asked.creds
    ) as client:
        mirror = Mirror(client, asked.folder, node=asked.node, collection=asked.collection)
        print(f"watching {asked.folder}", flush=True)
        await watch(mirror, stop)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
