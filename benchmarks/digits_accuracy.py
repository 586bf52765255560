"""Accuracy of a pruned digits MLP without labels: ``python -m benchmarks.digits_accuracy``.

scikit-learn's MLPClassifier(256, 128) on digits, 35 % held out, 512 unlabelled calibration rows,
five seeds. Both hidden layers keep an equal share of their units (OBS, consumers refitted), then
all weights are fitted to the original's outputs; or 95 % of all weights become zeros (OBS).
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import fastopt
from fastopt.calibration import Gram
from fastopt.compression import Recipe
from fastopt.compression.data import open_rows
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.recipe import Workbench
from fastopt.models import Dense, Network

SEEDS = 5
ROWS = 512


def recipes(net: Network) -> dict[str, Recipe]:
    """The table's columns."""
    found = {}
    for share, name in ((8, "18x"), (16, "39x")):
        units = {f"prune.{group}": 1 / share for group in net.groups}
        fitted = {**units, "refit.outputs": 150}
        found[name] = Recipe(units)
        found[name + ", fitted"] = Recipe(fitted)
        found[name + ", fitted, int8"] = Recipe(
            {**fitted, **{f"quantize.{layer}": "int8" for layer in net.layers}}
        )
    return found


def sparse(net: Network, x: np.ndarray, sparsity: float, last: float) -> Network:
    """Layer by layer, each by OBS on what the pruned layers before it give; ``last`` of the small
    last layer's weights become zeros, so much more of the others that ``sparsity`` of all do."""
    small = net.copy()
    sizes = [layer.weight.size for layer in net.layers.values()]
    rest = (sparsity * sum(sizes) - last * sizes[-1]) / sum(sizes[:-1])
    for name in net.layers:
        layer = small.layers[name]
        _, taps = next(iter(small.run({small.inputs[0].name: x}, taps=(layer.tap,))))
        rows = taps[layer.tap]
        share = last if name == list(net.layers)[-1] else rest
        gram = Gram(rows.shape[1]).update(rows)
        small.set_weight(name, fastopt.prune(layer.weight, share, gram=gram).arrays)
    return small


def main() -> None:
    warnings.filterwarnings("ignore")
    table: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        x, y = load_digits(return_X_y=True)
        x = (x / 16).astype(np.float32)
        train, test, train_y, test_y = train_test_split(
            x, y, test_size=0.35, random_state=seed, stratify=y
        )
        mlp = MLPClassifier((256, 128), max_iter=200, random_state=seed).fit(train, train_y)
        net = Network(
            [
                Dense(
                    w.T.astype(np.float32), b.astype(np.float32), "relu" if k < 2 else "identity"
                )
                for k, (w, b) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True))
            ]
        )
        calibration = Calibration(net, open_rows(train[:ROWS], net.inputs), 64)
        made = {"dense": net}
        for name, recipe in recipes(net).items():
            made[name] = Workbench(calibration).apply(recipe).model
        made["95 % zeros"] = sparse(net, train[:ROWS], 0.95, 0.7)
        for name, model in made.items():
            table.setdefault(name, []).append(100 * float((model.predict(test) == test_y).mean()))
    dense = np.array(table["dense"])
    print("| network | mean test accuracy, % | below the dense one (95 % interval, paired) |")
    print("|---|---|---|")
    for name, scores in table.items():
        lost = dense - scores
        wide = 2.776 * lost.std(ddof=1) / np.sqrt(SEEDS)  # Student's t, four degrees of freedom
        print(f"| {name} | {np.mean(scores):.2f} | {lost.mean():.2f} +- {wide:.2f} |")


if __name__ == "__main__":
    main()
