"""Row 1: arrays, threads, seeds, options, files: every refusal is typed and names the argument."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from fastopt._arrays import as_array, as_target, check_disjoint, check_finite, out_for
from fastopt._files import write_whole
from fastopt._options import choice, integer, number
from fastopt._random import generator_of, key_of
from fastopt.errors import ArrayError, DTypeError, FastoptError, OptionError


def misaligned(dtype: str = "float32") -> np.ndarray:
    raw = np.zeros(4 * 8 + 1, np.uint8)
    return raw[1 : 1 + 4 * np.dtype(dtype).itemsize].view(dtype)


def read_only() -> np.ndarray:
    a = np.zeros(4, np.float32)
    a.setflags(write=False)
    return a


# --- arrays ---------------------------------------------------------------------------------


def test_an_ndarray_passes_without_a_copy() -> None:
    a = np.arange(4, dtype=np.float32)
    assert as_array(a, "x") is a
    assert as_target(a, "x") is a


@pytest.mark.parametrize("make", [list, memoryview, lambda a: a[::-1][::-1], np.asfortranarray])
def test_inputs_of_other_kinds_give_the_same_values(make) -> None:
    a = np.arange(6, dtype=np.float32)
    found = as_array(make(a), "x", cast="float32")
    np.testing.assert_array_equal(found, a)
    assert found.flags.c_contiguous
    assert found.flags.aligned


def test_dlpack_objects_share_memory() -> None:
    class Exporter:
        def __init__(self, a: np.ndarray) -> None:
            self.a = a

        def __dlpack__(self, **options):
            return self.a.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.a.__dlpack_device__()

    a = np.arange(5, dtype=np.float64)
    assert np.shares_memory(as_array(Exporter(a), "x"), a)


def test_torch_tensors_share_memory() -> None:
    torch = pytest.importorskip("torch")
    t = torch.zeros(5, requires_grad=True)
    view = as_target(t, "x")
    view[2] = 7
    assert t[2].item() == 7
    half = as_array(torch.ones(3, dtype=torch.bfloat16), "x", cast="float32")
    np.testing.assert_array_equal(half, np.ones(3, np.float32))
    with pytest.raises(DTypeError, match="x: expected a dense tensor"):
        as_array(torch.eye(3).to_sparse(), "x")


@pytest.mark.parametrize(
    ("bad", "error", "word"),
    [
        (np.zeros(3, complex), DTypeError, "real"),
        (np.array(["a"]), DTypeError, "real"),
        (np.array([None]), DTypeError, "real"),
        (np.zeros(3, [("a", "f4")]), DTypeError, "real"),
        (np.zeros(3, "M8[s]"), DTypeError, "real"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), DTypeError, "masked"),
        (np.zeros(3, ">f4"), DTypeError, "astype"),
        (np.zeros(3, np.int32), DTypeError, "float32"),
        (np.zeros((2, 3), np.float32), ArrayError, "dimensions"),
        ([[1.0], [2.0, 3.0]], DTypeError, "array"),
    ],
)
def test_bad_inputs_are_refused_by_name(bad, error, word) -> None:
    with pytest.raises(error, match=f"weight: .*{word}"):
        as_array(bad, "weight", ndim=1)


@pytest.mark.parametrize(
    ("bad", "error", "word"),
    [
        (read_only(), ArrayError, "read-only"),
        (misaligned(), ArrayError, "misaligned"),
        (np.zeros((4, 4), np.float32)[:, ::2], ArrayError, "contiguous"),
        (np.zeros(3, ">f4"), DTypeError, "byte order"),
        (np.zeros(3, np.int8), DTypeError, "float32"),
        ([1.0, 2.0], DTypeError, "in place"),
        (1.0, DTypeError, "in place"),
    ],
)
def test_bad_targets_are_refused_by_name(bad, error, word) -> None:
    with pytest.raises(error, match=f"out: .*{word}"):
        as_target(bad, "out")


def test_misaligned_and_strided_inputs_are_copied_to_the_same_values() -> None:
    a = misaligned()
    a[:] = [1, 2, 3, 4]
    np.testing.assert_array_equal(as_array(a, "x"), [1, 2, 3, 4])
    b = np.arange(8, dtype=np.float32)[::-2]
    np.testing.assert_array_equal(as_array(b, "x"), b)


def test_sparse_matrices_are_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(DTypeError, match="x: sparse"):
        as_array(sparse.eye(3), "x")


def test_overlap_nan_and_out() -> None:
    a = np.zeros(10, np.float32)
    with pytest.raises(ArrayError, match="p: shares memory with g"):
        check_disjoint([("p", a[:6])], [("g", a[5:])])
    check_disjoint([("p", a[:5])], [("g", a[5:])])
    block = np.zeros((40, 10))
    parts = [(f"p[{i}]", block[i]) for i in range(30)]
    reads = [("g", block[30:]), ("g again", block[30:]), ("h", block[35]), ("none", block[:0])]
    check_disjoint(parts, reads)  # many: sorted; inputs may share memory with each other
    for written, read, match in (
        ([*parts, ("q", block[3:5])], reads, r"p\[3\]: shares memory with q"),
        (parts, [*reads, ("all", block)], r"shares memory with all"),
        (parts, [*reads, ("column", block[5:, 3])], r"p\[\d+\]: shares memory with column"),
        (parts, [*reads, ("back", block[20::-1, ::-1])], "shares memory with back"),
    ):
        with pytest.raises(ArrayError, match=match):
            check_disjoint(written, read)
    with pytest.raises(ArrayError, match="x: holds NaN"):
        check_finite(np.array([1.0, np.nan]), "x")
    assert out_for(None, "out", (2, 3), "int8").shape == (2, 3)
    with pytest.raises(ArrayError, match="out: expected shape"):
        out_for(np.zeros(3, np.int8), "out", (2, 3), "int8")


# --- numbers and names ------------------------------------------------------------------------


def test_options() -> None:
    assert number(np.float32(0.5), "lr", low=0) == 0.5
    assert integer(np.int64(3), "k", low=0, high=3) == 3
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="lr: "):
            number(bad, "lr", low=0.0)
    with pytest.raises(OptionError, match=r"lr: .* in \[0, inf\), got inf"):
        number(np.inf, "lr", low=0.0)
    for bad in ("1", None, [1]):
        with pytest.raises(DTypeError, match="lr: "):
            number(bad, "lr")
    for bad in (1.5, "2", True, None):
        with pytest.raises(DTypeError, match="k: "):
            integer(bad, "k")
    with pytest.raises(OptionError, match="'a', 'b'"):
        choice("c", "how", ("a", "b"))


def test_the_tree_is_also_the_built_in_errors() -> None:
    assert issubclass(ArrayError, FastoptError)
    assert issubclass(ArrayError, ValueError)
    assert issubclass(DTypeError, TypeError)


# --- seeds ------------------------------------------------------------------------------------


def test_seeds() -> None:
    assert key_of(3) == key_of(3) == key_of(np.int64(3)) == key_of(np.random.SeedSequence(3))
    assert key_of(3) != key_of(4)
    assert len({key_of(3, k) for k in range(100)}) == 100
    assert key_of(None) != key_of(None)
    g, h = np.random.default_rng(1), np.random.default_rng(1)
    assert key_of(g) == key_of(h) != key_of(g)
    assert generator_of(5).random() == generator_of(5).random()
    for bad in (1.5, "a", True):
        with pytest.raises(DTypeError, match="seed: "):
            key_of(bad)
    with pytest.raises(OptionError, match="seed: "):
        key_of(-1)


def test_kernels_release_the_gil() -> None:
    import fastopt

    a = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)
    results = []
    workers = [
        threading.Thread(target=lambda: results.append(fastopt.quantize(a, "int8", threads=1)))
        for _ in range(4)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert all((r.codes == results[0].codes).all() for r in results)


# --- files ------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with write_whole(path) as file:
        file.write(b"old")
        assert not path.exists()
    assert path.read_bytes() == b"old"
    with pytest.raises(ZeroDivisionError), write_whole(path) as file:  # noqa: PT012
        file.write(b"half")
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
