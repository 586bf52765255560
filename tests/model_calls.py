"""Valid calls of the public functions of models and compression, for tests/damage.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import layering, optim
from fastopt.compression import (
    Recipe,
    apply_recipe,
    compare_models,
    inspect_model,
    open_model,
    quantize_model,
)
from fastopt.errors import ArrayError
from fastopt.models import ArrayModel, Network
from fastopt.models import network as modules
from tests.array_calls import Call, Rng, f4

# -- models --------------------------------------------------------------------------------------


def mlp() -> Network:
    return Network.mlp((6, 8, 3), seed=0)


def convolutional() -> Network:
    rng = np.random.default_rng(0)
    return Network(
        [modules.Conv2d(f4(rng, 4, 2, 3, 3), f4(rng, 4), padding=1),
         modules.BatchNorm(*(abs(f4(rng, 4)) for _ in range(4))), modules.Activation("relu"),
         modules.MaxPool2d(2), modules.Flatten(), modules.Dense(f4(rng, 3, 16), f4(rng, 3))],
        input_shape=(2, 4, 4),
    )  # fmt: skip


SPEC: dict[str, Any] = {
    "layers": ["*.weight"],
    "groups": [{"name": "hidden", "makes": ["a.weight:0"], "with": ["a.bias:0"],
                "reads": ["b.weight:1"]}],
    "independent": ["b.bias:0"],
}  # fmt: skip


def named(rng: Rng) -> dict[str, np.ndarray]:
    shapes = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (3, 6), "b.bias": (3,)}
    return {name: f4(rng, *shape) for name, shape in shapes.items()}


def forward(arrays: Mapping[str, Any], feed: Mapping[str, Any], tap: Any) -> Any:
    if feed["x"].shape[1:] != (4,):
        raise ArrayError("feed")
    tap("a.weight", feed["x"])
    h = np.maximum(feed["x"] @ arrays["a.weight"].T + arrays["a.bias"], 0)
    tap("b.weight", h)
    return h @ arrays["b.weight"].T + arrays["b.bias"]


def of_arrays() -> ArrayModel:
    rng = np.random.default_rng(0)
    return ArrayModel(named(rng), SPEC, forward, {"x": f4(rng, 3, 4)})


@cache
def graph() -> Any:
    from tests import onnx_graphs

    return onnx_graphs.mlp()


def of_onnx() -> Any:
    from fastopt.models import OnnxModel

    return OnnxModel(graph())


@cache
def estimator() -> Any:
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(0)
    x = f4(rng, 30, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MLPClassifier((5,), max_iter=3, random_state=0).fit(x, x[:, 0] > 0)


def of_estimator() -> Any:
    from fastopt.models.sklearn import EstimatorModel

    return EstimatorModel(estimator())


class Kind:
    """A model of each adapter, its rows, and the names of a layer and of a group."""

    def __init__(self, make: Callable[[], Any], shape: tuple[int, ...], needs: str = "") -> None:
        self.make, self.shape, self.needs = make, shape, needs

    def calls(self, name: str) -> dict[str, Callable[[Rng], Call]]:
        """What the protocol has, as calls of a fresh model."""
        found = {}
        for method in ("set_weight", "keep_units", "split_layer", "store", "run", "rows", "take",
                       "n_rows", "fold", "runner"):  # fmt: skip
            if (name, method) == ("ArrayModel", "split_layer"):
                continue  # named arrays cannot become two
            found[f"{name}.{method}"] = lambda rng, m=method: self.call(m, rng)
        return found

    def call(self, method: str, rng: Rng) -> Call:
        model = self.make()
        layer = next(iter(model.layers.values()))
        group = next(g for g in model.groups.values() if g.frozen is None)
        n_out, n_in = layer.weight.shape
        data = {model.inputs[0].name: f4(rng, 5, *self.shape)}
        function = getattr(model, method)
        if method == "set_weight":
            bias = None if layer.bias is None else f4(rng, n_out)
            return Call(function, [layer.name, f4(rng, n_out, n_in), bias], {})
        if method == "keep_units":
            member = group.consumers[0]
            rows, columns = model.layers[member.tensor].weight.shape
            columns -= member.index.size * (group.n_units - 2) // group.n_units
            weights = {member.tensor: (f4(rng, rows, columns), f4(rng, rows))}
            return Call(function, [group.name, np.array([0, 2])], {"weights": weights})
        if method == "split_layer":
            return Call(function, [layer.name, f4(rng, n_out, 2), f4(rng, 2, n_in)], {})
        if method == "store":
            form = next((f.name for f in layer.forms if f.name == "int8"), layer.form.name)
            codes = fo.quantize(layer.weight, "int8", axis=0) if form == "int8" else None
            return Call(function, [layer.name, form], {"codes": codes, "ranges": None})
        if method == "run":
            options = {"taps": (layer.tap,), "batch_size": 2,
                       "weights": {layer.name: f4(rng, n_out, n_in)}}  # fmt: skip
            return Call(lambda data, **o: list(function(data, **o)), [data], options)
        if method == "rows":
            tapped = next(model.run(data, (layer.tap,)))[1][layer.tap]
            return Call(function, [layer.name, tapped], {"limit": 3})
        if method == "take":
            return Call(function, [data, np.array([1, 0])], {})
        if method == "runner":
            return Call(lambda *a, **o: function(*a, **o)(), [data],
                        {"batch_size": 2, "threads": 1})  # fmt: skip
        return Call(function, [data] if method == "n_rows" else [], {})


KINDS = {
    "Network": Kind(mlp, (6,)),
    "Network with convolutions": Kind(convolutional, (2, 4, 4)),
    "ArrayModel": Kind(of_arrays, (4,)),
    "OnnxModel": Kind(of_onnx, (40,), "onnxruntime"),
    "EstimatorModel": Kind(of_estimator, (6,), "sklearn"),
}


def here(kind: Kind) -> bool:
    return not kind.needs or find_spec(kind.needs) is not None


# -- networks ------------------------------------------------------------------------------------


def fitted(x: Any, y: Any, classes: Any, **options: Any) -> Any:
    net = Network.mlp((6, 8, 3), seed=0, classes=classes)
    net.fit(x, y, optim.SGD(list(net.params.values()), lr=0.1), **options)
    return net.predict(x), net.predict_proba(x), net.score(x, y)


def layer(family: str, shape: tuple[int, ...], *arrays: tuple[int, ...], **options: Any) -> Any:
    """A module made and run in a network of its own."""

    def make(rng: Rng) -> Call:
        def run(x: Any, input_shape: Any, *given: Any, **named: Any) -> Any:
            net = Network([getattr(modules, family)(*given, **named)], "squared", None,
                          input_shape)  # fmt: skip
            return net(x), net.copy().macs

        x = rng.integers(0, 5, (3, *shape)) if family == "Embedding" else f4(rng, 3, *shape)
        return Call(run, [x, shape, *(abs(f4(rng, *a)) for a in arrays)], dict(options))

    return make


def compact(x: Any, y: Any, **options: Any) -> Any:
    from fastopt.models.sklearn import CompactEstimator

    found = CompactEstimator(Network.mlp((4, 5, 2), seed=0), **options)
    return found.predict(x), found.score(x, y), found.get_params()


class Level:
    """A level of a cascade."""

    def predict_proba(self, x: Any) -> Any:
        p = 1 / (1 + np.exp(-np.asarray(x, "f8").reshape(len(x), -1 if len(x) else 0).sum(axis=1)))
        return np.stack([p, 1 - p], axis=1)


def cascade(levels: Any, threshold: Any, x: Any, y: Any, costs: Any) -> Any:
    found = layering.Cascade(levels, threshold)
    return found.predict(x), found.mean_cost(x, costs)


# -- compression ---------------------------------------------------------------------------------


def compressed(kind: str, **options: Any) -> Callable[[Rng], Call]:
    def make(rng: Rng) -> Call:
        model = {"onnx": graph, "estimator": estimator}.get(kind, mlp)()
        width = 40 if kind == "onnx" else 6
        data: Any = f4(rng, 24, width)
        if kind == "labels":
            data = (data, rng.integers(0, 3, 24))
        small = {"max_drop": 0.5, "max_evals": 2, "max_time": 2.0, "seed": 0}
        return Call(fo.compress, [model, data], {**small, **options})

    return make


CALLS: dict[str, Callable[[Rng], Call]] = {
    "Network.mlp": lambda rng: Call(
        Network.mlp, [(6, 8, 3)],
        {"activation": "relu", "loss": "squared", "seed": 0, "classes": None},
    ),
    "Network": lambda rng: Call(
        Network, [[modules.Dense(f4(rng, 4, 6), f4(rng, 4)), modules.Activation("gelu"),
                   modules.Dense(f4(rng, 2, 4), None)]],
        {"loss": "cross_entropy", "classes": ["a", "b"], "input_shape": (6,)},
    ),
    "Network.forward": lambda rng: Call(convolutional().forward, [f4(rng, 3, 2, 4, 4)], {}),
    "Network.loss": lambda rng: Call(mlp().loss, [f4(rng, 5, 6), rng.integers(0, 3, 5)], {}),
    "Network.value_and_grad": lambda rng: Call(
        convolutional().value_and_grad, [f4(rng, 3, 2, 4, 4), rng.integers(0, 3, 3)],
        {"training": True},
    ),
    "Network.score": lambda rng: Call(mlp().score, [f4(rng, 5, 6), rng.integers(0, 3, 5)], {}),
    "Network.fit": lambda rng: Call(
        fitted, [f4(rng, 9, 6), rng.integers(0, 3, 9), [0, 1, 2]],
        {"epochs": 2, "batch_size": 4, "seed": 0, "callback": lambda epoch, loss: None},
    ),
    "Network.match": lambda rng: Call(mlp().match, [f4(rng, 9, 6), f4(rng, 9, 3)],
                                      {"max_iter": 3}),
    "Dense": layer("Dense", (6,), (4, 6), (4,), activation="relu", name="a", inputs=()),
    "Conv2d": layer("Conv2d", (2, 5, 5), (4, 2, 3, 3), (4,), stride=1, padding=1, dilation=1,
                    groups=1, name="c"),
    "BatchNorm": layer("BatchNorm", (4, 3, 3), (4,), (4,), (4,), (4,), momentum=0.1, eps=1e-5),
    "LayerNorm": layer("LayerNorm", (6,), (6,), (6,), eps=1e-5, name="n"),
    "Activation": layer("Activation", (6,), function="gelu", name="a", inputs=()),
    "MaxPool2d": layer("MaxPool2d", (2, 4, 4), kernel_size=2, stride=None, padding=0),
    "AvgPool2d": layer("AvgPool2d", (2, 4, 4), kernel_size=2, stride=2, padding=(1, 0)),
    "Embedding": layer("Embedding", (4,), (5, 6), name="e"),
    "Positions": layer("Positions", (4, 6), (4, 6), name="p"),
    "Softmax": layer("Softmax", (6,), name="s"),
    "Flatten": layer("Flatten", (2, 3), name="f"),
    "self_attention": lambda rng: Call(
        lambda name, width, heads, source, seed, x: Network(
            modules.self_attention(name, width, heads, source, seed), "squared", None, (4, 6)
        )(x),
        ["a", 6, 2, "X", 0, f4(rng, 3, 4, 6)], {},
    ),
    "ArrayModel": lambda rng: Call(
        lambda *a: ArrayModel(*a).outputs, [named(rng), SPEC, forward, {"x": f4(rng, 3, 4)}], {}
    ),
    "CompactEstimator": lambda rng: Call(
        compact, [f4(rng, 7, 4), rng.integers(0, 2, 7)],
        {"task": "classifier", "features": np.arange(4), "proba": True},
    ),
    "Cascade": lambda rng: Call(
        cascade, [[Level(), Level()], 0.7, f4(rng, 9, 3), rng.integers(0, 2, 9), [1.0, 5.0]], {}
    ),
    "split_convolution": lambda rng: Call(
        layering.split_convolution, [f4(rng, 4, 3, 3, 3), (2, 2)], {"energy": None}
    ),
    "split_cp": lambda rng: Call(layering.split_cp, [f4(rng, 4, 3, 3, 3), 2], {}),
    "split_depthwise": lambda rng: Call(layering.split_depthwise, [f4(rng, 4, 3, 3, 3), 1], {}),
    "block_influence": lambda rng: Call(
        layering.block_influence, [f4(rng, 9, 4), f4(rng, 9, 4)], {}
    ),
    "compress": compressed(
        "network", metric="agreement", confidence=None, passes=("prune", "quantize"),
        keep=("dense1",), target="size", method="auto", batch=1, threads=1, workers=1,
        portable=False, on_interrupt="return", callback=lambda n, cost: None,
        progress=lambda text: None, storage=None,
    ),
    "compress labels": compressed(
        "labels", metric="accuracy", labels="y", confidence=0.9, retrain_epochs=1,
        passes=("prune",), classes_axis=None,
    ),
    "compress macs": compressed(
        "network", target="macs", method="greedy", passes=("prune", "merge", "layer"),
        metric=lambda outputs, data, reference: 1.0,
    ),
    "compress data": lambda rng: Call(
        fo.compress, [mlp(), {"X": f4(rng, 20, 6), "y": rng.integers(0, 3, 20)}],
        {"check": {"X": f4(rng, 8, 6), "y": rng.integers(0, 3, 8)}, "calib": f4(rng, 8, 6),
         "max_drop": 0.5, "max_evals": 2, "max_time": 2.0, "passes": ["quantize"]},
    ),
    "apply_recipe": lambda rng: Call(
        lambda recipe, model, data, **o: apply_recipe(Recipe.from_dict(recipe), model, data, **o),
        [{"prune.dense0": 0.25, "quantize.dense1": "int8"}, mlp(), f4(rng, 20, 6)],
        {"max_drop": 0.5, "seed": 0},
    ),
    "apply_recipe, no dict": lambda rng: Call(
        apply_recipe, [Recipe({"quantize.dense1": "int8"}), mlp(), f4(rng, 20, 6)],
        {"max_drop": 0.5, "seed": 0},
    ),
    "compare_models": lambda rng: Call(
        compare_models, [mlp(), mlp(), f4(rng, 9, 6)],
        {"metric": "agreement", "labels": None, "classes_axis": 1, "batch": 1, "threads": 1},
    ),
    "inspect_model": lambda rng: Call(inspect_model, [mlp()], {"data": f4(rng, 9, 6)}),
    "open_model": lambda rng: Call(open_model, [mlp()], {"portable": False, "data": None}),
    "quantize_model": lambda rng: Call(
        quantize_model, [mlp(), "int8"],
        {"data": f4(rng, 9, 6), "keep": ("dense1",), "portable": False},
    ),
}  # fmt: skip
for _name, _kind in KINDS.items():
    if here(_kind):
        CALLS |= _kind.calls(_name)
if here(KINDS["OnnxModel"]):
    CALLS["compress ONNX"] = compressed("onnx", passes=("quantize",), portable=False)
    CALLS["OnnxModel"] = lambda rng: Call(
        lambda source, portable: type(of_onnx())(source, portable=portable).to_proto(),
        [graph(), False], {},
    )  # fmt: skip
if here(KINDS["EstimatorModel"]):
    CALLS["compress an estimator"] = compressed("estimator", passes=("prune",))
