"""How long calls take to answer Ctrl-C.

``python -m tests.interrupts`` sends SIGINT at random moments of each call and measures the time
until it has returned or raised, each call in a process of its own; ``--write`` puts the table into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import linear_model, optim, quantization
from fastopt.calibration import Gram
from fastopt.models import Network

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
MARK = "<!-- measured by python -m tests.interrupts -->"
END = "<!-- end -->"
LATEST_S = 1.0  # after the start of a call

Work = Callable[[], Any]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _gram(n: int) -> Gram:
    return Gram(n).update(_normal(2 * n, n))


def _bowl(x: float, y: float) -> float:
    return x * x + abs(y)


def _slow(x: float, y: float) -> float:
    time.sleep(0.02)
    return x * x + abs(y)


def _pair(x: float, y: float) -> tuple[float, float]:
    return x * x, abs(y - 1)


SPACE = {"x": fo.Float(-1, 1), "y": fo.Float(-2, 2)}


def _search(method: str, objective: Any = _bowl, **options: Any) -> Work:
    found = {"max_evals": 10**7, "max_time": 20.0, **options}
    return lambda: fo.minimize(objective, SPACE, method=method, **found)


def _rows(model: Any, classes: bool = False) -> Work:
    x = _normal(60_000, 100)
    y = (x[:, 0] > 0).astype(int) if classes else x @ _normal(100)
    return lambda: model.fit(x, y)


def _network_fit() -> Work:
    net = Network.mlp((100, 256, 10), seed=0)
    x = _normal(20_000, 100)
    y = np.random.default_rng(1).integers(0, 10, len(x))
    return lambda: net.fit(x, y, optim.Adam(net.params), epochs=50)


def _compress() -> Work:
    net = Network.mlp((64, 256, 128, 10), seed=0)
    x = _normal(4000, 64)
    y = net.predict(x)
    return lambda: fo.compress(net, (x, y), max_evals=10**5)


def _compress_onnx() -> Work:
    from tests import onnx_graphs

    return lambda: fo.compress(
        onnx_graphs.mlp(), _normal(4000, 40), max_evals=10**5, method="genetic"
    )


def _compress_real() -> Work:
    zoo = Path(os.environ["FASTOPT_ZOO"])
    return lambda: fo.compress(str(zoo / "cls.onnx"), str(zoo / "cls_a.npz"), max_evals=10**5)


def _merge() -> Work:
    w_in, b_in, w_out, gram = _normal(1500, 64), _normal(1500), _normal(64, 1500), _gram(1500)
    return lambda: fo.merge_neurons(w_in, b_in, w_out, 700, gram=gram)


def _valley(x: np.ndarray) -> tuple[float, np.ndarray]:
    low, step = x[:-1], x[1:] - x[:-1] ** 2
    grad = np.zeros_like(x)
    grad[:-1] = 2 * (low - 1) - 400 * low * step
    grad[1:] += 200 * step
    return float(100 * step @ step + (low - 1) @ (low - 1)), grad


def _with(make: Callable[..., Any], *arrays: Any, **options: Any) -> Work:
    return lambda: make(*arrays, **options)


CASES: dict[str, Callable[[], Work]] = {
    **{
        f'minimize(method="{m}")': (lambda m=m: _search(m, mode="sync"))
        for m in ("random", "greedy", "genetic", "cma", "portfolio", "gp", "tpe", "de")
    },
    'minimize(method="nsga2")': lambda: _search("nsga2", _pair),
    "minimize, 20 ms per trial": lambda: _search("genetic", _slow),
    "minimize, vectorized": lambda: _search("genetic", lambda x: (x * x).sum(1), vectorized=True),
    "minimize(workers=2), 20 ms per trial": lambda: _search("genetic", _slow, workers=2),
    "compress, a Network": _compress,
    "compress, ONNX": _compress_onnx,
    **({"compress, a text classifier": _compress_real} if "FASTOPT_ZOO" in os.environ else {}),
    'quantize(method="mse")': lambda: _with(
        fo.quantize, _normal(4000, 4000), "int4", group_size=64, method="mse"
    ),
    "prune": lambda: _with(fo.prune, _normal(6000, 6000), 0.5),
    'prune(pattern="2:4")': lambda: _with(fo.prune, _normal(6000, 6000), pattern="2:4"),
    "prune(gram=)": lambda: _with(fo.prune, _normal(1000, 1500), 0.5, gram=_gram(1500)),
    "gptq": lambda: _with(quantization.gptq, _normal(1500, 2000), _gram(2000), dtype="int4"),
    "awq": lambda: _with(quantization.awq, _normal(1000, 1000), _gram(1000)),
    "cluster_weights": lambda: _with(fo.cluster_weights, _normal(3_000_000), 256),
    "split_low_rank": lambda: _with(fo.split_low_rank, _normal(1500, 1500), 300),
    "merge_neurons": _merge,
    "LinearRegression.fit": lambda: _rows(linear_model.LinearRegression()),
    "LogisticRegression.fit": lambda: _rows(
        linear_model.LogisticRegression(tol=1e-12, max_iter=10**4, C=1e6), True
    ),
    "SGDRegressor.fit": lambda: _rows(linear_model.SGDRegressor(max_iter=200, tol=None)),
    "descend": lambda: _with(
        optim.descend, _valley, np.zeros(20_000), optimizer="gd", lr=1e-6, max_iter=10**6
    ),
    "Network.fit": _network_fit,
}


def measure(name: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Seconds from the signal to the end of the call, for ``count`` random moments."""
    work, draw = CASES[name](), random.Random(seed)
    start = time.perf_counter()
    _call(work, None)  # also loads what is loaded late
    takes = min(time.perf_counter() - start, LATEST_S)
    answers: list[float] = []
    missed = 0
    while len(answers) < count and missed < 10 * count:
        taken = _call(work, draw.uniform(0.02, 0.9) * takes)
        if taken is None:
            missed += 1
        else:
            answers.append(taken)
    return {"answers": answers, "takes": takes}


