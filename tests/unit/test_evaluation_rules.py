from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation_rules import (
    ndcg,
    overlap,
    read_collection,
    recall,
    split_by_field,
    split_by_topic,
    split_randomly,
)


def folder(tmp_path, docs, queries, qrels):
    for name, rows in (("docs.jsonl", docs), ("queries.jsonl", queries)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "qrels.tsv").write_text(qrels)
    return tmp_path


def test_a_collection_is_read(tmp_path):
    found = read_collection(
        folder(
            tmp_path,
            [
                {"id": "a", "title": "A", "text": "one", "section": "x", "tags": ["no"]},
                {"id": 7, "text": "two"},
                {"_id": "b", "title": "only a title"},
                {"id": "c"},
                {"id": "a", "text": "again"},
            ],
            [{"id": "q1", "text": "one?", "narrative": "n"}, {"qid": 2, "query": "two?"}],
            "query_id\tdoc_id\trelevance\nq1\ta\t2\nq1\t7\t0\nq1\tgone\t1\nq9\ta\t1\n",
        )
    )
    assert found.documents == {
        "a": {"id": "a", "text": "again"},
        "7": {"id": "7", "text": "two"},
        "b": {"id": "b", "title": "only a title", "text": "only a title"},
    }
    assert found.queries == {"q1": "one?", "2": "two?"}
    assert found.judgments == {"q1": {"a": 2.0, "gone": 1.0}}
    assert len(found.notes) == 4


def test_judgments_of_other_makes_are_read(tmp_path):
    docs, queries = [{"id": "a", "text": "x"}], [{"id": "q", "text": "y"}]
    for qrels in (
        "query-id\tcorpus-id\tscore\nq\ta\t1\n",
        "q\ta\t1\n",
        "q 0 a 1\n",
        "q\tQ0\ta\t1\n\n",
    ):
        assert read_collection(folder(tmp_path, docs, queries, qrels)).judgments == {"q": {"a": 1}}
    with pytest.raises(ValueError, match="line 2"):
        read_collection(folder(tmp_path, docs, queries, "a\tb\tc\nq\ta\tmuch\n"))


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of the fields"):
        read_collection(folder(tmp_path, [{"text": "x"}], [], ""))
    with pytest.raises(ValueError, match="no queries"):
        read_collection(folder(tmp_path, [{"id": "a", "text": "x"}], [], ""))


def test_the_worth_of_an_order():
    graded = {"a": 3.0, "b": 1.0}
    assert ndcg(["a", "b"], graded) == 1
    assert ndcg(["b", "a"], graded) == pytest.approx(
        (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    )
    assert ndcg(["x"] * 10 + ["a"], graded) == 0
    assert recall(["b", "x"], graded) == 0.5
    assert recall([f"{n}" for n in range(10)], {f"{n}": 1.0 for n in range(50)}) == 0.2
    assert overlap(["a", "b"], ["b", "c"]) == 0.5
    assert overlap(["a"], []) is None
    assert overlap(list("ab"), list("abcd"), cut=2) == 1


def vectors(count):
    rng = np.random.default_rng(3)
    made = rng.normal(size=(count, 8)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("nodes", [1, 3, 8])
def test_every_split_gives_every_document_to_one_node(nodes):
    ids = [f"d{n}" for n in range(50)]
    documents = {name: {"section": f"s{place % 9}"} for place, name in enumerate(ids)}
    for parts in (
        split_randomly(ids, nodes),
        split_by_field(documents, "section", nodes),
        split_by_topic(ids, vectors(50), nodes, balanced=True),
        split_by_topic(ids, vectors(50), nodes, balanced=False),
    ):
        assert len(parts) == nodes
        assert sorted(name for part in parts for name in part) == sorted(ids)
        assert all(parts)


def test_a_split_by_field_keeps_equal_values_together():
    documents = {f"d{n}": {"section": f"s{n % 5}"} for n in range(50)}
    parts = split_by_field(documents, "section", 3)
    homes = {}
    for place, part in enumerate(parts):
        for name in part:
            assert homes.setdefault(documents[name]["section"], place) == place
    with pytest.raises(ValueError, match="nope"):
        split_by_field(documents, "nope", 3)


def test_a_balanced_split_is_balanced():
    ids = [f"d{n}" for n in range(50)]
    parts = split_by_topic(ids, vectors(50), 4, balanced=True)
    assert sorted(map(len, parts)) == [12, 12, 13, 13]


def test_topics_are_found():
    """Two bundles of vectors come apart."""
    one = np.tile(np.eye(8, dtype=np.float32)[0], (10, 1))
    two = np.tile(np.eye(8, dtype=np.float32)[1], (10, 1))
    ids = [f"d{n}" for n in range(20)]
    parts = split_by_topic(ids, np.vstack([one, two]), 2, balanced=True)
    assert {frozenset(part) for part in parts} == {frozenset(ids[:10]), frozenset(ids[10:])}
