"""Row 5: passes over a model plus a search over their options, within a stated drop."""

from fastopt.compression.recipe import Recipe
from fastopt.compression.run import Compressed, Decision, Measures, compress

__all__ = ["Compressed", "Decision", "Measures", "Recipe", "compress"]
