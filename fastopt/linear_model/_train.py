"""The solvers: one problem (rows, loss, penalty), one flat parameter vector, one result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, check_finite
from fastopt._kernels import linear, linear_sparse
from fastopt.errors import DivergedError
from fastopt.linear_model._rows import (
    CSR,
    Rows,
    Stream,
    pieces,
    refuse_nonfinite,
    size_of,
    take_rows,
)

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
CALM = (
    0.1,
    8,
)  # largest step of an intercept beside sparse rows, in Newton steps; from those rows on
DIRECT, ONE_VS_REST, TWO = 0, 1, 2  # what y means to a kernel
CHUNKS = 64  # runs that a full pass is cut into, whatever the threads
ROWS_IN_CACHE = 1 << 19  # elements of X up to which single rows are shuffled, not groups
# Rows that stay together in a shuffle of larger data: what memory reads ahead at an end is lost.
GROUP_BYTES = 32768
EIGEN_UP_TO = 64  # columns up to which a matrix's eigenvalues cost less than products with it
LOCAL_WORK = 1 << 22  # elements of X from which an epoch is split over local workers
SYNC_WORK = 1 << 17  # elements of X between two averagings of the local workers
MEET_WORK = 8  # more of them beside sparse rows, for each element of W that a meeting passes over


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
    rows: Array | None = None  # entries of the order that training may use; None becomes all
    slab: Array = field(default_factory=lambda: np.empty(0))
    steps: Array = field(default_factory=lambda: np.empty(0))
    group: int = 1
    stiff: Array | None = None

    def __post_init__(self) -> None:
        p = self.problem
        small = p.size <= ROWS_IN_CACHE
        sparse = p.x.indices.itemsize if isinstance(p.x, CSR) else 0
        row_bytes = max(1, p.size // p.n * (int(p.x.dtype.itemsize) + sparse))
        run = max(16, min(self.batch_size // 2, GROUP_BYTES // row_bytes) // 16 * 16)
        self.group = 1 if small or self.batch_size < 32 else run
        self.slab = np.zeros((self.n_workers, 4, p.length), p.x.dtype)
        self.steps = np.zeros((self.n_workers, 2), np.int64)

    @property
    def entries(self) -> Array:
        if self.rows is None:
            self.rows = np.arange(-(-self.problem.n // self.group), dtype=np.int64)
        return self.rows

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

    def run_epoch(self, rate: Callable[[Array], Array | float], begin: float = np.inf) -> float:
        """One epoch; returns the mean loss as seen before each step, NaN-free or DivergedError.

        ``rate`` maps the numbers of the batches (1, 2, ... over the whole run) to step sizes, or
        to one for all. Iterates count for the average from the first batch on with which the run
        has seen ``begin`` rows.
        """
        p = self.problem
        total = seen = 0.0
        for first, x, order in self._parts():
            n_batches = -(-len(order) // self.size)
            numbers = np.arange(self.batches + 1, self.batches + n_batches + 1, dtype=np.float64)
            lr = np.full(n_batches, rate(numbers), np.float64)
            y, weights = p.part(first, len(x))
            plain = int(np.searchsorted(numbers * self.batch_size, begin))
            self.batches += n_batches
            for a, b in ((0, plain), (plain, n_batches)):
                if a == b:
                    continue
                some = order[a * self.size : b * self.size]
                loss, weight, bad = self._walk(x, y, weights, some, lr[a:b], a == plain)
                if bad or not np.isfinite(self.flat).all():
                    p.refuse_bad_margins("mini-batch descent")
                total += loss
                seen += weight
        self.epoch += 1
        return float(total / seen) if seen > 0 else 0.0

    def _parts(self) -> Iterator[tuple[int, Array | CSR, Array]]:
        """(first row, rows, order of their groups) of an epoch: X at once, or a stream's blocks in
        random order with the groups of each in random order."""
        x, entries = self.problem.x, self.entries
        if not isinstance(x, Stream):
            order = entries.copy()
            if self.shuffle:
                linear.shuffle(order, self.key, self.epoch)
            yield 0, x, order
            return
        per = max(1, x.height // (self.group * self.size)) * self.size  # groups of a block
        turn = np.arange(-(-len(x) // (per * self.group)), dtype=np.int64)
        if self.shuffle:
            linear.shuffle(turn, self.key, self.epoch)
        for first, block in x.blocks(per * self.group, turn):
            begin = first // self.group
            order = entries[
                np.searchsorted(entries, begin) : np.searchsorted(entries, begin + per)
            ]
            order = order - begin
            if self.shuffle:
                key = (self.key + 0x9E3779B97F4A7C15 * (begin + 1)) % 2**64
                linear.shuffle(order, key, self.epoch)
            if len(order):
                yield first, block, order

    def _walk(
        self,
        x: Array | CSR,
        y: Array,
        weights: Array | None,
        order: Array,
        lr: Array,
        average: bool,
    ) -> tuple[float, float, int]:
        """The kernel's batches over these rows."""
        p = self.problem
        per_row = max(1, p.size // p.n)
        work = SYNC_WORK
        if isinstance(x, CSR):  # to meet, and to settle what is lazy, costs a pass over W
            work += MEET_WORK * p.n_outputs * p.d
        sync = max(1, max(1024, work // per_row) // (self.size * self.group))
        threads = _threads.resolve(self.threads, p.size) if self.n_workers > 1 else 1
        code, curvature = LOSSES[p.loss]
        rest = (y, weights, order, lr, p.n_outputs, self.group, self.size, sync, code, p.targets,
                p.epsilon, p.intercept, RULES[self.rule], p.l2, p.l1, self.momentum, self.beta2,
                self.eps, average)  # fmt: skip
        if not isinstance(x, CSR):
            return linear.sgd_epoch(self.slab, self.steps, x, *rest, threads)
        # Dense steps cost a pass over W, about a quarter of the same number of sparse entries.
        rare = 4 * self.size * self.group * per_row < p.d
        lazy = self.rule == "sgd" and rare and not (average and p.l1 > 0)
        calm = CALM[0] / curvature * min(1.0, self.size * self.group / CALM[1])
        return linear_sparse.sgd_epoch(
            self.slab, self.steps, x.data, x.indices, x.indptr, p.d, *rest, lazy,
            self._stiffness(x) if lazy and self.n_workers > 1 else None, calm, threads,
        )  # fmt: skip

    def _stiffness(self, x: CSR) -> Array:
        """Bound on the curvature of each weight, packed: the loss's times the columns' mean
        squares, from a sixteenth of the rows in runs; made once."""
        if self.stiff is None:
            p = self.problem
            squares, seen = np.zeros(p.pad), 0
            for part in range(16):
                first = p.n * part // 16
                last = min(p.n, first + -(-p.n // 256))
                squares[: p.d] += column_squares(x, None, first, last)
                seen += last - first
            row = (squares * (LOSSES[p.loss][1] / seen)).astype(x.dtype)
            self.stiff = np.tile(row, p.n_outputs)
        return self.stiff
