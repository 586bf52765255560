"""Graphs of models.network: training against torch, coupling groups, edits, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.compression import Recipe
from fastopt.compression.data import open_rows
from fastopt.compression.passes import PASSES
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.recipe import Workbench
from fastopt.errors import ArrayError, OptionError, UnsupportedError
from fastopt.models import Network
from fastopt.models.network import (
    Activation,
    Add,
    BatchNorm,
    Concat,
    Conv2d,
    Dense,
    Embedding,
    Flatten,
    GlobalAvgPool2d,
    LayerNorm,
    MaxPool2d,
    Mean,
    Module,
    Mul,
    Positions,
    self_attention,
)  # fmt: skip


def _conv_net(seed: int = 0) -> Network:
    """Plain, residual, depthwise, grouped, concatenated and flattened channels."""
    rng = np.random.default_rng(seed)

    def conv(n_in: int, n_out: int, kernel: int, name: str, **more) -> list[Module]:
        conv = Conv2d.random(n_in, n_out, kernel, bias=False, seed=rng, name=name, **more)
        return [conv, BatchNorm.fresh(n_out, name=f"{name}.norm")]

    return Network(
        [
            *conv(1, 8, 3, "stem", padding=1), Activation(name="stem.relu"),
            *conv(8, 8, 3, "deep", padding=1, groups=8), Activation(),
            *conv(8, 8, 1, "point"),
            Add(name="sum", inputs=("stem.relu", "point.norm")), MaxPool2d(2, name="pool"),
            *conv(8, 6, 3, "left", padding=1, inputs=("pool",)), Activation("silu", "left.act"),
            *conv(8, 8, 3, "right", padding=1, groups=2, inputs=("pool",)),
            Concat(name="both", inputs=("left.act", "right.norm")), MaxPool2d(2),
            Flatten(), Dense.random(56, 16, "relu", rng), Dense.random(16, 3, seed=rng),
        ],
        input_shape=(1, 8, 8),
    )  # fmt: skip


def _transformer(seed: int = 0) -> Network:
    """Tokens, two layers of attention and a gated or plain feed-forward part."""
    rng = np.random.default_rng(seed)
    layers: list[Module] = [Embedding.random(11, 16, rng, name="table"),
                            Positions.random(6, 16, rng, name="h0")]  # fmt: skip
    for k in range(2):
        layers += [
            LayerNorm.fresh(16, name=f"n{k}"),
            *self_attention(f"a{k}", 16, 4, f"n{k}", rng),
            Add(name=f"r{k}", inputs=(f"h{k}", f"a{k}.out")),
            LayerNorm.fresh(16, name=f"m{k}"),
            Dense.random(16, 24, "gelu", rng, name=f"up{k}"),
        ]
        if k:
            layers += [
                Dense.random(16, 24, "identity", rng, name="gate", inputs=(f"m{k}",)),
                Mul(name="gated", inputs=(f"up{k}", "gate")),
            ]
        layers += [
            Dense.random(24, 16, seed=rng, name=f"down{k}"),
            Add(name=f"h{k + 1}", inputs=(f"r{k}", f"down{k}")),
        ]
    layers += [Mean(), Dense.random(16, 3, seed=rng, name="head")]
    return Network(layers, input_shape=(6,))


def _data(net: Network, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    (x,) = net.inputs
    shape = (n, *(k for k in x.shape[1:] if k is not None))
    if x.dtype == "int64":
        return rng.integers(0, 11, shape), rng.integers(0, 3, n)
    return rng.standard_normal(shape).astype(np.float32), rng.integers(0, 3, n)


def _settled(net: Network) -> Network:
    """Running statistics and norms that are not those of a fresh network."""
    x, y = _data(net)
    net.fit(x, y, fastopt.optim.Adam(net.params, lr=1e-2), epochs=3, batch_size=8)
    return net


def test_training_is_torchs_step_for_step() -> None:
    """The same start, the same batches, SGD with momentum: equal to 1e-4 after eight steps."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
            self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
            self.point = nn.Conv2d(8, 8, 1, bias=False)
            self.left = nn.Conv2d(8, 6, 3, padding=1, bias=False)
            self.right = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
            self.norms = nn.ModuleDict({
                k: nn.BatchNorm2d(n)
                for k, n in (("stem", 8), ("deep", 8), ("point", 8), ("left", 6), ("right", 8))
            })  # fmt: skip
            self.hidden, self.last = nn.Linear(56, 16), nn.Linear(16, 3)

        def forward(self, x):
            f = nn.functional
            x = f.relu(self.norms["stem"](self.stem(x)))
            y = f.relu(self.norms["deep"](self.deep(x)))
            x = f.max_pool2d(x + self.norms["point"](self.point(y)), 2)
            left = f.silu(self.norms["left"](self.left(x)))
            x = torch.cat([left, self.norms["right"](self.right(x))], 1)
            return self.last(f.relu(self.hidden(f.max_pool2d(x, 2).flatten(1))))

    net, twin = _conv_net(), Twin()
    dense = [m for m in net.layers if m.startswith("dense")]
    names = {"hidden": dense[0], "last": dense[1]}
    state = {}
    for name, p in twin.named_parameters():
        stem, _, kind = name.rpartition(".")
        ours = f"{stem[6:]}.norm" if stem.startswith("norms") else names.get(stem, stem)
        state[name] = f"{ours}.{kind}"
        p.data = torch.tensor(net.params[f"{ours}.{kind}"])
    assert set(state.values()) == set(net.params)
    mine = fastopt.optim.SGD(list(net.params.values()), lr=0.05, momentum=0.9)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    x, y = _data(net, 64)
    for step in range(8):
        rows = slice(8 * step, 8 * step + 8)
        loss, grads = net.value_and_grad(x[rows], y[rows])
        mine.step(list(grads.values()))
        theirs.zero_grad()
        wanted = nn.functional.cross_entropy(twin(torch.tensor(x[rows])), torch.tensor(y[rows]))
        wanted.backward()
        theirs.step()
        assert loss == pytest.approx(wanted.item(), abs=1e-4)
    for name, p in twin.named_parameters():
        np.testing.assert_allclose(net.params[state[name]], p.detach(), atol=1e-4)
    twin.eval()
    np.testing.assert_allclose(net.forward(x), twin(torch.tensor(x)).detach(), atol=1e-3)


