"""Tree-structured Parzen estimator: densities of good and of other trials, and their ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer
from fastopt._random import Seed
from fastopt.search.engine import Engine, fingerprint, hypercube
from fastopt.search.layout import Matrix
from fastopt.search.space import Space

__all__ = ["TPE", "Mixture", "groups_of"]

SHARE, MOST = 0.1, 25  # of the trials are good ones, at most 25
MODEL = 1000  # the other trials that the model holds, the latest
TRIES, POOL = 8, 256  # draws, then uniform points, among which one is new
PICK, SPREAD, OPTION, RADIUS = 51, 52, 53, 54  # streams of draws


class TPE(Engine):
    """Multivariate tree-structured Parzen estimator, for conditions, options and noise.

    Variables under the same condition form a group. For each active group, from the outermost,
    candidates are drawn from the density of the good trials in which it was active and the one
    of the highest ratio to the density of the others is taken.

    Parameters
    ----------
    space : Space or dict of variables
    x0 : dict, list of dicts, or matrix for a numeric space, optional
        Trials to begin with.
    n_start : int, optional
        Trials (``x0``, then a Latin hypercube) before the first estimate; 10 by default.
    candidates : int
        Draws for each group.
    seed : int, SeedSequence or Generator

    Notes
    -----
    A density is a mixture: one component per trial, a product over the group's variables, and a
    uniform one. Reals and integers have truncated normal kernels of deviation 0.1 n^(-1 / (d + 4))
    of the range, options their own value with the rest spread over all. Trials that are not told
    yet count among the others. Bergstra et al., NIPS 2011; Falkner et al., BOHB, ICML 2018 (the
    product kernels).

    Examples
    --------
    >>> from fastopt import Choice, Float, Space
    >>> algo = TPE(Space(x=Float(-5, 5), c=Choice("a", "b", "c")), seed=0)
    >>> for _ in range(80):
    ...     t = algo.ask(1)
    ...     algo.tell(t, (t["x"] - 1) ** 2 + (t["c"] != "b"))
    >>> algo.x["c"]
    'b'
    """

    method = "tpe"
    batch = 4
    _state_names = ("_first", "_values", "_y", "_waiting")

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        x0: Any = None,
        n_start: int = 10,
        candidates: int = 24,
        seed: Seed = 0,
    ) -> None:
        super().__init__(space, seed=seed)
        self.n_start = integer(n_start, "n_start", low=2)
        self.candidates = integer(candidates, "candidates", low=1)
        self._first: Matrix = hypercube(self._key, self.n_start, self.space)
        if x0 is not None:
            self._first = np.concatenate([self.space.parse(x0, "x0"), self._first])
        d = self.space.n_columns
        self._groups = groups_of(self.space)
        self._values: Matrix = np.empty((0, d))
        self._y: NDArray[np.float64] = np.empty(0)
        self._waiting: Matrix = np.empty((0, d))

    def options(self) -> dict[str, Any]:
        return {"n_start": self.n_start, "candidates": self.candidates}

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        rows = [self._first[first : first + k]]
        done = len(rows[0])
        if done < k and np.isfinite(self._y).sum() < 2:
            rows.append(self.space.values_of(self._random(first + done, k - done)))
            done = k
        self._waiting = np.concatenate([self._waiting, *rows])
        known = np.concatenate([self._values, self._waiting])
        seen = {fingerprint(row) for row in known} if self.space.size < math.inf else set()
        for i in range(first + done, first + k):
            for attempt in range(TRIES):
                row = self._draw(i, attempt)
                if fingerprint(row) not in seen:
                    break
            else:
                pool = self.space.values_of(self._random(i + (TRIES << 40), POOL))
                row = next((v for v in pool if fingerprint(v) not in seen), row)
            seen.add(fingerprint(row))
            rows.append(row[None])
            self._waiting = np.concatenate([self._waiting, rows[-1]])
        return np.concatenate(rows)

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        self._values = np.concatenate([self._values, values])
        self._y = np.concatenate([self._y, np.where(np.isnan(y), np.inf, y)])
        for row in values:
            same = np.flatnonzero((self._waiting == row).all(axis=1))
            if len(same):
                self._waiting = np.delete(self._waiting, same[0], axis=0)

    # --- inside

    def _draw(self, number: int, attempt: int) -> Matrix:
        """Values of one trial, group by group."""
        space = self.space
        known = np.concatenate([self._values, self._waiting])
        y = np.concatenate([self._y, np.full(len(self._waiting), np.inf)])
        genomes = space.genomes_of(known)
        active = space.active(genomes)
        row = self._random(number + (attempt << 40), 1)
        for g, columns in enumerate(self._groups):
            if not space.active(row)[0, columns[0]]:
                continue
            own = np.flatnonzero(active[:, columns[0]])
            if len(own) < 2:
                continue
            order = own[np.argsort(y[own], kind="stable")]
            n = min(math.ceil(SHARE * len(own)), MOST)
            good, rest = order[:n], np.sort(order[n:])[-MODEL:]
            low = Mixture(space, columns, genomes[good])
            high = Mixture(space, columns, genomes[rest])
            draws = low.draw(self, number, attempt * len(self._groups) + g, self.candidates)
            ratio = low.log_density(draws) - high.log_density(draws)
            row[0, columns] = draws[int(np.argmax(ratio))]
        return np.asarray(space.values_of(row)[0])


@dataclass(frozen=True)
class Mixture:
    """Density of some columns: one component per genome, a product of kernels, and a uniform one.

    ``genomes`` (n, d) are those of all columns.
    """

    space: Space
    columns: NDArray[np.intp]
    genomes: Matrix

    @property
    def _parts(self) -> tuple[Matrix, Matrix, Matrix, NDArray[np.bool_]]:
        """Low bounds, widths, deviations and which columns hold options."""
        space, c = self.space, self.columns
        low, width = space.low[c], np.maximum(space.high[c] - space.low[c], 1e-300)
        option = np.isin(c, space.categorical)
        n = len(self.genomes)
        spread = 0.1 * max(n, 1) ** (-1.0 / (len(c) + 4)) * width
        spread = np.maximum(spread, width / 100.0)
        ordered = np.isin(c, space.ordered)
        if ordered.any() and n:  # no narrower than half a cell
            cells = space.cell(self.genomes[:, c[ordered]], c[ordered]).max(axis=0)
            spread[ordered] = np.maximum(spread[ordered], 0.5 * cells)
        return low, width, spread, option

    def draw(self, engine: Engine, number: int, part: int, k: int) -> Matrix:
        """(k, columns) draws, by the engine's streams."""
        low, width, spread, option = self._parts
        c, n = self.columns, len(self.genomes)
        first = (number * 64 + part) * 4096
        pick = (engine._uniform(first, k, PICK)[:, 0] * (n + 1)).astype(np.intp)
        u, v = (engine._uniform(first, k, s)[:, c] for s in (SPREAD, OPTION))
        everywhere = low + width * u
        if not n:
            return everywhere
        middle = self.genomes[np.minimum(pick, n - 1)][:, c]
        a, b = (low - middle) / spread, (low + width - middle) / spread
        near = middle + spread * truncated(a, b, u)
        stay = v >= self._loose(width)
        near = np.where(option, np.where(stay, middle, everywhere), near)
        return np.where((pick == n)[:, None], everywhere, near)

    def log_density(self, x: Matrix) -> NDArray[np.float64]:
        """(k,) log density of (k, columns) genomes, a share of the uniform density."""
        low, width, spread, option = self._parts
        n = len(self.genomes)
        log = np.zeros((len(x), n + 1))
        if n:
            middle = self.genomes[:, self.columns]
            z = (x[:, None] - middle) / spread
            inside = normal_cdf((low + width - middle) / spread) - normal_cdf(
                (low - middle) / spread
            )
            scale = np.log(width / (spread * math.sqrt(2 * math.pi))) - np.log(
                np.maximum(inside, 1e-300)
            )
            loose = self._loose(width)
            same = np.rint(x)[:, None] == np.rint(middle)
            kept = np.log(np.where(same, width * (1 - loose) + loose, loose))
            log[:, :n] = np.where(option, kept, scale - 0.5 * z * z).sum(axis=2)
        top = log.max(axis=1)
        total: Matrix = np.exp(log - top[:, None]).sum(axis=1)
        found: Matrix = top + np.log(total / (n + 1))
        return found

    def _loose(self, width: Matrix) -> Matrix:
        """Share of an option's kernel that is spread over all options."""
        count = np.maximum(np.rint(width), 1)
        return np.asarray(np.minimum(1.0, count / (count + len(self.genomes))))


def normal_cdf(z: Matrix) -> Matrix:
    flat = [0.5 * math.erfc(-v * math.sqrt(0.5)) for v in np.ravel(z).tolist()]
    return np.asarray(np.array(flat).reshape(np.shape(z)))


def truncated(a: Matrix, b: Matrix, u: Matrix) -> Matrix:
    """Standard normal within [a, b] at quantile u, by interpolation of its distribution."""
    target = normal_cdf(a) + u * (normal_cdf(b) - normal_cdf(a))
    return np.asarray(np.clip(np.interp(target, TABLE, GRID), a, b))


GRID = np.linspace(-9.0, 9.0, 4097)
TABLE = normal_cdf(GRID)


def groups_of(space: Space) -> list[NDArray[np.intp]]:
    """Columns of the variables under each condition, outer conditions first."""
    groups: dict[str, list[int]] = {}
    for name, v in space.variables.items():
        where = space.slices[name]
        groups.setdefault(repr(getattr(v, "when", None)), []).extend(
            range(where.start, where.stop)
        )
    return [np.array(columns) for columns in groups.values()]
