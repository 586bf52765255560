"""ONNX's own node tests through our operators, compared exactly; dynamic quantisation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fastopt import quantization as Q
from fastopt.errors import ArrayError, OptionError

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

KINDS = (
    "test_quantizelinear",
    "test_dequantizelinear",
    "test_dynamicquantizelinear",
    "test_cast_",
)
# Casts of formats that are not offered, and the same nodes written out as several.
LEFT_OUT = ("INT2", "FNUZ", "FLOAT4", "E8M0", "_expanded")
CASTS = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
CASTS |= {"FLOAT8E4M3FN": "float8_e4m3fn", "FLOAT8E5M2": "float8_e5m2"}


def cases():
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return [
        c
        for c in found
        if c.name.startswith(KINDS)
        and not any(k in c.name for k in LEFT_OUT)
        and (not c.name.startswith("test_cast_") or set(cast_types(c.name)) <= CASTS.keys())
    ]


def cast_types(name):
    """Source and target; casts of other types are NumPy's own astype and not ours."""
    return name.removeprefix("test_cast_").removeprefix("no_saturate_").split("_to_")


def array(value):
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def same(got, wanted):
    assert got.shape == wanted.shape
    assert got.dtype.itemsize == wanted.dtype.itemsize
    np.testing.assert_array_equal(got.astype("f8"), wanted.astype("f8"))


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_node(case):
    inputs, outputs = ([array(v) for v in part] for part in case.data_sets[0])
    (node,) = case.model.graph.node
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Cast":
        target = cast_types(case.name)[1]
        got = Q.cast(inputs[0], CASTS[target], saturate=bool(options.get("saturate", 1)))
        same(got, outputs[0])
        return
    if node.op_type == "DynamicQuantizeLinear":
        for got, wanted in zip(Q.dynamic_quantize_linear(inputs[0]), outputs, strict=True):
            same(got, wanted)
        return
    kind = options.pop("output_dtype", None)
    if kind is not None:
        options["output_dtype"] = onnx.helper.tensor_dtype_to_np_dtype(kind).name
    call = Q.quantize_linear if node.op_type == "QuantizeLinear" else Q.dequantize_linear
    same(call(*inputs, **options), outputs[0])


@pytest.mark.filterwarnings("ignore")
def test_the_node_tests_are_there():
    from onnx.backend.test.loader import load_model_tests

    names = [c.model.graph.node[0].op_type for c in CASES]
    whole = [
        c.name for c in load_model_tests(kind="node")
        if c.model.graph.node and len(c.model.graph.node) == 1
        and c.model.graph.node[0].op_type in ("QuantizeLinear", "DequantizeLinear")
    ]  # fmt: skip
    assert {c.name for c in CASES} >= set(whole)  # every one, of 2 to 16 bits and float4 too
    assert len(whole) >= 27  # with 3 here and the 9 of test_matmul.py: the 39 of quantisation
    assert names.count("DynamicQuantizeLinear") == 3
    assert sum(c.name.count("FLOAT8") > 0 for c in CASES) >= 10


@pytest.mark.parametrize("values", [[0, 0], [3, 3], [-3, -3], [1e-40, 0], [-5, 9, 2.5]])
def test_dynamic_quantize_linear_matches_onnxruntime(values):
    ort = pytest.importorskip("onnxruntime")
    h = onnx.helper
    node = h.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    kinds = (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8)
    graph = h.make_graph(
        [node],
        "g",
        [h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [len(values)])],
        [h.make_tensor_value_info(n, k, None) for n, k in zip("ysz", kinds, strict=True)],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 19)], ir_version=9)
    x = np.array(values, "f4")
    wanted = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    for got, want in zip(Q.dynamic_quantize_linear(x), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 33), (9,), (600, 1000), (0, 4)])
def test_dynamic_quantize_is_quantize_row_by_row(shape, dtype, symmetric, rng):
    x = (rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:-1], 1)))).astype("f4")
    q = Q.dynamic_quantize(x, dtype, symmetric=symmetric, threads=2)
    wanted = Q.quantize(x, dtype, axis=-1, group_size=shape[-1], symmetric=symmetric, threads=1)
    for name in ("codes", "scale", "zero_point"):
        np.testing.assert_array_equal(getattr(q, name), getattr(wanted, name))
    np.testing.assert_array_equal(q.dequantize(), wanted.dequantize())


