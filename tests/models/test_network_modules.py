"""Modules of models.network against torch.nn and against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastopt.errors import ArrayError, OptionError
from fastopt.models.network import (
    Activation,
    Add,
    Attention,
    AvgPool2d,
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
    Softmax,
    self_attention,
)  # fmt: skip

IMAGE = (6, 7, 8)
FUNCTIONS = ("relu", "tanh", "sigmoid", "silu", "gelu")
CONVS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 3, "padding": 1, "bias": False},
    "depthwise": {"kernel_size": 3, "groups": 6, "padding": 1},
    "depthwise strided": {"kernel_size": 3, "groups": 6, "stride": 2, "dilation": (1, 2)},
    "depthwise doubled": {"kernel_size": 3, "groups": 6, "n_out": 12},
    "pointwise": {"kernel_size": 1},
}


def _randoms(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _norm() -> BatchNorm:
    rng = np.random.default_rng(1)
    values = rng.uniform(0.5, 2, (4, 6)).astype(np.float32)
    return BatchNorm(*values)


def _modules() -> dict[str, tuple[Module, list[np.ndarray], Callable[[Any], Any] | None]]:
    """By name: a module, its inputs, and what torch computes of a namespace of its tensors."""
    torch = pytest.importorskip("torch")
    nn = torch.nn.functional
    x, tokens = _randoms((3, *IMAGE)), _randoms((3, 5, 8))
    found: dict[str, Any] = {}
    for name, options in CONVS.items():
        own = {k: v for k, v in options.items() if k not in ("kernel_size", "n_out")}
        conv = Conv2d.random(6, options.get("n_out", 9 if "grouped" in name else 6),
                             options["kernel_size"], seed=2, **own)  # fmt: skip
        given = {k: v for k, v in own.items() if k != "bias"}
        found[f"conv {name}"] = (
            conv, [x],
            lambda p, given=given: nn.conv2d(p["x0"], p["weight"], p.get("bias"), **given),
        )  # fmt: skip
    for function in FUNCTIONS:
        call = getattr(nn, function)
        found[function] = (Activation(function), [x], lambda p, call=call: call(p["x0"]))
        found[f"dense {function}"] = (
            Dense(_randoms((4, 8), 1), _randoms((4,), 2), function), [tokens],
            lambda p, call=call: call(nn.linear(p["x0"], p["weight"], p["bias"])),
        )  # fmt: skip
    y, z = _randoms((3, *IMAGE), 3), _randoms((3, *IMAGE), 4)
    gates = [_randoms((3, 5, 8), k) for k in range(3)]
    norm = _norm()

    def batch_norm(p: Any, training: bool = False) -> Any:
        running = [torch.tensor(a.copy()) for a in (norm.running_mean, norm.running_var)]
        return nn.batch_norm(p["x0"], *running, p["weight"], p["bias"], training)

    found |= {
        "batch norm": (_norm(), [x], batch_norm),
        "layer norm": (
            LayerNorm(_randoms((8,), 1), _randoms((8,), 2)), [tokens],
            lambda p: nn.layer_norm(p["x0"], (8,), p["weight"], p["bias"]),
        ),
        "max pool": (MaxPool2d(2), [x], lambda p: nn.max_pool2d(p["x0"], 2)),
        "max pool padded": (
            MaxPool2d(3, 2, 1), [x], lambda p: nn.max_pool2d(p["x0"], 3, 2, 1),
        ),
        "avg pool": (AvgPool2d(2), [x], lambda p: nn.avg_pool2d(p["x0"], 2)),
        "avg pool padded": (AvgPool2d(3, 2, 1), [x], lambda p: nn.avg_pool2d(p["x0"], 3, 2, 1)),
        "global pool": (GlobalAvgPool2d(), [x], lambda p: p["x0"].mean((2, 3))),
        "mean": (Mean(), [tokens], lambda p: p["x0"].mean(1)),
        "flatten": (Flatten(), [x], lambda p: p["x0"].flatten(1)),
        "add": (Add(), [x, y, z], lambda p: p["x0"] + p["x1"] + p["x2"]),
        "mul": (Mul(), [x, y, z], lambda p: p["x0"] * p["x1"] * p["x2"]),
        "concat": (Concat(), [x, y], lambda p: torch.cat([p["x0"], p["x1"]], 1)),
        "concat features": (Concat(-1), gates[:2], lambda p: torch.cat([p["x0"], p["x1"]], -1)),
        "softmax": (Softmax(), [tokens], lambda p: p["x0"].softmax(-1)),
        "positions": (
            Positions(_randoms((5, 8), 1)), [tokens], lambda p: p["x0"] + p["weight"]
        ),
        "attention": (
            Attention(2), gates,
            lambda p: nn.scaled_dot_product_attention(
                *(p[f"x{k}"].unflatten(-1, (2, 4)).transpose(1, 2) for k in range(3))
            ).transpose(1, 2).flatten(2),
        ),
    }  # fmt: skip
    return found


NAMES = [
    *(f"conv {name}" for name in CONVS),
    *FUNCTIONS,
    *(f"dense {name}" for name in FUNCTIONS),
    *("batch norm", "layer norm", "max pool", "max pool padded", "avg pool", "avg pool padded"),
    *("global pool", "mean", "flatten", "add", "mul", "concat", "concat features", "softmax"),
    *("positions", "attention"),
]


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_are_torchs(name) -> None:
    torch = pytest.importorskip("torch")
    module, xs, call = _modules()[name]
    tensors = {f"x{k}": torch.tensor(x, requires_grad=True) for k, x in enumerate(xs)}
    held = {k: a for k, a in module.held().items() if k in module.arrays}
    tensors |= {k: torch.tensor(a, requires_grad=True) for k, a in held.items()}
    wanted = call(tensors)
    module.name = "it"
    assert module.shape(*(x.shape[1:] for x in xs)) == tuple(wanted.shape[1:])
    y, saved = module.forward(*xs)
    np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-5, atol=2e-6)
    dy = _randoms(tuple(wanted.shape), 9)
    wanted.backward(torch.tensor(dy))
    backs, grads = module.backward(dy, saved)
    for k, back in enumerate(backs):
        np.testing.assert_allclose(back, tensors[f"x{k}"].grad, rtol=1e-4, atol=1e-5)
    assert set(grads) == set(held)
    for k, grad in grads.items():
        np.testing.assert_allclose(grad, tensors[k].grad, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_backward_is_the_slope_of_forward(name) -> None:
    """Directional finite differences of sum(dy * y) in float32."""
    module, xs, _ = _modules()[name]
    y, saved = module.forward(*xs)
    dy = _randoms(y.shape, 9)
    backs, grads = module.backward(dy, saved)
    places = [(x, g) for x, g in zip(xs, backs, strict=True)]
    places += [(getattr(module, k), g) for k, g in grads.items()]
    for k, (place, slope) in enumerate(places):
        keep, values = place.copy(), []
        noise = _randoms(place.shape, 20 + k)  # half of it, so that the slope stands out
        direction = slope / np.linalg.norm(slope) + noise / np.linalg.norm(noise)
        h = 1e-3 / np.abs(direction).max()  # few elements pass a kink of relu or max
        for sign in (1, -1):
            place[...] = keep + sign * h * direction
            values.append(float((dy.astype(np.float64) * module.forward(*xs)[0]).sum()))
        place[...] = keep
        wanted = float((slope.astype(np.float64) * direction).sum())
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(wanted, rel=1e-2)


def test_batch_norm_in_training_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = BatchNorm.fresh(6, momentum=0.3), torch.nn.BatchNorm2d(6, momentum=0.3)
    ours.weight[:] = _randoms((6,), 5)
    theirs.weight.data = torch.tensor(ours.weight)
    for step in range(3):
        x, dy = 2 * _randoms((4, *IMAGE), step) + 1, _randoms((4, *IMAGE), 10 + step)
        t = torch.tensor(x, requires_grad=True)
        wanted = theirs(t)
        wanted.backward(torch.tensor(dy))
        y, saved = ours.forward(x, training=True)
        (back,), grads = ours.backward(dy, saved)
        np.testing.assert_allclose(y, wanted.detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(back, t.grad, rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(grads["bias"], theirs.bias.grad, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(grads["weight"], theirs.weight.grad, rtol=1e-4, atol=1e-4)
        theirs.zero_grad()
    np.testing.assert_allclose(ours.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.running_var, theirs.running_var, rtol=1e-5)


def test_embedding_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    ours = Embedding.random(7, 4, seed=0)
    table = torch.tensor(ours.weight, requires_grad=True)
    x = np.random.default_rng(0).integers(0, 7, (3, 5))
    y, saved = ours.forward(x)
    dy = _randoms(y.shape)
    torch.nn.functional.embedding(torch.tensor(x), table).backward(torch.tensor(dy))
    np.testing.assert_array_equal(y, ours.weight[x])
    np.testing.assert_allclose(ours.backward(dy, saved)[1]["weight"], table.grad, rtol=1e-5)
    with pytest.raises(ArrayError, match="expected integers"):
        ours.forward(x + 7)


def test_a_convolution_in_blocks_of_lines_is_the_same(monkeypatch) -> None:
    conv = Conv2d.random(6, 5, 3, stride=(2, 1), padding=1, seed=0)
    x, dy = _randoms((3, *IMAGE)), _randoms((3, 5, 4, 8), 1)
    y, saved = conv.forward(x)
    backs, grads = conv.backward(dy, saved)
    monkeypatch.setattr("fastopt.models.network.conv._BLOCK", 1)
    again, saved = conv.forward(x)
    np.testing.assert_allclose(again, y, rtol=1e-5, atol=1e-6)
    backs_again, grads_again = conv.backward(dy, saved)
    np.testing.assert_allclose(backs_again[0], backs[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads_again["weight"], grads["weight"], rtol=1e-5, atol=1e-5)


def test_self_attention_is_torchs_multi_head_attention() -> None:
    torch = pytest.importorskip("torch")
    made = {m.name: m for m in self_attention("a", 8, 2, "X", seed=0)}
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        parts = [made[f"a.{k}"].weight for k in "qkv"]
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate(parts)))
        theirs.out_proj.weight.copy_(torch.tensor(made["a.out"].weight))
    x = _randoms((3, 5, 8))
    wanted = theirs(*[torch.tensor(x)] * 3, need_weights=False)[0].detach()
    heads = made["a"].forward(*(made[f"a.{k}"](x) for k in "qkv"))[0]
    np.testing.assert_allclose(made["a.out"](heads), wanted, rtol=1e-5, atol=1e-6)


def test_wrong_modules_are_refused_by_name() -> None:
    with pytest.raises(ArrayError, match="weight"):
        Conv2d(np.zeros((5, 2, 3, 3)), groups=2)
    with pytest.raises(OptionError, match="stride"):
        Conv2d(np.zeros((5, 2, 3, 3)), stride=0)
    with pytest.raises(OptionError, match="padding"):
        MaxPool2d(2, padding=2)
    with pytest.raises(OptionError, match="function"):
        Activation("swish")
    with pytest.raises(OptionError, match="momentum"):
        BatchNorm.fresh(3, momentum=2)
    with pytest.raises(ArrayError, match="running_var"):
        BatchNorm(*np.full((4, 3), -1, np.float32))
    with pytest.raises(OptionError, match="n_heads"):
        Attention(0)
    with pytest.raises(ArrayError, match="width"):
        self_attention("a", 9, 2, "X")
