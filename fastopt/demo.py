"""``fastopt demo``: every part of fastopt on real data, offline, in under a minute.

Trains a (256, 128) network on scikit-learn's digits with four optimisers; prunes, merges, layers
and quantises it; searches for the smallest recipe within two points of accuracy by random, greedy
and genetic search; checks it on test rows that nothing has seen; writes the model and a report.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastopt import optim, report
from fastopt._arrays import Array
from fastopt._optional import package
from fastopt.compression import Compressed, Recipe, compress
from fastopt.compression.data import open_rows
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.recipe import Workbench
from fastopt.models import Network

__all__ = ["run"]

HIDDEN = (256, 128)
MAX_DROP = 0.02
SEARCH_EVALS = 40
METHODS = ("random", "greedy", "genetic")

DECAY = 1e-3  # L2 on every weight: what is not needed shrinks, and compresses better

# name -> (optimiser of the parameters, epochs, rows per step; None is the full batch)
TRAINERS: dict[str, tuple[Callable[[Any], Any], int, int | None]] = {
    "gradient descent": (lambda p: optim.SGD(p, lr=0.5, weight_decay=DECAY), 200, None),
    "SGD": (lambda p: optim.SGD(p, lr=0.1, weight_decay=DECAY), 40, 50),
    "momentum": (lambda p: optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=DECAY), 40, 50),
    "Adam": (lambda p: optim.Adam(p, lr=1e-3, weight_decay=DECAY), 40, 50),
}


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels in 0..1, in three disjoint parts."""

    train: tuple[Array, Array]
    valid: tuple[Array, Array]
    test: tuple[Array, Array]


def load_digits(seed: int) -> Digits:
    """900 rows to train, 600 to search and check on, 297 to test."""
    datasets = package("sklearn.datasets", "the demo", "fastopt[demo]")
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.split(order, [900, 1500])
    return Digits(*((x[part], y[part]) for part in parts))


def run(folder: str | Path = "fastopt-demo", seed: int = 0) -> Compressed:
    """Run the demo; writes ``model.safetensors`` (or ``.npz``) and ``report.html``."""
    with _one_blas_thread():
        return _run(folder, seed)


def _one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Matrices this small gain nothing from BLAS threads, which wait for each other when busy."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _run(folder: str | Path, seed: int) -> Compressed:
    start = time.perf_counter()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    data = load_digits(seed)
    say = _Progress()
    page = report.Page(
        "fastopt demo: handwritten digits",
        f"1797 images of 8 x 8 pixels: {len(data.train[0])} to train, {len(data.valid[0])} to "
        f"search and check on, {len(data.test[0])} to test. Network 64-256-128-10.",
    )
    network = _train(data, seed, say, page)
    _each_pass(network, data, say, page)
    result = _search(network, data, seed, say, page)
    _finish(network, result, data, target, page, start)
    return result


def _train(data: Digits, seed: int, say: _Progress, page: report.Page) -> Network:
    """Four optimisers from the same start; the best on the validation rows goes on."""
    print("1. Train: gradient descent, SGD, momentum and Adam from the same start\n")
    rows, curves, trained = [], {}, {}
    head = ("optimiser", "epochs", "batch", "loss", "validation", "seconds")
    print(_row(head))
    for name, (make, epochs, batch) in TRAINERS.items():
        network = Network.mlp((64, *HIDDEN, 10), seed=seed)
        before = time.perf_counter()
        history = network.fit(
            *data.train,
            make(network.params),
            epochs=epochs,
            batch_size=batch,
            seed=seed,
            callback=partial(_epoch_done, say, name, epochs),
        )
        seconds = time.perf_counter() - before
        score = network.score(*data.valid)
        trained[name] = (score, network)
        curves[name] = [((k + 1) / epochs, loss) for k, loss in enumerate(history)]
        size = "all" if batch is None else str(batch)
        rows.append(
            (name, str(epochs), size, f"{history[-1]:.4f}", f"{score:.4f}", f"{seconds:.1f}")
        )
        say.clear()
        print(_row(rows[-1]))
    page.heading("Training").table(head, rows).chart(
        report.lines(curves, x_name="share of the epochs", y_name="training loss", y_log=True)
    )
    best = max(trained, key=lambda name: trained[name][0])
    print(f"\n   {best} is best on the validation rows and goes on.\n")
    return trained[best][1]


