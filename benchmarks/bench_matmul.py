"""Integer matrix products and quantised linear layers against fp32 and other integer routes.

Peers keep a constant weight packed, as we do. onnxruntime's MatMulInteger and
DynamicQuantizeMatMul saturate on CPUs without 8-bit dot products; ours is exact everywhere.
"limit" is our own micro-kernel on operands that stay in the first-level cache.
FASTOPT_ISA=v3 shows what CPUs with AVX2 and without AVX-512 get.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, peer
from fastopt._kernels import matmul as kernel
from fastopt.quantization import PackedMatrix, QuantizedLinear, matmul_integer

SHAPES = ((768, 3072), (4096, 4096))  # K, N
ROWS = (1, 32, 512)
COPIES = 4  # of a weight that is to be cold when one row meets it


def ort_session(
    node: Any, x: Any, out: Any, constants: dict[str, Any], threads: int
) -> Contender | None:
    """One operator with constant weights, input and output bound once."""
    onnx, ort = peer("onnx"), peer("onnxruntime")
    assert onnx is not None
    assert ort is not None
    h = onnx.helper
    kind = h.np_dtype_to_tensor_dtype
    graph = h.make_graph(
        [node],
        "g",
        [h.make_tensor_value_info("x", kind(x.dtype), x.shape)],
        [h.make_tensor_value_info("y", kind(out.dtype), out.shape)],
        [onnx.numpy_helper.from_array(c, n) for n, c in constants.items()],
    )
    opsets = [h.make_opsetid("", 19), h.make_opsetid("com.microsoft", 1)]
    model = h.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), options)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(out))
    return lambda: session.run_with_iobinding(binding)


def ort_node(op: str, names: list[str], **attributes: Any) -> Any:
    onnx = peer("onnx")
    if onnx is None or peer("onnxruntime") is None:
        return None
    domain = "" if op in ("MatMulInteger", "MatMul") else "com.microsoft"
    return onnx.helper.make_node(op, ["x", *names], ["y"], domain=domain, **attributes)


def ort_int8(x: Any, codes: Any, threads: int) -> Contender | None:
    """MatMulInteger with uint8 activations and int8 weights (K, N)."""
    if (node := ort_node("MatMulInteger", ["b"])) is None:
        return None
    out = np.zeros((len(x), codes.shape[1]), np.int32)
    return ort_session(node, x, out, {"b": codes}, threads)


def ort_dynamic(x: Any, codes: Any, threads: int) -> Contender | None:
    if (node := ort_node("DynamicQuantizeMatMul", ["b", "s"])) is None:
        return None
    constants = {"b": codes, "s": np.full(codes.shape[1], 0.01, np.float32)}
    out = np.zeros((len(x), codes.shape[1]), np.float32)
    return ort_session(node, x, out, constants, threads)


def ort_nbits(x: Any, n: int, group: int, threads: int) -> Contender | None:
    """MatMulNBits, 4 bits, integer accumulation (accuracy level 4)."""
    k = x.shape[1]
    node = ort_node(
        "MatMulNBits", ["b", "s"], K=k, N=n, bits=4, block_size=group, accuracy_level=4
    )
    if node is None:
        return None
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (n, k // group, group // 2), dtype=np.uint8)
    constants = {"b": blocks, "s": np.full(n * (k // group), 0.01, np.float32)}
    return ort_session(node, x, np.zeros((len(x), n), np.float32), constants, threads)


def rotating(calls: list[Contender | None]) -> Contender | None:
    """Each call uses the next copy of the weight, so that none is in a cache."""
    if any(call is None for call in calls):
        return None
    turn = itertools.cycle(calls)
    return lambda: next(turn)()  # type: ignore[misc]


def float_peers(x: Any, w: Any, threads: int) -> dict[str, Contender | None]:
    """fp32 by OpenBLAS and MKL, and torch's dynamically quantised layer; w is (N, K)."""
    wt = np.ascontiguousarray(w.T)
    out = np.zeros((len(x), len(w)), np.float32)
    limits = peer("threadpoolctl")
    if limits is not None:
        limits.threadpool_limits(threads)
    cases: dict[str, Contender | None] = {"OpenBLAS fp32": lambda: np.matmul(x, wt, out=out)}
    if torch := peer("torch"):
        torch.set_num_threads(threads)
        tx, tw = torch.from_numpy(x), torch.from_numpy(w)
        cases["MKL fp32 (torch)"] = lambda: torch.nn.functional.linear(tx, tw)
        layer = torch.nn.Linear(w.shape[1], w.shape[0])
        layer.weight.data = tw
        try:
            dynamic = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(layer), {torch.nn.Linear}
            )
            cases["torch dynamic int8"] = lambda: dynamic(tx)
        except (AttributeError, RuntimeError):
            pass
    return cases


