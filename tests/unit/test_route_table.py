from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core.route_table import (
    Applied,
    Ignored,
    NeedSnapshot,
    RouteFollower,
    RouteTable,
    diff,
    preference,
    refusal,
    snapshot,
)
from mesh.types import Health, Status
from mesh.wire import codec
from mesh.wire.messages import CollectionInfo, RouteNode, RouteUpdate


def size(message: object) -> int:
    return len(codec.encode(message))


def node(slug: str, *collections: str, **fields: object) -> RouteNode:
    infos = [CollectionInfo(name=name, shard=slug) for name in collections]
    return RouteNode(**{"slug": slug, "health": Health.HEALTHY, "collections": infos} | fields)


def table(*nodes: RouteNode, version: int = 1, epoch: int = 1, blind: bool = False) -> RouteTable:
    return RouteTable(epoch=epoch, version=version, nodes=nodes, blind=blind)


def follower_of(first: RouteTable) -> RouteFollower:
    follower = RouteFollower()
    for page in snapshot(first, size):
        follower.apply(page)
    assert follower.table == first
    return follower


# -- looking things up -----------------------------------------------------------------------------


def test_holders_are_found_whatever_their_health():
    routes = table(
        node("b", "notes", "docs"), node("a", "notes", health=Health.UNREACHABLE), node("c")
    )
    assert [holder.node.slug for holder in routes.holders("notes")] == ["a", "b"]
    assert [holder.info.name for holder in routes.holders("docs")] == ["docs"]
    assert routes.holders("nothing") == ()
    assert routes.collections() == ("docs", "notes")
    assert list(routes.nodes) == ["a", "b", "c"]
    assert routes.node("c") is routes.nodes["c"]
    assert routes.node("z") is None


def test_replicas_of_a_shard_come_with_the_best_one_first():
    def replica(slug: str, health: Health, shard: str) -> RouteNode:
        return node(slug, health=health, collections=[CollectionInfo(name="n", shard=shard)])

    routes = table(
        replica("a", Health.UNREACHABLE, "x"),
        replica("b", Health.SUSPECT, "x"),
        replica("c", Health.HEALTHY, "x"),
        replica("d", Health.HEALTHY, "y"),
    )
    shards = routes.shards("n")
    assert {shard: [h.node.slug for h in held] for shard, held in shards.items()} == {
        "x": ["c", "b", "a"],
        "y": ["d"],
    }


@pytest.mark.parametrize(
    ("status", "health", "asked", "rank"),
    [
        (Status.ACTIVE, Health.HEALTHY, True, 0),
        (Status.ACTIVE, Health.SUSPECT, True, 1),
        (Status.ACTIVE, Health.OVERLOADED, True, 1),
        (Status.ACTIVE, Health.STALLED, False, 2),
        (Status.ACTIVE, Health.DRAINING, False, 2),
        (Status.ACTIVE, Health.UNREACHABLE, False, 2),
        (Status.MAINTENANCE, Health.HEALTHY, False, 2),
        (Status.PENDING, Health.HEALTHY, False, 2),
    ],
)
def test_who_is_asked(status, health, asked, rank):
    one = node("a", status=status, health=health, reason="because")
    assert (refusal(one) == "") is asked
    assert preference(one) == rank


def test_a_refusal_says_why():
    one = node("a", health=Health.UNREACHABLE, reason="nobody listens")
    assert refusal(one) == "unreachable: nobody listens"
    assert refusal(node("a", status=Status.MAINTENANCE)) == "status is maintenance"


def test_a_table_cannot_be_changed():
    routes = table(node("a"))
    with pytest.raises(TypeError):
        routes.nodes["b"] = node("b")


# -- the owner's side ------------------------------------------------------------------------------


def test_nothing_new_is_no_new_version():
    first = RouteTable(epoch=3).succeed([node("a")], blind=False)
    assert first.order == (3, 1)
    assert first.succeed([node("a")], blind=False) is first
    assert first.succeed([node("a")], blind=True).order == (3, 2)
    assert first.succeed([], blind=False).order == (3, 2)


