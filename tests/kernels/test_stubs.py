"""The stubs say what the compiled modules have: the same functions, the same arguments."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import fastopt
from fastopt import _kernels

STUBS = sorted((Path(fastopt.__file__).parent / "_kernels").glob("*/*.pyi"))
assert STUBS, "the stubs are part of every installation"


def arguments(node: ast.FunctionDef) -> list[str]:
    a = node.args
    return [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]


@pytest.mark.parametrize("path", STUBS, ids=lambda p: p.stem)
def test_stub_matches_module(path: Path) -> None:
    if path.parent.name == "shared":
        module = import_module(f"fastopt._kernels.shared.{path.stem}")
    else:
        module = getattr(_kernels, path.stem)
    tree = ast.parse(path.read_text())
    stubbed = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    classes = {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
    public = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isclass(value)
        and getattr(value, "__module__", "").startswith("fastopt")
    }
    assert set(public) == set(stubbed)
    for name, value in public.items():
        assert list(inspect.signature(value).parameters) == arguments(stubbed[name]), name
    for name in classes:
        assert inspect.isclass(getattr(module, name)), name
