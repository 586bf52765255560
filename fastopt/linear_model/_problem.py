"""A problem: rows, loss and penalty; its loss, gradient, curvature and step size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastopt._arrays import Array, check_finite
from fastopt._kernels import linear, linear_sparse
from fastopt.errors import DivergedError
from fastopt.linear_model._rows import (
    CSR,
    Rows,
    pieces,
    refuse_nonfinite,
    size_of,
    take_rows,
)

__all__ = ["LOSSES", "Problem", "column_squares", "curvature", "loss_gradient", "step_size"]

# Number of each loss in the kernels, and the bound on its second derivative (its smoothness).
LOSSES: dict[str, tuple[int, float]] = {
    "squared_error": (0, 1.0),
    "huber": (1, 1.0),
    "epsilon_insensitive": (2, 1.0),
    "squared_epsilon_insensitive": (3, 2.0),
    "log_loss": (4, 0.25),
    "hinge": (5, 1.0),
    "squared_hinge": (6, 2.0),
    "modified_huber": (7, 2.0),
    "perceptron": (8, 1.0),
    "multinomial": (9, 0.5),
}
DIRECT, ONE_VS_REST, TWO = 0, 1, 2  # what y means to a kernel
CHUNKS = 64  # runs that a full pass is cut into, whatever the threads
EIGEN_UP_TO = 64  # columns up to which a matrix's eigenvalues cost less than products with it


@dataclass
class Problem:
    """Rows, targets and loss: mean_i s_i loss(y_i, W x_i + b) + l2/2 |W|^2 + l1 |W|_1."""

    x: Rows
    y: Array
    weights: Array | None
    loss: str
    n_outputs: int = 1
    targets: int = DIRECT
    epsilon: float = 0.1
    intercept: bool = True
    l2: float = 0.0
    l1: float = 0.0

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def d(self) -> int:
        return int(self.x.shape[1])

    @property
    def size(self) -> int:
        """Values that a pass over X reads."""
        return size_of(self.x)

    @property
    def lanes(self) -> int:
        return 64 // int(self.x.dtype.itemsize)

    @property
    def pad(self) -> int:
        return -(-self.d // self.lanes) * self.lanes

    @property
    def length(self) -> int:
        """Elements of a parameter vector: k padded rows of coefficients, k intercepts, padded."""
        return self.n_outputs * self.pad + -(-self.n_outputs // self.lanes) * self.lanes

    def pack(self, coef: Array, intercept: Array) -> Array:
        """(k, d) coefficients and (k,) intercepts as one vector of X's dtype."""
        k, pad = self.n_outputs, self.pad
        flat = np.zeros(self.length, self.x.dtype)
        flat[: k * pad].reshape(k, pad)[:, : self.d] = coef
        flat[k * pad : k * pad + k] = intercept
        return flat

    def unpack(self, flat: Array) -> tuple[Array, Array]:
        """The inverse of pack, as copies."""
        k, pad = self.n_outputs, self.pad
        coef = flat[: k * pad].reshape(k, pad)[:, : self.d].copy()
        return coef, flat[k * pad : k * pad + k].copy()

    def batch_rows(self, wanted: int | None) -> int:
        """Rows of a mini-batch: by default 32 of few and 128 of many, at most all."""
        return min(wanted or (32 if self.n < 8192 else 128), self.n)

    def part(self, first: int, n: int) -> tuple[Array, Array | None]:
        """Targets and weights of n rows from ``first`` on."""
        y = self.y.reshape(self.n, -1)[first : first + n]
        return y, None if self.weights is None else self.weights[first : first + n]

    def refuse_nonfinite(self) -> None:
        """ArrayError if X or y holds NaN or infinity."""
        refuse_nonfinite(self.x, "X")
        check_finite(self.y, "y")

    def refuse_bad_margins(self, what: str) -> None:
        """A margin was not finite: either the data are to blame, or the step size."""
        self.refuse_nonfinite()
        raise DivergedError(f"{what} diverged: lower eta0 or scale the features")


