"""Linear models against scikit-learn and a loop in torch: an epoch of mini-batch SGD, ridge in
closed form, logistic regression by L-BFGS, and a fit so small that only its overhead counts.

The steps are tuned on both sides by a short search before the timing. A ratio only counts at an
equal or lower loss on all rows: ours takes the largest batch whose epoch ends no higher than
scikit-learn's, and the benchmark fails if none does. The loop in torch has our batch and step.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, limit, peer
from fastopt import linear_model
from fastopt.linear_model import LogisticRegression, Ridge, SGDClassifier, SGDRegressor


def data(n: int, d: int, labels: bool, dtype: str = "float32") -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    w = rng.standard_normal(d, dtype=np.float32) * np.float32(1.5 / np.sqrt(d))
    z = x @ w + 0.5 + 0.3 * rng.standard_normal(n, dtype=np.float32)
    return x.astype(dtype), ((z > 0.5).astype(np.int64) if labels else z.astype(dtype))


def final_loss(model: Any, x: Any, y: Any, labels: bool) -> float:
    z = x.astype(np.float64) @ np.ravel(model.coef_) + np.ravel(model.intercept_)[0]
    if labels:
        return float(np.mean(np.logaddexp(0, -(2 * y - 1) * z)))
    return float(0.5 * np.mean((z - y) ** 2))


def tuned(make: Any, steps: Any, x: Any, y: Any, labels: bool) -> tuple[float, float]:
    """(lowest final loss of one epoch, the step that gave it)."""
    tried = []
    for step in steps:
        try:
            tried.append((final_loss(make(step).fit(x, y), x, y, labels), float(step)))
        except (ArithmeticError, ValueError):
            continue
    return min(tried)


def torch_loop(
    x: Any, y: Any, labels: bool, step: float, batch: int, threads: int
) -> Contender | None:
    """An epoch as one writes it in torch: contiguous batches in a shuffled order."""
    torch = peer("torch")
    if torch is None:
        return None
    torch.set_num_threads(threads)
    rows, targets = torch.from_numpy(x), torch.from_numpy(y.astype(x.dtype))
    functional = torch.nn.functional
    loss = functional.binary_cross_entropy_with_logits if labels else functional.mse_loss

    def run() -> None:
        w = torch.zeros(x.shape[1], dtype=rows.dtype, requires_grad=True)
        b = torch.zeros(1, dtype=rows.dtype, requires_grad=True)
        optimizer = torch.optim.SGD([w, b], lr=step if labels else step / 2)
        for i in torch.randperm(-(-len(x) // batch)).tolist():
            part = slice(i * batch, (i + 1) * batch)
            optimizer.zero_grad()
            loss(rows[part] @ w + b, targets[part]).backward()
            optimizer.step()

    return run


def epoch(
    n: int, d: int, labels: bool, threads: int, dtype: str = "float32"
) -> dict[str, Contender | None]:
    warnings.simplefilter("ignore")
    x, y = data(n, d, labels, dtype)
    ours = SGDClassifier if labels else SGDRegressor
    loss = "log_loss" if labels else "squared_error"
    common = {"max_iter": 1, "tol": None, "random_state": 0, "alpha": 1e-6}
    contenders: dict[str, Contender | None] = {}
    wanted = np.inf
    if sklearn := peer("sklearn.linear_model"):
        theirs = sklearn.SGDClassifier if labels else sklearn.SGDRegressor

        def make_theirs(step: float) -> Any:
            return theirs(loss=loss, eta0=step, learning_rate="invscaling", **common)

        small = np.array([0.0003, 0.001, 0.003, 0.01, 0.03]) * 20 / max(20, d)
        small *= 100 if labels else 1
        wanted, step = tuned(make_theirs, small, x, y, labels)
        print(f"\nscikit-learn: step {step:g}, final loss {wanted:.6f}")
        best_theirs = make_theirs(step)
        contenders["scikit-learn"] = lambda: best_theirs.fit(x, y)
    for batch in (512, 256, 128, 64):

        def make(step: float, batch: int = batch) -> Any:
            return ours(loss, eta0=step, learning_rate="cosine", batch_size=batch,
                        local_workers=threads, threads=threads, **common)  # fmt: skip

        steps = (
            np.array([0.03, 0.06, 0.1, 0.2, 0.5, 1.0]) * (10 if labels else 1) * 20 / max(20, d)
        )
        reached, step = tuned(make, steps, x, y, labels)
        print(f"fastopt: batch {batch}, step {step:g}, final loss {reached:.6f}")
        if reached <= wanted:
            break
    else:
        raise AssertionError("no batch reaches scikit-learn's loss")
    best = make(step)
    contenders = {"fastopt": lambda: best.fit(x, y), **contenders}
    contenders["torch loop"] = torch_loop(x, y, labels, step, batch, threads)
    contenders["limit"] = limit("read4", x.view(np.uint32), threads=threads)
    return contenders


def ridge(threads: int, dtype: str = "float32") -> dict[str, Contender | None]:
    x, y = data(1_000_000, 20, False, dtype)
    contenders: dict[str, Contender | None] = {"fastopt": lambda: Ridge(threads=threads).fit(x, y)}
    if sklearn := peer("sklearn.linear_model"):
        contenders["scikit-learn"] = lambda: sklearn.Ridge(solver="cholesky").fit(x, y)
    contenders["limit"] = limit("read4", x.view(np.uint32), threads=threads)
    return contenders


def logistic(n: int, d: int, k: int, threads: int) -> dict[str, Contender | None]:
    """Both to their default tolerance; ours must end at a penalised loss that is no higher."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    w = rng.standard_normal((d, k), dtype=np.float32) * np.float32(1.5 / np.sqrt(d))
    y = (x @ w + rng.gumbel(size=(n, k))).argmax(axis=1)

    def loss(model: Any) -> float:
        z = x.astype(np.float64) @ model.coef_.T + model.intercept_
        z = np.column_stack([np.zeros(n), z]) if k == 2 else z
        top = z.max(axis=1)
        value = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(n), y]
        return float(value.sum() + 0.5 * (model.coef_.astype(np.float64) ** 2).sum())

    ours = LogisticRegression(threads=threads)
    contenders: dict[str, Contender | None] = {"fastopt": lambda: ours.fit(x, y)}
    if sklearn := peer("sklearn.linear_model"):
        theirs = sklearn.LogisticRegression()
        contenders["scikit-learn"] = lambda: theirs.fit(x, y)
        reached, wanted = loss(ours.fit(x, y)), loss(theirs.fit(x, y))
        print(f"\nscikit-learn: loss {wanted:.4f}, fastopt: {reached:.4f}")
        assert reached <= wanted
    return contenders


