"""Mini-batch runs: stochastic gradient descent over shuffled rows, on local workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._kernels import linear, linear_sparse
from fastopt.linear_model._problem import LOSSES, Problem, column_squares
from fastopt.linear_model._rows import CSR, Stream

__all__ = ["LOCAL_WORK", "RULES", "Stochastic"]

RULES = {"sgd": 0, "momentum": 1, "nesterov": 2, "adam": 3}
# Largest step of an intercept beside sparse rows, in Newton steps, in batches of so many rows.
CALM = (0.1, 8)
ROWS_IN_CACHE = 1 << 19  # elements of X up to which single rows are shuffled, not groups
GROUP_BYTES = 32768  # rows that a shuffle of larger data keeps together: memory is read ahead
LOCAL_WORK = 1 << 22  # elements of X from which an epoch is split over local workers
SYNC_WORK = 1 << 17  # elements of X between two averages of the local workers
MEET_WORK = 8  # the same beside sparse rows, per element of W: an average passes over all of W


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
