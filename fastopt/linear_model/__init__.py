"""Linear models: scikit-learn estimators on fused mini-batch kernels, NumPy alone to import."""

from fastopt.linear_model._estimator import ConvergenceWarning, NotFittedError
from fastopt.linear_model.least_squares import LinearRegression, Ridge
from fastopt.linear_model.logistic import LogisticRegression
from fastopt.linear_model.sgd import SGDClassifier, SGDRegressor

__all__ = [
    "ConvergenceWarning",
    "LinearRegression",
    "LogisticRegression",
    "NotFittedError",
    "Ridge",
    "SGDClassifier",
    "SGDRegressor",
]
