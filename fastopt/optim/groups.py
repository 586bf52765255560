"""Parameter groups: how parameters are passed in, and options that check what is put into them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np

from fastopt import _options
from fastopt._arrays import Array, as_array, as_target, check_disjoint
from fastopt._options import number
from fastopt._random import Seed
from fastopt.errors import ArrayError, DTypeError, OptionError

__all__ = [
    "ParamGroup",
    "Params",
    "Shared",
    "Validator",
    "betas",
    "flag",
    "fraction",
    "non_negative",
    "positive",
    "real",
]

Params: TypeAlias = "Any"
Validator: TypeAlias = "Callable[[Any], Any]"


class Shared(TypedDict, total=False):
    """What every optimizer takes besides its own options; :class:`Optimizer` says what it does."""

    state_dtype: str
    max_grad_norm: float | None
    on_nonfinite: str
    zero_grads: bool
    ema_decay: float | None
    copy_out: Any
    schedule: Callable[[int], float] | None
    seed: Seed
    threads: int | None


def positive(name: str) -> Validator:
    return lambda value: number(value, name, low=0.0, low_open=True)


def non_negative(name: str) -> Validator:
    return lambda value: number(value, name, low=0.0)


def fraction(name: str) -> Validator:
    return lambda value: number(value, name, low=0.0, high=1.0, high_open=True)


def real(name: str) -> Validator:
    return lambda value: number(value, name)


def flag(name: str) -> Validator:
    return lambda value: _options.flag(value, name)


def betas(value: Any) -> tuple[float, float]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise DTypeError(f"betas: expected two numbers, got {value!r}") from None
    check = (fraction("betas[0]"), fraction("betas[1]"))
    return check[0](first), check[1](second)


class ParamGroup(dict[str, Any]):
    """The parameters and options of one group: a dict that checks what is put into it.

    ``group["lr"] = 0.1`` takes effect at the next step; a value that is not allowed is refused
    and leaves the group as it was. It pickles and copies as a plain dict.
    """

    def __init__(self, check: Callable[[str, Any], Any], values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._check = check

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, self._check(key, value))

    def update(self, *args: Any, **kwargs: Any) -> None:
        checked = {k: self._check(k, v) for k, v in dict(*args, **kwargs).items()}
        super().update(checked)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __delitem__(self, key: str) -> None:
        raise OptionError(f"{key}: an option of a group can be changed but not removed")

    def pop(self, key: str, *default: Any) -> Any:
        raise OptionError(f"{key}: an option of a group can be changed but not removed")

    def popitem(self) -> tuple[str, Any]:
        raise OptionError("an option of a group can be changed but not removed")

    def clear(self) -> None:
        raise OptionError("an option of a group can be changed but not removed")

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {k: copy.deepcopy(v, memo) for k, v in self.items()}


def as_groups(params: Params) -> list[Mapping[str, Any]]:
    """``params`` (an array, a list or dict of arrays, or a list of groups) as a list of groups."""
    if isinstance(params, Mapping) or hasattr(params, "shape"):
        return [{"params": params}]
    if not isinstance(params, Iterable) or isinstance(params, (str, bytes)):
        raise DTypeError(
            f"params: expected an array, or a list or dict of arrays or groups, "
            f"got {type(params).__name__}"
        )
    items = list(params)
    if not items:
        raise ArrayError("params: expected at least one array, got none")
    if all(isinstance(item, Mapping) for item in items):
        return items
    return [{"params": items}]


def named_targets(given: Any, first: int) -> list[tuple[str | None, Array]]:
    """One group's ``"params"`` as (name or None, writable array); ``first`` counts for errors."""
    if isinstance(given, Mapping):
        pairs: list[tuple[str | None, Any]] = [(str(k), v) for k, v in given.items()]
    elif hasattr(given, "shape"):
        pairs = [(None, given)]
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        pairs = [
            item
            if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
            else (None, item)
            for item in given
        ]
    else:
        raise DTypeError(
            f"params: expected an array, or a list or dict of arrays, got {type(given).__name__}"
        )
    return [
        (name, as_target(value, f"params[{first + i if name is None else repr(name)}]"))
        for i, (name, value) in enumerate(pairs)
    ]


def flatten(grads: Any, names: Sequence[str | None], single: bool) -> tuple[Any, ...]:
    """Gradients as a tuple in the order of the parameters, which have these names."""
    if type(grads) is list:
        return tuple(grads)
    if single and type(grads) is np.ndarray:  # before the check below, which takes 300 ns
        return (grads,)
    if isinstance(grads, Mapping):
        unknown = [k for k in grads if k not in names]
        if unknown:
            raise ArrayError(f"grads: no parameter is named {unknown[0]!r}")
        return tuple(grads.get(name) for name in names)
    if single and hasattr(grads, "shape"):
        return (grads,)
    if isinstance(grads, Iterable) and not hasattr(grads, "shape"):
        return tuple(grads)
    raise ArrayError(
        f"grads: expected a sequence or dict of {len(names)} arrays, got {type(grads).__name__}"
    )


def as_arrays(flat: tuple[Any, ...], written: bool) -> tuple[Any, ...] | None:
    """Tensors, subclasses of ndarray and other array-likes as ndarrays (sharing memory where
    it is ``written``); None if all of them are ndarrays already."""
    if all(g is None or type(g) is np.ndarray for g in flat):
        return None
    wanted = ("float32", "float64", "float16", "bfloat16")
    read = as_target if written else as_array
    return tuple(
        g if g is None or type(g) is np.ndarray else read(g, f"grads[{i}]", dtypes=wanted)
        for i, g in enumerate(flat)
    )


def read_copies(
    copy_out: Any, params: Sequence[Array], names: Sequence[str | None], single: bool
) -> list[Array | None]:
    """The 16-bit arrays that get the new weights, one or None for each parameter."""
    given = flatten(copy_out, names, single)
    if len(given) != len(params):
        raise ArrayError(f"copy_out: expected {len(params)} arrays, got {len(given)}")
    copies: list[Array | None] = []
    for i, (c, p) in enumerate(zip(given, params, strict=True)):
        name = f"copy_out[{i}]"
        if c is not None and p.dtype != np.float32:
            raise DTypeError(f"{name}: only float32 parameters are copied out")
        dtypes = ("float16", "bfloat16")
        copies.append(None if c is None else as_target(c, name, dtypes=dtypes, shape=p.shape))
    check_disjoint(
        [(f"copy_out[{i}]", c) for i, c in enumerate(copies) if c is not None],
        [(f"params[{i}]", p) for i, p in enumerate(params)],
    )
    return copies
