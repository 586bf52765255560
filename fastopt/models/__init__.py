"""Row 4: models behind one protocol. A pass sees layers, groups and taps, never a format."""

from fastopt.models.arrays import ArrayModel
from fastopt.models.base import Form, Group, Input, Layer, Member, Model
from fastopt.models.network import Dense, Network
from fastopt.models.onnx import OnnxModel

__all__ = [
    "ArrayModel",
    "Dense",
    "Form",
    "Group",
    "Input",
    "Layer",
    "Member",
    "Model",
    "Network",
    "OnnxModel",
]