def data(m: int, k: int, n: int) -> tuple[Any, Any, Any, Any]:
    """Codes of a and b (K, N), floats x and w (N, K)."""
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (m, k), dtype=np.uint8)
    b = rng.integers(-127, 128, (k, n), dtype=np.int8)
    x = rng.standard_normal((m, k), dtype=np.float32)
    return a, b, x, (b.T * np.float32(0.001)).copy()


def micro_kernel(m: int, n: int, k: int, threads: int) -> Contender:
    """The same multiply-adds by the bare inner loop, its operands in the first-level cache."""
    repeat = max(1, round(m * n * k / threads / kernel.micro_kernel(1)))
    return lambda: kernel.micro_kernel(repeat)


def integer_product(m: int, k: int, n: int) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        a, b, x, w = data(m, k, n)
        packed, out = PackedMatrix(b), np.zeros((m, n), np.int32)
        return {
            "fastopt": lambda: matmul_integer(a, packed, out=out, threads=threads),
            "limit": micro_kernel(m, n, k, threads) if m >= 32 else None,
            "onnxruntime MatMulInteger u8s8": ort_int8(a, b, threads),
            "onnxruntime MatMulInteger s8s8": ort_int8((a ^ 0x80).view(np.int8), b, threads)
            if m < 512
            else None,
            **{k: v for k, v in float_peers(x, w, threads).items() if "fp32" in k},
        }

    return setup


def linear_w8a8(m: int, k: int, n: int) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        _, b, x, w = data(m, k, n)
        layer, out = QuantizedLinear(w, scheme="w8a8"), np.zeros((m, n), np.float32)
        return {
            "fastopt": lambda: layer(x, out, threads=threads),
            "onnxruntime DynamicQuantizeMatMul": ort_dynamic(x, b, threads),
            **float_peers(x, w, threads),
        }

    return setup


def linear_w4a8(m: int, k: int, n: int) -> Any:
    def setup(threads: int) -> dict[str, Contender | None]:
        copies = COPIES if m == 1 else 1
        a, b, x, w = data(m, k, n)
        layers = [QuantizedLinear(w, scheme="w4a8", group_size=128) for _ in range(copies)]
        out = np.zeros((m, n), np.float32)
        ours: list[Contender | None] = [
            lambda layer=layer: layer(x, out, threads=threads)  # type: ignore[misc]
            for layer in layers
        ]
        return {
            "fastopt": rotating(ours),
            "onnxruntime MatMulNBits": rotating(
                [ort_nbits(x, n, 128, threads) for _ in range(copies)]
            ),
            "onnxruntime MatMulInteger u8s8": rotating(
                [ort_int8(a, b, threads) for _ in range(copies)]
            ),
        }

    return setup


FP32 = {"OpenBLAS fp32": 1.8, "MKL fp32 (torch)": 1.8}
CASES = [
    case
    for threads in (1, 2)
    for k, n in SHAPES
    for m in ROWS
    for case in (
        Case(
            f"u8 x s8 exact, {m} x {k} x {n}",
            integer_product(m, k, n),
            threads=threads,
            targets={"onnxruntime MatMulInteger u8s8": 0.9, **FP32},
        ),
        Case(
            f"QuantizedLinear w8a8, {m} x {k} x {n}",
            linear_w8a8(m, k, n),
            threads=threads,
            targets={"torch dynamic int8": 1.15, **FP32},
        ),
        Case(
            f"QuantizedLinear w4a8 g128, {m} x {k} x {n}",
            linear_w4a8(m, k, n),
            threads=threads,
            targets={"onnxruntime MatMulNBits": 2.0}
            if m > 1
            else {"onnxruntime MatMulInteger u8s8": 1.9},
        ),
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matmul(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
