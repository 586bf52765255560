"""Variables from and to other forms: plain dicts, JSON and TOML files, Optuna, scipy.

The doors are methods of ``Space``, which documents them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from fastopt._files import path_of, storage_errors
from fastopt.errors import DTypeError, FastoptError, FormatError, UnsupportedError
from fastopt.search.variables import Bool, Choice, Float, Int, Permutation, Variable, Vector

__all__ = ["from_optuna", "from_scipy", "read", "to_dict", "variables_of"]

Variables: TypeAlias = dict[str, Variable]

KINDS: dict[str, type[Any]] = {
    "float": Float,
    "int": Int,
    "choice": Choice,
    "bool": Bool,
    "permutation": Permutation,
    "vector": Vector,
}
TAILS = 0.001  # of a scipy distribution without bounds that are cut off at each end


def variables_of(description: Any, path: str | None = None) -> Variables:
    """Variables of what ``Space.from_dict`` takes."""
    if not isinstance(description, Mapping) or not description:
        raise FormatError("space: expected a dict of variables by name", path)
    variables: Variables = {}
    for name, given in description.items():
        if not isinstance(name, str) or not isinstance(given, Mapping):
            raise FormatError(f"space: {name}: expected a dict with a type", path)
        options = dict(given)
        kind = KINDS.get(str(options.pop("type", None)))
        if kind is None:
            raise FormatError(
                f"space: {name}: expected a type of {', '.join(KINDS)}, got {given.get('type')!r}",
                path,
            )
        known = {f.name: f.default for f in fields(kind)}
        wrong = [k for k in options if k not in known]
        lacking = [k for k, v in known.items() if v is MISSING and k not in options]
        if wrong or lacking:
            raise FormatError(f"space: {name}: missing {lacking}, unknown {wrong}", path)
        try:
            if kind is Choice:
                listed = options["options"]
                if not isinstance(listed, (list, tuple)):
                    raise FormatError(f"expected a list of options, got {listed!r}")
                variables[name] = Choice(list(listed), when=options.get("when"))
            else:
                variables[name] = kind(**options)
        except FastoptError as error:
            raise FormatError(f"space: {name}: {error}", path) from None
    return variables


def to_dict(variables: Variables) -> dict[str, Any]:
    """What :func:`variables_of` takes."""
    names = {kind: name for name, kind in KINDS.items()}
    described: dict[str, Any] = {}
    for name, v in variables.items():
        entry: dict[str, Any] = {"type": names[type(v)]}
        for f in fields(v):
            value = getattr(v, f.name)
            if f.default is MISSING or value != f.default:
                entry[f.name] = _plain(value, name)
        described[name] = entry
    return described


def _plain(value: Any, name: str) -> Any:
    """Options and conditions as JSON values that come back equal."""
    if isinstance(value, tuple):
        return [_plain(v, name) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v, name) for k, v in value.items()}
    if value is None or type(value) in (str, bool, int, float):
        return value
    raise UnsupportedError(f"{name}: JSON cannot hold the option {value!r}; give it a name")


def read(path: Any) -> tuple[str, Any]:
    """(path, description) of a .json or .toml file."""
    where = path_of(path)
    path = Path(where)
    with storage_errors(where):
        text = path.read_bytes()
    if path.suffix == ".toml":
        try:
            toml = import_module("tomllib")
        except ImportError:  # Python 3.10
            try:
                toml = import_module("tomli")
            except ImportError:
                raise ImportError("space: .toml needs tomli: pip install tomli") from None
        try:
            return where, toml.loads(text.decode())
        except ValueError as error:
            raise FormatError(f"no TOML: {error}", str(path)) from None
    if path.suffix != ".json":
        raise FormatError("expected a .json or .toml file", str(path))
    try:
        return where, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"no JSON: {error}", str(path)) from None


def _named(distributions: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(distributions, Mapping):
        raise DTypeError(
            f"distributions: expected a dict by name, got {type(distributions).__name__}"
        )
    return distributions.items()


def from_optuna(distributions: Any) -> Variables:
    """Variables of a dict of Optuna distributions."""
    return {name: _of_optuna(name, d) for name, d in _named(distributions)}


def _of_optuna(name: str, d: Any) -> Variable:
    kind = type(d).__name__
    if kind == "CategoricalDistribution":
        return Choice(list(d.choices))
    if kind == "FloatDistribution":
        return Float(d.low, d.high, log=d.log, step=d.step)
    if kind != "IntDistribution":
        raise UnsupportedError(f"{name}: expected an Optuna distribution, got {kind}")
    if d.step == 1:
        return Int(d.low, d.high, log=d.log)
    return Choice(list(range(d.low, d.high + 1, d.step)))


def from_scipy(distributions: Any) -> Variables:
    """Variables of what scikit-learn's RandomizedSearchCV takes."""
    return {name: _of_scipy(name, d) for name, d in _named(distributions)}


def _of_scipy(name: str, d: Any) -> Variable:
    if isinstance(d, (Float, Int, Choice, Bool, Permutation, Vector)):
        return d
    if isinstance(d, (list, tuple)):
        return Bool() if set(map(repr, d)) == {"True", "False"} else Choice(list(d))
    if not hasattr(d, "ppf") or not hasattr(d, "support"):
        if hasattr(d, "tolist"):
            return Choice(d.tolist())
        raise UnsupportedError(f"{name}: expected a list or a scipy distribution, got {d!r}")
    kind = getattr(getattr(d, "dist", None), "name", "")
    low, high = d.support()
    if not math.isfinite(low):
        low = d.ppf(TAILS)
    if not math.isfinite(high):
        high = d.ppf(1 - TAILS)
    if hasattr(d, "pmf") or hasattr(getattr(d, "dist", None), "pmf"):
        return Int(int(low), int(high))
    return Float(float(low), float(high), log=kind in ("loguniform", "reciprocal"))