@pytest.mark.parametrize("build", [_conv_net, _transformer])
def test_a_graphs_gradients_are_the_slopes_of_its_loss(build) -> None:
    net = _settled(build())
    x, y = _data(net)
    value, grads = net.value_and_grad(x, y, training=False)
    assert value == pytest.approx(net.loss(x, y), rel=1e-6)
    assert list(grads) == list(net.params)
    for name, p in net.params.items():
        keep, size = p.copy(), float(np.linalg.norm(grads[name]))
        if size < 1e-3:  # a bias before a softmax over keys has no effect
            continue
        step, values = 2e-3 * grads[name] / size, []
        for sign in (1, -1):
            p[...] = keep + sign * step
            values.append(net.loss(x, y))
        p[...] = keep
        assert (values[0] - values[1]) / 4e-3 == pytest.approx(size, rel=5e-2, abs=1e-4), name


@pytest.mark.parametrize("build", [_conv_net, _transformer])
def test_a_sliced_network_is_the_masked_one(build) -> None:
    """For every group that is not frozen, and all of them one after the other."""
    whole = _settled(build())
    x, _ = _data(whole)
    free = [name for name, g in whole.groups.items() if g.frozen is None]
    assert free
    rng = np.random.default_rng(0)
    small = whole.copy()
    for name in free:
        group = whole.groups[name]
        removed = np.sort(rng.choice(group.n_units, group.n_units // 2, replace=False))
        kept = np.setdiff1d(np.arange(group.n_units), removed)
        masked = {}
        for member in group.consumers:
            weight = masked.get(member.tensor, whole.layers[member.tensor].weight).copy()
            weight[:, member.index[removed].reshape(-1)] = 0
            masked[member.tensor] = weight
        (wanted, _), = whole.run({"X": x}, weights=masked)  # fmt: skip
        cut = whole.copy()
        cut.keep_units(name, kept)
        np.testing.assert_allclose(cut.forward(x), wanted["output"], rtol=1e-4, atol=1e-5)
        assert cut.n_params < whole.n_params
        assert cut.macs < whole.macs
        assert cut.groups[name].n_units == kept.size
        small.keep_units(name, kept)
    assert small.forward(x).shape == (len(x), 3)
    assert small.macs < 0.6 * whole.macs


def test_groups_of_a_conv_net() -> None:
    net = _conv_net()
    groups = {name: g for name, g in net.groups.items() if g.frozen is None}
    assert set(groups) == {"stem", "left", "right", net_dense(net)}
    stem = groups["stem"]  # a residual and a depthwise layer make one unit of four layers
    assert {m.tensor for m in stem.producers} == {"stem", "deep", "point"}
    assert {m.tensor for m in stem.consumers} == {"point", "left", "right"}
    assert {m.tensor for m in stem.others} == {
        f"{c}.norm.{k}" for c in ("stem", "deep", "point")
        for k in ("weight", "bias", "running_mean", "running_var")
    }  # fmt: skip
    sizes = {m.tensor: m.index.shape for m in groups["left"].consumers}
    assert sizes == {net_dense(net): (6, 4)}  # a channel is 2 x 2 columns after Flatten
    place = {m.tensor: m.index for m in groups["right"].consumers}[net_dense(net)]
    assert place.min() == 24  # after the concatenation's first six channels
    assert groups["right"].n_units == 4  # the same channel in both blocks


def net_dense(net: Network) -> str:
    return next(name for name in net.layers if name.startswith("dense"))


def test_groups_of_a_transformer() -> None:
    net = _transformer()
    free = {name: g for name, g in net.groups.items() if g.frozen is None}
    heads = free["a0.q"]
    assert heads.n_units == 4
    assert {m.tensor for m in heads.producers} == {"a0.q", "a0.k", "a0.v"}
    assert all(m.index.shape == (4, 4) for m in (*heads.producers, *heads.consumers))
    assert {m.tensor for m in free["up1"].producers} == {"up1", "gate"}
    assert set(free) == {"a0.q", "a1.q", "up0", "up1"}
    frozen = {n: g.frozen for n, g in net.groups.items() if g.frozen is not None}
    assert any("normalises over it" in why for why in frozen.values())
    stuck = next(name for name, why in frozen.items() if "normalises" in why)
    with pytest.raises(UnsupportedError, match="normalises"):
        net.keep_units(stuck, np.arange(2))


@pytest.mark.parametrize("build", [_conv_net, _transformer])
def test_a_layers_rows_times_its_weight_are_its_output(build) -> None:
    net = _settled(build())
    x, _ = _data(net)
    layers = {name: layer for name, layer in net.layers.items() if layer.tap is not None}
    taps = tuple(layer.tap for layer in layers.values())
    ((_, tapped),) = net.run({"X": x}, taps=taps)
    for name, layer in layers.items():
        rows = net.rows(name, tapped[layer.tap])
        per_row = layer.macs // layer.weight.size
        assert rows.shape == (layer.n_blocks, per_row * len(x), layer.weight.shape[1])
        module = net._graph.modules[name]
        if layer.kind == "conv":
            y = module.forward(tapped[layer.tap])[0] - (0 if layer.bias is None else layer.bias)
            y = y.transpose(1, 2, 3, 0).reshape(len(layer.weight), -1)
            blocks = layer.weight.reshape(layer.n_blocks, -1, layer.weight.shape[1])
            found = np.concatenate(list(blocks @ rows.transpose(0, 2, 1)))
            np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5)
        few = net.rows(name, tapped[layer.tap], 7)
        assert few.shape == (layer.n_blocks, 7, layer.weight.shape[1])


def test_folding_batch_norm_keeps_the_function() -> None:
    net = _settled(_conv_net())
    x, _ = _data(net)
    before, size = net.forward(x), net.nbytes
    done = net.fold()
    assert len(done) == 5
    assert not any(m.kind == "batch_norm" for m in net._graph.modules.values())
    np.testing.assert_allclose(net.forward(x), before, rtol=1e-3, atol=1e-4)
    assert net.nbytes < size
    assert net.fold() == ()
    again = _settled(_conv_net())
    again.store("left", "int8")
    assert len(again.fold()) == 4  # what is stored stays as it is


@pytest.mark.parametrize("build", [_conv_net, _transformer])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_graph_reads_back_and_predicts_the_same(build, suffix, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    net = _settled(build())
    net.store(next(iter(net.layers)), "int8")
    net.split_layer(list(net.layers)[-1], np.ones((3, 2), np.float32), np.ones((2, 16)))
    x, _ = _data(net)
    net.save(tmp_path / f"net{suffix}")
    back = Network.load(tmp_path / f"net{suffix}")
    np.testing.assert_array_equal(back.forward(x), net.forward(x))
    assert (back.nbytes, back.macs, list(back.layers)) == (net.nbytes, net.macs, list(net.layers))


def test_splitting_a_convolution_at_full_rank_changes_nothing() -> None:
    net = _settled(_conv_net())
    x, _ = _data(net)
    before = net.forward(x)
    u, s, vt = np.linalg.svd(net.layers["left"].weight, full_matrices=False)
    net.split_layer("left", u * s, vt)
    np.testing.assert_allclose(net.forward(x), before, rtol=1e-3, atol=1e-4)
    assert {"left.a", "left.b"} < set(net.layers)
    with pytest.raises(UnsupportedError, match="deep cannot"):
        net.split_layer("deep", np.ones((8, 2)), np.ones((2, 9)))


def test_graphs_that_do_not_fit_are_refused() -> None:
    conv = Conv2d.random(1, 4, 3, seed=0)
    with pytest.raises(OptionError, match="input_shape"):
        Network([conv])
    with pytest.raises(ArrayError, match="takes 1 channels, got 3"):
        Network([conv], input_shape=(3, 8, 8))
    with pytest.raises(ArrayError, match="larger than the image"):
        Network([conv], input_shape=(1, 2, 2))
    with pytest.raises(OptionError, match="reads 'nowhere'"):
        Network([conv, Activation(inputs=("nowhere",))], input_shape=(1, 8, 8))
    with pytest.raises(OptionError, match="nobody reads conv2d0"):
        Network([conv, GlobalAvgPool2d(inputs=("X",))], input_shape=(1, 8, 8))
    with pytest.raises(OptionError, match="two or more"):
        Network([conv, Add()], input_shape=(1, 8, 8))
    with pytest.raises(ArrayError, match="equal shapes"):
        Network([conv, Add(inputs=("X", "conv2d0"))], input_shape=(1, 8, 8))
    net = _conv_net()
    with pytest.raises(ArrayError, match="x: "):
        net.forward(np.zeros((2, 64), np.float32))
    with pytest.raises(ArrayError, match="index"):
        net.keep_units("stem", np.array([0, 0]))
    with pytest.raises(OptionError, match="group"):
        net.keep_units("nonsense", np.array([0]))


def test_the_users_modules_stay_as_they_are() -> None:
    layers = [Dense.random(4, 5, seed=0), Activation(), Dense.random(5, 2, seed=0)]
    first = Network(layers)
    second = Network(layers[::2])
    assert [m.name for m in layers] == [""] * 3
    assert list(first.layers) == ["dense0", "dense2"]
    assert list(second.layers) == ["dense0", "dense1"]


def test_integer_layers_multiply_codes(tmp_path: Path) -> None:
    """A layer in a +dynamic form is the row-by-row quantised product, also after a file."""
    net = _settled(_conv_net())
    x, _ = _data(net)
    taps = ("left.in", f"{net_dense(net)}.in")
    ((_, tapped),) = net.run({"X": x}, taps=taps)
    before = net.forward(x)
    for name in ("left", net_dense(net)):
        assert net.layers[name].form_named("int8+dynamic").activations == "dynamic"
        net.store(name, "int8+dynamic")
        layer, module = net.layers[name], net._graph.modules[name]
        assert layer.form.name == "int8+dynamic"
        given = tapped[f"{name}.in"]
        y = module.forward(given)[0]
        if layer.kind == "conv":  # as the plain twin: rows of patches, each with its own scale
            given = net.rows(name, given)[0]
            y = y.transpose(2, 3, 0, 1).reshape(len(given), -1)
        low = np.minimum(given.min(axis=1), 0)[:, None]
        scale = (np.maximum(given.max(axis=1), 0)[:, None] - low) / 255
        scale = np.where(scale == 0, 1, scale)
        zero = np.round(-low / scale)
        codes = np.clip(np.round(given / scale) + zero, 0, 255)
        wanted = ((codes - zero) * scale) @ layer.weight.T
        wanted += 0 if layer.bias is None else layer.bias
        wanted = np.maximum(wanted, 0) if name.startswith("dense") else wanted
        step = float(np.abs(layer.weight).sum(axis=1).max() * scale.max())
        np.testing.assert_allclose(y, wanted, atol=0.02 * step)  # ties of a few codes
        float_y = given @ layer.weight.T
        assert np.abs(y - float_y).max() > 0  # not the float product
    after = net.forward(x)
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())
    net.save(tmp_path / "net.npz")
    back = Network.load(tmp_path / "net.npz")
    np.testing.assert_array_equal(back.forward(x), after)
    assert back.layers["left"].form.name == "int8+dynamic"
    net.store("left", "float32")
    assert net.layers["left"].form.name == "float32"
    assert "int8+dynamic" not in {f.name for f in net.layers["deep"].forms}  # grouped


def test_training_starts_from_the_codes_values_and_stores_floats() -> None:
    net = _settled(_conv_net())
    x, y = _data(net)
    net.store(net_dense(net), "int8+dynamic")
    net.store("left", "int8+dynamic")
    plain = net.copy()
    for name in ("left", net_dense(net)):  # gradients by the float product, straight through
        plain.set_weight(name, net.layers[name].weight)
    grads, wanted = (n.value_and_grad(x, y, training=False)[1] for n in (net, plain))
    for name, g in wanted.items():
        away = np.linalg.norm(grads[name] - g) / max(float(np.linalg.norm(g)), 1e-6)
        assert away < 0.2, name
    net.fit(x, y, fastopt.optim.SGD(net.params, lr=1e-3), epochs=1)
    assert net.layers[net_dense(net)].form.name == "float32"


@pytest.mark.parametrize("build", [_conv_net, _transformer])
def test_no_rows_give_no_outputs(build) -> None:
    net = build()
    x, y = _data(net)
    assert net.forward(x[:0]).shape == (0, 3)
    assert net.predict(x[:0]).shape == (0,)
    net.store(net_dense(net) if build is _conv_net else "head", "int8+dynamic")
    assert net.forward(x[:0]).shape == (0, 3)
    with pytest.raises(ArrayError, match="at least one row"):
        net.value_and_grad(x[:0], y[:0])


def test_an_image_can_be_the_output() -> None:
    """The squared loss of an autoencoder's images."""
    net = Network([Conv2d.random(1, 4, 3, padding=1, seed=0), Activation(),
                   Conv2d.random(4, 1, 3, padding=1, seed=1)],
                  loss="squared", input_shape=(1, 5, 6))  # fmt: skip
    x = np.random.default_rng(0).standard_normal((8, 1, 5, 6)).astype(np.float32)
    wanted = 0.5 * float(((net.forward(x) - x) ** 2).sum()) / 8
    assert net.loss(x, x) == pytest.approx(wanted, rel=1e-5)
    before = net.loss(x, x)
    net.fit(x, x, fastopt.optim.Adam(net.params, lr=1e-2), epochs=20)
    assert net.loss(x, x) < 0.7 * before
    assert net.score(x, x) > 0


@pytest.mark.parametrize("build", [_conv_net, _transformer])
def test_the_passes_prune_every_group_and_refit(build) -> None:
    """A layer that makes and reads the same units (``point``) is refitted in its new shape."""
    net = _settled(build())
    x, _ = _data(net, 96)
    wanted = net.forward(x)
    units = {f"prune.{n}": 0.5 for n, g in net.groups.items() if g.frozen is None}
    bench = Workbench(Calibration(net, open_rows(x, net.inputs), 32))
    fold = {"fold.graph": True} if build is _conv_net else {}
    small = bench.apply(Recipe({**fold, **units})).model
    assert small.macs < 0.6 * net.macs
    fitted = bench.apply(Recipe({**fold, **units, "refit.outputs": 40})).model
    errors = [float(((m.forward(x) - wanted) ** 2).mean()) for m in (small, fitted)]
    assert errors[1] < 0.5 * errors[0]


def test_match_in_parts_is_match_of_all_rows(monkeypatch) -> None:
    net = _settled(_transformer())
    x, _ = _data(net, 150)
    target = net.forward(x) + 0.1
    twin = net.copy()
    whole = net.match(x, target, max_iter=3)
    monkeypatch.setattr("fastopt.models.network.model._PART_MACS", 1)
    parts = twin.match(x, target, max_iter=3)
    np.testing.assert_allclose(parts, whole, rtol=1e-3)
    assert whole[1] < whole[0]


def test_the_quantize_pass_offers_and_applies_integer_forms() -> None:
    """What target="latency" chooses from: forms that run in integers, with GPTQ's codes."""
    net = _settled(_conv_net())
    x, _ = _data(net, 96)
    dense = net_dense(net)
    offered = PASSES["quantize"].variables(net, integer_runs=True)
    assert "int8+dynamic" in offered[dense].options
    assert not any("dynamic" in o for o in PASSES["quantize"].variables(net)[dense].options)
    bench = Workbench(Calibration(net, open_rows(x, net.inputs), 32))
    keys = {f"quantize.{name}": "int8+dynamic" for name in (dense, "left", "point")}
    small = bench.apply(Recipe(keys)).model
    assert {small.layers[k.partition(".")[2]].form.name for k in keys} == {"int8+dynamic"}
    before = net.forward(x)
    np.testing.assert_allclose(small.forward(x), before, atol=0.05 * np.abs(before).max())
    assert small.nbytes < net.nbytes
