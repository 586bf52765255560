"""Row 2: parameter optimisation. torch.optim's names, defaults and numerics on NumPy arrays."""

from __future__ import annotations

from fastopt.optim import schedules
from fastopt.optim.adafactor import Adafactor
from fastopt.optim.adam import Adam, AdamW
from fastopt.optim.adaptive import Adadelta, Adagrad, RMSprop
from fastopt.optim.descent import DescendResult, descend
from fastopt.optim.files import load, save
from fastopt.optim.lion import Lion
from fastopt.optim.moments import LAMB, Adamax, NAdam, RAdam
from fastopt.optim.muon import Muon
from fastopt.optim.optimizer import Optimizer
from fastopt.optim.sgd import SGD

__all__ = [
    "LAMB",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "DescendResult",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "descend",
    "load",
    "save",
    "schedules",
]
