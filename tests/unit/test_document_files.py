from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.document_files import BadLine, read_documents
from mesh.adapters.document_files.items import MAX_LINE_BYTES
from mesh.errors import InvalidError


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def documents(path, **options):
    return [item.document for item in read_documents(path, **options) if item.document]


def faults(path, **options):
    return [
        (item.line, item.reason)
        for item in read_documents(path, **options)
        if isinstance(item, BadLine)
    ]


# -- JSON lines ------------------------------------------------------------------------------------


def test_json_lines_pass_every_key_on(write):
    path = write("a.jsonl", '{"id": 7, "content": "x", "lang": "en"}\n\n{"title": "T"}')

    assert documents(path) == [
        {"id": "7", "content": "x", "lang": "en"},
        {"id": "a-3", "title": "T"},
    ]


def test_json_lines_tell_lines_and_bytes(write):
    path = write("a.jsonl", '{"content": "x"}\n{"content": "y"}\n')

    items = list(read_documents(path))
    assert [(item.line, item.position, item.total) for item in items] == [(1, 17, 34), (2, 34, 34)]


def test_a_byte_order_mark_is_no_content(write):
    assert documents(write("a.jsonl", b'\xef\xbb\xbf{"content": "x"}\r\n')) == [
        {"id": "a-1", "content": "x"}
    ]
    table = write("b.csv", b"\xef\xbb\xbfid,content\r\n1,x\r\n")
    assert documents(table) == [{"id": "1", "content": "x", "metadata": {}}]
    assert documents(write("c.md", b"\xef\xbb\xbf# T\n\nx"))[0]["metadata"]["title"] == "T"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"id": 1}', "no content"),
        (b'{"content": null, "title": ""}', "no content"),
        (b'{"content": 5}', "content is not text"),
        (b'{"id": [1], "content": "x"}', "id is neither"),
        (b'{"id": true, "content": "x"}', "id is neither"),
        (b'{"content": "\xff"}', "not UTF-8"),
        (b'{"content": "' + b"x" * 1_000_001 + b'"}', "longer than 1000000 characters"),
        (b"x" * (MAX_LINE_BYTES + 1), "longer than 2097152 bytes"),
        (b"x" * (3 * MAX_LINE_BYTES), "longer than 2097152 bytes"),
        (b'{"content": "x", "content": "y"}', "key 'content' occurs twice"),
        (b'{"content": "x", "a": [{"b": 1, "b": 1}]}', "key 'b' occurs twice"),
        (b'{"content": "x\x00"}', "not JSON"),
        (b'{"content": "\\ud800"}', "not JSON"),
        (b'{"content": "x", "n": NaN}', "not JSON"),
    ],
    ids=[*"abcdefghijklmnopqr"],
)
def test_a_bad_line_is_named_and_the_next_one_read(write, line, reason):
    path = write("a.jsonl", b'{"content": "before"}\n' + line + b'\n{"content": "after"}\n')

    (fault,) = faults(path)
    assert fault[0] == 2
    assert reason in fault[1]
    assert [document["id"] for document in documents(path)] == ["a-1", "a-3"]


def test_json_columns_by_name(write):
    path = write("a.ndjson", '{"sku": "s", "note": "x"}\n{"sku": "t"}\n')

    assert documents(path, id_column="sku", content_column="note") == [{"id": "s", "content": "x"}]
    assert faults(path, id_column="sku", content_column="note") == [(2, "no note")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\r\n  \n", []),
        (b'{"content": "x"}\r\n{"content": "y"}', ["a-1", "a-2"]),
        (b'\n\n{"content": "a\\u0000b"}\n', ["a-3"]),
    ],
    ids=["empty", "empty lines", "windows", "nul"],
)
def test_json_lines_that_are_fine(write, content, expected):
    path = write("a.jsonl", content)
    assert [document["id"] for document in documents(path)] == expected
    assert faults(path) == []


def test_a_bad_line_comes_with_what_stands_there(write):
    long = b"x" * (MAX_LINE_BYTES + 1)
    path = write("a.jsonl", b'oops\r\n{"a": "\xff"}\n' + long + b"\n")

    items = list(read_documents(path))
    assert [(item.raw, item.whole) for item in items] == [
        (b"oops\r\n", True),
        (b'{"a": "\xff"}\n', True),
        (long[:1024], False),
    ]


