"""Time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Time, so that everything above it can be tested without waiting."""

    def monotonic(self) -> float:
        """Seconds; never goes back."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...
