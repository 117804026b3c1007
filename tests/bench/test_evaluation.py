"""Eight nodes against one index of the same documents: the same hits, worth as much.

`EVALUATION_DATA` names a folder as `evaluation_rules` reads it; without it the documentation of
Python's standard library is the collection. `EVALUATION_SPLIT` says how to split (see
`evaluation.py`), `EVALUATION_NDCG` what hybrid searches are to be worth at least.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from evaluation import Settings, run, table
from evaluation_rules import read_collection
from stdlib_collection import stdlib_collection

pytestmark = [pytest.mark.bench, pytest.mark.alone, pytest.mark.timeout(3600)]

OVERLAP_AT_LEAST = {"10": 1.0, "50": 0.999, "100": 0.999}
STDLIB_NDCG_AT_LEAST = 0.5
MIXED_SHARE_AT_LEAST = 0.95


@pytest.fixture(scope="module")
def collection():
    if given := os.environ.get("EVALUATION_DATA"):
        return read_collection(Path(given))
    return stdlib_collection()


def natural_split(collection) -> str:
    if given := os.environ.get("EVALUATION_SPLIT"):
        return given
    fields = {name for raw in collection.documents.values() for name in raw}
    return next((f"field:{name}" for name in ("section", "module") if name in fields), "random")


def test_eight_nodes_find_what_one_index_finds(collection, tmp_path):
    report = run(collection, Settings(split=natural_split(collection)), tmp_path)
    sys.stdout.write(f"\n{table(report)}\n")
    hybrid = report["modes"]["hybrid"]
    missed = {
        limit: hybrid[limit]["overlap@10"]
        for limit, least in OVERLAP_AT_LEAST.items()
        if min(hybrid[limit]["overlap@10"], hybrid[limit]["overlap"]) < least
    }
    assert not missed
    least = float(os.environ.get("EVALUATION_NDCG", "0"))
    if not os.environ.get("EVALUATION_DATA"):
        least = STDLIB_NDCG_AT_LEAST
    assert hybrid["10"]["federated"]["ndcg@10"] >= least


def test_two_embedders_are_nearly_as_good_as_one(collection, tmp_path):
    """Every second node has another embedder, and documents of one topic are on one node."""
    settings = Settings(split="clustered", second_embedder="hash", modes=("hybrid",), limits=(10,))
    report = run(collection, settings, tmp_path)
    sys.stdout.write(f"\n{table(report)}\n")
    figures = report["modes"]["hybrid"]["10"]
    share = figures["federated"]["ndcg@10"] / figures["whole"]["ndcg@10"]
    assert share >= MIXED_SHARE_AT_LEAST
