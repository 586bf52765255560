"""Tree ensembles: the kernel against its twin, scikit-learn's predictions, pruning, budgets."""

from __future__ import annotations

import pickle
import warnings
from itertools import product

import numpy as np
import pytest

from fastopt.errors import ArrayError, OptionError, UnsupportedError
from tests import reference as twin
from tests.conftest import THREADS, Guarded, kernel

pytest.importorskip("sklearn")
from sklearn import ensemble as sk
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from fastopt.compression.forest import compress_forest
from fastopt.models.forest import CompactForest, Ensemble
from fastopt.models.sklearn import is_ensemble, read_ensemble


def random_trees(
    rng: np.random.Generator, trees: int, features: int, cuts: int
) -> tuple[np.ndarray, ...]:
    """Preorder arrays of random trees: feature, nan_left, cut, right, leaf, root."""
    feature, nan_left, cut, right, leaf, root = [], [], [], [], [], []

    def grow(depth: int) -> None:
        me = len(feature)
        inner = depth > 0 and rng.random() < 0.8
        feature.append(int(rng.integers(features)) if inner else -1)
        nan_left.append(bool(rng.random() < 0.5))
        cut.append(int(rng.integers(cuts)))
        right.append(0)
        leaf.append(int(rng.integers(7)))
        if inner:
            grow(depth - 1)
            right[me] = len(feature)
            grow(depth - 1)

    for _ in range(trees):
        root.append(len(feature))
        grow(9)
    return tuple(map(np.array, (feature, nan_left, cut, right, leaf, root)))


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 100])
def test_kernel_walks_as_its_twin(level: str, rows: int, rng: np.random.Generator) -> None:
    k = kernel("forest", level)
    feature, nan_left, cut, right, leaf, root = random_trees(rng, 5, 4, 6)
    column = np.array([0, 1, 0, 1, 0])
    value = rng.standard_normal((7, 2))
    code = rng.integers(0, 7, (rows, 4)).astype(np.int32)
    code[rng.random(code.shape) < 0.1] = 0xFFFF
    wanted = twin.forest_sums(code, feature, nan_left, cut, right, leaf, root, column, value, 3)
    inner = feature >= 0
    test = np.where(inner, feature | (nan_left << 15) | (cut << 16), 0xFFFF << 16)
    test = test.astype(np.uint32).view(np.int32)
    step = np.where(inner, right, -1 - leaf).astype(np.int32)
    for threads in THREADS:
        out = Guarded(np.zeros((rows, 3)))
        k.add(out.array, code, test, step, root.astype("i4"), column.astype("i4"), value, threads)
        assert out.array.tobytes() == wanted.tobytes()
        out.check()


@pytest.mark.parametrize("n_cuts", [1, 2, 3, 7, 254])
def test_codes_count_the_cuts_below(level: str, n_cuts: int, rng: np.random.Generator) -> None:
    k = kernel("forest", level)
    cut = np.sort(rng.integers(0, 40, n_cuts) / 4.0)
    x = rng.integers(-4, 50, (33, 3)) / 4.0
    x[0, 2], x[1, 2], x[2, 2] = np.nan, np.inf, -np.inf
    start = np.array([0, n_cuts, 2 * n_cuts], np.int32)
    code = Guarded(np.zeros((33, 2), np.int32))
    k.encode(code.array, x, np.array([2, 0], np.int32), start, np.tile(cut, 2), 2)
    for column, f in enumerate((2, 0)):
        wanted = np.searchsorted(cut, x[:, f])
        wanted[np.isnan(x[:, f])] = 0xFFFF
        assert code.array[:, column].tolist() == wanted.tolist()
    code.check()


MODELS = [
    sk.RandomForestClassifier(12, random_state=0), sk.ExtraTreesClassifier(8, random_state=0),
    DecisionTreeClassifier(random_state=0), DecisionTreeRegressor(random_state=0),
    sk.GradientBoostingClassifier(n_estimators=4, random_state=0),
    sk.HistGradientBoostingClassifier(max_iter=5), sk.RandomForestRegressor(8, random_state=0),
    sk.ExtraTreesRegressor(8, random_state=0), sk.GradientBoostingRegressor(n_estimators=8),
    sk.HistGradientBoostingRegressor(max_iter=8),
    sk.HistGradientBoostingRegressor(max_iter=8, loss="poisson"),
]  # fmt: skip


def takes_nan(model: object) -> bool:
    """Whether the estimator takes missing values in every supported release."""
    return not type(model).__name__.startswith(("Gradient", "ExtraTrees"))


CASES = [
    pytest.param(model, task, id=f"{type(model).__name__}-{task}")
    for model in MODELS
    for task in ("digits", "cancer", "missing")
    if task != "missing" or takes_nan(model)
]


