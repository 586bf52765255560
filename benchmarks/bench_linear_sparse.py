"""Sparse linear models against scikit-learn: an epoch of logistic SGD on 10M entries, full passes.

The step and the schedule are tuned on both sides by a short search before the timing; ``final``
losses on all rows are printed, since a ratio only counts at an equal or lower loss.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, peer
from fastopt.linear_model import LogisticRegression, SGDClassifier

ROWS, COLUMNS, PER_ROW = 200_000, 50_000, 50


@functools.lru_cache(maxsize=1)
def data(skewed: bool) -> tuple[Any, Any]:
    """(CSR matrix, labels): 50 entries a row, their columns uniform or skewed as U^3."""
    scipy = peer("scipy.sparse")
    if scipy is None:
        pytest.skip("needs scipy")
    rng = np.random.default_rng(0)
    u = rng.random((ROWS, PER_ROW), dtype=np.float32)
    columns = np.minimum(((u**3 if skewed else u) * COLUMNS).astype(np.int32), COLUMNS - 1)
    columns.sort(axis=1)
    x = rng.standard_normal((ROWS, PER_ROW), dtype=np.float32) * np.float32(3 / PER_ROW**0.5)
    w = rng.standard_normal(COLUMNS).astype(np.float32)
    z = (x * w[columns]).sum(axis=1) + 0.5 * rng.standard_normal(ROWS)
    starts = np.arange(ROWS + 1, dtype=np.int32) * PER_ROW
    parts = (x.ravel(), columns.ravel(), starts)
    return scipy.csr_matrix(parts, shape=(ROWS, COLUMNS)), (z > 0).astype(np.int64)


def final_loss(model: Any, x: Any, y: Any) -> float:
    z = x @ model.coef_.ravel().astype(np.float64) + model.intercept_[0]
    return float(np.mean(np.logaddexp(0, -(2 * y - 1) * z)))


def tuned(make: Any, options: list[dict[str, Any]], x: Any, y: Any, name: str) -> Contender:
    """The contender with the options whose one epoch ends at the lowest loss."""
    tried = [(final_loss(make(**o).fit(x, y), x, y), i) for i, o in enumerate(options)]
    loss, best = min(tried)
    print(f"\n{name}: {options[best]}, final loss {loss:.6f}")
    return lambda: make(**options[best]).fit(x, y)


def epoch(threads: int, skewed: bool) -> dict[str, Contender]:
    warnings.simplefilter("ignore")
    x, y = data(skewed)
    common = {"max_iter": 1, "tol": None, "random_state": 0, "alpha": 1e-9}

    def make(**options: Any) -> Any:
        return SGDClassifier("log_loss", batch_size=32, local_workers=threads, threads=threads,
                             **common, **options)  # fmt: skip

    options = [
        {"eta0": 32 * step, "learning_rate": "invscaling", "power_t": power}
        for power in (0.05, 0.1, 0.15, 0.2)
        for step in (0.85, 1.0, 1.2, 1.45, 1.75, 2.1)
    ]
    contenders = {"fastopt": tuned(make, options, x, y, "fastopt")}
    if sklearn := peer("sklearn.linear_model"):

        def theirs(**options: Any) -> Any:
            return sklearn.SGDClassifier(loss="log_loss", **common, **options)

        options = [
            {"eta0": step, "learning_rate": "invscaling", "power_t": power}
            for power in (0.05, 0.1, 0.15)
            for step in (1.0, 1.2, 1.45, 1.75, 2.1)
        ]
        contenders["scikit-learn"] = tuned(theirs, options, x, y, "scikit-learn")
    return contenders


def optimum(threads: int, skewed: bool) -> dict[str, Contender]:
    warnings.simplefilter("ignore")
    x, y = data(skewed)
    models = {"fastopt": LogisticRegression(C=1.0, max_iter=30, tol=1e-12, threads=threads)}
    if sklearn := peer("sklearn.linear_model"):
        models["scikit-learn"] = sklearn.LogisticRegression(C=1.0, max_iter=30, tol=1e-12)
    for name, model in models.items():
        w = model.fit(x, y).coef_.ravel().astype(np.float64)
        value = final_loss(model, x, y) + 0.5 * float(w @ w) / len(y)
        print(f"\n{name}: {np.ravel(model.n_iter_)[0]} iterations, final objective {value:.6f}")
    return {name: functools.partial(model.fit, x, y) for name, model in models.items()}


CASES = [
    Case(f"CSR logistic SGD epoch, 10M entries, {kind} columns",
         lambda threads, skewed=skewed: epoch(threads, skewed), threads=t,
         targets={"scikit-learn": 2})
    for kind, skewed in (("uniform", False), ("skewed", True))
    for t in (1, 2)
]  # fmt: skip
CASES += [
    Case(f"CSR logistic regression, at most 30 iterations of L-BFGS, {kind} columns",
         lambda threads, skewed=skewed: optimum(threads, skewed), threads=t,
         targets={"scikit-learn": 2})
    for kind, skewed in (("uniform", False), ("skewed", True))
    for t in (1, 2)
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_sparse(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
