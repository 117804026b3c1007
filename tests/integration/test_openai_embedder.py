"""The embedder that asks an HTTP endpoint, against a real server on loopback."""

import asyncio
import datetime as dt
import email.utils
import functools
import logging
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from embedding_server import KEY, Answer, EmbeddingServer, Waits, good

from mesh.adapters.clock import SystemClock
from mesh.adapters.embedders import embeddings_endpoint, load_embedder, openai
from mesh.adapters.embedders.calibration import TEXTS
from mesh.adapters.embedders.openai import OpenAIEmbedder
from mesh.adapters.lance import LanceDocuments
from mesh.config import SearchConfig
from mesh.errors import ConfigError, StateError, UnavailableError
from mesh.wire.messages import Document


@pytest.fixture
def server():
    with EmbeddingServer() as running:
        yield running


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def embedder(server, waits):
    return OpenAIEmbedder(server.settings(), wait=waits)


def told(embedder, answer):
    """The server's answer to one text."""
    return lambda asked: answer if len(asked["input"]) == 1 else good(asked)


# -- what is asked ---------------------------------------------------------------------------------


def test_it_is_found_by_its_name(server):
    embedder = load_embedder("openai", server.settings())
    assert server.asked == []  # nothing is asked before something is wanted
    assert embedder.embed_query("late invoice").shape == (512,)


def test_the_dimension_is_learnt_from_the_first_answer_and_asked_for_once(server, embedder):
    assert embedder.dim == 512
    assert embedder.id.startswith("openai-words-1-512/")
    assert [asked["input"] for asked in server.asked] == [list(TEXTS)]


def test_the_id_says_which_endpoint_model_and_length(server, embedder):
    ids = {
        OpenAIEmbedder(server.settings(**others)).id
        for others in (
            {"embedder_dim": 512},
            {"embedder_dim": 64},
            {"embedder_dim": 512, "embedder_model": "words-2"},
            {"embedder_dim": 512, "embedder_url": server.url + "/other"},
        )
    }
    assert len(ids) == 4
    assert server.asked == []  # a length that is given need not be asked for
    assert OpenAIEmbedder(server.settings(embedder_url=server.url + "/embeddings/")).id in ids
    assert embedder.id in ids
    assert OpenAIEmbedder(server.settings(embedder_key="another")).id == embedder.id


def test_texts_go_in_batches_and_blank_ones_not_at_all(server):
    embedder = OpenAIEmbedder(server.settings(embedder_batch=3))
    texts = ["one", " ", "two", "three", "", "four"]
    vectors = embedder.embed_documents(texts)
    assert [asked["input"] for asked in server.asked[1:]] == [["one", "two", "three"], ["four"]]
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths == pytest.approx([1, 0, 1, 1, 0, 1], abs=1e-6)
    assert np.array_equal(vectors[5], embedder.embed_query("four"))


def test_a_long_text_is_cut_where_a_character_ends(server, embedder):
    embedder.embed_documents(["é" * 5000, "a" + "é" * 5000])
    sent = server.asked[-1]["input"]
    assert [len(text.encode()) for text in sent] == [8000, 7999]
    assert sent[0] == "é" * 4000


def test_the_length_is_asked_for_only_if_it_is_set(server):
    OpenAIEmbedder(server.settings()).embed_documents(["x"])
    assert "dimensions" not in server.asked[-1]
    with pytest.raises(StateError, match=r"512 numbers, and search\.embedder_dim says 64"):
        OpenAIEmbedder(server.settings(embedder_dim=64)).embed_documents(["x"])
    assert server.asked[-1]["dimensions"] == 64


def test_a_query_is_asked_once(server, embedder):
    first = embedder.embed_query("late invoice")
    asked = len(server.asked)
    assert np.array_equal(embedder.embed_query("late invoice"), first)
    assert len(server.asked) == asked
    assert not first.flags.writeable  # everybody gets the same one


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_goes_into_the_header_alone(server, embedder):
    embedder.embed_query("late invoice")
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in str(server.asked)
    assert server.paths == ["/v1/embeddings"] * len(server.paths)


