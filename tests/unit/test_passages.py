from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import passages
from mesh.core.near_duplicates import repeats
from mesh.core.passages import pack
from mesh.core.splitting import PASSAGE_TOKENS, sentences, split
from mesh.core.text import terms
from mesh.core.tokens import tokens
from mesh.wire.messages import Hit

MOST_CHARS_A_TOKEN = 17
"""A run of sixteen blanks of one kind, and one of another."""
LONG = "".join(
    f"Sentence {n} tells of topic{n} and little else, at some length. " for n in range(90)
)


def hit(content, *, name="a", score=1.0, node="docs", collection="kb", **metadata):
    return Hit(
        id=name,
        content=content,
        score=score,
        model_class=collection,
        model_type=collection,
        metadata=metadata,
        node=node,
        collection=collection,
        shard=node,
    )


def texts(packed):
    return [passage.text for passage in packed.passages]


# -- the estimate ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("word", 2),
        ("two words", 3),
        ("1234", 4),
        ("a, b.", 4),
        ("a\n\nb", 4),
        ("a    b", 3),
        ("\u65e5", 2),
        ("\N{GRINNING FACE}", 3),
        ("x" * 100, 34),
        ("\ud800", 2),
        ("a" + " " * 32 + "b", 4),
        ("\t" * 33, 3),
        ("\r\r", 2),
        ("\xa0", 1),
        ("\u3000\u3000", 4),
    ],
)
def test_the_estimate_of_tokens(text, expected):
    assert tokens(text) == expected


@given(st.lists(st.text(), max_size=6))
def test_the_estimate_of_a_whole_is_never_more_than_that_of_its_parts(parts):
    joined = "\n".join(parts)
    assert tokens(joined) <= sum(map(tokens, parts)) + max(0, len(parts) - 1)


# -- splitting -------------------------------------------------------------------------------------


@given(st.text(alphabet="ab. \n-A1\u3002", max_size=3000))
def test_splitting_loses_nothing_and_keeps_passages_small(text):
    places = split(text)
    assert "".join("".join(text[slice(*place)] for place in places).split()) == "".join(
        text.split()
    )
    for start, end in places:
        assert text[start:end] == text[start:end].strip() != ""
        assert tokens(text[start:end]) <= PASSAGE_TOKENS + 1
    assert places == sorted(places)


def test_passages_are_whole_sentences():
    for start, end in split(LONG):
        assert LONG[start:end].startswith("Sentence")
        assert LONG[start:end].endswith("length.")


def test_a_paragraph_that_fills_half_a_passage_ends_it():
    paragraph = "All of this is one thought that goes on for quite a while. " * 7
    text = f"{paragraph}\n\nShort.\n\n{paragraph}\n\nAnother short one."
    first, *_ = split(text)
    assert text[slice(*first)] == paragraph.strip()


def test_an_abbreviation_ends_no_sentence():
    text = ("word " * 100) + "e.g. " + ("more " * 60) + "End here. Next one."
    first, *_ = split(text)
    assert not text[slice(*first)].endswith("e.g.")


@pytest.mark.parametrize("run", ["\n", ".", " \n", ". ", ".\n", "\n.", ".)", "1", "\n1", "\u3002 "])
@pytest.mark.parametrize("end", ["x", "- x", ""])
def test_splitting_takes_time_in_proportion_to_the_text(run, end):
    """A step for every pair of characters would take sixty-four times as long for eight times as
    much: seconds, where this takes milliseconds.
    """

    def took_s(times):
        text = "hello world" + run * times + end
        began = time.process_time()
        places = split(text)
        for place in places:
            list(sentences(text, *place))
        return time.process_time() - began

    few = min(took_s(1_000) for _ in range(3))
    many = min(took_s(8_000) for _ in range(2))
    assert many < 24 * few + 0.05


# -- choosing --------------------------------------------------------------------------------------


def test_passages_are_numbered_and_name_their_sources():
    packed = pack(
        "late invoice",
        [
            hit("An invoice came late.", name="7", title="Billing", url="https://x.example/7"),
            hit("Invoices are sent at night.", name="8", score=0.4, node="crm"),
        ],
        budget=200,
        most=10,
    )
    assert packed.prompt == (
        "[1] Billing\nAn invoice came late.\n\n"
        "[2] Invoices are sent at night.\n\n"
        "Sources:\n"
        "[1] docs/kb/7, https://x.example/7\n"
        "[2] crm/kb/8"
    )
    assert packed.tokens == tokens(packed.prompt)
    assert not packed.truncated
    first, second = packed.passages
    assert (first.number, first.score, first.source.title) == (1, 1.0, "Billing")
    assert (first.source.url, second.source.url) == ("https://x.example/7", None)
    assert (second.source.node, second.source.start, second.source.end) == ("crm", 0, 27)


