"""Documents from files into a collection of one node, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mesh
from cli import connection

if TYPE_CHECKING:
    from mesh import ImportReport, MeshClient

Progress = Callable[[int, int, int], None]
"""Told bytes read, bytes in all, documents indexed."""

_BATCH_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Imported:
    """How an import went."""

    collection: str
    node: str
    report: ImportReport
    seconds: float

    @property
    def documents_per_s(self) -> float:
        """Speed of the whole import."""
        return self.report.documents / self.seconds if self.seconds else 0.0

    def summary(self) -> str:
        """One line for people."""
        report = self.report
        return (
            f"{report.documents} documents ({report.changed} new or changed) in {report.batches}"
            f" batches to {self.collection} on {self.node or 'no node'} in {self.seconds:.1f} s"
            f" ({self.documents_per_s:.0f} a second), {report.bad} bad"
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "collection": self.collection,
            "node": self.node,
            "documents": self.report.documents,
            "changed": self.report.changed,
            "batches": self.report.batches,
            "bad": self.report.bad,
            "bad_lines": [
                {"source": bad.source, "line": bad.line, "reason": bad.reason}
                for bad in self.report.bad_lines
            ],
            "seconds": round(self.seconds, 3),
            "documents_per_s": round(self.documents_per_s, 1),
        }


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import, as it was asked for."""

    path: Path
    collection: str
    node: str | None
    batch: int
    id_column: str | None
    content_column: str | None

    async def run(self, client: MeshClient, progress: Progress) -> Imported:
        """Read, index, and tell how it went.

        Raises:
            MeshError: The mesh refuses or is away; what was indexed until then stays.
        """
        began = time.perf_counter()
        node = None if self.node is None else await connection.slug_of(client, self.node)
        items = mesh.read_documents(
            self.path, id_column=self.id_column, content_column=self.content_column
        )

        async def index(params: Mapping[str, Any], batch: str) -> Mapping[str, Any]:
            nonlocal node
            answer = await client.run_action(
                "index",
                dict(params),
                node=node,
                id=batch,
                timeout_s=_BATCH_TIMEOUT_S,
            )
            node = answer.node  # the one that took the first batch takes them all
            result: Mapping[str, Any] = answer.result
            return result

        report = await mesh.import_documents(
            items,
            index,
            collection=self.collection,
            batch=self.batch,
            progress=progress,
        )
        return Imported(
            collection=self.collection,
            node=node or "",
            report=report,
            seconds=time.perf_counter() - began,
        )
