"""Linear models on sparse rows: against dense rows, step by step and at the end; refusals."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastopt._kernels import linear_sparse
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from fastopt.linear_model._data import check_x
from fastopt.linear_model._problem import LOSSES, Problem, loss_gradient
from fastopt.linear_model._rows import dense_pieces, matmul, take_rows
from fastopt.linear_model._stochastic import Stochastic
from tests.conftest import SIZES, THREADS, Guarded

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}


class Matrix(SimpleNamespace):
    """What scipy.sparse has of a CSR matrix, without scipy."""

    format, ndim = "csr", 2

    @property
    def nnz(self):
        return len(self.data)

    @property
    def dtype(self):
        return self.data.dtype

    def tocsr(self):
        return self


def sparse(n, d, dtype="float64", index="int32", share=0.3, seed=0, messy=True):
    """(dense, CSR): rows of any length, columns unsorted and some of them twice."""
    rng = np.random.default_rng([seed, n, d])
    counts = rng.binomial(d, share, n)
    if n > 2:
        counts[1] = 0
    indptr = np.concatenate([[0], np.cumsum(counts)])
    column = [rng.choice(d, c, replace=messy) for c in counts]
    indices = np.concatenate([*column, np.empty(0)]).astype(index)
    data = rng.standard_normal(len(indices)).astype(dtype)
    dense = np.zeros((n, d), dtype)
    np.add.at(dense, (np.repeat(np.arange(n), counts), indices), data)
    return dense, Matrix(data=data, indices=indices, indptr=indptr, shape=(n, d))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_product_equals_the_dense_one_at_every_width(dtype, index, threads):
    for d in SIZES[1:]:
        dense, m = sparse(9, d, dtype, index, share=0.6)
        w = np.random.default_rng(d).standard_normal((2, d)).astype(dtype)
        out = Guarded(np.full((9, 2), np.nan, dtype))
        indptr = m.indptr.astype(np.int64)
        linear_sparse.product(out.array, m.data, m.indices, indptr, w, threads)
        np.testing.assert_allclose(out.array, dense @ w.T, atol=TOLERANCE[dtype] * 20)
        out.check()
        np.testing.assert_allclose(
            matmul(check_x(m), w[0]), dense @ w[0], atol=TOLERANCE[dtype] * 20
        )


def problems(loss, k, dtype, index="int32", n=150, d=23, weighted=True, **options):
    """The same problem on dense and on sparse rows, and parameters."""
    dense, m = sparse(n, d, dtype, index)
    rng = np.random.default_rng(1)
    classes = loss == "multinomial" or (k > 1 and list(LOSSES).index(loss) >= 4)
    if classes:
        y = rng.integers(0, k, n)
    elif list(LOSSES).index(loss) >= 4:
        y = rng.choice([-1, 1], n)
    else:
        y = rng.standard_normal(n * k)
    options |= {"n_outputs": k, "targets": int(classes)}
    weights = rng.random(n).astype(dtype) if weighted else None
    pair = [Problem(x, y.astype(dtype), weights, loss, **options) for x in (dense, check_x(m))]
    flat = pair[0].pack(rng.standard_normal((k, d)) * 0.3, rng.standard_normal(k))
    return *pair, flat


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradient_equals_the_dense_one(dtype, loss, k):
    for index in ("int32", "int64"):
        dense, rows, flat = problems(loss, k, dtype, index)
        want, grad = loss_gradient(dense, flat, 1)
        got = [loss_gradient(rows, flat, t) for t in THREADS]
        assert got[0][0] == pytest.approx(want, rel=10 * TOLERANCE[dtype])
        np.testing.assert_allclose(got[0][1], grad, atol=TOLERANCE[dtype])
        assert got[0][0] == got[1][0]
        assert got[0][1].tobytes() == got[1][1].tobytes()


def epochs(problem, flat, rule, size, lr, average=False, workers=1, threads=1, group=1, n=3):
    run = Stochastic(
        problem, rule, size, 5, threads=threads, n_workers=workers, momentum=0.9, group=group
    )
    run.group = group
    run.start(flat)
    losses = [run.run_epoch(lambda t: np.full(len(t), lr), average) for _ in range(n)]
    return run.average() if average else run.flat, losses


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov", "adam"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_epochs_walk_the_dense_path(dtype, rule, workers):
    for loss, k, size in (("log_loss", 1, 7), ("squared_error", 2, 1), ("multinomial", 3, 100)):
        dense, rows, flat = problems(loss, k, dtype, l2=0.02, l1=0.003)
        options = {"workers": workers, "average": rule == "adam", "group": 1 + workers}
        lr = 0.02 if size > 1 else 0.01  # the intercepts' cap is lower beside few rows
        want, losses = epochs(dense, flat, rule, size, lr, **options)
        for threads in THREADS:
            got, curve = epochs(rows, flat, rule, size, lr, threads=threads, **options)
            np.testing.assert_allclose(got, want, atol=50 * TOLERANCE[dtype])
            np.testing.assert_allclose(curve, losses, rtol=100 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("l2", "l1"), [(0, 0), (0.3, 0), (0, 0.01), (0.3, 0.01), (5.0, 0.01), (40.0, 0), (30.0, 0.01)]
)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_waiting_decay_and_thresholds_equal_dense_steps(dtype, l2, l1):
    """Few entries a batch in many columns: the lazy walk; a step of lr l2 >= 1 turns signs."""
    for k, loss in ((1, "log_loss"), (3, "multinomial")):
        dense_x, m = sparse(400, 900, dtype, share=0.01)
        y = np.random.default_rng(0).choice([-1, 1] if k == 1 else [0, 1, 2], 400).astype(dtype)
        pair = [
            Problem(x, y, None, loss, n_outputs=k, targets=int(k > 1), l2=l2, l1=l1)
            for x in (dense_x, check_x(m))
        ]
        flat = pair[0].pack(np.random.default_rng(2).standard_normal((k, 900)), np.zeros(k))
        for size, lr, average in ((1, 0.01, False), (13, 0.03, False), (13, 0.03, l1 == 0)):
            want, losses = epochs(pair[0], flat, "sgd", size, lr, average)
            got, curve = epochs(pair[1], flat, "sgd", size, lr, average)
            scale = 1 + np.abs(want).max()
            np.testing.assert_allclose(got, want, atol=200 * TOLERANCE[dtype] * scale)
            np.testing.assert_allclose(curve, losses, rtol=500 * TOLERANCE[dtype])
            assert l1 == 0 or ((got == 0) == (want == 0)).mean() > 0.99


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("l2", "l1"), [(0, 0), (0.3, 0.003)])
def test_lazy_workers_moves_are_added_up(dtype, l2, l1):
    """Three workers with a segment each: alone they end where their moves come from."""
    dense_x, m = sparse(192, 3000, dtype, share=0.003)
    y = np.random.default_rng(0).choice([-1, 1], 192).astype(dtype)
    problem = Problem(check_x(m), y, None, "log_loss", l2=l2, l1=l1)
    start = problem.pack(np.random.default_rng(2).standard_normal((1, 3000)) * 0.1, np.zeros(1))

    def ends(rows, workers, threads):
        run = Stochastic(problem, "sgd", 2, 0, shuffle=False, n_workers=workers, threads=threads)
        run.rows = rows
        run.start(start)
        x = problem.x
        order, lr = run.entries.copy(), np.full(-(-len(run.entries) // 2), 0.5)
        stiff = run._stiffness(x) if workers > 1 else None
        linear_sparse.sgd_epoch(
            run.slab, run.steps, x.data, x.indices, x.indptr, 3000, y, None, order, lr, 1, 1, 2,
            32, 4, 0, 0.1, True, 0, l2, l1, 0.9, 0.999, 1e-8, False, True, stiff, 0.4, threads,
        )  # fmt: skip
        return run.slab[:, 0].copy(), stiff

    moves = sum(ends(np.arange(a, a + 64), 1, 1)[0][0] - start for a in (0, 64, 128))
    both = [ends(None, 3, t) for t in (1, 2)]
    got, stiff = both[0]
    assert (got == got[0]).all()
    assert got.tobytes() == both[1][0].tobytes()
    factor = np.full(len(start), 1 / 3)
    factor[: len(stiff)] += (1 - 1 / 3) / (1 + 1.5 * stiff.astype(float) * 32 * 0.5)
    np.testing.assert_allclose(got[0], start + factor * moves, atol=10 * TOLERANCE[dtype])
    square = 0.25 * (dense_x.astype(float) ** 2).mean(axis=0)
    assert np.corrcoef(stiff[:3000], square)[0, 1] > 0.2


def test_lazy_averages_of_single_rows_are_scikit_learns():
    """And they go on over partial fits, where the mean counts on."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    scipy = pytest.importorskip("scipy.sparse")
    _, m = sparse(300, 2000, share=0.005, messy=False)
    x = scipy.csr_matrix((m.data, m.indices, m.indptr), m.shape)
    y = np.random.default_rng(0).choice([0, 1], 300)
    options = {"average": True, "alpha": 0.01, "fit_intercept": False, "learning_rate": "constant",
               "eta0": 0.5, "shuffle": False}  # fmt: skip
    theirs = linear_model.SGDClassifier("log_loss", **options)
    ours = SGDClassifier("log_loss", batch_size=1, local_workers=1, **options)
    for _ in range(3):
        theirs.partial_fit(x, y, classes=[0, 1])
        ours.partial_fit(x, y, classes=[0, 1])
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9, atol=1e-12)


