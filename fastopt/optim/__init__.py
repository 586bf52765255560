"""Row 2: parameter optimisation. torch.optim's names, defaults and numerics on NumPy arrays."""

from __future__ import annotations

from fastopt.optim.adam import Adam, AdamW
from fastopt.optim.descent import DescendResult, descend
from fastopt.optim.optimizer import Optimizer
from fastopt.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "DescendResult", "Optimizer", "descend"]
