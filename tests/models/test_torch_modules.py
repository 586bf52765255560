"""torch modules through the one door: units found by labels, real smaller modules come back."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import fastopt  # noqa: E402
from fastopt.errors import ArrayError, OptionError, UnsupportedError  # noqa: E402
from fastopt.models.torch import TorchModel, is_module  # noqa: E402


class Block(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(c, 2 * c, 3, padding=1, bias=False), nn.BatchNorm2d(2 * c)
        self.dw = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c, bias=False)
        self.b2, self.c2 = nn.BatchNorm2d(2 * c), nn.Conv2d(2 * c, c, 1)

    def forward(self, x):
        h = F.relu(self.b2(self.dw(F.relu(self.b1(self.c1(x))))))
        return F.relu(x + self.c2(h))


class Residual(nn.Module):
    """Depthwise, batch-norm, a residual and a concat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 8, 3, padding="same"), nn.BatchNorm2d(8)
        self.a, self.side = Block(8), nn.Conv2d(8, 4, 1)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(12 * 16, 10)

    def forward(self, x):
        h = self.a(F.relu(self.bn(self.stem(x))))
        return self.fc(torch.flatten(self.pool(torch.cat([h, self.side(h)], 1)), 1))


class Attention(nn.Module):
    def __init__(self, d: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x):
        b, t, c = x.size()
        shape = (b, t, self.heads, c // self.heads)
        q, k, v = (m(x).view(*shape).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(8), -1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, c))


class Encoder(nn.Module):
    def __init__(self, fused: bool = False, d: int = 32) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(50, d), nn.Parameter(torch.randn(6, d) * 0.1)
        self.at, self.n1, self.n2 = Attention(d, 4, fused), nn.LayerNorm(d), nn.LayerNorm(d)
        self.f1, self.f2, self.out = nn.Linear(d, 64), nn.Linear(64, d), nn.Linear(d, 3)

    def forward(self, ids, scale=None):
        x = self.emb(ids) + self.pos
        x = self.n1(x + self.at(x))
        x = self.n2(x + self.f2(F.gelu(self.f1(x))))
        return self.out(x[:, 0])


