"""Why each request went where it went, kept until the masters have it: what `explain` shows."""

from __future__ import annotations

from mesh.wire.messages import CallTrace, Step

_PLAIN_AT_MOST = 20
_AT_MOST = 64
"""Of one report."""
_STEPS_AT_MOST = 200
_WHY_CHARS = 300
_TAME = frozenset({"chosen", "answered"})


class Story:
    """What was decided about one request, as it happens."""

    __slots__ = ("at", "began", "id", "notable", "steps", "verb")

    def __init__(self, id: str, verb: str, *, began: float, at: int) -> None:  # noqa: A002
        """`began` in monotonic seconds, `at` in unix ms."""
        self.id = id
        self.verb = verb
        self.began = began
        self.at = at
        self.notable = False
        """Something happened that is worth more than an answer from whoever was chosen."""
        self.steps: list[tuple[float, str, str, str]] = []

    def step(self, now: float, node: str, what: str, why: str = "") -> None:
        """`what` is one of the words of `Step.what`."""
        if len(self.steps) < _STEPS_AT_MOST:
            self.steps.append((now, node, what, why))
        if what not in _TAME:
            self.notable = True


class CallTraces:
    """The stories since the last report; of the plain ones the first few."""

    def __init__(self) -> None:
        self._kept: list[CallTrace] = []
        self._plain = 0

    def end(self, story: Story, now: float, outcome: str) -> bool:
        """The request ended, `ok` or in an error of that kind; whether its story is kept."""
        notable = story.notable or outcome != "ok"
        if len(self._kept) >= _AT_MOST or (not notable and self._plain >= _PLAIN_AT_MOST):
            return False
        self._plain += not notable
        self._kept.append(_trace(story, now, outcome))
        return True

    def waiting(self) -> list[CallTrace]:
        """Those that were not sent yet."""
        return list(self._kept)

    def sent(self) -> None:
        """The masters have them, as far as anybody can tell."""
        self._kept = []
        self._plain = 0


def _trace(story: Story, now: float, outcome: str) -> CallTrace:
    return CallTrace(
        id=story.id[:200],
        verb=story.verb,
        at=story.at,
        took_ms=_ms(now - story.began),
        outcome=outcome,
        steps=[
            Step(at_ms=_ms(at - story.began), node=node, what=what, why=why[:_WHY_CHARS])
            for at, node, what, why in story.steps
        ],
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
