"""Embedders by the name they have in the configuration."""

from __future__ import annotations

from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.adapters.embedders.wordllama import WordLlamaEmbedder
from mesh.errors import ConfigError
from mesh.ports import Embedder

_EMBEDDERS: dict[str, type[HashEmbedder | WordLlamaEmbedder]] = {
    "hash": HashEmbedder,
    "wordllama": WordLlamaEmbedder,
}


def load_embedder(name: str) -> Embedder:
    """The embedder called `name`. A model is read from disk when something is first asked of it,
    which may take a second: do that in a thread.

    Raises:
        ConfigError: No embedder has that name.
    """
    try:
        return _EMBEDDERS[name]()
    except KeyError:
        known = ", ".join(sorted(_EMBEDDERS))
        raise ConfigError(f"search.embedder: unknown embedder {name!r}; known: {known}") from None
