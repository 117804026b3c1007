"""Descriptions of the packages installed beside this one."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

from agents.samples.passages import split_at_headings

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_IMAGE = re.compile(r"\[?!\[[^\]]*\]\([^)]*\)(\]\([^)]*\))?")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_DIRECTIVE = re.compile(
    r"^\.\. (\|[^|]*\| )?(image|figure|_[^:]*:).*\n(?:[ \t]+:.*\n)*", re.MULTILINE
)


def package_documents() -> Iterator[dict[str, Any]]:
    """A document for each package's summary and each passage of its long description."""
    seen = set[str]()
    for distribution in importlib.metadata.distributions():
        try:
            about = distribution.metadata.json
        except (AttributeError, OSError, TypeError, ValueError):
            continue  # what is left of a package that was half removed
        name = str(about.get("name") or "")
        if name and name.lower() not in seen:
            seen.add(name.lower())
            yield from _documents(name, about)


def _documents(name: str, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    common = {"package": name, "version": str(about.get("version") or "")}
    summary = str(about.get("summary") or "").strip()
    if summary:
        yield {
            "id": name,
            "title": name,
            "content": f"{name}: {summary}",
            "kind": "summary",
            **common,
        }
    text = _readable(str(about.get("description") or ""))
    for number, (heading, body) in enumerate(split_at_headings(text), start=1):
        title = f"{name}: {heading}" if heading and heading.lower() != name.lower() else name
        yield {
            "id": f"{name}#{number}",
            "title": title,
            "content": f"{title}\n\n{body}",
            "kind": "description",
            **common,
        }


def _readable(text: str) -> str:
    """A long description without pictures, badges and HTML."""
    for noise in (_COMMENT, _IMAGE, _TAG, _DIRECTIVE):
        text = noise.sub("", text)
    return text
