"""Row 1: arrays, threads, seeds, options, files: every refusal is typed and names the argument."""

from __future__ import annotations

import ast
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt._arrays import (
    as_array,
    as_labels,
    as_numbers,
    as_target,
    check_disjoint,
    check_finite,
    out_for,
)
from fastopt._files import write_whole
from fastopt._options import choice, integer, number
from fastopt._random import generator_of, key_of
from fastopt.errors import ArrayError, DTypeError, FastoptError, OptionError

ROOT = Path(fastopt.__file__).parent


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


# -- what is not only numbers ------------------------------------------------------------------


class Odd:
    """A number by its own word alone."""

    def __float__(self) -> float:
        raise RuntimeError("no")

    def __index__(self) -> int:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "bad",
    ["1", b"1", 1j, np.complex128(1), Odd(), None, [1.0], np.ma.masked_array([1.0], [True]),
     np.ma.masked, np.datetime64("2020"), np.timedelta64(3), 10**400, -(10**400), np.ones(2)],
    ids=str,
)  # fmt: skip
def test_what_is_no_number_is_refused_as_ours(bad) -> None:
    for check in (number, integer, lambda v, n: number(v, n, low=0, high=1)):
        with pytest.raises(FastoptError, match="lr"):
            check(bad, "lr")


def test_messages_stay_short() -> None:
    for call in (
        lambda: integer(10**30000, "k", high=5),
        lambda: choice("x" * 10**6, "mode", ("a", "b")),
        lambda: number(10**30000, "lr"),
    ):
        with pytest.raises(FastoptError) as refused:
            call()
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("bad", [
    [np.ma.masked_array([1.0, 2.0], [1, 0])], [[1.0], (np.ma.masked_array([2.0], [1]),)],
    np.ma.masked_array([1, 2], [1, 0]), np.array([1, 2j]), ["1", "2"], np.array(["2020"], "M8[Y]"),
    np.array([1], "m8[s]"), np.array([(1, 2)], "i4,i4"),
], ids=str)  # fmt: skip
def test_values_that_would_lose_their_meaning_are_refused(bad) -> None:
    for read in (lambda v: as_array(v, "x", cast="float64"), lambda v: as_numbers(v, "x")):
        with pytest.raises((DTypeError, ArrayError), match="x: "):
            read(bad)


@pytest.mark.parametrize(("bad", "word"), [
    (np.array([1.0, "2"], object), "'2'"), (np.array([1.0, 2j], object), "2j"),
    (np.array([1.0, {}], object), "numbers"), (np.array([np.datetime64("2020")], object), "real"),
    (np.array([10**400], object), "numbers"),
])  # fmt: skip
def test_objects_that_are_no_numbers_are_refused(bad, word) -> None:
    with pytest.raises(FastoptError, match=word):
        as_numbers(bad, "x")
    assert as_numbers(np.array([1, 2.5, True], object), "x").tolist() == [1.0, 2.5, 1.0]


@pytest.mark.parametrize("bad", [
    np.array([0, 1, np.nan], object), np.array(["a", None], object), [0.0, np.nan], [0.5, 1.0],
    np.array([0.5, 1.0], object), np.array(["2020", "NaT"], "M8[Y]"), [1j, 2], [0.0, np.inf],
    np.ma.masked_array([0, 1], [0, 1]), np.array([(1, 2)], "i4,i4"),
], ids=str)  # fmt: skip
def test_missing_and_continuous_labels_are_refused(bad) -> None:
    with pytest.raises(FastoptError, match="y: "):
        as_labels(bad, "y")


def test_labels_keep_what_they_are() -> None:
    assert as_labels(np.array([2, 1, 2], object), "y").dtype == np.int64
    assert as_labels(np.array(["b", "a"], object), "y").dtype == object
    assert as_labels([True, False], "y").dtype == np.bool_
    assert as_labels(["b", "a"], "y").tolist() == ["b", "a"]
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ArrayError, match="NaN"):
        as_labels(pandas.Series([1, None], dtype="Int64"), "y")


def _taken_unchecked(source: str, typed: bool = True) -> list[str]:
    """Calls of NumPy's converters on a function's own argument, before it has been checked.

    Without ``typed`` arguments that are annotated with more than Any are left out: mypy sees that
    only values of ours, a list of counts or an array, get there.
    """
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, (ast.FunctionDef, ast.Lambda)):
            continue
        given = function.args
        names = {
            a.arg
            for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)
            if typed or a.annotation is None or ast.unparse(a.annotation) in ("Any", "Any | None")
        }
        body = function.body if isinstance(function.body, list) else [function.body]
        nodes = [node for statement in body for node in ast.walk(statement)]
        stored: dict[str, int] = {}
        for node in nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                stored[node.id] = min(node.lineno, stored.get(node.id, node.lineno))
        found += [
            f"{node.lineno}: {ast.unparse(node)}"
            for node in nodes
            if isinstance(node, ast.Call)
            and re.fullmatch(r"np\.as\w*array|np\.array", ast.unparse(node.func))
            and node.args
            and isinstance(node.args[0], ast.Name)
            and node.args[0].id in names
            and not stored.get(node.args[0].id, node.lineno) < node.lineno
        ]
    return found


GATED = ["optim", "linear_model", "calibration", "quantization", "pruning", "merging", "layering"]
USED_BY_MODELS = ["search", "models", "compression"]


@pytest.mark.parametrize("path", [
    path for folder in GATED + USED_BY_MODELS for path in sorted([
        *(ROOT / folder).rglob("*.py"), *ROOT.glob(f"{folder}.py")
    ])
], ids=lambda p: str(p.relative_to(ROOT)))  # fmt: skip
def test_arguments_become_arrays_at_the_gate_alone(path: Path) -> None:
    inner = path.relative_to(ROOT).parts[0] in USED_BY_MODELS
    assert _taken_unchecked(path.read_text(), typed=not inner) == []


def test_the_test_sees_what_it_looks_for() -> None:
    assert _taken_unchecked("def f(y):\n    return np.asarray(y)") == ["2: np.asarray(y)"]
    assert _taken_unchecked("def f(y: Any):\n    return np.asarray(y)", typed=False) != []
    assert _taken_unchecked("def f(y: list[int]):\n    return np.array(y)", typed=False) == []
    assert _taken_unchecked("def f(y):\n    y = as_array(y)\n    return np.asarray(y)") == []
