"""The command line: ``fastopt demo``, ``fastopt compress``, ``fastopt inspect``, ``fastopt info``.

Exit codes: 0 done, 1 a fastopt error (one line on stderr), 2 wrong usage, 3 the budget could not
be kept by any smaller model, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastopt import __version__
from fastopt.errors import FastoptError, FormatError, OptionError, UnsupportedError

__all__ = ["main"]

BUDGET_NOT_KEPT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except (FastoptError, ImportError, OSError) as error:
        print(f"fastopt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fastopt: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastopt", description="Make models small and fast on a CPU, within a stated drop."
    )
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser(
        "demo", help="train, compress and report on real data: digits, offline, under a minute"
    )
    demo.add_argument(
        "-o", "--output", default="fastopt-demo", help="folder (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)

    compress = commands.add_parser("compress", help="the smallest model within a stated drop")
    compress.add_argument("model", help="a network saved by fastopt (.npz or .safetensors)")
    compress.add_argument("--data", required=True, help=".npz with X (rows) and, if any, y")
    compress.add_argument("--max-drop", default="1%", help="1%% or 0.01 (default: 1%%)")
    compress.add_argument("-o", "--output", required=True, help="where to write the small model")
    compress.add_argument("--target", choices=("size", "macs", "latency"), default="size")
    compress.add_argument("--method", choices=("genetic", "greedy", "random"), default="genetic")
    compress.add_argument("--evals", type=int, default=200, help="recipes to try")
    compress.add_argument("--time", type=float, default=None, help="seconds to search at most")
    compress.add_argument("--report", help="write an HTML report here")
    compress.add_argument("--json", action="store_true", help="print the result as JSON")
    compress.add_argument("--seed", type=int, default=0)
    compress.set_defaults(run=_compress)

    inspect = commands.add_parser("inspect", help="layers, bytes and multiply-adds of a model")
    inspect.add_argument("model")
    inspect.set_defaults(run=_inspect)

    info = commands.add_parser("info", help="kernel level, threads and versions")
    info.set_defaults(run=_info)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from fastopt.demo import run

    run(arguments.output, seed=arguments.seed)
    return 0


def _compress(arguments: argparse.Namespace) -> int:
    from fastopt import report
    from fastopt.compression import compress

    limit = _share(arguments.max_drop)
    output = Path(arguments.output)
    if output.resolve() == Path(arguments.model).resolve():
        raise OptionError("--output: is the input file, which is never overwritten")
    model = _load(arguments.model)
    result = compress(
        model,
        _data(arguments.data),
        max_drop=limit,
        target=arguments.target,
        method=arguments.method,
        max_evals=arguments.evals,
        max_time=arguments.time,
        seed=arguments.seed,
        callback=_progress(arguments.evals) if sys.stderr.isatty() else None,
    )
    result.save(output)
    if arguments.report:
        report.write(result, arguments.report)
    print(result.to_json() if arguments.json else result.table())
    return 0 if result.changed else BUDGET_NOT_KEPT


def _inspect(arguments: argparse.Namespace) -> int:
    model = _load(arguments.model)
    print(f"{'layer':<16} {'shape':>14} {'stored':>8} {'bytes':>12} {'multiply-adds':>14}")
    for name, layer in model.layers.items():
        shape = " x ".join(map(str, layer.weight.shape))
        stored = "float32" if layer.stored is None else str(layer.stored.dtype)
        print(f"{name:<16} {shape:>14} {stored:>8} {layer.nbytes:>12,} {layer.macs:>14,}")
    print(f"{'total':<16} {'':>14} {'':>8} {model.nbytes:>12,} {model.macs:>14,}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from fastopt.config import show_config

    show_config()
    return 0


def _load(path: str) -> Any:
    from fastopt.models import Network

    if Path(path).suffix not in (".npz", ".safetensors"):
        raise UnsupportedError(
            f"{path}: expected a network saved by fastopt (.npz or .safetensors)"
        )
    return Network.load(path)


def _data(path: str) -> Any:
    """(X, y) or X from an .npz file; nothing in it is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except ValueError as error:
        raise FormatError(str(error), path) from None
    if "X" not in arrays:
        raise FormatError(f"expected an array named X, found {sorted(arrays)}", path)
    return (arrays["X"], arrays["y"]) if "y" in arrays else arrays["X"]


def _share(text: str) -> float:
    """``1%`` or ``0.01`` as a share."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise OptionError(f"--max-drop: expected 1% or 0.01, got {text!r}") from None
    return value


def _progress(total: int) -> Any:
    def show(done: int, best: float) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done}/{total} recipes, best {best:.3f} of the cost", end=end, file=sys.stderr)

    return show
