"""When most callers' experience becomes everybody's breaker, and who may try whether it is over."""

from __future__ import annotations

import pytest

from mesh.config import BreakerConfig
from mesh.core.shared_breakers import HOLD_MS, IDLE_MS, TOLD_MS, SharedBreakers
from mesh.types import BreakerState
from mesh.wire.messages import BreakerWord, VerbOutcome

OPEN, HALF_OPEN, CLOSED = BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED
START = 1_700_000_000_000


class Board:
    """The shared breakers of one node, and time."""

    def __init__(self, **config):
        self.shared = SharedBreakers(BreakerConfig(**config))
        self.shared.lives("crm", 7)
        self.now = START
        for caller in ("ops", "web", "app"):  # each has another process, which asks nothing
            self.told(f"{caller}-quiet", caller=caller, verb="fetch")

    def told(self, connection, *, caller="ops", verb="search", incarnation=7, **outcome):
        said = VerbOutcome(node="crm", incarnation=incarnation, verb=verb, **outcome)
        self.shared.heard(caller, connection, said, self.now)

    def after(self, ms):
        """Time passes as a master sees it; the words that came of it."""
        until, words = self.now + ms, []
        while self.now < until:
            self.now = min(until, self.now + 50)
            words += [change.word for change in self.shared.tick(self.now)]
        return words

    def word(self, verb="search"):
        return self.shared.words("crm").get(verb)

    def opened(self):
        self.told("c1", calls=5, failures=5, state=OPEN)
        assert self.after(50)[0].state is OPEN
        return self

    def half_opened(self):
        self.opened()
        self.after(self.word().until - self.now)
        assert self.word().state is HALF_OPEN
        return self


@pytest.fixture
def board():
    return Board()


# -- opening ---------------------------------------------------------------------------------------


def test_it_opens_for_all_when_most_connections_have_theirs_open(board):
    for number in range(4):
        board.told(f"c{number}", calls=10, failures=5 if number < 2 else 0)
    board.told("c0", calls=1, failures=1, state=OPEN)
    board.told("c1", calls=1, failures=1, state=OPEN)
    assert board.after(100) == []
    board.told("c2", calls=5, failures=5, state=OPEN)
    (word,) = board.after(50)
    assert (word.state, word.turn, word.until) == (OPEN, board.now, board.now + 30_000)


def test_many_failures_of_few_calls_each_open_it(board):
    for number in range(20):
        board.told(f"c{number}", calls=1, failures=number % 3 > 0)
    (word,) = board.after(50)
    assert word.reason == "13 of 20 calls in 60 s failed"


def test_few_calls_say_nothing(board):
    for number in range(19):
        board.told(f"c{number}", calls=1, failures=1)
    assert board.after(100) == []


def test_one_caller_opens_nothing_against_another_for_whom_it_works(board):
    """However many connections it makes up, and whatever it says of them."""
    board.told("c1", caller="web", calls=3)
    for number in range(200):
        board.told(f"x{number}", caller="bad", calls=10**9, failures=10**9, state=OPEN)
    assert board.after(1000) == []
    board.told("c2", caller="app", calls=20, failures=20, state=OPEN)
    assert board.after(50)[0].state is OPEN  # two of three


def test_one_process_opens_nothing_against_the_others_of_its_application(board):
    board.told("c1", calls=1000, failures=1000, state=OPEN)
    board.told("c2", calls=10)
    assert board.after(1000) == []


def test_what_is_longer_ago_than_the_window_does_not_count(board):
    board.told("c1", caller="web", calls=3)
    board.told("c2", caller="app", calls=5, failures=5, state=OPEN)
    board.after(55_000)
    board.told("c2", caller="app", calls=1, failures=1, state=OPEN)
    assert board.after(100) == []
    board.after(15_000)
    board.told("c2", caller="app", calls=1, failures=1, state=OPEN)
    assert board.after(100)[0].state is OPEN


def test_verbs_have_breakers_of_their_own(board):
    board.told("c1", verb="act.refund", calls=5, failures=5, state=OPEN)
    board.told("c1", calls=5)
    board.after(50)
    assert list(board.shared.words("crm")) == ["act.refund"]


def test_switched_off_nothing_opens():
    board = Board(enabled=False)
    board.told("c1", calls=50, failures=50, state=OPEN)
    assert board.after(1000) == []


# -- probing ---------------------------------------------------------------------------------------


def test_as_many_probes_are_allowed_as_must_succeed(board):
    for number in range(50):
        board.told(f"c{number}", calls=5, failures=5, state=OPEN)
    board.after(30_050)
    assert board.word().state is HALF_OPEN
    assert list(board.word().probers.values()) == [1, 1]


