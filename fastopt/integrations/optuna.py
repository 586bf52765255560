"""fastopt's engines as a sampler of Optuna."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

try:
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.samplers import BaseSampler
    from optuna.search_space import IntersectionSearchSpace
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    raise ImportError(
        "fastopt.integrations.optuna needs optuna: pip install 'fastopt[optuna]'"
    ) from None

from fastopt._options import integer
from fastopt._random import key_of
from fastopt.errors import OptionError
from fastopt.search.engine import Engine, Random
from fastopt.search.layout import Matrix
from fastopt.search.methods import METHODS, engine_for
from fastopt.search.space import Space
from fastopt.search.variables import Choice, Float, Int, Variable

__all__ = ["FastoptSampler"]

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# Proposals that are compared with trials under way elsewhere, before one is taken twice.
TRIES = 8
# Where Optuna keeps a trial's constraints, for its own idea of the best trial.
CONSTRAINTS = "constraints"


class FastoptSampler(BaseSampler):
    """A sampler for ``optuna.create_study`` that proposes by an engine of fastopt.

    Parameters
    ----------
    method : str
        As for ``fastopt.minimize``; "auto" is "nsga2" for a study with several directions.
    seed : int, optional
    n_trials : int
        How many trials are planned; engines and their populations are chosen for it.
    constraints_func : callable, optional
        Gets a finished trial and returns numbers; the trial is feasible where all are <= 0.

    Raises
    ------
    OptionError
        An unknown method.
    ValueError
        At sampling: the study has several directions and the method is for one.

    Notes
    -----
    The engine works on the parameters that all trials so far have in common (Optuna's
    intersection search space); others are drawn at random. It is told finished trials by number,
    pruned ones with their last intermediate value, so a study that is loaded from a storage goes
    on. A trial that runs elsewhere is not proposed again.

    Examples
    --------
    >>> import optuna
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(sampler=FastoptSampler("genetic", seed=0))
    >>> study.optimize(lambda t: (t.suggest_float("x", -2, 2) - 1) ** 2, n_trials=60)
    >>> study.best_value < 0.01
    True
    """

    def __init__(
        self,
        method: str = "auto",
        *,
        seed: int | None = None,
        n_trials: int = 100,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
    ) -> None:
        if method not in METHODS:
            raise OptionError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        self.method = method
        self.n_trials = integer(n_trials, "n_trials", low=1)
        self.constraints_func = constraints_func
        self._key = key_of(seed)
        self._lock = threading.Lock()
        self._spaces = IntersectionSearchSpace(include_pruned=True)
        self._engine: Engine | None = None
        self._told: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def reseed_rng(self) -> None:
        """Nothing: threads share the engine, and other draws are a function of the trial."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that all trials so far have, those with one value apart."""
        common = self._spaces.calculate(study)
        return {name: d for name, d in common.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the common parameters, by the engine."""
        method = self._method(study)
        if not search_space:
            return {}
        with self._lock:
            engine = self._engine_of(method, search_space, len(study.directions))
            self._tell(engine, study, search_space)
            away = [
                _values(engine.space, t, search_space)
                for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
                if t.number != trial.number and search_space.keys() <= t.params.keys()
            ]
            for _ in range(TRIES):
                row = engine.propose(1)[0]
                if not any(np.array_equal(row, other) for other in away):
                    break
        values = engine.space.dicts_of(row[None])[0]
        return {name: _given(d, values[name]) for name, d in search_space.items()}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A draw that is a function of the seed, the trial's number and the name."""
        self._method(study)
        key = key_of(self._key, trial.number, *param_name.encode())
        draw = Random(Space(**{param_name: _variable(param_distribution)}), seed=key)
        return _given(param_distribution, draw.space.dicts_of(draw.propose(1))[0][param_name])

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Note the constraints where Optuna looks for them."""
        if self.constraints_func is not None and state != TrialState.FAIL:
            limits = tuple(float(c) for c in self.constraints_func(trial))
            study._storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, limits)

    # --- inside

    def _method(self, study: Study) -> str:
        """The method for a study; "auto" knows how many directions there are."""
        several = len(study.directions) > 1
        if several and self.method not in ("auto", "nsga2", "random"):
            raise ValueError(
                f"method: {self.method!r} is for one direction, the study has "
                f'{len(study.directions)}; use "nsga2"'
            )
        return ("nsga2" if several else "auto") if self.method == "auto" else self.method

    def _engine_of(self, method: str, search_space: dict[str, BaseDistribution], m: int) -> Engine:
        space = Space(**{name: _variable(d) for name, d in search_space.items()})
        if self._engine is None or self._engine.space != space:
            self._engine, _ = engine_for(method, space, max_evals=self.n_trials, seed=self._key)
            if method == "nsga2":
                self._engine.n_objectives = m
            self._told = set()
        return self._engine

    def _tell(
        self, engine: Engine, study: Study, search_space: dict[str, BaseDistribution]
    ) -> None:
        """What has finished since the last time, in the order of trial numbers."""
        signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions])
        rows, ys, violations = [], [], []
        for t in study.get_trials(deepcopy=False, states=FINISHED):
            if t.number in self._told or not search_space.keys() <= t.params.keys():
                continue
            self._told.add(t.number)
            rows.append(_values(engine.space, t, search_space))
            ys.append(signs * _objectives(t, len(signs)))
            limits = t.system_attrs.get(CONSTRAINTS, ())
            violations.append(sum(max(c, 0.0) for c in limits))
        if rows:
            y = np.array(ys)
            y[y == -math.inf] = math.nan
            constrained = self.constraints_func is not None
            engine.learn(
                np.array(rows),
                y if engine.n_objectives > 1 else y[:, 0],
                np.array(violations) if constrained else None,
            )


def _objectives(trial: FrozenTrial, m: int) -> Matrix:
    """A finished trial's values: of a pruned one the last it reported, of a failed one NaN."""
    if trial.state == TrialState.COMPLETE:
        return np.array(trial.values, dtype=np.float64)
    if trial.state == TrialState.PRUNED and trial.intermediate_values and m == 1:
        last = trial.intermediate_values[max(trial.intermediate_values)]
        return np.array([last], dtype=np.float64)
    return np.full(m, math.nan)


def _variable(d: BaseDistribution) -> Variable:
    """The variable of a distribution; categories by position, stepped integers on a grid."""
    if isinstance(d, CategoricalDistribution):
        return Choice(list(range(len(d.choices))))
    if isinstance(d, IntDistribution):
        return Int(d.low, d.high, log=d.log) if d.step == 1 else Float(d.low, d.high, step=d.step)
    if isinstance(d, FloatDistribution):
        return Float(d.low, d.high, log=d.log, step=d.step)
    raise OptionError(f"distribution: {type(d).__name__} is not known")


def _given(d: BaseDistribution, value: Any) -> Any:
    """What Optuna gets for a variable's value."""
    if isinstance(d, CategoricalDistribution):
        return d.choices[value]
    return int(value) if isinstance(d, IntDistribution) else float(value)


def _values(space: Space, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Matrix:
    """A trial as a row of the space's values."""
    given = {}
    for name, d in search_space.items():
        raw = d.to_internal_repr(trial.params[name])
        given[name] = int(raw) if isinstance(d, CategoricalDistribution) else raw
    row: Matrix = space.parse([given], f"trial {trial.number}")[0]
    return row