class Splitting(nn.Module):
    """One projection cut into three, a one-dimensional convolution, an unknown operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv = nn.Conv1d(3, 12, 3, stride=2), nn.Linear(12, 24)
        self.norm, self.out = nn.GroupNorm(2, 24), nn.Linear(24, 2)

    def forward(self, x):
        h = torch.tanh(self.conv(x)).transpose(1, 2)
        a, b, c = self.qkv(h).chunk(3, dim=-1)
        return self.out(self.norm(torch.cat([a * b, c, a], -1).mean(1)))


def feeds():
    rng = np.random.default_rng(0)
    x = rng.standard_normal
    return {
        "sequential": {"input": x((6, 8)).astype("f4")},
        "residual": {"x": x((6, 1, 8, 8)).astype("f4")},
        "encoder": {"ids": rng.integers(0, 50, (6, 6))},
        "fused": {"ids": rng.integers(0, 50, (6, 6))},
        "splitting": {"x": x((6, 3, 9)).astype("f4")},
    }


def module(name: str):
    torch.manual_seed(0)
    made = {
        "sequential": lambda: nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)
        ),
        "residual": Residual,
        "encoder": Encoder,
        "fused": lambda: Encoder(fused=True),
        "splitting": Splitting,
    }[name]()
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 2)
    return made


def output(made, feed):
    made.eval()
    with torch.no_grad():
        return made(*map(torch.from_numpy, feed.values())).numpy()


FREE = {
    "sequential": {"0": 16, "2": 8},
    "residual": {"stem": 8, "a.c1": 16, "side": 4},
    "encoder": {"at.q": 4, "f1": 64},
    "fused": {"at.q": 4, "f1": 64},
    "splitting": {"conv": 12},
}


@pytest.mark.parametrize("name", FREE)
def test_units_are_found_and_a_sliced_module_is_the_masked_one(name) -> None:
    feed, net = feeds()[name], module(name)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = TorchModel(net, feed)
    found = {k: g.n_units for k, g in model.groups.items() if g.frozen is None}
    assert found == FREE[name]
    for group in found:
        kept = np.arange(0, found[group], 2)
        masked, sliced = model.copy(), model.copy()
        for member in model.groups[group].consumers:
            weight = masked.layers[member.tensor].weight.copy()
            gone = np.setdiff1d(np.arange(found[group]), kept)
            weight[:, member.index[gone].ravel()] = 0
            masked.set_weight(member.tensor, weight)
        sliced.keep_units(group, kept)
        small, dense = sliced.to_module(), masked.to_module()
        np.testing.assert_allclose(output(small, feed), output(dense, feed), atol=1e-4)
        assert sliced.macs < model.macs
        assert sum(p.numel() for p in small.parameters()) == sliced.n_params < model.n_params
    for k, v in net.state_dict().items():
        assert torch.equal(v, before[k])


def test_weights_are_read_without_a_copy() -> None:
    net = module("residual")
    model = TorchModel(net, feeds()["residual"])
    for name, layer in model.layers.items():
        weight = net.get_submodule(name).weight.detach().numpy()
        assert np.shares_memory(layer.weight, weight)
        assert not layer.weight.flags.writeable


def test_the_module_that_comes_back_is_real() -> None:
    for name in ("residual", "encoder"):
        feed, net = feeds()[name], module(name)
        model = TorchModel(net, feed)
        for group in FREE[name]:
            model.keep_units(group, np.arange(2))
        small = model.to_module()
        assert isinstance(small, type(net) if name == "residual" else torch.fx.GraphModule)
        assert small.training
        again = pickle.loads(pickle.dumps(small))
        fresh = copy.deepcopy(small)
        fresh.load_state_dict(again.state_dict())
        np.testing.assert_array_equal(output(fresh, feed), output(small, feed))
        small.train()
        step = torch.optim.SGD(small.parameters(), lr=0.05)
        first = None
        for _ in range(15):
            step.zero_grad()
            out = small(*map(torch.from_numpy, feed.values()))
            loss = F.cross_entropy(out, torch.zeros(6, dtype=torch.int64))
            loss.backward()
            step.step()
            first = loss.item() if first is None else first
        assert loss.item() < 0.7 * first


@pytest.mark.parametrize("name", ["residual", "encoder", "splitting"])
def test_a_full_rank_split_changes_nothing(name) -> None:
    feed, net = feeds()[name], module(name)
    model = TorchModel(net, feed)
    wanted = output(net, feed)
    for layer, found in list(model.layers.items()):
        if found.kind == "embedding" or found.n_blocks > 1:
            continue
        u, s, v = np.linalg.svd(found.weight, full_matrices=False)
        model.split_layer(layer, u * s, v)
        assert {f"{layer}.a", f"{layer}.b"} <= set(model.layers)
    (out, _), *_ = model.run(feed)
    np.testing.assert_allclose(out["output"], wanted, atol=1e-4)
    np.testing.assert_allclose(output(model.to_module(), feed), wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "encoder", "splitting"])
def test_a_layers_rows_times_its_weight_are_its_output(name) -> None:
    feed = feeds()[name]
    model = TorchModel(module(name), feed)
    for layer, found in model.layers.items():
        if found.tap is None:
            continue
        (_, tapped), *_ = model.run(feed, taps=(found.tap, found.output))
        blocks = model.rows(layer, tapped[found.tap])
        w = found.weight.reshape(found.n_blocks, -1, found.weight.shape[1])
        y = np.concatenate([r @ m.T for r, m in zip(blocks, w, strict=True)], axis=1)
        y = y if found.bias is None else y + found.bias
        out = tapped[found.output]
        out = np.moveaxis(out, 1, -1) if found.kind == "conv" else out
        np.testing.assert_allclose(y, out.reshape(-1, len(found.weight)), rtol=1e-3, atol=1e-4)
        (masked, _), *_ = model.run(feed, weights={layer: found.weight * 0})
        (plain, _), *_ = model.run(feed)
        assert not np.allclose(masked["output"], plain["output"])


def test_what_is_not_known_is_left_and_told() -> None:
    model = TorchModel(module("splitting"), feeds()["splitting"])
    assert any("GroupNorm" in note for note in model.notes)
    assert "no rule" in str(model.groups["qkv"].frozen)
    with pytest.raises(UnsupportedError, match="frozen"):
        model.keep_units("qkv", np.arange(4))


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.mid = nn.Embedding(20, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.emb.weight

        def forward(self, ids):
            return self.head(torch.relu(self.mid(self.emb(ids))))

    net = Tied()
    model = TorchModel(net, {"ids": np.arange(12).reshape(4, 3)})
    assert model.n_params == sum(p.numel() for p in net.parameters())
    model.set_weight("emb", np.zeros((20, 8), np.float32))
    small = model.to_module()
    assert small.head.weight is small.emb.weight
    assert not small.head.weight.any()
    assert net.emb.weight.any()


@pytest.fixture(scope="module")
def digits():
    load = pytest.importorskip("sklearn.datasets").load_digits
    x, y = load(return_X_y=True)
    x = (x / 16).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(60):
        opt.zero_grad()
        F.cross_entropy(net(torch.from_numpy(x[:1000])), torch.from_numpy(y[:1000])).backward()
        opt.step()
    return net, x, y


def test_compress_gives_a_smaller_module_within_the_drop(digits) -> None:
    net, x, y = digits
    found = fastopt.compress(
        net, (x[1000:], y[1000:]), calib=x[:1000], max_drop=0.02, max_evals=60
    )
    assert type(found.model) is nn.Sequential
    assert found.changed
    assert found.after.nbytes * 1.5 < found.before.nbytes
    right = (output(found.model, {"x": x[1000:]}).argmax(1) == y[1000:]).mean()
    dense = (output(net, {"x": x[1000:]}).argmax(1) == y[1000:]).mean()
    assert right >= dense - 0.03


def test_wrong_input_is_refused_by_name(digits, tmp_path) -> None:
    net, x, _ = digits
    assert is_module(net)
    assert not is_module(x)
    model = TorchModel(net, {"input": x[:4]})
    for bad, error, word in [
        (lambda: model.keep_units("nothing", np.arange(2)), OptionError, "group"),
        (lambda: model.keep_units("0", np.array([0, 0])), ArrayError, "index"),
        (lambda: model.keep_units("0", np.array([64])), ArrayError, "index"),
        (lambda: model.set_weight("0", np.zeros((3, 3))), ArrayError, "weight"),
        (lambda: model.split_layer("0", np.zeros((3, 2)), np.zeros((2, 3))), ArrayError, "a, b"),
        (lambda: model.store("0", "int8"), OptionError, "form"),
        (lambda: list(model.run({"input": x[:2]}, taps=("none",))), OptionError, "taps"),
        (lambda: list(model.run({"other": x[:2]})), ArrayError, "input"),
        (lambda: TorchModel(net.half(), {"input": x[:4]}), UnsupportedError, "float32"),
        (lambda: fastopt.compression.quantize_model(nn.Linear(2, 2)), OptionError, "data"),
    ]:
        with pytest.raises(error, match=word):
            bad()
        net.float()

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    branching = Branching()
    branching.p = nn.Parameter(torch.zeros(1))
    with pytest.raises(UnsupportedError, match="trace"):
        TorchModel(branching, {"x": x[:4]})
    model.save(tmp_path / "m.pt")
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    assert torch.equal(state["0.weight"], net[0].weight)
