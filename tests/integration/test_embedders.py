import logging
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from mesh.adapters.embedders import load_embedder
from mesh.adapters.embedders import wordllama as module
from mesh.adapters.embedders.wordllama import WordLlamaEmbedder
from mesh.errors import ConfigError, StateError


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'bert'; known: hash, minilm, openai, wordllama"):
        load_embedder("bert")


def test_loading_by_name_reads_nothing_yet():
    """Processes that never embed do not pay for the model, and imports stay light."""
    code = (
        "import sys; from mesh.adapters.embedders import load_embedder; load_embedder('wordllama');"
        "sys.exit('wordllama' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_first_use_may_be_in_many_threads():
    embedder = WordLlamaEmbedder()
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


def test_importing_the_package_leaves_logging_alone():
    """It calls logging.basicConfig, which would print every library's INFO."""
    code = (
        "import logging; from mesh.adapters.embedders import load_embedder;"
        "load_embedder('wordllama').embed_query('x');"
        "root = logging.getLogger(); raise SystemExit(bool(root.handlers) or root.level != 30)"
    )
    assert logging.WARNING == 30
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_long_text_does_not_take_the_memory_of_all():
    """The package pads a batch to its longest text: here that would be 3 GB."""
    embedder = load_embedder("wordllama")
    embedder.embed_query("load the model")
    texts = ["short"] * 63 + ["word " * 50_000]
    tracemalloc.start()
    vectors = embedder.embed_documents(texts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000_000
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0] * 64, abs=1e-5)


def test_the_id_changes_with_the_weights(monkeypatch):
    package = module._import_quietly()
    load = package.WordLlama.load

    def retrained(**options):
        model = load(**options)
        model.embedding[5] += 1
        return model

    genuine = WordLlamaEmbedder().id
    monkeypatch.setattr(package.WordLlama, "load", retrained)
    changed = WordLlamaEmbedder().id
    assert changed != genuine
    assert changed.split("/")[0] == genuine.split("/")[0]


def test_a_missing_model_says_what_to_do(monkeypatch):
    package = module._import_quietly()

    def missing(**_):
        raise FileNotFoundError("weights")

    monkeypatch.setattr(package.WordLlama, "load", missing)
    with pytest.raises(StateError, match="reinstall"):
        WordLlamaEmbedder().embed_query("x")
