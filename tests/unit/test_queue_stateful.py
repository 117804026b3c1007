"""Whatever dies, goes away or changes hands, in whatever order: nothing queued is lost, doubled or
out of turn.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_world import World
from virtual_time import VirtualLoop

from mesh.errors import ActionFailedError, MeshError, UnavailableError
from mesh.types import ActionState, Health, Status
from mesh.wire.messages import ActionNamed

SLUGS = ("crm", "shop")
slugs = st.sampled_from(SLUGS)
steps = st.one_of(
    st.tuples(st.just("put"), slugs, st.sampled_from(["ok", "flaky", "fails", "hopeless"])),
    st.tuples(st.just("put"), slugs, st.just("ok")),
    st.tuples(st.just("kill"), slugs),
    st.tuples(st.just("start"), slugs),
    st.tuples(st.just("pause"), slugs),
    st.tuples(st.just("lead"), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("broker")),
    st.tuples(st.just("jetstream"), st.booleans()),
    st.tuples(st.just("again"), slugs),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.05, 0.3, 1.0, 6.0])),
)
COMES = {
    "ok": [],
    "flaky": [UnavailableError("no"), UnavailableError("no")],
    "fails": [ActionFailedError("never")],
    "hopeless": [UnavailableError("no")] * 9,
}
ENDS = {
    "ok": {"succeeded"},
    "flaky": {"succeeded"},
    "fails": {"failed"},
    "hopeless": {"failed"},
}


class Run:
    def __init__(self, *, idempotent: bool) -> None:
        self.idempotent = idempotent
        self.put: list[tuple[str, str, str]] = []
        """Id, node, what comes of it."""
        self.cancelled: set[str] = set()
        self.maybe_cancelled: set[str] = set()
        self.world = World(masters=2, max_deliveries=4)

    async def go(self, chosen) -> None:
        world = await self.world.start(*SLUGS)
        for node in world.nodes.values():
            node.idempotent, node.takes_s = self.idempotent, 0.2
        for step in chosen:
            await self.do(*step)
        await self.mend()
        await world.empty(within_s=3000)
        await asyncio.sleep(5)
        self.check()
        await world.stop()

    async def do(self, what, *more) -> None:  # noqa: C901, PLR0912 (one line for each)
        world = self.world
        match what:
            case "put":
                node, comes = more
                action_id = f"{len(self.put)}"
                try:
                    await world.put(action_id, node=node)
                except MeshError:
                    return
                world.nodes[node].script[action_id] = list(COMES[comes])
                self.put.append((action_id, node, comes))
            case "again" if mine := [each for each in self.put if each[1] == more[0]]:
                with_id, node, _ = mine[-1]
                if world.queue.available:
                    await world.put(with_id, node=node)
            case "kill":
                await world.nodes[more[0]].kill()
            case "start" if world.nodes[more[0]].bus is None and world.history.available:
                await world.nodes[more[0]].start()
            case "pause" if world.nodes[more[0]].bus is not None:
                world.nodes[more[0]].health(Health.HEALTHY, status=Status.MAINTENANCE)
            case "lead":
                world.lead(world.masters[more[0]], alone=more[1])
                for master in world.masters:
                    if master is not world.leader and more[1]:
                        master.follow()
            case "broker":
                world.broker.stop()
                await asyncio.sleep(0.5)
                world.broker.start()
            case "jetstream":
                world.queue.available = world.history.available = more[0]
            case "cancel" if more[0] < len(self.put):
                await self.cancel(*self.put[more[0]][:2])
            case "wait":
                await asyncio.sleep(more[0])

    async def cancel(self, action_id: str, node: str) -> None:
        self.maybe_cancelled.add(action_id)
        try:
            done = await self.world.ask(
                "action-cancel", ActionNamed(action_id=action_id, node=node)
            )
        except MeshError:
            return
        if done.state is ActionState.CANCELLED and not done.attempt:
            self.cancelled.add(action_id)

    async def mend(self) -> None:
        self.world.queue.available = self.world.history.available = True
        for node in self.world.nodes.values():
            if node.bus is None:
                await node.start()
            node.health(Health.HEALTHY)

    def check(self) -> None:
        world = self.world
        for slug, node in world.nodes.items():
            mine = [each[0] for each in self.put if each[1] == slug]
            first = list(dict.fromkeys(node.effects))
            assert first == [each for each in mine if each in first], "out of turn"
            assert node.most <= 1, "at once"
            for action_id in mine:
                comes = {each[0]: each[2] for each in self.put}[action_id]
                self.check_one(node, action_id, comes)

    def check_one(self, node, action_id: str, comes: str) -> None:
        states = self.world.states(action_id, node.slug)
        ends = [each for each in states if not each.startswith(("queued", "accepted"))]
        last = ends[-1].rstrip("0123456789") if ends else "nothing"
        allowed = set(ENDS[comes])
        if action_id in self.maybe_cancelled:
            allowed |= {"cancelled"}
        if not self.idempotent:
            allowed |= {"interrupted"}
        assert last in allowed, (action_id, comes, states)
        if action_id in self.cancelled:
            assert action_id not in node.effects, "cancelled, and run"
            return
        begun = [each for each in states if each.startswith("accepted")]
        if not self.idempotent:
            assert node.effects.count(action_id) <= len(begun), "doubled"
        buried = {each.id for each in self.world.queue.letters.values() if each.node == node.slug}
        assert (action_id in buried) == (last in {"failed", "interrupted"}), (action_id, states)


@pytest.mark.timeout(300)
@settings(max_examples=150, deadline=None)
@given(chosen=st.lists(steps, max_size=40), idempotent=st.booleans())
def test_nothing_is_lost_doubled_or_out_of_turn(chosen, idempotent):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(Run(idempotent=idempotent).go(chosen))
