"""Markdown: a file, or a folder of them; long documents are cut into passages at their headings."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mesh.adapters.document_files.items import ACCEPTED, Item, Source, refused, without_bom
from mesh.wire.messages import MAX_CONTENT_CHARS

MARKDOWN = frozenset({".md", ".markdown"})
MAX_FILE_BYTES = 16 * 1024 * 1024

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,2}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(={3,}|-{3,})[ \t]*")
_NOT_A_PARAGRAPH = re.compile(r" {0,3}([-*+>|#]|\d+[.)] )|\t| {4}")
_MAX_FRONT_MATTER_CHARS = 65_536
_MAX_FRONT_MATTER_VALUES = 1000
_MAX_FRONT_MATTER_DEPTH = 16
_MAX_ANCHOR_CHARS = 80


def read_markdown(path: Path) -> Iterator[Item]:
    """Every passage of every file, in the order of their names."""
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise refused("path", f"no Markdown files in {path}; accepted are: {ACCEPTED}")
    sizes = [file.stat().st_size for file in files]
    before = 0
    for file, size in zip(files, sizes, strict=True):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        yield from _read_file(Source(file, name, before, sum(sizes)))
        before += size


def _files(folder: Path) -> list[Path]:
    """Hidden folders are somebody's machinery, not documents."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        found += [file for file in files if file.suffix.lower() in MARKDOWN and file.is_file()]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _read_file(source: Source) -> Iterator[Item]:
    with source.path.open("rb") as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    at = len(data)
    if at > MAX_FILE_BYTES:
        yield source.bad(f"longer than {MAX_FILE_BYTES} bytes", 1, at)
        return
    try:
        lines = without_bom(data.decode(), 1).replace("\r\n", "\n").split("\n")
        metadata, body_at = _front_matter(lines)
    except UnicodeDecodeError as error:
        yield source.bad("not UTF-8", data.count(b"\n", 0, error.start) + 1, at)
        return
    except ValueError as error:
        yield source.bad(f"front matter: {error}", 1, at)
        return
    sections = list(_sections(lines, body_at))
    taken: set[str] = set()
    for section in sections:
        if len(section.text) > MAX_CONTENT_CHARS:
            reason = f"a section is longer than {MAX_CONTENT_CHARS} characters"
            yield source.bad(reason, section.line, at)
            continue
        anchor = _anchor(section.title) if len(sections) > 1 else ""
        title = section.title or metadata.get("title") or source.path.stem
        document = {
            "id": _unused(f"{source.name}#{anchor}" if anchor else source.name, taken),
            "content": section.text,
            "metadata": {**metadata, "title": title, "path": source.name},
        }
        yield source.read(document, section.line, at)


class _Heading(NamedTuple):
    """`at` is the index of its first line, `body_at` of the first one after it."""

    title: str
    at: int
    body_at: int


class _Section(NamedTuple):
    title: str
    line: int
    text: str


def _sections(lines: Sequence[str], start: int) -> Iterator[_Section]:
    """Cut at headings of level 1 and 2. A heading with nothing under it goes on top of the next
    section, so that a document's name is found with its first passage.
    """
    cuts = [_Heading("", start, start), *_headings(lines, start)]
    ends = [*(heading.at for heading in cuts[1:]), len(lines)]
    carried: list[str] = []
    for heading, end in zip(cuts, ends, strict=True):
        text = "\n".join(lines[heading.at : end]).strip()
        if any(line.strip() for line in lines[heading.body_at : end]):
            yield _Section(heading.title, heading.at + 1, "\n\n".join([*carried, text]))
            carried = []
        elif text:
            carried.append(text)
    if carried:
        yield _Section(cuts[-1].title, cuts[-1].at + 1, "\n\n".join(carried))


def _headings(lines: Sequence[str], start: int) -> Iterator[_Heading]:
    """Headings of level 1 and 2 outside of code fences.

    Source: CommonMark 0.31, ATX headings, and setext headings of one line and at least three
    underline characters (fewer are more often something else).
    """
    fence = ""
    above = ""  # the line above, where it may be the text of an underlined heading
    after_blank = True
    for at in range(start, len(lines)):
        line = lines[at]
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif fence:
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
        elif found := _HEADING.fullmatch(line):
            yield _Heading(found[1], at, at + 1)
            above, after_blank = "", True
            continue
        elif above and _UNDERLINE.fullmatch(line):
            yield _Heading(above.strip(), at - 1, at + 1)
            above, after_blank = "", True
            continue
        paragraph = not fence and not mark and line.strip() and not _NOT_A_PARAGRAPH.match(line)
        above = line if paragraph and after_blank else ""
        after_blank = not line.strip()


def _anchor(title: str) -> str:
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())[:_MAX_ANCHOR_CHARS]


def _unused(id_: str, taken: set[str]) -> str:
    name, count = id_, 1
    while name in taken:
        count += 1
        name = f"{id_}-{count}"
    taken.add(name)
    return name


def _front_matter(lines: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Metadata of a YAML block at the top, and the index of the line after it.

    Raises:
        ValueError: It is no YAML, or beyond any sensible size.
    """
    if lines[0].rstrip() != "---":
        return {}, 0
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() in {"---", "..."}), None)
    if end is None:
        return {}, 0
    text = "\n".join(lines[1:end])
    if len(text) > _MAX_FRONT_MATTER_CHARS:
        raise ValueError(f"longer than {_MAX_FRONT_MATTER_CHARS} characters")
    try:
        values = msgspec.yaml.decode(text) if text.strip() else {}
    except msgspec.DecodeError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        return {}, 0  # text between two rules
    budget = iter(range(_MAX_FRONT_MATTER_VALUES))
    return {str(key): _built_in(value, budget, 0) for key, value in values.items()}, end + 1


def _built_in(value: Any, budget: Iterator[int], depth: int) -> Any:
    """What JSON has for a YAML value. References can make a few lines of YAML endless: they are
    followed within a budget.
    """
    if next(budget, None) is None or depth > _MAX_FRONT_MATTER_DEPTH:
        raise ValueError("too many or too deep values")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _built_in(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_built_in(item, budget, depth + 1) for item in value]
    return str(value)
