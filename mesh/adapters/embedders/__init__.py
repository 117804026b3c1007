"""Text to vectors, offline. Models load on first use, not on import."""

from mesh.adapters.embedders.registry import load_embedder

__all__ = ["load_embedder"]
