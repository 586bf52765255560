"""models.Network: gradients, training, the protocol's edits, files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError
from fastopt.models import Dense, Network


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((40, 6)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


@pytest.mark.parametrize("activation", ["identity", "tanh", "sigmoid"])  # no kinks
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_gradients_are_the_slopes_of_the_loss(activation, loss, data) -> None:
    x, labels = data
    net = Network.mlp((6, 5, 4, 3), activation=activation, loss=loss, seed=1)
    y = labels if loss == "cross_entropy" else np.eye(3, dtype=np.float32)[labels]
    value, grads = net.value_and_grad(x, y)
    assert value == pytest.approx(net.loss(x, y), rel=1e-6)
    assert list(grads) == list(net.params)
    rng = np.random.default_rng(0)
    for name, p in net.params.items():
        assert grads[name].shape == p.shape
        direction = rng.standard_normal(p.shape).astype(np.float32)
        keep = p.copy()
        h = 1e-2 / np.linalg.norm(direction)
        p[...] = keep + h * direction
        up = net.loss(x, y)
        p[...] = keep - h * direction
        down = net.loss(x, y)
        p[...] = keep
        slope = float((grads[name] * direction).sum())
        assert (up - down) / (2 * h) == pytest.approx(slope, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_gradients_equal_torchs(activation, data) -> None:
    torch = pytest.importorskip("torch")
    x, y = data
    net = Network.mlp((6, 7, 3), activation=activation, seed=2)
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in net.params.items()}
    h = getattr(torch, activation)(
        torch.tensor(x) @ tensors["dense0.weight"].T + tensors["dense0.bias"]
    )
    z = h @ tensors["dense1.weight"].T + tensors["dense1.bias"]
    loss = torch.nn.functional.cross_entropy(z, torch.tensor(y))
    loss.backward()
    value, grads = net.value_and_grad(x, y)
    assert value == pytest.approx(loss.item(), rel=1e-6)
    for name, g in grads.items():
        np.testing.assert_allclose(g, tensors[name].grad.numpy(), rtol=1e-4, atol=1e-6)


def test_it_trains_with_our_optimisers_and_its_classes_are_labels(data) -> None:
    x, y = data
    labels = np.array(["a", "b", "c"])[y]
    net = Network.mlp((6, 32, 3), seed=0, classes=["a", "b", "c"])
    history = net.fit(x, labels, fastopt.optim.Adam(net.params, lr=1e-2), epochs=60, batch_size=16)
    assert history[-1] < 0.2 * history[0]
    assert net.score(x, labels) == 1.0
    assert set(net.predict(x)) == {"a", "b", "c"}
    np.testing.assert_allclose(net.predict_proba(x).sum(axis=1), 1, rtol=1e-5)
    again = Network.mlp((6, 32, 3), seed=0, classes=["a", "b", "c"])
    assert history == again.fit(
        x, labels, fastopt.optim.Adam(again.params, lr=1e-2), epochs=60, batch_size=16
    )


def test_protocol_facts(data) -> None:
    net = Network.mlp((6, 5, 4, 3), seed=0)
    assert list(net.layers) == ["dense0", "dense1", "dense2"]
    assert list(net.groups) == ["dense0", "dense1"]
    assert net.macs == 6 * 5 + 5 * 4 + 4 * 3
    assert net.n_params == net.macs + 5 + 4 + 3
    assert net.nbytes == 4 * net.n_params
    x = data[0]
    taps = tuple(layer.tap for layer in net.layers.values())
    batches = list(net.run({"X": x}, taps=taps, batch_size=16))
    assert [len(out["output"]) for out, _ in batches] == [16, 16, 8]
    np.testing.assert_allclose(
        np.concatenate([out["output"] for out, _ in batches]), net.forward(x), rtol=1e-5, atol=1e-6
    )
    hidden = np.concatenate([t["dense1.in"] for _, t in batches])
    np.testing.assert_allclose(
        hidden,
        np.maximum(x @ net.params["dense0.weight"].T + net.params["dense0.bias"], 0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_removing_dead_units_changes_nothing(data) -> None:
    x = data[0]
    net = Network.mlp((6, 5, 3), seed=0)
    net.params["dense1.weight"][:, [1, 3]] = 0
    expected = net.forward(x)
    keep = np.array([0, 2, 4])
    net.keep_units("dense0", keep)
    np.testing.assert_allclose(net.forward(x), expected, rtol=1e-6, atol=1e-6)
    assert net.groups["dense0"].n_units == 3


def test_edits_split_quantize_set(data) -> None:
    x = data[0]
    net = Network.mlp((6, 5, 3), seed=0)
    expected = net.forward(x)
    w = net.layers["dense0"].weight
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    net.split_layer("dense0", u * s, vt)
    assert list(net.layers) == ["dense0.b", "dense0.a", "dense1"]
    np.testing.assert_allclose(net.forward(x), expected, rtol=1e-4, atol=1e-5)
    net.store("dense1", "int8")
    assert net.layers["dense1"].nbytes == 5 * 3 + 3 * 4 + 3 * 4
    np.testing.assert_allclose(net.forward(x), expected, rtol=0.1, atol=0.05)
    net.set_weight("dense1", np.zeros((3, 5), np.float32), np.zeros(3, np.float32))
    assert not net.forward(x).any()
    assert net.layers["dense1"].stored is None


def test_copies_share_nothing(data) -> None:
    net = Network.mlp((6, 5, 3), seed=0)
    twin = net.copy()
    before = twin.forward(data[0])
    for p in net.params.values():
        p += 1
    np.testing.assert_array_equal(twin.forward(data[0]), before)
    again = pickle.loads(pickle.dumps(twin))
    np.testing.assert_array_equal(again.forward(data[0]), before)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_saved_network_reads_back_and_predicts_the_same(suffix, data, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    net = Network.mlp((6, 50, 3), seed=0, classes=["x", "y", "z"])
    net.store("dense0", "int8", fastopt.quantize(net.layers["dense0"].weight, "int8", axis=0))
    net.split_layer("dense1", np.ones((3, 2), np.float32), np.ones((2, 50), np.float32))
    path = tmp_path / f"net{suffix}"
    net.save(path)
    back = Network.load(path)
    np.testing.assert_array_equal(back.forward(data[0]), net.forward(data[0]))
    assert back.nbytes == net.nbytes
    assert list(back.predict(data[0])) == list(net.predict(data[0]))
    assert path.stat().st_size < net.nbytes + 4000


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files_are_format_errors(suffix, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"net{suffix}"
    Network.mlp((6, 5, 3), seed=0).save(path)
    whole = path.read_bytes()
    for cut in (0, 1, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError) as caught:
            Network.load(path)
        assert caught.value.path == str(path)
    with pytest.raises(FileNotFoundError):
        Network.load(tmp_path / f"none{suffix}")
    with pytest.raises(OptionError, match="path: "):
        Network.load(tmp_path / "net.pkl")


def test_a_file_that_asks_for_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, fastopt=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FormatError):
        Network.load(path)


def test_a_version_it_does_not_know_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    config = {"version": 1, "layers": []}
    np.savez(path, fastopt=np.frombuffer(json.dumps(config).encode(), np.uint8))
    with pytest.raises(FormatError, match=r"checksum|version"):
        Network.load(path)


def test_wrong_input_is_refused_by_name(data) -> None:
    x, y = data
    net = Network.mlp((6, 5, 3), seed=0)
    with pytest.raises(ArrayError, match="x: "):
        net.forward(x[:, :5])
    with pytest.raises(ArrayError, match="y: "):
        net.loss(x, y[:-1])
    with pytest.raises(ArrayError, match="y: "):
        net.loss(x, y + 2)
    with pytest.raises(ArrayError, match="x: expected at least one row"):
        net.loss(x[:0], y[:0])
    with pytest.raises(OptionError, match="activation"):
        Dense(np.zeros((2, 2), np.float32), None, "swish")
    with pytest.raises(DTypeError, match="weight"):
        Dense(np.zeros((2, 2), complex), None)
    with pytest.raises(ArrayError, match="dense1 takes"):
        Network([Dense(np.zeros((3, 2)), None), Dense(np.zeros((3, 2)), None)])
    before = {k: v.copy() for k, v in net.params.items()}
    with pytest.raises(ArrayError):
        net.keep_units("dense0", np.arange(4), {"dense1": (np.zeros((3, 3)), None)})
    with pytest.raises(ArrayError):
        net.split_layer("dense0", np.zeros((5, 2)), np.zeros((3, 6)))
    with pytest.raises(OptionError, match="dense9"):
        net.set_weight("dense9", np.zeros((6, 5)))
    with pytest.raises(OptionError, match="taps"):
        next(net.run({"X": x}, taps=("nonsense",)))
    for name, p in net.params.items():
        np.testing.assert_array_equal(p, before[name])


def test_a_file_of_version_2_still_loads(data, tmp_path: Path) -> None:
    """A chain of dense layers, as it was written before graphs were."""
    from fastopt._files import save_arrays

    net = Network.mlp((6, 5, 3), seed=0)
    entries = [
        {"name": "dense0", "activation": "relu"},
        {"name": "dense1", "activation": "identity"},
    ]
    config = {"version": 2, "loss": "cross_entropy", "classes": [5, 6, 7], "layers": entries}
    save_arrays(tmp_path / "old.npz", "fastopt", config, dict(net.params), npz=True)
    back = Network.load(tmp_path / "old.npz")
    np.testing.assert_array_equal(back.forward(data[0]), net.forward(data[0]))
    assert list(back.classes) == [5, 6, 7]
    codes = fastopt.quantize(net.params["dense0.weight"], "int8", axis=0)
    fields = ("dtype", "shape", "axis", "group_size", "symmetric")
    entries[0]["quantized"] = {k: getattr(codes, k) for k in fields}
    arrays = {k: a for k, a in net.params.items() if k != "dense0.weight"}
    arrays |= {f"dense0.weight.{k}": getattr(codes, k) for k in ("codes", "scale", "zero_point")}
    save_arrays(tmp_path / "old.npz", "fastopt", config, arrays, npz=True)
    net.store("dense0", "int8", codes)
    np.testing.assert_array_equal(
        Network.load(tmp_path / "old.npz").forward(data[0]), net.forward(data[0])
    )
