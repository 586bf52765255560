"""``fastopt search`` and ``fastopt watch``: a search of one's own function, and a look at one."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.errors import FormatError, OptionError

__all__ = ["add_to"]

DONE, FAILED, INTERRUPTED = 0, 1, 130


def add_to(commands: Any) -> None:
    """Add both commands to a parser's subcommands."""
    s = commands.add_parser("search", help="search the best arguments of a Python function")
    s.add_argument("function", help="module:function or file.py:function")
    s.add_argument("--space", required=True, help=".json or .toml file, or module:space")
    s.add_argument("--method", default="auto")
    s.add_argument("--evals", type=int, help="evaluations (default: 1000 without --time)")
    s.add_argument("--time", type=float, help="seconds")
    s.add_argument("--workers", type=int, help="processes")
    s.add_argument("--storage", help="journal; the same command goes on with it")
    s.add_argument("--seed", type=int, default=0)
    s.add_argument("--maximize", action="store_true")
    s.add_argument("--constraints", type=int, default=0)
    s.add_argument("--mode", choices=("sync", "async"), default="sync")
    s.add_argument("--patience", type=int)
    s.add_argument("--target", type=float)
    s.add_argument("--timeout", type=float, help="seconds for one trial (needs --workers)")
    s.add_argument("--stopper", help="halving, hyperband, asha, median or wilcoxon")
    s.add_argument("--on-error", choices=("raise", "skip"), default="raise")
    s.add_argument("--retry-failed", action="store_true")
    s.add_argument("--report", help="write an HTML report here")
    s.add_argument("--json", action="store_true", help="print the result as JSON")
    s.set_defaults(run=_search)
    w = commands.add_parser("watch", help="how far the search of a journal is")
    w.add_argument("journal")
    w.add_argument("--once", action="store_true", help="print it once and end")
    w.add_argument("--every", type=float, default=2.0, help="seconds (default: %(default)s)")
    w.add_argument("--report", help="write an HTML report here, and end")
    w.set_defaults(run=_watch)


def _search(arguments: argparse.Namespace) -> int:
    from fastopt.search import Space, minimize

    f = _named(arguments.function, "function")
    if not callable(f):
        raise OptionError(f"function: {arguments.function} is not callable")
    if Path(arguments.space).suffix in (".json", ".toml"):
        space: Any = Space.load(arguments.space)
    else:
        space = _named(arguments.space, "--space")
    report = _report_path(arguments.report)
    result = minimize(
        f,
        space,
        method=arguments.method,
        max_evals=1000 if arguments.evals is None and arguments.time is None else arguments.evals,
        max_time=arguments.time,
        workers=arguments.workers,
        storage=arguments.storage,
        seed=arguments.seed,
        maximize=arguments.maximize,
        constraints=arguments.constraints,
        mode=arguments.mode,
        patience=arguments.patience,
        target=arguments.target,
        timeout=arguments.timeout,
        stopper=arguments.stopper,
        on_error=arguments.on_error,
        retry_failed=arguments.retry_failed,
        progress=True,
    )
    if report is not None:
        _write_report(result, report)
    print(json.dumps(_facts(result)) if arguments.json else _text(result))
    if result.interrupted:
        return INTERRUPTED
    return DONE if result.n_failed < result.n_evals else FAILED


def _watch(arguments: argparse.Namespace) -> int:
    from fastopt.search import load_result

    report = _report_path(arguments.report)
    start, before = time.monotonic(), -1
    while True:
        begun = time.monotonic()
        result = load_result(arguments.journal)
        if report is not None:
            _write_report(result, report)
            return DONE
        if before < 0:
            before = result.n_evals
        elapsed = time.monotonic() - start
        rate = f"{(result.n_evals - before) / elapsed:.3g}/s  " if elapsed > 1 else ""
        failed = f"{result.n_failed} failed  " if result.n_failed else ""
        best = json.dumps(_plain(result.x))
        fun = _plain(result.fun)
        print(f"{result.n_evals} trials  {rate}{failed}best {fun}  {best}", flush=True)
        if arguments.once:
            return DONE
        # Reading a long journal takes its time: never more than a fifth of ours.
        time.sleep(max(arguments.every, 4 * (time.monotonic() - begun)))


def _named(text: str, option: str) -> Any:
    """The object that ``module:name`` or ``file.py:name`` names."""
    module, _, name = text.rpartition(":")
    if not module or not name:
        raise OptionError(f"{option}: expected module:name, got {text!r}")
    path = Path(module)
    folder = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    target = path.stem if path.suffix == ".py" else module
    try:
        found: Any = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not target.startswith(error.name):
            raise  # an import inside the module
        raise OptionError(f"{option}: there is no module {module!r} here") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise OptionError(f"{option}: {module} has no {name!r}")
        found = getattr(found, part)
    return found


def _report_path(path: str | None) -> Path | None:
    """Checked before any work is done."""
    if path is None:
        return None
    target = Path(path)
    if target.suffix not in (".html", ".htm"):
        raise FormatError("expected a name ending in .html", path)
    if not target.resolve().parent.is_dir():
        raise OptionError(f"--report: there is no folder {target.resolve().parent}")
    return target


def _write_report(result: Any, path: Path) -> None:
    from fastopt import report

    report.write_search(result, path)


def _facts(result: Any) -> dict[str, Any]:
    """The result as JSON values."""
    return {
        "x": _plain(result.x),
        "fun": _plain(result.fun),
        "n_evals": result.n_evals,
        "n_failed": result.n_failed,
        "violation": _plain(result.violation),
        "message": result.message,
        "method": result.method,
        "method_reason": result.method_reason,
        "interrupted": result.interrupted,
        "elapsed_s": round(result.elapsed_s, 3),
    }


def _text(result: Any) -> str:
    lines = [f"{result.message}: {result.n_evals} evaluations by {result.method}"]
    if result.n_failed:
        lines.append(f"{result.n_failed} failed, the first with: {_first(result.errors.values())}")
    if result.x is None:
        return "\n".join([*lines, "no trial gave a value"])
    lines.append(f"best {_plain(result.fun)}")
    width = max(map(len, result.x))
    lines += [f"  {name:<{width}}  {_plain(value)}" for name, value in result.x.items()]
    return "\n".join(lines)


def _first(messages: Any) -> str:
    return next(iter(messages), "no number")


def _plain(value: Any) -> Any:
    """JSON values; what JSON has no form for as text, NaN as null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
