"""Public docstrings are complete: parameters, returns, an example (test_docs.py runs it)."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import pkgutil
import re
import textwrap
from typing import Any

import pytest

import fastopt
from fastopt import errors

PACKAGES = sorted(
    f"fastopt.{name}"
    for name in fastopt._MODULES
    if name not in ("errors", "integrations", "report")
)


def members() -> list[tuple[str, Any]]:
    """Every public function and class, once, with the shortest path to it."""
    found: dict[int, tuple[str, Any]] = {}
    for package in ("fastopt", *PACKAGES):
        module = pkgutil.resolve_name(package)
        for name in module.__all__:
            value = getattr(module, name)
            error = inspect.isclass(value) and issubclass(value, BaseException)
            if inspect.isfunction(value) or (inspect.isclass(value) and not error):
                found.setdefault(id(value), (f"{package}.{name}", value))
    return sorted(found.values(), key=lambda each: each[0])


MEMBERS = members()


def is_record(value: Any) -> bool:
    """A class of fields alone; the function that makes one has the example."""
    return (
        dataclasses.is_dataclass(value)
        or hasattr(value, "_fields")
        or hasattr(value, "_is_protocol")
    )


def lacks(value: Any) -> list[str]:
    """What the docstring ought to have and has not."""
    text = inspect.getdoc(value) or ""
    missing = []
    signature = inspect.signature(value)
    names = [p for p in signature.parameters if p not in ("self", "args", "kwargs")]
    if names and not any(f"{part}\n---" in text for part in ("Parameters", "Attributes")):
        missing.append("Parameters")
    returns = signature.return_annotation not in (None, "None")
    if inspect.isfunction(value) and returns and not any(
        f"{part}\n---" in text for part in ("Returns", "Yields")
    ):  # fmt: skip
        missing.append("Returns")
    if ">>> " not in text and not is_record(value):
        missing.append("an example")
    return missing


def raised(value: Any) -> set[str]:
    """Errors of fastopt that the function, or the class's constructor, itself raises."""
    made = value.__dict__.get("__init__") if inspect.isclass(value) else value
    if made is None or is_record(value):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(made)))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    names = {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
    return names & set(errors.__all__)


def documented(value: Any) -> set[str]:
    """The errors that the section Raises names."""
    _, _, rest = (inspect.getdoc(value) or "").partition("Raises\n------\n")
    section = re.split(r"\n\n[\w ]+\n---", rest)[0]
    lines = [line for line in section.splitlines() if line and not line.startswith(" ")]
    return {name.strip() for line in lines for name in line.split(",")}


@pytest.mark.parametrize(("name", "value"), MEMBERS, ids=[name for name, _ in MEMBERS])
def test_what_is_raised_is_documented_and_exists(name: str, value: Any) -> None:
    known = documented(value)
    kinds = {n: getattr(errors, n, None) or getattr(builtins, n, None) for n in known}
    assert all(kinds.values()), f"{name}: unknown errors in Raises: {kinds}"
    missing = {
        n for n in raised(value)
        if not any(issubclass(getattr(errors, n), kind) for kind in kinds.values())
    }  # fmt: skip
    assert not missing, f"{name} raises {missing}, which Raises does not name"


@pytest.mark.parametrize(("name", "value"), MEMBERS, ids=[name for name, _ in MEMBERS])
def test_docstring_is_complete(name: str, value: Any) -> None:
    assert not lacks(value), name