def _epoch_done(say: _Progress, name: str, epochs: int, epoch: int, loss: float) -> None:
    say(f"{name}: epoch {epoch + 1}/{epochs}, loss {loss:.4f}")


def _each_pass(network: Network, data: Digits, say: _Progress, page: report.Page) -> None:
    """What each pass does alone."""
    print("2. Prune, merge, layer, quantise: each alone, no retraining\n")
    first, second, last = network.layers
    alone: dict[str, dict[str, Any]] = {
        "prune half of the units": {f"prune.{first}": 0.5, f"prune.{second}": 0.5},
        "prune to 1/8": {f"prune.{first}": 0.125, f"prune.{second}": 0.125},
        "prune to 1/8, refit": {
            f"prune.{first}": 0.125,
            f"prune.{second}": 0.125,
            "refit.outputs": 150,
        },
        "merge half of the units": {f"merge.{first}": 0.5, f"merge.{second}": 0.5},
        "split at half the weights": {f"layer.{first}": 0.5, f"layer.{second}": 0.5},
        "int8 weights": {f"quantize.{name}": "int8" for name in (first, second, last)},
    }
    known = open_rows(data.train[0], network.inputs)
    bench = Workbench(Calibration(network, known, batch=len(known)))
    head = ("pass", "parameters", "bytes", "validation")
    rows = [_measured("dense", network, data)]
    print(_row(head))
    print(_row(rows[0]))
    for name, choices in alone.items():
        say(name)
        rows.append(_measured(name, bench.apply(Recipe(choices)).model, data))
        say.clear()
        print(_row(rows[-1]))
    print()
    page.heading("Each pass alone").table(head, rows)


def _measured(name: str, model: Any, data: Digits) -> tuple[str, ...]:
    return (
        name,
        f"{model.n_params:,}",
        f"{model.nbytes:,}",
        f"{model.score(*data.valid):.4f}",
    )


def _search(
    network: Network, data: Digits, seed: int, say: _Progress, page: report.Page
) -> Compressed:
    """Three searches with the same budget; the smallest model that kept the drop wins."""
    print(f"3. Search for the smallest recipe within {MAX_DROP:.0%} of accuracy\n")
    head = ("search", "recipes", "bytes", "parameters", "drop", "seconds")
    print(_row(head))
    rows, curves, results = [], {}, {}
    for method in METHODS:
        best: list[tuple[float, float]] = []

        def follow(
            done: int, share: float, m: str = method, best: list[tuple[float, float]] = best
        ) -> None:
            best.append((done, share * network.nbytes))
            say(f"{m}: recipe {done}/{SEARCH_EVALS}")

        result = compress(
            network,
            data.valid,
            max_drop=MAX_DROP,
            calib=data.train[0],
            method=method,
            max_evals=SEARCH_EVALS,
            seed=seed,
            callback=follow,
        )
        results[method], curves[method] = result, best
        rows.append(
            (
                method,
                str(len(result.candidates)),
                f"{result.after.nbytes:,}",
                f"{result.after.n_params:,}",
                f"{result.drop:+.4f}",
                f"{result.time_s:.1f}",
            )
        )
        say.clear()
        print(_row(rows[-1]))
    winner = min(results, key=lambda m: results[m].after.nbytes)
    print(f"\n   {winner} search found the smallest.\n")
    page.heading("Search: smallest model so far, by recipes tried").table(head, rows).chart(
        report.lines(curves, x_name="recipes tried", y_name="bytes", y_log=True)
    )
    return results[winner]


