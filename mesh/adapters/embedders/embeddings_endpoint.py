"""Requests to an embeddings endpoint: tried again where that may help, and nothing taken on trust.

No redirect is followed: the texts and the key go where the operator said, or nowhere.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt

from mesh.errors import MeshError, StateError, UnavailableError

if TYPE_CHECKING:
    import httpx

Floats = npt.NDArray[np.float32]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
_MOST_ASKED_S = 60.0
"""Whoever asks us to wait for longer is not waited for."""
_MOST_DIGITS = 9
"""Of how long we are asked to wait: more are no wait that anybody means, or no number at all."""
_CONNECT_S = 5.0
_MOST_ANSWER_BYTES = 64 * 1024 * 1024
_MOST_WORDS = 300
_MAX_DIM = 16_384
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_NO_KEY = frozenset({401, 403})
_ABSENT = 404
_REDIRECTS = range(300, 400)
_OK = range(200, 300)


class _Item(msgspec.Struct):
    index: int
    embedding: list[float]


class _Answer(msgspec.Struct):
    data: list[_Item]


class _Told(msgspec.Struct):
    """What endpoints say of an error: OpenAI's form, and others'."""

    error: Any = None
    message: str = ""
    detail: Any = None


_answer = msgspec.json.Decoder(_Answer)
_told = msgspec.json.Decoder(_Told)


class _Reply(NamedTuple):
    status: int
    retry_after: str
    body: bytes


class _AgainError(Exception):
    """It did not work, and another try may help."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s
        """How long the endpoint wants us to wait."""