def test_without_a_key_none_is_sent(server):
    OpenAIEmbedder(server.settings(embedder_key="")).embed_query("x")
    assert "authorization" not in server.headers[-1]


def test_the_key_is_in_no_word_of_ours(server, embedder, caplog):
    caplog.set_level(logging.DEBUG)
    said = {"error": {"message": f"Incorrect API key provided: {KEY}."}}
    server.behaviour = lambda _asked: Answer(401, said)
    with pytest.raises(StateError, match="MESH_SEARCH__EMBEDDER_KEY") as refused:
        embedder.embed_query("late invoice")
    assert "Incorrect API key provided: …" in str(refused.value)
    assert KEY not in f"{refused.value}{caplog.text}{server.settings()!r}{vars(embedder)!r}"
    with pytest.raises(ConfigError) as refused:
        OpenAIEmbedder(server.settings(embedder_key=KEY + "\n"))
    assert KEY not in str(refused.value)


def test_httpx_loads_when_something_is_asked():
    """Nodes with another embedder do not pay for it."""
    code = (
        "import sys; from mesh.adapters.embedders import load_embedder;"
        "from mesh.config import SearchConfig;"
        "load_embedder('openai', SearchConfig(embedder_url='http://h/v1', embedder_model='m'));"
        "sys.exit('httpx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- settings that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "api.openai.com/v1", "ftp://host/v1", "http:///v1", "http://host:99999/v1", "http://h:0/"],
)
def test_an_address_that_is_none(url):
    with pytest.raises(ConfigError, match=r"search\.embedder_url: expected the address"):
        OpenAIEmbedder(SearchConfig(embedder_url=url, embedder_model="m"))


