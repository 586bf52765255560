"""scikit-learn's estimators: neural networks, linear models, pipelines and tree ensembles."""

from fastopt.models.sklearn.compact import CompactEstimator
from fastopt.models.sklearn.ensembles import is_ensemble, read_ensemble
from fastopt.models.sklearn.estimators import EstimatorModel, is_estimator

__all__ = ["CompactEstimator", "EstimatorModel", "is_ensemble", "is_estimator", "read_ensemble"]
