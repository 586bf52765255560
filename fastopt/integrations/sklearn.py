"""scikit-learn's search over hyper-parameters, with fastopt's engines, spaces and journals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

try:
    import joblib
    from sklearn.base import is_classifier
    from sklearn.model_selection._search import BaseSearchCV
    from sklearn.utils import check_random_state, resample
    from sklearn.utils.validation import _num_samples
except ImportError:
    raise ImportError(
        "fastopt.integrations.sklearn needs scikit-learn: pip install 'fastopt[sklearn]'"
    ) from None

from fastopt._options import integer, number
from fastopt.errors import FormatError, OptionError
from fastopt.search.driver import minimize
from fastopt.search.engine import fingerprint
from fastopt.search.evaluation import Outcome
from fastopt.search.journal import Journal
from fastopt.search.layout import Matrix
from fastopt.search.methods import engine_for
from fastopt.search.space import Space

__all__ = ["SearchCV"]


class SearchCV(BaseSearchCV):  # type: ignore[misc]
    """Search over an estimator's hyper-parameters by cross-validation.

    A drop-in for scikit-learn's ``RandomizedSearchCV``: the same attributes after ``fit``, the
    same ``cv_results_``, refit and several metrics; the candidates come from an engine of fastopt.

    Parameters
    ----------
    estimator : estimator
    space : Space, or dict
        Names of parameters (``step__parameter`` inside a pipeline) -> variable, list of options,
        or scipy distribution.
    method : str
        As for ``fastopt.minimize``.
    n_iter : int
        Candidates to try.
    max_time : float, optional
        Seconds after which no further candidates are begun.
    resource : str, optional
        Successive halving: all candidates are tried with little of this resource, "n_samples" or
        an integer parameter of the estimator, then the best 1 / ``factor`` with ``factor`` times
        as much, up to ``max_resources``. ``cv_results_`` gets ``iter`` and ``n_resources``.
    factor : int
    max_resources : int, optional
        All samples by default; needed where the resource is a parameter.
    storage : path, optional
        Journal of the candidates' scores: the same search on the same data goes on with them.
    scoring, n_jobs, refit, cv, verbose, pre_dispatch, error_score, return_train_score
        As for ``RandomizedSearchCV``. With several metrics the search looks at ``refit``, or at
        the first one if that is no metric's name.
    random_state : int, RandomState or None
        With an int the same candidates are tried again.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_,
    refit_time_, multimetric_, classes_, n_features_in_, feature_names_in_
        As in scikit-learn.
    result_ : fastopt.search.Result
        The search itself; with several rungs, the first of them.

    Raises
    ------
    OptionError, FormatError
        An option makes no sense; the storage belongs to another search.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> from fastopt import Choice, Float
    >>> space = {"C": Float(1e-3, 1e3, log=True), "kernel": Choice("rbf", "linear")}
    >>> search = SearchCV(SVC(), space, n_iter=20, random_state=0)
    >>> bool(search.fit(*load_iris(return_X_y=True)).best_score_ > 0.95)
    True
    """

    _parameter_constraints: dict[str, Any]

    def __init__(
        self,
        estimator: Any,
        space: Any,
        *,
        method: str = "auto",
        n_iter: int = 50,
        max_time: float | None = None,
        resource: str | None = None,
        factor: int = 3,
        max_resources: int | None = None,
        storage: Any = None,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
    ) -> None:
        super().__init__(
            estimator=estimator,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.space = space
        self.method = method
        self.n_iter = n_iter
        self.max_time = max_time
        self.resource = resource
        self.factor = factor
        self.max_resources = max_resources
        self.storage = storage
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **params: Any) -> SearchCV:
        """Search, then fit the best candidate on all of the data.

        Parameters
        ----------
        X : (n_samples, n_features) array-like
        y : (n_samples,) or (n_samples, n_outputs) array-like, optional
        **params
            For the estimator, the scorer and the splitter.

        Returns
        -------
        self
        """
        given = self.space
        space = given if isinstance(given, Space) else Space.from_scipy(given)
        n_iter = integer(self.n_iter, "n_iter", low=1)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        self._rungs = self._resources(X, y, n_iter)
        data = joblib.hash((X, y, params)) if self.storage is not None else ""
        self._table = _Table(self, space, seed, data)
        try:
            super().fit(X, y, **params)
        finally:
            self._table.close()
            del self._table, self._rungs
        return self

    # --- scikit-learn's hooks

    def _run_search(self, evaluate_candidates: Any) -> None:
        table, rungs = self._table, self._rungs
        space = table.space
        engine, _ = engine_for(self.method, space, max_evals=self.n_iter, seed=table.seed)

        def first_rung(given: Any) -> Matrix:
            values = space.parse(given)
            return -self._evaluate(evaluate_candidates, values, 0)

        self.result_ = minimize(
            first_rung,
            space,
            method=engine,
            vectorized=True,
            max_evals=self.n_iter,
            max_time=None if self.max_time is None else number(self.max_time, "max_time", low=0),
            on_interrupt="raise",
        )
        values, scores = np.array(table.values), -self.result_.history
        for rung in range(1, len(rungs)):
            keep = max(1, math.ceil(len(values) / self.factor))
            order = np.argsort(np.where(np.isnan(scores), math.inf, -scores), kind="stable")
            values = values[np.sort(order[:keep])]
            scores = self._evaluate(evaluate_candidates, values, rung)
        if not table.fresh:  # all of it was in the journal, and scikit-learn wants to see a fit
            table.closed = True
            evaluate_candidates(table.params[-1:])

    def _evaluate(self, evaluate_candidates: Any, values: Matrix, rung: int) -> Matrix:
        """Mean score of each candidate, from the journal or by cross-validation."""
        table, resource = self._table, self._rungs[rung]
        params = table.space.dicts_of(values)
        cv = None
        if self.resource == "n_samples" and resource:
            share = resource / self._rungs[-1]
            cv = _Part(self._checked_cv_orig, share, table.seed) if share < 1 else None
        elif self.resource is not None:
            params = [{**p, self.resource: resource} for p in params]
        known = table.recall(values, params, rung, resource, self.n_splits_)
        if known < len(params):
            table.begin(values[known:], params[known:], rung, resource)
            evaluate_candidates(params[known:], cv=cv)
        return table.scores()[len(table.params) - len(params) :]

    def _format_results(
        self, candidate_params: Any, n_splits: int, out: Any, more_results: Any = None
    ) -> dict[str, Any]:
        table = self._table
        table.take(out, n_splits)
        more = None
        if self.resource is not None:
            more = {"iter": table.rungs, "n_resources": table.resources}
        results: dict[str, Any] = super()._format_results(
            list(table.params), n_splits, list(table.out), more
        )
        table.results = results
        table.note()
        return results

    @staticmethod
    def _select_best_index(refit: Any, refit_metric: str, results: Mapping[str, Any]) -> Any:
        """The best candidate; with several rungs, of the last one."""
        if callable(refit) or "iter" not in results:
            return BaseSearchCV._select_best_index(refit, refit_metric, results)
        scores = np.array(results[f"mean_test_{refit_metric}"], dtype=np.float64)
        last = results["iter"] == np.max(results["iter"])
        return int(np.argmax(np.where(last & ~np.isnan(scores), scores, -math.inf)))

    # --- inside

    def _resources(self, X: Any, y: Any, n_iter: int) -> list[int]:
        """What of the resource each rung gets; [0] without one."""
        if self.resource is None:
            return [0]
        factor = integer(self.factor, "factor", low=2)
        if self.resource == "n_samples":
            most = self.max_resources or _num_samples(X)
            folds = self.cv if isinstance(self.cv, int) else 5
            classes = len(np.unique(y)) if y is not None and is_classifier(self.estimator) else 1
            least = 2 * folds * classes
        elif self.max_resources is None:
            raise OptionError("max_resources: is needed where the resource is a parameter")
        elif self.resource not in self.estimator.get_params():
            raise OptionError(f"resource: {self.resource!r} is no parameter of the estimator")
        else:
            most, least = integer(self.max_resources, "max_resources", low=1), 1
        rungs = [int(most)]
        while factor ** len(rungs) <= n_iter and rungs[0] // factor >= least:
            rungs.insert(0, rungs[0] // factor)
        return rungs


class _Part:
    """A splitter whose training and test rows are a share of another splitter's."""

    def __init__(self, splitter: Any, share: float, seed: int) -> None:
        self.splitter, self.share, self.seed = splitter, share, seed

    def split(self, X: Any, y: Any = None, **params: Any) -> Iterator[tuple[Any, Any]]:
        for parts in self.splitter.split(X, y, **params):
            train, test = (
                resample(
                    rows,
                    replace=False,
                    random_state=self.seed,
                    n_samples=max(1, int(self.share * len(rows))),
                )
                for rows in parts
            )
            yield train, test


