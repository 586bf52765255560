"""Accuracy against size of every method, on one network, without training after the cut.

    python examples/accuracy_against_size.py [--whole] [--seeds 1] [--peers] [--svg curves.svg]

Trains an MLP on scikit-learn's digits with fastopt, cuts it by each method to several sizes, and
prints the test accuracy of each; ``--whole`` takes the hidden layers 256 and 128 instead of 48 and
32, ``--peers`` adds torch.nn.utils.prune and Torch-Pruning on the same network.
"""

import argparse
import sys

import numpy as np

import fastopt
from fastopt.compression import Recipe
from fastopt.compression.data import open_rows
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.recipe import Workbench
from fastopt.models import Network
from fastopt.optim import Adam
from fastopt.pruning import SparseLinear

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit(print("the digits come with scikit-learn: pip install scikit-learn"))

SHARES = (0.5, 0.25, 0.125, 0.0625)
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")


def data(seed):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    n = len(x) * 65 // 100
    return (x[:n], y[:n]), (x[n:], y[n:])


def largest_units(net, share):
    """Units of the largest norm; nothing makes up for the others."""
    made = net.copy()
    for name, group in net.groups.items():
        keep = max(1, round(share * group.n_units))
        norms = np.linalg.norm(made.layers[name].weight, axis=1)
        made.keep_units(name, np.sort(np.argsort(-norms)[:keep]))
    return made


def sparse(net, share, bench, **options):
    """Connections; the size is that of a sparse layer."""
    made = net.copy()
    layers = net.layers
    weights = {n: layer.weight for n, layer in layers.items()}
    if options.get("method"):
        grams = bench.apply(Recipe()).calibration.grams(weights)
        weights = {
            n: fastopt.prune(w, 1 - share, gram=grams[n], **options).arrays
            for n, w in weights.items()
        }
    else:
        weights = fastopt.prune(weights, 1 - share, **options).arrays
    for name, w in weights.items():
        made.set_weight(name, w)
    stored = sum(SparseLinear.from_dense(w, "csr").nbytes for w in weights.values())
    return made, stored + sum(layer.bias.nbytes for layer in layers.values())


def methods(net, bench):
    """Name -> function of the share that stays -> (model, bytes)."""

    def recipe(*passes, bits=None):
        def cut(share):
            choices = {}
            for name in passes:
                places = net.layers if name == "layer" else net.groups
                choices |= {f"{name}.{place}": share for place in places}
            if bits:
                choices |= {f"quantize.{layer}": bits for layer in net.layers}
            made = bench.apply(Recipe(choices)).model
            return made, made.nbytes

        return cut

    def largest(share):
        made = largest_units(net, share)
        return made, made.nbytes

    return {
        "units, magnitude": largest,
        "units, OBS and refit": recipe("prune"),
        "units, OBS and refit, int8": recipe("prune", bits="int8"),
        "units, merged": recipe("merge"),
        "layers split, low rank": recipe("layer"),
        "connections, magnitude": lambda share: sparse(net, share, bench),
        "connections, SparseGPT": lambda share: sparse(net, share, bench, method="sparsegpt"),
        "connections, OBS": lambda share: sparse(net, share, bench, method="obs"),
    }


