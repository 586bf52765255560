"""Greedy search: climb from the best known point by changing one variable at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer, number
from fastopt._random import Seed
from fastopt.search.engine import Engine, fingerprint, hypercube
from fastopt.search.layout import Matrix
from fastopt.search.space import Permutation, Space

__all__ = ["Greedy"]

# Cells that the neighbours of one round fill; larger spaces see a random part of them in turns.
ROUND_CELLS = 1 << 17
# Rounds in a row without any new neighbour after which a finite space counts as searched.
EMPTY_ROUNDS = 64
RETRIES = 8  # times that unseen draws are looked for
# Streams of uniform draws, apart from those of random trials (0) and the hypercube (1).
ORDER, BOX, KICK, SWAP = 11, 12, 13, 14


class Greedy(Engine):
    """Hill climbing with restarts over a mixed space (coordinate pattern search).

    Around the current point every variable is changed alone: reals and integers by plus and minus
    their step, options to each other option, permutations by swaps. The best of the told
    neighbours that improves becomes the point; the next ones tried are the same move again and
    the sum of all moves that helped. A variable's step doubles when it helped; all steps halve
    when a whole round did not. At steps of 1e-6 of the range the climb starts again, by turns
    from the best point shaken and from a random one.

    Parameters
    ----------
    space : Space or dict of variables
    x0 : list of dicts, or matrix for a numeric space, optional
        Trials to begin with; the climb starts from the best of them.
    n_start : int, optional
        Latin hypercube trials to begin with; by default 0 with ``x0``, else 4 + 2 d, at most 20.
    step : float
        First step, as a share of the range.
    seed : int, SeedSequence or Generator

    Notes
    -----
    No point is proposed twice while new ones can be found. Source: Hooke & Jeeves, J. ACM 8
    (1961), with one step size a variable.

    Examples
    --------
    >>> from fastopt import Float, Int, Space
    >>> algo = Greedy(Space(x=Float(-5, 5), n=Int(0, 9)), seed=0)
    >>> for _ in range(40):
    ...     X = algo.ask(4)
    ...     algo.tell(X, X[:, 0] ** 2 + (X[:, 1] - 3) ** 2)
    >>> algo.x["n"]
    3
    """

    method = "greedy"
    _state_names = (
        "_point",
        "_value",
        "_steps",
        "_queue",
        "_cursor",
        "_round",
        "_helped",
        "_restarts",
        "_first",
        "_opening_left",
        "_seen",
        "_empty",
        "_idle",
        "_total",
    )

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        x0: Any = None,
        n_start: int | None = None,
        step: float = 0.25,
        seed: Seed = 0,
    ) -> None:
        super().__init__(space, seed=seed)
        d = self.space.n_columns
        self.step = number(step, "step", low=1e-6, high=1)
        self._first: Matrix = np.empty((0, d))
        if x0 is not None:
            self._first = self.space.parse(x0, "x0")
        if n_start is None:
            n_start = 0 if len(self._first) else min(20, 4 + 2 * d)
        self._n_start = n_start = integer(n_start, "n_start", low=0 if len(self._first) else 1)
        start = hypercube(self._key, n_start, self.space)
        known = {fingerprint(row) for row in self._first}
        fresh = {fingerprint(row): i for i, row in reversed(list(enumerate(start)))}
        rows = sorted(i for key, i in fresh.items() if key not in known)
        self._first = np.concatenate([self._first, start[rows]])
        self._opening_left = len(self._first)
        self._point: Matrix = np.empty(0)  # genome; empty before the first good trial
        self._value = math.inf
        self._steps: Matrix = np.full(d, self.step)
        self._queue: Matrix = np.empty((0, d))  # genomes still to propose in this round
        self._cursor = 0
        self._round = 0
        self._helped: Matrix = np.empty((0, d))  # moves to try first in the next round
        self._restarts = 0
        self._seen: set[int] = set()
        self._empty = 0
        self._idle = 0  # neighbours told in a row that did not help
        self._total = 0  # neighbours that the point has
        c = self.space.categorical
        counts = np.rint(self.space.high[c] - self.space.low[c]).astype(np.intp)
        self._option_columns: NDArray[np.intp] = np.repeat(c, counts)
        self._option_values = np.concatenate([[], *(np.arange(n) for n in counts)])

    def options(self) -> dict[str, Any]:
        return {"step": self.step, "n_start": self._n_start}

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        genomes = np.tile(self.space.low, (k, 1))
        done = 0
        given = np.empty((0, self.space.n_columns))
        if first < len(self._first):
            given = self._first[first : first + k]
            done = len(given)
        elif self._opening_left <= 0 and self._cursor >= len(self._queue):
            self._turn(k)
        if self._opening_left <= 0 and done < k:
            part = self._queue[self._cursor : self._cursor + k - done]
            genomes[done : done + len(part)] = part
            self._cursor += len(part)
            done += len(part)
        if done < k:  # all neighbours are out: draws from the box of the steps around the point
            genomes[done:] = self._unseen(first + done, k - done)
        values = self.space.values_of(genomes)
        values[: len(given)] = given
        return values

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        self._seen.update(fingerprint(row) for row in values)
        if self._opening_left > 0:
            self._opening_left -= len(y)
        good = np.flatnonzero(y < self._value)  # False for NaN
        if not len(good):
            return
        new = self.space.genomes_of(values[good])
        order = np.argsort(y[good], kind="stable")
        best = new[order[0]]
        if self._opening_left <= 0 and len(self._point):
            self._learn_moves(new[order], best)
        self._point, self._value = best.copy(), float(y[good[order[0]]])
        self._queue, self._cursor = self._queue[:0], 0  # neighbours of the old point are stale
        self._empty = self._idle = 0

    # --- inside

    def _learn_moves(self, improving: Matrix, best: Matrix) -> None:
        """Longer steps for what helped; the same move again, and the sum of the moves."""
        moves = improving - self._point
        c = self.space.categorical
        alone = np.flatnonzero((moves != 0).sum(axis=1) == 1)
        total = self._point.copy()
        for row in alone[::-1]:  # of several options of one variable the best stays
            total[c] = np.where(moves[row, c] != 0, improving[row, c], total[c])
        moves[:, c] = 0.0
        total += moves[alone].sum(axis=0)
        helped = moves[0] != 0
        self._steps[helped] = np.minimum(self._steps[helped] * 2.0, 0.5)
        tries = [total, best + moves[0]] if len(alone) > 1 else [best + moves[0]]
        self._helped = np.clip(np.array(tries), self.space.low, self.space.high)

    def _turn(self, k: int) -> None:
        """Begin a round: new neighbours, at least k of them where there are; shorter steps or a
        restart first where no neighbour helped."""
        for _ in range(EMPTY_ROUNDS):
            if not len(self._point):  # every trial so far failed
                return
            if self._cursor and self._cursor >= len(self._queue):  # the last round did not help
                self._idle += max(len(self._queue), 1)
                if self._idle >= self._total:
                    self._idle = 0
                    self._shrink()
                if not len(self._point):
                    break
            self._round += 1
            self._queue, self._cursor = self._fresh(self._neighbours(k)), 0
            self._helped = self._helped[:0]
            if len(self._queue):
                return
            self._cursor = 1  # an empty round counts as one that did not help
        if not len(self._point):
            return
        self._empty = EMPTY_ROUNDS

    def _shrink(self) -> None:
        smallest = 1e-6
        width = self.space.high - self.space.low
        floor = np.full(len(width), smallest)
        o = self.space.ordered
        if len(o):
            floor[o] = self.space.cell(self._point[None, o], o)[0] / np.maximum(width[o], 1e-300)
        if (self._steps > floor).any() and len(self._movable()):
            self._steps = np.maximum(self._steps * 0.5, np.minimum(floor, self._steps))
            return
        self._restart()

    def _movable(self) -> NDArray[np.intp]:
        """Columns whose step can shrink."""
        columns = np.arange(self.space.n_columns)
        fixed = np.isin(columns, self.space.categorical) | (self.space.high <= self.space.low)
        for name, v in self.space.variables.items():
            if isinstance(v, Permutation):
                fixed[self.space.slices[name]] = True
        return np.flatnonzero(~fixed)

    def _restart(self) -> None:
        self._restarts += 1
        d = self.space.n_columns
        self._steps = np.full(d, self.step)
        fresh = self._random(self._restarts << 20, 1)[0]
        if self._restarts % 2 and self._best is not None:  # a third of the best point is redrawn
            kick = self._uniform(self._restarts, 1, KICK)[0] < max(1.0 / 3.0, 1.0 / d)
            base = self.space.genomes_of(self._best[None])[0]
            fresh = np.where(kick, fresh, base)
        self._point = fresh
        self._value = math.inf

    def _neighbours(self, k: int) -> Matrix:
        """Changed points in random order, up to ``ROUND_CELLS`` cells; moves that helped first."""
        space, point = self.space, self._point
        if self._value == math.inf and math.isfinite(self._best_y):  # a restart's own point
            head = point[None]
        else:
            head = self._helped
        columns = self._movable()
        steps = self._steps * (space.high - space.low)
        o = space.ordered
        if len(o):
            steps[o] = np.maximum(steps[o], space.cell(point[None, o], o)[0])
        other = self._option_values != np.rint(point[self._option_columns])
        where = np.concatenate([columns, columns, self._option_columns[other]])
        move = np.concatenate(
            [
                np.maximum(point[columns] - steps[columns], space.low[columns]),
                np.minimum(point[columns] + steps[columns], space.high[columns]),
                self._option_values[other],
            ]
        )
        swaps = [
            self._swaps(space.slices[name], v.n)
            for name, v in space.variables.items()
            if isinstance(v, Permutation) and v.n > 1
        ]
        self._total = len(where) + sum(len(part) for part in swaps)
        limit = max(16, k, ROUND_CELLS // space.n_columns)
        order = np.argsort(self._shuffle(self._total))[:limit]
        single = order < len(where)
        rows = np.repeat(point[None], len(order), axis=0)
        chosen = order[single]
        rows[np.flatnonzero(single), where[chosen]] = move[chosen]
        if swaps:
            rows[~single] = np.concatenate(swaps)[order[~single] - len(where)]
        return np.concatenate([head, rows])

    def _shuffle(self, n: int) -> Matrix:
        """n uniforms of this round."""
        d = self.space.n_columns
        return self._uniform(self._round << 24, -(-n // d), ORDER).ravel()[:n]

    def _swaps(self, where: slice, n: int) -> Matrix:
        count = min(n * (n - 1) // 2, 2 * n)
        d = self.space.n_columns
        u = self._uniform(self._round << 24, -(-2 * count // d), SWAP).ravel()[: 2 * count]
        i = (u[:count] * n).astype(np.intp)
        j = (u[count:] * (n - 1)).astype(np.intp)
        j += j >= i
        moved = np.repeat(self._point[None], count, axis=0)
        at = np.arange(count)
        moved[at, where.start + i] = self._point[where.start + j]
        moved[at, where.start + j] = self._point[where.start + i]
        return moved

    def _fresh(self, genomes: Matrix) -> Matrix:
        """Those whose values were not proposed before, each once."""
        keep: list[int] = []
        taken: set[int] = set()
        for i, row in enumerate(self.space.values_of(genomes)):
            key = fingerprint(row)
            if key not in self._seen and key not in taken:
                taken.add(key)
                keep.append(i)
        return genomes[keep]

    def _unseen(self, first: int, k: int) -> Matrix:
        """k draws of ``_around``, those seen before last."""
        if self.space.size == math.inf:
            return self._around(first, k)
        pool = self._around(first, k)
        new = self._fresh(pool)
        for attempt in range(1, RETRIES):
            if len(new) >= k:
                break
            more = self._random((first + k) * RETRIES + attempt * k, 4 * k)
            new = self._fresh(np.concatenate([new, more]))
        return np.concatenate([new, pool])[:k]

    def _around(self, first: int, k: int) -> Matrix:
        space = self.space
        genomes = self._random(first, k)
        if not len(self._point) or self._empty:
            return genomes
        u = self._uniform(first, k, BOX)
        reach = 2.0 * self._steps * (space.high - space.low)
        near = np.clip(self._point + (2.0 * u - 1.0) * reach, space.low, space.high)
        c = space.categorical
        if len(c):
            keep = self._uniform(first, k, KICK)[:, c] >= 1.0 / space.n_columns
            near[:, c] = np.where(keep, self._point[c], genomes[:, c])
        return near
