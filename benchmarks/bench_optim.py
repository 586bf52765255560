"""descend against SciPy's L-BFGS-B and conjugate gradients, to the same largest gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, peer
from fastopt.optim import descend

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


def bowl(condition: float, n: int) -> Function:
    a = np.logspace(0, np.log10(condition), n)
    return lambda x: (0.5 * float(a @ (x * x)), a * x)


def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return float(100 * a @ a + b @ b), g


def contenders(
    function: Function, x0: np.ndarray, tol: float, **options: Any
) -> Callable[[int], dict[str, Contender | None]]:
    def setup(threads: int) -> dict[str, Contender | None]:
        scipy = peer("scipy.optimize")

        def theirs(method: str, **how: Any) -> Contender | None:
            if scipy is None:
                return None
            how = {"gtol": tol, "maxiter": 20_000, **how}
            return lambda: scipy.minimize(function, x0, jac=True, method=method, options=how)

        return {
            "fastopt": lambda: descend(function, x0, tol=tol, max_iter=20_000, **options),
            "scipy L-BFGS-B": theirs("L-BFGS-B", ftol=0.0, maxfun=100_000),
            "scipy CG": theirs("CG"),
        }

    return setup


BOWL = (bowl(1e4, 10_000), np.ones(10_000), 1e-5)
ROSENBROCK = (rosenbrock, np.full(100, -1.0), 1e-6)

CASES = [
    Case("descend L-BFGS, bowl of condition 1e4, 10,000 variables",
         contenders(*BOWL, optimizer="lbfgs")),
    Case("descend Barzilai-Borwein, the same bowl", contenders(*BOWL, lr="bb")),
    Case("descend L-BFGS, Rosenbrock of 100 variables",
         contenders(*ROSENBROCK, optimizer="lbfgs")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bench(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
