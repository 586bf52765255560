"""The rows of the house: a file imports only from its own row or from rows above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastopt

ROOT = Path(fastopt.__file__).parent

# The first matching prefix gives a module's row; errors and the version belong to everybody.
ROWS = [
    ("fastopt.errors", -1),
    ("fastopt._kernels", 0),
    ("fastopt._arrays", 1),
    ("fastopt._threads", 1),
    ("fastopt._random", 1),
    ("fastopt._options", 1),
    ("fastopt._files", 1),
    ("fastopt._interrupts", 1),
    ("fastopt._optional", 1),
    ("fastopt.optim", 2),
    ("fastopt.linear_model", 2),
    ("fastopt.calibration", 2),
    ("fastopt.quantization", 2),
    ("fastopt.pruning", 2),
    ("fastopt.merging", 2),
    ("fastopt.layering", 2),
    ("fastopt.search_command", 6),
    ("fastopt.search", 3),
    ("fastopt.models", 4),
    ("fastopt.compression", 5),
    ("fastopt.integrations", 6),
    ("fastopt.report", 6),
    ("fastopt.config", 6),
    ("fastopt.demo", 6),
    ("fastopt.cli", 6),
    ("fastopt.__main__", 6),
]
HEAVY = {
    "torch",
    "sklearn",
    "scipy",
    "onnx",
    "onnxruntime",
    "safetensors",
    "pandas",
    "ml_dtypes",
    "optuna",
    "matplotlib",
}


def row_of(module: str) -> int:
    for prefix, row in ROWS:
        if module == prefix or module.startswith(prefix + "."):
            return row
    raise AssertionError(f"{module} stands in no row")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Modules of fastopt that a .py imports, wherever in the file, but for type checking."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                home = ROOT.parent.joinpath(*inner.split("."))
                module = home.is_dir() or home.with_suffix(".py").exists()
                found.add(inner if module or node.module == "fastopt" else str(node.module))
    return {name for name in found if name.startswith("fastopt.")}


PY = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", PY, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_its_row_or_above(path: Path) -> None:
    own = row_of(module_of(path))
    for name in imports_of(path):
        if name == "fastopt.__version__":
            continue
        assert row_of(name) <= own, f"{module_of(path)} (row {own}) imports {name}"


def test_no_imports_go_in_a_circle() -> None:
    """Within a row too: in some order every file comes after all that it imports."""
    needs = {module_of(p): imports_of(p) for p in PY if "_kernels" not in p.parts}
    while needs:
        free = {module for module, names in needs.items() if not names & needs.keys() - {module}}
        assert free, f"circles among {sorted(needs)}"
        needs = {module: names for module, names in needs.items() if module not in free}


def test_kernels_import_only_kernels_and_errors() -> None:
    sources = [*ROOT.glob("_kernels/*/*.pyx"), *ROOT.glob("_kernels/*/*.pxd")]
    if not sources:
        assert not (ROOT.parent / "setup.py").exists(), "a source tree without kernels"
        pytest.skip("installed from a wheel: no kernel sources")
    for path in sources:
        for name in re.findall(r"^\s*(?:from|c?import)\s+(fastopt[\w.]*)", path.read_text(), re.M):
            assert row_of(name) <= 0, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", PY, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        top = {name.partition(".")[0] for name in names}
        allowed = {path.stem} if path.parent == ROOT / "integrations" else set()
        assert not (top & HEAVY) - allowed, f"{path}: {top & HEAVY} imported at the top"