def test_of_a_long_text_the_part_that_matches_comes_first():
    packed = pack("topic71", [hit(LONG)], budget=300, most=10)
    assert "topic71 " in packed.passages[0].text
    assert packed.passages[0].source.part > 1
    assert packed.passages[0].score == 1.0 > packed.passages[1].score
    assert packed.truncated


def test_without_a_word_of_the_query_a_text_begins_at_its_beginning():
    packed = pack("something else", [hit(LONG)], budget=300, most=10)
    assert packed.passages[0].source.part == 1


def test_the_last_passage_is_cut_at_a_sentence():
    packed = pack("topic0", [hit(LONG)], budget=120, most=10)
    (only,) = packed.passages
    assert only.text.endswith("length.")
    assert LONG[only.source.start : only.source.end] == only.text
    assert packed.truncated
    assert 80 <= packed.tokens <= 120


def test_one_endless_sentence_is_cut_at_a_word():
    packed = pack("word", [hit("word " * 500)], budget=100, most=10)
    (only,) = packed.passages
    assert set(only.text.split()) == {"word"}
    assert 80 <= packed.tokens <= 100


@pytest.mark.parametrize("blank", [" ", "\t", "\r", "\xa0", "\u3000", "\x0b", "\u2028"])
def test_blanks_are_not_for_nothing(blank):
    packed = pack("alpha", [hit(f"alpha{blank * 300_000}beta")], budget=100, most=10)
    assert packed.passages
    assert len(packed.prompt) <= MOST_CHARS_A_TOKEN * 100


def test_a_title_that_the_text_begins_with_is_not_there_twice():
    packed = pack("x", [hit("Billing\nInvoices are late.", title="Billing")], budget=200, most=5)
    assert texts(packed) == ["Invoices are late."]
    packed = pack("x", [hit("Billing", title="Billing")], budget=200, most=5)
    assert texts(packed) == ["Billing"]
    packed = pack("x", [hit("Billing\n", title="Billing")], budget=200, most=5)
    assert texts(packed) == ["Billing"]


def test_what_says_the_same_comes_once():
    text = "The quick brown fox jumps over the lazy dog while the cat sleeps on the old red sofa."
    packed = pack(
        "fox",
        [
            hit(text, name="a"),
            hit(text.upper() + "!", name="b", score=0.9),
            hit("lazy dog", name="c", score=0.8),
            hit("Quite another thing.", name="d", score=0.7),
            hit("Quite another thing.", name="d", score=0.7, node="replica"),
        ],
        budget=500,
        most=10,
    )
    assert [passage.source.id for passage in packed.passages] == ["a", "d"]
    assert packed.passages[1].source.node == "docs"


def test_what_says_more_takes_the_place_of_what_it_holds():
    short = "The quick brown fox jumps over the lazy dog."
    more = f"{short} And then it runs back through the wood, over the hill and home to its den."
    packed = pack("fox", [hit(short), hit(more, name="b", score=0.5)], budget=500, most=10)
    assert [passage.source.id for passage in packed.passages] == ["b"]
    assert packed.passages[0].score == 1.0


def test_after_a_cut_nothing_more_comes():
    """A short one of little worth would still fit where the better one had to be cut."""
    sentence = "This is one of a few rather long sentences that nobody wants to cut, is it not? "
    hits = [hit(sentence + "And so on. " + sentence * 4), hit("Tiny.", name="b", score=0.01)]
    for budget in (60, 70, 80, 90, 100, 110, 120, 130):
        packed = pack("sentences", hits, budget=budget, most=10)
        assert [passage.source.id for passage in packed.passages] == ["a"], budget


def test_what_a_cut_leaves_is_not_said_before():
    first = "The quick brown fox jumps over the lazy dog near the river bank."
    other = "Quite another story is told of cats and mice in the old barn by the sea." * 2
    own = "Foxes live in dens under the ground and come out at dusk to hunt for food."
    hits = [hit(f"{own} {first}"), hit(f"{first} {other}", name="b", score=0.5)]
    whole = pack("foxes", hits, budget=500, most=10)
    assert [passage.source.id for passage in whole.passages] == ["a", "b"]
    for budget in range(100, whole.tokens):
        packed = pack("foxes", hits, budget=budget, most=10)
        assert [passage.source.id for passage in packed.passages] == ["a"]
        assert packed.truncated


def test_no_more_passages_than_wanted():
    hits = [hit(f"Thing number{n} is here.", name=str(n), score=1 - n / 10) for n in range(5)]
    packed = pack("thing", hits, budget=1000, most=3)
    assert [passage.source.id for passage in packed.passages] == ["0", "1", "2"]
    assert packed.truncated
    assert not pack("thing", hits, budget=1000, most=5).truncated


def test_one_that_does_not_fit_makes_room_for_the_next():
    tall = hit(
        "Invoices are late.", name="a", title="t " * 60, url="https://x.example/" + "1" * 290
    )
    short = hit("Paid in time.", name="b", score=0.5)
    for most in (10, 1):
        packed = pack("late", [tall, short], budget=100, most=most)
        assert [passage.source.id for passage in packed.passages] == ["b"]
        assert packed.truncated


