"""What the broker's permissions refuse: told to whoever asked for it, at once.

The broker only says so in an error that belongs to no request and whose subject nats-py turns into
lower case, so that is what is compared.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from mesh.adapters.nats.multiplexer import Multiplexer
from mesh.core.seldom import Seldom

log = structlog.get_logger()

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')


class Trial:
    """One subscription that may turn out not to be allowed."""

    def __init__(self, subject: str) -> None:
        self.subject = subject.lower()
        self.denied = False


class Denials:
    """Of one connection."""

    def __init__(self, identity: str, replies: Multiplexer) -> None:
        self._identity = identity
        self._replies = replies
        self._trials: set[Trial] = set()
        self._seldom = Seldom()

    @contextmanager
    def trial(self, subject: str) -> Iterator[Trial]:
        """Watch while a subscription is made; ask it after the broker has answered a ping."""
        trial = Trial(subject)
        self._trials.add(trial)
        try:
            yield trial
        finally:
            self._trials.discard(trial)

    def heard(self, error: str) -> bool:
        """Settle what an error of the broker is about; False: it is about something else."""
        found = _DENIED.search(error.lower())
        if found is None:
            return False
        act, subject = found.groups()
        if act == "publish":
            self._replies.deny(subject)
        else:
            for trial in self._trials:
                trial.denied = trial.denied or trial.subject == subject
        self._tell(act, subject)
        return True

    def _tell(self, act: str, subject: str) -> None:
        """One line a second, however many."""
        more = self._seldom.turn(asyncio.get_running_loop().time())
        if more is not None:
            log.warning(
                "mesh.bus.subject_denied",
                identity=self._identity,
                act=act,
                subject=subject,
                more_before=more,
            )