def test_a_row_comes_with_what_stands_there(write):
    path = write("a.csv", b'id,content\n1,"one\ntwo"\n2\n')

    assert [item.raw for item in read_documents(path)] == [b'1,"one\ntwo"\n', b"2\n"]


@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.text(st.characters(codec="utf-8"), min_size=1, max_size=9)},
            optional={"content": st.text(st.characters(codec="utf-8"), min_size=1)},
        )
    )
)
def test_every_json_document_survives_the_way(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows))

    assert documents(path) == [row for row in rows if "content" in row]
    assert len(faults(path)) == sum("content" not in row for row in rows)


# -- CSV and TSV -----------------------------------------------------------------------------------


def test_columns_of_numbers_and_booleans_are_typed(write):
    path = write(
        "a.csv",
        "id,content,n,price,open,zip,mixed,empty\n"
        "1,x,1,1,true,007,1,\n"
        "2,y,-2,2.5,FALSE,123,b,\n"
        "3,z,,1e3,,9,,\n",
    )

    rows = documents(path)
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert [row["metadata"] for row in rows] == [
        {"n": 1, "price": 1.0, "open": True, "zip": "007", "mixed": "1"},
        {"n": -2, "price": 2.5, "open": False, "zip": "123", "mixed": "b"},
        {"price": 1000.0, "zip": "9"},
    ]


def test_text_with_line_breaks_and_quotes(write):
    path = write("a.csv", 'id,content\n1,"one\ntwo, ""three"""\n2,x\n')

    items = list(read_documents(path))
    assert [item.document["content"] for item in items] == ['one\ntwo, "three"', "x"]
    assert [item.line for item in items] == [2, 4]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "id\tcontent\n1\ta, b\n"),
        ("a.tab", "id\tcontent\n1\ta, b\n"),
        ("a.csv", "id;content\n1;a, b\n"),
        ("a.CSV", 'id,content\n1,"a, b"\n'),
    ],
)
def test_delimiters(write, name, text):
    assert documents(write(name, text)) == [{"id": "1", "content": "a, b", "metadata": {}}]


def test_without_a_content_column_the_node_makes_the_text(write):
    path = write("a.csv", "title,body,year\nT,B,2024\n")

    assert documents(path) == [{"id": "a-2", "title": "T", "body": "B", "metadata": {"year": 2024}}]


def test_columns_by_name(write):
    path = write("a.csv", "sku,note,id\ns,x,1\n")

    assert documents(path, id_column="sku", content_column="note") == [
        {"id": "s", "content": "x", "metadata": {"id": 1}}
    ]


def test_bad_rows_are_named_and_the_others_read(write):
    path = write(
        "a.csv",
        b"id,content\n1\n2,b\n3,c,d\n4,\xff\n5, \n\n"
        b"6," + b"x" * 1_000_001 + b'\n7,"a"b\n8,' + b"x" * (MAX_LINE_BYTES + 1) + b"\n9,i\n",
    )

    assert [document["id"] for document in documents(path)] == ["2", "9"]
    assert [(line, reason[:12]) for line, reason in faults(path)] == [
        (2, "1 cells unde"),
        (4, "3 cells unde"),
        (5, "not UTF-8"),
        (6, "no text"),
        (8, "content is l"),
        (9, "not a row: '"),
        (10, "not a row: f"),
    ]


def test_a_quote_that_is_never_closed_is_one_bad_row(write):
    path = write("a.csv", 'id,content\n1,a\n2,"b\n3,c\n')

    assert [document["id"] for document in documents(path)] == ["1"]
    assert [line for line, _ in faults(path)] == [3]


@pytest.mark.parametrize(
    ("text", "options", "field"),
    [
        ("", {}, "path"),
        ("id,id\n", {}, "path"),
        ("id,\n", {}, "path"),
        ("a,b\n1,2\n", {}, "content_column"),
        ("id,content\n", {"content_column": "text"}, "content_column"),
        ("id,content\n", {"id_column": "sku"}, "id_column"),
    ],
)
def test_a_table_that_cannot_be_read_at_all(write, text, options, field):
    with pytest.raises(InvalidError) as refused:
        list(read_documents(write("a.csv", text), **options))
    assert list(refused.value.fields) == [field]


