"""What makes two spaces the same, in this process and in another one: a digest of their content.

``repr`` is not used: it abbreviates arrays and holds addresses.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from enum import Enum
from functools import partial
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.errors import OptionError

__all__ = ["describe", "digest_of"]

DEEPEST = 32  # nesting of options


def digest_of(value: Any) -> str:
    """32 hex digits of what ``describe`` says."""
    text = json.dumps(describe(value), separators=(",", ":"), allow_nan=False)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def describe(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON values that are equal for equal content, whatever the process.

    Numbers, strings, containers and arrays by content; functions and classes by name and code;
    other objects by their class and attributes.

    Raises
    ------
    OptionError
        Nothing of the object but its address tells it from others.
    """
    if depth > DEEPEST:
        raise OptionError(f"option {type(value).__name__}: nested too deeply, or holds itself")
    if value is None or isinstance(value, (bool, str)):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Enum):
        return [kind, value.name]
    if isinstance(value, int):
        return [kind, str(int(value))]
    if isinstance(value, float):
        return [kind, value.hex() if math.isfinite(value) else str(value)]
    if isinstance(value, (complex, bytes, bytearray, PurePath, np.dtype, range)):
        return [kind, repr(value)]
    if isinstance(value, (np.ndarray, np.generic)):
        return [kind, *_array(value.reshape(value.shape), depth)]
    if isinstance(value, (list, tuple)):
        return [kind, [describe(v, depth + 1) for v in value]]
    if isinstance(value, (set, frozenset)):
        return [kind, sorted(json.dumps(describe(v, depth + 1)) for v in value)]
    if isinstance(value, Mapping):
        return [kind, [[describe(k, depth + 1), describe(v, depth + 1)] for k, v in value.items()]]
    if isinstance(value, (type, types.BuiltinFunctionType, np.ufunc)):
        return [
            kind,
            getattr(value, "__module__", None),
            getattr(value, "__qualname__", str(value)),
        ]
    if isinstance(value, types.FunctionType):
        return _function(value, kind, depth)
    if isinstance(value, types.MethodType):
        return [kind, describe(value.__func__, depth + 1), describe(value.__self__, depth + 1)]
    if isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
        return [kind, *(describe(p, depth + 1) for p in parts)]
    return [kind, _state(value, kind, depth)]


def _array(a: NDArray[Any], depth: int) -> list[Any]:
    if a.dtype.hasobject:
        return [list(a.shape), describe(a.tolist(), depth + 1)]
    data = blake2b(np.ascontiguousarray(a).tobytes(), digest_size=16)
    if isinstance(a, np.ma.MaskedArray):
        data.update(np.ma.getmaskarray(a).tobytes())
    return [a.dtype.str, list(a.shape), data.hexdigest()]


def _function(f: types.FunctionType, kind: str, depth: int) -> list[Any]:
    """Module and name; for one that has no name of its own its code, defaults and closure."""
    named = [kind, f.__module__, f.__qualname__]
    if "<" not in f.__qualname__:
        return named
    code = f.__code__
    plain = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    inner = [c.co_code.hex() for c in code.co_consts if isinstance(c, types.CodeType)]
    cells = [c.cell_contents for c in f.__closure__ or ()]
    parts = (plain, list(code.co_names), cells, f.__defaults__, f.__kwdefaults__)
    return [*named, code.co_code.hex(), inner, *(describe(p, depth + 1) for p in parts)]


def _state(value: Any, kind: str, depth: int) -> Any:
    """Attributes of an object; what it prints where that is all and holds no address."""
    attributes = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                attributes[name] = getattr(value, name)
    bare: Any = object.__repr__
    if attributes or (type(value).__dictoffset__ and type(value).__repr__ is bare):
        return [[k, describe(v, depth + 1)] for k, v in attributes.items()]
    text = repr(value)
    if " at 0x" in text:
        raise OptionError(
            f"option of type {kind}: only its address tells it from others; give a name "
            "instead and look the object up in the objective"
        )
    return text
