"""ONNX layers that run in int8: close to float, in the operators that run-times have."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fastopt.errors import OptionError  # noqa: E402
from fastopt.models import OnnxModel  # noqa: E402
from tests import onnx_graphs as graphs  # noqa: E402
from tests.onnx_graphs import model, node, ranges_of, value, weights  # noqa: E402

RNG = np.random.default_rng(3)


def run(loaded: OnnxModel, data: object) -> np.ndarray:
    return next(loaded.run(data))[0][loaded.outputs[0]]


def ops(loaded: OnnxModel) -> list[str]:
    return [n.op_type for n in loaded.to_proto().graph.node]


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def two_products() -> OnnxModel:
    return OnnxModel(
        model(
            [
                node("MatMul", "x w1", "h1"),
                node("Add", "h1 b1", "h2"),
                node("Relu", "h2", "h3"),
                node("Gemm", "h3 w2 b2", "y", transB=1),
            ],
            [value("x", ["n", 64])],
            ["y"],
            {"w1": weights(64, 96), "b1": weights(96), "w2": weights(64, 96), "b2": weights(64)},
        )
    )


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("form", ["int8", "int6g", "int4g"])
def test_products_run_in_int8(kind: str, form: str) -> None:
    loaded = two_products()
    x = {"x": RNG.standard_normal((50, 64), dtype=np.float32)}
    before = run(loaded, x)
    ranges = ranges_of(loaded, x)
    for name in list(loaded.layers):
        loaded.store(name, f"{form}+{kind}", ranges=ranges)
    assert ops(loaded).count("MatMulInteger") == 2
    assert error(before, run(loaded, x)) < {"int8": 0.02, "int6g": 0.04, "int4g": 0.15}[form]


def test_a_product_in_int8_is_the_formula() -> None:
    from fastopt.quantization import dynamic_quantize_linear

    loaded = OnnxModel(
        model([node("MatMul", "x w", "y")], [value("x", ["n", 64])], ["y"], {"w": weights(64, 32)})
    )
    loaded.store("w", "int8+dynamic")
    x = RNG.standard_normal((7, 64), dtype=np.float32)
    codes, scale, zero = dynamic_quantize_linear(x)
    rounded = (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    expected = rounded @ loaded.layers["w"].weight.T
    np.testing.assert_allclose(run(loaded, {"x": x}), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["int8+dynamic", "int4g+dynamic"])
def test_an_lstm_runs_in_int8_when_both_weights_do(form: str) -> None:
    proto = model(
        [node("LSTM", "x w r b", "y h", hidden_size=64, direction="bidirectional")],
        [value("x", [5, "n", 64])],
        ["y"],
        {"w": weights(2, 256, 64), "r": weights(2, 256, 64), "b": weights(2, 512)},
    )
    x = [{"x": RNG.standard_normal((5, 3, 64), dtype=np.float32)}]
    loaded = OnnxModel(proto)
    before = run(loaded, x)
    half = loaded.copy()
    half.store("w", form)
    assert "LSTM" in ops(half)
    assert half.nbytes < loaded.nbytes - 3 * 2 * 256 * 64 + 4000
    assert error(before, run(half, x)) < 0.2
    half.store("r", form)
    assert "DynamicQuantizeLSTM" in ops(half)
    assert error(before, run(half, x)) < 0.2
    onnx.checker.check_model(half.to_proto())


def convolutions(act: str) -> OnnxModel:
    middle = [node("Relu", "h1", "h2")] if act == "Relu" else [node("Clip", "h1 zero six", "h2")]
    return OnnxModel(
        model(
            [
                node("Conv", "x c1 d1", "h1", pads=[1, 1, 1, 1]),
                *middle,
                node("Conv", "h2 c2", "h3", group=16),
                node("Conv", "h3 c3 d3", "y", strides=[2, 2]),
            ],
            [value("x", ["n", 4, 12, 10])],
            ["y"],
            {
                "c1": weights(16, 4, 3, 3), "d1": weights(16), "c2": weights(16, 1, 3, 3),
                "c3": weights(24, 16, 1, 2), "d3": weights(24),
                "zero": np.float32(0), "six": np.float32(6),
            },
        )
    )  # fmt: skip


@pytest.mark.parametrize("act", ["Relu", "Clip"])
def test_convolutions_hand_their_codes_on(act: str) -> None:
    loaded = convolutions(act)
    x = {"x": RNG.standard_normal((6, 4, 12, 10), dtype=np.float32)}
    before = run(loaded, x)
    ranges = ranges_of(loaded, x)
    for name in ("c1", "c2", "c3"):
        loaded.store(name, "int8+static", ranges=ranges)
    assert ops(loaded).count("QLinearConv") == 3
    assert act not in ops(loaded)
    assert ops(loaded).count("QuantizeLinear") == ops(loaded).count("DequantizeLinear") == 1
    assert error(before, run(loaded, x)) < 0.04
    some = convolutions(act)
    some.store("c2", "int8+static", ranges=ranges)
    assert ops(some).count("Conv") == 2
    assert error(before, run(some, x)) < 0.03


def test_static_forms_need_their_ranges() -> None:
    loaded = convolutions("Relu")
    with pytest.raises(OptionError, match="least and largest value of 'x'"):
        loaded.store("c1", "int8+static")
    with pytest.raises(OptionError, match="'h1'"):
        loaded.store("c1", "int8+static", ranges={"x": (-1.0, 1.0), "h1": (0.0, np.inf)})
    assert loaded.layers["c1"].form.name == "float32"


def test_weights_elsewhere_stay_in_float() -> None:
    for proto in (graphs.moved(), graphs.branches()):
        for layer in OnnxModel(proto).layers.values():
            if layer.uses > 1 or layer.name in ("gates", "turned"):
                assert not any(form.activations for form in layer.forms)


def test_a_row_of_zeros_is_no_trouble() -> None:
    loaded = convolutions("Relu")
    w = loaded.layers["c1"].weight.copy()
    w[3] = 0
    loaded.set_weight("c1", w)
    x = {"x": RNG.standard_normal((6, 4, 12, 10), dtype=np.float32)}
    before, ranges = run(loaded, x), ranges_of(loaded, x)
    for form in ("int8+static", "int8", "int3"):
        twin = loaded.copy()
        twin.store("c1", form, ranges=ranges)
        assert not twin.layers["c1"].weight[3].any()
        assert error(before, run(twin, x)) < (0.4 if form == "int3" else 0.02)
