"""The graphs that the onnx package ships: read, looked at, written back, the same outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from fastopt.errors import FastoptError  # noqa: E402
from fastopt.models import OnnxModel  # noqa: E402

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FILES = sorted(f for part in ("simple", "pytorch-operator") for f in DATA.glob(f"{part}/*/*.onnx"))


def feed_of(path: Path, names: list[str]) -> dict[str, np.ndarray] | None:
    found = {}
    for k, name in enumerate(names):
        file = path.parent / "test_data_set_0" / f"input_{k}.pb"
        if not file.exists():
            return None
        tensor = onnx.TensorProto()
        tensor.ParseFromString(file.read_bytes())
        found[name] = onnx.numpy_helper.to_array(tensor)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_a_bundled_graph_makes_the_round_trip(path: Path, tmp_path: Path) -> None:
    try:
        original = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception:  # an operator set, or a locale, that this onnxruntime lacks
        with pytest.raises(FastoptError):
            OnnxModel(path)
        return
    loaded = OnnxModel(path)
    assert all(layer.forms for layer in loaded.layers.values())
    assert isinstance(dict(loaded.groups), dict)
    folded = loaded.copy()
    folded.fold()
    results = []
    for name, model in (("same", loaded), ("folded", folded)):
        model.save(tmp_path / f"{name}.onnx")
        session = ort.InferenceSession(
            str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        feed = feed_of(path, [i.name for i in session.get_inputs()])
        if feed is None:
            return
        results.append(session.run(None, feed))
    for a, b, c in zip(original.run(None, feed), *results):
        if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiu":
            assert np.array_equal(a, b)
            assert np.array_equal(a, c)
            continue
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
