"""Conversions between float32 and narrow formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, limit, peer
from fastopt import quantization as Q

N = 10_000_000
SIDE = 4096
SCALE = np.float32(0.02)


def normal(shape: int | tuple[int, ...]) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def ort_node(
    op: str, inputs: list[Any], out_dtype: str, threads: int, **attributes: Any
) -> Contender | None:
    """One operator in onnxruntime, input and output bound once: nothing is copied or allocated."""
    onnx, ort = peer("onnx"), peer("onnxruntime")
    if not (onnx and ort):
        return None
    h, (x, *constants) = onnx.helper, inputs
    kind = h.np_dtype_to_tensor_dtype
    names = [f"c{i}" for i in range(len(constants))]
    graph = h.make_graph(
        [h.make_node(op, ["x", *names], ["y"], **attributes)],
        "g",
        [h.make_tensor_value_info("x", kind(x.dtype), x.shape)],
        [h.make_tensor_value_info("y", kind(np.dtype(out_dtype)), x.shape)],
        [onnx.numpy_helper.from_array(c, n) for c, n in zip(constants, names)],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 19)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options)
    given = ort.OrtValue.ortvalue_from_numpy(x)
    made = ort.OrtValue.ortvalue_from_numpy(np.zeros(x.shape, out_dtype))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", made)
    return lambda: session.run_with_iobinding(binding)


def scales_of(axis: int | None) -> tuple[Any, Any]:
    shape = () if axis is None else (SIDE,)
    return np.full(shape, SCALE, np.float32), np.zeros(shape, np.int8)


def with_ones(a: Any, axis: int | None) -> Any:
    return a if axis is None else np.expand_dims(a, 1 - axis)


def quantise_int8(axis: int | None, shape: int | tuple[int, ...]) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        x, out = normal(shape), np.zeros(shape, np.int8)
        scale, zero = scales_of(axis)
        wide = with_ones(scale, axis)
        option = {} if axis is None else {"axis": axis}
        cases: dict[str, Contender | None] = {
            "fastopt": lambda: Q.quantize_linear(
                x, scale, zero, out=out, threads=threads, **option
            ),
            "limit": limit("copy4to1", x, out.copy(), threads=threads),
            "onnxruntime": ort_node("QuantizeLinear", [x, scale, zero], "int8", threads, **option),
            "numpy": lambda: np.clip(np.rint(x / wide), -128, 127).astype(np.int8),
        }
        if torch := peer("torch"):
            torch.set_num_threads(threads)
            t = torch.from_numpy(x)
            s, z = torch.from_numpy(np.atleast_1d(scale)), torch.zeros(np.size(zero), dtype=int)
            if axis is None:
                cases["torch"] = lambda: torch.quantize_per_tensor(t, float(SCALE), 0, torch.qint8)
            else:
                cases["torch"] = lambda: torch.quantize_per_channel(t, s, z, axis, torch.qint8)
        return cases

    return setup


def dequantise_int8(axis: int | None, shape: int | tuple[int, ...]) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        codes = np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)
        out = np.zeros(shape, np.float32)
        scale, zero = scales_of(axis)
        wide = with_ones(scale, axis)
        option = {} if axis is None else {"axis": axis}
        cases: dict[str, Contender | None] = {
            "fastopt": lambda: Q.dequantize_linear(
                codes, scale, zero, out=out, threads=threads, **option
            ),
            "limit": limit("copy1to4", codes, out.copy(), threads=threads),
            "onnxruntime": ort_node(
                "DequantizeLinear", [codes, scale, zero], "float32", threads, **option
            ),
            "numpy": lambda: codes.astype(np.float32) * wide,
        }
        if torch := peer("torch"):
            torch.set_num_threads(threads)
            t = torch.from_numpy(codes.astype(np.float32) * wide)
            s, z = torch.from_numpy(np.atleast_1d(scale)), torch.zeros(np.size(zero), dtype=int)
            if axis is None:
                q = torch.quantize_per_tensor(t, float(SCALE), 0, torch.qint8)
            else:
                q = torch.quantize_per_channel(t, s, z, axis, torch.qint8)
            cases["torch"] = q.dequantize
        return cases

    return setup


def cast_to(name: str) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        x = normal(N)
        out = Q.cast(x, name)
        cases: dict[str, Contender | None] = {
            "fastopt": lambda: Q.cast(x, name, out=out, threads=threads)
        }
        if peer("ml_dtypes"):
            cases["ml_dtypes"] = lambda: x.astype(out.dtype)
        if torch := peer("torch"):
            torch.set_num_threads(threads)
            t = torch.from_numpy(x)
            made = t.to(getattr(torch, name))
            cases["torch"] = lambda: made.copy_(t)
        return cases

    return setup


def fixed(rounding: str) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        x, q312 = normal(N), Q.FixedPoint(3, 12)
        rng = np.random.default_rng(0)

        def with_numpy() -> object:
            y = x * np.float32(4096)
            if rounding == "stochastic":
                y = np.floor(y + rng.random(y.size, dtype=np.float32))
            else:
                y = np.rint(y)
            return np.clip(y, -32768, 32767).astype(np.int16)

        return {
            "fastopt": lambda: q312.quantize(x, rounding=rounding, seed=0, threads=threads),
            "numpy": with_numpy,
        }

    return setup


INT8 = {"limit": 0.9, "onnxruntime": 1.05, "numpy": 10.0}
CASES = [
    Case(f"float32 -> int8, {label}", quantise_int8(axis, shape), threads, targets)
    for threads in (1, 2)
    for label, axis, shape, targets in (
        ("10M, per tensor", None, N, INT8),
        ("4096^2, axis 0", 0, (SIDE, SIDE), {**INT8, "torch": 15.0}),
        ("4096^2, axis 1", 1, (SIDE, SIDE), {**INT8, "onnxruntime": 100.0, "torch": 15.0}),
    )
] + [
    Case(f"int8 -> float32, {label}", dequantise_int8(axis, shape), threads, targets)
    for threads in (1, 2)
    for label, axis, shape, targets in (
        ("10M, per tensor", None, N, {"limit": 0.9, "onnxruntime": 1.05}),
        ("4096^2, axis 0", 0, (SIDE, SIDE), {"limit": 0.9, "onnxruntime": 1.05, "torch": 15.0}),
        ("4096^2, axis 1", 1, (SIDE, SIDE), {"limit": 0.9, "onnxruntime": 10.0, "torch": 15.0}),
    )
]

CASES += [
    Case(f"float32 -> {name}, 10M", cast_to(name), threads, {"ml_dtypes": wanted, "torch": 1.0})
    for threads in (1, 2)
    for name, wanted in (("bfloat16", 1.7), ("float8_e4m3fn", 24.0), ("float8_e5m2", 24.0))
]
CASES += [
    Case(f"float32 -> q3.12 {rounding}, 10M", fixed(rounding), threads, {"numpy": wanted})
    for threads in (1, 2)
    for rounding, wanted in (("nearest", 10.0), ("stochastic", 13.0))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_quantize(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
