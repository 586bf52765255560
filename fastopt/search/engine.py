"""What all engines share: ask, tell, the best trial so far, plain-data state; and Random.

An engine proposes values (see ``space``) and is told their objective; it never learns who
evaluates. A proposal is a function of the seed, the trial's number and what was told before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._options import integer
from fastopt._random import Seed, key_of
from fastopt.errors import ArrayError, ConcurrentUseError, DTypeError, FormatError
from fastopt.search.space import Matrix, Space, Trials

__all__ = ["Engine", "Random", "fingerprint", "hypercube", "space_of"]

STATE_VERSION = 1
HYPERCUBE = 1  # stream of uniform draws; 0 is that of random trials


class Engine:
    """Base of the engines; ``Random``, ``Greedy`` and ``Genetic`` are the ones to use."""

    method: ClassVar[str] = ""
    _state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, space: Space | Mapping[str, Any], *, seed: Seed = 0) -> None:
        self.space: Space = space_of(space)
        self._key: int = key_of(seed)
        self._asked: int = 0
        self._told: int = 0
        self._best_y: float = math.inf
        self._best: Matrix | None = None
        self._busy: bool = False

    # --- for users

    def ask(self, k: int = 1) -> Trials:
        """Propose k trials: a (k, d) float64 matrix if every variable is numeric, else a dict
        of k-element columns."""
        k = integer(k, "k", low=1)
        with self._alone():
            return self.space.present(self.propose(k))

    def tell(self, X: Any, y: Any) -> None:
        """Report objective values (lower is better) of trials that were asked or not.

        Parameters
        ----------
        X : (k, d) matrix, dict of columns, or list of dicts
            As ``ask`` returns it.
        y : (k,) array-like
            NaN marks a failed trial: counted, never the best.
        """
        values = self.space.parse(X)
        try:
            told = np.array(y, dtype=np.float64, ndmin=1)
        except (TypeError, ValueError) as error:
            raise DTypeError(f"y: cannot be read as numbers: {error}") from None
        if told.shape != (len(values),):
            raise ArrayError(f"y: expected shape ({len(values)},), got {told.shape}")
        with self._alone():
            self.learn(values, told)

    @property
    def x(self) -> dict[str, Any] | None:
        """The best trial told so far; None before the first finite one."""
        return None if self._best is None else self.space.dicts_of(self._best[None])[0]

    @property
    def fun(self) -> float:
        """Its objective; infinite before the first finite one."""
        return self._best_y

    @property
    def n_asked(self) -> int:
        return self._asked

    @property
    def n_told(self) -> int:
        return self._told

    @property
    def key(self) -> int:
        """The seed's 64 bits."""
        return self._key

    def options(self) -> dict[str, Any]:
        """The constructor's numbers that proposals depend on."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next proposals depend on, as numbers, strings and arrays (copies)."""
        with self._alone():
            state: dict[str, Any] = {
                "version": STATE_VERSION,
                "method": self.method,
                "space": repr(self.space),
            }
            for name in self._names():
                value = getattr(self, name)
                if isinstance(value, np.ndarray):
                    value = value.copy()
                elif isinstance(value, (list, set)):
                    value = type(value)(value)
                state[name.lstrip("_")] = value
            return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; all of it or, with FormatError, nothing."""
        names = {name.lstrip("_"): name for name in self._names()}
        wanted = {"version", "method", "space", *names}
        if set(state) != wanted:
            missing, extra = wanted - set(state), set(state) - wanted
            raise FormatError(f"state: missing {sorted(missing)}, unknown {sorted(extra)}")
        for key, here in (
            ("version", STATE_VERSION),
            ("method", self.method),
            ("space", repr(self.space)),
        ):
            if state[key] != here:
                raise FormatError(f"state: {key} is {state[key]!r}, expected {here!r}")
        columns = self.space.n_columns
        for key, name in names.items():
            value, own = state[key], getattr(self, name)
            if isinstance(value, np.ndarray):
                if value.dtype.kind not in "fiu" or (value.ndim and value.shape[-1] == 0):
                    raise FormatError(f"state: {key} is not an array of numbers")
                if value.ndim == 2 and value.shape[1] != columns:
                    raise FormatError(f"state: {key} has shape {value.shape}, not (*, {columns})")
            elif not (own is None or value is None or isinstance(own, np.ndarray)):
                numbers = isinstance(value, (int, float)) and isinstance(own, (int, float))
                if not numbers and type(value) is not type(own):
                    raise FormatError(
                        f"state: {key} is a {type(value).__name__}, not a {type(own).__name__}"
                    )
        with self._alone():
            for key, name in names.items():
                value = state[key]
                if isinstance(value, np.ndarray):
                    value = value.copy()
                elif isinstance(value, (list, set)):
                    value = type(value)(value)
                setattr(self, name, value)

    # --- for the driver: values in, values out

    def propose(self, k: int) -> Matrix:
        raise NotImplementedError  # pragma: no cover

    def learn(self, values: Matrix, y: NDArray[np.float64]) -> None:
        self._told += len(y)
        if len(y) and not np.isnan(y).all():
            i = int(np.nanargmin(y))
            if y[i] < self._best_y and y[i] != -math.inf:
                self._best_y, self._best = float(y[i]), values[i].copy()

    # --- inside

    def _names(self) -> tuple[str, ...]:
        return ("_key", "_asked", "_told", "_best_y", "_best", *self._state_names)

    def _uniform(self, first: int, k: int, step: int = 0) -> Matrix:
        """(k, d) uniforms in [0, 1); row i is a function of (seed, first + i, step)."""
        u = np.empty((k, self.space.n_columns))
        _kernels.genetic_select.uniform(u, first, self._key, step, 1)
        return u

    def _random(self, first: int, k: int) -> Matrix:
        """Genomes drawn uniformly from the space."""
        u = self._uniform(first, k)
        u *= self.space.high - self.space.low
        u += self.space.low
        return u

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._busy:
            raise ConcurrentUseError(f"{type(self).__name__}: already in use by another thread")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


class Random(Engine):
    """Random search: trial i is drawn from the space by (seed, i) alone.

    Parameters
    ----------
    space : Space or dict of variables
    seed : int, SeedSequence or Generator

    Notes
    -----
    Independent of what is told; any split of ``ask`` gives the same sequence of trials.

    Examples
    --------
    >>> from fastopt import Float, Space
    >>> algo = Random(Space(x=Float(-1, 1)), seed=0)
    >>> algo.ask(3).shape
    (3, 1)
    """

    method = "random"

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        return self.space.values_of(self._random(first, k))


def fingerprint(row: Matrix) -> int:
    """64-bit hash of one row of values, the same in every process."""
    return int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "little")


def hypercube(key: int, n: int, space: Space) -> Matrix:
    """Values of a Latin hypercube of n trials: each of n slices of each variable holds one."""
    d = space.n_columns
    order, inside = np.empty((n, d)), np.empty((n, d))
    _kernels.genetic_select.uniform(order, 0, key, HYPERCUBE, 1)
    _kernels.genetic_select.uniform(inside, 0, key, HYPERCUBE + 1, 1)
    u = (np.argsort(order, axis=0) + inside) / max(n, 1)
    return space.values_of(space.low + u * (space.high - space.low))


def space_of(space: Any) -> Space:
    """A Space as it is, or one of a dict of variables."""
    if isinstance(space, Space):
        return space
    if isinstance(space, Mapping):
        return Space(**space)
    raise DTypeError(f"space: expected a Space or a dict, got {type(space).__name__}")
