"""`signing-keys.json`, where an earlier version kept the keys that sign access tokens."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from mesh.errors import StateError
from mesh.ports import FormerKey

_KEY_BYTES = 32


class _StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    d: str
    """base64url, 32 bytes: the secret."""
    created_at: int
    """Unix ms."""

    def __repr__(self) -> str:
        return "_StoredKey(d=…)"


class _Ring(msgspec.Struct, frozen=True, kw_only=True):
    keys: Annotated[list[_StoredKey], Meta(min_length=1)]


class FormerKeyFile:
    """`mesh.ports.FormerKeys` in a master's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[FormerKey]:
        try:
            ring = msgspec.json.decode(self._path.read_bytes(), type=_Ring)
            return [FormerKey(_unpacked(key.d), key.created_at) for key in ring.keys]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"{self._path} cannot be read: {error.strerror}") from error
        except ValueError:  # not its words: they may hold a piece of a key
            raise StateError(
                f"{self._path} is damaged: put a copy back, or remove it: then every access token "
                "that was signed with its keys is refused"
            ) from None

    def remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(
                f"the keys in {self._path} are in the database now, but it cannot be removed "
                f"({error.strerror}): remove it"
            ) from error


def _unpacked(text: str) -> bytes:
    """Raises ValueError: Not base64url, or not of a key's length."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None
    if len(raw) != _KEY_BYTES:
        raise ValueError("not a key")
    return raw
