"""Single keys: nkeys (Ed25519) log in and sign, curve keys (X25519) encrypt.

A public key is one letter for what it is and base32 of prefix, 32 bytes and CRC-16; a seed has an
`S` before it. The `nkeys` package knows no curve keys, so all of it is spelt out here, on PyNaCl.

Source: NATS nkeys (github.com/nats-io/nkeys, `strkey.go` and `xkeys.go`).
"""

from __future__ import annotations

import base64
import binascii
import functools
import secrets

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.signing import SigningKey, VerifyKey

USER, ACCOUNT, SERVER, CURVE = "U", "A", "N", "X"

_PREFIXES = {ACCOUNT: 0, SERVER: 13 << 3, USER: 20 << 3, CURVE: 23 << 3}
_SEED = 18 << 3
_KEY_BYTES = 32
_SEALED = b"xkv1"
_NONCE_BYTES = Box.NONCE_SIZE
_KNOWN_PEERS = 64
"""Servers of a cluster; the key that both sides share costs 100 µs to compute."""


def make_seed(kind: str) -> str:
    """A new private key."""
    return _seed_text(kind, secrets.token_bytes(_KEY_BYTES))


def public_of(seed: str) -> str:
    """The public key of a seed.

    Raises:
        ValueError: Not a seed.
    """
    kind, raw = decode_seed(seed)
    if kind == CURVE:
        return _public_text(kind, bytes(PrivateKey(raw).public_key))
    return _public_text(kind, bytes(SigningKey(raw).verify_key))


def decode_public(text: str, kind: str) -> bytes:
    """The 32 bytes of a public key of this kind.

    Raises:
        ValueError: Another kind of key, or none.
    """
    raw = _checked(text)
    if raw[0] != _PREFIXES[kind] or len(raw) != 1 + _KEY_BYTES:
        raise ValueError(f"not a public key of kind {kind}")
    return raw[1:]


def decode_seed(text: str) -> tuple[str, bytes]:
    """Its kind, and the 32 bytes that must stay secret.

    Raises:
        ValueError: Not a seed; says nothing of what it was.
    """
    raw = _checked(text)
    prefix = (raw[0] & 7) << 5 | raw[1] >> 3
    kind = next((letter for letter, known in _PREFIXES.items() if known == prefix), None)
    if raw[0] & 0xF8 != _SEED or kind is None or len(raw) != 2 + _KEY_BYTES:
        raise ValueError("not the seed of a key")
    return kind, raw[2:]


def _seed_text(kind: str, raw: bytes) -> str:
    prefix = _PREFIXES[kind]
    return _text(bytes([_SEED | prefix >> 5, (prefix & 31) << 3]) + raw)


def _public_text(kind: str, raw: bytes) -> str:
    return _text(bytes([_PREFIXES[kind]]) + raw)


def _text(raw: bytes) -> str:
    checked = raw + _crc16(raw).to_bytes(2, "little")
    return base64.b32encode(checked).rstrip(b"=").decode()


def _checked(text: str) -> bytes:
    """Without its checksum.

    Raises:
        ValueError
    """
    try:
        decoded = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise ValueError("not a key") from None
    raw, checksum = decoded[:-2], decoded[-2:]
    if len(raw) <= _KEY_BYTES or _crc16(raw).to_bytes(2, "little") != checksum:
        raise ValueError("not a key")
    return raw


def _crc16(data: bytes) -> int:
    """CRC-16/XMODEM."""
    return binascii.crc_hqx(data, 0)


# -- signing and encrypting ------------------------------------------------------------------------


class Signer:
    """An nkey that signs."""

    def __init__(self, seed: str) -> None:
        """Raises: ValueError, if it is no seed."""
        _, raw = decode_seed(seed)
        self._key = SigningKey(raw)
        self.public = public_of(seed)

    def __repr__(self) -> str:
        return f"Signer(public={self.public!r})"

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(data).signature


def verify(public: bytes, data: bytes, signature: bytes) -> None:
    """See that whoever has that key signed `data`.

    Raises:
        ValueError: He did not.
    """
    try:
        VerifyKey(public).verify(data, signature)
    except CryptoError:
        raise ValueError("the signature does not fit") from None


class CurveKey:
    """A curve key that opens what was sealed for it, and seals for others."""

    def __init__(self, seed: str) -> None:
        """Raises: ValueError, if it is no seed of a curve key."""
        kind, raw = decode_seed(seed)
        if kind != CURVE:
            raise ValueError("not the seed of a curve key")
        self._key = PrivateKey(raw)
        self.public = public_of(seed)
        self._box = functools.lru_cache(maxsize=_KNOWN_PEERS)(self._make_box)

    def __repr__(self) -> str:
        return f"CurveKey(public={self.public!r})"

    def seal(self, data: bytes, recipient: str) -> bytes:
        """Encrypt for the curve key `recipient`.

        Raises:
            ValueError: That is none.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _SEALED + nonce + self._box(recipient).encrypt(data, nonce).ciphertext

    def open(self, sealed: bytes, sender: str) -> bytes:
        """Decrypt what the curve key `sender` sealed.

        Raises:
            ValueError: Nothing that it sealed for us.
        """
        if not sealed.startswith(_SEALED):
            raise ValueError("not sealed")
        start = len(_SEALED) + _NONCE_BYTES
        try:
            return self._box(sender).decrypt(sealed[start:], sealed[len(_SEALED) : start])
        except CryptoError:
            raise ValueError("not sealed for us") from None

    def _make_box(self, other: str) -> Box:
        try:
            return Box(self._key, PublicKey(decode_public(other, CURVE)))
        except CryptoError:  # a point of small order
            raise ValueError("not a key to encrypt for") from None
