"""Row 4: models behind one protocol. A pass sees layers, groups and taps, never a format."""

from fastopt.models.base import Fittable, Group, Layer, Model
from fastopt.models.network import Dense, Network
from fastopt.models.onnx import OnnxModel

__all__ = ["Dense", "Fittable", "Group", "Layer", "Model", "Network", "OnnxModel"]
