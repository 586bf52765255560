"""An optimizer's state arrays: their memory, their storage and their state dicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from fastopt._arrays import Array, as_array
from fastopt._kernels import update_state
from fastopt._options import real
from fastopt.errors import ArrayError, DTypeError, FastoptError, FormatError

__all__ = [
    "FORMAT", "STATE_DTYPES", "Kept", "ParamState", "allocate", "averages", "check_format", "full",
    "in_order", "moved", "parts", "read", "scalar",
]  # fmt: skip

STATE_DTYPES = ("float32", "bfloat16", "int8")
BLOCK = 256  # values that share a scale in 8-bit state
FORMAT = "int8/2"  # what 8-bit codes mean (codes.h); another number for another meaning

# What a rule keeps for one parameter: (name, whether it has a sign, shape), in the kernel's order.
Kept: TypeAlias = "Sequence[tuple[str, bool, tuple[int, ...]]]"

# One parameter's state: name -> array; 8-bit codes have their scales under name + SCALE.
ParamState: TypeAlias = "dict[str, Array]"
SCALE = "_scale"


def _forms(
    p: Array, state_dtype: str, signed: bool, shape: tuple[int, ...]
) -> list[tuple[str, str, tuple[int, ...]]]:
    """(suffix, dtype, shape) of what one state array of ``p`` needs; float64 is never narrowed."""
    if state_dtype == "float32" or p.dtype == np.float64:
        return [("", p.dtype.name, shape)]
    if state_dtype == "bfloat16":
        return [("", "uint16", shape)]
    blocks = -(-math.prod(shape) // BLOCK)
    return [("", "int8" if signed else "uint8", shape), (SCALE, "float32", (blocks,))]


def allocate(
    params: Sequence[Array],
    kept: Sequence[Kept],
    state: Sequence[ParamState],
    state_dtype: str,
    first_values: Sequence[float],
) -> list[ParamState]:
    """The state each parameter needs: what it has already, the rest ``first_values``, in one slab.

    Each array begins on its own cache line and a little further into its page than the one
    before: streams at equal offsets in their pages get in each other's way.
    """
    wanted = [
        {
            name + suffix: (dtype, shape)
            for name, signed, whole in arrays
            for suffix, dtype, shape in _forms(p, state_dtype, signed, whole)
        }
        for p, arrays in zip(params, kept, strict=True)
    ]
    missing, end = [], 0
    for i, arrays in enumerate(wanted):
        for name, (dtype, shape) in arrays.items():
            if name not in state[i]:
                size = math.prod(shape) * np.dtype(dtype).itemsize
                missing.append((i, name, dtype, shape, end, size))
                end += -(-size // 64) * 64 + 17 * 64
    slab = np.zeros(end + 64 if missing else 0, np.uint8)
    first = -slab.ctypes.data % 64
    result = [{k: s[k] for k in arrays if k in s} for arrays, s in zip(wanted, state, strict=True)]
    for i, name, dtype, shape, at, size in missing:
        result[i][name] = slab[first + at : first + at + size].view(dtype).reshape(shape)
    for i in {i for i, *_ in missing if first_values[i]}:
        for name, _, whole in kept[i]:
            write(result[i], name, np.full(whole, first_values[i], params[i].dtype))
    return result


def write(arrays: ParamState, name: str, values: Array) -> None:
    """Store values in full precision, narrowed where the state is narrow."""
    if arrays[name].dtype.kind == "f":
        np.copyto(arrays[name], values)
    else:
        update_state.encode_state(arrays[name], arrays.get(name + SCALE), values, 0)


def full(arrays: ParamState, name: str) -> Array:
    """A copy of one state array in full precision."""
    stored = arrays[name]
    if stored.dtype.kind == "f":
        return np.array(stored)
    out = np.empty(stored.shape, np.float32)
    update_state.decode_state(out, stored, arrays.get(name + SCALE))
    return out


def read(
    entry: Mapping[str, Any],
    p: Array,
    kept: Kept,
    state_dtype: str,
    where: str,
) -> ParamState:
    """Fresh state arrays of ``p`` from an entry of a state dict, narrowed or widened as needed."""
    arrays: ParamState = {}
    for name, signed, whole in kept:
        if entry.get(name) is None:
            raise FormatError(f"state_dict: {where} lacks {name!r}")
        forms = _forms(p, state_dtype, signed, whole)
        value = np.asarray(entry[name]) if _is_codes(entry[name]) else entry[name]
        try:
            if _is_codes(value) and value.dtype.name == forms[0][1]:
                for suffix, dtype, shape in forms:
                    a = as_array(
                        entry.get(name + suffix), name + suffix, dtypes=(dtype,), shape=shape
                    )
                    arrays[name + suffix] = np.array(a, order="C", copy=True)
                continue
            if _is_codes(value):
                held = {name: np.ascontiguousarray(value)}
                if value.dtype.itemsize == 1:
                    blocks = (-(-value.size // BLOCK),)
                    scales = as_array(
                        entry.get(name + SCALE), name + SCALE, dtypes=("float32",), shape=blocks
                    )
                    held[name + SCALE] = scales
                value = full(held, name)
            target = p.dtype.name if len(forms) == 1 and forms[0][1] != "uint16" else "float32"
            a = as_array(value, name, dtypes=("float32", "float64"), cast=target, shape=whole)
        except (ArrayError, DTypeError) as error:
            raise FormatError(f"state_dict: {where}: {error}") from None
        a = np.array(a, target, order="C", copy=True)
        if forms[0][1] == target:
            arrays[name] = a
            continue
        arrays.update({name + suffix: np.empty(shape, dtype) for suffix, dtype, shape in forms})
        write(arrays, name, a)
    return arrays


def parts(
    state_dict: Any,
) -> tuple[list[Mapping[str, Any]], dict[Any, Mapping[str, Any]], Mapping[str, Any]]:
    """The groups, the state by parameter and what torch has no place for, of the right kinds."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise FormatError('state_dict: expected a dict with "state" and "param_groups"')
    groups, state = state_dict["param_groups"], state_dict["state"]
    extra = state_dict.get("fastopt", {})
    if not isinstance(groups, (list, tuple)) or not all(
        isinstance(g, Mapping)
        and isinstance(g.get("params"), (list, tuple))
        and all(isinstance(i, int) for i in g["params"])
        for g in groups
    ):
        raise FormatError(
            'state_dict["param_groups"]: expected a list of dicts with numbers under "params"'
        )
    if not isinstance(state, Mapping) or not all(isinstance(e, Mapping) for e in state.values()):
        raise FormatError('state_dict["state"]: expected a dict of dicts')
    if not isinstance(extra, Mapping):
        raise FormatError(f'state_dict["fastopt"]: expected a dict, got {type(extra).__name__}')
    return list(groups), dict(state), extra


