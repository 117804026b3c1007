"""Sealed with what only masters have: a dump of the database forges nothing.

Source: RFC 5869 (HKDF); XSalsa20-Poly1305 as in NaCl's secretbox.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

_PURPOSE = b"nodemesh signing keys v1"


class SeedSealer:
    """`mesh.ports.Sealer` under a key that follows from a seed that all masters have."""

    def __init__(self, seed: str) -> None:
        """Args:
        seed: Of the issuer of broker logins; 256 random bits are in it.
        """
        derived = HKDF(SHA256(), SecretBox.KEY_SIZE, salt=None, info=_PURPOSE)
        self._box = SecretBox(derived.derive(seed.encode()))

    def seal(self, secret: bytes) -> str:
        return base64.b64encode(self._box.encrypt(secret)).decode()

    def unseal(self, sealed: str) -> bytes:
        try:
            return self._box.decrypt(base64.b64decode(sealed, validate=True))
        except (CryptoError, binascii.Error, ValueError, TypeError):
            raise ValueError("sealed by somebody else, or changed since") from None