def gradient_room(problem: Problem) -> Array:
    """Room for the gradients of the runs of rows that loss_gradient adds up."""
    chunks = min(CHUNKS, -(-problem.n // 256))
    if isinstance(problem.x, CSR):  # the chunks' gradients are dense: no more than the entries pay
        chunks = min(chunks, max(1, problem.size // (16 * problem.length)))
    return np.empty((chunks, problem.length), np.float64)


def loss_gradient(
    problem: Problem, flat: Array, threads: int, room: Array | None = None
) -> tuple[float, Array]:
    """Objective without L1 and its gradient (float64, packed) over all rows, in one pass."""
    length = problem.length
    grad = gradient_room(problem) if room is None else room
    code = LOSSES[problem.loss][0]
    total = np.zeros(length)
    loss = 0.0
    for first, x in pieces(problem.x):
        y, weights = problem.part(first, len(x))
        rest = (y, weights, problem.n_outputs, code, problem.targets, problem.epsilon,
                problem.intercept, threads)  # fmt: skip
        if isinstance(x, CSR):
            part, _, bad = linear_sparse.loss_gradient(
                grad, flat, x.data, x.indices, x.indptr, problem.d, *rest
            )
        else:
            part, _, bad = linear.loss_gradient(grad, flat, x, *rest)
        if bad:
            problem.refuse_bad_margins("the fit")
        loss += part
        total += grad.sum(axis=0)
    total /= problem.n
    k, pad = problem.n_outputs, problem.pad
    coef = flat[: k * pad].astype(np.float64)
    total[: k * pad] += problem.l2 * coef
    # Lanes behind the d columns carry no parameter.
    total[: k * pad].reshape(k, pad)[:, problem.d :] = 0
    total[k * pad + k :] = 0
    return loss / problem.n + 0.5 * problem.l2 * float(np.sum(coef * coef)), total


def column_squares(x: CSR, weights: Array | None, first: int, last: int) -> Array:
    """sum of s x_j^2 over those rows, (d,) float64."""
    out = np.zeros(x.shape[1])
    a, b = int(x.indptr[first]), int(x.indptr[last])
    s = None if weights is None else weights[first:last]
    linear_sparse.squares(out, x.data[a:b], x.indices[a:b], x.indptr[first : last + 1] - a, s)
    return out


def curvature(problem: Problem) -> Array:
    """Bound on the second derivative of the objective in each parameter, packed: that of the loss
    times the column's mean square (dense: of at most 4096 rows), plus l2."""
    x, n = problem.x, problem.n
    if isinstance(x, CSR):
        squares = column_squares(x, problem.weights, 0, n) / n
    else:
        rows = np.arange(0, n, max(1, n // 4096))[:4096]
        s = np.ones(len(rows)) if problem.weights is None else problem.weights[rows]
        with np.errstate(over="ignore"):
            squares = s @ np.asarray(take_rows(x, rows), np.float64) ** 2 / len(rows)
    bound = LOSSES[problem.loss][1]
    h = np.minimum(bound * squares + problem.l2, 1e300)
    flat = np.ones(problem.length)
    k, pad = problem.n_outputs, problem.pad
    # A column without entries moves in the unit of one that hardly counts.
    flat[: k * pad].reshape(k, pad)[:, : problem.d] = np.maximum(h, max(1e-24 * h.max(), 1e-300))
    flat[k * pad : k * pad + k] = bound
    return flat


def step_size(problem: Problem, batch_rows: float, kind: str) -> float:
    """A step that is stable for mini-batches: 1 / (c (lambda_max + 2 mean|x|^2 / |B|) + l2).

    lambda_max is the largest eigenvalue of X'X / n, intercept included, on at most 2048 evenly
    spaced rows (by power iteration beyond 64 columns), c the loss's smoothness. Adam's steps do
    not scale with the gradient, so its step is a fraction of the weight that one standard
    deviation calls for.
    """
    curvature = LOSSES[problem.loss][1]
    stride = max(1, problem.n // 2048)
    rows = np.arange(0, problem.n, stride)[:2048]
    sample = take_rows(problem.x, rows)
    s = None if problem.weights is None else problem.weights[rows].astype(np.float64)
    ones = np.ones(len(rows)) if s is None else np.sqrt(s)
    if isinstance(sample, CSR):
        mean, power = _sparse_curvature(sample, ones)
        if problem.intercept and kind == "gd":  # mini-batches cap the intercept's step instead
            mean, power = mean + 1, power + 1
    else:
        dense = sample.astype(np.float64) * ones[:, None]
        if problem.intercept:
            dense = np.column_stack([dense, ones])
        mean = float(np.einsum("ij,ij->", dense, dense)) / len(rows)
        power = mean
        if np.isfinite(mean) and dense.shape[1] <= EIGEN_UP_TO:
            power = float(np.linalg.eigvalsh(dense.T @ dense / len(rows))[-1])
        elif mean > 0:
            v = np.ones(dense.shape[1])
            for _ in range(20):
                v = dense.T @ (dense @ v) / len(rows)
                power = float(np.linalg.norm(v))
                if not 0 < power < np.inf:
                    break
                v /= power
    if not np.isfinite(mean):
        problem.refuse_nonfinite()
    if kind == "adam":
        return 0.1 / max(1.0, float(np.sqrt(mean / max(1, problem.d))))
    bound = curvature * (min(power, mean) + 2 * mean / batch_rows) + problem.l2
    return 1.0 / bound if bound > 0 else 1.0


def _sparse_curvature(x: CSR, root: Array) -> tuple[float, float]:
    """Mean squared row and largest eigenvalue of X'X / n, rows times ``root``, no intercept."""
    row = np.repeat(np.arange(len(x)), np.diff(x.indptr))
    values = x.data * root[row]
    mean, power = float(values @ values) / len(x), 0.0
    v = np.ones(x.shape[1])
    for _ in range(20):
        z = np.bincount(row, values * v[x.indices], len(x))
        v = np.bincount(x.indices, values * z[row], x.shape[1]) / len(x)
        power = float(np.linalg.norm(v))
        if not 0 < power < np.inf:
            break
        v /= power
    return mean, power