# -- Markdown --------------------------------------------------------------------------------------


def test_a_short_file_is_one_document(write):
    path = write("guide.md", "# Guide\n\nRead me.\n")

    assert documents(path) == [
        {
            "id": "guide.md",
            "content": "# Guide\n\nRead me.",
            "metadata": {"title": "Guide", "path": "guide.md"},
        }
    ]


def test_a_long_file_is_cut_at_headings_of_level_1_and_2(write):
    path = write(
        "guide.md",
        "Preface.\n\n# Guide\n\n## Install it!\n\nDo.\n\n### Details\n\nMore.\n\n"
        "```sh\n# no heading\n```\n\n## Use\nGo.\n\nTitle\n=====\n\nEnd.\n\n## Use\n\nAgain.\n",
    )

    found = documents(path)
    assert [(document["id"], document["metadata"]["title"]) for document in found] == [
        ("guide.md", "guide"),
        ("guide.md#install-it", "Install it!"),
        ("guide.md#use", "Use"),
        ("guide.md#title", "Title"),
        ("guide.md#use-2", "Use"),
    ]
    assert found[1]["content"].startswith("# Guide\n\n## Install it!\n\nDo.")
    assert found[1]["content"].endswith("```sh\n# no heading\n```")
    assert [item.line for item in read_documents(path)] == [1, 5, 17, 20, 25]


def test_headings_alone_are_still_found(write):
    assert documents(write("a.md", "# One\n\n## Two\n"))[0]["content"] == "# One\n\n## Two"


def test_what_only_looks_like_a_heading(write):
    path = write(
        "a.md", "#tag\n\n    # code\n\n- item\n---\n\n~~~\n# x\n```\n~~~\n\na | b\n--|--\n"
    )

    assert [document["id"] for document in documents(path)] == ["a.md"]


def test_a_folder_is_read_in_order_without_its_hidden_parts(write, tmp_path):
    write("docs/b.md", "b")
    write("docs/a/z.markdown", "z")
    write("docs/a.md", "a")
    write("docs/.git/x.md", "hidden")
    write("docs/notes.txt", "no")

    items = list(read_documents(tmp_path / "docs"))
    assert [item.document["id"] for item in items] == ["a.md", "a/z.markdown", "b.md"]
    assert [(item.position, item.total) for item in items] == [(1, 3), (2, 3), (3, 3)]


def test_front_matter_becomes_metadata(write):
    path = write(
        "a.md",
        "---\ntitle: Late invoices\ntags: [a, b]\ndate: 2026-01-02\ndraft: false\n---\nText.\n",
    )

    assert documents(path) == [
        {
            "id": "a.md",
            "content": "Text.",
            "metadata": {
                "title": "Late invoices",
                "tags": ["a", "b"],
                "date": "2026-01-02",
                "draft": False,
                "path": "a.md",
            },
        }
    ]


@pytest.mark.parametrize("text", ["---\n\nText.\n", "---\njust words\n---\nText.\n", "---\n"])
def test_rules_are_no_front_matter(write, text):
    assert documents(write("a.md", text))[0]["content"] == text.strip()


@pytest.mark.parametrize(
    "matter",
    [
        "a: [",
        "a: b: c",
        "x: " + "y" * 70_000,
        "a: &a [1, 2]\nb: [" + ", ".join(["*a"] * 500) + "]",
        "a: &a [*a]",
    ],
    ids=["open", "colon", "long", "bomb", "endless"],
)
def test_bad_front_matter_is_named(write, matter):
    path = write("a.md", f"---\n{matter}\n---\nText.\n")

    ((line, reason),) = faults(path)
    assert line == 1
    assert reason.startswith("front matter: ")
    assert not documents(path)


def test_a_markdown_file_that_is_not_utf8_is_named_and_the_others_read(write, tmp_path):
    write("docs/a.md", b"ok\nthen \xff\n")
    write("docs/b.md", "b")

    assert faults(tmp_path / "docs") == [(2, "not UTF-8")]
    assert [document["id"] for document in documents(tmp_path / "docs")] == ["b.md"]


# -- compressed, from the middle, from standard input ----------------------------------------------


