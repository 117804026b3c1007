"""WordLlama: static token embeddings, averaged. Small, fast, and all of it is in the wheel.

Source: https://github.com/dleemiller/WordLlama; the weights derive from LLaMA 2's token embeddings.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mesh.errors import StateError

_DIM = 256
_BATCH_TEXTS = 256
_SLICE_TOKENS = 8192
"""Token rows gathered at once: 8 MiB, however long a text is."""


class _Model(NamedTuple):
    tokenizer: Any
    embedding: npt.NDArray[np.float32]
    """`(vocabulary, dim)`."""
    id: str


class WordLlamaEmbedder:
    """`mesh.ports.Embedder`; the model loads once, on the first call that needs it, in whichever
    thread that is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: _Model | None = None

    @property
    def id(self) -> str:
        """Changes with the package's minor version, the dimension, the weights and the tokenizer.

        Raises:
            StateError: The model cannot be read.
        """
        return self._model.id

    @property
    def dim(self) -> int:
        return _DIM

    @property
    def default_threshold(self) -> float:
        """Measured with 260 queries on 8,840 package descriptions: 95 % of all pairs lie below, and
        0.3 % of the relevant documents among the queries' top 30.
        """
        return 0.2

    @property
    def quick_chars(self) -> int:
        return 2000

    def embed_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """`(n, dim)` float32, L2-normalised; a text without tokens gives a zero row.

        Raises:
            StateError: The model cannot be read.
        """
        model = self._model
        vectors = np.zeros((len(texts), _DIM), dtype=np.float32)
        for start in range(0, len(texts), _BATCH_TEXTS):
            chunk = [text.strip() for text in texts[start : start + _BATCH_TEXTS]]
            encoded = model.tokenizer.encode_batch(chunk, add_special_tokens=False)
            for place, tokens in enumerate(encoded, start):
                vectors[place] = _pooled(model.embedding, tokens.ids)
        return vectors

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """`(dim,)` float32, L2-normalised.

        Raises:
            StateError: The model cannot be read.
        """
        model = self._model
        tokens = model.tokenizer.encode(text.strip(), add_special_tokens=False)
        return _pooled(model.embedding, tokens.ids)

    @property
    def _model(self) -> _Model:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load()
            return self._loaded


def _pooled(embedding: npt.NDArray[np.float32], ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """The normalised sum of the tokens' rows: the direction of their mean.

    Own pooling, because the package pads a batch to its longest text: one long document among 64
    takes gigabytes.
    """
    total = np.zeros(embedding.shape[1], dtype=np.float64)
    for start in range(0, len(ids), _SLICE_TOKENS):
        total += embedding[ids[start : start + _SLICE_TOKENS]].sum(axis=0, dtype=np.float64)
    length = math.sqrt(total @ total)
    return (total / length if length > 0 else total).astype(np.float32)


def _load() -> _Model:
    """Read the model from the installed package; never from a network.

    Raises:
        StateError
    """
    try:
        package = _import_quietly()
        folder = Path(package.__file__).parent
        # Without disable_download and the folder a missing file would be sought on a model hub.
        loaded = package.WordLlama.load(cache_dir=folder, dim=_DIM, disable_download=True)
    except (ImportError, OSError, ValueError) as error:
        raise StateError(
            f"the wordllama model cannot be read ({error}); reinstall it: "
            "pip install --force-reinstall wordllama"
        ) from error
    tokenizer = loaded.tokenizer
    tokenizer.no_padding()
    embedding: npt.NDArray[np.float32] = loaded.embedding
    fingerprint = hashlib.sha256(embedding.tobytes() + tokenizer.to_str().encode()).hexdigest()
    minor = ".".join(package.__version__.split(".")[:2])
    return _Model(
        tokenizer, embedding, f"wordllama-{minor}-{embedding.shape[1]}/{fingerprint[:12]}"
    )


def _import_quietly() -> Any:
    """Import the package without what it does to logging: its import configures the root logger,
    so that every library's INFO would come out twice.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return importlib.import_module("wordllama")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
