"""An embeddings endpoint on loopback, as OpenAI's: a real HTTP server that can misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.config import SearchConfig

KEY = "k3y-that-nobody-sees"


class Answer(NamedTuple):
    """What the server says."""

    status: int = 200
    body: Any = None
    """JSON, or bytes to be sent as they are."""
    headers: dict[str, str] = {}  # noqa: RUF012
    after_s: float = 0.0
    drip_s: float = 0.0
    """Between one byte of the body and the next."""


Behaviour = Callable[[dict[str, Any]], Answer]


def good(asked: dict[str, Any]) -> Answer:
    """Vectors of hashed words, twice as long as unit vectors, in another order than asked."""
    vectors = 2 * HashEmbedder().embed_documents(asked["input"])
    vectors[~vectors.any(axis=1)] = 1  # models know something of every text
    items = [
        {"object": "embedding", "index": place, "embedding": [float(x) for x in vector]}
        for place, vector in enumerate(vectors)
    ]
    return Answer(body={"object": "list", "data": items[::-1], "model": asked["model"]})


class EmbeddingServer:
    """`with EmbeddingServer() as server`; `script` says how the next requests are answered, one
    each, and `behaviour` how those after them.
    """

    def __init__(self, behaviour: Behaviour = good) -> None:
        self.behaviour = behaviour
        self.script: list[Behaviour | Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self._stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                if server._stopped.is_set():  # a connection that is still open
                    self.close_connection = True
                    return
                server.paths.append(self.path)
                server.headers.append({name.lower(): text for name, text in self.headers.items()})
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append(asked)
                said = server.script.pop(0) if server.script else server.behaviour
                answer = said if isinstance(said, Answer) else said(asked)
                if answer.after_s:
                    server._stopped.wait(answer.after_s)
                body = (
                    answer.body
                    if isinstance(answer.body, bytes)
                    else json.dumps(answer.body).encode()
                )
                try:
                    self.send_response(answer.status)
                    for name, text in answer.headers.items():
                        self.send_header(name, text)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    step = 1 if answer.drip_s else len(body) + 1
                    for start in range(0, len(body), step):
                        self.wfile.write(body[start : start + step])
                        if answer.drip_s and server._stopped.wait(answer.drip_s):
                            break
                except OSError:  # whoever asked has hung up
                    self.close_connection = True

            do_GET = do_POST  # noqa: N815 (a redirect that was followed would come as one)

            def log_message(self, *_: object) -> None:
                """Not on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def settings(self, **others: Any) -> SearchConfig:
        """Of an embedder that asks this server."""
        known = {
            "embedder": "openai",
            "embedder_url": self.url,
            "embedder_model": "words-1",
            "embedder_key": KEY,
        }
        return SearchConfig(**(known | others))


class Waits:
    """Stands in for `time.sleep`: notes, and does not wait."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