PACKED = {"gz": "gzip", "zst": "zstd"}


def packed(data, ending):
    return pa.compress(data, codec=PACKED[ending], asbytes=True)


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_lines_and_tables(write, ending):
    lines = b"".join(b'{"content": "text %d"}\n' % number for number in range(5000))
    path = write(f"a.jsonl.{ending}", packed(lines, ending))
    items = list(read_documents(path))
    assert [item.document["id"] for item in items] == [f"a-{n + 1}" for n in range(5000)]
    assert items[-1].position <= items[-1].total == path.stat().st_size

    table = write(f"b.csv.{ending}", packed(b"id;content\n1;a, b\n", ending))
    assert documents(table) == [{"id": "1", "content": "a, b", "metadata": {}}]


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_compressed_file_says_so(write, ending, damage):
    whole = packed(random.Random(1).randbytes(100_000).hex().encode(), ending)
    path = write(f"a.jsonl.{ending}", whole[:50_000] if damage == "cut" else b"no compression")

    with pytest.raises(InvalidError, match=r"cannot read .*a\.jsonl"):
        list(read_documents(path))


FILES = {
    "a.jsonl": '{"id": "x", "content": "a"}\n\noops\n{"content": "é"}\r\n{"content": "b"}',
    "a.csv": 'id,content,n\n,"one\ntwo",1\n\nbad\n3,"é",2\n,x,3\n',
    "a.md": "# A\n\na\n\n# B\n\nb\n\n# C\n\nc\n",
}


@pytest.mark.parametrize(
    ("name", "ending"),
    [(name, ending) for name in FILES for ending in ("", *PACKED) if name != "a.md" or not ending],
)
def test_reading_goes_on_after_any_item(write, name, ending):
    data = FILES[name].encode()
    path = write(f"{name}.{ending}" if ending else name, packed(data, ending) if ending else data)

    every = list(read_documents(path))
    assert len(every) >= 3
    for place, item in enumerate(every, start=1):
        rest = list(read_documents(path, after=item.mark))
        assert [(i.line, i.document, i.mark) for i in rest] == [
            (i.line, i.document, i.mark) for i in every[place:]
        ]


def test_standard_input():
    """A process of its own: what is read is the descriptor, not Python's stream on it."""
    code = (
        "import mesh, sys, pathlib;"
        "form = sys.argv[1] if sys.argv[1:] else None;"
        "[print(i.document or i.reason) for i in"
        " mesh.read_documents(pathlib.Path('-'), form=form)]"
    )

    def read(data, *form):
        argv = [sys.executable, "-c", code, *form]
        done = subprocess.run(argv, input=data, capture_output=True, check=True, timeout=60)
        return done.stdout.decode().splitlines()

    data = b'{"content": "x"}\noops\n{"content": "x"}\n{"id": 7, "content": "x"}\n'
    lines = read(data)
    assert len(set(lines)) == 4, "two documents of one id"
    assert lines[0].startswith("{'content': 'x', 'id': 'stdin-1-")
    assert lines == read(data)
    assert read(b"id,content\n1,x\n", "csv") == ["{'id': '1', 'content': 'x', 'metadata': {}}"]


# -- files that cannot be read ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a", "a.pdf"])
def test_an_unknown_kind_says_what_is_accepted(write, name):
    with pytest.raises(InvalidError, match=r"\.jsonl.*\.csv.*\.md"):
        list(read_documents(write(name, "x")))


def test_a_folder_without_markdown(tmp_path):
    with pytest.raises(InvalidError, match="no Markdown files"):
        list(read_documents(tmp_path))


def test_a_missing_file(tmp_path):
    with pytest.raises(InvalidError, match="cannot read"):
        list(read_documents(tmp_path / "a.jsonl"))


def test_columns_of_markdown(write):
    with pytest.raises(InvalidError, match="no columns"):
        list(read_documents(write("a.md", "x"), id_column="x"))


def test_reading_is_lazy(tmp_path):
    """A file far larger than memory must be possible: the first document needs the first line."""
    path = Path(tmp_path) / "big.jsonl"
    with path.open("wb") as file:
        file.write(b'{"content": "x"}\n')
        file.truncate(8 * 1024**3)

    assert next(iter(read_documents(path))).line == 1