class _Table:
    """All candidates of one fit in order, with scikit-learn's record of each split, and the
    journal that keeps them."""

    def __init__(self, search: SearchCV, space: Space, seed: int, data: str) -> None:
        self.space, self.seed = space, seed
        self.refit = search.refit
        self.params: list[dict[str, Any]] = []
        self.out: list[dict[str, Any]] = []
        self.rungs: list[int] = []
        self.resources: list[int] = []
        self.values: list[Matrix] = []
        self.results: dict[str, Any] = {}
        self.fresh = 0  # candidates evaluated in this fit
        self.noted = 0  # candidates in the journal
        self.splits = 0
        self.closed = False
        self.search = search
        self.journal: Journal | None = None
        if search.storage is not None:
            header = {
                "space": space.digest,
                "method": search.method,
                "options": {},
                "key": seed,
                "data": data,
                "estimator": joblib.hash((search.estimator, search.scoring, repr(search.cv))),
                "resource": [search.resource, search.factor, search._rungs],
                "train": search.return_train_score,
                "n_iter": search.n_iter if search.resource is not None else None,
            }
            self.journal = Journal(search.storage, header)

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def begin(
        self, values: Matrix, params: list[dict[str, Any]], rung: int, resource: int
    ) -> None:
        """Candidates that are about to be evaluated."""
        self.params += params
        self.values += list(values)
        self.rungs += [rung] * len(params)
        self.resources += [resource] * len(params)

    def take(self, out: list[dict[str, Any]], n_splits: int) -> None:
        """What scikit-learn has measured in this fit; new is what follows the last part."""
        self.splits = n_splits
        new = out[self.fresh * n_splits :]
        if new and not self.closed:
            self.out += new
            self.fresh = len(out) // n_splits

    def metric(self) -> str:
        """The metric that the search looks at."""
        found = [k.removeprefix("mean_test_") for k in self.results if k.startswith("mean_test_")]
        return self.refit if isinstance(self.refit, str) and self.refit in found else found[0]

    def scores(self) -> Matrix:
        if not self.results or len(self.results["params"]) < len(self.params):
            self.search._format_results([], self.splits, [])  # all of the last were in the journal
        return np.array(self.results[f"mean_test_{self.metric()}"], dtype=np.float64)

    def note(self) -> None:
        """Write the new candidates into the journal: one report per number of each split."""
        if self.journal is None or self.closed:
            return
        scores = -np.array(self.results[f"mean_test_{self.metric()}"], dtype=np.float64)
        for i in range(self.noted, len(self.params)):
            splits = self.out[i * self.splits : (i + 1) * self.splits]
            numbers = [v for split in splits for v in _flat(split)]
            names = _names(splits[0])
            message = "\n".join([",".join(names), *(s["fit_error"] or "" for s in splits)])
            outcome = Outcome(float(scores[i]), message=message, reports=tuple(enumerate(numbers)))
            self.journal.append([(i, self._row(self.values[i], self.rungs[i]), outcome, None)])
        self.noted = len(self.params)

    def recall(
        self, values: Matrix, params: list[dict[str, Any]], rung: int, resource: int, splits: int
    ) -> int:
        """How many of these candidates, the next ones, the journal knows; they are taken."""
        self.splits = splits
        if self.journal is None:
            return 0
        known = 0
        for row, candidate in zip(values, params, strict=True):
            number = len(self.params)
            record = self.journal.trials.get(number)
            if record is None:
                break
            if record.x != fingerprint(self._row(row, rung)):
                raise FormatError(
                    f"candidate {number} is another one than is proposed now", self.journal.path
                )
            self.begin(row[None], [candidate], rung, resource)
            self.out += _unflat(record.outcome, splits, self.journal.path)
            known += 1
        self.noted += known
        return known

    def _row(self, values: Matrix, rung: int) -> Matrix:
        return np.append(values, float(rung))