@pytest.mark.parametrize(("model", "task"), CASES)
def test_predictions_are_scikit_learns(model: object, task: str) -> None:
    classifier = hasattr(model, "predict_proba")
    if classifier:
        x, y = (load_digits if task == "digits" else load_breast_cancer)(return_X_y=True)
        y = np.array([f"c{v}" for v in y])
    else:
        x, y = load_diabetes(return_X_y=True)
    x, y = x[:300].copy(), y[:300]
    if task == "missing":
        x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    model.fit(x, y)  # type: ignore[attr-defined]
    assert is_ensemble(model)
    compact = CompactForest(read_ensemble(model, x))
    if classifier:
        np.testing.assert_allclose(compact.predict_proba(x), model.predict_proba(x), atol=1e-6)
        assert (compact.classes_ == model.classes_).all()
        assert compact.predict(x).dtype == model.predict(x).dtype
    else:
        np.testing.assert_allclose(compact.predict(x), model.predict(x), rtol=1e-5)
    assert compact.score(x, y) == pytest.approx(model.score(x, y), abs=1e-6)
    again = pickle.loads(pickle.dumps(compact))
    assert again._sums(x).tobytes() == compact._sums(x).tobytes()
    assert compact._sums(x, threads=3).tobytes() == compact._sums(x, threads=1).tobytes()
    few = CompactForest(read_ensemble(model, x), bits=8, max_cuts=32)
    assert few.nbytes <= 1.1 * compact.nbytes
    if classifier:
        assert (few.predict(x) == compact.predict(x)).mean() > 0.9


def cost(e: Ensemble, closed: dict[int, bool], node: int, alpha: float) -> float:
    """Squared deviation of the leaves below ``node`` plus alpha per leaf, one choice of cuts."""

    def leaves(n: int) -> list[int]:
        return [n] if e.feature[n] < 0 else leaves(e.left[n]) + leaves(e.right[n])

    if e.feature[node] < 0 or closed[node]:
        at = leaves(node)
        gap = e.value[at] - e.value[node]
        return float((e.weight[at] * (gap**2).sum(1)).sum()) + alpha
    return cost(e, closed, e.left[node], alpha) + cost(e, closed, e.right[node], alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 30.0, 300.0, 1e9])
def test_pruning_is_the_best_of_all_subtrees(alpha: float) -> None:
    x, y = load_diabetes(return_X_y=True)
    model = DecisionTreeRegressor(max_depth=3, random_state=0).fit(x[:60], y[:60] / 10)
    e = read_ensemble(model, x)
    inner = np.flatnonzero(e.feature >= 0).tolist()
    best = min(
        cost(e, dict(zip(inner, choice)), 0, alpha)
        for choice in product([False, True], repeat=len(inner))
    )
    small = e.prune(alpha)
    leaves = int((small.feature < 0).sum())
    before, after = CompactForest(e)._sums(x[:60]), CompactForest(small)._sums(x[:60])
    found = float(((before - after) ** 2).sum()) + alpha * leaves
    assert found == pytest.approx(best, rel=1e-4)
    if alpha == 1e9:
        assert small.feature.tolist() == [-1]


def test_the_budget_is_kept_and_the_forest_is_far_smaller() -> None:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, held, test = np.split(order, [900, 1350])
    model = sk.RandomForestClassifier(60, random_state=0).fit(x[train], y[train])
    for labels in (y[held], None):
        r = compress_forest(model, x[held], labels, max_drop=0.01)
        assert r.changed
        assert r.drop <= 0.01 + 1e-12
        assert r.bytes_before / r.bytes_after > 60
        assert r.n_nodes[1] <= r.n_nodes[0]
        assert model.score(x[test], y[test]) - r.model.score(x[test], y[test]) < 0.03
    again = compress_forest(model, x[held], y[held], max_drop=0.01)
    assert pickle.dumps(again.model) == pickle.dumps(
        compress_forest(model, x[held], y[held], max_drop=0.01).model
    )


def test_a_budget_that_nothing_keeps_gives_the_original() -> None:
    x, y = load_diabetes(return_X_y=True)
    model = DecisionTreeRegressor(random_state=0).fit(x, y)  # every row is a leaf of its own
    r = compress_forest(model, x, y, max_drop=0.0)
    if not r.changed:
        assert r.model is model
        assert r.bytes_after == r.bytes_before
    assert r.drop <= 1e-12


def test_refusals() -> None:
    x, y = load_digits(return_X_y=True)
    model = DecisionTreeClassifier(max_depth=2).fit(x, y)
    from sklearn.linear_model import LogisticRegression
    from sklearn.multioutput import MultiOutputRegressor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = LogisticRegression(max_iter=1).fit(x, y)
    two = DecisionTreeRegressor(max_depth=2).fit(x, np.column_stack([y, y]))
    assert not is_ensemble(MultiOutputRegressor(two))
    for call, kind, word in (
        (lambda: read_ensemble(other, x), UnsupportedError, "LogisticRegression"),
        (lambda: read_ensemble(two, x), UnsupportedError, "several targets"),
        (lambda: compress_forest(model, x[:3], y[:3]), ArrayError, "X"),
        (lambda: compress_forest(model, x, y[:5]), ArrayError, "y"),
        (lambda: compress_forest(model, x, y, max_drop=1), OptionError, "max_drop"),
        (lambda: CompactForest(read_ensemble(model, x), bits=1), OptionError, "bits"),
        (lambda: CompactForest(read_ensemble(model, x)).predict(x[:, :3]), ArrayError, "X"),
    ):
        with pytest.raises(kind, match=word):
            call()
