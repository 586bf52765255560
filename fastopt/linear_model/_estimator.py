"""What every estimator here is to scikit-learn: parameters, tags, names of features, scores.

Nothing is inherited from scikit-learn, so that importing fastopt imports NumPy alone; the methods
that scikit-learn looks for import it themselves when it calls them.
"""

from __future__ import annotations

import copy
import inspect
import sys
import threading
import warnings
from typing import Any, TypeVar

import numpy as np

from fastopt._arrays import Array
from fastopt._random import key_of
from fastopt.errors import ArrayError, ConcurrentUseError, FastoptError, OptionError
from fastopt.linear_model._data import check_weights, check_x, feature_names
from fastopt.linear_model._rows import Rows, matmul

__all__ = ["ConvergenceWarning", "LinearEstimator", "NotFittedError", "warn_not_converged"]

Self = TypeVar("Self", bound="LinearEstimator")


class NotFittedError(FastoptError, ValueError, AttributeError):
    """The estimator is asked for predictions before it has seen data."""


class ConvergenceWarning(UserWarning):
    """A solver stopped at max_iter before it reached its tolerance."""


def _joined(ours: type, name: str) -> type:
    """``ours``, as scikit-learn's exception of that name as well once scikit-learn is loaded."""
    if "sklearn" not in sys.modules:
        return ours
    from sklearn import exceptions

    theirs = getattr(exceptions, name)
    joined: type = type(name, (ours, theirs), {"__module__": __name__})
    return joined


def warn_not_converged(message: str) -> None:
    """ConvergenceWarning, ours and scikit-learn's at once."""
    level = 2
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fastopt."):
        frame = frame.f_back  # type: ignore[assignment]
        level += 1
    warnings.warn(message, _joined(ConvergenceWarning, "ConvergenceWarning"), stacklevel=level)


def key_of_state(random_state: Any) -> int:
    """Key of a seed: None, an int, a SeedSequence, a Generator or a RandomState."""
    if isinstance(random_state, np.random.RandomState):
        return key_of(int(random_state.randint(2**31 - 1)))
    return key_of(random_state)


