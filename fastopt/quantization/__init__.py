"""Integer and limited-precision quantisation: formats, conversions, products, methods.

Row 2: NumPy arrays in and out; no idea of a model.
"""

from __future__ import annotations

from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.awq import AWQ, awq
from fastopt.quantization.casting import cast
from fastopt.quantization.choose_qparams import choose_qparams
from fastopt.quantization.embedding import EmbeddingQuantizer, TopK
from fastopt.quantization.fake_quantize import fake_quantize
from fastopt.quantization.fixed_point import FixedPoint
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.gguf import to_gguf
from fastopt.quantization.gptq import Factor, factor_of, gptq, output_error
from fastopt.quantization.histograms import HistogramObserver, PercentileObserver
from fastopt.quantization.hqq import hqq
from fastopt.quantization.linear import QuantizedLinear
from fastopt.quantization.matmul import PackedMatrix, matmul_integer, qlinear_matmul
from fastopt.quantization.observers import MinMaxObserver, MovingAverageMinMaxObserver
from fastopt.quantization.onnx_ops import (
    dequantize_linear,
    dynamic_quantize,
    dynamic_quantize_linear,
    quantize_linear,
)
from fastopt.quantization.packing import pack_int4, unpack_int4
from fastopt.quantization.qparams import QParams, qparams_from_range
from fastopt.quantization.quantize import dequantize, quantize
from fastopt.quantization.smoothquant import Smoothed, smoothquant
from fastopt.quantization.storage import to_onnx, to_safetensors

from_gguf = QuantizedArray.from_gguf
from_safetensors = QuantizedArray.from_safetensors

__all__ = [
    "AWQ",
    "EmbeddingQuantizer",
    "Factor",
    "FixedPoint",
    "Format",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PackedMatrix",
    "PercentileObserver",
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
