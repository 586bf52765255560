"""Collects what the cases measured; prints the table of ratios; rewrites docs/benchmarks.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import pytest

import fastopt
from benchmarks.harness import rows_of
from fastopt._kernels import isa

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEAD = ("work", "threads", "fastopt", "against", "its time", "ratio", "by minima", "wanted")
PEERS = [
    "numpy",
    "torch",
    "onnxruntime",
    "scikit-learn",
    "optax",
    "jax",
    "ml_dtypes",
    "pymoo",
    "deap",
    "bitsandbytes",
    "gguf",
    "apytypes",
    "fxpmath",
    "moocore",
    "cmaes",
    "optuna",
    "scipy",
]


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> str:
    found = []
    for name in PEERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def head() -> str:
    """Where it ran and how to read it."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks`; nothing here is typed by hand.",
        "",
        f"- {cpu_name()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {datetime.date.today().isoformat()}",
        f"- fastopt {fastopt.__version__}; {versions()}",
        "- Times are median (minimum) of interleaved rounds in one process; *ratio* is the other's"
        " time over ours, by medians and by minima: above 1 we are faster.",
        "- Against *limit* the ratio is the share of the machine's own limit: a loop that only "
        "moves the same bytes, measured in the same rounds.",
        "- *wanted* is the goal the project set itself; a goal that was not reached is marked "
        "so, and stays in the table.",
        "- Each level of kernels that the machine runs has its chapter; the peers pick their own "
        "instructions, the machine's best, in all of them.",
        "",
    ]
    return "\n".join(lines)


def tables(groups: dict[str, list[tuple[str, ...]]]) -> str:
    """The level's chapter: one table per benchmark file."""
    lines = [f"## Level {isa}", ""]
    for title, rows in groups.items():
        lines += [f"### {title}", "", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
        last = ""
        for row in rows:
            key = row[0] + row[1]
            shown = row if key != last else ("", "", "", *row[3:])
            lines.append("| " + " | ".join(shown) + " |")
            last = key
        lines.append("")
    return "\n".join(lines)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[tuple[str, ...]]] = {}
    for bench in getattr(session, "benchmarks", []):
        if "times" in bench.extra_info:
            title = Path(bench.fullname.partition("::")[0]).stem.removeprefix("bench_")
            groups.setdefault(title, []).extend(rows_of(bench.extra_info))
    if not groups:
        return
    text = tables(groups)
    terminalreporter.write_line("\n" + head() + "\n" + text)
    if where := os.environ.get("FASTOPT_BENCH_PAGE"):
        before = head() if where == "new" else PAGE.read_text()
        PAGE.write_text(before + "\n" + text)
        terminalreporter.write_line(f"wrote {PAGE.name}")
