"""Linear models against scikit-learn: one epoch of mini-batch SGD, and ridge in closed form.

The steps are tuned on both sides by a short search before the timing; ``final`` losses on all rows
are printed, since a ratio only counts at an equal or lower loss.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, peer
from fastopt.linear_model import Ridge, SGDClassifier, SGDRegressor


def data(n: int, d: int, labels: bool) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    w = rng.standard_normal(d, dtype=np.float32) * np.float32(1.5 / np.sqrt(d))
    z = x @ w + 0.5 + 0.3 * rng.standard_normal(n, dtype=np.float32)
    return x, ((z > 0.5).astype(np.int64) if labels else z)


def final_loss(model: Any, x: Any, y: Any, labels: bool) -> float:
    z = x.astype(np.float64) @ np.ravel(model.coef_) + np.ravel(model.intercept_)[0]
    if labels:
        return float(np.mean(np.logaddexp(0, -(2 * y - 1) * z)))
    return float(0.5 * np.mean((z - y) ** 2))


def tuned(make: Any, steps: Any, x: Any, y: Any, labels: bool, name: str) -> Contender:
    """The contender with the step whose one epoch ends at the lowest loss."""
    tried = []
    for step in steps:
        try:
            tried.append((final_loss(make(step).fit(x, y), x, y, labels), step))
        except (ArithmeticError, ValueError):
            continue
    loss, step = min(tried)
    print(f"\n{name}: step {step:g}, final loss {loss:.6f}")
    return lambda: make(step).fit(x, y)


def epoch(n: int, d: int, labels: bool, threads: int) -> dict[str, Contender]:
    warnings.simplefilter("ignore")
    x, y = data(n, d, labels)
    ours = SGDClassifier if labels else SGDRegressor
    loss = "log_loss" if labels else "squared_error"
    common = {"max_iter": 1, "tol": None, "random_state": 0, "alpha": 1e-6}
    steps = np.array([0.02, 0.05, 0.1, 0.2, 0.5, 1.0]) * (4 if labels else 1) * 20 / max(20, d)

    def make(step: float) -> Any:
        return ours(loss, eta0=step, learning_rate="cosine", batch_size=256,
                    local_workers=1 if threads == 1 else 2, threads=threads, **common)  # fmt: skip

    contenders = {"fastopt": tuned(make, steps, x, y, labels, "fastopt")}
    if sklearn := peer("sklearn.linear_model"):
        theirs = sklearn.SGDClassifier if labels else sklearn.SGDRegressor

        def make_theirs(step: float) -> Any:
            return theirs(loss=loss, eta0=step, learning_rate="invscaling", **common)

        small = np.array([0.001, 0.003, 0.01, 0.03, 0.1]) * 20 / max(20, d)
        contenders["scikit-learn"] = tuned(make_theirs, small, x, y, labels, "scikit-learn")
    return contenders


def ridge(threads: int) -> dict[str, Contender]:
    x, y = data(1_000_000, 20, False)
    contenders = {"fastopt": lambda: Ridge(threads=threads).fit(x, y)}
    if sklearn := peer("sklearn.linear_model"):
        contenders["scikit-learn"] = lambda: sklearn.Ridge(solver="cholesky").fit(x, y)
    return contenders


CASES = [
    Case(f"{kind} SGD epoch, {n} x {d}, {t} thread{'s' * (t > 1)}",
         lambda threads, n=n, d=d, labels=labels: epoch(n, d, labels, threads),
         threads=t, targets={"scikit-learn": target[t - 1]})
    for kind, labels in (("linear", False), ("logistic", True))
    for n, d, target in ((1_000_000, 20, (30, 60)), (200_000, 200, (12, 20)))
    for t in (1, 2)
]  # fmt: skip
CASES.append(
    Case("Ridge by its Gram matrix, 1M x 20", ridge, threads=2, targets={"scikit-learn": 8})
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
