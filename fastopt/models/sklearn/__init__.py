"""scikit-learn's estimators."""

from fastopt.models.sklearn.ensembles import is_ensemble, read_ensemble

__all__ = ["is_ensemble", "read_ensemble"]
