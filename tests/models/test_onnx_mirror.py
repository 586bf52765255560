"""Kernels that are their own mirror image: kept by half, the same function, the same rows."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from fastopt.models import OnnxModel


def kernels(length: int, first: int, sign: int, n_out: int = 64) -> np.ndarray:
    """(n_out, 1, length) float32, even or odd around the centre after ``first`` values."""
    rng = np.random.default_rng(length + first)
    part = rng.standard_normal((n_out, 1, length - first), dtype=np.float32)
    part = part + sign * part[..., ::-1]
    return np.concatenate([rng.standard_normal((n_out, 1, first), dtype=np.float32), part], 2)


def model_of(weight: np.ndarray) -> OnnxModel:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[16])],
        "spectrum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2048])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = helper.make_opsetid("", 17)
    return OnnxModel(helper.make_model(graph, opset_imports=[opset], ir_version=8))


X = {"x": np.random.default_rng(1).standard_normal((3, 1, 2048), dtype=np.float32)}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("length", [511, 512])
def test_the_half_computes_the_same(length, first, sign):
    weight = kernels(length, first, sign)
    model = model_of(weight)
    ((before, tapped),) = model.run(X, taps=("x",))
    macs, nbytes = model.macs, model.nbytes
    assert "1 mirrored kernels kept by half" in model.fold()
    ((after, _),) = model.run(X)
    np.testing.assert_allclose(after["y"], before["y"], atol=1e-4)
    assert model.nbytes < 0.52 * nbytes
    assert model.macs == macs
    layer = model.layers["w/half"]
    assert (layer.kind, layer.tap) == ("conv", "x")
    rows = model.rows("w/half", tapped["x"])[0]  # what the half multiplies
    alone = weight[:, 0, :first] @ _patches(tapped["x"], length)[:, :first].T
    np.testing.assert_allclose(
        layer.weight @ rows.T + alone,
        before["y"].transpose(1, 0, 2).reshape(len(weight), -1),
        atol=1e-3,
    )


def _patches(x: np.ndarray, length: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], length, axis=1)[:, ::16]
    return windows.reshape(-1, length)


def test_other_kernels_stay_whole():
    weight = kernels(512, 1, 1)
    weight[3, 0, 100] += 0.1
    assert not any("mirrored" in note for note in model_of(weight).fold())


def test_the_half_is_stored_in_fewer_bits():
    model = model_of(kernels(512, 1, -1))
    model.fold()
    before = model.nbytes
    model.store("w/half", "int8g")
    assert model.nbytes < 0.35 * before
    ((out, _),) = model.run(X)
    assert np.isfinite(out["y"]).all()
