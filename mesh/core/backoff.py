"""How long to wait before starting again what has died: twice as long each time, up to a limit, and
as at first after a life that was long enough.

No jitter: it spreads many who hit one target; what is restarted here hits nobody.
Source: systemd's `RestartSteps=`; Kubernetes' CrashLoopBackOff.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPolicy:
    """Seconds all."""

    first_s: float = 1.0
    factor: float = 2.0
    limit_s: float = 30.0
    reset_after_s: float = 60.0
    """A life this long forgives all earlier deaths."""


class Backoff:
    """The deaths of one thing."""

    def __init__(self, policy: BackoffPolicy | None = None) -> None:
        self._policy = policy or BackoffPolicy()
        self._delay_s = 0.0
        self.deaths = 0
        """In a row, each after a life shorter than `reset_after_s`."""

    def died(self, alive_s: float) -> float:
        """Note a death after `alive_s` seconds of life; returns the seconds to wait."""
        policy = self._policy
        if alive_s >= policy.reset_after_s:
            self.deaths = 0
        self.deaths += 1
        grown = policy.first_s if self.deaths == 1 else self._delay_s * policy.factor
        self._delay_s = min(grown, policy.limit_s)
        return self._delay_s
