"""ONNX models behind the protocol: loading, finding weights, running, storing, saving."""

from __future__ import annotations

import errno
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fastopt.errors import (  # noqa: E402
    ArrayError,
    DTypeError,
    FastoptError,
    FormatError,
    MissingFileError,
    OptionError,
    StorageError,
    UnsupportedError,
)
from fastopt.models import OnnxModel  # noqa: E402
from tests import onnx_graphs as graphs  # noqa: E402
from tests.onnx_graphs import model, node, ranges_of, value, weights  # noqa: E402

RNG = np.random.default_rng(0)
FLOATS = {
    "mlp": (graphs.mlp(), {"x": RNG.standard_normal((9, 40), dtype=np.float32)}),
    "cnn": (graphs.cnn(), {"x": RNG.standard_normal((3, 4, 12, 10), dtype=np.float32)}),
    "lstm": (graphs.recurrent("LSTM"), {"x": RNG.standard_normal((5, 2, 12), dtype=np.float32)}),
    "gru": (graphs.recurrent("GRU"), {"x": RNG.standard_normal((5, 2, 12), dtype=np.float32)}),
    "reverse": (
        graphs.recurrent("RNN", "reverse"),
        {"x": RNG.standard_normal((5, 2, 12), dtype=np.float32)},
    ),
    "if": (
        graphs.branches(),
        {"x": RNG.standard_normal((4, 24), dtype=np.float32), "c": np.array(False)},
    ),
    "moved": (graphs.moved(), {"x": RNG.standard_normal((6, 32), dtype=np.float32)}),
    "embedding": (graphs.embedding(), {"ids": RNG.integers(0, 50, (4, 7))}),
}
# One feed each: the recurrent ones have time on axis 0.
FEEDS = {name: [feed] for name, (_, feed) in FLOATS.items()}


def outputs(proto: bytes, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    loaded = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return loaded.run(None, feed)


# --- loading ------------------------------------------------------------------------------


def test_a_file_is_read_and_its_copy_computes_the_same(tmp_path: Path) -> None:
    for name, (proto, feed) in FLOATS.items():
        path = tmp_path / f"{name}.onnx"
        onnx.save(proto, path)
        loaded = OnnxModel(path)
        loaded.save(tmp_path / f"{name}2.onnx")
        before = outputs(path.read_bytes(), feed)
        after = outputs((tmp_path / f"{name}2.onnx").read_bytes(), feed)
        for a, b in zip(before, after):
            assert np.array_equal(a, b)
        found = next(loaded.run(FEEDS[name]))[0]
        assert np.array_equal(found[loaded.outputs[0]], before[0])


def damaged(tmp_path: Path) -> dict[str, Path]:
    whole = graphs.mlp().SerializeToString()
    files = {"empty": b"", "text": b"hello world, this is no model", "cut": whole[:-700]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in files}


@pytest.mark.parametrize("name", ["empty", "text", "cut"])
def test_a_damaged_file_is_a_format_error_of_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=name) as error:
        OnnxModel(damaged(tmp_path)[name])
    assert "\n" not in str(error.value)


def test_a_missing_file_a_folder_and_a_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as folder:
        OnnxModel(tmp_path)
    assert folder.value.errno == errno.EISDIR
    with pytest.raises(MissingFileError):
        OnnxModel("/nowhere/model.onnx")
    with pytest.raises(DTypeError, match="ModelProto"):
        OnnxModel(3)


def test_graphs_that_cannot_be() -> None:
    x = [value("x", ["n", 4])]
    cyclic = model([node("Add", "x b", "a"), node("Relu", "a", "b")], x, ["b"], {})
    with pytest.raises(FormatError, match="cycle"):
        OnnxModel(cyclic)
    dangling = model([node("Add", "x nobody", "b")], x, ["b"], {})
    with pytest.raises(FormatError, match="'nobody' is made by no node"):
        OnnxModel(dangling)
    twice = model([node("Relu", "x", "b"), node("Relu", "x", "b")], x, ["b"], {})
    with pytest.raises(FormatError, match="made twice"):
        OnnxModel(twice)


