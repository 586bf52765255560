"""Valid calls of the public functions of arrays, as tests/damage.py damages them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt import linear_model, merging, optim, pruning, quantization
from fastopt.calibration import Gram
from fastopt.quantization import HistogramObserver


class Call(NamedTuple):
    """A function, its arguments, and which of those it may write to."""

    function: Callable[..., Any]
    args: list[Any]
    options: dict[str, Any]
    written: tuple[str, ...] = ()


Rng = np.random.Generator


def f4(rng: Rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype("f4")


def step(family: str, **options: Any) -> Callable[[Rng], Call]:
    """An optimizer built and stepped; both may be damaged."""

    def make(rng: Rng) -> Call:
        def run(params: Any, grads: Any, **given: Any) -> None:
            getattr(optim, family)(params, **given).step(grads)

        shape = (8, 5) if family == "Muon" else (40,)
        return Call(run, [f4(rng, *shape), f4(rng, *shape)], {"lr": 0.1, **options}, ("0",))

    return make


def fit(family: str, **options: Any) -> Callable[[Rng], Call]:
    def make(rng: Rng) -> Call:
        def run(x: Any, y: Any, sample_weight: Any, new: Any, **given: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = getattr(linear_model, family)(**given).fit(x, y, sample_weight)
            return model.predict(new)

        x = f4(rng, 30, 3)
        y = (x[:, 0] > 0).astype(int) if "Log" in family or "Class" in family else x @ f4(rng, 3)
        return Call(run, [x, y, np.ones(30, "f4"), x.copy()], {"max_iter": 5, **options})

    return make


def bowl(x: np.ndarray) -> tuple[float, np.ndarray]:
    return float((x * x).sum()), 2 * x


def gram_of(rng: Rng, n: int) -> Gram:
    return Gram(n).update(f4(rng, 40, n))


def quantized(rng: Rng) -> Any:
    return fo.quantize(f4(rng, 8, 16), "int8", axis=0)


CALLS: dict[str, Callable[[Rng], Call]] = {
    "SGD": step("SGD", momentum=0.9, weight_decay=0.1),
    "Adam": step("Adam", betas=(0.9, 0.99), eps=1e-8, amsgrad=True),
    "AdamW int8": step("AdamW", state_dtype="int8", max_grad_norm=1.0),
    "RMSprop": step("RMSprop", alpha=0.9, centered=True),
    "Adagrad": step("Adagrad", lr_decay=0.1),
    "Adadelta": step("Adadelta", rho=0.9),
    "Adafactor": step("Adafactor"),
    "Lion": step("Lion", betas=(0.9, 0.99), ema_decay=0.5, on_nonfinite="skip"),
    "LAMB": step("LAMB"),
    "Muon": step("Muon", ns_steps=2, momentum=0.9),
    "descend": lambda rng: Call(
        fo.optim.descend, [bowl, f4(rng, 6)],
        {"optimizer": "lbfgs", "max_iter": 5, "tol": 1e-3, "max_time": 9.0, "callback": None},
    ),
    "descend gd": lambda rng: Call(
        fo.optim.descend, [bowl, f4(rng, 6)], {"lr": 0.1, "max_iter": 5, "tol": 1e-3}
    ),
    "LinearRegression": fit("LinearRegression", fit_intercept=True),
    "Ridge": fit("Ridge", alpha=1.0, solver="lbfgs", tol=1e-3),
    "LogisticRegression": fit("LogisticRegression", C=1.0, class_weight="balanced"),
    "SGDRegressor": fit("SGDRegressor", alpha=0.1, average=7, eta0=0.01, batch_size=4),
    "SGDClassifier": fit("SGDClassifier", loss="log_loss", penalty="l1", random_state=0),
    "quantize": lambda rng: Call(
        fo.quantize, [f4(rng, 8, 16), "int8"],
        {"axis": 0, "symmetric": True, "method": "mse", "rounding": "nearest", "threads": 1},
    ),
    "quantize group": lambda rng: Call(
        fo.quantize, [f4(rng, 8, 16), "int4"],
        {"group_size": 8, "symmetric": False, "method": "minmax", "seed": 0},
    ),
    "quantize nf4": lambda rng: Call(fo.quantize, [f4(rng, 8, 16), "nf4"], {"group_size": 8}),
    "quantize fixed": lambda rng: Call(fo.quantize, [f4(rng, 9), "q3.4"], {}),
    "fake_quantize": lambda rng: Call(fo.fake_quantize, [f4(rng, 8, 16), "int8"], {"axis": 1}),
    "dequantize": lambda rng: Call(fo.dequantize, [quantized(rng)], {}),
    "QuantizedArray": lambda rng: Call(
        fo.QuantizedArray,
        [np.ones((2, 3), "i1"), np.ones(2, "f4"), np.zeros(2, "i1"), "int8", (2, 3)],
        {"axis": 0, "group_size": None, "symmetric": True},
    ),
    "matmul": lambda rng: Call(quantized(rng).matmul, [f4(rng, 16)], {"threads": 1}),
    "x @ q": lambda rng: Call(quantized(rng).__rmatmul__, [f4(rng, 3, 8)], {}),
    "cast": lambda rng: Call(quantization.cast, [f4(rng, 9), "float8_e4m3fn"], {"saturate": True}),
    "quantize_linear": lambda rng: Call(
        quantization.quantize_linear, [f4(rng, 4, 6), np.ones(6, "f4"), np.zeros(6, "u1")],
        {"axis": 1},
    ),
    "dequantize_linear": lambda rng: Call(
        quantization.dequantize_linear,
        [np.ones((4, 6), "i1"), np.ones(4, "f4"), np.zeros(4, "i1")], {"axis": 0},
    ),
    "dynamic_quantize": lambda rng: Call(quantization.dynamic_quantize, [f4(rng, 4, 6)], {}),
    "matmul_integer": lambda rng: Call(
        quantization.matmul_integer,
        [np.ones((3, 4), "u1"), np.ones((4, 5), "i1"), np.uint8(3), np.int8(1)], {},
    ),
    "qlinear_matmul": lambda rng: Call(
        quantization.qlinear_matmul,
        [np.ones((3, 4), "u1"), np.float32(0.1), np.uint8(3), np.ones((4, 5), "i1"),
         np.float32(0.1), np.int8(1), np.float32(0.1), np.uint8(0)], {},
    ),
    "QuantizedLinear": lambda rng: Call(
        lambda w, b, x, **o: quantization.QuantizedLinear(w, b, **o)(x),
        [f4(rng, 5, 16), f4(rng, 5), f4(rng, 2, 16)],
        {"scheme": "w8a8", "group_size": 8, "activation": "relu", "symmetric": False},
    ),
    "pack_int4": lambda rng: Call(quantization.pack_int4, [np.ones(9, "i1")], {"order": "onnx"}),
    "unpack_int4": lambda rng: Call(
        quantization.unpack_int4, [np.ones(5, "u1"), 9], {"signed": True}
    ),
    "gptq": lambda rng: Call(
        quantization.gptq, [f4(rng, 4, 8), gram_of(rng, 8)], {"dtype": "int4", "group_size": 4}
    ),
    "awq": lambda rng: Call(
        quantization.awq, [f4(rng, 4, 8), gram_of(rng, 8)], {"group_size": 4}
    ),
    "smoothquant": lambda rng: Call(
        quantization.smoothquant, [f4(rng, 4, 8), abs(f4(rng, 8))], {"alpha": 0.5}
    ),
    "hqq": lambda rng: Call(quantization.hqq, [f4(rng, 4, 8)], {"group_size": 4}),
    "embedding": lambda rng: Call(
        lambda x, q, **o: quantization.EmbeddingQuantizer(**o).fit(x).add(x).top_k(q, 2),
        [f4(rng, 40, 8), f4(rng, 3, 8)], {"dtype": "int8"},
    ),
    "prune": lambda rng: Call(
        fo.prune, [f4(rng, 8, 8), 0.5], {"pattern": "2:4", "scope": "local", "masks": "bool"}
    ),
    "prune global": lambda rng: Call(
        fo.prune, [[f4(rng, 8, 8), f4(rng, 4)], 0.5], {"scope": "global"}
    ),
    "prune gram": lambda rng: Call(fo.prune, [f4(rng, 4, 8), 0.5], {"gram": gram_of(rng, 8)}),
    "select_units": lambda rng: Call(
        pruning.select_units, [gram_of(rng, 8), f4(rng, 3, 8), 4], {"unit_size": 2, "damp": 1e-3}
    ),
    "SparseLinear": lambda rng: Call(
        lambda w, x, **o: pruning.SparseLinear.from_dense(w, **o) @ x,
        [np.where(rng.random((8, 8)) > 0.7, 1, 0).astype("f4"), f4(rng, 8)], {"format": "csr"},
    ),
    "SparseLinear parts": lambda rng: Call(
        pruning.SparseLinear,
        [(4, 4), "csr", np.ones((4, 1), "f4"), np.arange(4, dtype="i4"), np.arange(5)], {},
    ),
    "cluster_weights": lambda rng: Call(fo.cluster_weights, [f4(rng, 50), 4], {}),
    "merge_neurons": lambda rng: Call(
        fo.merge_neurons, [f4(rng, 6, 3), f4(rng, 6), f4(rng, 2, 6), 4], {"damp": 1e-3}
    ),
    "fold_batch_norm": lambda rng: Call(
        merging.fold_batch_norm, [f4(rng, 4, 3), None, f4(rng, 4), abs(f4(rng, 4))], {"eps": 1e-5}
    ),
    "split_low_rank": lambda rng: Call(fo.split_low_rank, [f4(rng, 6, 5), 2], {}),
    "Gram": lambda rng: Call(lambda n, x: fo.Gram(n).update(x).second, [4, f4(rng, 9, 4)], {}),
    "observer": lambda rng: Call(
        lambda x, **o: HistogramObserver(**o).partial_fit(x).qparams("int8"),
        [f4(rng, 9, 4)], {"method": "mse", "axis": 1},
    ),
}  # fmt: skip
