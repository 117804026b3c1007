"""What every `mesh.ports.Embedder` must do; hashing stands in for models in other tests because it
passes the same cases.
"""

import numpy as np
import pytest
from embedding_server import EmbeddingServer

from mesh.adapters.embedders import load_embedder
from mesh.config import SearchConfig

TEXTS = [
    "Parse a date from a string.",
    "",
    "The invoice is late, again.",
    " \n\t",
    "日本語のテキスト",
    "x",
    "The invoice is late, again.",
    "word " * 20_000,
    "❤️ naïve façade",
]
EMPTY = [1, 3]


@pytest.fixture(scope="module", params=["hash", "wordllama", "minilm", "openai"])
def made(request):
    """Makes the same embedder again and again."""
    with EmbeddingServer() as server:
        settings = server.settings() if request.param == "openai" else SearchConfig()
        yield lambda: load_embedder(request.param, settings)


@pytest.fixture(scope="module")
def embedder(made):
    return made()


def test_shape_and_type(embedder):
    vectors = embedder.embed_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.dim)
    assert vectors.dtype == np.float32
    query = embedder.embed_query("a query")
    assert query.shape == (embedder.dim,)
    assert query.dtype == np.float32


def test_no_texts_no_rows(embedder):
    vectors = embedder.embed_documents([])
    assert vectors.shape == (0, embedder.dim)
    assert vectors.dtype == np.float32


def test_unit_length_or_zero_and_never_nan(embedder):
    vectors = embedder.embed_documents(TEXTS)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.isfinite(vectors).all()
    expected = [0.0 if place in EMPTY else 1.0 for place in range(len(TEXTS))]
    assert lengths == pytest.approx(expected, abs=1e-5)
    assert not embedder.embed_query("").any()


def test_a_batch_is_its_texts_one_by_one(embedder):
    """Nothing leaks between the texts of a batch, not even rounding."""
    together = embedder.embed_documents(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        assert np.array_equal(embedder.embed_documents([text])[0], row)
        assert np.array_equal(embedder.embed_query(text), row)


def test_order_is_kept(embedder):
    backwards = embedder.embed_documents(TEXTS[::-1])[::-1]
    assert np.array_equal(backwards, embedder.embed_documents(TEXTS))


def test_another_instance_says_the_same(embedder, made):
    other = made()
    assert other is not embedder
    assert other.id == embedder.id
    assert np.array_equal(other.embed_documents(TEXTS), embedder.embed_documents(TEXTS))


def test_what_is_alike_is_near(embedder):
    query = embedder.embed_query("late invoice")
    near, far = embedder.embed_documents(
        ["This invoice is late.", "A game about knights and dragons."]
    )
    assert query @ near > query @ far
    assert query @ near > embedder.default_threshold


def test_id_names_the_dimension(embedder):
    assert str(embedder.dim) in embedder.id
    assert 0 <= embedder.default_threshold < 1