def test_dynamic_quantize_refuses():
    with pytest.raises(ArrayError, match="x"):
        Q.dynamic_quantize(np.array([[1.0, np.nan]], "f4"))
    with pytest.raises(ArrayError, match="x"):
        Q.dynamic_quantize_linear(np.array([np.inf], "f4"))
    with pytest.raises(OptionError, match="dtype"):
        Q.dynamic_quantize(np.ones((2, 2), "f4"), "q3.12")
    one = Q.cast(np.ones((), "f4"), "float8_e5m2")
    with pytest.raises(ArrayError, match="zero_point"):
        Q.quantize_linear(np.ones(2, "f4"), 1.0, one)


def test_plain_numbers_take_the_dtype_of_what_they_go_with() -> None:
    x, codes = np.array([-1.0, 0.25], "f4"), np.array([1, 255], "u1")
    assert Q.quantize_linear(x, 0.5, 3).tolist() == [1, 3]
    assert Q.quantize_linear(x, 0.5, -3, output_dtype="int8").tolist() == [-5, -3]
    assert Q.quantize_linear(x, 0.5, -3, out=np.empty(2, "i2")).tolist() == [-5, -3]
    assert Q.quantize_linear(x, 0.5, 7, output_dtype="int4").tolist() == [5, 7]
    back = Q.dequantize_linear(codes, 0.1, 2)
    assert back.dtype == np.float32
    assert np.array_equal(back, np.array([-1, 253], "f4") * np.float32(0.1))
    assert Q.dequantize_linear(codes, np.float64(0.1)).dtype == np.float64


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda x: Q.quantize_linear(x, 0.5, 256), ArrayError, "zero_point"),
        (lambda x: Q.quantize_linear(x, 0.5, 8, output_dtype="int4"), ArrayError, "zero_point"),
        (
            lambda x: Q.quantize_linear(x, 0.5, np.uint8(20), output_dtype="uint4"),
            ArrayError,
            "zero_point",
        ),
        (
            lambda x: Q.quantize_linear(x, 0.5, np.uint8(1), output_dtype="int8"),
            OptionError,
            "output_dtype",
        ),
        (lambda x: Q.quantize_linear(x, 0.0), ArrayError, "scale"),
        (lambda x: Q.quantize_linear(x, [0.5, np.nan], axis=0), ArrayError, "scale"),
        (lambda x: Q.quantize_linear(x, np.inf), ArrayError, "scale"),
        (lambda x: Q.dequantize_linear(x.astype("i1"), 0.5, 128), ArrayError, "zero_point"),
        (lambda x: Q.dynamic_quantize_linear(x * np.float32(3e38)), ArrayError, "x"),
    ],
)
def test_no_scale_or_zero_point_passes_that_has_no_meaning(
    call, error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        call(np.array([-1.0, 1.0], "f4"))


def test_a_zero_point_outside_four_bits_is_refused() -> None:
    import ml_dtypes

    codes = np.array([-8, 7], ml_dtypes.int4)
    assert Q.dequantize_linear(codes, 0.5, -8).tolist() == [0.0, 7.5]
    with pytest.raises(ArrayError, match=r"^zero_point: "):
        Q.dequantize_linear(codes, 0.5, np.int8(100))


def test_the_scale_says_the_dtype_of_the_values():
    x = np.arange(-6, 6, dtype="i1").reshape(3, 4)
    s = np.array([0.1, 2.0, 7000.0], "f2")
    y = Q.dequantize_linear(x, s, axis=0)
    assert y.dtype == np.float16
    wide = x.astype("f4") * s.astype("f4")[:, None]
    np.testing.assert_array_equal(y, wide.astype("f2"))
    out = np.empty((3, 4), "f2")
    assert Q.dequantize_linear(x, s, axis=0, out=out) is out
