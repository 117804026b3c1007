"""Entries and places of a shard's log: what several writes come to, and who goes on from where."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import replication as rules
from mesh.core.arrivals import Arrivals
from mesh.core.replication import Begin, Copy, CopyFrom, Follow, LogView, Position, Wait
from mesh.errors import ConflictError, MeshError, TooLargeError
from mesh.wire import codec
from mesh.wire.messages import Change, Document, LoggedWrite, WriteEntry

IDS = st.sampled_from("abcd")
CHANGES = st.one_of(
    st.builds(
        lambda ids, text: Change(
            collection="notes", puts=[Document(id=each, content=text) for each in ids]
        ),
        st.lists(IDS, min_size=1, max_size=3, unique=True),
        st.sampled_from(["one", "two"]),
    ),
    st.builds(
        lambda ids: Change(collection="notes", deletes=ids),
        st.lists(IDS, max_size=3, unique=True),
    ),
    st.just(Change(collection="notes", drop=True)),
)


def apply(contents, change):
    """To `None` (no collection) or ids and texts."""
    if change.drop:
        contents = None
    if change.puts and contents is None:
        contents = {}
    if contents is not None:
        contents = {name: text for name, text in contents.items() if name not in change.deletes}
        contents |= {each.id: each.content for each in change.puts}
    return contents


@given(st.one_of(st.none(), st.dictionaries(IDS, st.just("old"))), st.lists(CHANGES, max_size=8))
def test_applying_what_several_changes_come_to_is_applying_them_in_turn(contents, changes):
    expected = contents
    for change in changes:
        expected = apply(expected, change)
    for effect in rules.effects(changes).values():
        if effect.drop:
            contents = None
        if effect.made or contents is not None:
            contents = contents or {}
            contents = {name: text for name, text in contents.items() if name not in effect.deletes}
            contents |= {each.id: each.content for each in effect.puts.values()}
    assert contents == expected


def test_a_long_change_travels_deflated_and_comes_back():
    change = Change(
        collection="notes",
        puts=[Document(id=f"{n}", content="a late invoice " * 500) for n in range(200)],
    )
    entry = rules.packed(WriteEntry(id="1", prev=1, change=change))
    assert entry.change is None
    assert len(codec.encode(entry)) < 100_000
    assert rules.change_of(codec.decode(codec.encode(entry), WriteEntry)) == change
    short = WriteEntry(id="1", prev=1, change=Change(collection="notes", drop=True))
    assert rules.packed(short) == short


def test_what_no_page_could_carry_is_not_logged():
    noise = "".join(chr(0x4E00 + (n * 7919 + n * n) % 20_000) for n in range(990_000))
    with pytest.raises(TooLargeError):
        rules.packed(
            WriteEntry(
                prev=1, change=Change(collection="n", puts=[Document(id="1", content=noise)])
            )
        )


@pytest.mark.parametrize("packed", [b"no deflate", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_a_change_that_cannot_be_read_changes_nothing_anywhere(packed):
    assert rules.change_of(WriteEntry(prev=1, packed=packed)) is None


def test_an_acknowledgement_of_jetstream_is_no_entry():
    """It can be steered anywhere by the reply subject of a publish."""
    with pytest.raises(MeshError):
        codec.decode(b'{"stream":"MESH_WRITES","seq":3}', WriteEntry)


def test_what_does_not_name_the_entry_before_it_changes_nothing_for_anybody():
    change = Change(collection="notes", drop=True)

    def entry(prev, **more):
        return WriteEntry(prev=prev, change=change, **more)

    written = [
        LoggedWrite(sequence=5, entry=entry(3)),
        LoggedWrite(sequence=6, entry=entry(3)),  # it does not know of 5
        LoggedWrite(sequence=9, entry=entry(6)),
        LoggedWrite(sequence=12, entry=entry(0)),
        LoggedWrite(sequence=13, entry=entry(2, begin=True, before="K")),
    ]
    seen = [each.entry for each in rules.linked(written, 3)]
    assert seen == [
        entry(3),
        WriteEntry(prev=5),
        entry(6),
        WriteEntry(prev=9),
        entry(2, begin=True, before="K"),
    ]
    # Wherever one begins to read.
    for start in range(1, len(written)):
        before = written[start - 1].sequence
        assert [each.entry for each in rules.linked(written[start:], before)] == seen[start:]
    assert rules.linked(written[3:], 0)[0] == written[3]


@given(st.lists(CHANGES, max_size=8))
def test_columns_are_the_same_however_many_changes_are_applied_at_once(changes):
    changes = [
        msgspec.structs.replace(change, columns={f"c{number % 3}": f"kind {number}"})
        if change.puts
        else change
        for number, change in enumerate(changes)
    ]
    one_by_one: dict[str, str] = {}
    for change in changes:  # a copy adds what it has not, and keeps what it has
        one_by_one = change.columns | ({} if change.drop else one_by_one)
    for effect in rules.effects(changes).values():
        assert effect.columns == one_by_one


def test_an_id_means_one_write():
    rules.check_same("1", "d", "d")
    with pytest.raises(ConflictError):
        rules.check_same("1", "d", "e")


# -- places ----------------------------------------------------------------------------------------


def copy(node="me", sequence=0, log="L", **more):
    position = Position(log, sequence) if sequence else Position()
    return Copy(node, position, **{"has_data": bool(sequence)} | more)


def view(last=0, after=None, log="L"):
    return LogView(log, last, after)


def after(prev):
    return WriteEntry(prev=prev)


def begins(prev=0, before="", base=False):
    return WriteEntry(begin=True, prev=prev, before=before, base=base)


EMPTY = copy()
OLD = copy(has_data=True)
OWN = copy(has_data=True, own=True)


@pytest.mark.parametrize(
    ("me", "log", "others", "expected"),
    [
        # in the middle of the log
        (copy(sequence=7), view(7), None, Follow()),
        (copy(sequence=7), view(9, after(7)), None, Follow()),
        # something is missing
        (copy(sequence=7), view(9, after(8)), [copy("b", 9, following=True)], CopyFrom("b")),
        (copy(sequence=7), view(9, after(8)), [copy("b", 9)], Wait("b has more")),
        (copy(sequence=7), view(9, after(8)), [copy("b", 3)], Begin()),
        (copy(sequence=7), view(9, after(8)), [copy("z", 7, following=True)], Begin()),
        # what it lacks was lost with the end of the log, and others have gone on
        (copy(sequence=9), view(8), [copy("z", 8, following=True)], CopyFrom("z")),
        (copy(sequence=9), view(8), [copy("z", 8)], Wait("z has more")),
        # an entry that nobody of ours wrote
        (copy(sequence=7), view(9, WriteEntry(prev=0)), [copy("b", 7)], Wait("b has more")),
        # the log has forgotten all of this shard
        (copy(sequence=7), view(0), [copy("b", 7)], Wait("b has more")),
        (copy("a", sequence=7), view(0), [copy("b", 7)], Begin()),
        (copy(sequence=7), view(0), [copy("b", 6, following=True)], Begin()),
        (copy(sequence=6), view(0), [copy("z", 7, following=True)], CopyFrom("z")),
        (copy(sequence=7, log="K"), view(0), [copy("b", 6, "K", following=True)], Begin()),
        (copy(sequence=7), view(11, begins(7, "L")), None, Follow()),
        (
            copy(sequence=6),
            view(11, begins(7, "L")),
            [copy("b", 11, following=True)],
            CopyFrom("b"),
        ),
        # the log itself is another one
        (copy(sequence=2), view(0), [copy("a", 9, "K")], Begin()),
        (copy(sequence=9, log="J"), view(0), [copy("z", 2, "K")], Wait("z has more")),
        (copy(sequence=7, log="K"), view(0), [copy("z", 5, "K")], Begin()),
        (copy(sequence=7, log="K"), view(7), [copy("z", 7, following=True)], CopyFrom("z")),
        (copy(sequence=7, log="K"), view(3, begins(7, "K")), None, Follow()),
        (
            copy(sequence=7, log="K"),
            view(9, after(7)),
            [copy("z", 9, following=True)],
            CopyFrom("z"),
        ),
        # the first ones
        (EMPTY, view(0), [], Begin()),
        (EMPTY, view(0), [OLD._replace(node="z")], Wait("z has more")),
        (OLD, view(0), [EMPTY._replace(node="a")], Begin()),
        (EMPTY, view(1, begins()), None, Follow()),
        (EMPTY, view(1, begins(base=True)), [copy("b", 1, following=True)], CopyFrom("b")),
        # documents that are of no replica: nobody asked to remove them
        (OWN, view(1, begins()), [copy("b", 1, following=True)], Wait(rules.own_documents("b"))),
        (OWN, view(9, after(7)), [copy("b", 9, following=True)], Wait(rules.own_documents("b"))),
        (OWN, view(0), [EMPTY._replace(node="a")], Begin()),
        (OWN, view(0), [OWN._replace(node="a")], Wait("a has more")),
        (OWN, view(0), [OWN._replace(node="z", founder=True)], Wait("z has more")),
        (OWN._replace(founder=True), view(0), [OWN._replace(node="a")], Begin()),
        (OLD, view(1, begins()), [copy("b", 1, following=True)], CopyFrom("b")),
        (EMPTY, view(9, after(7)), [copy("b", 9, following=True)], CopyFrom("b")),
        # somebody who may have more cannot be asked
        (
            copy(sequence=7),
            view(0),
            [copy("b", reachable=False)],
            Wait("not all replicas can be asked: b"),
        ),
        (
            copy(sequence=7),
            view(9, after(8)),
            [copy("b", reachable=False), copy("c", 9, following=True)],
            CopyFrom("c"),
        ),
    ],
)
def test_how_a_copy_gets_its_place(me, log, others, expected):
    assert rules.standing(me, log, others) == expected


COPIES = st.builds(
    lambda log, sequence, data: (Position(log, sequence) if sequence else Position(), data),
    st.sampled_from("KL"),
    st.integers(0, 3),
    st.booleans(),
)


@given(st.lists(COPIES, min_size=1, max_size=4), st.integers(0, 3))
def test_of_copies_that_all_stand_outside_exactly_one_begins(found, last):
    copies = [
        Copy(f"n{number}", position, has_data=data or position.sequence > 0)
        for number, (position, data) in enumerate(found)
    ]
    nowhere = view(last, WriteEntry(prev=0) if last else None)
    said = [
        rules.standing(each, nowhere, [other for other in copies if other is not each])
        for each in copies
        if each.position != ("L", last)
    ]
    begun = sum(isinstance(each, Begin) for each in said)
    assert begun == 1 or (begun == 0 and len(said) < len(copies))


def test_arrivals_wait_for_their_turn_and_are_of_one_log():
    arrivals = Arrivals()

    def arrive(sequence, prev, log="L"):
        arrivals.add(LoggedWrite(sequence=sequence, entry=WriteEntry(prev=prev), log=log), 9)

    here = Position("L", 3)
    arrive(9, 7)
    assert arrivals.run(here, 10) == []
    arrive(7, 3, log="K")
    assert arrivals.run(here, 10) == []
    arrive(7, 3)
    assert [each.sequence for each in arrivals.run(here, 10)] == [7, 9]
    assert [each.sequence for each in arrivals.run(here, 1)] == [7]
    arrivals.forget(Position("L", 7))
    assert len(arrivals) == 1
    arrivals.forget(Position("L", 9))
    assert len(arrivals) == 0


def test_what_peers_tell_of_takes_little_memory():
    arrivals = Arrivals()
    for number in range(1, 100):
        one = LoggedWrite(sequence=number + 1, entry=WriteEntry(prev=number), log="L")
        arrivals.add(one, 1_000_000)
        arrivals.add(one, 1_000_000)
    assert len(arrivals) == 16
    arrivals.forget(Position("L", 10))
    assert len(arrivals) == 7
    arrivals.add(LoggedWrite(sequence=98, entry=WriteEntry(prev=97), log="L"), 1_000_000)
    assert len(arrivals) == 8
    arrivals.clear()
    assert len(arrivals) == 0