def test_an_empty_table_is_published_too():
    assert RouteTable(epoch=3).succeed([], blind=False).order == (3, 1)


def test_a_delta_holds_only_what_changed():
    old = table(node("a"), node("b"), node("c"))
    new = old.succeed([node("a"), node("b", health=Health.SUSPECT), node("d")], blind=False)
    delta = diff(old, new)
    assert [changed.slug for changed in delta.nodes] == ["b", "d"]
    assert delta.removed == ["c"]
    assert (delta.epoch, delta.base, delta.version) == (1, 1, 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (table(version=1, epoch=1), table(version=2, epoch=2)),
        (table(version=2), table(version=2)),
        (table(version=0), table(version=1)),
    ],
)
def test_no_delta_between_tables_that_do_not_follow(old, new):
    with pytest.raises(ValueError, match="no delta"):
        diff(old, new)


nodes_lists = st.lists(
    st.builds(
        node,
        st.sampled_from([f"n{i}" for i in range(6)]),
        st.sampled_from(["notes", "docs"]),
        name=st.sampled_from(["", "é" * 40, "long " * 20]),
        health=st.sampled_from(Health),
    ),
    max_size=6,
    unique_by=lambda one: one.slug,
)


@given(nodes_lists, st.integers(400, 2000))
def test_pages_keep_their_limit_and_hold_everything(nodes, limit):
    whole = table(*nodes)
    pages = snapshot(whole, size, limit)
    assert [page.page for page in pages] == list(range(len(pages)))
    assert all(page.pages == len(pages) for page in pages)
    for page in pages:
        assert size(page) <= limit or len(page.nodes) == 1
    assert [one.slug for page in pages for one in page.nodes] == list(whole.nodes)


def test_a_large_mesh_takes_pages_of_256_kb():
    whole = table(*(node(f"n{i}", *(f"collection-{j}" for j in range(40))) for i in range(500)))
    pages = snapshot(whole, size)
    assert len(pages) > 1
    assert max(size(page) for page in pages) <= 256 * 1024
    assert follower_of(whole).table == whole


# -- the caller's side -----------------------------------------------------------------------------


def test_pages_fit_together_in_any_order_and_only_when_all_are_there():
    whole = table(*(node(f"n{i}") for i in range(9)))
    pages = snapshot(whole, size, 250)
    assert len(pages) >= 3
    follower = RouteFollower()
    for page in [*pages[1:], pages[1]]:
        assert isinstance(follower.apply(page), Ignored)
        assert follower.table.version == 0
    assert follower.apply(pages[0]) == Applied(whole)
    assert isinstance(follower.apply(pages[0]), Ignored)


def test_pages_of_two_versions_do_not_mix():
    old = table(*(node(f"n{i}", name="old") for i in range(9)))
    new = old.succeed([node(f"n{i}", name="new") for i in range(9)], blind=False)
    old_pages, new_pages = snapshot(old, size, 250), snapshot(new, size, 500)
    follower = RouteFollower()
    for page in [old_pages[0], *new_pages[1:], *old_pages[1:]]:
        assert isinstance(follower.apply(page), Ignored)
    assert follower.apply(new_pages[0]) == Applied(new)


def test_a_gap_asks_for_a_snapshot_and_changes_nothing():
    first = table(node("a"))
    second = first.succeed([node("a"), node("b")], blind=False)
    third = second.succeed([node("b")], blind=False)
    follower = follower_of(first)
    assert follower.apply(diff(second, third)) == NeedSnapshot()
    assert follower.table == first
    assert isinstance(follower.apply(diff(first, second)), Applied)
    assert isinstance(follower.apply(diff(second, third)), Applied)
    assert follower.table == third


def test_who_knows_nothing_needs_a_snapshot():
    first = table(node("a"))
    delta = diff(first, first.succeed([], blind=False))
    assert RouteFollower().apply(delta) == NeedSnapshot()