def test_a_caller_that_is_alone_gets_all_of_them(board):
    assert board.half_opened().word().probers == {"c1": 2}


def test_others_get_to_probe_when_nothing_came_of_it(board):
    for number in range(6):
        board.told(f"c{number}", calls=5, failures=5, state=OPEN)
    board.after(30_050)
    named = set(board.word().probers)
    for _ in range(2):
        board.after(1600)
        assert not named & set(board.word().probers)
        named |= set(board.word().probers)
    assert len(named) == 6


def test_who_has_a_call_to_send_comes_first(board):
    for number in range(6):
        board.told(f"c{number}", calls=5, failures=5, state=OPEN)
    board.after(29_000)
    board.told("c4", state=OPEN, turn=board.word().turn, refused=3)
    board.after(1050)
    assert "c4" in board.word().probers


def test_a_crowd_of_one_caller_does_not_keep_the_others_from_probing(board):
    for number in range(64):
        board.told(f"x{number}", caller="bad", calls=5, failures=5, state=OPEN, refused=1)
    board.told("c1", caller="web", calls=5, failures=5, state=OPEN, refused=1)
    board.after(30_050)
    assert "c1" in board.word().probers


def test_a_caller_that_came_later_gets_to_probe_at_once():
    """Nobody is left of those who had opened it."""
    board = Board(success_threshold=1)
    board.opened()
    board.after(30_000)
    board.after(1600)
    board.told("new", caller="web", state=HALF_OPEN, turn=board.word().turn, refused=1)
    board.after(1700)
    assert board.word().probers == {"new": 1}


def test_it_closes_when_the_probes_have_succeeded(board):
    board.half_opened()
    turn = board.word().turn
    board.told("c1", turn=turn, state=HALF_OPEN, calls=1, probes_succeeded=1)
    assert board.after(50) == []
    board.told("c1", turn=turn, state=HALF_OPEN, calls=1, probes_succeeded=2)
    (word,) = board.after(50)
    assert (word.state, word.turn > turn) == (CLOSED, True)
    board.after(TOLD_MS - 100)
    assert board.word() is word
    board.after(200)
    assert board.word() is None


def test_successes_of_several_words_add_up(board):
    board.half_opened()
    board.told("c1", turn=board.word().turn, state=HALF_OPEN, probes_succeeded=1)
    board.after(1650)
    assert board.word().probers == {"c1": 1}
    board.told("c1", turn=board.word().turn, state=HALF_OPEN, probes_succeeded=1)
    assert board.after(50)[0].state is CLOSED


def test_each_failed_probe_doubles_the_time_up_to_a_limit(board):
    board.half_opened()
    waits = []
    for _ in range(6):
        board.told("c1", turn=board.word().turn, state=HALF_OPEN, calls=1, probes_failed=1)
        (word,) = board.after(50)
        waits.append(word.until - board.now)
        board.after(waits[-1])
    assert waits == [60_000, 120_000, 240_000, 300_000, 300_000, 300_000]


@pytest.mark.parametrize(
    "claim",
    [
        {"connection": "c1", "turn": -1},
        {"connection": "c2", "turn": 0},
        {"connection": "c1", "caller": "web", "turn": 0},
    ],
    ids=["of another word", "of one who was not named", "of another caller"],
)
@pytest.mark.parametrize("result", ["probes_succeeded", "probes_failed"])
def test_a_probe_that_was_not_allowed_says_nothing(board, claim, result):
    board.half_opened()
    claim = claim | {"turn": board.word().turn + claim["turn"], result: 5}
    board.told(state=HALF_OPEN, **claim)
    assert [word for word in board.after(900) if word.state is not HALF_OPEN] == []


def test_a_probe_that_still_runs_keeps_its_place_and_only_that(board):
    for number in range(4):
        board.told(f"c{number}", calls=5, failures=5, state=OPEN)
    board.after(30_050)
    first = min(board.word().probers)
    board.told(first, turn=board.word().turn, state=HALF_OPEN, probing=9)
    board.after(1650)
    probers = dict(board.word().probers)
    assert probers.pop(first) == 1
    assert list(probers.values()) == [1]  # and another one its own


