"""Breakers that all callers share: opened by most of those who use a verb of a node, probed by a
few whom the masters name, closed for all when the probes succeed.

Nobody's word alone shuts others out. Where one caller alone has used the verb, and has one
connection, its own breaker is enough; where it has several, theirs becomes one for all of them, and
of everybody else: but the first other caller with a call for it gets to try it at once. Probes that
failed open it again unless as many callers' succeeded as callers' failed: then others are named, or
it closes, and each caller's own breaker says what is true for it.

Each change is a word with a new turn, later than every one before. While a breaker is half open
never more probes are allowed, or still run, than `success_threshold`: an allowance ends with the
`until` of its word, and who says that its probe still runs is named again, in nobody else's place.

Source: Nygard, *Release It!* (2007), "Circuit Breaker"; that one caller opens it for another is
ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mesh.config import BreakerConfig
from mesh.core.breaker_votes import Votes, Who
from mesh.core.connections import Connections
from mesh.types import BreakerState
from mesh.wire.messages import BreakerInfo, BreakerWord, VerbOutcome

CHOICE_MS = 1000
"""How long those who are named may send their probes."""
SETTLE_MS = 600
"""After that, until it is known which of them run: callers tell twice a second."""
HEARING_MS = 2000
"""What a caller tells that long after a word counts, whether it has heard the word or not."""
HOLD_MS = 60_000
"""A probe that has not come back by then keeps nobody else waiting."""
IDLE_MS = 60_000
"""Half open that long, and nobody has a call to try it with: callers decide for themselves."""
TOLD_MS = 60_000
"""How long it is said that a breaker has closed."""
_MOST_VERBS = 256
_MOST_DECIDED = 256
"""In one tick; the others have their turn in the next ones."""
_MOST_VOICES = 50_000
"""Of one caller: each is one connection's word about one breaker."""
_SILENT_WINDOWS = 10
"""After that, who used a breaker that is not closed will not come back to probe it."""
_SEVERAL = 2
_MOST_AHEAD_MS = 60_000
"""Of our clock may another master's turn be."""


class Change(NamedTuple):
    """A new word."""

    node: str
    verb: str
    word: BreakerWord


