"""What all engines share: ask, tell, the best trial so far, plain-data state; and Random.

An engine proposes values (see ``space``) and is told their objective; it never learns who
evaluates. A proposal is a function of the seed, the trial's number and what was told before.

Constraints enter as one number per trial, its *violation*: the sum of what each constraint exceeds
0 by. ``merit`` makes one order of both by Deb's rules, which is all that engines see.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._arrays import as_array
from fastopt._options import integer, short
from fastopt._random import Seed, key_of
from fastopt.errors import ArrayError, ConcurrentUseError, DTypeError, FormatError
from fastopt.search.identity import digest_of
from fastopt.search.layout import Matrix
from fastopt.search.parsing import checked
from fastopt.search.space import Space, Trials

__all__ = ["INFEASIBLE", "Engine", "Random", "fingerprint", "hypercube", "merit", "space_of"]

STATE_VERSION = 4
INFEASIBLE = 1e100  # merits of infeasible trials begin here
HYPOTHETICAL = 256  # most trials of a batch by which a state is tried out
HYPERCUBE = 1  # stream of uniform draws; 0 is that of random trials


class Engine:
    """Base of the engines: ``Random``, ``Greedy``, ``Genetic`` and the others are to be used.

    Attributes
    ----------
    method : str
        Its name in ``minimize``.
    n_objectives : int
        Columns of y; one objective is told as (k,).
    batch : int
        What ``wants`` says where the engine has no reason for another number.
    lag : int
        Batches that are proposed before the oldest of them is told.
    proposals : int
        Version of what is proposed; raised with every change, so that no journal is continued
        with other points.
    """

    method: ClassVar[str] = ""
    n_objectives: int = 1
    batch: int = 8
    lag: int = 0
    proposals: ClassVar[int] = 1
    _state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, space: Space | Mapping[str, Any], *, seed: Seed = 0) -> None:
        self.space: Space = space_of(space)
        self._key: int = key_of(seed)
        self._asked: int = 0
        self._told: int = 0
        self._best_y: float = math.inf
        self._best_merit: float = math.inf
        self._best: Matrix | None = None
        self._busy: bool = False

    # --- for users

    def ask(self, k: int = 1) -> Trials:
        """Propose k trials: a (k, d) float64 matrix if every variable is numeric, else a dict
        of k-element columns."""
        k = integer(k, "k", low=1)
        with self._alone():
            return self.space.present(self.propose(k))

    def tell(self, X: Any, y: Any, constraints: Any = None) -> None:
        """Report objective values (lower is better) of trials that were asked or not.

        Parameters
        ----------
        X : (k, d) matrix, dict of columns, or list of dicts
            As ``ask`` returns it.
        y : (k,) array-like; (k, n_objectives) for several objectives
            NaN marks a failed trial: counted, never the best.
        constraints : (k, c) array-like, optional
            A trial is feasible where all are <= 0. Deb's rules: a feasible trial is better than
            an infeasible one, of two infeasible ones the smaller sum of excesses.
        """
        values = self.space.parse(X)
        told = self._numbers(y, "y")
        shape = (len(values),) if self.n_objectives == 1 else (len(values), self.n_objectives)
        if told.shape != shape:
            raise ArrayError(f"y: expected shape {shape}, got {told.shape}")
        violation = None
        if constraints is not None:
            excess = self._numbers(constraints, "constraints")
            if excess.ndim != 2 or len(excess) != len(values):
                raise ArrayError(
                    f"constraints: expected shape ({len(values)}, c), got {excess.shape}"
                )
            violation = np.maximum(excess, 0.0).sum(axis=1)
        with self._alone():
            self.learn(values, told, violation)

    @property
    def x(self) -> dict[str, Any] | None:
        """The best trial told so far; None before the first finite one."""
        return None if self._best is None else self.space.dicts_of(self._best[None])[0]

    @property
    def fun(self) -> float:
        """Its objective; infinite before the first finite one."""
        return self._best_y

    @property
    def feasible(self) -> bool:
        """Whether the best trial told so far keeps all constraints."""
        return self._best_merit < INFEASIBLE

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
        """The constructor's keywords that proposals depend on, as JSON values."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next proposals depend on, as numbers, strings and arrays (copies)."""
        with self._alone():
            state: dict[str, Any] = {
                "version": STATE_VERSION,
                "method": self.method,
                "space": self.space.digest,
            }
            for name in self._names():
                value = getattr(self, name)
                if isinstance(value, Engine):
                    value = value.state_dict()
                elif is_dataclass(value):
                    value = vars(value)
                state[name.lstrip("_")] = copy.deepcopy(value)
            return {**state, "digest": _digest(state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; all of it or, with FormatError, nothing."""
        self._check_state(state)
        with self._alone():
            self._rehearse(state)
            self._take(state)

    def _rehearse(self, state: Mapping[str, Any]) -> None:
        """Whether a copy of the engine can go on with the state.

        A digest shows what was damaged, not what somebody wrote with a digest that fits.
        """
        twin = copy.deepcopy(self, {id(self.space): self.space})
        try:
            with np.errstate(all="ignore"):
                twin._take(state)
                for _ in range(2):
                    values = twin.propose(min(integer(twin.wants(), "wants", low=1), HYPOTHETICAL))
                    checked(self.space.layout, values, "state")
                    y = np.arange(len(values), dtype=np.float64)
                    twin.learn(values, y if self.n_objectives == 1 else self._columns(y))
                if twin._best is not None:
                    checked(self.space.layout, twin._best[None], "state")
        except Exception as error:
            raise FormatError(f"state: its fields do not fit together: {short(error)}") from error

    def _columns(self, y: NDArray[np.float64]) -> Matrix:
        return np.repeat(y[:, None], self.n_objectives, axis=1)

    def _take(self, state: Mapping[str, Any]) -> None:
        for name in self._names():
            value, own = state[name.lstrip("_")], getattr(self, name)
            if isinstance(own, Engine):
                own._take(value)
            elif is_dataclass(own):
                vars(own).update(copy.deepcopy(value))
            else:
                setattr(self, name, copy.deepcopy(value))

    # --- for the driver: values in, values out

    def wants(self) -> int:
        """How many trials to propose next: as many as can be chosen from what is known now."""
        return self.batch

    def propose(self, k: int) -> Matrix:
        """(k, d) values of the next k trials."""
        raise NotImplementedError  # pragma: no cover

    def learn(
        self, values: Matrix, y: NDArray[np.float64], violation: NDArray[np.float64] | None = None
    ) -> None:
        """Take in finished trials: y is (k,) or (k, n_objectives), violation (k,), both kept."""
        order = merit(y, violation)
        self._told += len(y)
        if order.ndim == 1 and len(y):
            i = int(np.argmin(np.where(np.isnan(order), math.inf, order)))
            if -math.inf < order[i] < self._best_merit:
                self._best_merit, self._best = float(order[i]), values[i].copy()
                self._best_y = float(y[i])
        self.absorb(values, order)

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        """What an engine makes of finished trials; y is their merit, NaN for failed ones."""

    # --- inside

    def _names(self) -> tuple[str, ...]:
        return (
            "_key",
            "_asked",
            "_told",
            "_best_y",
            "_best_merit",
            "_best",
            *self._state_names,
        )

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise FormatError(f"state: expected a dict of state_dict, got {type(state).__name__}")
        names = {name.lstrip("_"): name for name in self._names()}
        wanted = {"version", "method", "space", "digest", *names}
        if set(state) != wanted:
            missing, extra = wanted - set(state), set(state) - wanted
            raise FormatError(
                f"state: missing {sorted(missing)}, unknown {sorted(map(str, extra))}"
            )
        for key, here in (
            ("version", STATE_VERSION),
            ("method", self.method),
            ("space", self.space.digest),
        ):
            if not isinstance(state[key], type(here)) or state[key] != here:
                raise FormatError(f"state: {key} is {short(state[key])}, expected {here!r}")
        for key, name in names.items():
            value, own = state[key], getattr(self, name)
            if isinstance(own, Engine):
                own._check_state(value)
            elif is_dataclass(own):
                if not isinstance(value, dict) or set(value) != set(vars(own)):
                    raise FormatError(f"state: {key} is not of the expected fields")
            elif isinstance(own, np.ndarray):
                if (
                    not isinstance(value, np.ndarray)
                    or value.dtype != own.dtype
                    or value.shape[1:] != own.shape[1:]
                ):
                    found = getattr(value, "shape", type(value).__name__)
                    raise FormatError(f"state: {key} is {found}, not an array like {own.shape}")
            elif own is not None and value is not None:
                plain = (int, float)
                numbers = type(value) in plain and type(own) in plain
                if not numbers and type(value) is not type(own):
                    raise FormatError(
                        f"state: {key} is a {type(value).__name__}, not a {type(own).__name__}"
                    )

            if type(value) is int:
                low = 0 if name in ("_key", "_asked", "_told") else -(1 << 63)
                if not low <= value < 1 << (64 if name == "_key" else 63):
                    raise FormatError(f"state: {key} is {short(value)}, beyond its range")

        # fields of the right kind may still contradict each other
        if state["digest"] != _digest({k: v for k, v in state.items() if k != "digest"}):
            raise FormatError("state: the digest does not fit: a field was changed or damaged")

    def _numbers(self, raw: Any, name: str) -> NDArray[np.float64]:
        return np.array(as_array(raw, name, dtypes=("float64",), cast="float64"), ndmin=1)

    def _uniform(self, first: int, k: int, step: int = 0, columns: int = 0) -> Matrix:
        """(k, d or columns) uniforms in [0, 1); row i is a function of (seed, first + i, step)."""
        u = np.empty((k, columns or self.space.n_columns))
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
    batch = 256
    lag = 7  # nothing that is told changes what is proposed

    def propose(self, k: int) -> Matrix:
        first, self._asked = self._asked, self._asked + k
        return self.space.values_of(self._random(first, k))


def merit(y: NDArray[np.float64], violation: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """y of feasible trials; of others a number that grows with the violation, above every y.

    Deb's rules (Deb, Comput. Methods Appl. Mech. Eng. 186 (2000)) as one order: log10 of the
    violation, -324..308, is mapped to 1e100..1e300, so objectives of 1e100 and more are taken for
    infeasible ones. A violation counts even where y is NaN. With several objectives a trial's
    merits are all the same, so it is dominated by all feasible trials and by smaller violations.
    """
    if violation is None:
        return y
    bad = violation > 0
    size = np.log10(np.where(bad, np.minimum(violation, 1e308), 1.0))
    order = 10.0 ** (200.0 + size * (100.0 / 324.0))
    if y.ndim == 2:
        bad, order = bad[:, None], order[:, None]
    return np.where(bad, order, np.where(np.isnan(violation).reshape(bad.shape), np.nan, y))


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


def _digest(state: Mapping[str, Any]) -> str:
    return digest_of([[name, state[name]] for name in sorted(state)])
