"""What one caller knows of the nodes it calls: load, breakers, who was away just now."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.config import BreakerConfig
from mesh.core.breaker import Breaker
from mesh.core.peer_load import InFlight, PeerLoad
from mesh.core.route_table import RouteTable, refusal
from mesh.core.selection import Candidate
from mesh.ports import Clock
from mesh.runtime.outcome_reports import Tally
from mesh.types import Health
from mesh.wire import subjects
from mesh.wire.messages import BreakerWord, RouteNode

_AWAY_S = 0.25
_ACTION = "act."
_MOST_LANES = 100
"""Of a node whose actions the table does not name."""


class Lane:
    """The calls of one verb to one life of one node."""

    __slots__ = ("breaker", "incarnation", "load", "slug", "subject", "tally", "verb")

    def __init__(
        self, slug: str, verb: str, subject: str, breaker: Breaker | None, node: InFlight
    ) -> None:
        self.slug = slug
        self.verb = verb
        """`search`, `fetch`, `ping` or `act.<action>`."""
        self.subject = subject
        self.breaker = breaker
        """None: breakers are switched off."""
        self.incarnation = 0
        self.load = PeerLoad(slug, node=node)
        self.tally = Tally()


class _Peer:
    __slots__ = ("away_until", "heard", "in_flight", "lanes", "route")

    def __init__(self, route: RouteNode | None) -> None:
        self.route = route
        """None: no table has named this node yet."""
        self.away_until = float("-inf")
        self.lanes: dict[str, Lane] = {}
        """By verb, of this life of the node."""
        self.in_flight = InFlight()
        """Of this life."""
        self.heard: dict[str, tuple[int, float]] = {}
        """By verb, the turn of the masters' word, and when it came (monotonic s)."""

    def keeps(self, verb: str) -> bool:
        """Whether calls of `verb` are worth remembering: an action that the node does not have is
        refused there, and there is no end of names.
        """
        if not verb.startswith(_ACTION):
            return True
        if self.route is not None and self.route.actions:
            return verb.removeprefix(_ACTION) in self.route.actions
        return len(self.lanes) < _MOST_LANES


class Group:
    """Replicas of a shard: any of them can answer a verb. Up to date after `Peers.refresh`."""

    __slots__ = ("askable", "candidates", "lanes", "slugs", "verb", "version")

    def __init__(self, slugs: Sequence[str], verb: str) -> None:
        self.slugs = tuple(slugs)
        self.verb = verb
        self.version = -1
        self.candidates: list[Candidate] = []
        self.askable = 0
        """How many of the candidates the table lets us ask."""
        self.lanes: dict[str, Lane] = {}
        """By slug."""