class _Shared:
    """One breaker."""

    __slots__ = (
        "_config", "against", "alone", "calm_at", "carried", "dirty", "granted", "heard_turn",
        "in_favour", "results", "since", "times", "turn", "votes", "word",
    )  # fmt: skip

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self.votes = Votes(config)
        self.word: BreakerWord | None = None
        self.turn = 0
        self.heard_turn = 0
        """Newest turn that callers have heard, also of another master."""
        self.since = 0
        """Of the word."""
        self.times = 0
        """Opened in a row."""
        self.calm_at = 0
        """Half open without a result since then."""
        self.granted: dict[Who, int] = {}
        self.results: dict[Who, tuple[int, int]] = {}
        """Probes that succeeded and failed, of those granted."""
        self.carried = 0
        """Successes of the words before, since it became half open."""
        self.against: set[str] = set()
        self.in_favour: set[str] = set()
        """Callers whose probes failed, and those whose only succeeded, since it became half open.
        """
        self.alone = ""
        """The one caller on whose word it is open."""
        self.dirty = False

    @property
    def state(self) -> BreakerState:
        return BreakerState.CLOSED if self.word is None else self.word.state

    # -- hearing -----------------------------------------------------------------------------------

    def heard(self, who: Who, outcome: VerbOutcome, now: int) -> None:
        counts = outcome.turn >= self.turn or now - self.since >= HEARING_MS
        self.votes.heard(who, outcome, now, counts=counts)
        if outcome.turn <= now + _MOST_AHEAD_MS:
            self.heard_turn = max(self.heard_turn, outcome.turn)
        if outcome.turn == self.turn and who in self.granted:
            self._probed(who, outcome)
        self.dirty = True

    def _probed(self, who: Who, outcome: VerbOutcome) -> None:
        """Counts are of the whole turn: a report that is lost costs nothing."""
        most = self.granted[who]
        succeeded, failed = self.results.get(who, (0, 0))
        succeeded = max(succeeded, min(outcome.probes_succeeded, most))
        failed = max(failed, min(outcome.probes_failed, most))
        self.results[who] = succeeded, failed
        if failed:
            self.against.add(who.caller)
            self.in_favour.discard(who.caller)
        elif succeeded and who.caller not in self.against:
            self.in_favour.add(who.caller)

    # -- deciding ----------------------------------------------------------------------------------

    def tick(self, now: int, connections: Connections) -> bool:
        """What is due; True if there is a new word, or one less."""
        match self.state:
            case BreakerState.CLOSED:
                return self._while_closed(now, connections)
            case BreakerState.OPEN:
                return self._while_open(now)
            case BreakerState.HALF_OPEN:
                return self._while_half_open(now)

    def _while_closed(self, now: int, connections: Connections) -> bool:
        if self.dirty and self._config.enabled:
            self.dirty = False
            verdict = self.votes.verdict(now)
            if verdict and not (verdict.alone and connections.count(verdict.alone) < _SEVERAL):
                self.alone = verdict.alone
                self._open(now, verdict.why)
                return True
        if self.word is not None and now - self.since >= TOLD_MS:
            self.word = None
            return True
        return False

    def _while_open(self, now: int) -> bool:
        heard, self.dirty = self.dirty, False
        is_due = self.word is not None and now >= self.word.until
        if heard and self.alone and not is_due:
            is_due = self.votes.wanted_by_others(self.alone, self.since)
        if is_due:
            self.calm_at, self.carried = now, 0
            self.against, self.in_favour = set(), set()
            self._choose(now, {})
        return is_due

    def _while_half_open(self, now: int) -> bool:
        heard, self.dirty = self.dirty, False
        succeeded = self.carried + sum(good for good, _ in self.results.values())
        is_late = self.word is not None and now >= self.word.until + SETTLE_MS
        awaited = [
            who
            for who, most in self.granted.items()
            if not is_late and sum(self.results.get(who, (0, 0))) < most
        ]
        others_may_tell = any(who.caller not in self.against for who in awaited)
        outvoted = len(self.against) <= len(self.in_favour)
        to_choose = not awaited if self.granted else heard or is_late
        if self.against and not outvoted and not others_may_tell:
            if self.against != {self.alone}:
                self.alone = ""
            self._open(now, "a probe failed")
        elif succeeded >= self._config.success_threshold:
            self.close(now, f"{succeeded} probes succeeded")
        elif to_choose:
            running = self._running(now)
            if running or any(map(sum, self.results.values())):
                self.calm_at = now
            self.carried = succeeded
            if now - self.calm_at >= IDLE_MS:
                self.close(now, "nobody had a call to try it with")
            else:
                self._choose(now, running)
        else:
            return False
        return True

    def _open(self, now: int, why: str) -> None:
        timeout_s = self._config.retry_timeout_s
        wait_s = timeout_s * min(2.0 ** min(self.times, 64), self._config.max_backoff)
        self.times += 1
        self._say(BreakerState.OPEN, now, until=now + round(wait_s * 1000), reason=why)

    def close(self, now: int, why: str) -> None:
        """What was said before no longer counts."""
        self.times = 0
        self.votes.clear()
        self._say(BreakerState.CLOSED, now, until=0, reason=why)

    def _running(self, now: int) -> dict[Who, int]:
        """Who says that probes still run which the present word allowed, and how many."""
        running = {}
        for who, most in self.granted.items():
            voice = self.votes.voice(who)
            left = most - sum(self.results.get(who, (0, 0)))
            if voice is not None and voice.probing and now - voice.tried_at < HOLD_MS and left > 0:
                running[who] = min(voice.probing, left)
        return running

    def _choose(self, now: int, running: Mapping[Who, int]) -> None:
        """Name those who may probe: first whoever still does, then others for what is missing."""
        granted = dict(running)
        missing = self._config.success_threshold - self.carried - sum(running.values())
        turns = [who for who in self.votes.by_turns() if who not in running]
        for place in range(missing if turns else 0):
            who = turns[place % len(turns)]
            granted[who] = granted.get(who, 0) + 1
            self.votes.tries(who, now)
        reason = "" if self.word is None else self.word.reason
        self._say(
            BreakerState.HALF_OPEN, now, until=now + CHOICE_MS, reason=reason, granted=granted
        )

    def _say(
        self,
        state: BreakerState,
        now: int,
        *,
        until: int,
        reason: str,
        granted: Mapping[Who, int] | None = None,
    ) -> None:
        self.turn = max(now, self.turn + 1, self.heard_turn + 1)
        self.since = now
        self.granted = dict(granted or {})
        self.results = {}
        self.dirty = False
        probers: Counter[str] = Counter()
        for who, calls in self.granted.items():
            probers[who.connection] += calls
        self.word = BreakerWord(
            state=state,
            turn=self.turn,
            until=until,
            for_ms=max(until - now, 0),
            probers=dict(probers),
            reason=reason,
        )

    def follow(self, word: BreakerWord | None, now: int) -> None:
        """What the leading master says."""
        if word is None:
            self.word = None
            return
        if word.turn <= self.turn:
            return
        was_open = self.state is BreakerState.OPEN
        most_ms = round(self._config.retry_timeout_s * self._config.max_backoff * 1000)
        until = min(word.until, now + (word.for_ms or max(most_ms, CHOICE_MS)))  # clocks differ
        if until != word.until:
            word = msgspec.structs.replace(word, until=until)
        if word.state is BreakerState.OPEN:
            self.times += not was_open
        elif word.state is BreakerState.CLOSED:
            self.times = 0
            self.votes.clear()
        elif was_open:
            self.calm_at = now
        self.turn, self.since, self.word = word.turn, now, word
        self.results, self.granted, self.carried = {}, {}, 0
        self.against, self.in_favour, self.alone = set(), set(), ""
        for who, _ in self.votes:
            if who.connection in word.probers:
                self.granted.setdefault(who, word.probers[who.connection])

    def info(self, node: str, verb: str, now: int) -> BreakerInfo:
        """As operators see it."""
        summary = self.votes.summary(now)
        word = self.word
        return BreakerInfo(
            node=node,
            verb=verb,
            state=self.state,
            reason="" if word is None else word.reason,
            until=word.until if word is not None and word.state is BreakerState.OPEN else 0,
            calls=summary.calls,
            failures=summary.failures,
            callers=summary.connections,
            open_at=summary.open_at,
        )


