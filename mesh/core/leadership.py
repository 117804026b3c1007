"""Who of several masters leads: the rule of one candidate for a lease.

The lease is one record that is only ever replaced by compare-and-set, and that the broker drops
when it has not been replaced for `ttl_s`. A holder counts its own time from before it wrote, and
only `_SHARE` of it, so that it has stopped before anybody else can begin. It holds the lease over
one connection: when the broker loses that, the others need not wait, since whatever the holder may
still say over it reaches nobody.

Source: Gray and Cheriton, Leases, SOSP 1989 (the holder's own, shorter term).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_SHARE = 0.8
"""Of the lease that a holder believes in: what is left allows for clocks of different speed."""
_RENEWALS = 4
"""In the time of a lease: two of them may fail."""
_LOOKS = 20
"""In the time of a lease, once its holder is late with its renewal, or nobody answers."""
_DEPARTED_KEPT = 256

NEVER = float("-inf")


class Seat(NamedTuple):
    """A connection as the broker knows it; never used again once it is gone."""

    server: str
    client: int


class Holder(NamedTuple):
    """Whoever wrote the lease last."""

    id: str
    seat: Seat


class Standing(NamedTuple):
    """The lease as it is."""

    revision: int
    """To be named by whoever replaces it."""
    holder: Holder | None
    """None: it was given back, has run out, or never was."""


class Look(NamedTuple):
    """Read the lease."""


class Write(NamedTuple):
    """Replace the lease, if `revision` still stands."""

    revision: int


class Rest(NamedTuple):
    """Do nothing until then, unless something happens."""

    until: float


Step = Look | Write | Rest


class Candidate:
    """One master's part. Ask `step` what to do, and tell what came of it.

    Times are seconds of one monotonic clock. A late answer tells of a past state of affairs, so
    steps follow one another: never two at once.
    """

    def __init__(self, identity: str, ttl_s: float) -> None:
        """Args:
        identity: Of this process alone.
        ttl_s: After that without renewal the broker drops the lease.
        """
        self._id = identity
        self._ttl_s = ttl_s
        self._revision: int | None = None
        """What we may replace: our own, or a lease that nobody holds; None: we have to look."""
        self._ends_at = NEVER
        self._act_at = NEVER
        self._outdated = False
        """The step under way began before we lost the connection, or gave up."""
        self._other = Standing(0, None)
        self._departed: deque[Seat] = deque(maxlen=_DEPARTED_KEPT)
        self.term = 0
        """Counts how often this master began to lead."""

    @property
    def ends_at(self) -> float:
        """When it stops to lead, unless it renews; in the past: it does not lead."""
        return self._ends_at

    def leads(self, now: float) -> bool:
        """Whether nobody else can lead now."""
        return now < self._ends_at

    @property
    def answer_within_s(self) -> float:
        """How long to wait for the answer to a step."""
        return self._ttl_s / _RENEWALS

    def step(self, now: float) -> Step:
        """What to do next."""
        if now < self._act_at:
            return Rest(self._act_at)
        self._outdated = False
        return Look() if self._revision is None else Write(self._revision)

    # -- what comes of it ------------------------------------------------------------------------

    def saw(self, standing: Standing, now: float) -> None:
        """The lease was read."""
        holder = standing.holder
        if holder is None or holder.id == self._id or holder.seat in self._departed:
            self._revision = standing.revision
            self._act_at = now
            return
        late = standing.revision == self._other.revision
        self._other = standing
        self._ends_at = NEVER
        self._act_at = now + self._ttl_s / (_LOOKS if late else _RENEWALS)

    def wrote(self, revision: int, *, began: float) -> bool:
        """The lease is ours since `began` or later. True: we did not lead until then."""
        if self._outdated:  # and so it is not known what stands now
            return False
        begins = not self.leads(began)
        self.term += begins
        self._revision = revision
        self._ends_at = began + self._ttl_s * _SHARE
        self._act_at = began + self._ttl_s / _RENEWALS
        return begins

    def refused(self, now: float) -> None:
        """Another revision stands: somebody else was there, or the lease has run out."""
        self._revision = None
        self._ends_at = NEVER
        self._act_at = now

    def unanswered(self, now: float) -> None:
        """The last step may or may not have been carried out."""
        self._revision = None
        self._act_at = now + self._ttl_s / _LOOKS

    # -- what happens meanwhile --------------------------------------------------------------------

    def departed(self, seat: Seat, now: float) -> bool:
        """The broker has lost a connection. True: it was the holder's, as far as is known."""
        self._departed.append(seat)
        holder = self._other.holder
        if holder is None or holder.seat != seat or self.leads(now):
            return False
        self._revision = None
        self._act_at = now
        return True

    def cut_off(self, now: float) -> None:
        """Our own connection is gone, and the lease with it."""
        self._revision = None
        self._ends_at = NEVER
        self._act_at = now
        self._outdated = True

    def give_up(self, now: float, pause_s: float = 0.0) -> int | None:
        """Lead no more, and let others go first for `pause_s`: the revision to give back, if we
        held the lease as far as we know.
        """
        held = self._revision if self.leads(now) else None
        self._revision = None
        self._ends_at = NEVER
        self._act_at = now + pause_s
        self._outdated = True
        return held