class Peers:
    """All nodes of one caller's route table, and its own experience with them."""

    def __init__(
        self, clock: Clock, config: BreakerConfig, *, identity: str, connection: str
    ) -> None:
        """Args:
        clock: Time.
        config: Of the breakers.
        identity: Whom the caller speaks as.
        connection: What the masters know this client by.
        """
        self._clock = clock
        self._config = config
        self._identity = identity
        self._connection = connection
        self._peers: dict[str, _Peer] = {}
        self.table: RouteTable | None = None
        """The last one that was adopted."""
        self._version = 0

    def adopt(self, table: RouteTable) -> dict[str, float]:
        """Take over a table: loads, weights, the masters' word on breakers. A node's new life
        starts with fresh ones.

        Returns:
            Slug of each node that is gone by this table and was not by the last, or has begun a new
            life → what was sent to it so many seconds ago, or before, will not be answered.
        """
        if table is self.table:
            return {}
        self.table = table
        now = self._clock.monotonic()
        removed = [slug for slug in self._peers if slug not in table.nodes]
        gone = {slug: 0.0 for slug in removed if self._peers.pop(slug).route is not None}
        for slug, route in table.nodes.items():
            peer = self._peers.get(slug)
            if peer is None:
                peer = self._peers[slug] = _Peer(None)
            known = peer.route
            if route is known or route == known:
                continue
            if route.health is Health.UNREACHABLE and (
                known is None or known.health is not Health.UNREACHABLE
            ):
                gone[slug] = 0.0
            elif known is not None and route.incarnation > known.incarnation:
                gone[slug] = max(0.0, (self._clock.unix_ms() - route.incarnation) / 1000)
            self._rerouted(peer, route, now)
        self._version += 1
        return gone

    def _rerouted(self, peer: _Peer, route: RouteNode, now: float) -> None:
        known, peer.route = peer.route, route
        if known is not None and route.incarnation > known.incarnation:
            peer.lanes = {}  # calls still under way settle on the old ones, which nobody asks
            peer.in_flight = InFlight()
            peer.away_until = float("-inf")
        known_words, peer.heard = peer.heard, {}
        for verb, word in route.breakers.items():
            heard = known_words.get(verb)
            if heard is None or heard[0] != word.turn:
                heard = word.turn, now
            peer.heard[verb] = heard
        for lane in peer.lanes.values():
            self._inform(peer, lane, route, now)

    def _inform(self, peer: _Peer, lane: Lane, route: RouteNode, now: float) -> None:
        """Tell a lane what the table says of its node."""
        lane.incarnation = route.incarnation
        lane.load.weight = route.weight
        lane.load.reported = route.load.busy
        word = route.breakers.get(lane.verb)
        if word is not None and lane.breaker is not None:
            until = self._until(word, peer.heard[lane.verb][1], now)
            probes = word.probers.get(self._connection, 0)
            lane.breaker.adopt(word, until=until, probes=probes, now=now)

    def _until(self, word: BreakerWord, heard_at: float, now: float) -> float:
        """The word's `until` in monotonic seconds. By its duration, if it has one: the masters'
        clocks may differ from ours.
        """
        if word.for_ms > 0:
            return heard_at + word.for_ms / 1000
        return now + (word.until - self._clock.unix_ms()) / 1000

    # -- calls -----------------------------------------------------------------------------------

    def route(self, slug: str) -> RouteNode | None:
        """What the table says of a node; None: nothing."""
        peer = self._peers.get(slug)
        return None if peer is None else peer.route

    def lane(self, slug: str, verb: str) -> Lane:
        """Where calls of `verb` to a node go, whether or not a table names it.

        Raises:
            InvalidError: Not the name of a node or verb.
        """
        peer = self._peers.get(slug)
        if peer is None:
            peer = _Peer(None)
            made = peer.lanes[verb] = self._made(peer, slug, verb)
            self._peers[slug] = peer  # of a name that is none, nothing is kept
            return made
        lane = peer.lanes.get(verb)
        if lane is None:
            lane = self._made(peer, slug, verb)
            if peer.keeps(verb):
                peer.lanes[verb] = lane
            else:
                lane.tally.told = False  # nor does anybody hear of it
        return lane

    def _made(self, peer: _Peer, slug: str, verb: str) -> Lane:
        if verb.startswith(_ACTION):
            subject = subjects.act(slug, verb.removeprefix(_ACTION), self._identity)
        else:
            subject = subjects.rpc(slug, verb, self._identity)
        breaker = Breaker(self._config) if self._config.enabled else None
        lane = Lane(slug, verb, subject, breaker, peer.in_flight)
        if peer.route is not None:
            self._inform(peer, lane, peer.route, self._clock.monotonic())
        return lane

    def refresh(self, group: Group) -> None:
        """Bring a group up to the last table; a node that it does not know is left out."""
        if group.version == self._version:
            return
        group.version = self._version
        group.candidates = []
        group.lanes = {}
        for slug in group.slugs:
            peer = self._peers.get(slug)
            if peer is None or peer.route is None:
                continue
            lane = group.lanes[slug] = self.lane(slug, group.verb)
            group.candidates.append(Candidate(peer.route, lane.load, lane.breaker, peer.away_until))
        group.askable = sum(not refusal(candidate.node) for candidate in group.candidates)

    def away(self, slug: str, now: float, seconds: float = _AWAY_S) -> None:
        """Others are asked before this node for a while: nobody listened there, or it has no place
        for more.
        """
        peer = self._peers.get(slug)
        if peer is not None:
            peer.away_until = now + min(seconds, _AWAY_S)
            self._version += 1
