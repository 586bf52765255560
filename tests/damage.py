"""Damaged calls and damaged files: valid ones with one thing wrong, made from a seed.

``python -m tests.damage`` runs many, each kind in a process of its own, and rewrites the table of
docs/reliability.md; the tests run a few. What may happen: a result, or an error of
``fastopt.errors`` (MemoryError where something huge was asked for); never another exception, a
crash, or, where a call was refused, a changed argument.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt import linear_model, merging, optim, pruning, quantization, search
from fastopt.calibration import Gram
from fastopt.errors import FastoptError
from fastopt.quantization import HistogramObserver
from tests.damaged_files import READERS, Outcome, run_mutants, run_states

# -- valid calls -------------------------------------------------------------------------------


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
    "tournament": lambda rng: Call(
        search.tournament, [rng.random(9), 5], {"size": 3, "seed": 0, "generation": 1}
    ),
    "variation": lambda rng: Call(
        search.variation, [rng.random((6, 4)), np.arange(6), 0.0, 1.0],
        {"rate": 0.9, "eta": 15.0, "mutation_rate": 0.1, "seed": 0, "generation": 0},
    ),
}  # fmt: skip


# -- one thing wrong -----------------------------------------------------------------------------


def misaligned(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.setflags(write=False)
    return a


def placed(value: float) -> Callable[[np.ndarray], Any]:
    def put(a: np.ndarray) -> np.ndarray:
        a = a.astype("f8" if a.dtype.kind != "f" else a.dtype)
        if a.size:
            with np.errstate(over="ignore"):
                a.reshape(-1)[a.size // 2] = value
        return a

    return put


def objects(*values: Any) -> Callable[[np.ndarray], Any]:
    def put(a: np.ndarray) -> np.ndarray:
        a = a.astype(object)
        for i, value in enumerate(values):
            if a.size > i:
                a.reshape(-1)[i] = value
        return a

    return put


ARRAY_DAMAGES: list[Callable[[np.ndarray], Any]] = [
    lambda a: a.T,
    lambda a: a[::-1],
    lambda a: np.asfortranarray(a),
    lambda a: a[..., ::2],
    lambda a: a[:-1],
    lambda a: a[:0],
    lambda a: a[..., :0],
    lambda a: a[None],
    lambda a: a.reshape(-1),
    lambda a: a.reshape(-1)[0] if a.size else a,
    lambda a: np.concatenate([a, a]) if a.ndim else a,
    misaligned,
    read_only,
    lambda a: a.astype(a.dtype.newbyteorder()),
    lambda a: a.astype("f2"),
    lambda a: a.astype("f8"),
    lambda a: a.astype("i8"),
    lambda a: a.astype("u1"),
    lambda a: a.astype(bool),
    lambda a: a.astype(complex),
    lambda a: a.astype("U9"),
    lambda a: a.astype("S9"),
    lambda a: a.astype("i8").astype("M8[s]"),
    lambda a: a.astype("i8").astype("m8[s]"),
    lambda a: np.zeros(a.shape, "f4,i4"),
    lambda a: np.longdouble(a),
    objects(),
    objects(None),
    objects("x"),
    objects(np.nan),
    objects(1j, 10**400),
    objects({}, []),
    placed(np.nan),
    placed(np.inf),
    placed(-np.inf),
    placed(-0.0),
    placed(5e-324),
    placed(1e-45),
    placed(3e38),
    placed(-1e308),
    placed(1e30),
    placed(-1.0),
    lambda a: a * 0,
    lambda a: np.full_like(a, 127),
    lambda a: a.tolist(),
    lambda a: tuple(a.tolist()) if a.ndim else a,
    lambda a: [a.tolist(), 1],
    lambda a: np.ma.masked_array(a, a > 0),
    lambda a: [np.ma.masked_array(a, a > 0)],
    lambda a: np.asmatrix(a) if a.ndim <= 2 else a,
    lambda a: memoryview(np.ascontiguousarray(a)),
    lambda a: a.tobytes(),
    lambda a: iter(a.reshape(-1)),
    lambda a: {"a": a},
    lambda a: [a, a],
    lambda a: type("Sub", (np.ndarray,), {})(a.shape, a.dtype),
]
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**6, 2**40, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5,
    1.5, -0.0, 1e-17, 5e-324, 1e308, float("nan"), float("inf"), -float("inf"), "x", "", "int8",
    "7", "q99.1", "q" + "9" * 5000 + ".1", b"x", [], (), {}, [1], (0.5,), {"a": 1}, 1j, object(),
    np.float32(0.5), np.int64(3), np.bool_(True), np.ones(1), np.ones(3), np.array(2),
    np.ma.masked, np.datetime64("2020"), np.timedelta64(3), datetime.date(2020, 1, 1),
    np.random.default_rng(0), lambda *a: None, Ellipsis, "1:2", "4x1", "mean",
]  # fmt: skip


def damaged(call: Call, rng: Rng) -> Call:
    """The call with one argument, seldom two, replaced."""
    args, options = list(call.args), dict(call.options)
    places: list[Any] = [*range(len(args)), *options]
    for _ in range(1 if rng.random() < 0.9 else 2):
        place = places[rng.integers(len(places))]
        holder: Any = args if isinstance(place, int) else options
        value = holder[place]
        if isinstance(value, np.ndarray) and rng.random() < 0.85:
            damage = ARRAY_DAMAGES[rng.integers(len(ARRAY_DAMAGES))]
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(Exception):  # not every damage fits every array
                    holder[place] = damage(value)
        elif isinstance(value, np.ndarray) and rng.random() < 0.5:
            others = [a for a in args if isinstance(a, np.ndarray)]
            holder[place] = others[rng.integers(len(others))]
        else:
            holder[place] = SCALARS[rng.integers(len(SCALARS))]
    return Call(call.function, args, options, call.written)


def digest(value: Any) -> Any:
    """What an argument holds, to see a change of it."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return [id(v) for v in np.asarray(value).reshape(-1)]
        return hashlib.sha1(np.ascontiguousarray(np.asarray(value)).tobytes()).hexdigest()
    if isinstance(value, (list, tuple)):
        return [digest(v) for v in value]
    if isinstance(value, dict):
        return {k: digest(v) for k, v in value.items()}
    if isinstance(value, Gram):
        return value.count, digest(value.second)
    return id(value)