def test_lazy_walk_with_more_rows_than_a_tile_and_the_intercepts_cap():
    dense_x, m = sparse(300, 5000, share=0.0004)
    y = np.random.default_rng(0).standard_normal(300)
    x = check_x(m)
    run = Stochastic(Problem(x, y, None, "squared_error"), "sgd", 100, 0, shuffle=False)
    assert 4 * 100 * (len(x.data) // 300) < 5000  # lazy
    run.start(run.problem.pack(np.zeros((1, 5000)), np.zeros(1)))
    run.run_epoch(lambda t: np.full(len(t), 4.0), False)
    w, b = np.zeros(5000), 0.0
    for rows in np.arange(300).reshape(3, 100):
        e = dense_x[rows] @ w + b - y[rows]
        w, b = w - 4.0 * dense_x[rows].T @ e / 100, b - 0.1 * e.mean()
    np.testing.assert_allclose(run.flat[:5000], w, atol=1e-12)
    np.testing.assert_allclose(run.problem.unpack(run.flat)[1], [b], atol=1e-12)


SPARSE_MODELS = [
    (LinearRegression, {"solver": s, "tol": 1e-7, "random_state": 0})
    for s in ("gram", "lbfgs", "gd", "sgd", "momentum", "adam")
]
SPARSE_MODELS += [
    (Ridge, {"solver": "nesterov", "alpha": 3.0, "tol": 1e-7, "random_state": 0}),
    (Ridge, {"solver": "gram", "fit_intercept": False}),
    (LogisticRegression, {"tol": 1e-8}),
    (LogisticRegression, {"solver": "sgd", "tol": 1e-6, "random_state": 0}),
    (LogisticRegression, {"solver": "gd", "penalty": "elasticnet", "tol": 1e-7, "lr": 0.5}),
]


@pytest.mark.filterwarnings("ignore::fastopt.linear_model.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "options"), SPARSE_MODELS)
def test_solvers_end_where_they_end_on_dense_rows(estimator, options):
    dense, m = sparse(300, 12)
    y = dense @ np.arange(12.0) + 1 + 0.1 * np.random.default_rng(0).standard_normal(300)
    if estimator is LogisticRegression:
        y = y > 0
    weights = np.random.default_rng(1).random(300)
    a = estimator(**options).fit(dense, y, weights)
    b = estimator(**options).fit(m, y, weights)
    atol = 2e-2 if options.get("solver") == "adam" else 2e-4
    np.testing.assert_allclose(b.coef_, a.coef_, atol=atol)
    np.testing.assert_allclose(b.intercept_, a.intercept_, atol=atol)
    np.testing.assert_allclose(b.predict(m), b.predict(dense), atol=1e-9)
    assert b.score(m, y) > 0.9


@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet", None])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sgd_estimators_give_the_dense_result(dtype, penalty):
    dense, m = sparse(500, 30, dtype)
    z = dense @ np.linspace(-1, 1, 30).astype(dtype)
    options = {"penalty": penalty, "alpha": 0.01, "eta0": 0.05, "random_state": 0, "max_iter": 5,
               "tol": None, "batch_size": 8}  # fmt: skip
    for x in (dense, m):
        assert SGDRegressor(**options).fit(x, z).n_iter_ == 5
    for average, early in ((False, False), (True, False), (False, True)):
        options |= {"average": average, "early_stopping": early}
        for estimator, loss, y in (
            (SGDRegressor, "huber", z),
            (SGDClassifier, "log_loss", z > 0),
            (SGDClassifier, "hinge", np.digitize(z, [-0.5, 0.5])),
        ):
            a = estimator(loss, **options).fit(dense, y)
            b = estimator(loss, **options).fit(m, y)
            np.testing.assert_allclose(b.coef_, a.coef_, atol=100 * TOLERANCE[dtype])
            np.testing.assert_allclose(b.intercept_, a.intercept_, atol=100 * TOLERANCE[dtype])
            assert b.coef_.dtype == dtype


def test_partial_fit_goes_on_and_threads_do_not_count():
    dense, m = sparse(4000, 300, "float32", share=0.05)
    y = (dense @ np.linspace(-1, 1, 300) > 0).astype(int)
    options = {"random_state": 0, "tol": None, "eta0": 0.5, "learning_rate": "constant"}
    whole = SGDClassifier("log_loss", max_iter=3, **options).fit(m, y)
    parts = SGDClassifier("log_loss", **options)
    for _ in range(3):
        parts.partial_fit(m, y, classes=[0, 1])
    assert whole.coef_.tobytes() == parts.coef_.tobytes()
    assert whole.score(m, y) > 0.9
    fits = [
        SGDClassifier("log_loss", max_iter=2, local_workers=3, threads=t, **options).fit(m, y)
        for t in (1, 2, 3)
    ]
    assert len({f.coef_.tobytes() for f in fits}) == 1


def test_automatic_step_learns_rare_columns():
    dense, m = sparse(2000, 400, share=0.02)
    y = dense @ np.random.default_rng(0).standard_normal(400) + 3
    model = SGDRegressor(alpha=0, random_state=0).fit(m, y)
    assert model.score(m, y) > 0.97
    assert model.intercept_[0] == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_sums_of_squares_by_column(index, dtype):
    dense, m = sparse(70, 33, dtype, index, messy=False)
    weights = np.random.default_rng(0).random(70).astype(dtype)
    for s in (None, weights):
        got = np.full(33, 5.0)
        indptr = m.indptr.astype(np.int64)
        linear_sparse.squares(got, m.data, m.indices, indptr, s)
        want = (np.ones(70) if s is None else s.astype(float)) @ dense.astype(float) ** 2 + 5
        np.testing.assert_allclose(got, want, rtol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lbfgs_does_not_mind_the_scale_of_columns(dtype):
    """Columns from 1e-4 to 1e4, and rare ones: as few iterations as at scale one, to the floor."""
    dense, m = sparse(600, 12, dtype, messy=False)
    y = dense @ np.linspace(-2, 2, 12) + np.random.default_rng(0).standard_normal(600) > 0
    scale = 10.0 ** np.linspace(-4, 4, 12).astype(dtype)
    wide = Matrix(data=m.data * scale[m.indices], indices=m.indices, indptr=m.indptr,
                  shape=m.shape)  # fmt: skip
    options = {"penalty": None, "tol": 1e-5 if dtype == "float32" else 1e-10}
    even = LogisticRegression(**options).fit(m, y)
    for x in (wide, dense * scale):
        model = LogisticRegression(**options).fit(x, y)
        np.testing.assert_allclose(model.coef_ * scale, even.coef_, rtol=2e-3, atol=2e-3)
        assert model.n_iter_ <= even.n_iter_ + 5 < 60


def broken(**changes):
    good = {"data": np.ones(4), "indices": np.array([0, 2, 1, 0], "int32"),
            "indptr": np.array([0, 2, 3, 4]), "shape": (3, 3)}  # fmt: skip
    return Matrix(**(good | changes))


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"indices": [0, 3, 1, 0]}, ArrayError, "indices"),
        ({"indices": [0, -1, 1, 0]}, ArrayError, "indices"),
        ({"indices": [0, 2**31 - 1, 1, 0]}, ArrayError, "indices"),
        ({"indices": [0, 2, 1]}, ArrayError, "shape"),
        ({"indptr": [0, 3, 2, 4]}, ArrayError, "indptr"),
        ({"indptr": [1, 2, 3, 4]}, ArrayError, "indptr"),
        ({"indptr": [0, 2, 3, 5]}, ArrayError, "indptr"),
        ({"indptr": [0, 5, 3, 4]}, ArrayError, "indptr"),
        ({"indptr": [0, -9, 3, 4]}, ArrayError, "indptr"),
        ({"indptr": [0, 2, 4]}, ArrayError, "shape"),
        ({"data": np.array([1, np.nan, 1, 1])}, ArrayError, "X"),
        ({"data": np.array([1, np.inf, 1, 1])}, ArrayError, "X"),
        ({"data": np.ones(4, complex)}, ArrayError, "X"),
        ({"indices": np.zeros(4)}, DTypeError, "indices"),
        ({"shape": (3, 2**31)}, ArrayError, "columns"),
        ({"shape": (3, 0)}, ArrayError, "feature"),
    ],
)
def test_a_broken_matrix_is_refused_by_name(changes, kind, word, index):
    changes = {
        name: np.array(value, index) if isinstance(value, list) else value
        for name, value in changes.items()
    }
    for model in (SGDRegressor(), LinearRegression(solver="lbfgs"), Ridge(), SGDClassifier()):
        with pytest.raises(kind, match=word):
            model.fit(broken(**changes), [0.0, 1.0, 0.0])
        assert not hasattr(model, "coef_")
    model = Ridge().fit(np.eye(3), [0.0, 1.0, 2.0])
    with pytest.raises(kind, match=word):
        model.predict(broken(**changes))


