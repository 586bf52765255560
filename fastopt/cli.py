"""The command line: ``fastopt compress model.onnx --data calib.npz -o small.onnx`` and its kin.

Exit codes: 0 done, 1 failed at run time, 2 wrong usage or bad input, 3 the budget could not be
kept by any smaller model, 130 interrupted (what was confirmed is written).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastopt import __version__, search_command
from fastopt.errors import FastoptError, OptionError, StorageError, TrialError

__all__ = ["main"]

DONE, FAILED, BAD_INPUT, BUDGET_NOT_KEPT, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        return _fail(error, BAD_INPUT)
    except (StorageError, TrialError, ImportError) as error:
        return _fail(error, FAILED)
    except FastoptError as error:
        return _fail(error, BAD_INPUT)
    except OSError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def _fail(error: object, code: int) -> int:
    """One line on stderr."""
    text = " ".join(str(error).split())
    print(f"\rfastopt: {text}", file=sys.stderr)
    return code


# --- arguments ----------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastopt", description="Make models small and fast on a CPU, within a stated drop."
    )
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _compress_parser(commands)
    _apply_parser(commands)
    _quantize_parser(commands)
    _inspect_parser(commands)
    _compare_parser(commands)
    search_command.add_to(commands)

    demo = commands.add_parser(
        "demo", help="train, compress and report on real data: digits, offline, under a minute"
    )
    demo.add_argument(
        "-o", "--output", default="fastopt-demo", help="folder (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="kernel level, threads and versions")
    info.set_defaults(run=_info)
    return parser


MODEL = "an .onnx file, or a network saved by fastopt (.npz or .safetensors)"
DATA = ".npz, folder of .npz, .npy, .parquet or module:function; arrays named as the inputs"


def _judged(command: argparse.ArgumentParser) -> None:
    """What compress and apply share: data, metric, budget."""
    command.add_argument("--data", required=True, help=DATA)
    command.add_argument("--max-drop", default="1%", help="1%% or 0.01 (default: 1%%)")
    command.add_argument("--check", help="data for the final check (default: a quarter of --data)")
    command.add_argument("--calib", help="data to calibrate on (default: the search rows)")
    command.add_argument("--labels", help="the array that holds labels (default: y)")
    command.add_argument(
        "--metric",
        help="accuracy, r2, agreement, or module:function of (outputs, data, reference) or "
        "(outputs, y); default: what fits the labels, agreement without",
    )
    command.add_argument("--classes-axis", type=int, help="for agreement: axis of the classes")
    command.add_argument("--confidence", help="certify the budget, for example 95%%")
    command.add_argument("--batch", type=int, default=1, help="rows of the latency measured")
    command.add_argument("--threads", type=int, default=1, help="threads of the latency measured")
    command.add_argument(
        "--workers", type=int, default=1, help="processes that measure side by side"
    )
    command.add_argument(
        "--portable", action="store_true", help="plain forms for run-times that do not fold"
    )
    command.add_argument("-o", "--output", required=True, help="where to write the small model")
    command.add_argument("--report", help="write an HTML report here")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--seed", type=int, default=0)


def _compress_parser(commands: Any) -> None:
    from_names = ", ".join(("fold", "prune", "merge", "layer", "refit", "quantize"))
    c = commands.add_parser("compress", help="the smallest model within a stated drop")
    c.add_argument("model", help=MODEL)
    _judged(c)
    c.add_argument("--target", choices=("size", "macs", "latency"), default="size")
    c.add_argument("--method", choices=("auto", "genetic", "greedy", "random"), default="auto")
    c.add_argument("--passes", help=f"some of {from_names} (default: all)")
    c.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="layers to leave alone"
    )
    c.add_argument("--evals", type=int, help="recipes to try (default: what suits the model)")
    c.add_argument("--time", help="seconds to search at most: 60 or 60s")
    c.add_argument("--storage", help="journal: the same command goes on after a kill")
    c.add_argument("--front", metavar="DIR", help="write several models of the Pareto front")
    c.set_defaults(run=_compress)


def _apply_parser(commands: Any) -> None:
    a = commands.add_parser("apply", help="repeat a recipe on a retrained model, check its drop")
    a.add_argument("recipe", help="JSON as compress --json prints it, or its recipe alone")
    a.add_argument("model", help=MODEL)
    _judged(a)
    a.set_defaults(run=_apply)


def _quantize_parser(commands: Any) -> None:
    q = commands.add_parser("quantize", help="store all weights in one form; no drop is measured")
    q.add_argument("model", help=MODEL)
    q.add_argument("--form", default="int8", help="int8, int4g, float16 ... (default: int8)")
    q.add_argument("--data", help=f"rows to calibrate on: {DATA}")
    q.add_argument("--keep", action="append", default=[], metavar="PATTERN")
    q.add_argument("--portable", action="store_true")
    q.add_argument("-o", "--output", required=True)
    q.set_defaults(run=_quantize)


def _inspect_parser(commands: Any) -> None:
    i = commands.add_parser("inspect", help="layers, groups, bytes and multiply-adds of a model")
    i.add_argument("model", help=MODEL)
    i.add_argument("--data", help=f"measure how sensitive each layer is: {DATA}")
    i.add_argument("--json", action="store_true")
    i.set_defaults(run=_inspect)


def _compare_parser(commands: Any) -> None:
    c = commands.add_parser("compare", help="outputs, size and latency of two models")
    c.add_argument("a")
    c.add_argument("b")
    c.add_argument("--data", required=True, help=DATA)
    c.add_argument("--metric")
    c.add_argument("--labels")
    c.add_argument("--classes-axis", type=int)
    c.add_argument("--batch", type=int, default=1)
    c.add_argument("--threads", type=int, default=1)
    c.add_argument("--json", action="store_true")
    c.set_defaults(run=_compare)


# --- commands -----------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from fastopt.demo import run

    run(arguments.output, seed=arguments.seed)
    return DONE


def _info(arguments: argparse.Namespace) -> int:
    from fastopt.config import show_config

    show_config()
    return DONE


def _compress(arguments: argparse.Namespace) -> int:
    from fastopt.compression import compress

    options = _judged_options(arguments) | {
        "target": arguments.target,
        "method": arguments.method,
        "keep": arguments.keep,
        "max_evals": arguments.evals,
        "max_time": _seconds(arguments.time),
        "storage": arguments.storage,
    }
    if arguments.passes:
        options["passes"] = [name.strip() for name in arguments.passes.split(",")]
    _check_files(arguments, front=arguments.front)
    shown = _Progress()
    try:
        result = compress(
            arguments.model, arguments.data, callback=shown.recipes, progress=shown.say, **options
        )
    finally:
        shown.clear()
    if arguments.front and result.candidates:
        result.save_front(arguments.front, Path(arguments.output).suffix)
    return _finish(result, arguments)


def _apply(arguments: argparse.Namespace) -> int:
    from fastopt.compression import Recipe, apply_recipe

    options = _judged_options(arguments)
    _check_files(arguments, recipe=arguments.recipe)
    recipe = Recipe.load(arguments.recipe)
    return _finish(apply_recipe(recipe, arguments.model, arguments.data, **options), arguments)


def _finish(result: Any, arguments: argparse.Namespace) -> int:
    """Write and print a result; the exit code."""
    from fastopt import report

    if result.changed or not result.interrupted:
        result.save(arguments.output)
    if arguments.report:
        report.write(result, arguments.report)
    print(result.to_json() if arguments.json else result.table())
    if result.interrupted:
        return INTERRUPTED
    return DONE if result.changed else BUDGET_NOT_KEPT


def _judged_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "max_drop": _share(arguments.max_drop, "--max-drop"),
        "confidence": None
        if arguments.confidence is None
        else _share(arguments.confidence, "--confidence"),
        "metric": arguments.metric,
        "labels": arguments.labels,
        "classes_axis": arguments.classes_axis,
        "check": arguments.check,
        "calib": arguments.calib,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "workers": arguments.workers,
        "portable": arguments.portable,
        "seed": arguments.seed,
    }


def _quantize(arguments: argparse.Namespace) -> int:
    from fastopt.compression import quantize_model

    _check_files(arguments)
    before = os.path.getsize(arguments.model)
    model, done = quantize_model(
        arguments.model,
        arguments.form,
        data=arguments.data,
        keep=arguments.keep,
        portable=arguments.portable,
    )
    model.save(arguments.output)
    _table([("layer", "done"), *done.items()])
    after = os.path.getsize(arguments.output)
    print(f"{before:,} -> {after:,} bytes; no drop was measured: fastopt compress does that")
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    from fastopt.compression import inspect_model

    found = inspect_model(arguments.model, arguments.data)
    if arguments.json:
        import json

        print(json.dumps(found, indent=2))
        return DONE
    head = ("layer", "kind", "shape", "stored", "bytes", "multiply-adds", "4-bit error")
    rows = [
        (
            layer["name"], layer["kind"], " x ".join(map(str, layer["shape"])), layer["form"],
            f"{layer['nbytes']:,}", f"{layer['macs']:,}",
            "" if layer["sensitivity"] is None else f"{layer['sensitivity']:.1e}",
        )
        for layer in found["layers"]
    ]  # fmt: skip
    total = ("total", "", "", "", f"{found['nbytes']:,}", f"{found['macs']:,}", "")
    _table([head, *rows, total])
    if found["groups"]:
        print()
        _table(
            [("group", "units", "made by", "read by", "frozen")]
            + [
                (g["name"], str(g["n_units"]), ", ".join(g["producers"]),
                 ", ".join(g["consumers"]), g["frozen"] or "")
                for g in found["groups"]
            ]
        )  # fmt: skip
    for note in found["notes"]:
        print(f"note: {note}")
    return DONE


def _compare(arguments: argparse.Namespace) -> int:
    from fastopt.compression import compare_models

    found = compare_models(
        arguments.a,
        arguments.b,
        arguments.data,
        metric=arguments.metric,
        labels=arguments.labels,
        classes_axis=arguments.classes_axis,
        batch=arguments.batch,
        threads=arguments.threads,
    )
    if arguments.json:
        import json

        print(json.dumps(found, indent=2))
        return DONE
    a, b = found["a"], found["b"]
    rows = [("", arguments.a, arguments.b, "ratio")]
    for key, form in (("nbytes", ","), ("n_params", ","), ("macs", ","), ("latency_s", ".3g")):
        ratio = b[key] / a[key] if a[key] else 1.0
        rows.append((key, format(a[key], form), format(b[key], form), f"{ratio:.3f}"))
    rows.append((found["metric"], f"{a['metric']:.4f}", f"{b['metric']:.4f}", ""))
    _table(rows)
    for name, error in found["max_error"].items():
        print(f"largest difference of {name}: {error:.3g}")
    return DONE


# --- what is checked before any work ------------------------------------------------------


def _check_files(arguments: argparse.Namespace, **more: str | None) -> None:
    """Every output differs from every input and every other output, and can be written."""
    given = vars(arguments)
    inputs = {k: given.get(k) for k in ("model", "data", "check", "calib")}
    inputs["recipe"] = more.get("recipe")
    outputs = {k: given.get(k) for k in ("output", "report", "storage")}
    outputs["front"] = more.get("front")
    known = {name: Path(p) for name, p in inputs.items() if p and os.path.exists(p)}
    seen: dict[str, Path] = {}
    for name, text in outputs.items():
        if not text:
            continue
        path = Path(text)
        for other, taken in {**known, **seen}.items():
            if _same(path, taken):
                kind = "the input" if other in known else "the output"
                raise OptionError(
                    f"--{name}: {text} is {kind} {_option(other)}; files are never overwritten "
                    "by each other"
                )
        seen[name] = path
        _check_writable(name, path)
    _check_suffixes(Path(given["model"]), Path(given["output"]), given.get("report"))


def _same(a: Path, b: Path) -> bool:
    if a.exists() and b.exists():
        return os.path.samefile(a, b)
    return a.resolve() == b.resolve()


def _option(name: str) -> str:
    return name if name in ("model", "recipe") else f"--{name}"


def _check_writable(name: str, path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OptionError(f"--{name}: there is no folder {folder}")
    if path.is_dir() and name != "front":
        raise OptionError(f"--{name}: {path} is a folder")
    if path.exists() and not path.is_dir() and name == "front":
        raise OptionError(f"--{name}: {path} is a file")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"--{name}: the folder {folder} cannot be written")


def _check_suffixes(model: Path, output: Path, report: str | None) -> None:
    wanted = (".onnx",) if model.suffix == ".onnx" else (".npz", ".safetensors")
    if output.suffix not in wanted:
        raise OptionError(
            f"--output: {model} is written as {' or '.join(wanted)}, not {output.suffix!r}"
        )
    if report and Path(report).suffix not in (".html", ".htm"):
        raise OptionError(f"--report: expected a name ending in .html, got {report}")


def _share(text: str, name: str) -> float:
    """``1%`` or ``0.01`` as a share."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise OptionError(f"{name}: expected 1% or 0.01, got {text!r}") from None
    return value


def _seconds(text: str | None) -> float | None:
    """``60``, ``60s`` or ``5m`` as seconds."""
    if text is None:
        return None
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:], 0.0)
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise OptionError(f"--time: expected seconds such as 60 or 60s, got {text!r}") from None


# --- what is shown ------------------------------------------------------------------------


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, the head first; by rich where it is installed and this is a terminal."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(box=None, header_style="bold")
            for k, name in enumerate(rows[0]):
                table.add_column(name, justify="left" if k == 0 else "right")
            for row in rows[1:]:
                table.add_row(*row)
            Console().print(table)
            return
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
        print("  ".join([first, *rest]).rstrip())


class _Progress:
    """One changing line on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._last = 0.0

    def say(self, text: str) -> None:
        now = time.monotonic()
        if self._shown and now - self._last > 0.05:
            print(f"\r{text:<76}", end="", file=sys.stderr, flush=True)
            self._last = now

    def recipes(self, done: int, best: float) -> None:
        self.say(f"{done} recipes, best {best:.3f} of the original")

    def clear(self) -> None:
        if self._shown:
            print("\r" + " " * 76 + "\r", end="", file=sys.stderr, flush=True)