@pytest.mark.parametrize(
    "url", ["http://user:geheim@host/v1", "http://host/v1?key=geheim", "http://host/v1#geheim"]
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_shown(url):
    with pytest.raises(ConfigError, match="EMBEDDER_KEY") as refused:
        OpenAIEmbedder(SearchConfig(embedder_url=url, embedder_model="m"))
    assert "geheim" not in str(refused.value)


def test_no_model():
    with pytest.raises(ConfigError, match=r"search\.embedder_model"):
        OpenAIEmbedder(SearchConfig(embedder_url="http://host/v1"))


# -- an endpoint that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again_with_longer_and_longer_waits(server, embedder, waits, status):
    assert embedder.dim
    server.script = [Answer(status, {}), Answer(status, b"busy"), Answer(status, {})]
    assert embedder.embed_documents(["late invoice"]).any()
    assert waits.seconds == [0.5, 1.0, 2.0]


def test_it_gives_up_after_five_tries(server, embedder, waits):
    assert embedder.dim
    asked = len(server.asked)
    server.behaviour = lambda _asked: Answer(503, {"error": "loading\nmodel"})
    with pytest.raises(UnavailableError, match="answered 503: loading model") as refused:
        embedder.embed_documents(["late invoice"])
    assert len(server.asked) - asked == 5
    assert waits.seconds == [0.5, 1.0, 2.0, 4.0]
    assert refused.value.retry_after_ms == 8000


def test_retry_after_is_kept_to_in_both_forms(server, embedder, waits):
    assert embedder.dim
    soon = dt.datetime.now(tz=dt.UTC) + dt.timedelta(seconds=20)
    past = dt.datetime.now(tz=dt.UTC) - dt.timedelta(seconds=20)
    for header in ("7", email.utils.format_datetime(soon), email.utils.format_datetime(past), "x"):
        server.script.append(Answer(429, {}, {"retry-after": header}))
    embedder.embed_documents(["late invoice"])
    seconds, until, passed, unknown = waits.seconds
    assert seconds == 7.0
    assert 15 < until <= 20
    assert passed == 0.0
    assert unknown == 4.0


def test_nobody_waits_for_an_hour(server, embedder, waits):
    assert embedder.dim
    server.script = [Answer(429, {}, {"retry-after": "3600"})]
    with pytest.raises(UnavailableError) as refused:
        embedder.embed_documents(["late invoice"])
    assert waits.seconds == []
    assert refused.value.retry_after_ms == 3_600_000


@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_a_wait_without_end_is_one_error_like_others(server, embedder, waits, digits):
    """A float has no room for 309 digits, and an int of 5,000 is not read."""
    assert embedder.dim
    server.script = [Answer(429, {}, {"retry-after": "9" * digits})]
    with pytest.raises(UnavailableError) as refused:
        embedder.embed_documents(["late invoice"])
    assert waits.seconds == []
    assert refused.value.retry_after_ms == 999_999_999_000


def test_one_that_hangs_is_cut_off(server, waits):
    embedder = OpenAIEmbedder(server.settings(embedder_timeout_s=0.2), wait=waits)
    server.behaviour = lambda asked: good(asked)._replace(after_s=60)
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.2 s"):
        embedder.embed_documents(["late invoice"])
    assert len(server.asked) == 5


def test_one_that_drips_is_cut_off(server, waits):
    """Each byte comes in time, and the last one never."""
    embedder = OpenAIEmbedder(server.settings(embedder_timeout_s=0.3), wait=waits)
    server.behaviour = lambda asked: good(asked)._replace(drip_s=0.05)
    began = time.perf_counter()
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.3 s"):
        embedder.embed_query("late invoice")
    assert time.perf_counter() - began < 3
    assert len(server.asked) == 1


@pytest.mark.parametrize("settings", [{}, {"embedder_dim": 512}], ids=["unknown", "known"])
def test_a_query_does_not_wait_for_as_long_as_documents_may_take(server, monkeypatch, settings):
    """Not even the first one, which learns what the endpoint does with texts."""
    monkeypatch.setattr(openai, "_QUERY_S", 0.2)
    embedder = OpenAIEmbedder(server.settings(**settings))
    server.behaviour = lambda asked: good(asked)._replace(after_s=60)
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.2 s"):
        embedder.embed_query("late invoice")
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.2 s"):
        embedder.embed_query("another")
    assert len(server.asked) == 1


async def test_a_search_has_its_answer_by_words_while_an_endpoint_hangs(server, tmp_path):
    """Within its time, however many ask; and when the vectors are back they are there."""
    store = await LanceDocuments.open(
        tmp_path, embedder=OpenAIEmbedder(server.settings()), shard="s1", clock=SystemClock()
    )
    await store.index("notes", [Document(id="a", content="the invoice is late")])
    server.behaviour = lambda asked: good(asked)._replace(after_s=60)
    find = functools.partial(
        store.search, collections=None, depth=30, threshold=0.0, filters={}, embed_within_s=0.3
    )
    began = time.perf_counter()
    found = await asyncio.gather(*(find(f"invoice {n}", mode="hybrid") for n in range(20)))
    assert time.perf_counter() - began < 0.8
    for [hits] in found:
        assert [(hit.id, hit.vector_hit) for hit in hits.candidates] == [("a", False)]
        assert "in time" in hits.no_vectors
    assert len(server.asked) <= 2 + 4, "the others were not even begun"
    with pytest.raises(UnavailableError):
        await find("invoice", mode="vector")
    await store.close()


def test_nobody_listens(waits):
    with EmbeddingServer() as gone:
        settings = gone.settings()
    embedder = OpenAIEmbedder(settings, wait=waits)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        _ = embedder.id
    assert len(waits.seconds) == 4


def test_after_a_query_in_vain_the_next_ones_fail_at_once_for_a_while(server):
    clock = [100.0]
    embedder = OpenAIEmbedder(server.settings(), now=lambda: clock[0])
    embedder.embed_query("known")
    asked = len(server.asked)
    server.behaviour = lambda _asked: Answer(503, {})
    for _ in range(3):
        with pytest.raises(UnavailableError, match="answered 503"):
            embedder.embed_query("late invoice")
    assert len(server.asked) - asked == 1
    assert embedder.embed_query("known").any()
    server.behaviour = good
    clock[0] += 5.1
    assert embedder.embed_query("late invoice").any()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(400, {"error": {"message": "too long"}}), "answered 400: too long"),
        (Answer(404, {"detail": "no such model"}), "no such model; are search.embedder_url"),
        (Answer(422, b"<html>"), "answered 422"),
        (Answer(200, b"<html>"), "cannot be read"),
        (Answer(200, b""), "cannot be read"),
        (Answer(200, b'{"data": [{"index": 0, "embedding": [NaN]}]}'), "cannot be read"),
        (Answer(200, {"data": [{"index": 0, "embedding": [None]}]}), "cannot be read"),
        (Answer(200, b'{"data": [{"index": 0, "embedding": [1e999]}]}'), "read|no number"),
        (Answer(200, {"data": []}), "0 vectors for 1 texts"),
        (Answer(200, {"data": [{"index": 0, "embedding": [1.0]}] * 2}), "2 vectors for 1"),
        (Answer(200, {"data": [{"index": 7, "embedding": [1.0]}]}), "1 vectors for 1"),
        (Answer(200, {"data": [{"index": 0, "embedding": []}]}), "no length"),
        (Answer(200, {"data": [{"index": 0, "embedding": [0.0] * 512}]}), "zeros"),
        (Answer(200, {"data": [{"index": 0, "embedding": [1.0] * 3}]}), "had 512"),
    ],
)
def test_answers_that_are_none(server, embedder, waits, answer, words):
    assert embedder.dim
    server.script = [answer]
    with pytest.raises(StateError, match=words):
        embedder.embed_documents(["late invoice"])
    assert waits.seconds == []  # another try would not help
    assert embedder.embed_documents(["late invoice"]).any()


