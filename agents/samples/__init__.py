"""Real text that any machine has, for the sample nodes of `mesh-agent up`: no network, no download.

| slug | collection | what |
|---|---|---|
| `stdlib` (`stdlib-2` …) | `python` | documentation of Python's standard library |
| `packages` | `packages` | descriptions of the installed packages |
| `handbook` | `handbook` | this project's own documentation |
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agents.samples.handbook import handbook_documents
from agents.samples.packages import package_documents
from agents.samples.stdlib import stdlib_documents

Document = dict[str, Any]
"""`id`, `title`, `content`; every other key is metadata."""


class Sample(NamedTuple):
    """One sample node and the file with its documents."""

    slug: str
    collection: str
    file: Path
    part: int = 0
    parts: int = 1
    """The collection's documents are dealt over this many nodes, by the hash of their module."""


_MAKERS: dict[str, Callable[[], Iterator[Document]]] = {
    "python": stdlib_documents,
    "packages": package_documents,
    "handbook": handbook_documents,
}


def plan_samples(nodes: int, folder: Path) -> list[Sample]:
    """The sample nodes of a mesh of `nodes`: the first of three, or the standard library on all
    but two.
    """
    others = [
        Sample("packages", "packages", folder / "packages.jsonl"),
        Sample("handbook", "handbook", folder / "handbook.jsonl"),
    ]
    parts = max(1, nodes - len(others))
    stdlib = [
        Sample(
            "stdlib" if part == 0 else f"stdlib-{part + 1}",
            "python",
            folder / ("python.jsonl" if parts == 1 else f"python-{part + 1}-of-{parts}.jsonl"),
            part,
            parts,
        )
        for part in range(parts)
    ]
    return [*stdlib, *others][:nodes]


def make_samples(samples: Iterable[Sample]) -> None:
    """Write the files that are missing; each is there whole or not at all. Takes seconds.

    Raises:
        OSError: A file cannot be written.
    """
    missing = [sample for sample in samples if not sample.file.exists()]
    for collection in {sample.collection: None for sample in missing}:
        files = {sample.part: sample for sample in missing if sample.collection == collection}
        _write(_MAKERS[collection](), files)


def count_documents(file: Path) -> int:
    """Documents in a sample file."""
    with file.open("rb") as lines:
        return sum(1 for _ in lines)


def part_of(document: Document, parts: int) -> int:
    """Where a document is dealt to: all of one module goes to one node."""
    return zlib.crc32(str(document.get("module", document["id"])).encode()) % parts


def _write(documents: Iterator[Document], files: dict[int, Sample]) -> None:
    with contextlib.ExitStack() as stack:
        outs = {}
        for part, sample in files.items():
            temporary = sample.file.with_suffix(f".{os.getpid()}.part")
            outs[part] = stack.enter_context(temporary.open("w", encoding="utf-8"))
            stack.callback(temporary.unlink, missing_ok=True)
        parts = next(iter(files.values())).parts
        for document in documents:
            out = outs.get(part_of(document, parts))
            if out:
                # A lone surrogate of some odd file becomes a question mark, not an error.
                line = json.dumps(document, ensure_ascii=False)
                out.write(line.encode("utf-8", "replace").decode() + "\n")
        for part, sample in files.items():
            outs[part].close()
            Path(outs[part].name).replace(sample.file)
