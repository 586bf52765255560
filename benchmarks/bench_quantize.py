"""Conversions between float32 and narrow formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
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
        item = out.dtype.itemsize
        cases: dict[str, Contender | None] = {
            "fastopt": lambda: Q.cast(x, name, out=out, threads=threads),
            "limit": limit(f"copy4to{item}", x, np.zeros(N, f"u{item}"), threads=threads),
        }
        if peer("ml_dtypes") and name != "float16":
            cases["ml_dtypes"] = lambda: x.astype(out.dtype)
        if torch := peer("torch"):
            torch.set_num_threads(threads)
            t = torch.from_numpy(x)
            made = t.to(getattr(torch, name))
            cases["torch"] = lambda: made.copy_(t)
        return cases

    return setup


def cast_from(name: str) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        x = normal(N)
        narrow, out = Q.cast(x, name), np.zeros(N, np.float32)
        item = narrow.dtype.itemsize
        cases: dict[str, Contender | None] = {
            "fastopt": lambda: Q.cast(narrow, "float32", out=out, threads=threads),
            "limit": limit(f"copy{item}to4", np.zeros(N, f"u{item}"), x.copy(), threads=threads),
        }
        if peer("ml_dtypes") and name != "float16":
            cases["ml_dtypes"] = lambda: narrow.astype(np.float32)
        if torch := peer("torch"):
            torch.set_num_threads(threads)
            given = torch.from_numpy(x).to(getattr(torch, name))
            made = torch.zeros(N)
            cases["torch"] = lambda: made.copy_(given)
        return cases

    return setup


SLICE = 200_000  # where a peer would need minutes for N


def fixed(rounding: str) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        x, q312 = normal(N), Q.FixedPoint(3, 12)
        out = np.zeros(N, np.int16)
        rng = np.random.default_rng(0)

        def with_numpy() -> object:
            y = x * np.float32(4096)
            if rounding == "stochastic":
                y = np.floor(y + rng.random(y.size, dtype=np.float32))
            else:
                y = np.rint(y)
            return np.clip(y, -32768, 32767).astype(np.int16)

        cases: dict[str, Contender | None] = {
            "fastopt": lambda: q312.quantize(x, rounding=rounding, seed=0, threads=threads),
            "limit": limit("copy4to2", x, out.view(np.uint16), threads=threads),
            "numpy": with_numpy,
        }
        if torch := peer("torch"):
            torch.set_num_threads(threads)
            t = torch.from_numpy(x)

            def with_torch() -> object:
                y = t * 4096
                y = torch.floor(y + torch.rand(N)) if rounding == "stochastic" else torch.round(y)
                return torch.clamp(y, -32768, 32767).to(torch.int16)

            cases["torch"] = with_torch
        return cases

    return setup


def fixed_slice(rounding: str) -> Any:
    """Against the fixed-point packages, 0.2M elements for everybody."""

    def setup(threads: int) -> dict[str, Contender | None]:
        x, q312 = normal(SLICE), Q.FixedPoint(3, 12)
        cases: dict[str, Contender | None] = {
            "fastopt": lambda: q312.quantize(x, rounding=rounding, seed=0, threads=threads)
        }
        if apy := peer("apytypes"):
            modes = apy.QuantizationMode
            mode = modes.TIES_EVEN if rounding == "nearest" else modes.STOCH_WEIGHTED
            wide = apy.APyFixedArray.from_float(x.astype(np.float64), int_bits=10, frac_bits=40)
            cases["apytypes (cast from 50 bits)"] = lambda: wide.cast(
                int_bits=4, frac_bits=12, quantization=mode, overflow=apy.OverflowMode.SAT
            )
        if rounding == "nearest" and (fxp := peer("fxpmath")):
            cases["fxpmath"] = lambda: fxp.Fxp(
                x, signed=True, n_word=16, n_frac=12, rounding="around", overflow="saturate"
            )
        return cases

    return setup


def fake(axis: int | None) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        x = normal((SIDE, SIDE))
        out = np.zeros_like(x)
        scale, _ = scales_of(axis)
        wide = with_ones(scale, axis)
        cases: dict[str, Contender | None] = {
            "fastopt": lambda: Q.fake_quantize(
                x, axis=axis, scale=scale, out=out, threads=threads
            ),
            "numpy": lambda: np.clip(np.rint(x / wide), -127, 127) * wide,
        }
        if torch := peer("torch"):
            torch.set_num_threads(threads)
            t, s = torch.from_numpy(x), torch.from_numpy(np.atleast_1d(scale))
            if axis is None:
                cases["torch"] = lambda: torch.fake_quantize_per_tensor_affine(
                    t, float(SCALE), 0, -127, 127
                )
            else:
                z = torch.zeros(SIDE, dtype=torch.int32)
                cases["torch"] = lambda: torch.fake_quantize_per_channel_affine(
                    t, s, z, axis, -127, 127
                )
        return cases

    return setup


def int4_encode(threads: int) -> dict[str, Contender | None]:
    """Scales chosen, codes made and packed: groups of 128 (ggml's Q4_0 has groups of 32)."""
    w = normal((SIDE, SIDE))
    groups = w.reshape(SIDE, SIDE // 128, 128)

    def with_numpy() -> object:
        scale = np.abs(groups).max(-1, keepdims=True) / np.float32(7)
        q = np.clip(np.rint(groups / scale), -7, 7).astype(np.int8) & 15
        return q[..., ::2] | (q[..., 1::2] << 4), scale

    cases: dict[str, Contender | None] = {
        "fastopt": lambda: fastopt.quantize(w, "int4", group_size=128, threads=threads),
        "limit": limit("copy4to1", w, np.zeros(w.shape, np.uint8), threads=threads),
        "numpy": with_numpy,
    }
    if peer("onnxruntime"):
        from onnxruntime.capi._pybind_state import quantize_matmul_4bits

        packed = np.zeros((SIDE, SIDE // 128, 64), np.uint8)
        scale = np.zeros(SIDE * SIDE // 128, np.float32)
        zero = np.zeros(SIDE * SIDE // 256, np.uint8)
        cases["onnxruntime"] = lambda: quantize_matmul_4bits(
            packed, w, scale, zero, 128, SIDE, SIDE, True
        )
    if gguf := peer("gguf"):
        cases["gguf Q4_0"] = lambda: gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q4_0)
    return cases


def int4_decode(threads: int) -> dict[str, Contender | None]:
    w = normal((SIDE, SIDE))
    q, out = fastopt.quantize(w, "int4", group_size=128), np.zeros_like(w)
    packed, scale = q.codes, q.scale[..., None]

    def with_numpy() -> object:
        pair = np.stack([packed & 15, packed >> 4], -1).view(np.int8)
        codes = ((pair ^ 8) - 8).reshape(SIDE, SIDE // 128, 128)
        return codes.astype(np.float32) * scale

    cases: dict[str, Contender | None] = {
        "fastopt": lambda: q.dequantize(out, threads=threads),
        "limit": limit("copy1to4", np.zeros(w.shape, np.uint8), w, threads=threads),
        "numpy": with_numpy,
    }
    if gguf := peer("gguf"):
        kind = gguf.GGMLQuantizationType.Q4_0
        blocks = gguf.quants.quantize(normal((SIDE, SIDE)), kind)
        cases["gguf Q4_0"] = lambda: gguf.quants.dequantize(blocks, kind)
    return cases


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
    Case(f"float32 -> {name}, 10M", cast_to(name), threads, targets)
    for threads in (1, 2)
    for name, targets in (
        ("bfloat16", {"limit": 0.9, "ml_dtypes": 1.7, "torch": 1.0}),
        ("float16", {"limit": 0.9, "torch": 1.0}),
        ("float8_e4m3fn", {"limit": 0.9, "ml_dtypes": 24.0, "torch": 1.0}),
        ("float8_e5m2", {"limit": 0.9, "ml_dtypes": 24.0, "torch": 1.0}),
    )
]
CASES += [
    Case(f"{name} -> float32, 10M", cast_from(name), threads, targets)
    for threads in (1, 2)
    for name, targets in (
        ("bfloat16", {"limit": 0.9, "ml_dtypes": 1.7, "torch": 1.0}),
        ("float16", {"limit": 0.9, "torch": 1.0}),
        ("float8_e4m3fn", {"limit": 0.9, "ml_dtypes": 24.0, "torch": 1.0}),
    )
]
CASES += [
    Case(f"float32 -> q3.12 {rounding}, 10M", fixed(rounding), threads, targets)
    for threads in (1, 2)
    for rounding, targets in (
        ("nearest", {"numpy": 10.0, "limit": 0.9}),
        ("stochastic", {"numpy": 13.0, "torch": 29.0}),
    )
]
CASES += [
    Case(f"float32 -> q3.12 {rounding}, 0.2M", fixed_slice(rounding), 1, targets)
    for rounding, targets in (
        ("nearest", {"apytypes (cast from 50 bits)": 25.0, "fxpmath": 1000.0}),
        ("stochastic", {"apytypes (cast from 50 bits)": 25.0}),
    )
]
CASES += [
    Case(f"fake_quantize int8, 4096^2, {label}", fake(axis), threads, {"torch": 1.5})
    for threads in (1, 2)
    for label, axis in (("per tensor", None), ("axis 0", 0), ("axis 1", 1))
]
CASES += [
    Case(label, setup, threads, targets)
    for threads in (1, 2)
    for label, setup, targets in (
        (
            "float32 -> int4 g128 packed, 4096^2",
            int4_encode,
            {"onnxruntime": 40.0, "gguf Q4_0": 23.0, "numpy": 15.0},
        ),
        ("int4 g128 packed -> float32, 4096^2", int4_decode, {"limit": 0.9, "numpy": 15.0}),
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_quantize(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
