"""What is no longer good, told to gateways and nodes on `mesh.v1.revoked`."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from mesh.errors import DisconnectedError, MeshError
from mesh.ports import Bus, Clock
from mesh.runtime.background import Background
from mesh.wire import codec, subjects
from mesh.wire.messages import Revoked

log = structlog.get_logger()

_TOLD_AT_ONCE = 1000
_RETRY_S = 0.1


class Revocations:
    """Tells all of it, in messages that fit; what the broker cannot take goes as soon as it can."""

    def __init__(self, bus: Bus, clock: Clock, background: Background) -> None:
        self._bus = bus
        self._clock = clock
        self._background = background
        self._untold: list[Revoked] = []
        self._retrying = False

    def start(self) -> None:
        """From now on a broker that comes back hears what it missed."""
        self._bus.on_connection(self._connection_changed)

    def tell(
        self, *, tokens: Sequence[str] = (), names: Sequence[str] = (), keys: bool = False
    ) -> None:
        """Access tokens, by id, and subjects whose API keys must be asked for again; `keys`: the
        keys that verify tokens as well.
        """
        for start in range(0, max(len(tokens), 1), _TOLD_AT_ONCE):
            page = list(tokens[start : start + _TOLD_AT_ONCE])
            first = start == 0
            told = Revoked(tokens=page, subjects=list(names) if first else [], keys=keys and first)
            if told.tokens or told.subjects or told.keys:
                self._untold.append(told)
        self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        try:
            self._publish_untold()
        except MeshError as error:
            log.warning("mesh.revocation.delayed", left=len(self._untold), error=str(error))
            # The broker's return is heard of; that it is no longer congested is not.
            if not isinstance(error, DisconnectedError) and not self._retrying:
                self._retrying = True
                self._background.spawn("tell-revocations", self._retry())

    async def _retry(self) -> None:
        try:
            while self._untold:
                await self._clock.sleep(_RETRY_S)
                try:
                    self._publish_untold()
                except MeshError as error:
                    log.debug("mesh.revocation.delayed", left=len(self._untold), error=str(error))
        finally:
            self._retrying = False

    def _publish_untold(self) -> None:
        while self._untold:
            self._bus.publish(subjects.REVOKED, codec.encode(self._untold[0]))
            self._untold.pop(0)

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._tell_the_rest()
