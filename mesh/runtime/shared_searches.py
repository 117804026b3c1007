"""One search for all who ask the same of the same data, at once or later."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Hashable

import msgspec

from mesh.errors import MeshError
from mesh.ports import Clock
from mesh.runtime.answer_cache import AnswerCache, Place
from mesh.runtime.search_plan import Plan
from mesh.runtime.single_flight import Flight, SingleFlight
from mesh.wire import codec
from mesh.wire.messages import SearchRequest, SearchResult

Search = Callable[[SearchRequest, Plan, Place | None, float], Awaitable[SearchResult]]
"""Asks the nodes, and has what it finds kept."""
_Shared = tuple[SearchResult, bytes | None]
"""An answer, and as JSON where several wait for it: nobody can change it for the others."""


class SharedSearches:
    """Of one client."""

    def __init__(self, cache: AnswerCache, clock: Clock, search: Search) -> None:
        """Args:
        cache: Of whole answers.
        clock: Time.
        search: What is done once.
        """
        self._cache = cache
        self._clock = clock
        self._search = search
        self._flights: SingleFlight[_Shared] = SingleFlight()

    async def answer(
        self,
        request: SearchRequest,
        chosen: Plan,
        place: Place | None,
        question: Hashable,
        began: float,
    ) -> SearchResult:
        """An answer that is kept, or that somebody else gets just now, or one of its own.

        Args:
            request: What is asked.
            chosen: Whom.
            place: Where the answer is kept; None: it is not.
            question: Equal for those who may share an answer.
            began: Monotonic seconds.

        Raises:
            MeshError: As the search does.
        """
        if place is not None and (kept := self._cache.get(place, began)) is not None:
            return self._own(kept, request, began, cached=True)
        timeout_s = request.options.timeout_ms / 1000
        give_up, key = began + timeout_s, (question, request.options.require)
        flight = self._flights.find(key, give_up)
        if flight is None:
            flight = self._begin(key, request, chosen, place, began)
            return (await self._flights.wait(flight))[0]
        self._cache.shared += 1
        answer = await self._joined(flight, give_up)
        if answer is None:
            now = self._clock.monotonic()
            flight = self._flights.find(key, give_up)
            if flight is None:
                left_ms = max(1, int((give_up - now) * 1000))  # others find it in time
                options = msgspec.structs.replace(request.options, timeout_ms=left_ms)
                again = msgspec.structs.replace(request, options=options)
                flight = self._begin(key, again, chosen, place, now)
            answer = _copied(await self._flights.wait(flight))
        return self._own(answer, request, began, cached=False)

    def _begin(
        self,
        key: Hashable,
        request: SearchRequest,
        chosen: Plan,
        place: Place | None,
        began: float,
    ) -> Flight[_Shared]:
        async def work() -> _Shared:
            answer = await self._search(request, chosen, place, began)
            return answer, codec.encode(answer) if flight.waiters > 1 else None

        timeout_s = request.options.timeout_ms / 1000
        flight = self._flights.begin(key, work, began + timeout_s, timeout_s)
        return flight

    async def _joined(self, flight: Flight[_Shared], give_up: float) -> SearchResult | None:
        """What the other one's search gave; None: it is not whole, and there is more time left than
        its nodes had.
        """
        try:
            answer = _copied(await self._flights.wait(flight))
        except MeshError as error:
            if error.retryable and self._has_more(flight, give_up):
                return None
            raise copy.copy(error) from None  # each of those who wait gets one of his own
        return None if answer.partial and self._has_more(flight, give_up) else answer

    def _has_more(self, flight: Flight[_Shared], give_up: float) -> bool:
        return give_up - self._clock.monotonic() > flight.timeout_s

    def _own(
        self, answer: SearchResult, request: SearchRequest, began: float, *, cached: bool
    ) -> SearchResult:
        """Somebody else's answer, as that to this request."""
        took_ms = round((self._clock.monotonic() - began) * 1000, 3)
        return msgspec.structs.replace(answer, id=request.id, duration_ms=took_ms, cached=cached)


def _copied(shared: _Shared) -> SearchResult:
    answer, encoded = shared
    return codec.decode(encoded or codec.encode(answer), SearchResult)