class LinearEstimator:
    """Shared face of the linear estimators; the subclasses hold the losses and solvers."""

    _estimator_type: str
    coef_: Array
    intercept_: Any
    n_features_in_: int
    _metadata_request: Any
    # The options that every constructor has; the others are declared where they are used.
    solver: str
    fit_intercept: bool
    max_iter: int
    batch_size: int | None
    momentum: float
    warm_start: bool
    random_state: Any
    threads: int | None

    # --- parameters -------------------------------------------------------------------------
    def _keep_parameters(self, given: dict[str, Any]) -> None:
        """The constructor's arguments (its ``locals()``) as attributes of the same names."""
        self.__dict__.update((name, given[name]) for name in self._param_names())

    @classmethod
    def _param_names(cls) -> list[str]:
        return [p for p in inspect.signature(cls.__init__).parameters if p != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters by name."""
        return {name: getattr(self, name) for name in self._param_names()}

    def set_params(self: Self, **params: Any) -> Self:
        """Set constructor parameters by name; returns the estimator."""
        known = self._param_names()
        for name in params:
            if name not in known:
                raise OptionError(
                    f"Invalid parameter {name!r} for estimator {self!r}. "
                    f"Valid parameters are: {known!r}."
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        shown = []
        for name, value in self.get_params().items():
            default = defaults[name].default
            same = value is default or (type(value) is type(default) and bool(value == default))
            if not same:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    # --- scikit-learn -----------------------------------------------------------------------
    def get_metadata_routing(self) -> Any:
        """The metadata that fit, partial_fit and score ask a meta-estimator for."""
        from sklearn.utils.metadata_routing import MetadataRequest

        if "_metadata_request" in self.__dict__:
            return copy.deepcopy(self._metadata_request)
        request = MetadataRequest(owner=self)
        for method in ("fit", "partial_fit", "score"):
            for name in self._metadata(method):
                getattr(request, method).add_request(param=name, alias=None)
        return request

    def _metadata(self, method: str) -> list[str]:
        """Arguments of a method besides X and y."""
        taken = (
            inspect.signature(getattr(self, method)).parameters if hasattr(self, method) else ()
        )
        return [name for name in taken if name not in ("X", "y")]

    def _ask_for(self: Self, method: str, wanted: dict[str, Any]) -> Self:
        known = self._metadata(method)
        for name in wanted:
            if name not in known:
                raise OptionError(f"{name}: {method} takes no such metadata, only {known}")
        request = self.get_metadata_routing()
        for name, alias in wanted.items():
            getattr(request, method).add_request(param=name, alias=alias)
        self._metadata_request = request
        return self

    def set_fit_request(self: Self, **wanted: bool | str | None) -> Self:
        """Ask a meta-estimator to pass metadata to fit, as in set_fit_request(sample_weight=True).

        Parameters
        ----------
        **wanted : bool, str or None
            True: pass it; False: do not; None: raise if it is given; a str: pass what has that
            name. Needs scikit-learn with enable_metadata_routing=True.
        """
        return self._ask_for("fit", wanted)

    def set_score_request(self: Self, **wanted: bool | str | None) -> Self:
        """The same for score."""
        return self._ask_for("score", wanted)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifier = self._estimator_type == "classifier"
        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True, multi_output=self._multi_output()),
            transformer_tags=None,
            classifier_tags=ClassifierTags() if classifier else None,
            regressor_tags=None if classifier else RegressorTags(),
            input_tags=InputTags(sparse=True),
        )

    def _multi_output(self) -> bool:
        return False

    def __sklearn_is_fitted__(self) -> bool:
        return "coef_" in self.__dict__

    # --- checks -----------------------------------------------------------------------------
    def _busy(self) -> threading.Lock:
        """A lock held during a fit; a second fit of the same object at that time is refused."""
        lock: threading.Lock = self.__dict__.setdefault("_lock", threading.Lock())
        if not lock.acquire(blocking=False):
            raise ConcurrentUseError(f"{type(self).__name__}: another thread is fitting it")
        return lock

    def _note_features(self, x: Any, d: int) -> None:
        names = feature_names(x)
        self.n_features_in_ = d
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_features(self, x: Any, d: int) -> None:
        """The columns must be those of the fit: their number, and their names where both have."""
        names = feature_names(x)
        seen = getattr(self, "feature_names_in_", None)
        if seen is not None and names is not None and list(seen) != list(names):
            raise ArrayError(_names_differ(list(seen), list(names)))
        if (seen is None) != (names is None):
            had = "was fitted without" if seen is None else "was fitted with"
            has = (
                "X has feature names, but"
                if names is not None
                else ("X does not have valid feature names, but")
            )
            warnings.warn(f"{has} {type(self).__name__} {had} feature names", stacklevel=4)
        if d != self.n_features_in_:
            raise ArrayError(
                f"X has {d} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )

    def _check_fitted(self) -> None:
        if "coef_" not in self.__dict__:
            raise _joined(NotFittedError, "NotFittedError")(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with "
                "appropriate arguments before using this estimator."
            )

    def _margins(self, x: Any) -> Array:
        """X coef_' + intercept_; a memory map or a block source is read block by block."""
        self._check_fitted()
        rows: Rows = check_x(x)
        self._check_features(x, rows.shape[1])
        z: Array = matmul(rows, self.coef_.astype(rows.dtype, copy=False))
        z += np.asarray(self.intercept_, z.dtype)
        return z


def _names_differ(seen: list[str], names: list[str]) -> str:
    """scikit-learn's message on feature names that do not match."""
    unexpected = sorted(set(names) - set(seen))
    missing = sorted(set(seen) - set(names))
    text = "The feature names should match those that were passed during fit.\n"

    def listed(items: list[str]) -> str:
        shown = "".join(f"- {item}\n" for item in items[:5])
        return shown + ("- ...\n" if len(items) > 5 else "")

    if unexpected:
        text += "Feature names unseen at fit time:\n" + listed(unexpected)
    if missing:
        text += "Feature names seen at fit time, yet now missing:\n" + listed(missing)
    if not unexpected and not missing:
        text += "Feature names must be in the same order as they were in fit.\n"
    return text


def r2_score(y: Array, predicted: Array, sample_weight: Any = None) -> float:
    """1 - sum w (y - p)^2 / sum w (y - mean)^2, the mean over the outputs."""
    y2, p2 = y.reshape(len(y), -1).astype(np.float64), predicted.reshape(len(y), -1)
    given, _ = check_weights(sample_weight, len(y), np.float64)
    w = np.ones(len(y)) if given is None else given
    mean = np.average(y2, axis=0, weights=w)
    residual = ((y2 - p2) ** 2 * w[:, None]).sum(axis=0)
    total = ((y2 - mean) ** 2 * w[:, None]).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(total > 0, 1 - residual / total, np.where(residual > 0, 0.0, 1.0))
    return float(scores.mean())
