"""Row 5: passes over a model plus a search over their options, within a stated drop."""

from fastopt.compression.adapters import open_model
from fastopt.compression.explain import Compressed, Decision, Measures
from fastopt.compression.inspect import compare_models, inspect_model
from fastopt.compression.quantize import quantize_model
from fastopt.compression.recipe import Recipe
from fastopt.compression.run import apply_recipe, compress
from fastopt.compression.search import Candidate

__all__ = [
    "Candidate",
    "Compressed",
    "Decision",
    "Measures",
    "Recipe",
    "apply_recipe",
    "compare_models",
    "compress",
    "inspect_model",
    "open_model",
    "quantize_model",
]
