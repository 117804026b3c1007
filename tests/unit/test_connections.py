"""Whose a connection's name is, in front of others who say that it is theirs."""

from __future__ import annotations

from mesh.core.connections import MOST_CONNECTIONS, Connections


def test_a_name_belongs_to_whoever_told_under_it_first():
    known = Connections()
    assert known.heard("ops", "c1", 0)
    assert not known.heard("bad", "c1", 1)
    assert known.heard("ops", "c1", 2)
    assert (known.count("ops"), known.count("bad")) == (1, 0)


def test_a_name_is_free_when_it_has_been_silent():
    known = Connections()
    known.heard("ops", "c1", 0)
    known.heard("ops", "c2", 50)
    known.sweep(50)
    assert known.count("ops") == 1
    assert known.heard("web", "c1", 60)


def test_a_caller_that_makes_names_up_forgets_its_own():
    known = Connections()
    known.heard("ops", "c1", 0)
    for number in range(10 * MOST_CONNECTIONS):
        known.heard("bad", f"x{number}", 1)
    assert known.count("bad") == MOST_CONNECTIONS
    assert known.heard("web", "x0", 2)
    assert not known.heard("web", "c1", 2)


def test_memory_is_bounded():
    known = Connections()
    for number in range(10_000):
        known.heard(f"u{number}", f"c{number}", number)
    assert len(known._owners) == len(known._heard) == 4096
    known.sweep(10_000)
    assert not known._owners
    assert not known._heard