def test_documents_of_two_nodes_that_share_an_id_are_two():
    hits = [hit("Invoices are late."), hit("Cats sleep at noon.", node="pets", score=0.5)]
    packed = pack("late", hits, budget=200, most=10)
    assert [passage.source.node for passage in packed.passages] == ["docs", "pets"]


def test_only_so_much_text_is_looked_at(monkeypatch):
    """Of a long one what the short ones leave, up to a word, and it is said."""
    seen = []

    def watched(text, start=0):
        seen.append(len(text))
        return split(text, start)

    monkeypatch.setattr(passages, "split", watched)
    short = [hit("Invoices are late.", name=str(n)) for n in range(10)]
    long = [hit("late again " * 100_000, name=f"long{n}") for n in range(2)]
    packed = pack("late", [*short, *long], budget=200, most=5)
    assert packed.truncated
    assert sum(seen) <= 512 * 1024
    assert min(seen[-2:]) > 255 * 1024
    for blanks in ("x" * 1_000_000, " " * 1_000_000 + "x"):
        assert pack("late", [hit(blanks)], budget=200, most=5).truncated
    assert not pack("late", short, budget=200, most=20).truncated


def test_nothing_found_is_an_empty_prompt():
    assert pack("q", [], budget=100, most=5) == ([], "", 0, False)
    assert pack("q", [hit(""), hit("...", name="b")], budget=100, most=5) == ([], "", 0, False)


def test_words_of_documents_cannot_break_the_list_of_sources():
    packed = pack(
        "x",
        [hit("Text here.", name="i\n[9] fake", title="a\nb " + "t" * 500, url="u\nv")],
        budget=400,
        most=5,
    )
    assert len(packed.prompt.splitlines()) == 5
    assert "[9]" not in re.findall(r"^\[\d+\]", packed.prompt, re.MULTILINE)
    assert packed.passages[0].source.id == "i\n[9] fake"


# -- whatever comes --------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "mesh",
        "node",
        "late",
        "invoice",
        "cat",
        "dog.",
        "End.",
        "Next!",
        "\n\n",
        "\n",
        "-",
        " " * 70,
        "\t" * 500,
        "\xa0" * 70,
        "\u3000\r",
        "x.",
        "日本。",
        "1",
    ]
)
CONTENT = st.lists(WORDS, max_size=120).map(" ".join)
HITS = st.lists(
    st.builds(
        hit,
        CONTENT,
        name=st.sampled_from("abcdef"),
        score=st.floats(0, 20),
        node=st.sampled_from(["docs", "crm"]),
        collection=st.sampled_from(["kb", "wiki"]),
        title=st.one_of(st.none(), st.just("late\ncat"), CONTENT),
        url=st.one_of(st.none(), st.integers(), st.just("https://x.example/" + "y" * 400)),
    ),
    max_size=8,
).map(lambda hits: sorted(hits, key=lambda each: -each.score))


@given(HITS, st.integers(100, 400), st.integers(1, 10))
def test_the_budget_holds_sources_are_whole_and_nothing_is_there_twice(hits, budget, most):
    packed = pack("late invoice", hits, budget=budget, most=most)

    assert tokens(packed.prompt) == packed.tokens <= budget
    assert len(packed.prompt) <= MOST_CHARS_A_TOKEN * budget
    assert len(packed.passages) <= most
    assert packed == pack("late invoice", hits, budget=budget, most=most)
    assert bool(packed.passages) == bool(packed.prompt)

    known = {(each.node, each.collection, each.id): each for each in reversed(hits)}
    heads = re.findall(r"^\[(\d+)\]", packed.prompt, re.MULTILINE)
    numbers = [str(passage.number) for passage in packed.passages]
    assert heads == numbers * 2 == [str(n) for n in range(1, len(numbers) + 1)] * 2
    for passage in packed.passages:
        source = passage.source
        of = known[source.node, source.collection, source.id]
        assert passage.text == passage.text.strip()
        assert 1 <= source.part <= source.parts
        assert passage.text in packed.prompt
        assert any(
            passage.text == each.content[source.start : source.end]
            for each in hits
            if (each.node, each.collection, each.id) == (of.node, of.collection, of.id)
        )
    scores = [passage.score for passage in packed.passages]
    assert scores == sorted(scores, reverse=True)
    for one, other in itertools.permutations(packed.passages, 2):
        assert not repeats(terms(one.text), terms(other.text))


@given(HITS)
def test_a_larger_budget_lets_no_less_in(hits):
    small = pack("late invoice", hits, budget=150, most=100)
    large = pack("late invoice", hits, budget=20_000, most=100)
    assert len(large.passages) >= len(small.passages)
    assert not large.truncated