def test_a_new_master_wins_over_the_old_one_whatever_their_versions():
    follower = follower_of(table(node("a"), version=900, epoch=1))
    fresh = table(node("b"), version=1, epoch=2)
    assert follower.apply(snapshot(fresh, size)[0]) == Applied(fresh)
    stale = table(node("a"), version=901, epoch=1)
    assert isinstance(follower.apply(snapshot(stale, size)[0]), Ignored)
    assert isinstance(follower.apply(diff(table(version=900), stale)), Ignored)
    assert follower.table == fresh


def test_blindness_travels_with_the_table():
    first = table(node("a"))
    blind = first.succeed([node("a")], blind=True)
    follower = follower_of(first)
    follower.apply(diff(first, blind))
    assert follower.table.blind
    assert follower.table.nodes == first.nodes


@pytest.mark.parametrize(("page", "pages"), [(-1, 2), (2, 2), (0, 0), (5, 1)])
def test_a_page_that_cannot_be_is_ignored(page, pages):
    update = RouteUpdate(epoch=1, version=1, page=page, pages=pages, nodes=[node("a")])
    follower = RouteFollower()
    assert isinstance(follower.apply(update), Ignored)
    assert follower.table.version == 0


def test_what_travels_survives_the_wire():
    whole = table(node("a", "notes"), blind=True)
    follower = RouteFollower()
    for page in snapshot(whole, size):
        follower.apply(codec.decode(codec.encode(page), RouteUpdate))
    assert follower.table == whole


class Publication(RuleBasedStateMachine):
    """A master that changes and restarts, and a network that loses, doubles and reorders."""

    def __init__(self) -> None:
        super().__init__()
        self.master = table()
        self.published: dict[tuple[int, int], RouteTable] = {self.master.order: self.master}
        self.network = snapshot(self.master, size)
        self.follower = RouteFollower()
        self.seen = [(0, 0)]

    def publish(self, new: RouteTable, updates: list[RouteUpdate]) -> None:
        self.master = new
        self.published[new.order] = new
        self.network += updates

    @rule(nodes=nodes_lists, blind=st.booleans())
    def change(self, nodes: list[RouteNode], blind: bool) -> None:
        new = self.master.succeed(nodes, blind=blind)
        if new is not self.master:
            self.publish(new, [diff(self.master, new)])

    @rule()
    def send_snapshot(self) -> None:
        self.network += snapshot(self.master, size, 250)

    @rule(nodes=nodes_lists)
    def take_over(self, nodes: list[RouteNode]) -> None:
        new = RouteTable(epoch=self.master.epoch + 1).succeed(nodes, blind=False)
        self.publish(new, snapshot(new, size, 250))

    @rule(data=st.data())
    def deliver_one(self, data: st.DataObject) -> None:
        """Any message, whether it was delivered before or not."""
        if self.network:
            self.receive(data.draw(st.sampled_from(self.network)))

    @rule()
    def deliver_in_order(self) -> None:
        for update in self.network:
            self.receive(update)
        self.network.clear()

    @rule(data=st.data())
    def lose_one(self, data: st.DataObject) -> None:
        if self.network:
            self.network.remove(data.draw(st.sampled_from(self.network)))

    @rule()
    def ask_for_a_snapshot(self) -> None:
        """What a caller does after `NeedSnapshot`; nothing is lost on this way."""
        for page in snapshot(self.master, size, 250):
            self.receive(page)
        assert self.follower.table == self.master

    def receive(self, update: RouteUpdate) -> None:
        before = self.follower.table
        answer = self.follower.apply(update)
        if isinstance(answer, Applied):
            assert answer.table is self.follower.table
            assert self.follower.table.order > before.order
        else:
            assert self.follower.table is before
        if isinstance(answer, NeedSnapshot):
            assert (update.epoch, update.version) > before.order
        self.seen.append(self.follower.table.order)

    @invariant()
    def it_never_goes_back(self) -> None:
        assert self.seen == sorted(self.seen)

    @invariant()
    def it_is_a_table_that_was_published(self) -> None:
        if self.follower.table.version:
            assert self.follower.table == self.published[self.follower.table.order]


Publication.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestPublication = Publication.TestCase


def test_order_of_nodes_does_not_matter():
    assert table(node("a"), node("b")) == table(node("b"), node("a"))
    assert table(node("a")) != table(node("a", name="x"))
