"""Vectors from an HTTP endpoint that speaks as OpenAI's does: OpenAI itself, vLLM, Ollama, TEI, …

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from mesh.adapters.embedders.calibration import TEXTS, threshold
from mesh.adapters.embedders.embeddings_endpoint import Endpoint
from mesh.config import SearchConfig
from mesh.errors import ConfigError, StateError, UnavailableError

Floats = npt.NDArray[np.float32]

_VERSION = "1"
"""Changes with what is sent of a text."""
_MOST_BYTES = 8000
"""Of a text. OpenAI's models take 8,191 tokens and refuse what is longer, and no token of theirs is
shorter than a byte."""
_DOCUMENT_TRIES = 5
_QUERY_TRIES = 1
_QUERY_S = 2.0
"""Whoever searches waits for less than a second."""
_REST_S = 5.0
"""After a query that the endpoint did not answer the next ones fail at once, for so long: each that
waits occupies a thread."""
_MOST_QUERIES = 1024
"""Remembered, so that a search that is repeated costs nothing."""


class _Known(NamedTuple):
    dim: int
    threshold: float


class OpenAIEmbedder:
    """`mesh.ports.Embedder`; asks the endpoint for the first time when something is first asked of
    it. From any number of threads.
    """

    def __init__(
        self,
        settings: SearchConfig,
        *,
        wait: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args:
        settings: Those that begin with `embedder_`.
        wait: Lets seconds pass.
        now: Seconds of a clock that never goes back.

        Raises:
            ConfigError: They cannot be.
        """
        self._url = _checked_url(settings.embedder_url)
        self._model = settings.embedder_model
        if not self._model:
            raise ConfigError("search.embedder_model: say which model the endpoint should use")
        self._batch = settings.embedder_batch
        self._wanted_dim = settings.embedder_dim
        self._timeout_s = settings.embedder_timeout_s
        self._endpoint = Endpoint(
            self._url,
            self._model,
            _checked_key(settings.embedder_key),
            dim=settings.embedder_dim,
            wait=wait,
            now=now,
        )
        self._now = now
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._queries: OrderedDict[str, Floats] = OrderedDict()
        self._rests_until = -np.inf
        self._why = ""

    @property
    def id(self) -> str:
        """Changes with the endpoint, the model and the dimension.

        Raises:
            UnavailableError: The endpoint does not answer.
            StateError: It refuses, or its answer cannot be used.
        """
        digest = hashlib.sha256(f"{_VERSION}\n{self._url}\n{self._model}".encode()).hexdigest()
        return f"openai-{self._model}-{self.dim}/{digest[:12]}"

    @property
    def dim(self) -> int:
        return self._wanted_dim or self._learn().dim

    @property
    def default_threshold(self) -> float:
        """Of the model at hand, as far as its own words tell; see `calibration`. 0 before anything
        was embedded.
        """
        return 0.0 if self._known is None else self._known.threshold

    @property
    def quick_chars(self) -> int:
        return 0

    def embed_documents(self, texts: Sequence[str]) -> Floats:
        """`(n, dim)` float32, L2-normalised; a blank text gives a zero row, and of a long one the
        first 8,000 bytes count.

        Raises:
            UnavailableError: The endpoint does not answer, after several tries.
            StateError: It refuses, or its answer cannot be used.
        """
        self._learn()
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        places = [place for place, text in enumerate(texts) if text.strip()]
        for start in range(0, len(places), self._batch):
            some = places[start : start + self._batch]
            vectors[some] = self._ask(
                [texts[place] for place in some], _DOCUMENT_TRIES, self._timeout_s
            )
        return vectors

    def embed_query(self, text: str) -> Floats:
        """`(dim,)` float32, L2-normalised; not tried twice.

        Raises:
            UnavailableError: The endpoint does not answer, or did not a moment ago.
            StateError: It refuses, or its answer cannot be used.
        """
        with self._lock:
            remembered = self._queries.get(text)
            if remembered is not None:
                self._queries.move_to_end(text)
                return remembered
            if self._now() < self._rests_until:
                raise UnavailableError(self._why)
        try:
            within_s = min(_QUERY_S, self._timeout_s)
            self._learn(_QUERY_TRIES, within_s)
            vector: Floats = np.zeros(self.dim, dtype=np.float32)
            if text.strip():
                vector = self._ask([text], _QUERY_TRIES, within_s)[0]
        except UnavailableError as error:
            with self._lock:
                self._rests_until, self._why = self._now() + _REST_S, str(error)
            raise
        vector.flags.writeable = False
        with self._lock:
            self._queries[text] = vector
            while len(self._queries) > _MOST_QUERIES:
                self._queries.popitem(last=False)
        return vector

    def _learn(self, tries: int = _DOCUMENT_TRIES, timeout_s: float | None = None) -> _Known:
        known = self._known
        if known is None:  # two threads that ask at once learn the same
            timeout_s = timeout_s or self._timeout_s
            vectors = self._endpoint.embed(TEXTS, tries=tries, timeout_s=timeout_s)
            known = self._known = _Known(vectors.shape[1], threshold(vectors))
        return known

    def _ask(self, texts: Sequence[str], tries: int, timeout_s: float) -> Floats:
        cut = [text.encode()[:_MOST_BYTES].decode(errors="ignore") for text in texts]
        vectors = self._endpoint.embed(cut, tries=tries, timeout_s=timeout_s)
        if vectors.shape[1] != self.dim:
            raise StateError(
                f"{self._endpoint.host} answers with vectors of {vectors.shape[1]} numbers, and "
                f"they had {self.dim}: is it another model now? Start the node again"
            )
        return vectors


def _checked_url(url: str) -> str:
    """Raises: ConfigError."""
    parts = urlsplit(url)
    try:
        bad = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:  # the port
        bad = True
    if bad:
        raise ConfigError(
            "search.embedder_url: expected the address of an endpoint, such as "
            "https://api.openai.com/v1 or http://127.0.0.1:11434/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "search.embedder_url: no login, query or fragment in it, please: addresses are logged; "
            "the key goes into MESH_SEARCH__EMBEDDER_KEY"
        )
    return url.rstrip("/").removesuffix("/embeddings")


def _checked_key(key: str) -> str:
    """Raises: ConfigError, without the key."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError("search.embedder_key: has characters that no key has")
    return key
