"""Embedders by the name they have in the configuration."""

from __future__ import annotations

from collections.abc import Callable

from mesh.adapters.embedders.hashing import HashEmbedder
from mesh.adapters.embedders.minilm import MiniLmEmbedder
from mesh.adapters.embedders.openai import OpenAIEmbedder
from mesh.adapters.embedders.wordllama import WordLlamaEmbedder
from mesh.config import SearchConfig
from mesh.errors import ConfigError
from mesh.ports import Embedder

_EMBEDDERS: dict[str, Callable[[SearchConfig], Embedder]] = {
    "hash": lambda _settings: HashEmbedder(),
    "minilm": lambda settings: MiniLmEmbedder(settings.embedder_path),
    "openai": OpenAIEmbedder,
    "wordllama": lambda _settings: WordLlamaEmbedder(),
}


def load_embedder(name: str, settings: SearchConfig | None = None) -> Embedder:
    """The embedder called `name`. A model is read from disk, or an endpoint asked, when something
    is first asked of it, which may take seconds: do that in a thread.

    Args:
        name: `search.embedder`.
        settings: What else there is to know of it; None: defaults.

    Raises:
        ConfigError: No embedder has that name, or its settings cannot be.
    """
    try:
        make = _EMBEDDERS[name]
    except KeyError:
        known = ", ".join(sorted(_EMBEDDERS))
        raise ConfigError(f"search.embedder: unknown embedder {name!r}; known: {known}") from None
    return make(settings or SearchConfig())
