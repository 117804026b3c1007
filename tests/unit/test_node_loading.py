"""What a node agent remembers of the files it has loaded."""

from __future__ import annotations

import json

from agents.node import _LoadedNode


class Server:
    """Takes what is indexed."""

    def __init__(self):
        self.indexed = []

    async def run_own_action(self, action, params, action_id):
        self.indexed.append((action, params["collection"], action_id))
        return {"changed": len(params["documents"])}


async def test_what_was_loaded_is_replaced_whole_never_written_over(tmp_path):
    """A file cut short by a kill would read as nothing loaded, and all be loaded again over later
    changes: who has the old file open goes on seeing all of it.
    """
    sources = []
    for name in ("notes", "orders"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "1", "content": "text"}\n')
        sources.append((name, tmp_path / f"{name}.jsonl"))
    memory, server = tmp_path / "loaded.json", Server()
    loading = _LoadedNode(None, tmp_path, sources)
    await loading._load(server, *sources[0])
    with memory.open() as opened:
        await loading._load(server, *sources[1])
        assert list(json.load(opened)) == ["notes"]
    assert sorted(json.loads(memory.read_text())) == ["notes", "orders"]

    count = len(server.indexed)
    assert count == 2
    await _LoadedNode(None, tmp_path, sources)._load_all(server)
    assert len(server.indexed) == count
