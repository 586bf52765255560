"""An estimator for weights that scikit-learn's own classes cannot hold."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_labels, as_ndarray, as_numbers
from fastopt._options import choice
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.models.network import Network

__all__ = ["CompactEstimator"]


class CompactEstimator:
    """A fitted network with the methods of a scikit-learn estimator.

    Parameters
    ----------
    network : Network
        Logits for a classifier, values for a regressor.
    task : {"classifier", "regressor"}
    features : (n,) intp, optional
        The columns of X that the network reads; all by default.
    proba : bool
        Whether the softmax of the outputs are probabilities (not of a support vector machine).

    Attributes
    ----------
    classes_ : array
        Of a classifier.
    n_features_in_ : int

    Notes
    -----
    ``compress`` returns one where a layer was split in two or stored as integers. It pickles in
    the bytes that the network saves in, and works as the last step of a Pipeline. A clone has
    the same weights: there is nothing to fit.
    """

    def __init__(
        self,
        network: Network,
        task: str = "classifier",
        features: Any = None,
        proba: bool = True,
    ) -> None:
        self.network = network
        self.proba = proba
        self.task = choice(task, "task", ("classifier", "regressor"))
        if not isinstance(network, Network):
            raise DTypeError(f"network: expected a Network, got {type(network).__name__}")
        self.features = None if features is None else as_ndarray(features, "features")
        if self.features is not None and (
            self.features.dtype.kind not in "iu"
            or self.features.shape != network.inputs[0].shape[1:]
            or self.features.min(initial=0) < 0
        ):
            raise ArrayError(
                f"features: expected the {network.inputs[0].shape[1]} columns to read"
            )
        self.features = None if self.features is None else self.features.astype(np.intp)
        if task == "classifier":
            n_classes = next(reversed(network.layers.values())).weight.shape[0]
            known = network.classes
            self.classes_ = np.arange(n_classes) if known is None else np.asarray(known)
        self.n_features_in_ = network.inputs[0].shape[1]

    # ------------------------------------------------------------------ predicting
    def _outputs(self, X: Any) -> Array:
        shape = (None, self.n_features_in_)
        x = as_array(X, "X", dtypes=("float32",), cast="float32", shape=shape)
        if self.features is not None and self.features.max(initial=-1) >= x.shape[1]:
            raise ArrayError(f"X: has {x.shape[1]} columns, column {self.features.max()} is read")
        return self.network.forward(x if self.features is None else x[:, self.features])

    def decision_function(self, X: Any) -> Array:
        """Logits, (rows, classes), or (rows,) of the second of two classes."""
        self._needs_classes("decision_function")
        z = self._outputs(X)
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities, (rows, classes)."""
        self._needs_classes("predict_proba")
        if not self.proba:
            raise AttributeError("predict_proba: the original has no probabilities")
        z = self._outputs(X)
        p: Array = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p

    def predict(self, X: Any) -> Array:
        """Class labels, or values (rows,) or (rows, n_outputs)."""
        z = self._outputs(X)
        if self.task == "classifier":
            labels: Array = self.classes_[z.argmax(axis=1)]
            return labels
        return z[:, 0] if z.shape[1] == 1 else z

    def score(self, X: Any, y: Any) -> float:
        """Accuracy of a classifier, R^2 of a regressor."""
        found = self.predict(X)
        truth = as_labels(y, "y") if self.task == "classifier" else as_numbers(y, "y")
        if truth.shape != found.shape:
            raise ArrayError(f"y: expected shape {found.shape}, got {truth.shape}")
        if self.task == "classifier":
            return float((found == truth).mean())
        spread = ((truth - truth.mean(axis=0)) ** 2).sum()
        return float(1.0 - ((truth - found) ** 2).sum() / spread)

    def _needs_classes(self, name: str) -> None:
        if self.task != "classifier":
            raise AttributeError(f"{name}: a regressor has no classes")

    # ------------------------------------------------------------------ scikit-learn
    def fit(self, X: Any, y: Any = None) -> CompactEstimator:
        """Nothing to do: the weights are those that were given."""
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters."""
        names = ("network", "task", "features", "proba")
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> CompactEstimator:
        """In place: replace constructor parameters."""
        if unknown := set(params) - set(self.get_params()):
            raise OptionError(f"params: no parameter named {', '.join(sorted(unknown))}")
        self.__init__(**{**self.get_params(), **params})  # type: ignore[misc]
        return self

    @property
    def _estimator_type(self) -> str:
        return self.task

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifier = self.task == "classifier"
        return Tags(
            estimator_type=self.task,
            target_tags=TargetTags(required=False),
            transformer_tags=None,
            classifier_tags=ClassifierTags() if classifier else None,
            regressor_tags=None if classifier else RegressorTags(),
            input_tags=InputTags(),
        )

    def __repr__(self) -> str:
        return f"CompactEstimator({self.network!r}, task={self.task!r})"

    # ------------------------------------------------------------------ plain data
    def __getstate__(self) -> dict[str, Any]:
        """The network as the bytes of its file: integer codes, not the values they stand for."""
        with tempfile.TemporaryDirectory(prefix="fastopt-") as folder:
            path = os.path.join(folder, "network.npz")
            self.network.save(path)
            with open(path, "rb") as file:
                data = file.read()
        return {k: v for k, v in vars(self).items() if k != "network"} | {"file": data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        with tempfile.TemporaryDirectory(prefix="fastopt-") as folder:
            path = os.path.join(folder, "network.npz")
            with open(path, "wb") as file:
                file.write(rest.pop("file"))
            vars(self).update(rest, network=Network.load(path))
