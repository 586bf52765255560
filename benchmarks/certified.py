"""How often a budget is really kept: ``python -m benchmarks.certified [runs] [workers]``.

Small networks, each trained on a task of its own, are compressed with and without a certificate;
their true drop is measured on 20,000 fresh rows of the same task. A certificate at 95 % may be
wrong in one run of twenty.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import fastopt
from fastopt.models import Network
from fastopt.optim import Adam

FRESH = 20_000
ROWS = 2_400  # for the search and the check
BUDGETS = (0.01, 0.02, 0.03)


def task(seed: int, n: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a task: classes by the signs of two quadratic forms, 3 % of the labels at random."""
    shape, rows = np.random.default_rng([seed, 0]), np.random.default_rng([seed, part])
    d = 8 + seed % 9
    a, b = shape.standard_normal((2, d, d)) / np.sqrt(d)
    x = rows.standard_normal((n, d)).astype(np.float32)
    y = 2 * ((x @ a * x).sum(1) > 0) + ((x @ b * x).sum(1) > 0)
    noise = rows.random(n) < 0.03
    return x, np.where(noise, rows.integers(0, 4, n), y).astype(np.int64)


def run(seed: int) -> dict[str, tuple[float, float]]:
    """For each way to accept: (true drop - budget, how many times smaller)."""
    x, y = task(seed, 2_000, 1)
    net = Network.mlp((x.shape[1], 48, 32, 4), seed=seed)
    net.fit(x, y, Adam(list(net.params.values()), lr=5e-3), epochs=25, seed=seed)
    data, fresh = task(seed, ROWS, 2), task(seed, FRESH, 3)
    budget = BUDGETS[seed % len(BUDGETS)]
    labelled = seed % 2 == 0
    found = {}
    for name, confidence in (("95 %", 0.95), ("none", None)):
        small = fastopt.compress(
            net, data if labelled else data[0], max_drop=budget, confidence=confidence,
            max_evals=60, seed=seed, classes_axis=None if labelled else -1,
        )  # fmt: skip
        found[name] = (
            drop(net, small.model, fresh, labelled) - budget,
            net.nbytes / small.after.nbytes,
        )
    return found


def drop(
    net: Network, small: Network, rows: tuple[np.ndarray, np.ndarray], labelled: bool
) -> float:
    """The loss of accuracy, or of agreement."""
    x, y = rows
    before, after = (m.forward(x).argmax(1) for m in (net, small))
    if labelled:
        return float((before == y).mean() - (after == y).mean())
    return float((before != after).mean())


def main(runs: int = 200, workers: int = 2) -> None:
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(run, range(runs)))
    print(
        f"| certificate | runs | true drop above the budget | 2x smaller | median |\n|{'---|' * 5}"
    )
    for name in ("95 %", "none"):
        over = sum(f[name][0] > 0 for f in found)
        ratios = np.array([f[name][1] for f in found])
        print(f"| {name} | {runs} | {over} | {(ratios >= 2).sum()} | {np.median(ratios):.1f}x |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