def test_an_index_beyond_32_bits_is_out_of_range():
    with pytest.raises(ArrayError, match="indices"):
        check_x(broken(indices=np.array([0, 2**32 + 1, 1, 0])))


def test_gram_of_many_sparse_columns_names_other_solvers():
    m = Matrix(data=np.ones(2), indices=np.array([0, 9999], "int32"), indptr=np.array([0, 1, 2]),
               shape=(2, 10_000))  # fmt: skip
    with pytest.raises(OptionError, match="lbfgs"):
        Ridge().fit(m, [0.0, 1.0])
    assert Ridge(solver="lbfgs").fit(m, [0.0, 1.0]).coef_.shape == (10_000,)


def test_kernel_doors_refuse_what_does_not_fit():
    data, indices = np.ones(3), np.zeros(3, "int32")
    out, w = np.empty((1, 1)), np.ones((1, 1))
    with pytest.raises(ValueError, match="indptr"):
        linear_sparse.product(out, data, indices, np.array([0, 2]), w, 1)
    with pytest.raises(ArrayError, match="indices"):
        linear_sparse.product(out, data, indices[:2], np.array([0, 3]), w, 1)
    with pytest.raises(DTypeError, match="w"):
        linear_sparse.product(out, data, indices, np.array([0, 3]), w.astype("float32"), 1)
    slab, steps, y = np.zeros((1, 4, 16)), np.zeros((1, 2), np.int64), np.ones(1)
    rest = (1, y, None, np.array([1]), np.ones(1), 1, 1, 1, 1, 0, 0, 0.1, True, 0, 0.0, 0.0, 0.9,
            0.999, 1e-8, False, True, None, np.inf, 1)  # fmt: skip
    with pytest.raises(IndexError, match="order"):
        linear_sparse.sgd_epoch(slab, steps, data, indices, np.array([0, 3]), *rest)