class _Node:
    """The breakers of one life of a node."""

    __slots__ = ("breakers", "incarnation")

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.breakers: dict[str, _Shared] = {}


class SharedBreakers:
    """The breakers of all nodes. Times are unix ms."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._nodes: dict[str, _Node] = {}
        self._connections = Connections()
        self._voices: Counter[str] = Counter()
        """By caller, since the last sweep."""
        self._decided = 0

    def nodes(self) -> list[str]:
        """Those of which anything is known."""
        return list(self._nodes)

    def lives(self, node: str, incarnation: int) -> None:
        """The present life of a node; what was told of another one is forgotten."""
        known = self._nodes.get(node)
        if known is None or known.incarnation != incarnation:
            self._nodes[node] = _Node(incarnation)

    def forget(self, node: str) -> None:
        """The node is no more."""
        self._nodes.pop(node, None)

    def heard(self, caller: str, connection: str, outcome: VerbOutcome, now: int) -> None:
        """A report of `caller`, as the broker names it. What is of another life of the node than
        the one that `lives`, is passed over.
        """
        known = self._nodes.get(outcome.node)
        if known is None or known.incarnation != outcome.incarnation:
            return
        breaker = self._breaker(known, outcome.verb)
        if breaker is None or not self._connections.heard(caller, connection, now):
            return
        who = Who(caller, connection)
        if breaker.votes.voice(who) is None:
            if self._voices[caller] >= _MOST_VOICES:
                return
            self._voices[caller] += 1
        breaker.heard(who, outcome, now)

    def tick(self, now: int) -> list[Change]:
        """Decide what is due."""
        due = [
            (node, verb, breaker)
            for node, known in self._nodes.items()
            for verb, breaker in known.breakers.items()
            if breaker.dirty or breaker.word is not None
        ]
        if len(due) > _MOST_DECIDED:
            start = self._decided % len(due)
            due = (due[start:] + due[:start])[:_MOST_DECIDED]
            self._decided = start + _MOST_DECIDED
        changes = []
        for node, verb, breaker in due:
            if breaker.tick(now, self._connections):
                word = breaker.word or BreakerWord(state=BreakerState.CLOSED, turn=breaker.turn)
                changes.append(Change(node, verb, word))
        return changes

    def words(self, node: str) -> dict[str, BreakerWord]:
        """What callers should know, by verb; all else is closed."""
        known = self._nodes.get(node)
        if known is None:
            return {}
        return {
            verb: breaker.word
            for verb, breaker in known.breakers.items()
            if breaker.word is not None
        }

    def follow(self, node: str, words: Mapping[str, BreakerWord], now: int) -> None:
        """What the leading master says of a node that `lives`; for masters that do not lead."""
        known = self._nodes.get(node)
        if known is None:
            return
        for verb in {*known.breakers, *words}:
            breaker = self._breaker(known, verb)
            if breaker is not None:
                breaker.follow(words.get(verb), now)

    def reset(self, node: str, verb: str, now: int) -> None:
        """Close a breaker of a node that `lives`, at all callers; empty: all of its breakers."""
        known = self._nodes.get(node)
        if known is None:
            return
        for each in [verb] if verb else list(known.breakers):
            breaker = self._breaker(known, each)
            if breaker is not None:
                breaker.close(now, "reset by an operator")

    def list(self, now: int, *, node: str = "") -> list[BreakerInfo]:
        """Those that were used in the window or of which there is something to say, by node and
        verb; empty: of all nodes.
        """
        found = (
            breaker.info(slug, verb, now)
            for slug in ([node] if node else sorted(self._nodes))
            if slug in self._nodes
            for verb, breaker in sorted(self._nodes[slug].breakers.items())
        )
        return [
            one for one in found if one.calls or one.reason or one.state is not BreakerState.CLOSED
        ]

    def states(self) -> Counter[BreakerState]:
        """How many are open, half open, closed."""
        return Counter(
            breaker.state for known in self._nodes.values() for breaker in known.breakers.values()
        )

    def sweep(self, now: int) -> None:
        """Forget who has not been heard for a window, and breakers of which nothing is known.
        Those who used one that is not closed stay longer: they will have to probe it.
        """
        self._connections.sweep(now - round(self._config.window_s * 1000))
        self._voices.clear()
        for node, known in list(self._nodes.items()):
            for verb, breaker in list(known.breakers.items()):
                is_closed = breaker.state is BreakerState.CLOSED
                breaker.votes.sweep(now, windows=1 if is_closed else _SILENT_WINDOWS)
                if breaker.word is None and not len(breaker.votes):
                    del known.breakers[verb]
                    continue
                self._voices.update(who.caller for who, _ in breaker.votes)
            if not known.breakers:
                del self._nodes[node]

    def _breaker(self, known: _Node, verb: str) -> _Shared | None:
        breaker = known.breakers.get(verb)
        if breaker is None and len(known.breakers) < _MOST_VERBS:
            breaker = known.breakers[verb] = _Shared(self._config)
        return breaker