class Endpoint:
    """`POST URL/embeddings`, from any number of threads."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str,
        *,
        dim: int,
        wait: Callable[[float], None],
        now: Callable[[], float],
    ) -> None:
        """Args:
        url: Without `/embeddings`.
        model: As the endpoint calls it.
        key: Bearer token; empty: none.
        dim: Length of the vectors to ask for; 0: as the model has it.
        wait: Lets seconds pass.
        now: Seconds of a clock that never goes back.
        """
        parts = urlsplit(url)
        self.host = f"{parts.scheme}://{parts.netloc}"
        """For words."""
        self._url = f"{url}/embeddings"
        self._model = model
        self._key = key
        self._dim = dim
        self._wait = wait
        self._now = now
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def embed(self, texts: Sequence[str], *, tries: int, timeout_s: float) -> Floats:
        """`(n, dim)` float32, L2-normalised.

        Args:
            texts: None of them blank.
            tries: How often to ask, at most.
            timeout_s: Of each.

        Raises:
            UnavailableError: No answer, or one that says "later".
            StateError: A refusal, or an answer that cannot be used.
        """
        backoff_s = _FIRST_WAIT_S
        for left in reversed(range(tries)):
            try:
                return self._vectors(self._post(texts, timeout_s), len(texts))
            except _AgainError as error:
                wait_s = backoff_s if error.wait_s is None else error.wait_s
                if not left or wait_s > _MOST_ASKED_S:
                    raise UnavailableError(
                        f"the embedder at {self.host} {error}", retry_after_ms=round(wait_s * 1000)
                    ) from error
            self._wait(wait_s)
            backoff_s = min(2 * backoff_s, _LONGEST_WAIT_S)
        raise AssertionError(tries)

    def _post(self, texts: Sequence[str], timeout_s: float) -> bytes:
        """The body of a good answer.

        Raises:
            _AgainError, StateError
        """
        asked: dict[str, Any] = {
            "model": self._model,
            "input": list(texts),
            "encoding_format": "float",
        }
        if self._dim:
            asked["dimensions"] = self._dim
        reply = self._exchange(msgspec.json.encode(asked), timeout_s)
        if reply.status in _OK:
            return reply.body
        said = f"answered {reply.status}{self._words(reply.body)}"
        if reply.status in _AGAIN:
            raise _AgainError(said, _asked_wait_s(reply.retry_after))
        hint = ""
        if reply.status in _NO_KEY:
            hint = "; is MESH_SEARCH__EMBEDDER_KEY the key it wants?"
        elif reply.status == _ABSENT:
            hint = "; are search.embedder_url (up to /v1) and search.embedder_model right?"
        elif reply.status in _REDIRECTS:
            hint = "; redirects are not followed: set search.embedder_url to where it leads"
        raise StateError(f"the embedder at {self.host} {said}{hint}")

    def _exchange(self, body: bytes, timeout_s: float) -> _Reply:
        import httpx  # noqa: PLC0415 (only who uses it pays for it)

        client = self._connected()
        # httpx counts anew with every piece that comes, hence the deadline besides.
        deadline = self._now() + timeout_s
        timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
        try:
            with client.stream("POST", self._url, content=body, timeout=timeout) as response:
                parts, size = [], 0
                for part in response.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > _MOST_ANSWER_BYTES:
                        raise StateError(f"the embedder at {self.host} answers without end")
                    if self._now() > deadline:
                        raise httpx.ReadTimeout("it drips")
                header = response.headers.get("retry-after", "")
                return _Reply(response.status_code, header, b"".join(parts))
        except httpx.TimeoutException as error:
            raise _AgainError(f"did not answer within {timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise _AgainError(f"cannot be reached ({self._clean(str(error))})") from error
        except httpx.HTTPError as error:
            raise _AgainError(f"cannot be understood ({self._clean(str(error))})") from error

    def _connected(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                try:
                    import httpx  # noqa: PLC0415
                except ImportError as error:
                    raise StateError(
                        "search.embedder = openai needs httpx: pip install 'nodemesh[openai]'"
                    ) from error
                # It would log every request.
                logging.getLogger("httpx").setLevel(logging.WARNING)
                headers = {"content-type": "application/json", "accept": "application/json"}
                if self._key:
                    headers["authorization"] = f"Bearer {self._key}"
                self._client = httpx.Client(headers=headers, follow_redirects=False)
                weakref.finalize(self, self._client.close)
            return self._client

    def _vectors(self, body: bytes, count: int) -> Floats:
        """Raises: StateError."""
        try:
            items = _answer.decode(body).data
        except msgspec.MsgspecError as error:
            raise self._useless(f"its answer cannot be read: {error}") from error
        if sorted(item.index for item in items) != list(range(count)):
            raise self._useless(f"it gave {len(items)} vectors for {count} texts")
        dims = {len(item.embedding) for item in items}
        if len(dims) != 1 or not 0 < (dim := dims.pop()) <= _MAX_DIM:
            raise self._useless("its vectors have no length that vectors have")
        if self._dim and dim != self._dim:
            raise self._useless(
                f"its vectors have {dim} numbers, and search.embedder_dim says {self._dim}"
            )
        ordered = sorted(items, key=lambda item: item.index)
        vectors = np.asarray([item.embedding for item in ordered], dtype=np.float64)
        if not np.isfinite(vectors).all():
            raise self._useless("its vectors hold what is no number")
        # First by the greatest, for the square of a number may be none.
        greatest = np.abs(vectors).max(axis=1, keepdims=True)
        if not greatest.all():
            raise self._useless("it gave a vector of zeros")
        vectors /= greatest
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)

    def _useless(self, why: str) -> MeshError:
        return StateError(f"the embedder at {self.host} is of no use: {why}")

    def _words(self, body: bytes) -> str:
        """What it says, as `: …`."""
        try:
            told = _told.decode(body)
        except msgspec.MsgspecError:
            return ""
        error = told.error
        said = error.get("message", "") if isinstance(error, dict) else error
        words = self._clean(str(said or told.message or told.detail or ""))
        return f": {words}" if words else ""

    def _clean(self, words: str) -> str:
        """A line of an error, without the key should it quote that."""
        if self._key:
            words = words.replace(self._key, "…")
        return " ".join(words.split())[:_MOST_WORDS]


def _asked_wait_s(header: str) -> float | None:
    """Of Retry-After, in either form; None: it does not say.

    Source: RFC 9110, 10.2.3.
    """
    seconds = header.strip()
    if seconds.isdecimal():
        return float(seconds[:_MOST_DIGITS])
    try:
        until = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=dt.UTC)
    return max(0.0, (until - dt.datetime.now(tz=dt.UTC)).total_seconds())