def test_rows_taken_and_written_out():
    dense, m = sparse(50, 7, "float32")
    x = check_x(m)
    rows = np.array([0, 1, 5, 49])
    taken = take_rows(x, rows)
    (first, out), *more = dense_pieces(taken)
    assert first == 0
    assert not more
    np.testing.assert_allclose(out, dense[rows], atol=1e-6)


def test_scipys_formats_come_in_and_predictions_agree():
    scipy = pytest.importorskip("scipy.sparse")
    dense, _ = sparse(200, 15)
    y = dense[:, 0] > 0
    want = LogisticRegression().fit(dense, y).coef_
    for kind in ("csr", "csc", "coo", "lil"):
        for make in (getattr(scipy, f"{kind}_matrix"), getattr(scipy, f"{kind}_array")):
            model = LogisticRegression().fit(make(dense), y)
            np.testing.assert_allclose(model.coef_, want, atol=1e-5)
            assert (model.predict(make(dense)) == model.predict(dense)).all()


def test_sparse_rows_do_not_import_scipy():
    code = """
import sys
import numpy as np
from types import SimpleNamespace
from fastopt.linear_model import SGDClassifier
m = SimpleNamespace(data=np.ones(4), indices=np.array([0, 1, 0, 1]), indptr=np.arange(5), nnz=4,
                    shape=(4, 2), ndim=2, format="csr", dtype=np.dtype(float), tocsr=None)
assert SGDClassifier(random_state=0).fit(m, [0, 1, 0, 1]).score(m, [0, 1, 0, 1]) == 1
print("scipy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
