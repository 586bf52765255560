"""QuantizedArray in safetensors files and ONNX graphs."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fastopt
from fastopt import QuantizedArray
from fastopt.errors import ArrayError, DTypeError, FastoptError, FormatError, UnsupportedError

LAYOUTS = [
    ("int8", {}),
    ("int8", {"axis": 1}),
    ("uint8", {"axis": 0, "symmetric": False}),
    ("int4", {"axis": 0}),
    ("uint4", {"group_size": 8, "symmetric": False}),
    ("int16", {"group_size": 4, "axis": 0}),
    ("q3.12", {}),
    ("int3", {"axis": 0}),
    ("nf4", {}),
    ("mxfp4", {"group_size": 8}),
    ("float16", {}),
    ("float8_e4m3fn", {"axis": 0}),
    ("float8_e5m2", {"group_size": 4}),
]


def made(name, options, rng):
    return fastopt.quantize(rng.standard_normal((9, 16)).astype("f4"), name, **options)


@pytest.mark.parametrize(("name", "options"), LAYOUTS)
def test_file_round_trip(name, options, rng, tmp_path):
    pytest.importorskip("safetensors")
    q = made(name, options, rng)
    assert json.loads(json.dumps(q.config())) == q.config()
    q.to_safetensors(tmp_path / "q.safetensors")
    again = fastopt.QuantizedArray.from_safetensors(tmp_path / "q.safetensors")
    for part in ("codes", "scale", "zero_point"):
        np.testing.assert_array_equal(getattr(again, part), getattr(q, part))
        assert getattr(again, part).dtype == getattr(q, part).dtype
    assert again.config() == q.config()
    np.testing.assert_array_equal(again.dequantize(), q.dequantize())
    assert [p.name for p in tmp_path.iterdir()] == ["q.safetensors"]


def test_damage_is_seen(rng, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "q.safetensors"
    made("int8", {"axis": 0}, rng).to_safetensors(path)
    good = path.read_bytes()
    for place in (len(good) - 1, len(good) - 50):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(FormatError, match="checksum"):
            fastopt.QuantizedArray.from_safetensors(path)
    for content in (b"", b"nonsense", good[:-3], good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            fastopt.QuantizedArray.from_safetensors(path)
    safetensors.save_file({"codes": np.zeros(3)}, path)
    with pytest.raises(FormatError):
        fastopt.QuantizedArray.from_safetensors(path)
    with pytest.raises(FileNotFoundError):
        fastopt.QuantizedArray.from_safetensors(tmp_path / "none")


@pytest.mark.parametrize(("name", "options"), [c for c in LAYOUTS if c[0] not in ("nf4", "mxfp4")])
def test_onnxruntime_dequantises_to_the_same_values(name, options, rng):
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    q, h = made(name, options, rng), onnx.helper
    node, tensors = q.to_onnx("w")
    graph = h.make_graph(
        [node], "g", [], [h.make_tensor_value_info("w", onnx.TensorProto.FLOAT, q.shape)], tensors
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    got = ort.InferenceSession(model.SerializeToString()).run(None, {})[0]
    np.testing.assert_array_equal(got, q.dequantize())


def test_onnx_reference_dequantises_mxfp4_to_the_same_values(rng):
    onnx = pytest.importorskip("onnx")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    q, h = made("mxfp4", {"group_size": 8}, rng), onnx.helper
    node, tensors = q.to_onnx("w")
    out = h.make_tensor_value_info("w", onnx.TensorProto.FLOAT, q.shape)
    graph = h.make_graph([node], "g", [], [out], tensors)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(evaluator(model).run(None, {})[0], q.dequantize())


def test_what_onnx_has_no_codes_for(rng):
    pytest.importorskip("onnx")
    for name, options in (("q10.20", {}), ("nf4", {}), ("float16", {"scale": 2.0})):
        with pytest.raises(UnsupportedError):
            made(name, options, rng).to_onnx("w")


def test_powers_of_two_are_bytes_in_the_file(rng, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    q = made("mxfp4", {"group_size": 8}, rng)
    q.to_safetensors(tmp_path / "q")
    scale = safetensors.load_file(tmp_path / "q")["scale"]
    assert scale.dtype == np.uint8
    np.testing.assert_array_equal(np.ldexp(np.float32(1), scale.astype(int) - 127), q.scale)


def test_parts_of_an_array_of_ones_own_belong_together():
    """A QuantizedArray made by hand: numbers and lists become arrays, misfits are refused."""
    codes = np.arange(6, dtype="i1").reshape(2, 3)
    q = QuantizedArray(codes, [0.5, 2.0], [0, 1], "int8", (2, 3), 0)
    assert q.dequantize().tolist() == [[0.0, 0.5, 1.0], [4.0, 6.0, 8.0]]
    assert QuantizedArray(codes, 0.5, 0, "int8", (2, 3)).dequantize()[1, 2] == 2.5
    for name, args in {
        "scale": (codes, [0.5], 0, "int8", (2, 3)),
        "zero_point": (codes, [0.5, 2.0], 0, "int8", (2, 3), 0),
        "codes": (codes[:, :2], 0.5, 0, "int8", (2, 3)),
        "dtype": (codes, 0.5, 0, "int9", (2, 3)),
    }.items():
        with pytest.raises(FastoptError, match=name):
            QuantizedArray(*args)
    with pytest.raises(ArrayError, match=r"codes: expected -8\.\.7"):
        QuantizedArray(codes * 20, 0.5, 0, "int4", (2, 3))
    with pytest.raises(DTypeError, match="codes"):
        QuantizedArray(codes.astype("f4"), 0.5, 0, "int8", (2, 3))
