"""The solvers: one problem (rows, loss, penalty), one flat parameter vector, one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, check_finite
from fastopt._kernels import linear
from fastopt.errors import DivergedError, DTypeError
from fastopt.linear_model._data import CSR

__all__ = ["LOSSES", "Problem", "Stochastic", "loss_gradient", "step_size"]

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
RULES = {"sgd": 0, "momentum": 1, "nesterov": 2, "adam": 3}
DIRECT, ONE_VS_REST = 0, 1
CHUNKS = 64  # runs that a full pass is cut into, whatever the threads
ROWS_IN_CACHE = 1 << 19  # elements of X up to which single rows are shuffled, not groups
GROUP_BYTES = 8192  # rows that stay together in a shuffle of larger data: memory likes runs
LOCAL_WORK = 1 << 22  # elements of X from which an epoch is split over local workers
SYNC_WORK = 1 << 17  # elements of X between two averagings of the local workers


@dataclass
class Problem:
    """Rows, targets and loss: mean_i s_i loss(y_i, W x_i + b) + l2/2 |W|^2 + l1 |W|_1."""

    x: Array | CSR
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

    @property
    def dense(self) -> Array:
        """X where a kernel takes dense rows alone."""
        if isinstance(self.x, CSR):
            raise DTypeError("X: sparse rows are not taken by this solver; pass X.toarray()")
        return self.x

    def refuse_bad_margins(self, what: str) -> None:
        """A margin was not finite: either the data are to blame, or the step size."""
        check_finite(self.x.data if isinstance(self.x, CSR) else self.x, "X")
        raise DivergedError(f"{what} diverged: lower eta0 or scale the features")


def loss_gradient(problem: Problem, flat: Array, threads: int) -> tuple[float, Array]:
    """Objective without L1 and its gradient (float64, packed) over all rows, in one pass."""
    length = problem.length
    chunks = int(min(CHUNKS, -(-problem.n // 256)))
    grad = np.empty((chunks, length), np.float64)
    code = LOSSES[problem.loss][0]
    loss, _, bad = linear.loss_gradient(
        grad,
        flat,
        problem.dense,
        problem.y,
        problem.weights,
        problem.n_outputs,
        code,
        problem.targets,
        problem.epsilon,
        problem.intercept,
        threads,
    )
    if bad:
        problem.refuse_bad_margins("the fit")
    k, pad = problem.n_outputs, problem.pad
    total = grad.sum(axis=0) / problem.n
    coef = flat[: k * pad].astype(np.float64)
    total[: k * pad] += problem.l2 * coef
    # Lanes behind the d columns carry no parameter.
    total[: k * pad].reshape(k, pad)[:, problem.d :] = 0
    total[k * pad + k :] = 0
    return loss / problem.n + 0.5 * problem.l2 * float(coef @ coef), total


def step_size(problem: Problem, batch_rows: float, kind: str) -> float:
    """A step that is stable for mini-batches: 1 / (c (lambda_max + 2 mean|x|^2 / |B|) + l2).

    lambda_max (the largest eigenvalue of X'X / n, intercept included) by power iteration on at
    most 2048 evenly spaced rows, c the loss's smoothness. Adam's steps do not scale with the
    gradient, so its step is a fraction of the weight that one standard deviation calls for.
    """
    curvature = LOSSES[problem.loss][1]
    stride = max(1, problem.n // 2048)
    rows = np.arange(0, problem.n, stride)[:2048]
    if isinstance(problem.x, CSR):
        starts, ends = problem.x.indptr[rows], problem.x.indptr[rows + 1]
        norms = np.array(
            [
                float(np.dot(v, v))
                for v in (problem.x.data[a:b] for a, b in zip(starts, ends, strict=True))
            ]
        )
        power = mean = float(norms.mean()) + problem.intercept
    else:
        sample = problem.x[rows].astype(np.float64)
        if problem.weights is not None:
            sample = sample * np.sqrt(problem.weights[rows].astype(np.float64))[:, None]
        if problem.intercept:
            w = problem.weights
            ones = np.ones(len(rows)) if w is None else np.sqrt(w[rows].astype(np.float64))
            sample = np.column_stack([sample, ones])
        mean = float(np.einsum("ij,ij->", sample, sample)) / len(rows)
        v = np.ones(sample.shape[1])
        power = 0.0
        for _ in range(20):
            v = sample.T @ (sample @ v) / len(rows)
            power = float(np.linalg.norm(v))
            if not 0 < power < np.inf:
                break
            v /= power
    if not np.isfinite(mean):
        check_finite(problem.x.data if isinstance(problem.x, CSR) else problem.x, "X")
    if kind == "adam":
        return 0.1 / max(1.0, float(np.sqrt(mean / max(1, problem.d))))
    bound = curvature * (min(power, mean) + 2 * mean / batch_rows) + problem.l2
    return 1.0 / bound if bound > 0 else 1.0


@dataclass
class Stochastic:
    """State of a mini-batch run: the workers' slabs, their counters, the epoch number.

    All results are a function of the problem, the options and ``key``; ``threads`` only spreads
    the fixed number of local workers over cores.
    """

    problem: Problem
    rule: str
    batch_size: int
    key: int
    shuffle: bool = True
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    threads: int | None = None
    n_workers: int = 1
    epoch: int = 0
    batches: int = 0
    caution: float = 1.0  # factor on automatic steps, lowered when one diverges
    rows: Array | None = None  # entries of the order that training may use; None is all
    slab: Array = field(default_factory=lambda: np.empty(0))
    steps: Array = field(default_factory=lambda: np.empty(0))
    group: int = 1

    def __post_init__(self) -> None:
        p = self.problem
        small = p.n * p.d <= ROWS_IN_CACHE or isinstance(p.x, CSR)
        row_bytes = max(1, p.d * int(p.x.dtype.itemsize))
        run = max(16, min(self.batch_size // 4, GROUP_BYTES // row_bytes) // 16 * 16)
        self.group = 1 if small or self.batch_size < 32 else run
        self.slab = np.zeros((self.n_workers, 4, p.length), p.x.dtype)
        self.steps = np.zeros((self.n_workers, 2), np.int64)

    @property
    def entries(self) -> Array:
        n_groups = -(-self.problem.n // self.group)
        return np.arange(n_groups, dtype=np.int64) if self.rows is None else self.rows

    @property
    def size(self) -> int:
        """Entries of the order in one batch."""
        return max(1, self.batch_size // self.group)

    def start(self, flat: Array) -> None:
        """Every worker begins at ``flat``; the moments stay."""
        self.slab[:, 0] = flat

    @property
    def flat(self) -> Array:
        """The current parameters (the workers agree after each epoch)."""
        current: Array = self.slab[0, 0]
        return current

    def average(self) -> Array:
        """Mean of the iterates since averaging began."""
        counts = self.steps[:, 1].astype(np.float64)
        mean = (counts[:, None] * self.slab[:, 3]).sum(axis=0) / max(1.0, counts.sum())
        flat: Array = mean.astype(self.problem.x.dtype)
        return flat

    def n_batches(self) -> int:
        """Batches of one epoch."""
        return -(-len(self.entries) // self.size)

    def run_epoch(self, rate: Callable[[Array], Array], average: bool) -> float:
        """One epoch; returns the mean loss as seen before each step, NaN-free or DivergedError.

        ``rate`` maps the numbers of the batches (1, 2, ... over the whole run) to step sizes.
        """
        p = self.problem
        order = self.entries.copy()
        if self.shuffle:
            linear.shuffle(order, self.key, self.epoch)
        n_batches = -(-len(order) // self.size)
        numbers = np.arange(self.batches + 1, self.batches + n_batches + 1, dtype=np.float64)
        lr = np.ascontiguousarray(rate(numbers), np.float64)
        sync = max(1, max(1024, SYNC_WORK // max(1, p.d)) // (self.size * self.group))
        threads = _threads.resolve(self.threads, p.n * p.d) if self.n_workers > 1 else 1
        code = LOSSES[p.loss][0]
        loss, weight, bad = linear.sgd_epoch(
            self.slab,
            self.steps,
            p.dense,
            p.y,
            p.weights,
            order,
            lr,
            p.n_outputs,
            self.group,
            self.size,
            sync,
            code,
            p.targets,
            p.epsilon,
            p.intercept,
            RULES[self.rule],
            p.l2,
            p.l1,
            self.momentum,
            self.beta2,
            self.eps,
            average,
            threads,
        )
        self.epoch += 1
        self.batches += n_batches
        if bad or not np.isfinite(self.flat).all():
            p.refuse_bad_margins("mini-batch descent")
        return float(loss / weight) if weight > 0 else 0.0
