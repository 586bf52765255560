"""What every module of a network is: a name, the modules that it reads, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import integer, items
from fastopt.errors import ArrayError, OptionError

__all__ = ["Module", "float_array", "images", "own_copy", "pair", "vector"]


class Module:
    """One step of a network's graph.

    Attributes
    ----------
    kind : str
        Its name in files, and the stem of the name that an unnamed one gets.
    arrays, buffers : tuple of str
        Attributes that hold arrays: those that are trained, and those that are kept beside them.
        One of None is not there.
    n_inputs : int or None
        How many tensors it reads; None for two or more.
    name : str
    inputs : tuple of str
        Names of the modules that it reads, "X" for the network's input; empty for the module
        before it.
    """

    kind: ClassVar[str] = ""
    arrays: ClassVar[tuple[str, ...]] = ()
    buffers: ClassVar[tuple[str, ...]] = ()
    n_inputs: ClassVar[int | None] = 1
    name: str
    inputs: tuple[str, ...]

    def shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for inputs of those shapes, without the axis of the rows.

        Raises
        ------
        ArrayError
            It does not take them.
        """
        return shapes[0]

    def forward(self, *xs: Array, training: bool = False) -> tuple[Array, Any]:
        """The output, and what :meth:`backward` needs of this call."""
        raise NotImplementedError

    def backward(
        self, dy: Array, saved: Any, dx: bool = True
    ) -> tuple[Sequence[Array | None], dict[str, Array]]:
        """The loss's gradients by each input, and by each of ``arrays``.

        Parameters
        ----------
        dy : array
            The gradient by the output.
        saved
            As forward returned it; used up.
        dx : bool
            Whether the gradients by the inputs are wanted; None stands for each otherwise.
        """
        raise NotImplementedError

    def held(self) -> dict[str, Array]:
        """All its arrays, ``arrays`` first, then ``buffers``."""
        found = {a: getattr(self, a) for a in (*self.arrays, *self.buffers)}
        return {name: a for name, a in found.items() if a is not None}

    def config(self) -> dict[str, Any]:
        """Every field that is no array, as JSON holds it."""
        arrays = {*self.arrays, *self.buffers, "stored"}
        names = [f.name for f in fields(self) if f.name not in arrays]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names}

    def macs(self, shape: tuple[int, ...], *inputs: tuple[int, ...]) -> int:
        """Multiply-adds with an output of that shape for one row."""
        return 0


Made = TypeVar("Made", bound=Module)


def own_copy(module: Made) -> Made:
    """A copy that shares no array."""
    twin = copy.copy(module)
    for name, a in module.held().items():
        setattr(twin, name, a.copy())
    return twin


def float_array(x: Any, name: str, ndim: int) -> Array:
    """A parameter: a float32 array of that rank."""
    return as_array(x, name, dtypes=("float32",), cast="float32", ndim=ndim)


def vector(x: Any, name: str, n: int, finite: bool = False) -> Array:
    """A parameter with one value per channel or feature."""
    found = as_array(x, name, dtypes=("float32",), cast="float32", shape=(n,))
    if finite:
        check_finite(found, name)
    return found


def pair(value: Any, name: str, low: int) -> tuple[int, int]:
    """An integer for both axes of an image, or one for each."""
    both = items(value, name) if isinstance(value, (list, tuple)) else [value, value]
    if len(both) != 2:
        raise OptionError(f"{name}: expected an integer or two, got {value!r}")
    return integer(both[0], name, low=low), integer(both[1], name, low=low)


def images(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """(channels, height, width), or ArrayError."""
    if len(shape) != 3:
        raise ArrayError(f"layers: {name} takes (channels, height, width), got {shape}")
    return shape[0], shape[1], shape[2]
