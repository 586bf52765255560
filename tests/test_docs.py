"""Every example runs: README and docs blocks, docstrings, the scripts in examples/."""

from __future__ import annotations

import doctest
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fastopt

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(fastopt.__path__, "fastopt.")
    if not m.name.startswith(("fastopt._kernels", "fastopt.__main__"))
)
OPTIONAL = {
    "torch",
    "sklearn",
    "safetensors",
    "onnx",
    "onnxruntime",
    "scipy",
    "ml_dtypes",
    "optuna",
    "pandas",
}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page share one namespace, in order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for k, block in enumerate(blocks(page)):
        for package in re.findall(r"^(?:import|from) (\w+)", block, re.M):
            if package in OPTIONAL:
                pytest.importorskip(package)
        exec(compile(block, f"{page.name}[block {k + 1}]", "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name: str) -> None:
    if name.startswith("fastopt.integrations."):
        pytest.importorskip(name.rpartition(".")[2])
    module = import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        for package in OPTIONAL:
            if re.search(
                rf"^(import|from) {package}\b", "".join(e.source for e in test.examples), re.M
            ):
                pytest.importorskip(package)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_map_names_files_that_exist() -> None:
    """docs/design.md and docs/index.md: every path and link leads somewhere."""
    docs = ROOT / "docs"
    if not (docs / "design.md").exists():
        pytest.skip("installed from a wheel: no pages")
    for path in re.findall(
        r"`((?:fastopt|tests|benchmarks)/[\w./*]*)`", (docs / "design.md").read_text()
    ):
        assert list(ROOT.glob(path.rstrip("/"))), path
    for page in docs.glob("*.md"):
        for link in re.findall(r"\]\(([\w./]+\.md)\)", page.read_text()):
            assert (docs / link).exists(), f"{page.name}: {link}"