def _names(split: dict[str, Any]) -> list[str]:
    """Names of the numbers of one split: metrics of the test, then of the training rows."""
    names = []
    for part in ("test_scores", "train_scores"):
        scores = split.get(part)
        if isinstance(scores, dict):
            names += [f"{part}/{name}" for name in scores]
        elif scores is not None:
            names.append(part)
    return [*names, "n_test_samples", "fit_time", "score_time"]


def _flat(split: dict[str, Any]) -> list[float]:
    numbers = []
    for name in _names(split):
        part, _, metric = name.partition("/")
        numbers.append(float(split[part][metric] if metric else split[part]))
    return numbers


def _unflat(outcome: Outcome, splits: int, path: str) -> list[dict[str, Any]]:
    """scikit-learn's records of one candidate's splits, from the journal."""
    lines = (outcome.message or "").split("\n")
    names, errors = lines[0].split(","), lines[1:]
    numbers = [value for _, value in outcome.reports]
    if len(numbers) != splits * len(names) or len(errors) < splits:
        raise FormatError("a candidate's record has another number of splits", path)
    records = []
    for i in range(splits):
        record: dict[str, Any] = {"fit_error": errors[i] or None}
        for name, value in zip(names, numbers[i * len(names) :], strict=False):
            part, _, metric = name.partition("/")
            if metric:
                record.setdefault(part, {})[metric] = value
            else:
                record[part] = int(value) if part == "n_test_samples" else value
        records.append(record)
    return records
