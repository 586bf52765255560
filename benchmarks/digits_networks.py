"""A conv net and a transformer on digits, pruned: ``python -m benchmarks.digits_networks``.

Both are a ``fastopt.models.Network`` trained by ``fastopt.optim`` on scikit-learn's digits, 35 %
held out, five seeds. The conv net has a residual, a depthwise layer and batch-norm and loses half
the channels of every group; the transformer (two layers, the rows of an image are its tokens)
loses half of its feed-forward units and one head of four. 512 unlabelled calibration rows, no
training after the cut; "fitted" brings all weights to the original's outputs. Then the time of an
epoch beside torch's, and the latency before and after, each interleaved in this process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastopt
from fastopt.compression import Recipe
from fastopt.compression.data import open_rows
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.recipe import Workbench
from fastopt.models import Network
from fastopt.models.network import (
    Activation,
    Add,
    BatchNorm,
    Conv2d,
    Dense,
    GlobalAvgPool2d,
    LayerNorm,
    Mean,
    Module,
    Positions,
    self_attention,
)  # fmt: skip

SEEDS = 5
ROWS = 512
WIDTH = 32


def conv_net(seed: int, width: int = WIDTH) -> Network:
    """Stem, a depthwise and a pointwise layer with a residual, a strided and a residual layer."""
    rng = np.random.default_rng(seed)

    def conv(n_in: int, n_out: int, kernel: int, name: str, **more: int) -> list[Module]:
        made = Conv2d.random(n_in, n_out, kernel, bias=False, seed=rng, name=name, **more)
        return [made, BatchNorm.fresh(n_out, name=f"{name}.norm")]

    return Network(
        [
            *conv(1, width, 3, "stem", padding=1), Activation(name="h0"),
            *conv(width, width, 3, "depth", padding=1, groups=width), Activation(),
            *conv(width, width, 1, "point"),
            Add(inputs=("h0", "point.norm")), Activation(name="h1"),
            *conv(width, 2 * width, 3, "down", padding=1, stride=2), Activation(name="h2"),
            *conv(2 * width, 2 * width, 3, "body", padding=1),
            Add(inputs=("h2", "body.norm")), Activation(),
            GlobalAvgPool2d(), Dense.random(2 * width, 10, seed=rng, name="head"),
        ],
        input_shape=(1, 8, 8),
    )  # fmt: skip


def transformer(seed: int, width: int = 32) -> Network:
    """Two layers of four heads and a feed-forward part four times as wide."""
    rng = np.random.default_rng(seed)
    layers: list[Module] = [
        Dense.random(8, width, seed=rng, name="rows"), Positions.random(8, width, rng, name="h0"),
    ]  # fmt: skip
    for k in range(2):
        layers += [
            LayerNorm.fresh(width, name=f"n{k}"), *self_attention(f"a{k}", width, 4, f"n{k}", rng),
            Add(name=f"r{k}", inputs=(f"h{k}", f"a{k}.out")), LayerNorm.fresh(width),
            Dense.random(width, 4 * width, "gelu", rng, name=f"up{k}"),
            Dense.random(4 * width, width, seed=rng, name=f"down{k}"),
            Add(name=f"h{k + 1}", inputs=(f"r{k}", f"down{k}")),
        ]  # fmt: skip
    layers += [LayerNorm.fresh(width), Mean(), Dense.random(width, 10, seed=rng, name="head")]
    return Network(layers, input_shape=(8, 8))


def data(seed: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Train and test rows, train and test labels."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, *shape)
    return train_test_split(x, y, test_size=0.35, random_state=seed, stratify=y)


def trained(build: Callable[[int], Network], seed: int, epochs: int) -> tuple[Network, list]:
    """The network after Adam with a rate that falls to zero, and its data."""
    net = build(seed)
    parts = data(seed, net.inputs[0].shape[1:])
    optimizer = fastopt.optim.Adam(net.params, lr=3e-3)

    def slower(epoch: int, loss: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - (epoch + 1) / epochs)

    net.fit(parts[0], parts[2], optimizer, epochs=epochs, batch_size=64, callback=slower)
    return net, parts


def recipes(net: Network) -> dict[str, Recipe]:
    """Heads (units that a query makes) keep three of four, other units a half."""
    folded = net.copy()
    fold = {"fold.graph": True} if folded.fold() else {}
    units = {
        f"prune.{name}": 0.75 if name.endswith(".q") else 0.5
        for name, group in folded.groups.items()
        if group.frozen is None
    }
    int8 = {f"quantize.{name}": "int8" for name in folded.layers}
    return {
        "pruned": Recipe({**fold, **units}),
        "pruned, fitted": Recipe({**fold, **units, "refit.outputs": 150}),
        "pruned, fitted, int8": Recipe({**fold, **units, "refit.outputs": 150, **int8}),
    }


def accuracies() -> None:
    """A table a network."""
    for build, epochs in ((conv_net, 20), (transformer, 60)):
        table: dict[str, list[float]] = {}
        facts: dict[str, tuple[int, int]] = {}
        for seed in range(SEEDS):
            net, (x, test, _, wanted) = trained(build, seed, epochs)
            calibration = Calibration(net, open_rows(x[:ROWS], net.inputs), 64)
            made = {"dense": net}
            for name, recipe in recipes(net).items():
                made[name] = Workbench(calibration).apply(recipe).model
            for name, model in made.items():
                table.setdefault(name, []).append(100 * float(model.score(test, wanted)))
                facts[name] = model.macs, model.nbytes
        dense = np.array(table["dense"])
        print(f"\n| {build.__name__} | multiply-adds | bytes | test accuracy, % | below (95 %) |")
        print("|---|---|---|---|---|")
        for name, scores in table.items():
            lost = dense - scores
            wide = 2.776 * lost.std(ddof=1) / np.sqrt(SEEDS)  # Student's t, 4 degrees of freedom
            macs, size = facts[name]
            print(
                f"| {name} | {macs:,} | {size:,} | {np.mean(scores):.2f} | "
                f"{lost.mean():.2f} +- {wide:.2f} |"
            )


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least wall time of each, one after the other in every round."""
    found = dict.fromkeys(calls, np.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def latencies() -> None:
    """Before and after half the channels, against the multiply-adds."""
    for batch, width in ((1, 32), (64, 32), (64, 64)):
        whole = conv_net(0, width)
        whole.fold()
        half = whole.copy()
        for name in [n for n, g in half.groups.items() if g.frozen is None]:
            n = half.groups[name].n_units
            half.keep_units(name, np.arange(n // 2))
        x = np.random.default_rng(0).random((batch, 1, 8, 8), np.float32)
        times = interleaved(
            {"whole": whole.runner({"X": x}), "half": half.runner({"X": x})}, rounds=300
        )
        before, after = times["whole"], times["half"]
        print(
            f"latency, width {width}, {batch} rows: {before * 1e6:.0f} -> {after * 1e6:.0f} us, "
            f"{before / after:.2f} times faster with {whole.macs / half.macs:.2f} times fewer "
            "multiply-adds"
        )


def torch_net(width: int) -> Any:
    """The same conv net as a torch module."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
            self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            self.point = nn.Conv2d(width, width, 1, bias=False)
            self.down = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2, bias=False)
            self.body = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(width * k) for k in (1, 1, 1, 2, 2))
            self.head = nn.Linear(2 * width, 10)

        def forward(self, x: Any) -> Any:
            relu, norms = nn.functional.relu, self.norms
            x = relu(norms[0](self.stem(x)))
            x = relu(x + norms[2](self.point(relu(norms[1](self.depth(x))))))
            x = relu(norms[3](self.down(x)))
            x = relu(x + norms[4](self.body(x)))
            return self.head(x.mean((2, 3)))

    return Net()


def epochs() -> None:
    """The time of an epoch beside torch's with its default threads."""
    for width in (16, 32, 64):
        times = interleaved({"ours": our_epoch(width), "torch": torch_epoch(width)}, 15)
        ours, theirs = times["ours"], times["torch"]
        print(
            f"epoch, width {width}: {ours * 1e3:.0f} ms, torch {theirs * 1e3:.0f} ms, "
            f"{ours / theirs:.2f} times"
        )


def our_epoch(width: int) -> Callable[[], object]:
    """One epoch of the conv net."""
    x, _, y, _ = data(0, (1, 8, 8))
    net = conv_net(0, width)
    optimizer = fastopt.optim.Adam(net.params, lr=1e-3)
    return lambda: net.fit(x, y, optimizer, epochs=1, batch_size=64)


def torch_epoch(width: int) -> Callable[[], object]:
    """One epoch of torch's."""
    import torch

    arrays = data(0, (1, 8, 8))
    x, y = torch.tensor(arrays[0]), torch.tensor(arrays[2])
    module = torch_net(width)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def epoch() -> None:
        for index in torch.randperm(len(x)).split(64):
            loss = torch.nn.functional.cross_entropy(module(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


if __name__ == "__main__":
    print(f"load {os.getloadavg()[0]:.1f}")
    epochs()
    latencies()
    accuracies()
