"""What signs access tokens, what verifies them, and where the keys are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mesh.errors import UnauthorizedError
from mesh.wire.messages import Identity, PublicKey


class TokenSigner(Protocol):
    """Makes access tokens."""

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        """A token that says who its bearer is, from and until a unix time in seconds.

        Raises:
            UnavailableError: No key signs now.
        """
        ...

    def public_keys(self) -> list[PublicKey]:
        """What verifies its tokens, newest first; none where a shared secret does."""
        ...


class UnknownKeyError(UnauthorizedError):
    """The token names a key that is not trusted, or not yet."""


class TokenVerifier(Protocol):
    """Judges access tokens by what they say and who signed it."""

    def trust(self, keys: Sequence[PublicKey]) -> bool:
        """Believe these keys and no others; whether that is a change."""
        ...

    def verify(self, token: str, now: float) -> tuple[Identity, float]:
        """Who the bearer is, and until when (unix seconds, clock skew included).

        Args:
            token: What was shown; may be anything.
            now: Unix seconds.

        Raises:
            UnknownKeyError: Perhaps good, but none of the trusted keys.
            UnauthorizedError: Not good; the words are safe to show.
        """
        ...


class SigningPair(Protocol):
    """A private key in memory."""

    @property
    def public(self) -> PublicKey:
        """Its other half; the `kid` follows from it."""
        ...

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        """As `TokenSigner.sign`."""
        ...


class Mint(Protocol):
    """Makes private keys, and brings them back from what was kept of them."""

    def make(self) -> bytes:
        """A new private key."""
        ...

    def load(self, secret: bytes) -> SigningPair:
        """Raises ValueError: No such key."""
        ...


class Sealer(Protocol):
    """Encrypts what is kept where others than masters may look."""

    def seal(self, secret: bytes) -> str:
        """Text that only the masters of this mesh can open."""
        ...

    def unseal(self, sealed: str) -> bytes:
        """Raises ValueError: Sealed by somebody else, or changed since."""
        ...


class SealedKey(NamedTuple):
    """A private key as it is kept; times in unix ms."""

    kid: str
    sealed: str
    created_at: int
    retires_at: int | None
    """When it stops verifying; None: it signs."""

    def __repr__(self) -> str:
        return f"SealedKey(kid={self.kid!r}, retires_at={self.retires_at}, sealed=…)"


class FormerKey(NamedTuple):
    """A private key from the file where an earlier version kept it."""

    secret: bytes
    created_at: int

    def __repr__(self) -> str:
        return f"FormerKey(created_at={self.created_at}, secret=…)"


class FormerKeys(Protocol):
    """That file."""

    def read(self) -> list[FormerKey]:
        """Its keys; none where there is no such file.

        Raises:
            StateError: It cannot be read, or is damaged.
        """
        ...

    def remove(self) -> None:
        """The keys are somewhere else now.

        Raises:
            StateError: It cannot be removed.
        """
        ...


class SigningKeyStore(Protocol):
    """The ring of keys that all masters share, in the same SQL as the registry."""

    async def ring(self) -> list[SealedKey]:
        """All there are, newest first."""
        ...

    async def add_first(self, key: SealedKey) -> bool:
        """Enter the key that signs, unless another one does already: whether it was entered."""
        ...

    async def add(self, key: SealedKey) -> bool:
        """Enter a key that another place kept; False: it is there already."""
        ...

    async def rotate(self, key: SealedKey, *, retires_at: int) -> list[str]:
        """Enter a key that signs from now on; all others stop verifying at `retires_at`, unless
        that is earlier already. Ids of those that signed or verified longer.
        """
        ...

    async def forget(self, *, retired_before: int) -> int:
        """Drop what stopped verifying before that; how many."""
        ...