def _finish(
    network: Network,
    result: Compressed,
    data: Digits,
    target: Path,
    page: report.Page,
    start: float,
) -> None:
    """The test set speaks last; the model is written, read back and compared."""
    print("4. Result\n")
    print(result.table())
    small = result.model
    before, after = network.score(*data.test), small.score(*data.test)
    fewer = network.n_params / small.n_params
    said = (
        f"On {len(data.test[0])} test rows that nothing above has seen: {before:.2%} before, "
        f"{after:.2%} after, with {fewer:.1f}x fewer parameters and "
        f"{network.nbytes / small.nbytes:.1f}x fewer bytes."
    )
    print(f"\n{said}")
    path = _save(small, target)
    same = bool((Network.load(path).forward(data.test[0]) == small.forward(data.test[0])).all())
    if not same:
        raise AssertionError("the model read back predicts other values than the one written")
    page.heading("On the test set").text(said)
    report.add_result(page, result)
    size = path.stat().st_size
    print(f"wrote {path} ({size:,} bytes; read back, predicts the same)\n")
    _onnx(network, data, target, page)
    page.save(target / "report.html")
    print(f"wrote {target}/report.html")
    print(f"{time.perf_counter() - start:.1f} s")


def _onnx(network: Network, data: Digits, target: Path, page: report.Page) -> None:
    """The same network as an ONNX file: compressed as a file, judged by stock onnxruntime."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        print("5. ONNX: skipped, it needs onnx and onnxruntime: pip install 'fastopt[onnx]'")
        return
    print("5. The same network as an ONNX file, compressed as a file\n")
    onnx.save(_exported(network), target / "digits.onnx")
    x, y = data.valid
    result = compress(target / "digits.onnx", {"x": x, "y": y}, max_drop=MAX_DROP)
    result.save(target / "digits-small.onnx")
    print(result.table())
    rows = []
    for name in ("digits.onnx", "digits-small.onnx"):
        session = onnxruntime.InferenceSession(str(target / name))
        (found,) = session.run(None, {"x": data.test[0]})
        right = float(np.mean(found.argmax(axis=1) == data.test[1]))
        rows.append((name, f"{(target / name).stat().st_size:,}", f"{right:.4f}"))
    head = ("file, run by onnxruntime", "bytes", "test")
    print("\n" + "\n".join(map(_row, [head, *rows])))
    page.heading("The same network as an ONNX file").table(head, rows)
    report.add_result(page, result)


def _exported(network: Network) -> Any:
    """The network as an onnx.ModelProto: Gemm, Relu, Softmax."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, name = [], [], "x"
    layers = list(network.layers.values())
    for k, layer in enumerate(layers):
        tensors.append(numpy_helper.from_array(layer.weight, f"w{k}"))
        tensors.append(numpy_helper.from_array(layer.bias, f"b{k}"))
        nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"z{k}"], transB=1))
        name = f"h{k}"
        last = k == len(layers) - 1
        nodes.append(helper.make_node("Softmax" if last else "Relu", [f"z{k}"], [name]))
    shape = ["rows", layers[0].weight.shape[1]]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 10])],
        tensors,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="fastopt"
    )


def _save(model: Any, target: Path) -> Path:
    try:
        import safetensors  # noqa: F401

        path = target / "model.safetensors"
    except ImportError:
        path = target / "model.npz"
    model.save(path)
    return path


def _row(cells: tuple[str, ...]) -> str:
    return "   " + cells[0].ljust(26) + "".join(cell.rjust(12) for cell in cells[1:])


class _Progress:
    """One changing line on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self._shown and now - self._last > 0.05:
            print(f"\r   {text:<60}", end="", file=sys.stderr, flush=True)
            self._last = now

    def clear(self) -> None:
        if self._shown:
            print("\r" + " " * 64 + "\r", end="", file=sys.stderr, flush=True)
