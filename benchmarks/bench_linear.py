"""Linear models against scikit-learn and a loop in torch: an epoch of mini-batch SGD, and ridge in
closed form.

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
from fastopt.linear_model import Ridge, SGDClassifier, SGDRegressor


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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
