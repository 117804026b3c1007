"""Why requests went where they went: the last calls that callers told of, found by their ids.

Bounded in calls and in bytes, and no caller has more than half of the room: one that tells much
does not push out the others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice

import msgspec

from mesh.wire.messages import CallTrace

CAPACITY = 10_000
_MOST_STEPS = 100
_MOST_CHARS = 32 * 1024 * 1024
_BASE_CHARS = 200
"""What a trace or a step takes besides its texts."""


class _Kept:
    """A trace in the log."""

    __slots__ = ("caller", "size", "trace")

    def __init__(self, trace: CallTrace, caller: str) -> None:
        self.trace = trace
        self.caller = caller
        self.size = _size(trace)


class _Share:
    """What one caller has in the log, oldest first."""

    __slots__ = ("chars", "kept")

    def __init__(self) -> None:
        self.kept: deque[_Kept] = deque()
        self.chars = 0


class TraceLog:
    """The newest traces of all callers."""

    def __init__(self, *, capacity: int = CAPACITY, most_chars: int = _MOST_CHARS) -> None:
        self.capacity = capacity
        self._most_chars = most_chars
        self._order: OrderedDict[_Kept, None] = OrderedDict()
        """Oldest first."""
        self._chars = 0
        self._shares: dict[str, _Share] = {}
        self._by_id: dict[str, list[_Kept]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def add(self, trace: CallTrace, caller: str) -> None:
        """Keep a trace that `caller` told; who that is, the broker knows better than the trace."""
        steps = trace.steps
        if len(steps) > _MOST_STEPS:  # how it began and how it ended
            steps = [*islice(steps, _MOST_STEPS // 2), *steps[-(_MOST_STEPS // 2) :]]
        kept = _Kept(msgspec.structs.replace(trace, caller=caller, steps=steps), caller)
        share = self._shares.setdefault(caller, _Share())
        self._order[kept] = None
        share.kept.append(kept)
        share.chars += kept.size
        self._chars += kept.size
        for name in _names(kept.trace):
            self._by_id.setdefault(name, []).append(kept)
        while len(share.kept) > self.capacity // 2 or share.chars > self._most_chars // 2:
            self._drop(share.kept[0])
        while len(self._order) > self.capacity or self._chars > self._most_chars:
            self._drop(next(iter(self._order)))

    def find(self, request: str) -> list[CallTrace]:
        """What was told under this id, or under `<id>.<node>`, in the order of the calls."""
        found = [
            kept.trace
            for kept in self._by_id.get(request, ())
            if kept.trace.id == request or _is_part(kept.trace)
        ]
        return sorted(found, key=lambda trace: (trace.at, trace.id))

    def _drop(self, kept: _Kept) -> None:
        """The oldest of its caller's."""
        del self._order[kept]
        share = self._shares[kept.caller]
        share.kept.popleft()
        share.chars -= kept.size
        if not share.kept:
            del self._shares[kept.caller]
        self._chars -= kept.size
        for name in _names(kept.trace):
            same = self._by_id[name]
            same.remove(kept)
            if not same:
                del self._by_id[name]


def _names(trace: CallTrace) -> set[str]:
    """Under which it may be looked for."""
    whole, _, _ = trace.id.rpartition(".")
    return {trace.id, whole} - {""}


def _is_part(trace: CallTrace) -> bool:
    """Whether the end of its id is the name of a node that was asked: ids may hold points too."""
    _, _, node = trace.id.rpartition(".")
    return any(step.node == node for step in trace.steps)


def _size(trace: CallTrace) -> int:
    texts = sum(len(step.node) + len(step.what) + len(step.why) for step in trace.steps)
    return _BASE_CHARS * (1 + len(trace.steps)) + len(trace.id) + len(trace.outcome) + texts