def test_a_probe_that_never_ends_is_not_waited_for_for_ever():
    board = Board(success_threshold=1)
    for number in range(2):
        board.told(f"c{number}", calls=5, failures=5, state=OPEN)
    board.after(30_050)
    (first,) = board.word().probers
    for _ in range(HOLD_MS // 500):
        board.told(first, turn=board.word().turn, state=HALF_OPEN, probing=1)
        board.after(500)
    board.after(1700)
    assert list(board.word().probers) != [first]


def test_callers_decide_for_themselves_when_nobody_has_a_call_to_try_it_with(board):
    board.half_opened()
    words = board.after(IDLE_MS + 2000)
    assert words[-1].state is CLOSED
    assert board.word().state is CLOSED


# -- words and lives -------------------------------------------------------------------------------


def test_what_was_said_before_it_closed_does_not_open_it_again(board):
    board.half_opened()
    old = board.word().turn
    board.told("c1", turn=old, state=HALF_OPEN, probes_succeeded=2)
    board.after(50)
    board.told("c1", turn=old, calls=30, failures=30, state=OPEN)
    assert board.after(1000) == []
    board.told("c1", turn=board.word().turn, calls=5, failures=5, state=OPEN)
    assert board.after(50)[0].state is OPEN


def test_a_later_word_has_a_higher_turn_whatever_the_clock_says(board):
    board.half_opened()
    turn = board.word().turn
    board.now -= 3_600_000
    board.shared.reset("crm", "search", board.now)
    assert board.word().turn == turn + 1


def test_a_word_is_newer_than_those_of_masters_before(board):
    """Of whom nothing is known but what callers have heard; but not of a year from now."""
    board.told("c1", calls=5, failures=5, state=OPEN, turn=board.now + 5_000)
    board.told("c1", turn=board.now + 10**10, state=OPEN)
    board.after(50)
    assert board.word().turn == START + 5_001


def test_a_new_life_knows_nothing_of_the_last_one(board):
    board.opened()
    board.told("c1", incarnation=8, calls=99, failures=99, state=OPEN)
    board.shared.lives("crm", 8)
    assert board.word() is None
    board.told("c1", incarnation=7, calls=99, failures=99, state=OPEN)
    assert board.after(1000) == []
    assert board.shared.list(board.now) == []


def test_an_operator_closes_one_or_all_for_everybody(board):
    board.told("c1", verb="ping", calls=5, failures=5, state=OPEN)
    board.opened()
    board.shared.reset("crm", "ping", board.now)
    assert (board.word("ping").state, board.word().state) == (CLOSED, OPEN)
    board.shared.reset("crm", "", board.now)
    assert board.word().state is CLOSED
    board.shared.reset("crm", "fetch", board.now)  # nobody told of it; somebody may have it open
    assert board.word("fetch").state is CLOSED


# -- leading and following -------------------------------------------------------------------------


def test_who_follows_goes_on_where_the_leader_stopped(board):
    follower = Board()
    for number in range(3):
        for one in (board, follower):
            one.told(f"c{number}", calls=5, failures=5, state=OPEN)
    board.after(30_050)
    follower.now = board.now
    follower.shared.follow("crm", board.shared.words("crm"), follower.now)
    assert follower.word() == board.word()
    for connection in board.word().probers:
        follower.told(connection, turn=board.word().turn, state=HALF_OPEN, probes_succeeded=1)
    (word,) = follower.after(50)
    assert (word.state, word.turn > board.word().turn) == (CLOSED, True)


def test_who_follows_takes_no_older_word(board):
    board.opened()
    word = board.word()
    board.shared.follow("crm", {"search": BreakerWord(state=CLOSED, turn=word.turn - 1)}, board.now)
    assert board.word() is word
    board.shared.follow("crm", {}, board.now)
    assert board.word() is None


# -- bounds ----------------------------------------------------------------------------------------


def test_memory_is_bounded_whatever_is_told(board):
    for number in range(2000):
        board.told("c1", verb=f"act.a{number}", calls=1)
        board.told(f"c{number}", calls=1)
        board.told("c1", caller=f"u{number}", calls=1)
        board.shared.heard("ops", "c1", VerbOutcome(node=f"n{number}", verb="search"), board.now)
    assert board.shared.nodes() == ["crm"]
    listed = board.shared.list(board.now)
    assert len(listed) == 255
    assert listed[-1].callers < 512 + 64
    board.now += 200_000
    board.shared.sweep(board.now)
    assert board.shared.nodes() == []


def test_list_tells_what_is_known(board):
    board.told("c1", calls=5, failures=5, state=OPEN)
    board.told("c2", calls=10, failures=1)
    (info,) = board.shared.list(board.now, node="crm")
    assert (info.node, info.verb, info.state, info.until) == ("crm", "search", CLOSED, 0)
    assert (info.calls, info.failures, info.callers, info.open_at) == (15, 6, 2, 1)
    assert board.shared.list(board.now, node="docs") == []
    assert board.shared.states()[CLOSED] == 2


# -- one login against all others ------------------------------------------------------------------


def test_one_connection_that_is_alone_keeps_its_breaker_to_itself(board):
    board.told("x1", caller="bad", calls=50, failures=50, state=OPEN)
    assert board.after(1000) == []


def test_what_one_caller_alone_has_opened_another_one_gets_to_try_at_once(board):
    for number in range(20):
        board.told(f"x{number}", caller="bad", calls=50, failures=50, state=OPEN)
    assert board.after(50)[0].state is OPEN
    board.told("x1", caller="bad", state=OPEN, refused=1)
    assert board.after(1000) == []
    board.told("w1", caller="web", state=OPEN, refused=1)
    (word,) = board.after(50)
    assert (word.state, "w1" in word.probers) == (HALF_OPEN, True)


def test_a_caller_that_fails_every_probe_is_outvoted(board):
    """With however many connections; the other one has a call to try it with each time."""
    for number in range(20):
        board.told(f"x{number}", caller="bad", calls=50, failures=50, state=OPEN)
    board.after(50)
    for _ in range(40):
        if board.word().state is CLOSED:
            break
        turn, probers = board.word().turn, board.word().probers
        for name in probers:
            result = {"probes_failed": 1} if name.startswith("x") else {"probes_succeeded": 1}
            caller = "bad" if name.startswith("x") else "web"
            board.told(name, caller=caller, turn=turn, state=HALF_OPEN, **result)
        board.told("w1", caller="web", state=OPEN, turn=turn, refused=1)
        board.told(f"y{turn}", caller="bad", state=OPEN, turn=turn, refused=1)
        board.after(100)
    assert board.word().state is CLOSED
    assert board.now - START < 30_000


def test_a_node_that_fails_the_probes_of_most_stays_shut(board):
    for caller in ("ops", "web", "app"):
        board.told(f"{caller}1", caller=caller, calls=5, failures=5, state=OPEN, refused=1)
    board.after(30_050)
    assert board.word().state is HALF_OPEN
    for name in board.word().probers:
        board.told(name, caller=name[:-1], turn=board.word().turn, state=HALF_OPEN, probes_failed=1)
    assert board.after(50)[0].state is OPEN
    board.told("ops1", state=OPEN, refused=1, turn=board.word().turn)
    assert board.after(59_000) == []


def test_fresh_names_do_not_get_to_probe_before_those_who_wait():
    board = Board(success_threshold=1)
    board.told("w1", caller="web", calls=5, failures=5, state=OPEN, refused=1)
    board.told("x0", caller="bad", calls=5, failures=5, state=OPEN, refused=1)
    board.after(30_050)
    named = []
    for number in range(6):
        named += board.word().probers
        board.told(f"x{number}", caller="bad", state=OPEN, refused=1)
        board.told("w1", caller="web", state=OPEN, refused=1)
        board.after(1600)
    assert named.count("w1") >= 3


def test_a_name_that_another_caller_has_stands_for_nobody_else(board):
    board.half_opened()
    turn = board.word().turn
    board.told("c1", caller="bad", turn=turn, state=HALF_OPEN, probes_failed=2)
    assert board.after(900) == []
    board.told("c1", turn=turn, state=HALF_OPEN, probes_succeeded=2)
    assert board.after(50)[0].state is CLOSED


def test_a_word_says_how_long_it_holds_and_a_follower_believes_no_other_clock(board):
    board.opened()
    word = board.word()
    assert (word.for_ms, word.until) == (30_000, board.now + 30_000)
    follower = Board()
    follower.now = board.now - 3_600_000
    follower.shared.follow("crm", {"search": word}, follower.now)
    assert follower.word().until == follower.now + 30_000
    old = BreakerWord(state=OPEN, turn=word.turn + 1, until=2**53)
    follower.shared.follow("crm", {"search": old}, follower.now)
    assert follower.word().until == follower.now + 300_000


def test_a_tick_decides_only_so_much_and_all_get_their_turn(board):
    board.after(50)
    for number in range(600):
        slug = f"n{number}"
        board.shared.lives(slug, 7)
        for connection in ("c1", "c2"):
            said = VerbOutcome(
                node=slug, incarnation=7, verb="search", calls=5, failures=5, state=OPEN
            )
            board.shared.heard("ops", connection, said, board.now)
    board.now += 50
    assert len(board.shared.tick(board.now)) == 256
    assert len(board.after(500)) == 600 - 256


def test_those_who_are_long_silent_are_forgotten_while_it_is_open(board):
    board.opened()
    board.now += 601_000
    board.shared.sweep(board.now)
    assert board.shared._nodes["crm"].breakers["search"].votes.by_turns() == []
