"""What a user calls data: files, rows by rank, labels, and one clear refusal for the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastopt.compression.data import Columns, open_rows
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError, UnsupportedError
from fastopt.models import Input

IMAGE = (Input("x", "float32", (None, 3)),)


def test_rank_decides_what_an_axis_means() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = open_rows({"x": x, "y": np.arange(4)}, IMAGE)
    assert len(rows) == 4
    assert [len(feed["x"]) for feed in rows.feeds(3)] == [3, 1]
    np.testing.assert_array_equal(rows.y, np.arange(4))
    np.testing.assert_array_equal(rows.select(np.array([2])).y, [2])

    whole = open_rows({"x": np.zeros((5, 2, 3))}, IMAGE)  # one axis more: samples fed whole
    assert whole.single
    assert [feed["x"].shape for feed in whole.feeds(8)] == [(2, 3)] * 5

    fixed = (Input("x", "float32", (1, 3)), Input("rate", "int64", ()))
    one = open_rows({"x": x, "rate": np.int64(7)}, fixed)
    feeds = list(one.feeds(8))
    assert [feed["x"].shape for feed in feeds] == [(1, 3)] * 4
    assert feeds[0]["rate"].shape == ()

    blocks = open_rows({"x": x}, (Input("x", "float32", (2, 3)),))
    assert len(blocks) == 2
    np.testing.assert_array_equal([feed["x"] for feed in blocks.feeds(8)], x.reshape(2, 2, 3))


def test_dtypes_are_converted_only_where_nothing_is_lost() -> None:
    ids = (Input("ids", "int64", (None,)),)
    rows = open_rows({"ids": np.arange(3, dtype=np.int32)}, ids)
    assert next(rows.feeds(3))["ids"].dtype == np.int64
    with pytest.raises(DTypeError, match="ids"):
        next(open_rows({"ids": np.zeros(3)}, ids).feeds(3))


def test_files(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((6, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", X=x, y=np.arange(6))
    np.savez_compressed(tmp_path / "b.npz", x=x, names=np.array(list("abcdef")))
    np.save(tmp_path / "c.npy", x)
    for name in ("a.npz", "b.npz", "c.npy"):
        rows = open_rows(str(tmp_path / name), IMAGE)
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in rows.feeds(4)]), x)
    named = open_rows(str(tmp_path / "b.npz"), IMAGE, labels="names")
    assert named.y.tolist() == list("abcdef")
    assert set(Columns(named)) == {"x", "names"}
    ragged = tmp_path / "feeds"
    ragged.mkdir()
    for n in (2, 5):
        np.savez(ragged / f"{n}.npz", x=np.full((n, 3), n, np.float32), y=n)
    rows = open_rows(ragged, IMAGE)
    assert [feed["x"].shape for feed in rows.feeds(8)] == [(2, 3), (5, 3)]


def test_a_table_is_the_only_input(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": [1.0, 2], "b": [3.0, 4], "c": [5.0, 6], "y": [0, 1]})
    frame.to_parquet(tmp_path / "t.parquet")
    rows = open_rows(tmp_path / "t.parquet", IMAGE)
    np.testing.assert_array_equal(next(rows.feeds(2))["x"], [[1, 3, 5], [2, 4, 6]])
    assert rows.y.tolist() == [0, 1]


def test_a_function_of_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mydata_of_test.py").write_text(
        "import numpy as np\ndef rows():\n    return {'x': np.ones((2, 3))}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert len(open_rows("mydata_of_test:rows", IMAGE)) == 2


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    x = np.zeros((4, 3), np.float32)
    two = (*IMAGE, Input("z", "float32", (None, 2)))
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    for data, inputs, error, word in [
        ({"w": x}, IMAGE, ArrayError, "found w"),
        ({"x": x[:, :2]}, IMAGE, ArrayError, r"\(2,\)"),
        ({"x": x[0, 0]}, IMAGE, ArrayError, "scalar"),
        ({"x": x[:0]}, IMAGE, ArrayError, "at least one row"),
        ({"x": x, "z": np.zeros((3, 2))}, two, ArrayError, "differ in length"),
        (x, two, OptionError, "2 inputs"),
        ({"x": np.ma.masked_array(x)}, IMAGE, DTypeError, "masked"),
        ({"x": np.array([{}] * 4)}, IMAGE, DTypeError, "objects"),
        (tmp_path / "empty", IMAGE, FormatError, "none"),
        (tmp_path / "pickled.npz", IMAGE, FormatError, "pickle"),
        (tmp_path / "gone.npz", IMAGE, FileNotFoundError, "gone"),
        ("nomodule:rows", IMAGE, OptionError, "nomodule"),
    ]:
        with pytest.raises(error, match=word):
            open_rows(data, inputs)
    (tmp_path / "t.csv").write_text("1,2,3")
    with pytest.raises(UnsupportedError, match="npz"):
        open_rows(tmp_path / "t.csv", IMAGE)