def run_call(seed: int, k: int) -> Outcome:
    """The k-th damaged call of a seed."""
    rng = np.random.default_rng([seed, k])
    names = list(CALLS)
    name = names[int(rng.integers(len(names)))]
    call = damaged(CALLS[name](rng), rng)
    named = {**{str(i): a for i, a in enumerate(call.args)}, **call.options}
    before = {key: digest(value) for key, value in named.items()}
    where = f"{name} #{k}"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            call.function(*call.args, **call.options)
        kind, error = "passed", ""
    except FastoptError as refusal:
        kind, error = "refused", str(refusal)
    except MemoryError:
        kind, error = "refused", "memory"
    except Exception as stranger:
        return Outcome("foreign", f"{where}: {type(stranger).__name__}: {str(stranger)[:150]}")
    after = {key: digest(value) for key, value in named.items()}
    changed = [
        key for key in named
        if before[key] != after[key] and (kind == "refused" or key not in call.written)
        and not _shares(named, key, call.written)
    ]  # fmt: skip
    if changed:
        return Outcome("changed", f"{where}: {kind}, argument {changed[0]} ({error[:80]})")
    return Outcome(kind, error)


def _shares(named: dict[str, Any], key: str, written: tuple[str, ...]) -> bool:
    """Whether it is the same object as one that may be written."""
    return any(named.get(w) is named[key] for w in written)


# -- the table -----------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
MARK = "<!-- measured by python -m tests.damage -->"


def _counted(outcomes: Iterator[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.kind] = counts.get(outcome.kind, 0) + 1
        if outcome.kind in ("foreign", "changed", "silent"):
            print(outcome.kind, outcome.note, file=sys.stderr)
    return counts


def _child(arguments: list[str]) -> tuple[dict[str, int], bool]:
    """Counts of a process of our own, and whether it crashed."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.damage", *arguments],
        stdout=subprocess.PIPE, text=True, cwd=PAGE.parent.parent, check=False,
    )  # fmt: skip
    counts = dict(part.split("=") for part in done.stdout.split())
    return {k: int(v) for k, v in counts.items()}, done.returncode not in (0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--mutants", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", help="calls, states, or a reader: run it here and print the counts"
    )
    parser.add_argument("--write", action="store_true", help="rewrite docs/reliability.md")
    given = parser.parse_args()
    if given.only == "calls":
        counts = _counted(run_call(given.seed, k) for k in range(given.calls))
    elif given.only == "states":
        counts = _counted(run_states(given.seed, given.mutants))
    elif given.only:
        with tempfile.TemporaryDirectory() as folder:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            counts = _counted(run_mutants(given.only, given.seed, given.mutants, Path(folder)))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            counts["MiB"] = (after - before) >> 10
    if given.only:
        print(*(f"{k}={v}" for k, v in counts.items()))
        wrong = counts.get("foreign", 0) + counts.get("changed", 0) + counts.get("silent", 0)
        sys.exit(2 if wrong else 0)
    start = time.perf_counter()
    numbers = ("--seed", str(given.seed), "--calls", str(given.calls))
    numbers += ("--mutants", str(given.mutants))
    rows = []
    for name in ("calls", "states", *READERS):
        counts, crashed = _child(["--only", name, *numbers])
        what = {"calls": "damaged calls", "states": "damaged states of engines"}.get(
            name, f"damaged files: {name}"
        )
        total = sum(v for k, v in counts.items() if k != "MiB")
        wrong = counts.get("changed", 0) + counts.get("silent", 0)
        rows.append(
            f"| {what} | {total:,} | {counts.get('passed', 0):,} | {counts.get('refused', 0):,} | "
            f"{int(crashed)} | {counts.get('foreign', 0)} | {wrong} | "
            f"{counts.get('MiB', '-')} |"
        )
    table = "\n".join([
        "| | tried | passed | refused by name | crashes | foreign exceptions | "
        "changed or silently wrong | MiB taken |",
        "|---|---|---|---|---|---|---|---|", *rows, "",
        f"Seed {given.seed}, {time.perf_counter() - start:.0f} s on this machine.",
    ])  # fmt: skip
    print(table)
    if given.write:
        head, _, _ = PAGE.read_text().partition(MARK)
        PAGE.write_text(f"{head}{MARK}\n\n{table}\n")


if __name__ == "__main__":
    main()
