"""The project's own documentation: beside this module in a wheel, at the top of a checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agents.samples.passages import split_at_headings


def handbook_documents(packaged: Path | None = None) -> Iterator[dict[str, Any]]:
    """A document for each passage of README.md and docs/."""
    here = packaged or Path(__file__).resolve().with_name("docs")
    if here.is_dir():
        files = {file.relative_to(here): file for file in here.rglob("*.md")}
    else:
        top = Path(__file__).resolve().parents[2]
        files = {file.relative_to(top / "docs"): file for file in (top / "docs").rglob("*.md")}
        files[Path("README.md")] = top / "README.md"
    for name, file in sorted(files.items()):
        if file.is_file():
            yield from _passages(name.as_posix(), file.read_text(encoding="utf-8"))


def _passages(name: str, text: str) -> Iterator[dict[str, Any]]:
    about = ""
    for number, (heading, body) in enumerate(split_at_headings(text), start=1):
        about = about or heading or name
        title = about if heading in {"", about} else f"{about}: {heading}"
        yield {
            "id": f"{name}#{number}",
            "title": title,
            "content": f"{title}\n\n{body}",
            "file": name,
            "kind": "handbook",
        }