def test_vectors_of_different_lengths(server, embedder):
    assert embedder.dim
    items = [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]
    server.script = [Answer(200, {"data": items})]
    with pytest.raises(StateError, match="no length"):
        embedder.embed_documents(["one", "two"])


def test_numbers_whose_squares_are_none(server):
    big = {"data": [{"index": place, "embedding": [3e300, 4e300]} for place in range(len(TEXTS))]}
    small = {"data": [{"index": 0, "embedding": [3e-300, 4e-300]}]}
    server.script = [Answer(200, big), Answer(200, small)]
    embedder = OpenAIEmbedder(server.settings())
    assert embedder.embed_documents(["x"]).tolist() == [pytest.approx([0.6, 0.8])]


def test_no_redirect_is_followed(server, embedder, waits):
    with EmbeddingServer() as other:
        for status in (301, 302, 303, 307, 308):
            server.script = [Answer(status, {}, {"location": f"{other.url}/embeddings"})]
            with pytest.raises(StateError, match=f"{status}; redirects are not followed"):
                embedder.embed_documents(["late invoice"])
        assert other.asked == []


def test_an_answer_without_end(server, embedder, monkeypatch):
    assert embedder.dim
    monkeypatch.setattr(embeddings_endpoint, "_MOST_ANSWER_BYTES", 1000)
    server.script = [Answer(200, b" " * 10_000)]
    with pytest.raises(StateError, match="without end"):
        embedder.embed_documents(["late invoice"])


# -- the threshold ---------------------------------------------------------------------------------


def test_the_threshold_is_what_unrelated_texts_do_not_reach(server, embedder):
    assert embedder.default_threshold == 0.0
    embedder.embed_query("x")
    vectors = embedder.embed_documents(TEXTS).astype(float)
    cosines = [
        float(vectors[first] @ vectors[second])
        for first in range(len(TEXTS))
        for second in range(first)
    ]
    below = sum(cosine < embedder.default_threshold for cosine in cosines)
    assert below / len(cosines) == pytest.approx(0.95, abs=0.02)
    assert math.isclose(embedder.default_threshold, round(embedder.default_threshold, 2))
