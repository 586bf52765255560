"""ONNX graphs behind the protocol: loading, layers, forms, groups, edits, saving."""

from fastopt.models.onnx.model import OnnxModel

__all__ = ["OnnxModel"]