def in_order(group: Mapping[str, Any], names: Sequence[str | None], number: int) -> list[Any]:
    """The ids of a state dict's group in the order of our parameters: by name where both have
    names, else as they stand."""
    ids, theirs = list(group["params"]), group.get("param_names")
    if theirs is None or None in names:
        return ids
    if not isinstance(theirs, (list, tuple)) or len(theirs) != len(ids):
        raise FormatError(f"state_dict: group {number}: expected a name for each parameter")
    if sorted(map(str, theirs)) != sorted(map(str, names)):
        missing = [n for n in names if n not in theirs]
        raise FormatError(
            f"state_dict: group {number}: expected parameters named "
            f"{', '.join(map(str, names[:10]))}; it lacks {', '.join(map(str, missing[:10]))}"
        )
    place = dict(zip(map(str, theirs), ids, strict=True))
    return [place[str(n)] for n in names]


def moved(values: Any, before: Sequence[Any], after: Sequence[Any]) -> Any:
    """A list with one entry per id of ``before``, put in the order ``after`` of the same ids."""
    if before == after or not isinstance(values, (list, tuple)) or len(values) != len(before):
        return values
    by_id = dict(zip(before, values, strict=True))
    return [by_id[i] for i in after]


def scalar(value: Any, where: str, high: float = 2.0**53, whole: bool = True) -> float:
    """A number between 0 and ``high`` that a state dict holds, as a number, array or tensor."""
    try:
        found = real(value, where)
    except FastoptError:
        raise FormatError(f"state_dict: {where}: expected a number, got {value!r}") from None
    if not 0 <= found <= high or (whole and not found.is_integer()):
        kind = "a whole number" if whole else "a number"
        raise FormatError(f"state_dict: {where}: expected {kind} in [0, {high:g}], got {found!r}")
    return found


def check_format(entries: Iterable[Mapping[str, Any]], extra: Mapping[str, Any]) -> None:
    """Refuse 8-bit codes of another meaning than this version's."""
    found = extra.get("state_format")
    values = itertools.chain.from_iterable(entry.values() for entry in entries)
    if found != FORMAT and any(_is_codes(v) and v.dtype.itemsize == 1 for v in values):
        raise FormatError(
            f'state_dict["fastopt"]["state_format"]: expected {FORMAT!r} for 8-bit state, got '
            f'{found!r}; the version that wrote it can load it with state_dtype="float32" and '
            "save it anew"
        )


def averages(
    own: Sequence[Array] | None, given: Sequence[Any] | None
) -> list[tuple[Array, Array]]:
    """(average, what it is to become) of each parameter; none where a side keeps no averages."""
    if own is None or given is None:
        return []
    try:
        return [
            (mine, as_array(theirs, f"average {i}", shape=mine.shape))
            for i, (mine, theirs) in enumerate(zip(own, given, strict=True))
        ]
    except (TypeError, ValueError) as error:
        raise FormatError(f"state_dict: averages: {error}") from None


def _is_codes(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.name in ("uint16", "int8", "uint8")
