"""Integer and limited-precision quantisation: formats, conversions, products, methods.

Row 2: NumPy arrays in and out; no idea of a model.
"""

from __future__ import annotations

from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.casting import cast
from fastopt.quantization.embedding import EmbeddingQuantizer, TopK
from fastopt.quantization.fake import fake_quantize
from fastopt.quantization.feedback import Factor, factor_of, gptq, output_error
from fastopt.quantization.fixed_point import FixedPoint
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.functions import dequantize, quantize
from fastopt.quantization.gguf import from_gguf, to_gguf
from fastopt.quantization.linear import QuantizedLinear
from fastopt.quantization.matmul import PackedMatrix, matmul_integer, qlinear_matmul
from fastopt.quantization.onnx_ops import (
    dequantize_linear,
    dynamic_quantize,
    dynamic_quantize_linear,
    quantize_linear,
)
from fastopt.quantization.packing import pack_int4, unpack_int4
from fastopt.quantization.qparams import QParams, choose_qparams, qparams_from_range
from fastopt.quantization.scaling import AWQ, Smoothed, awq, hqq, smoothquant
from fastopt.quantization.storage import from_safetensors, to_onnx, to_safetensors

__all__ = [
    "AWQ",
    "EmbeddingQuantizer",
    "Factor",
    "FixedPoint",
    "Format",
    "PackedMatrix",
    "QParams",
    "QuantizedArray",
    "QuantizedLinear",
    "Smoothed",
    "TopK",
    "awq",
    "cast",
    "choose_qparams",
    "dequantize",
    "dequantize_linear",
    "dynamic_quantize",
    "dynamic_quantize_linear",
    "factor_of",
    "fake_quantize",
    "format_of",
    "from_gguf",
    "from_safetensors",
    "gptq",
    "hqq",
    "matmul_integer",
    "output_error",
    "pack_int4",
    "qlinear_matmul",
    "qparams_from_range",
    "quantize",
    "quantize_linear",
    "smoothquant",
    "to_gguf",
    "to_onnx",
    "to_safetensors",
    "unpack_int4",
]
