"""Which caller a connection's name belongs to: the one that the broker let in under another name
cannot speak, or be spoken to, in its place.

Masters name connections, not callers, when they hand out probes; names are random, so whoever told
under one first is its owner, as long as it is heard.
"""

from __future__ import annotations

from collections import OrderedDict

MOST_CONNECTIONS = 256
"""Of one caller; the one that was heard longest ago makes room."""
_MOST_CALLERS = 4096


class Connections:
    """Of all callers. Times are unix ms."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._heard: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()
        """Caller → connection → when it was heard; in both, whoever was heard longest ago is first.
        """

    def heard(self, caller: str, connection: str, now: int) -> bool:
        """Whether the name is this caller's, as far as is known."""
        if self._owners.setdefault(connection, caller) != caller:
            return False
        own = self._heard.setdefault(caller, OrderedDict())
        own[connection] = now
        own.move_to_end(connection)
        self._heard.move_to_end(caller)
        if len(own) > MOST_CONNECTIONS:
            del self._owners[own.popitem(last=False)[0]]
        if len(self._heard) > _MOST_CALLERS:
            self._forget(next(iter(self._heard)))
        return True

    def count(self, caller: str) -> int:
        """Connections of one caller."""
        return len(self._heard.get(caller, ()))

    def sweep(self, before: int) -> None:
        """Forget those that were last heard earlier than that."""
        for caller, own in list(self._heard.items()):
            for connection in [one for one, at in own.items() if at < before]:
                del own[connection], self._owners[connection]
            if not own:
                del self._heard[caller]

    def _forget(self, caller: str) -> None:
        for connection in self._heard.pop(caller):
            del self._owners[connection]
