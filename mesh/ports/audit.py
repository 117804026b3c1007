"""The audit trail, as those who do something worth an entry see it."""

from __future__ import annotations

from typing import Protocol


class Audit(Protocol):
    """Every call returns at once; what is noted is on disk within a second, and in the stream as
    soon as the broker takes it.
    """

    def note(
        self,
        kind: str,
        *,
        actor: str,
        subject: str,
        origin: str = "",
        **details: str | int | list[str],
    ) -> None:
        """Enter something that happened. Never raises.

        Args:
            kind: One token: `node-joined`, `key-rotated`, `token-revoked` ….
            actor: Who did it: `who(request, caller)`.
            subject: To whom or what.
            origin: Network address, where it is known.
            details: What else matters; no secrets.
        """
        ...

    def tally(self, kind: str, *, actor: str, subject: str, origin: str = "") -> None:
        """Enter something that may happen ten thousand times: the first at once, the others of a
        minute as one entry with a `count`, in bounded memory. Never raises.
        """
        ...
