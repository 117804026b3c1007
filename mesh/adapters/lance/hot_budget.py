"""How much memory the hot copies of all collections may take together."""

from __future__ import annotations

_SHARE_TO_RETURN = 0.75
"""Of the room that there is: what has just become too big does not come back at once."""


class HotBudget:
    """First come, first served: who has its copy keeps it until it outgrows what is left for it.

    Of what stays: while a copy's dead rows are removed, there are two of it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._taken: dict[str, int] = {}

    def room(self, collection: str) -> int:
        """Bytes that this collection may take, besides what the others have taken."""
        others = sum(size for name, size in self._taken.items() if name != collection)
        return max(0, self._limit_bytes - others)

    def fits(self, collection: str, size: int) -> bool:
        """Whether a copy of so many bytes may stay."""
        return self._limit_bytes > 0 and size <= self.room(collection)

    def may_return(self, collection: str, size: int) -> bool:
        """Whether a copy that is not there may be made."""
        return self.fits(collection, round(size / _SHARE_TO_RETURN))

    def take(self, collection: str, size: int) -> bool:
        """Note what the collection's copy takes now, if there is room for it; else what it took
        stays noted.
        """
        if not self.fits(collection, size):
            return False
        self._taken[collection] = size
        return True

    def free(self, collection: str) -> None:
        """Its copy is gone."""
        self._taken.pop(collection, None)