def _call(work: Work, after: float | None) -> float | None:
    """The answer to a signal sent ``after`` seconds; None where the call had ended before.

    Without ``after`` the call is ended after a second or by itself.
    """
    sent: list[float] = []
    ended = threading.Event()

    def interrupt() -> None:
        if not ended.wait(LATEST_S if after is None else after):
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=interrupt)
    try:
        timer.start()
        try:
            work()
        finally:
            stopped = time.perf_counter()
            ended.set()
        timer.join()
        time.sleep(0.001)  # a signal sent at the last moment arrives here
    except KeyboardInterrupt:
        timer.join()
    return stopped - sent[0] if sent and sent[0] < stopped else None


def _row(name: str, count: int) -> str:
    """A row of the table: the call measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.interrupts", "--only", name, "--count", str(count)],
        stdout=subprocess.PIPE, text=True, cwd=PAGE.parent.parent, check=False,
    )  # fmt: skip
    if done.returncode or not (found := json.loads(done.stdout)["answers"]):
        return f"| `{name}` | failed | | |"
    ms = np.sort(found) * 1e3
    return f"| `{name}` | {len(ms)} | {np.median(ms):.0f} | {np.quantile(ms, 0.99):.0f} |"


def _write(name: str, row: str) -> None:
    """Put a row into the page; the rows of other calls stay."""
    head, _, rest = PAGE.read_text().partition(MARK)
    table, _, tail = rest.partition(END)
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    rows[name] = row
    lines = ["| call | signals | median, ms | 99 %, ms |", "|---|---|---|---|"]
    lines += [rows[known] for known in CASES if known in rows]
    PAGE.write_text("\n".join([f"{head}{MARK}\n", *lines, "", f"{END}{tail}"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", help="one call: measure it here and print JSON")
    parser.add_argument("--match", default="", help="calls whose name holds this")
    parser.add_argument(
        "--write", action="store_true", help="put the rows into docs/reliability.md"
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.only:
        print(json.dumps(measure(given.only, given.count)))
        return
    for name in (name for name in CASES if given.match in name):
        row = _row(name, given.count)
        print(row, flush=True)
        if given.write:
            _write(name, row)


if __name__ == "__main__":
    main()
