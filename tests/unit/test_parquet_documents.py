from __future__ import annotations

import datetime as dt
import decimal
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.document_files import BadLine, read_documents
from mesh.errors import InvalidError


@pytest.fixture
def write(tmp_path):
    def written(columns, name="a.parquet", **options):
        path = tmp_path / name
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, path, **options)
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


def only(write, array):
    """What becomes of one value of that column."""
    (document,) = documents(write({"content": ["x"], "v": array}))
    return document.get("v")


def test_columns_go_along_under_their_names(write):
    path = write({"id": [1, 2], "content": ["x", "y"], "lang": ["en", None], "n": [3, 4]})

    assert documents(path) == [
        {"id": "1", "content": "x", "lang": "en", "n": 3},
        {"id": "2", "content": "y", "n": 4},
    ]


def test_rows_are_counted_as_lines_and_give_ids(write):
    path = write({"title": ["T", "U"]})

    items = list(read_documents(path))
    assert [item.document["id"] for item in items] == ["a-1", "a-2"]
    assert [item.line for item in items] == [1, 2]
    assert items[-1].position == items[-1].total == path.stat().st_size


def test_columns_by_name(write):
    path = write({"sku": ["s"], "note": ["x"], "id": [7]})

    assert documents(path, id_column="sku", content_column="note") == [
        {"id": "s", "content": "x", "metadata": {"id": 7}}
    ]


DAY = dt.date(2026, 1, 2)
MOMENT = dt.datetime.fromisoformat("2026-01-02T03:04:05.000678")


KINDS = [
    (pa.array([True]), True),
    (pa.array([2**63], pa.uint64()), 2**63),
    (pa.array([1.5], pa.float32()), 1.5),
    (pa.array([1.5], pa.float16()), 1.5),
    (pa.array([float("nan")]), None),
    (pa.array([float("-inf")]), None),
    (pa.array([None], pa.null()), None),
    (pa.array(["x"], pa.large_string()), "x"),
    (pa.array(["x"], pa.string_view()), "x"),
    (pa.array(["x"]).dictionary_encode(), "x"),
    (pa.array([b"\xff\x00"]), "/wA="),
    (pa.array([b"ab"], pa.binary(2)), "YWI="),
    (pa.array([DAY]), "2026-01-02"),
    (pa.array([DAY], pa.date64()), "2026-01-02"),
    (pa.array([MOMENT]), "2026-01-02T03:04:05.000678"),
    (pa.array([1], pa.timestamp("s")), "1970-01-01T00:00:01"),
    (pa.array([1_001], pa.timestamp("ns")), "1970-01-01T00:00:00.000001"),
    (
        pa.array([0], pa.timestamp("ms", "Europe/Brussels")),
        "1970-01-01T00:00:00+00:00",
    ),
    (pa.array([dt.time(3, 4, 5)]), "03:04:05"),
    (pa.array([1_001], pa.time64("ns")), "00:00:00.000001"),
    (pa.array([1], pa.time32("s")), "00:00:01"),
    (pa.array([1_500_000_000], pa.duration("ns")), 1.5),
    (pa.array([decimal.Decimal("1.25")], pa.decimal128(15, 2)), 1.25),
    (pa.array([decimal.Decimal(12)], pa.decimal128(9, 0)), 12),
    (pa.array([decimal.Decimal("1.25")], pa.decimal128(20, 2)), "1.25"),
    (pa.array([decimal.Decimal("1e30")], pa.decimal256(50, 3)), "1" + "0" * 30 + ".000"),
    (pa.array([[1, None]]), [1, None]),
    (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), [1, 2]),
    (pa.array([[DAY]]), ["2026-01-02"]),
    (pa.array([{"a": DAY, "b": None}]), {"a": "2026-01-02", "b": None}),
    (pa.array([[{"a": [1.5, float("nan")]}]]), [{"a": [1.5, None]}]),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), {"k": 1}),
    (pa.array([uuid.UUID(int=1).bytes], pa.uuid()), str(uuid.UUID(int=1))),
]