def small(name: str) -> dict[str, Contender | None]:
    """100 x 5: the time is what a fit costs before and after its work."""
    x, y = data(100, 5, name.endswith(("Classifier", "LogisticRegression")), "float64")
    options = {"random_state": 0} if name.startswith("SGD") else {}
    ours = getattr(linear_model, name)(**options)
    contenders: dict[str, Contender | None] = {"fastopt": lambda: ours.fit(x, y)}
    if sklearn := peer("sklearn.linear_model"):
        theirs = getattr(sklearn, name)(**options)
        contenders["scikit-learn"] = lambda: theirs.fit(x, y)
    return contenders


CASES = [
    Case(f"{kind} SGD epoch, {n} x {d}, {t} thread{'s' * (t > 1)}",
         lambda threads, n=n, d=d, labels=labels: epoch(n, d, labels, threads),
         threads=t, targets={"scikit-learn": target[t - 1], "torch loop": 100})
    for kind, labels in (("linear", False), ("logistic", True))
    for n, d, target in ((1_000_000, 20, (30, 60)), (200_000, 200, (12, 20)))
    for t in (1, 2)
]  # fmt: skip
CASES += [
    Case(f"{kind} SGD epoch in float64, 1000000 x 20, 1 thread",
         lambda threads, labels=labels: epoch(1_000_000, 20, labels, threads, "float64"))
    for kind, labels in (("linear", False), ("logistic", True))
]  # fmt: skip
CASES += [
    Case(f"Ridge by its Gram matrix, 1M x 20{' in float64' * (dtype == 'float64')}",
         lambda threads, dtype=dtype: ridge(threads, dtype), threads=t,
         targets={"scikit-learn": 8} if dtype == "float32" else {})
    for dtype, t in (("float32", 1), ("float32", 2), ("float64", 2))
]  # fmt: skip
CASES += [
    Case(f"LogisticRegression by L-BFGS, {n} x {d}, {k} classes",
         lambda threads, n=n, d=d, k=k: logistic(n, d, k, threads), threads=t,
         targets={"scikit-learn": 1})
    for n, d, k in ((1_000_000, 20, 2), (100_000, 50, 10)) for t in (1, 2)
]  # fmt: skip
CASES += [
    Case(f"{name}, 100 x 5", lambda threads, name=name: small(name), targets={"scikit-learn": 1})
    for name in ("LinearRegression", "Ridge", "LogisticRegression", "SGDRegressor",
                 "SGDClassifier")
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
