"""scikit-learn's neural networks and linear models as networks of dense layers, and back.

A pipeline's steps before its last one (a scaler) stay as they are: the network sees the rows that
they make. A binary classifier's one output z becomes two logits (0, z), whose softmax has the same
probabilities, so that every classifier has one column per class.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array
from fastopt._options import choice
from fastopt.errors import ArrayError, UnsupportedError
from fastopt.models.base import Group, Input, Member
from fastopt.models.given import feeds_of, first_batch, fitted_of, n_rows_of, taken
from fastopt.models.network import Dense, Network
from fastopt.models.sklearn.compact import CompactEstimator

__all__ = ["EstimatorModel", "is_estimator"]

_MLP = ("MLPClassifier", "MLPRegressor")
_LINEAR_CLASSIFIERS = (
    "LogisticRegression", "LogisticRegressionCV", "SGDClassifier", "LinearSVC", "RidgeClassifier",
    "RidgeClassifierCV", "Perceptron", "PassiveAggressiveClassifier", "LinearDiscriminantAnalysis",
)  # fmt: skip
_LINEAR_REGRESSORS = (
    "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV",
    "SGDRegressor", "LinearSVR", "HuberRegressor", "BayesianRidge", "ARDRegression", "Lars",
    "LassoLars", "OrthogonalMatchingPursuit", "MultiTaskLasso", "MultiTaskElasticNet",
    "TheilSenRegressor", "PassiveAggressiveRegressor",
)  # fmt: skip
# Their probabilities are the softmax of their outputs.
_SOFTMAX = (
    "MLPClassifier", "LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis",
)  # fmt: skip
_KNOWN = {*_MLP, *_LINEAR_CLASSIFIERS, *_LINEAR_REGRESSORS}
_INPUT = "X"
_FEATURES = "features"


def is_estimator(model: Any) -> bool:
    """Whether :class:`EstimatorModel` may take it: by the class's name, nothing is imported."""
    last = _steps(model)[-1]
    return type(last).__module__.startswith("sklearn.") and type(last).__name__ in _KNOWN


def _steps(model: Any) -> list[Any]:
    if type(model).__name__ == "Pipeline" and type(model).__module__.startswith("sklearn."):
        return [step for _, step in model.steps]
    return [model]


