"""Callers: the shell of `mesh.runtime`, without sockets and tasks, around the same rules."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.core.balancer import Balancer
from mesh.core.breaker import Outcome, had_its_time
from mesh.core.hedging import Hedging
from mesh.core.retry_budget import RetryBudget
from mesh.core.selection import Candidate, usable
from mesh.types import BreakerState, Health
from mesh.wire.messages import RouteNode, VerbOutcome
from simulator.calls import TIMEOUT_S, Attempt, Call, Lane, Tallies, Told
from simulator.master import EPOCH_MS, Master
from simulator.nodes import RETRY_AFTER_S, WIRE_S, Answer, Node
from simulator.policies import Policy
from simulator.timeline import Timeline

AWAY_S = 0.25
SOON_S = 0.02
VERB = "search"
_BLAMED = (Answer.FAILED, Answer.TIMED_OUT)
_NOWHERE_ELSE_TO_GO = (Answer.NO_RESPONDERS, Answer.GONE)


class Caller:
    """One client: its own view of every node."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        master: Master,
        shards: dict[str, list[Node]],
        tallies: Tallies,
    ) -> None:
        self.name = name
        self.time: Timeline = master.time
        self.policy = policy
        self.master = master
        self.shards = shards
        self.tallies = tallies
        routing = policy.routing
        self.balancer = Balancer(routing.strategy)
        self.budget = RetryBudget(routing.retry_budget)
        self.hedge_budget = RetryBudget(routing.hedge_budget, reserve=0)
        self.hedging = Hedging(routing.hedge_quantile)
        self.lanes: dict[str, Lane] = {}
        self.connected = True
        self.offering = True
        self._groups: dict[str, tuple[int, list[Candidate]]] = {}
        master.listeners.append(self._rerouted)

    def attach(self, rate: float) -> None:
        """Call shards in turn, `rate` times a second: at the same times whatever the policy."""
        names, rng = list(self.shards), self.time.stream(self.name)
        count = rng.randrange(len(names))

        def again() -> None:
            nonlocal count
            if not self.offering:
                return
            count += 1
            self.call(names[count % len(names)])
            self.time.after(rng.expovariate(rate), again)

        self.time.after(rng.expovariate(rate), again)

    # -- the route table -------------------------------------------------------------------------

    def _rerouted(self, old: RouteNode, new: RouteNode) -> None:
        lane = self.lanes.get(new.slug)
        if lane is None:
            return
        if new.incarnation > lane.life:
            self._abandon(lane)
            del self.lanes[new.slug]
            self._groups.pop(lane.node.shard, None)
            return
        self._inform(lane, new)
        if new.health is Health.UNREACHABLE and old.health is not Health.UNREACHABLE:
            self._abandon(lane)

    def _inform(self, lane: Lane, route: RouteNode) -> None:
        lane.load.reported = route.load.busy
        lane.load.weight = route.weight
        word = route.breakers.get(VERB)
        if word is not None:
            lane.breaker.adopt(
                word,
                until=(word.until - EPOCH_MS) / 1000,
                probes=word.probers.get(self.name, 0),
                now=self.time.now,
            )

    def _abandon(self, lane: Lane) -> None:
        for attempt in list(lane.open):
            self._ended(attempt, Answer.GONE)

    def _lane(self, node: Node) -> Lane:
        lane = self.lanes.get(node.slug)
        if lane is None:
            route = self.master.published[node.slug]
            lane = self.lanes[node.slug] = Lane(node, self.policy, route.incarnation)
            self._inform(lane, route)
        return lane

    def _candidates(self, shard: str) -> Sequence[Candidate]:
        version = self.master.versions[shard]
        known = self._groups.get(shard)
        if known is None or known[0] != version:
            found = []
            for node in self.shards[shard]:
                lane = self._lane(node)
                route = self.master.published[node.slug]
                found.append(Candidate(route, lane.load, lane.breaker, lane.away_until))
            known = self._groups[shard] = version, found
        return known[1]

    def _usable(self, call: Call, tried: Sequence[str]) -> Sequence[Candidate]:
        most = self.policy.routing.max_in_flight
        candidates = self._candidates(call.shard)
        return usable(candidates, self.time.now, max_in_flight=most, tried=tried)[0]

    def disconnected(self) -> None:
        """The broker is gone: what was asked is lost, and nobody is to blame."""
        self.connected = False
        for lane in self.lanes.values():
            for attempt in list(lane.open):
                self._ended(attempt, Answer.DISCONNECTED)

    # -- one call --------------------------------------------------------------------------------

    def call(self, shard: str) -> None:
        now = self.time.now
        self.tallies.offered += 1
        self.budget.called(now)
        self.hedge_budget.called(now)
        self._attempt(Call(shard, now))

    def _attempt(self, call: Call) -> None:
        if call.done:
            return
        if not self.connected:
            self._wait(call)
            return
        found = self._usable(call, call.tried) or self._usable(call, ())
        if not found:
            self._refuse(call)
            return
        chosen = self._pick(found)
        self._send(call, self.lanes[chosen])
        self._watch(call)
        delay_s = self.hedging.delay_s()
        if delay_s is not None and self.policy.routing.hedge_budget:
            call.hedge = self.time.after(delay_s, lambda: self._hedge(call))

    def _watch(self, call: Call) -> None:
        """Ask another one beside those that run when half of what is left is over."""
        if call.half is not None:
            call.half.cancel()
        half_s = (call.give_up - self.time.now) / 2
        call.half = self.time.after(half_s, lambda: self._half(call))

    def _wait(self, call: Call) -> None:
        """For the broker, as long as there is time."""
        if self.time.now + SOON_S < call.give_up:
            self.time.after(SOON_S, lambda: self._attempt(call))
        else:
            self._finish(call, ok=False)

    def _refuse(self, call: Call) -> None:
        if not call.tried:
            self.tallies.refused += 1
            for one in self._candidates(call.shard):
                self.lanes[one.node.slug].told.refused += 1
                self._note(self.lanes[one.node.slug])
        self._finish(call, ok=False)

    def _pick(self, found: Sequence[Candidate]) -> str:
        pick = self.balancer.pick([one.load for one in found], self.time.now, self.time.rng.random)
        return found[pick.index].node.slug

    def _hedge(self, call: Call) -> None:
        if call.done or len(call.open) != 1:
            return
        found = self._unbroken(call)
        if found and self.hedge_budget.take(self.time.now):
            self.tallies.hedged += 1
            self._send(call, self.lanes[self._pick(found)])

    def _half(self, call: Call) -> None:
        if call.done or not call.open or call.attempts >= self.policy.routing.max_attempts:
            return
        found = self._usable(call, call.tried) if self.connected else ()
        if found and self.budget.take(self.time.now):
            self.tallies.retried += 1
            self._send(call, self.lanes[self._pick(found)])
            self._watch(call)

    def _unbroken(self, call: Call) -> Sequence[Candidate]:
        """Whom to ask out of impatience."""
        found = self._usable(call, call.tried) if self.connected else ()
        return [one for one in found if self.lanes[one.node.slug].breaker.admits(self.time.now)]

    def _send(self, call: Call, lane: Lane) -> None:
        now, tallies = self.time.now, self.tallies
        permit = lane.breaker.acquire(now) or lane.breaker.exempt()
        attempt = Attempt(call, lane, permit, now)
        call.attempts += 1
        call.tried.append(lane.node.slug)
        call.open.append(attempt)
        lane.open[attempt] = None
        tallies.sent += 1
        if attempt.probes:
            running = tallies.probing.get(lane.node.slug, 0) + 1
            tallies.probing[lane.node.slug] = running
            tallies.most_probing = max(tallies.most_probing, running)
        deadline = call.give_up
        left_s = deadline - now
        attempt.timer = self.time.after(left_s, lambda: self._ended(attempt, Answer.TIMED_OUT))

        def answered(answer: Answer) -> None:
            self.time.after(WIRE_S, lambda: self._heard(attempt, answer))

        def arrive() -> None:
            if self.master.broker_up:
                lane.node.receive(deadline, answered)

        self.time.after(WIRE_S, arrive)

    def _heard(self, attempt: Attempt, answer: Answer) -> None:
        if self.master.broker_up and not attempt.lane.node.cut_off:
            self._ended(attempt, answer)

    def _ended(self, attempt: Attempt, answer: Answer) -> None:
        if attempt.ended:
            return
        call = attempt.call
        blamed = answer in _BLAMED
        outcome = Outcome.IGNORED
        if answer is Answer.OK:
            outcome = Outcome.SUCCESS
        elif answer is Answer.FAILED or (blamed and self._had_its_time(attempt)):
            outcome = Outcome.FAILURE
        self._close(attempt, outcome, counts=blamed)
        lane = attempt.lane
        if answer is Answer.OK:
            self.hedging.observed((self.time.now - attempt.began) * 1000)
            self._finish(call, ok=True)
            return
        if not blamed and answer is not Answer.DISCONNECTED:
            lane.away_until = self.time.now + AWAY_S
            lane.told.gone += answer is Answer.NO_RESPONDERS
            self._note(lane)
            self._groups.pop(call.shard, None)
        if call.done or call.open:
            return
        self._again(call, answer)

    def _again(self, call: Call, answer: Answer) -> None:
        """Another attempt, if there is time, a budget, and anybody to ask."""
        now = self.time.now
        elsewhere = self._usable(call, call.tried) if self.connected else ()
        if elsewhere:
            pause_s = 0.0
        elif answer in _NOWHERE_ELSE_TO_GO:
            pause_s = TIMEOUT_S
        elif answer is Answer.OVERLOADED:
            pause_s = RETRY_AFTER_S * (1 + self.time.rng.random() / 4)
        else:
            pause_s = 0.025 * 2.0 ** (call.attempts - 1) * (0.5 + self.time.rng.random())
        over = call.attempts >= self.policy.routing.max_attempts or now + pause_s >= call.give_up
        if over or not self.budget.take(now):
            self._finish(call, ok=False)
            return
        self.tallies.retried += 1
        self.time.after(pause_s, lambda: self._attempt(call))

    def _had_its_time(self, attempt: Attempt) -> bool:
        had_ms = (self.time.now - attempt.began) * 1000
        return had_its_time(had_ms, attempt.lane.load.usual_ms)

    def _close(self, attempt: Attempt, outcome: Outcome, *, counts: bool) -> None:
        attempt.ended = True
        if attempt.timer is not None:
            attempt.timer.cancel()
        lane, now = attempt.lane, self.time.now
        attempt.call.open.remove(attempt)
        del lane.open[attempt]
        match outcome:
            case Outcome.SUCCESS:
                lane.load.answered(attempt.token, now)
            case Outcome.FAILURE:
                lane.load.failed(attempt.token, now)
            case Outcome.IGNORED:
                lane.load.returned(attempt.token, now, counts=counts)
        if attempt.probes:
            self.tallies.probing[lane.node.slug] -= 1
        if outcome is not Outcome.IGNORED:
            lane.told.calls += 1
            lane.told.failures += outcome is Outcome.FAILURE
        before = lane.breaker.probes_failed
        changed = lane.breaker.settle(attempt.permit, outcome, now, self.time.rng.random())
        self._note(lane, soon=changed or lane.breaker.probes_failed > before)

    def _finish(self, call: Call, *, ok: bool) -> None:
        call.done = True
        for timer in (call.hedge, call.half):
            if timer is not None:
                timer.cancel()
        now = self.time.now
        for attempt in list(call.open):
            known_ms = attempt.lane.load.ewma_ms or 0.0
            took_ms = (now - attempt.began) * 1000
            self.hedging.observed(took_ms)
            slow = ok and self._had_its_time(attempt)
            outcome = Outcome.FAILURE if slow else Outcome.IGNORED
            self._close(attempt, outcome, counts=took_ms > known_ms)
        self.tallies.failed += not ok
        self.tallies.calls.append((call.began, (now - call.began) * 1000, ok))

    # -- reports ---------------------------------------------------------------------------------

    def _note(self, lane: Lane, *, soon: bool = False) -> None:
        if soon:
            self.time.after(SOON_S, lambda: self._report(lane))
        elif not lane.told.due:
            lane.told.due = True
            delay_s = SOON_S if lane.told.gone else self.policy.routing.outcome_interval_s
            self.time.after(delay_s, lambda: self._report(lane))

    def _report(self, lane: Lane) -> None:
        breaker, told = lane.breaker, lane.told
        lane.told = Told()
        opened = breaker.state is BreakerState.OPEN
        outcome = VerbOutcome(
            node=lane.node.slug,
            incarnation=lane.life,
            verb=VERB,
            calls=told.calls,
            failures=told.failures,
            gone=told.gone,
            refused=told.refused,
            state=breaker.state,
            until=EPOCH_MS + round(breaker.open_until * 1000) if opened else 0,
            turn=breaker.turn,
            probes_succeeded=breaker.probes_succeeded,
            probes_failed=breaker.probes_failed,
            probing=breaker.probing,
        )
        self.time.after(2 * WIRE_S, lambda: self.master.outcome(self.name, outcome))