def test_an_old_opset_is_left_as_it_is(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], [value("x", [3, 64])], ["y"], {}, 6)
    loaded = OnnxModel(proto)
    assert loaded.layers == loaded.groups == {}
    assert loaded.fold() == ()
    assert "opset 6" in loaded.notes[0]
    loaded.save(tmp_path / "same.onnx")
    assert len(onnx.load(tmp_path / "same.onnx").graph.node) == 1


def test_an_unknown_domain_is_unsupported() -> None:
    proto = model(
        [helper.make_node("Magic", ["x"], ["y"], domain="my.domain")],
        [value("x", ["n", 4])],
        ["y"],
        {},
        domains=(("my.domain", 1),),
    )
    with pytest.raises(UnsupportedError, match=r"Magic|my\.domain"):
        OnnxModel(proto)


def test_nodes_out_of_order_are_put_in_order() -> None:
    proto = graphs.mlp()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    found = next(OnnxModel(proto).run(FLOATS["mlp"][1]))[0]
    assert np.array_equal(
        found["y"], outputs(graphs.mlp().SerializeToString(), FLOATS["mlp"][1])[0]
    )


def external(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save_model(
        graphs.mlp(), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    return path


def test_external_data_are_read_inside_the_folder_only(tmp_path: Path) -> None:
    path = external(tmp_path / "a")
    feed = FLOATS["mlp"][1]
    expected = outputs(graphs.mlp().SerializeToString(), feed)[0]
    assert np.array_equal(next(OnnxModel(path).run(feed))[0]["y"], expected)

    data = path.with_name("m.data")
    whole = data.read_bytes()
    data.write_bytes(whole[:-8])
    with pytest.raises(FormatError, match="ends at byte"):
        OnnxModel(path)
    data.unlink()
    with pytest.raises(FormatError, match="does not exist"):
        OnnxModel(path)
    outside = tmp_path / "secret"
    outside.write_bytes(whole)
    data.symlink_to(outside)
    with pytest.raises(FormatError, match="symbolic link"):
        OnnxModel(path)
    data.unlink()
    os.link(outside, data)
    with pytest.raises(FormatError, match="hard"):
        OnnxModel(path)
    proto = onnx.load(path, load_external_data=False)
    for where in ("../secret", str(outside)):
        for tensor in proto.graph.initializer:
            next(e for e in tensor.external_data if e.key == "location").value = where
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(FormatError, match="must lie in the model's folder"):
            OnnxModel(path)
    with pytest.raises(FormatError, match="give the model's path"):
        OnnxModel(proto)


def test_an_input_with_a_default_is_left_alone() -> None:
    proto = graphs.mlp()
    proto.graph.input.append(value("w1", [40, 96]))
    loaded = OnnxModel(proto)
    assert "w1" not in loaded.layers
    assert [i.name for i in loaded.inputs] == ["x"]
    feed = FLOATS["mlp"][1]
    loaded.store("w2", "int8")
    other = {**feed, "w1": np.zeros((40, 96), np.float32)}
    a, b = (outputs(loaded.to_proto().SerializeToString(), f)[0] for f in (feed, other))
    assert not np.array_equal(a, b)


# --- layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FLOATS))
def test_rows_times_the_weight_are_the_output(name: str) -> None:
    loaded = OnnxModel(FLOATS[name][0])
    checked = 0
    for layer in loaded.layers.values():
        if layer.tap is None or layer.kind not in ("dense", "conv"):
            continue
        _, tapped = next(loaded.run(FEEDS[name], taps=(layer.tap, layer.output or layer.tap)))
        rows = loaded.rows(layer.name, tapped[layer.tap])
        n_blocks, _, n_in = rows.shape
        assert (n_blocks, n_in) == (layer.n_blocks, layer.weight.shape[1])
        if layer.output is None or (name == "moved" and layer.name == "gates"):
            continue
        blocks = layer.weight.reshape(n_blocks, -1, n_in)
        made = np.concatenate([r @ w.T for r, w in zip(rows, blocks)], axis=1)
        expected = tapped[layer.output]
        if layer.kind == "conv":
            expected = np.moveaxis(expected, 1, -1)
        expected = expected.reshape(made.shape)
        if layer.bias is not None and layer.name not in ("w1",):  # added by the node itself
            made = made + layer.bias
        np.testing.assert_allclose(made, expected, atol=2e-5)
        checked += 1
    assert checked or name in ("lstm", "gru", "reverse")


def test_hidden_states_are_the_rows_of_a_recurrent_weight() -> None:
    loaded = OnnxModel(FLOATS["reverse"][0])
    layers = loaded.layers
    taps = (layers["w"].tap, layers["r"].tap)
    _, tapped = next(loaded.run(FEEDS["reverse"], taps=taps))
    rows = {name: loaded.rows(name, tapped[layers[name].tap])[0] for name in ("w", "r")}
    bias = graphs.weights(1, 16).reshape(2, 8).sum(axis=0)
    state = np.tanh(rows["w"] @ layers["w"].weight.T + rows["r"] @ layers["r"].weight.T + bias)
    np.testing.assert_allclose(state.reshape(5, 2, 8), tapped[taps[1]][:, 0], atol=1e-5)


def test_transposed_convolution_rows_are_pixels() -> None:
    loaded = OnnxModel(FLOATS["cnn"][0])
    layer = loaded.layers["c4"]
    _, tapped = next(loaded.run(FEEDS["cnn"], taps=(layer.tap, "h5")))
    rows = loaded.rows("c4", tapped[layer.tap])
    assert rows.shape[0] == 2
    assert rows.shape[2] == 12
    n, _, h, w = tapped[layer.tap].shape
    made = np.stack([r @ b.T for r, b in zip(rows, layer.weight.reshape(2, -1, 12))])
    made = (
        made.reshape(2, n, h, w, 6, 2, 2)
        .transpose(1, 0, 4, 2, 5, 3, 6)
        .reshape(n, 12, 2 * h, 2 * w)
    )
    np.testing.assert_allclose(made, tapped["h5"], atol=1e-5)


def test_rows_can_be_sampled_evenly() -> None:
    loaded = OnnxModel(FLOATS["cnn"][0])
    _, tapped = next(loaded.run(FEEDS["cnn"], taps=("x",)))
    every = loaded.rows("c1", tapped["x"])
    some = loaded.rows("c1", tapped["x"], limit=36)
    assert np.array_equal(some, every[:, :: every.shape[1] // 36])


def test_weights_are_found_wherever_they_are() -> None:
    layers = OnnxModel(graphs.branches()).layers
    assert sorted(layer.weight.shape for layer in layers.values()) == [
        (16, 32), (16, 32), (32, 24), (32, 32),
    ]  # fmt: skip
    assert sum(layer.tap is None for layer in layers.values()) == 1
    layers = OnnxModel(graphs.moved()).layers
    assert layers["shared"].uses == 2
    assert layers["turned"].kind == layers["gates"].kind == "dense"
    assert layers["decoded"].form.name == "as is"
    np.testing.assert_array_equal(layers["turned"].weight, weights(32, 32, seed=1))


def test_multiply_adds_are_counted_for_one_row() -> None:
    loaded = OnnxModel(graphs.mlp())
    list(loaded.run(FLOATS["mlp"][1]))
    assert loaded.macs == 40 * 96 + 96 * 10
    loaded = OnnxModel(graphs.cnn())
    list(loaded.run(FLOATS["cnn"][1]))
    layers = loaded.layers
    assert layers["c1"].macs == 16 * 4 * 9 * 12 * 10
    assert layers["c2"].macs == 16 * 9 * 12 * 10
    assert layers["c3"].macs == 24 * 8 * 2 * 6 * 5


def test_logits_and_classes_are_known() -> None:
    loaded = OnnxModel(graphs.mlp())
    assert loaded.classes_axis == {"y": 1}
    assert loaded.logits == {"y": "z"}
    _, tapped = next(loaded.run(FLOATS["mlp"][1], taps=("z",)))
    assert tapped["z"].shape == (9, 10)


# --- data ---------------------------------------------------------------------------------


def states() -> OnnxModel:
    return OnnxModel(
        model(
            [node("Mul", "x s", "a"), node("Add", "a state", "y")],
            [value("x", [1, 4]), value("state", [2, 4]), value("s", [])],
            ["y"],
            {},
        )
    )


def test_samples_of_one_rank_more_are_fed_whole() -> None:
    loaded = states()
    data = {
        "x": RNG.standard_normal((5, 1, 4), dtype=np.float32),
        "state": RNG.standard_normal((5, 2, 4), dtype=np.float32),
        "s": np.float32(3),
    }
    assert loaded.n_rows(data) == 5
    found = [out["y"] for out, _ in loaded.run(data)]
    np.testing.assert_allclose(np.stack(found), data["x"] * 3 + data["state"], rtol=1e-6)
    some = loaded.take(data, np.array([3, 1]))
    assert np.array_equal(some["x"], data["x"][[3, 1]])
    # x in the input's own rank, row by row beside the samples
    mixed = {**data, "x": data["x"][:, 0]}
    again = [out["y"] for out, _ in loaded.run(mixed)]
    assert np.array_equal(np.stack(found), np.stack(again))


def test_batches_follow_the_graph_and_the_caller() -> None:
    fixed = OnnxModel(model([node("Relu", "x", "y")], [value("x", [2, 4])], ["y"], {}))
    x = RNG.standard_normal((6, 4), dtype=np.float32)
    assert [len(out["y"]) for out, _ in fixed.run({"x": x})] == [2, 2, 2]
    with pytest.raises(ArrayError, match="multiple"):
        list(fixed.run({"x": x[:5]}))
    free = OnnxModel(graphs.mlp())
    y = [out["y"] for out, _ in free.run(FLOATS["mlp"][1], batch_size=4)]
    assert [len(part) for part in y] == [4, 4, 1]
    ragged = [{"x": x[:0].reshape(0, 4)}, {"x": x}]
    with pytest.raises(ArrayError):
        list(fixed.run(ragged))


def test_data_that_do_not_fit() -> None:
    loaded = OnnxModel(graphs.mlp())
    good = np.zeros((3, 40), np.float32)
    for data, error, text in (
        ({"z": good}, OptionError, "no array named 'x'"),
        ({"x": good[:, :5]}, ArrayError, "expected shape"),
        ({"x": good[0, 0]}, ArrayError, "expected 2 axes"),
        ({"x": good[:0]}, ArrayError, "at least one row"),
        ({"x": good.astype(str)}, DTypeError, "float32"),
    ):
        with pytest.raises(error, match=text):
            list(loaded.run(data))
    with pytest.raises(OptionError, match="no tensor named 'q'"):
        list(loaded.run({"x": good}, taps=("q",)))


# --- storing ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FLOATS))
def test_what_is_measured_is_what_is_saved(name: str, tmp_path: Path) -> None:
    proto, feed = FLOATS[name]
    original = OnnxModel(proto)
    forms = sorted({form.name for layer in original.layers.values() for form in layer.forms})
    for form in forms:
        stored = original.copy()
        ranges = ranges_of(original, FEEDS[name]) if form.endswith("static") else None
        for layer in original.layers.values():
            if layer.form_named(form):
                stored.store(layer.name, form, ranges=ranges)
        path = tmp_path / f"{form}.onnx"
        stored.save(path)
        assert stored.nbytes == path.stat().st_size
        found = next(stored.run(FEEDS[name]))[0]
        saved = outputs(path.read_bytes(), feed)
        for output, expected in zip(stored.outputs, saved):
            np.testing.assert_array_equal(found[output], expected)
    assert original.layers.keys() == OnnxModel(proto).layers.keys()  # copies are independent


@pytest.mark.parametrize("opset", [9, 17])
def test_portable_forms_are_plain_operators(opset: int) -> None:
    feed = FLOATS["mlp"][1]
    loaded = OnnxModel(graphs.mlp(opset), portable=True)
    assert {f.name for f in loaded.layers["w1"].forms} <= {
        "float32", "float16", "int8", "int8+dynamic", "int8+static",
    }  # fmt: skip
    loaded.store("w1", "float16")
    loaded.store("w2", "int8")
    proto = loaded.to_proto()
    onnx.checker.check_model(proto)
    ops = {n.op_type for n in proto.graph.node}
    assert "Gather" not in ops
    assert ("DequantizeLinear" in ops) == (opset >= 13)
    found = next(loaded.run(feed))[0]["y"]
    np.testing.assert_array_equal(outputs(proto.SerializeToString(), feed)[0], found)
    for proto, feed in FLOATS.values():
        every = OnnxModel(proto, portable=True)
        for name, layer in list(every.layers.items()):
            every.store(name, "int8" if layer.form_named("int8") else "float16")
        saved = outputs(every.to_proto().SerializeToString(), feed)
        run = next(every.run([feed]))[0]
        np.testing.assert_allclose(run[every.outputs[0]], saved[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_every_opset_decodes(opset: int) -> None:
    feed = FLOATS["mlp"][1]
    for form in ("float16", "int2g", "int3", "int4g", "int5g", "int6", "int8"):
        try:
            stored = OnnxModel(graphs.mlp(opset))
        except UnsupportedError as error:
            pytest.skip(str(error))  # an old onnxruntime
        for name in list(stored.layers):
            stored.store(name, form if stored.layers[name].form_named(form) else "int8")
        proto = stored.to_proto()
        onnx.checker.check_model(proto)
        found = next(stored.run(feed))[0]["y"]
        assert np.array_equal(outputs(proto.SerializeToString(), feed)[0], found)


def test_the_error_falls_with_the_bits() -> None:
    loaded = OnnxModel(graphs.mlp())
    before = loaded.layers["w1"].weight
    errors = []
    for bits in (2, 3, 4, 5, 6, 8):
        twin = loaded.copy()
        twin.store("w1", f"int{bits}")
        errors.append(float(np.square(twin.layers["w1"].weight - before).sum()))
    assert all(b < 0.5 * a for a, b in pairwise(errors))
    assert np.array_equal(loaded.layers["w1"].weight, before)


def test_codes_from_elsewhere_are_kept() -> None:
    from fastopt.quantization import quantize

    loaded = OnnxModel(graphs.mlp())
    layer = loaded.layers["w2"]
    codes = quantize(layer.weight, "int4", axis=1, group_size=layer.form_named("int4g").group_size)
    loaded.store("w2", "int4g", codes)
    assert loaded.layers["w2"].stored is codes
    np.testing.assert_allclose(loaded.layers["w2"].weight, codes.dequantize(), rtol=1e-3)
    for wrong, text in (
        (quantize(layer.weight, "int4", axis=0), "group_size"),
        (quantize(layer.weight[:5], "int4", axis=0), "shape"),
        (quantize(layer.weight, "uint4", axis=0, symmetric=False), "affine"),
    ):
        with pytest.raises(FastoptError, match=text):
            loaded.store("w2", "int4g", wrong)
    with pytest.raises(OptionError, match="form"):
        loaded.store("w2", "int99")


def test_shared_weights_stay_shared_and_small(tmp_path: Path) -> None:
    loaded = OnnxModel(graphs.moved())
    for name in list(loaded.layers):
        loaded.store(name, "int8")
    proto = loaded.to_proto()
    size = sum(len(t.raw_data) for t in proto.graph.initializer)
    assert size < 3 * 32 * 32 + 32 * 16 + 600
    assert not any(n.op_type == "DequantizeLinear" for n in proto.graph.node)


def test_new_weights_and_biases() -> None:
    feed = FLOATS["mlp"][1]
    loaded = OnnxModel(graphs.mlp())
    w, b = loaded.layers["w1"].weight, loaded.layers["w1"].bias
    loaded.set_weight("w1", 2 * w, 2 * b)
    h = np.maximum(feed["x"] @ (2 * w).T + 2 * b, 0)
    _, tapped = next(loaded.run(feed, taps=("h3",)))
    np.testing.assert_allclose(tapped["h3"], h, atol=1e-4)
    plain = OnnxModel(graphs.embedding())
    shift = np.arange(64, dtype=np.float32)
    before = next(plain.run(FLOATS["embedding"][1]))[0]["y"]
    plain.set_weight("w", plain.layers["w"].weight, shift)
    assert np.array_equal(plain.layers["w"].bias, shift)
    after = next(plain.run(FLOATS["embedding"][1]))[0]["y"]
    np.testing.assert_allclose(after, before + shift, rtol=1e-5)
    with pytest.raises(ArrayError, match="shape"):
        loaded.set_weight("w1", w[:3])
    with pytest.raises(ArrayError, match="weight"):
        loaded.set_weight("w1", w * np.nan)


@pytest.mark.parametrize("name", list(FLOATS))
def test_weights_can_be_tried_without_an_edit(name: str) -> None:
    loaded = OnnxModel(FLOATS[name][0])
    plain = next(loaded.run(FEEDS[name]))[0]
    for layer in loaded.layers.values():
        tried = next(loaded.run(FEEDS[name], weights={layer.name: 0.5 * layer.weight}))[0]
        edited = loaded.copy()
        edited.set_weight(layer.name, 0.5 * layer.weight)
        expected = next(edited.run(FEEDS[name]))[0]
        for output in loaded.outputs:
            np.testing.assert_allclose(tried[output], expected[output], atol=1e-5)
    again = next(loaded.run(FEEDS[name]))[0]
    assert all(np.array_equal(plain[k], again[k]) for k in plain)


def test_names_metadata_and_functions_stay(tmp_path: Path) -> None:
    proto = graphs.mlp()
    entry = proto.metadata_props.add()
    entry.key, entry.value = "character", "abc"
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    proto.functions.append(twice)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node[2].CopyFrom(helper.make_node("Twice", ["h2"], ["h3"], domain="own"))
    loaded = OnnxModel(proto)
    loaded.store("w1", "int4")
    loaded.save(tmp_path / "small.onnx")
    saved = onnx.load(tmp_path / "small.onnx")
    assert [(p.key, p.value) for p in saved.metadata_props] == [("character", "abc")]
    assert [f.name for f in saved.functions] == ["Twice"]
    assert [i.name for i in saved.graph.input] == ["x"]
    assert [i.name for i in saved.graph.output] == ["y"]


def test_the_input_file_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(graphs.mlp(), path)
    loaded = OnnxModel(path)
    with pytest.raises(OptionError, match="another name"):
        loaded.save(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_codes_behind_dequantize_linear_are_recoded() -> None:
    codes = RNG.integers(-127, 128, (64, 96)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.02, 96).astype(np.float32)
    zero = RNG.integers(-9, 9, 96).astype(np.int8)
    proto = model(
        [node("DequantizeLinear", "q s z", "w", axis=1), node("MatMul", "x w", "y")],
        [value("x", ["n", 64])],
        ["y"],
        {"q": codes, "s": scale, "z": zero},
    )
    loaded = OnnxModel(proto)
    layer = loaded.layers["w"]
    expected = (codes.astype(np.float32) - zero) * scale
    np.testing.assert_allclose(layer.weight, expected.T, rtol=1e-6)
    assert layer.form.name == "as is"
    assert layer.form.nbytes == 64 * 96 + 5 * 96
    before = loaded.nbytes
    loaded.store("w", "int4g")
    assert loaded.nbytes < 0.7 * before
    assert [n.op_type for n in loaded.to_proto().graph.node][-1] == "MatMul"
    feed = {"x": RNG.standard_normal((3, 64), dtype=np.float32)}
    found = next(loaded.run(feed))[0]["y"]
    assert np.array_equal(found, outputs(loaded.to_proto().SerializeToString(), feed)[0])


def test_a_float16_model_keeps_its_type() -> None:
    w = weights(64, 32).astype(np.float16)
    proto = model(
        [node("MatMul", "x w", "y")], [value("x", ["n", 64], TensorProto.FLOAT16)], ["y"], {"w": w}
    )
    loaded = OnnxModel(proto)
    assert loaded.layers["w"].form.name == "float16"
    loaded.store("w", "int4g")
    feed = {"x": RNG.standard_normal((3, 64)).astype(np.float16)}
    found = next(loaded.run(feed))[0]["y"]
    assert found.dtype == np.float16
    assert np.array_equal(found, outputs(loaded.to_proto().SerializeToString(), feed)[0])


def test_constants_of_other_types_pass_through() -> None:
    text = numpy_helper.from_array(np.array(["a", "b"], dtype=object), "names")
    proto = model([node("Identity", "names", "y")], [value("x", [1])], ["y"], {})
    proto.graph.initializer.append(text)
    proto.graph.output[0].CopyFrom(value("y", [2], TensorProto.STRING))
    found = next(OnnxModel(proto).run({"x": np.zeros(1, np.float32)}))[0]["y"]
    assert found.tolist() == ["a", "b"]


def test_layers_are_plain_data() -> None:
    layer = OnnxModel(graphs.mlp()).layers["w1"]
    again = pickle.loads(pickle.dumps(layer))
    assert np.array_equal(again.weight, layer.weight)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0, 0] = 1