@pytest.mark.parametrize("at", range(len(KINDS)), ids=lambda at: f"{at}-{KINDS[at][0].type}")
def test_every_kind_of_column_has_one_form_in_json(write, at):
    array, expected = KINDS[at]
    got = only(write, array)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"content": [1]}, "'content' is int64"),
        ({"content": ["x"], "id": [1.5]}, "'id' is double"),
        ({"title": [DAY]}, "'title' is date32"),
        ({"content": ["x"], "metadata": ["{}"]}, "'metadata' is string"),
        ({"content": ["x"], "v": pa.array([[(1, 2)]], pa.map_(pa.int8(), pa.int8()))}, "'v' is a"),
        (
            {
                "content": ["x"],
                "v": pa.array(
                    [{"in": [[(1, 2)]]}], pa.struct({"in": pa.list_(pa.map_(pa.int8(), pa.int8()))})
                ),
            },
            r"'v\.in\[\]' is a map",
        ),
        ({"body_": ["x"]}, "no column content"),
    ],
    ids=["content", "id", "title", "metadata", "map", "deep map", "none"],
)
def test_a_column_that_no_document_can_hold_is_named(write, columns, named):
    with pytest.raises(InvalidError, match=named):
        documents(write(columns))


def test_two_columns_of_one_name(write):
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["content", "content"])
    with pytest.raises(InvalidError, match="several columns 'content'"):
        documents(write(table))


def test_struct_metadata_and_binary_text(write):
    path = write({"content": [b"caf\xc3\xa9", b"\xff"], "metadata": [{"a": 1}, {"a": 2}]})

    assert documents(path) == [{"id": "a-1", "content": "café", "metadata": {"a": 1}}]
    assert faults(path) == [(2, "column 'content': not UTF-8")]


def test_bad_rows_are_named_and_the_others_read(write):
    path = write(
        {
            "id": ["1", "2", "", None, "5"],
            "content": ["a", None, " ", "x" * 1_000_001, "e"],
            "at": pa.array([0, 0, 0, 0, 2**40], pa.timestamp("s")),
        }
    )

    assert [document["id"] for document in documents(path)] == ["1"]
    assert [(line, reason[:14]) for line, reason in faults(path)] == [
        (2, "no text"),
        (3, "no text"),
        (4, "content is lon"),
        (5, "column 'at': d"),
    ]


def test_a_row_without_id_gets_one_of_its_place(write):
    assert [d["id"] for d in documents(write({"id": ["", None], "content": ["a", "b"]}))] == [
        "a-1",
        "a-2",
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100, b"no parquet"])
def test_what_is_no_parquet(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(InvalidError, match=r"a\.parquet is no Parquet file"):
        documents(path)


def test_a_file_damaged_in_the_middle_is_read_up_to_there(write):
    texts = [f"text {number} {'x' * 50}" for number in range(2000)]
    path = write({"content": texts}, row_group_size=500, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    data[start : start + 400] = b"\0" * 400
    path.write_bytes(data)

    items = read_documents(path)
    assert [next(items).line for _ in range(1000)] == list(range(1, 1001))
    with pytest.raises(InvalidError, match="row group 2 cannot be read"):
        next(items)


def test_an_empty_table(write):
    assert documents(write({"content": pa.array([], pa.string())})) == []


@given(rows=st.integers(0, 40), group=st.integers(1, 15), after=st.integers(0, 45), data=st.data())
def test_reading_goes_on_after_any_row(tmp_path_factory, rows, group, after, data):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    pq.write_table(pa.table({"title": [f"t{n}" for n in range(rows)]}), path, row_group_size=group)

    every = list(read_documents(path))
    assert list(read_documents(path, after=(after, after))) == every[after:]
    if rows:
        item = data.draw(st.sampled_from(every))
        assert list(read_documents(path, after=item.mark)) == every[item.line :]