class EstimatorModel:
    """A fitted scikit-learn estimator as compression sees it.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, a linear model, or a Pipeline that ends in one
        Fitted. Not changed.

    Attributes
    ----------
    network : Network
        The estimator's weights, float32; layers are named ``coefs0``, ``coefs1`` ... The rest of
        the model protocol is the network's.

    Raises
    ------
    UnsupportedError
        Not fitted, several labels per row, or weights in a sparse matrix.

    Notes
    -----
    A linear model has one more group, ``features``: the input columns, which may go too. In the
    result their coefficients are zero.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator
        *self._before, self._last = _steps(estimator)
        if not is_estimator(estimator):
            raise UnsupportedError(
                f"model: expected one of {', '.join(sorted(_KNOWN))}, got "
                f"{type(self._last).__name__}"
            )
        self._linear = type(self._last).__name__ not in _MLP
        self._features = np.arange(_width(self._last))
        self.network = _network_of(self._last)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "network" not in vars(self):
            raise AttributeError(name)
        return getattr(self.network, name)

    # --- what differs from the network ------------------------------------------------------

    @property
    def inputs(self) -> tuple[Input, ...]:
        """One input, ``X``: what the estimator's own ``predict`` takes."""
        n = getattr((self._before or [self._last])[0], "n_features_in_", len(self._features))
        return (Input(_INPUT, "float64" if self._before else "float32", (None, int(n))),)

    @property
    def classes_axis(self) -> dict[str, int]:
        """The columns of a classifier are its classes."""
        return {} if self.network.classes is None else {self.network.outputs[0]: 1}

    @property
    def groups(self) -> dict[str, Group]:
        """The hidden units of each layer; of a linear model its input columns."""
        if not self._linear:
            return self.network.groups
        first = next(iter(self.network.layers))
        index = np.arange(len(self._features))[:, None]
        found = Group(_FEATURES, len(index), (), (Member(first, 1, index),))
        return {_FEATURES: found, **self.network.groups}

    def keep_units(
        self,
        group: str,
        index: Array,
        weights: Mapping[str, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """In place: keep the group's units ``index`` only."""
        if choice(group, "group", self.groups) != _FEATURES or not self._linear:
            self.network.keep_units(group, index, weights)
            return
        layers = list(self.network.layers.values())
        kept = self.groups[_FEATURES].kept(index)
        given = fitted_of(weights, {layers[0].name})
        fresh = [Dense(x.weight, x.bias, name=x.name) for x in layers]
        first = layers[0]
        weight, bias = given.get(first.name, (first.weight[:, kept], first.bias))
        if weight.shape != (first.weight.shape[0], len(kept)):
            raise ArrayError(f"weights: {first.name} needs {len(kept)} columns")
        fresh[0] = Dense(weight, bias, name=first.name)
        self.network = Network(fresh, classes=self.network.classes)
        self._features = self._features[kept]

    def _rows(self, x: Any) -> dict[str, Array]:
        """What the network sees of rows."""
        with warnings.catch_warnings():  # names of columns are not checked here
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            for step in (s for s in self._before if s not in (None, "passthrough")):
                try:
                    x = step.transform(x)
                except Exception as error:  # whatever a transformer makes of other rows
                    raise ArrayError(
                        f"data: {type(step).__name__} refuses them: {error}"
                    ) from error
        x = as_array(x, "data", dtypes=("float32",), cast="float32", ndim=2)
        return {_INPUT: x[:, self._features] if self._linear else x}

    def n_rows(self, data: Any) -> int:
        """The rows that data hold."""
        return n_rows_of(data, self.inputs)

    def take(self, data: Any, index: Array) -> Any:
        """Those rows of ``data``, in that order."""
        return taken(data, index, self.inputs)

    def run(
        self,
        data: Any,
        taps: Sequence[str] = (),
        batch_size: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Outputs and tapped activations by name, batch by batch."""
        for feed in feeds_of(data, self.inputs):
            yield from self.network.run(self._rows(feed[_INPUT]), taps, batch_size, weights)

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once, the pipeline's first steps too."""
        first = first_batch(data, self.inputs, batch_size)[_INPUT]
        return lambda: self.network.forward(self._rows(first)[_INPUT])

    def match(self, x: Any, outputs: Any, max_iter: int = 25) -> tuple[float, float]:
        """In place: fit every parameter so that the outputs on ``x`` come close to ``outputs``."""
        return self.network.match(self._rows(x)[_INPUT], outputs, max_iter)

    def fit(
        self,
        x: Any,
        y: Any,
        optimizer: Any,
        epochs: int = 10,
        batch_size: int | None = 64,
        seed: Any = 0,
    ) -> list[float]:
        """In place: train the network on mini-batches of rows."""
        return self.network.fit(self._rows(x)[_INPUT], y, optimizer, epochs, batch_size, seed)

    def copy(self) -> EstimatorModel:
        """An independent copy."""
        made = copy.copy(self)
        made.network = self.network.copy()
        return made

    # --- the way back -----------------------------------------------------------------------

    def to_estimator(self) -> Any:
        """A fitted estimator with this model's weights.

        Returns
        -------
        estimator
            Of the original's class where scikit-learn can hold the weights: fewer hidden units,
            zero coefficients. Else (split layers, integer codes) a
            :class:`~fastopt.models.sklearn.CompactEstimator`. A pipeline keeps its first steps.
        """
        made = self._own_class()
        if made is None:
            fewer = len(self._features) < _width(self._last)
            made = CompactEstimator(
                self.network.copy(), _task(self._last), self._features.copy() if fewer else None,
                type(self._last).__name__ in _SOFTMAX,
            )  # fmt: skip
            made.n_features_in_ = _width(self._last)
        if not self._before:
            return made
        pipeline = copy.copy(self.estimator)
        before = [(name, copy.deepcopy(step)) for name, step in self.estimator.steps[:-1]]
        pipeline.steps = [*before, (self.estimator.steps[-1][0], made)]
        return pipeline

    def _own_class(self) -> Any:
        layers = list(self.network.layers.values())
        n_layers = 1 if self._linear else len(self._last.coefs_)
        if len(layers) != n_layers or any(x.stored is not None for x in layers):
            return None
        if any(x.form.name != "float32" for x in layers):
            return None
        weights = [np.array(x.weight.T) for x in layers]
        biases = [
            np.zeros(len(x.weight), np.float32) if x.bias is None else x.bias.copy()
            for x in layers
        ]
        if _binary(self._last):
            weights[-1] = weights[-1][:, 1:] - weights[-1][:, :1]
            biases[-1] = biases[-1][1:] - biases[-1][:1]
        made = copy.copy(self._last)
        if self._linear:
            whole = np.zeros((_width(self._last), weights[0].shape[1]), np.float32)
            whole[self._features] = weights[0]
            made.coef_ = whole.T.reshape(np.shape(self._last.coef_))
            bias = biases[0]  # a number where it was one and still can be
            if np.ndim(self._last.intercept_) == 0 and (bias == bias[0]).all():
                made.intercept_ = float(bias[0])
            else:
                made.intercept_ = bias
            return made
        made.coefs_, made.intercepts_ = weights, biases
        made.hidden_layer_sizes = tuple(w.shape[1] for w in weights[:-1])
        for name in ("_optimizer", "_coef_grads", "_intercept_grads"):  # of the old shapes
            vars(made).pop(name, None)
        if hasattr(made, "_best_coefs"):  # early stopping goes back to them
            made._best_coefs, made._best_intercepts = list(weights), list(biases)
        return made


# --- reading ------------------------------------------------------------------------------


def _width(last: Any) -> int:
    """Features that the last step takes."""
    weight = last.coefs_[0].T if hasattr(last, "coefs_") else getattr(last, "coef_", None)
    if weight is None:
        raise UnsupportedError(f"model: {type(last).__name__} is not fitted")
    return int(np.shape(weight)[-1])


def _task(last: Any) -> str:
    return "classifier" if hasattr(last, "classes_") else "regressor"


def _binary(last: Any) -> bool:
    """Whether a classifier has one output for two classes."""
    if not hasattr(last, "classes_"):
        return False
    n_out = last.n_outputs_ if hasattr(last, "coefs_") else np.atleast_2d(last.coef_).shape[0]
    return bool(n_out == 1)


def _network_of(last: Any) -> Network:
    name = type(last).__name__
    classes = getattr(last, "classes_", None)
    if classes is not None and np.ndim(classes) != 1:
        raise UnsupportedError(f"{name}: several labels per row")
    if hasattr(last, "coefs_"):
        if classes is not None and last.out_activation_ == "logistic" and last.n_outputs_ > 1:
            raise UnsupportedError(f"{name}: several labels per row")
        if last.out_activation_ not in ("identity", "softmax", "logistic"):
            raise UnsupportedError(f"{name}: outputs through {last.out_activation_}")
        weights, biases = [w.T for w in last.coefs_], list(last.intercepts_)
        act = {"logistic": "sigmoid"}.get(last.activation, last.activation)
    else:
        if hasattr(last.coef_, "tocsr"):
            raise UnsupportedError(f"{name}: a sparse coef_; call densify() first")
        weights = [np.atleast_2d(last.coef_)]
        shift = np.atleast_1d(np.asarray(last.intercept_, np.float64))
        biases, act = [np.broadcast_to(shift, (len(weights[0]),))], "identity"
    if _binary(last):
        weights[-1] = np.vstack([np.zeros_like(weights[-1]), weights[-1]])
        biases[-1] = np.concatenate([np.zeros_like(biases[-1]), biases[-1]])
    acts = [act] * (len(weights) - 1) + ["identity"]
    layers = [
        Dense(np.ascontiguousarray(w, np.float32), np.array(b, np.float32), a, f"coefs{k}")
        for k, (w, b, a) in enumerate(zip(weights, biases, acts, strict=True))
    ]
    for one, two in pairwise(layers):
        if two.weight.shape[1] != one.weight.shape[0]:
            raise UnsupportedError(f"{name}: its layers do not fit together")
    loss = "squared" if classes is None else "cross_entropy"
    return Network(layers, loss, classes)
