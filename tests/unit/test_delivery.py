"""What is done with a queued action, by what came back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import delivery
from mesh.core.delivery import (
    AskAgain,
    Bury,
    Deliver,
    Done,
    Expire,
    Hold,
    Look,
    Policy,
    RetryAttempt,
    Tries,
)
from mesh.errors import (
    ActionFailedError,
    BadRequestError,
    CancelledActionError,
    CircuitOpenError,
    ConflictError,
    DeadlineExceededError,
    DisconnectedError,
    DrainingError,
    ForbiddenError,
    InternalError,
    InterruptedActionError,
    InvalidError,
    NodeGoneError,
    NoRespondersError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
    UnreadableReplyError,
)
from mesh.wire import codec
from mesh.wire.messages import ErrorReply, QueueItem

POLICY = Policy(max_deliveries=5, backoff_s=1.0, backoff_most_s=60.0)
NEW = Tries(retry=0, before=0)
SAYS_NOTHING = [
    UnavailableError,
    NoRespondersError,
    DisconnectedError,
    OverloadedError,
    DrainingError,
    CircuitOpenError,
    NodeGoneError,
    DeadlineExceededError,
]
REFUSES = [BadRequestError, ConflictError, InvalidError, TooLargeError, ForbiddenError]


def said(error, attempt=0, **fields):
    reply = codec.error_reply(error("why"))
    return ErrorReply(
        **{name: getattr(reply, name) for name in reply.__struct_fields__}
        | {"attempt": attempt}
        | fields
    )


def test_success_is_the_end():
    assert delivery.judge(NEW, None, POLICY) == Done()


@pytest.mark.parametrize("error", SAYS_NOTHING)
def test_silence_and_refusals_that_pass_are_no_attempts(error):
    tries = NEW
    for asked in range(1, 50):
        decision = delivery.judge(tries, said(error), POLICY)
        assert isinstance(decision, AskAgain)
        assert 0 < decision.after_s <= 2.0
        tries = decision.tries
        assert (tries.retry, tries.asked, tries.absurd) == (0, asked, 0)


@pytest.mark.parametrize("error", REFUSES)
def test_what_is_wrong_stays_wrong(error):
    assert delivery.judge(NEW, said(error), POLICY) == Bury(said(error))


@pytest.mark.parametrize(
    "error", [ActionFailedError, InterruptedActionError, InvalidError, DeadlineExceededError]
)
def test_an_attempt_that_ended_badly_for_good_is_not_repeated(error):
    """A timeout too: whether it took effect is not known."""
    assert delivery.judge(NEW, said(error, attempt=1), POLICY) == Bury(said(error, attempt=1))


def test_an_interrupted_one_is_never_asked_for_again():
    error = said(InterruptedActionError)
    assert delivery.judge(NEW, error, POLICY) == Bury(error)


def test_what_somebody_has_cancelled_is_no_dead_letter():
    assert delivery.judge(NEW, said(CancelledActionError, attempt=1), POLICY) == Done()


def test_a_failure_that_may_pass_is_repeated_with_growing_pauses_five_times_in_all():
    tries, pauses = NEW, []
    for attempt in range(1, 5):
        decision = delivery.judge(tries, said(UnavailableError, attempt=attempt), POLICY)
        assert isinstance(decision, RetryAttempt)
        tries = decision.tries
        assert tries.retry == attempt
        pauses.append(decision.after_s)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    last = said(UnavailableError, attempt=5)
    assert delivery.judge(tries, last, POLICY) == Bury(last)


def test_the_pause_has_a_limit():
    tries = Tries(retry=30, before=0)
    policy = POLICY._replace(max_deliveries=1000)
    decision = delivery.judge(tries, said(UnavailableError, attempt=31), policy)
    assert isinstance(decision, RetryAttempt)
    assert decision.after_s == 60.0


def test_attempts_before_it_was_put_back_do_not_count():
    item = QueueItem(action="pay", id="1", retry=7)
    decision = delivery.judge(delivery.begin(item), said(UnavailableError, attempt=8), POLICY)
    assert isinstance(decision, RetryAttempt)
    assert (decision.after_s, decision.tries.retry) == (1.0, 8)


def test_a_node_that_answers_with_an_old_attempt_is_not_asked_for_ever():
    error = said(UnavailableError, attempt=3)
    assert delivery.judge(Tries(retry=3, before=0), error, POLICY) == Bury(error)


@pytest.mark.parametrize("error", [InternalError, UnreadableReplyError])
def test_answers_that_no_sound_node_gives_end_too(error):
    """Else one item would keep from its node all that wait behind it."""
    tries, count = NEW, 0
    while isinstance(decision := delivery.judge(tries, said(error), POLICY), AskAgain):
        tries, count = decision.tries, count + 1
        assert count < 10
    assert (decision, count) == (Bury(said(error)), 4)


@pytest.mark.parametrize(("wanted_ms", "after_s"), [(1500, 1.5), (3_600_000, 10.0), (1, 0.1)])
def test_a_node_may_say_when_it_wants_to_be_asked_but_not_never(wanted_ms, after_s):
    error = said(OverloadedError, retry_after_ms=wanted_ms)
    decision = delivery.judge(NEW, error, POLICY)
    assert isinstance(decision, AskAgain)
    assert decision.after_s == after_s


def test_what_is_late_is_not_begun():
    item = QueueItem(action="pay", id="1", expires=1000)
    assert delivery.due(item, 999) == Deliver()
    assert delivery.due(item, 1000) == Look()
    assert delivery.due(QueueItem(action="pay", id="1"), 10**15) == Deliver()


@pytest.mark.parametrize(
    ("now", "taken_on", "ended", "decision"),
    [
        (1000, False, False, Hold(2.0)),
        (2999, False, False, Hold(0.001)),
        (3000, False, False, Expire()),
        (1000, True, False, Deliver()),
        (90_000, True, False, Deliver()),
        (1000, True, True, Done()),
        (90_000, False, True, Done()),
    ],
)
def test_what_is_late_has_expired_only_if_nobody_has_begun_it(now, taken_on, ended, decision):
    item = QueueItem(action="pay", id="1", expires=1000)
    assert delivery.overdue(item, now, taken_on=taken_on, ended=ended) == decision


answers = st.one_of(
    st.none(),
    st.builds(
        said,
        st.sampled_from(
            [
                *SAYS_NOTHING,
                *REFUSES,
                ActionFailedError,
                InternalError,
                InterruptedActionError,
                CancelledActionError,
            ]
        ),
        attempt=st.integers(0, 12),
        retryable=st.booleans(),
        retry_after_ms=st.none() | st.integers(0, 10**9),
    ),
)


@given(
    start=st.integers(0, 5),
    said_in_turn=st.lists(answers, max_size=60),
    most=st.integers(1, 6),
)
def test_whatever_nodes_say_it_never_asks_for_more_attempts_than_it_may(start, said_in_turn, most):
    policy = POLICY._replace(max_deliveries=most)
    tries = delivery.begin(QueueItem(action="pay", id="1", retry=start))
    retries = 0
    for answer in said_in_turn:
        decision = delivery.judge(tries, answer, policy)
        if not isinstance(decision, AskAgain | RetryAttempt):
            assert answer is None or isinstance(decision, Bury) or answer.kind == "cancelled"
            break
        assert 0 < decision.after_s <= 60
        if isinstance(decision, RetryAttempt):
            retries += 1
            assert answer.attempt == decision.tries.retry > tries.retry, "it always moves on"
            assert answer.retryable
        else:
            assert decision.tries.retry == tries.retry
            assert not answer.attempt
        tries = decision.tries
        assert tries.before == start
    assert retries < most
