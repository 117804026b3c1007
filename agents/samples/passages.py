"""Long texts in passages: at their headings (Markdown or reStructuredText), then at paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_CHARS = 2000

_FENCE = re.compile(r"^\s*(```|~~~)")
_ATX = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$")
_UNDERLINE = re.compile(r"^([=\-~^\"'`*+#])\1{2,}\s*$")


def split_at_headings(text: str) -> Iterator[tuple[str, str]]:
    """`(heading, body)` in order; what stands before the first heading has none (""). Bodies are
    at most `MAX_CHARS` long where paragraphs allow it; empty ones are left out.
    """
    for heading, lines in _sections(text.splitlines()):
        for body in split_at_paragraphs("\n".join(lines).strip()):
            yield heading, body


def split_at_paragraphs(text: str, max_chars: int = MAX_CHARS) -> Iterator[str]:
    """Parts of `text` of at most `max_chars`; a single paragraph stays whole."""
    part = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if part and len(part) + len(paragraph) + 2 > max_chars:
            yield part
            part = ""
        part = f"{part}\n\n{paragraph}" if part else paragraph
    if part.strip():
        yield part


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    heading, body, fenced = "", list[str](), False
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
        title = "" if fenced else _title(line, body)
        if not title:
            body.append(line)
            continue
        if not line.startswith("#"):
            body.pop()  # the title stood in the line above its underline
        if body and _UNDERLINE.match(body[-1]):
            body.pop()  # its overline
        yield heading, body
        heading, body = title, []
    yield heading, body


def _title(line: str, above: list[str]) -> str:
    """The heading that `line` is, or underlines; else ""."""
    if atx := _ATX.match(line):
        return atx[1]
    title = above[-1].strip() if above else ""
    if not title or not _UNDERLINE.match(line) or _UNDERLINE.match(title):
        return ""
    starts_paragraph = len(above) == 1 or not above[-2].strip() or _UNDERLINE.match(above[-2])
    return title if starts_paragraph and len(line.rstrip()) >= min(len(title), 80) else ""
