"""Embedding codes and the search over them."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest

from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization import EmbeddingQuantizer
from tests import reference
from tests.conftest import THREADS, Guarded, kernel

DTYPES = ("int8", "uint8", "int4", "binary")


def unit(rng, n, d=40):
    x = rng.standard_normal((n, d)) + 0.3 * rng.standard_normal(d)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4")


# -------------------------------------------------------------------- kernels
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "bits"])
def test_kernel_twin(level, threads, kind):
    """Few queries are met one by one, many in the lanes of a vector, the rest of them alone."""
    k, rng = kernel("topk", level), np.random.default_rng(0)
    for d in (*range(0, 71, 3), 64, 65, 127, 1000):
        for n, queries, best in (
            (1, 1, 1),
            (5, 3, 5),
            (70, 3, 7),
            (4100, 2, 3),
            (1, 40, 1),
            (33, 34, 9),
            (700, 67, 4),
        ):
            if (n > 100 and d > 70) or (n == 700 and d % 4):
                continue
            low, high = (-128, 128) if kind == "int8" else (0, 256)
            codes = rng.integers(low, high, (n, d)).astype("i1" if kind == "int8" else "u1")
            codes[n // 2 :] = codes[: n - n // 2]  # equals, so that ties are met
            score = Guarded(np.zeros((queries, best), "i4"))
            row = Guarded(np.zeros((queries, best), "i8"))
            if kind == "bits":
                query = rng.integers(0, 256, (queries, d)).astype("u1")
                k.search(score.array, row.array, query, codes, queries, n, d, best, 3, threads)
                differ = np.unpackbits(query[:, None] ^ codes[None], axis=2)
                scores = -differ.sum(axis=2, dtype="i8")
            else:
                query = rng.integers(-128, 128, (queries, d)).astype("i1")
                given, number = codes, int(kind == "uint8")
                if kind == "int4":
                    codes, number = codes & 15, 2
                    even = np.pad(codes, ((0, 0), (0, d % 2)))
                    given = even[:, ::2] | even[:, 1::2] << 4
                k.search(
                    score.array, row.array, query, given, queries, n, d, best, number, threads
                )
                scores = query.astype("i8") @ codes.T.astype("i8")
            want_score, want_row = reference.top_k(scores, best)
            np.testing.assert_array_equal(score.array, want_score)
            np.testing.assert_array_equal(row.array, want_row)
            score.check()
            row.check()


def test_extreme_products_do_not_saturate(level):
    k, d = kernel("topk", level), 65536
    for a, b, dtype in [(-128, 255, "u1"), (127, 255, "u1"), (-128, -128, "i1")]:
        codes = np.full((1, d), b, dtype)
        score, row = np.zeros((1, 1), "i4"), np.zeros((1, 1), "i8")
        k.search(score, row, np.full((1, d), a, "i1"), codes, 1, 1, d, 1, dtype == "u1", 1)
        assert score[0, 0] == a * b * d
        score, row = np.zeros((32, 1), "i4"), np.zeros((32, 1), "i8")
        k.search(score, row, np.full((32, d), a, "i1"), codes, 32, 1, d, 1, dtype == "u1", 1)
        assert (score == a * b * d).all()
    wide, short = np.zeros((1, d + 1), "i1"), np.zeros((1, 4), "i1")
    score, row = np.zeros(1, "i4"), np.zeros(1, "i8")
    with pytest.raises(OverflowError):
        k.search(score, row, wide, wide, 1, 1, d + 1, 1, 0, 1)
    with pytest.raises(IndexError):
        k.search(np.zeros(2, "i4"), np.zeros(2, "i8"), short, short, 1, 1, 4, 2, 0, 1)


# -------------------------------------------------------------------- codes
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 1000])
def test_codes_stand_for_their_vectors(dtype, n, rng):
    x = unit(rng, n, 41)
    q = EmbeddingQuantizer(dtype)
    codes = q.fit_transform(x)
    np.testing.assert_array_equal(codes, q.transform(x))
    back = q.inverse_transform(codes)
    cosine = (back * x).sum(1) / np.linalg.norm(back, axis=1)
    assert cosine.min() > {"int8": 0.9999, "uint8": 0.9999, "int4": 0.98, "binary": 0.6}[dtype]
    assert codes.nbytes == n * {"int8": 41, "uint8": 41, "int4": 21, "binary": 6}[dtype]
    if dtype != "binary":
        assert (np.abs(back - x) <= 0.5001 * q.scale_).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_and_zero_vectors(dtype):
    for value in (0.0, 0.25, -3.0, 1e-42):
        x = np.full((2, 5), value, "f4")
        back = (
            EmbeddingQuantizer(dtype)
            .fit(x)
            .inverse_transform(EmbeddingQuantizer(dtype).fit_transform(x))
        )
        assert np.isfinite(back).all()
        if dtype in ("int8", "uint8"):
            np.testing.assert_allclose(back, x, atol=1e-37, rtol=1e-6)


def test_percentile_clips(rng):
    x = unit(rng, 500)
    x[0] *= 50
    wide, narrow = (EmbeddingQuantizer(percentile=p).fit(x) for p in (100.0, 99.0))
    assert (narrow.scale_ < wide.scale_).all()
    assert np.abs(narrow.codes_[0].astype(int)).max() == 127


# -------------------------------------------------------------------- search
@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_finds_itself_and_ranks_as_its_scores(dtype, rng):
    x = unit(rng, 600, 64)
    q = EmbeddingQuantizer(dtype).fit(x)
    found = q.top_k(x[:20], 5, threads=2)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(20))
    assert (np.diff(found.scores, axis=1) <= 0).all()
    alone = q.top_k(x[3], 5)
    np.testing.assert_array_equal(alone.indices, found.indices[3])
    np.testing.assert_array_equal(alone.scores, found.scores[3])
    if dtype == "binary":
        same = np.unpackbits(q.codes_[found.indices] ^ q.codes_[:20, None], axis=2).sum(2)
        np.testing.assert_allclose(found.scores, 1 - 2 * same / 64, rtol=1e-6)
    else:
        exact = (x[:20, None] * q.inverse_transform(q.codes_)[found.indices]).sum(2)
        np.testing.assert_allclose(found.scores, exact, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rescoring_improves_recall(dtype, rng):
    x, queries = unit(rng, 2000, 64), unit(rng, 50, 64)
    truth = np.argsort(-queries @ x.T, axis=1)[:, :10]
    q = EmbeddingQuantizer(dtype).fit(x)

    def recall(**options):
        index = q.top_k(queries, 10, **options).indices
        return np.mean([len(set(a) & set(b)) for a, b in zip(index, truth, strict=True)]) / 10

    plain, again, exact = recall(), recall(rescore=8), recall(rescore=x)
    assert plain > {"int8": 0.95, "uint8": 0.95, "int4": 0.75, "binary": 0.1}[dtype]
    assert again >= plain
    assert exact >= plain
    full = q.top_k(queries, 10, rescore=x)
    order = (queries[:, None] * x[full.indices]).sum(2)
    np.testing.assert_allclose(full.scores, order, rtol=1e-4, atol=1e-6)


def test_add_grows_the_index(rng):
    x = unit(rng, 300)
    q = EmbeddingQuantizer("uint8").fit(x[:280])
    assert q.add(x[280:]) is q
    assert q.top_k(x[290], 1).indices.tolist() == [290]


# -------------------------------------------------------------------- scikit-learn, contract
def test_scikit_learn_pipeline_and_clone(rng):
    base = pytest.importorskip("sklearn.base")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    x = rng.standard_normal((30, 8))
    q = EmbeddingQuantizer("uint8", percentile=99.0)
    twin = base.clone(q)
    assert twin.get_params() == q.get_params()
    assert twin.set_params(dtype="int8").dtype == "int8"
    pipe = make_pipeline(Normalizer(), q).fit(x)
    assert pipe.transform(x).shape == (30, 8)
    assert pipe.transform(x).dtype == np.uint8


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "binary"])
def test_scikit_learn_checks(dtype):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = checks.check_estimator(EmbeddingQuantizer(dtype), on_skip=None)
    assert sum(one["status"] == "passed" for one in done) > 40


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "binary"])
def test_a_single_vector_works(dtype, rng):
    x = unit(rng, 1)
    q = EmbeddingQuantizer(dtype)
    codes = q.fit_transform(x)
    assert len(np.unique(codes)) > 3
    cosine = (q.inverse_transform(codes) @ x[0]) / np.linalg.norm(q.inverse_transform(codes))
    assert cosine > (0.7 if dtype == "binary" else 0.98)
    assert q.top_k(x[0], 1).indices.tolist() == [0]


def test_import_needs_no_scikit_learn():
    import subprocess
    import sys

    code = "import sys, fastopt.quantization as q; q.EmbeddingQuantizer().fit([[1.0, 2.0]]); "
    code += "assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pickle_and_copy(rng):
    q = EmbeddingQuantizer("int4").fit(unit(rng, 20))
    for twin in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        np.testing.assert_array_equal(twin.codes_, q.codes_)
        assert repr(twin) == repr(q)


def test_refused(rng):
    x = unit(rng, 10)
    q = EmbeddingQuantizer().fit(x)
    before = q.codes_.copy()
    for bad, error, match in [
        (lambda: EmbeddingQuantizer("int3").fit(x), OptionError, "dtype"),
        (lambda: EmbeddingQuantizer(percentile=0).fit(x), OptionError, "percentile"),
        (lambda: EmbeddingQuantizer().transform(x), OptionError, "not fitted"),
        (lambda: EmbeddingQuantizer().fit(x[:0]), ArrayError, "0 sample"),
        (lambda: EmbeddingQuantizer().fit(x[0]), ArrayError, "Reshape"),
        (lambda: EmbeddingQuantizer().fit(x[:, :0]), ArrayError, "0 feature"),
        (lambda: EmbeddingQuantizer().fit(x * 1j), ArrayError, "Complex"),
        (lambda: q.add(x * np.nan), ArrayError, "X: holds NaN"),
        (lambda: q.transform(x[:, 1:]), ArrayError, "39 features"),
        (lambda: q.inverse_transform(x), DTypeError, "codes"),
        (lambda: q.top_k(x[0], 11), OptionError, "k"),
        (lambda: q.top_k(x[0], 0), OptionError, "k"),
        (lambda: q.top_k(x[0, 1:], 1), ArrayError, "query"),
        (lambda: q.top_k(x[0], 1, rescore=0), OptionError, "rescore"),
        (lambda: q.top_k(x[0], 1, rescore=x[1:]), ArrayError, "rescore"),
        (lambda: q.set_params(bits=3), OptionError, "params"),
    ]:
        with pytest.raises(error, match=match):
            bad()
    np.testing.assert_array_equal(q.codes_, before)


def test_options_changed_after_fit_wait_for_the_next(rng):
    x = rng.standard_normal((50, 16)).astype("f4")
    q = EmbeddingQuantizer("int8").fit(x)
    before = q.top_k(x[3], 5)
    q.set_params(dtype="binary")
    after = q.top_k(x[3], 5)
    np.testing.assert_array_equal(after.indices, before.indices)
    assert q.inverse_transform(q.codes_).shape == (50, 16)
    assert q.fit(x).codes_.shape == (50, 2)