def peers(net, x):
    """torch.nn.utils.prune and Torch-Pruning on the same weights."""
    import torch
    import torch_pruning
    from torch.nn.utils import prune

    def module():
        parts = []
        for layer in net.layers.values():
            parts += [torch.nn.Linear(*layer.weight.shape[::-1]), torch.nn.ReLU()]
            parts[-2].weight.data = torch.tensor(layer.weight)
            parts[-2].bias.data = torch.tensor(layer.bias)
        return torch.nn.Sequential(*parts[:-1])

    class Scored:
        def __init__(self, made):
            self.made = made

        def score(self, x, y):
            with torch.no_grad():
                return float((self.made(torch.tensor(x)).argmax(1).numpy() == y).mean())

    def connections(share):
        made = module()
        linear = [(m, "weight") for m in made if isinstance(m, torch.nn.Linear)]
        prune.global_unstructured(linear, prune.L1Unstructured, amount=1 - share)
        nbytes = sum(
            SparseLinear.from_dense(m.weight.detach().numpy(), "csr").nbytes + m.bias.nbytes
            for m, _ in linear
        )
        return Scored(made), nbytes

    def smaller(share):
        made = module()
        pruner = torch_pruning.pruner.MagnitudePruner(
            made, torch.tensor(x[:8]), torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=1 - share, ignored_layers=[made[-1]],
        )  # fmt: skip
        pruner.step()
        return Scored(made), 4 * sum(p.numel() for p in made.parameters())

    return {"torch.nn.utils.prune": connections, "Torch-Pruning": smaller}


def curves(hidden, seeds, with_peers):
    """Method -> [(bytes, accuracy) for each share], means over the seeds; and the dense one."""
    found, dense = {}, []
    for seed in range(seeds):
        train, test = data(seed)
        net = Network.mlp((64, *hidden, 10), seed=seed)
        net.fit(*train, Adam(list(net.params.values()), lr=2e-3), epochs=30, seed=seed)
        bench = Workbench(Calibration(net, open_rows(train[0][:512], net.inputs), 64))
        dense.append((net.nbytes, net.score(*test)))
        ways = methods(net, bench) | (peers(net, train[0]) if with_peers else {})
        for name, cut in ways.items():
            for share in SHARES:
                made, nbytes = cut(share)
                found.setdefault((name, share), []).append((nbytes, made.score(*test)))
    means = {key: tuple(np.mean(points, axis=0)) for key, points in found.items()}
    names = dict.fromkeys(name for name, _ in means)
    return {n: [means[n, s] for s in SHARES] for n in names}, tuple(np.mean(dense, axis=0))


def svg(found, dense):
    """The curves as a picture; bytes on a logarithmic axis."""
    low = min(b for points in found.values() for b, _ in points)

    def place(nbytes, accuracy):
        across = np.log(nbytes / low) / np.log(dense[0] / low)
        return f"{50 + 520 * across:.1f},{330 - 300 * accuracy:.1f}"

    lines = ['<svg xmlns="http://www.w3.org/2000/svg" width="840" height="370" font-size="12">']
    for k, (name, points) in enumerate(found.items()):
        color = COLORS[k % len(COLORS)]
        path = " ".join(place(*p) for p in [dense, *points])
        lines.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        lines.append(f'<text x="600" y="{40 + 20 * k}" fill="{color}">{name}</text>')
    for accuracy in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = 330 - 300 * accuracy
        lines.append(f'<text x="8" y="{y}">{accuracy:.0%}</text>')
        lines.append(f'<line x1="50" x2="570" y1="{y}" y2="{y}" stroke="#dddddd"/>')
    lines.append(f'<text x="50" y="355">{low:,.0f} bytes</text>')
    lines.append(f'<text x="490" y="355">{dense[0]:,.0f} bytes</text></svg>')
    return "\n".join(lines)


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--whole", action="store_true")
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--peers", action="store_true")
parser.add_argument("--svg", default="curves.svg")
options = parser.parse_args()
hidden = (256, 128) if options.whole else (48, 32)
found, dense = curves(hidden, options.seeds, options.peers)
print(f"dense: {dense[1]:.1%} in {dense[0]:,.0f} bytes")
print("| method | " + " | ".join(f"{s:g} stays" for s in SHARES) + " |")
print("|---|" + "---|" * len(SHARES))
for name, points in found.items():
    cells = " | ".join(f"{a:.1%} in {b / 1000:.1f} kB" for b, a in points)
    print(f"| {name} | {cells} |")
with open(options.svg, "w", encoding="utf-8") as file:
    file.write(svg(found, dense))
