"""The main job on ONNX files, as a user types it; run by stock onnxruntime."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.cli import main

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

METRIC = """
import numpy as np
def near(outputs, data, reference):
    assert set(data) >= {"x"} and len(data["x"]) == len(outputs["p"])
    return 1 - float(np.abs(outputs["p"] - reference["p"]).sum() / 2 / len(outputs["p"]))
def broken(outputs, data, reference):
    raise ZeroDivisionError("no")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.onnx: 48-96-64-5 with Relu and Softmax; calib.npz and fresh.npz: its inputs."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    sizes, nodes, tensors, name = (48, 96, 64, 5), [], [], "x"
    for k, (n_in, n_out) in enumerate(pairwise(sizes)):
        w = rng.standard_normal((n_out, n_in), dtype=np.float32) * np.float32(2 / n_in) ** 0.5
        tensors += [
            numpy_helper.from_array(w, f"w{k}"),
            numpy_helper.from_array(rng.standard_normal(n_out, dtype=np.float32), f"b{k}"),
        ]
        nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"z{k}"], transB=1))
        name = "p" if k == 2 else f"h{k}"
        nodes.append(helper.make_node("Softmax" if k == 2 else "Relu", [f"z{k}"], [name]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 48])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 5])],
        tensors,
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(
        helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "model.onnx"
    )
    for file, n in (("calib.npz", 300), ("fresh.npz", 2000)):
        np.savez(tmp_path / file, x=rng.standard_normal((n, 48), dtype=np.float32))
    (tmp_path / "metric_of_test.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    (found,) = ort.InferenceSession(str(path)).run(None, {"x": x})
    return np.asarray(found)


def test_a_file_gets_smaller_and_keeps_its_decisions(folder: Path, capsys) -> None:
    before = (folder / "model.onnx").read_bytes()
    command = "compress model.onnx --data calib.npz --max-drop 2% -o s.onnx --json --report r.html"
    assert main([*command.split(), "--front", "front"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["metric"] == "agreement"
    assert facts["drop"] + facts["std_error"] <= 0.02
    size = (folder / "s.onnx").stat().st_size
    assert size * 3 < len(before)
    assert facts["after"]["nbytes"] == size
    with np.load("fresh.npz") as file:
        x = file["x"]
    same = run(folder / "s.onnx", x).argmax(1) == run(folder / "model.onnx", x).argmax(1)
    assert same.mean() >= 0.96
    assert (folder / "model.onnx").read_bytes() == before
    assert (folder / "r.html").read_text().count("<svg") == 2
    assert len(list((folder / "front").glob("*.onnx"))) >= 2

    (folder / "result.json").write_text(json.dumps(facts))
    command = "apply result.json model.onnx --data calib.npz --max-drop 2% -o again.onnx"
    assert main(command.split()) == 0
    assert (folder / "again.onnx").stat().st_size == size
    capsys.readouterr()
    assert main(["compare", "model.onnx", "s.onnx", "--data", "fresh.npz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["b"]["metric"] == pytest.approx(same.mean())
    assert found["b"]["nbytes"] == size


def test_the_same_seed_gives_the_same_file(folder: Path) -> None:
    files = []
    for name in ("a.onnx", "b.onnx"):
        command = f"compress model.onnx --data calib.npz --max-drop 2% -o {name} --evals 6"
        assert main(command.split()) == 0
        files.append((folder / name).read_bytes())
    assert files[0] == files[1]


def test_a_metric_of_your_own_and_one_that_fails(folder: Path, capsys) -> None:
    command = "compress model.onnx --data calib.npz -o s.onnx --max-drop 1% --metric"
    assert main([*command.split(), "metric_of_test:near"]) == 0
    assert "near" in capsys.readouterr().out
    assert main([*command.split(), "metric_of_test:broken"]) == 1
    assert "broken raised ZeroDivisionError: no" in capsys.readouterr().err


def test_a_proto_comes_back_as_a_proto(folder: Path) -> None:
    proto = onnx.load("model.onnx")
    text = proto.SerializeToString()
    small = fastopt.compress(proto, "calib.npz", max_drop=0.02, passes=["quantize"])
    assert isinstance(small.model, onnx.ModelProto)
    assert proto.SerializeToString() == text
    small.save("p.onnx")
    assert (folder / "p.onnx").stat().st_size * 3 < len(text)


def test_latency_may_use_int8_and_macs_structure(folder: Path) -> None:
    for target in ("latency", "macs"):
        found = fastopt.compress(
            "model.onnx", "calib.npz", max_drop=0.1, target=target, max_evals=8
        )
        assert found.drop + found.std_error <= 0.1
        if target == "macs" and found.changed:
            assert found.after.macs < found.before.macs


def test_quantize_and_inspect(folder: Path, capsys) -> None:
    assert main(["quantize", "model.onnx", "--form", "int8", "-o", "q.onnx", "--keep", "w2"]) == 0
    assert "no drop was measured" in capsys.readouterr().out
    assert (folder / "q.onnx").stat().st_size * 2 < (folder / "model.onnx").stat().st_size
    assert main(["inspect", "model.onnx", "--data", "calib.npz", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in found["layers"]] == ["w0", "w1", "w2"]
    assert all(layer["sensitivity"] > 0 for layer in found["layers"])
    assert found["macs"] == 48 * 96 + 96 * 64 + 64 * 5


def test_bad_input_is_one_line_and_nothing_is_written(folder: Path, capsys) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    np.savez("other.npz", wrong=np.zeros((9, 48), np.float32))
    np.savez("narrow.npz", x=np.zeros((9, 47), np.float32))
    np.savez("none.npz", x=np.zeros((0, 48), np.float32))
    for model, data, word in [
        ("cut.onnx", "calib.npz", "cut.onnx"),
        ("empty.onnx", "calib.npz", "empty.onnx"),
        ("gone.onnx", "calib.npz", "gone.onnx"),
        ("model.onnx", "other.npz", "found wrong"),
        ("model.onnx", "narrow.npz", "(47,)"),
        ("model.onnx", "none.npz", "at least one row"),
    ]:
        assert main(["compress", model, "--data", data, "-o", "out.onnx"]) == 2
        err = capsys.readouterr().err
        assert word in err
        assert err.count("\n") == 1
    assert not (folder / "out.onnx").exists()
